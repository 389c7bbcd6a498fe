"""Max-pooling, average pooling, unpooling: loop oracles, finite differences, PyTorch; ties, winners, overlaps."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minunet import Geometry, Tensor, functional, gradcheck
from minunet.convolution import im2col
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, run
from tests.peers import PRECISIONS, assert_equals_torch, first, last
from tests.strategies import pairs, seeds


class Pooling(NamedTuple):
    """Windows and an image that they fit."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]
    batch: int
    channels: int
    seed: int

    @property
    def window(self):
        return self.kernel, self.stride, self.padding

    @property
    def out_size(self):
        return Geometry(*self.window).output_size(self.size)

    def image(self, levels=None):
        """Random numbers, or integers of few levels (many ties), most of them negative."""
        rng, shape = np.random.default_rng(self.seed), (self.batch, *self.size, self.channels)
        return rng.standard_normal(shape) - 1 if levels is None else rng.integers(-levels, 1, shape).astype(float)

    def maxima(self):
        """Numbers for unpooling, and the position in its window, any, that each of them comes from."""
        rng, shape = np.random.default_rng(self.seed), (self.batch, *self.out_size, self.channels)
        return rng.standard_normal(shape), rng.integers(0, np.prod(self.kernel), shape).astype(np.uint8)


@st.composite
def poolings(draw, most=lambda kernel: kernel - 1, overlap=True):
    """Any kernel and stride, padding up to most(kernel); without overlap the stride is at least the kernel."""
    kernel = draw(pairs(1, 4))
    stride = tuple(draw(st.integers(1 if overlap else k, k + 1)) for k in kernel)
    padding = tuple(draw(st.integers(0, most(k))) for k in kernel)
    size = tuple(draw(st.integers(max(1, k - 2 * p), max(1, k - 2 * p) + 5)) for k, p in zip(kernel, padding))
    return Pooling(kernel, stride, padding, size, draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(seeds))


def half(kernel):
    """The most padding that PyTorch allows."""
    return kernel // 2


def beyond(kernel):
    """So much padding that some windows of a mean may hold nothing else."""
    return kernel + 1


@given(poolings(), st.sampled_from([None, 2, 0]))
def test_max_pool_equals_the_loop_oracle_and_the_first_of_ties_wins(case, levels):
    x = case.image(levels)
    y, winners = functional.max_pool2d(x, *case.window, return_winners=True)
    expected, first_winners = naive.pool2d(x, *case.window, "max")
    np.testing.assert_array_equal(y.data, expected)
    np.testing.assert_array_equal(winners, first_winners)
    assert winners.dtype == np.uint8


@given(poolings(), st.sampled_from([None, 2, 0]))
def test_a_max_gives_its_gradient_to_the_first_winner_and_overlaps_add(case, levels):
    x = case.image(levels)
    _, cotangent, (dx,) = run(lambda x: functional.max_pool2d(x, *case.window), [x])
    _, winners = naive.pool2d(x, *case.window, "max")
    assert_close(dx, naive.max_unpool2d(cotangent, winners, *case.window, case.size), 1e-12)


@given(poolings(beyond))
def test_avg_pool_equals_the_loop_oracle(case):
    x = case.image()
    expected, _ = naive.pool2d(x, *case.window, "mean")
    assert_close(functional.avg_pool2d(x, *case.window).data, expected, 1e-12)


@given(poolings())
def test_max_unpool_equals_the_loop_oracle(case):
    values, winners = case.maxima()
    y = functional.max_unpool2d(values, winners, *case.window, size=case.size)
    assert_close(y.data, naive.max_unpool2d(values, winners, *case.window, case.size), 1e-12)


@given(poolings())
def test_max_pool_gradient_equals_finite_differences(case):
    gradcheck(lambda x: functional.max_pool2d(x, *case.window), [case.image()])


@given(poolings(beyond))
def test_avg_pool_gradient_equals_finite_differences(case):
    gradcheck(lambda x: functional.avg_pool2d(x, *case.window), [case.image()])


@given(poolings())
def test_max_unpool_gradient_equals_finite_differences(case):
    values, winners = case.maxima()
    gradcheck(lambda y: functional.max_unpool2d(y, winners, *case.window, size=case.size), [values])


@pytest.mark.parametrize("kind", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(case=poolings(half))
def test_pooling_equals_pytorch(torch, kind, dtype, tolerance, case):
    ours, theirs = getattr(functional, kind), getattr(torch.nn.functional, kind)
    assert_equals_torch(torch, lambda x: ours(x, *case.window), lambda x: last(theirs(first(x), *case.window)),
                        [case.image()], dtype, tolerance)


def flat_positions(winners, case):
    """Positions in windows as PyTorch counts them: (n, c, oh, ow) of row · W + column in the image."""
    kh, kw = np.divmod(winners.astype(int), case.kernel[1])
    oh, ow = np.arange(winners.shape[1])[:, None, None], np.arange(winners.shape[2])[:, None]
    rows, columns = (o * s - p + k for o, s, p, k in zip((oh, ow), case.stride, case.padding, (kh, kw)))
    return np.moveaxis(rows * case.size[1] + columns, -1, 1)


@given(case=poolings(half), levels=st.sampled_from([None, 2]))
def test_winners_equal_pytorch(torch, case, levels):
    x = case.image(levels)
    _, winners = functional.max_pool2d(x, *case.window, return_winners=True)
    _, expected = torch.nn.functional.max_pool2d(first(torch.tensor(x)), *case.window, return_indices=True)
    np.testing.assert_array_equal(flat_positions(winners, case), expected.numpy())


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(case=poolings(half, overlap=False))
def test_max_unpool_equals_pytorch_where_windows_do_not_overlap(torch, dtype, tolerance, case):
    """Where they do, PyTorch keeps one of the values that meet; here they add."""
    values, winners = functional.max_pool2d(case.image(), *case.window, return_winners=True)
    flat = torch.tensor(flat_positions(winners, case))
    assert_equals_torch(
        torch, lambda y: functional.max_unpool2d(y, winners, *case.window, size=case.size),
        lambda y: last(torch.nn.functional.max_unpool2d(first(y), flat, *case.window, output_size=case.size)),
        [values.data], dtype, tolerance)


def image(rows):
    return np.array(rows, float)[None, :, :, None]


def test_the_gradient_of_a_constant_image_goes_to_the_first_pixel_of_each_window():
    _, winners = functional.max_pool2d(np.full((1, 3, 3, 1), -7.0), 2, 1, return_winners=True)
    assert not winners.any()
    x = Tensor(np.full((1, 3, 3, 1), -7.0), requires_grad=True)
    functional.max_pool2d(x, 2, 1).backward(np.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(x.grad, image([[1, 1, 0], [1, 1, 0], [0, 0, 0]]))


def test_padding_never_wins_a_max():
    y, winners = functional.max_pool2d(np.full((1, 1, 1, 1), -1e30), 3, 1, 1, return_winners=True)
    assert y.item() == -1e30 and winners.item() == 4         # the middle of the window


def test_padding_counts_as_zeros_in_a_mean():
    assert functional.avg_pool2d(np.full((1, 1, 1, 1), 9.0), 3, 1, 1).item() == 1


def test_gradients_of_overlapping_windows_add():
    """The peak in the middle wins in all four windows of 2x2."""
    peak = image([[0, 0, 0], [0, 5, 0], [0, 0, 0]])
    for pool, expected in [(functional.max_pool2d, image([[0, 0, 0], [0, 10, 0], [0, 0, 0]])),
                           (functional.avg_pool2d, image([[1, 3, 2], [4, 10, 6], [3, 7, 4]]) / 4)]:
        x = Tensor(peak, requires_grad=True)
        pool(x, 2, 1).backward(image([[1, 2], [3, 4]]))
        np.testing.assert_array_equal(x.grad, expected)


def test_values_that_meet_in_unpooling_add():
    winners = np.array([3, 2, 1, 0], np.uint8).reshape(1, 2, 2, 1)
    y = functional.max_unpool2d(image([[1, 2], [3, 4]]), winners, 2, 1)
    np.testing.assert_array_equal(y.data, image([[0, 0, 0], [0, 10, 0], [0, 0, 0]]))


def test_unpooling_puts_maxima_back_where_they_were():
    x = image([[1, 2, 6, 3], [3, 5, 2, 1], [1, 2, 2, 1], [7, 3, 4, 8]])
    y, winners = functional.max_pool2d(x, 2, return_winners=True)
    np.testing.assert_array_equal(y.data, image([[5, 6], [7, 8]]))
    np.testing.assert_array_equal(winners, image([[3, 0], [2, 3]]))
    back = image([[0, 0, 6, 0], [0, 5, 0, 0], [0, 0, 0, 0], [7, 0, 0, 8]])
    np.testing.assert_array_equal(functional.max_unpool2d(y, winners, 2).data, back)


@pytest.mark.parametrize("kernel, dtype", [((1, 1), np.uint8), ((2, 128), np.uint8), ((16, 16), np.uint8),
                                           ((1, 257), np.uint16), ((17, 16), np.uint16)])
def test_winners_are_one_byte_up_to_256_positions_and_two_above(kernel, dtype):
    x = np.zeros((1, *kernel, 1))
    x[0, -1, -1, 0] = 1
    y, winners = functional.max_pool2d(Tensor(x), kernel, return_winners=True)
    assert winners.dtype == dtype and winners.item() == kernel[0] * kernel[1] - 1
    np.testing.assert_array_equal(functional.max_unpool2d(y, winners, kernel).data, x)


@pytest.mark.parametrize("pool", [functional.max_pool2d, functional.avg_pool2d])
def test_the_stride_defaults_to_the_kernel_and_sizes_round_down(pool):
    x = np.random.default_rng(0).standard_normal((2, 5, 8, 3))
    assert pool(x, (2, 3)).shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(pool(x, (2, 3)).data, pool(x, (2, 3), (2, 3)).data)


@pytest.mark.parametrize("f, shape", [
    (lambda x: functional.max_pool2d(x, 3, 2, 1), (2, 5, 4, 3)),
    (lambda x: functional.avg_pool2d(x, 3, 2, 1), (2, 5, 4, 3)),
    (lambda x: functional.max_unpool2d(x, np.zeros((2, 3, 2, 3), np.uint8), 2), (2, 3, 2, 3)),
    (lambda x: functional.avg_pool2d(x, 1), (2, 3, 2, 3)),
])
def test_float32_stays_float32(f, shape):
    assert_keeps_float32(f, shape)


@given(poolings(), st.booleans())
@settings(max_examples=10)
def test_strided_views_are_images_like_any_other(case, average):
    """A crop, or every second pixel, of another array: what the windows see must not depend on the memory's order."""
    pool = functional.avg_pool2d if average else functional.max_pool2d
    x = case.image()
    wide = np.full((*x.shape[:2], 2 * x.shape[2], x.shape[3]), 99.0)
    wide[:, ::-1, ::2] = x
    np.testing.assert_array_equal(pool(wide[:, ::-1, ::2], *case.window).data, pool(x, *case.window).data)


X = np.zeros((2, 4, 4, 3))
ZEROS = np.zeros((2, 2, 2, 3), np.uint8)


@pytest.mark.parametrize("make, message", [
    (lambda: functional.max_pool2d(X[0], 2), r"max_pool2d: x must be \(N, H, W, C\), channels last; .*\(4, 4, 3\)"),
    (lambda: functional.avg_pool2d(X[0], 2), r"avg_pool2d: x must be \(N, H, W, C\)"),
    (lambda: functional.max_unpool2d(X[0], ZEROS, 2), r"max_unpool2d: x must be \(N, H, W, C\)"),
    (lambda: functional.max_pool2d(X, 2, padding=(1, 2)),
     r"max_pool2d: padding must be below the kernel .* got padding \(1, 2\), kernel \(2, 2\)"),
    (lambda: functional.max_pool2d(X, 0), "kernel must be an int or .* at least 1; got 0"),
    (lambda: functional.avg_pool2d(X, 2, stride=(0, 1)), r"stride must be .* at least 1; got \(0, 1\)"),
    (lambda: functional.avg_pool2d(X, 2, padding=-1), "padding must be .* at least 0; got -1"),
    (lambda: functional.avg_pool2d(X, (2, 5)), "kernel: its window spans 5 px in width .* has only 4 px"),
    (lambda: functional.max_unpool2d(X[:, :2, :2], ZEROS[:1], 2),
     r"max_unpool2d: winners must be .* in x's shape \(2, 2, 2, 3\); got uint8 \(1, 2, 2, 3\)"),
    (lambda: functional.max_unpool2d(X[:, :2, :2], ZEROS.astype(float), 2), "winners must be unsigned .* got float64"),
    (lambda: functional.max_unpool2d(X[:, :2, :2], ZEROS + np.uint8(4), 2), "winners must be .* integers below 4"),
    (lambda: functional.max_unpool2d(X[:, :2, :2], ZEROS, 2, size=6),
     r"max_unpool2d: an image of size \(6, 6\) has \(3, 3\) windows, x has \(2, 2\)"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 3, 0)])
@pytest.mark.parametrize("kind", ["max", "average", "unpool"])
def test_blocks_and_threads_make_no_difference(monkeypatch, kernel, stride, padding, kind):
    """Also where windows overlap, to which two threads must not add at a time."""
    x = np.random.default_rng(0).standard_normal((3, 40, 37, 8))
    maxima, winners = functional.max_pool2d(x, kernel, stride, padding, return_winners=True)
    f, inputs = {
        "max": (lambda x: functional.max_pool2d(x, kernel, stride, padding), [x]),
        "average": (lambda x: functional.avg_pool2d(x, kernel, stride, padding), [x]),
        "unpool": (lambda x: functional.max_unpool2d(x, winners, kernel, stride, padding, (40, 37)), [maxima.data]),
    }[kind]
    expected = run(f, inputs)
    monkeypatch.setattr(im2col, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(im2col, "BLOCK_ROWS", 1)
    for threads in "1", "3":
        monkeypatch.setenv("MINUNET_NUM_THREADS", threads)
        for _ in range(5):
            y, _, (dx,) = run(f, inputs)
            np.testing.assert_array_equal(y, expected[0])
            np.testing.assert_array_equal(dx, expected[2][0])
