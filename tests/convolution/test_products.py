"""Small products: how matrices are cut, and that the pieces make the whole."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet.convolution import products
from minunet.convolution.products import (
    HEIGHT,
    depth,
    finish,
    multiply,
    multiply_each,
    panels,
)
from tests.checks import assert_close
from tests.strategies import seeds

MILLION = 1_000_000
LIMITS = (1, 600, 2000, 20_000, MILLION, sys.maxsize)


@pytest.fixture(autouse=True)
def small_products(monkeypatch):
    """As on a processor with AVX-512, whatever this one is."""
    monkeypatch.setattr(products, "UNPACKED", MILLION)


def test_nothing_is_cut_where_the_library_has_no_small_products(monkeypatch):
    monkeypatch.setattr(products, "UNPACKED", sys.maxsize)
    matrix = np.ones((5000, 700), np.float32)
    assert panels(matrix)[0] is matrix and len(panels(matrix)) == len(panels(matrix.T)) == 1


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 150), st.sampled_from(LIMITS), st.booleans(),
       st.booleans(), st.sampled_from([np.float32, np.float64]), seeds)
def test_the_pieces_make_the_whole_product(m, k, n, limit, a_transposed, b_transposed, dtype, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((k, m)).astype(dtype).T if a_transposed else rng.standard_normal((m, k)).astype(dtype)
    b = rng.standard_normal((n, k)).astype(dtype).T if b_transposed else rng.standard_normal((k, n)).astype(dtype)
    image = np.full((m, n + 3), 7, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "UNPACKED", limit)
        right = panels(b)
        np.testing.assert_array_equal(np.hstack(right), b)
        multiply(a, right, out=image[:, 1:n + 1])
    assert_close(image[:, 1:n + 1], a.astype(float) @ b, 1e-5 if dtype == np.float32 else 1e-12)
    assert (image[:, 0] == 7).all() and (image[:, n + 1:] == 7).all()


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 40), st.sampled_from(LIMITS), seeds)
def test_a_stack_of_rows_is_multiplied_into_a_stack(m, k, n, limit, seed):
    rng = np.random.default_rng(seed)
    a, b, out = rng.standard_normal((2, 3, m, k)), rng.standard_normal((k, n)), np.zeros((2, 3, 2, m, n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "UNPACKED", limit)
        multiply(a, panels(b), out=out[:, :, 1])
    assert_close(out[:, :, 1], a @ b, 1e-12)
    assert not out[:, :, 0].any()


@pytest.mark.parametrize("m, k, n", [(512, 1024, 2048), (100, 1302, 64), (100, 1303, 200), (512, 5208, 48), (7, 30, 9)])
def test_products_are_small_and_full(monkeypatch, m, k, n):
    """None above the limit, and all but the last two of a panel with a multiple of HEIGHT rows."""
    sizes = []

    def record(a, b, out):
        sizes.append((a.shape[-2], a.shape[-2] * b.shape[0] * b.shape[1]))

    b = np.broadcast_to(np.float32(1), (k, n))
    right = panels(np.ascontiguousarray(b))
    monkeypatch.setattr(np, "matmul", record)
    multiply(np.zeros((m, k), np.float32), right, out=np.zeros((m, n), np.float32))
    assert max(size for _, size in sizes) <= MILLION
    assert m <= HEIGHT or all(rows % HEIGHT == 0 for rows, _ in sizes[::2])


def test_numpy_never_multiplies_one_column_by_one_row(monkeypatch):
    depths, matmul = [], np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b, out: depths.append(a.shape[-1]) or matmul(a, b, out=out))
    out = np.empty((50, 70))
    multiply(np.full((50, 1), 3.0), panels(np.arange(70.0)[None]), out=out)
    np.testing.assert_array_equal(out, np.tile(3 * np.arange(70.0), (50, 1)))
    assert set(depths) == {2}


def test_panels_are_copied_only_where_columns_lie_far_apart():
    b = np.ones((128, 256), np.float32)
    assert all(np.shares_memory(panel, b) for panel in panels(b))
    tall = np.ones((2048, 256), np.float32)
    for matrix in (b.T, tall):
        assert all(panel.flags.c_contiguous and not np.shares_memory(panel, matrix) for panel in panels(matrix))


def test_depth_is_the_last_at_which_a_matrix_is_multiplied_where_it_lies():
    for n in (8, 16, 17, 64, 200):
        for k, copied in ((depth(n), False), (depth(n) + 1, n > 16)):
            b = np.ones((k, n), np.float32)
            assert np.shares_memory(panels(b)[0], b) != copied, (n, k)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.booleans(), st.booleans(), seeds)
def test_finish_adds_and_rectifies_in_place(rows, pixels, channels, with_bias, relu, seed):
    rng = np.random.default_rng(seed)
    image, b = rng.standard_normal((2, 2 * rows, pixels, channels)), rng.standard_normal(channels)
    y, others = image[:, ::2], image[:, 1::2].copy()            # rows that do not lie together
    expected = y + b if with_bias else y.copy()
    expected = np.maximum(expected, 0) if relu else expected
    finish(y, np.tile(b, pixels + 2) if with_bias else None, relu)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(image[:, 1::2], others)


def test_finish_keeps_nan():
    y = np.array([[np.nan, -1.0]])
    finish(y, None, relu=True)
    np.testing.assert_array_equal(y, [[np.nan, 0.0]])


@pytest.mark.parametrize("m, k, n", [(512, 1024, 256), (100, 64, 64), (700, 30, 300), (4096, 16, 16)])
def test_a_stack_of_products_is_small_and_whole(monkeypatch, m, k, n):
    """Each at most UNPACKED; and together they cover out once."""
    covered, sizes = np.zeros((2, m, n)), []

    def record(a, b, out):
        out += 1
        sizes.append(a.shape[-2] * a.shape[-1] * b.shape[-1])

    monkeypatch.setattr(np, "matmul", record)
    multiply_each(np.zeros((2, m, k)), np.zeros((2, k, n)), covered)
    assert (covered == 1).all() and max(sizes) <= MILLION
