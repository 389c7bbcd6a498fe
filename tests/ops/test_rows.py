"""Blocks of rows: every element once, in order, cut by shape alone; channel sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet.ops import rows
from tests.checks import assert_close
from tests.strategies import seeds

shapes = st.one_of(st.tuples(*[st.integers(1, 5)] * 4), st.tuples(st.integers(1, 9), st.integers(1, 4)))


@pytest.mark.parametrize("shape, expected", [((2, 3, 4, 5), 6), ((7, 5), 7), ((2, 4, 5), 2), ((5,), 1), ((), 1),
                                             ((0, 3, 4, 5), 0)])
def test_what_a_row_is(shape, expected):
    assert rows.count_rows(np.zeros(shape)) == expected


@given(shapes, st.integers(1, 200))
def test_blocks_are_all_rows_in_order(shape, block):
    x = np.arange(np.prod(shape)).reshape(shape)
    half = x.reshape(rows.count_rows(x), -1)[:, :1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK", block)
        found = rows.in_blocks(lambda x, none, half: (x.copy(), none, half.copy()), rows.count_rows(x), x, None, half)
    np.testing.assert_array_equal(np.concatenate([a for a, _, _ in found]), x.reshape(len(half), -1))
    np.testing.assert_array_equal(np.concatenate([c for _, _, c in found]), half)
    assert all(none is None and len(a) == len(c) for a, none, c in found)
    length = x.size // len(half)
    assert all(a.size <= max(block, length) for a, _, _ in found)
    assert all(len(a) == max(1, block // length) for a, _, _ in found[:-1])


@given(shapes, st.integers(1, 50))
def test_what_is_written_into_a_block_lands_in_the_array(shape, block):
    x, y = np.random.default_rng(0).standard_normal(shape), np.empty(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BLOCK", block)
        rows.in_blocks(lambda x, y: np.negative(x, out=y), rows.count_rows(x), x, y)
    np.testing.assert_array_equal(y, -x)


def test_blocks_of_nothing():
    assert rows.in_blocks(lambda x: 1 / 0, 0, np.zeros((0, 3, 4, 5))) == []


@given(st.integers(1, 300), st.integers(1, 5), seeds)
def test_channel_sums(pixels, channels, seed):
    x = np.random.default_rng(seed).standard_normal((pixels, channels))
    assert_close(rows.channel_sums(x.reshape(1, -1), channels), x.sum(0), 1e-13)


@pytest.mark.parametrize("channels", [1, 2, 3, 64])
def test_channel_sums_of_equal_numbers_round_little(channels):
    """65,536 tenths one after the other would be off by 6e-4."""
    block = np.full((1, 65_536 * channels), 0.1, np.float32)
    total = rows.channel_sums(block, channels)
    assert total.dtype == np.float32
    assert np.abs(total / (65_536 * float(np.float32(0.1))) - 1).max() < 2e-6


def test_repeated():
    y = rows.repeated(np.array([1.5, 2.5]), 6, np.float32)
    assert y.dtype == np.float32 and y.tolist() == [1.5, 2.5] * 3
