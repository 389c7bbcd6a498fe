"""concat, crop, center_crop, pad: loop oracles, finite differences, PyTorch; reflection as often as needed."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import functional, gradcheck
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, assert_refuses_mixed_dtypes, run
from tests.peers import PRECISIONS, assert_equals_torch, first, last
from tests.strategies import pairs, seeds

MODES = pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])


class Cut(NamedTuple):
    """A part of an image."""

    image: np.ndarray
    top: int
    left: int
    size: tuple[int, int]


@st.composite
def cuts(draw):
    size, part = draw(pairs(1, 7)), draw(pairs(1, 7))
    part = tuple(map(min, part, size))
    top, left = (draw(st.integers(0, n - k)) for n, k in zip(size, part))
    return Cut(image(size, draw(seeds)), top, left, part)


def image(size, seed):
    return np.random.default_rng(seed).standard_normal((2, *size, 2))


@st.composite
def branches(draw):
    """One to four arrays that differ in their channels only."""
    shape = draw(st.lists(st.integers(1, 3), min_size=0, max_size=3))
    rng = np.random.default_rng(draw(seeds))
    return [rng.standard_normal((*shape, c)) for c in draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))]


def margins(most):
    return st.tuples(*[st.integers(0, most)] * 4)


@given(branches())
def test_concat_lays_channels_side_by_side(xs):
    y = functional.concat(*xs).data
    assert y.shape[:-1] == xs[0].shape[:-1]
    for index in np.ndindex(y.shape[:-1]):
        assert list(y[index]) == list(itertools.chain(*(x[index] for x in xs)))


@given(branches())
def test_concat_gradients_equal_finite_differences(xs):
    gradcheck(functional.concat, xs)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(xs=branches())
def test_concat_equals_pytorch(torch, dtype, tolerance, xs):
    assert_equals_torch(torch, functional.concat, lambda *xs: torch.cat(xs, -1), xs, dtype, tolerance)


@given(cuts())
def test_crop_equals_the_loop_oracle_and_its_gradient_finite_differences(cut):
    x, top, left, size = cut
    np.testing.assert_array_equal(functional.crop(x, top, left, size).data, naive.crop(x, top, left, size))
    gradcheck(lambda x: functional.crop(x, top, left, size), [x])


@given(cuts())
def test_center_crop_equals_the_loop_oracle_and_its_gradient_finite_differences(cut):
    """Of an odd margin, the larger part goes at the bottom and right."""
    x, _, _, size = cut
    top, left = ((n - k) // 2 for n, k in zip(x.shape[1:3], size))
    np.testing.assert_array_equal(functional.center_crop(x, size).data, naive.crop(x, top, left, size))
    gradcheck(lambda x: functional.center_crop(x, size), [x])


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(cut=cuts())
def test_crop_equals_pytorch(torch, dtype, tolerance, cut):
    x, top, left, (h, w) = cut
    assert_equals_torch(torch, lambda x: functional.crop(x, top, left, (h, w)),
                        lambda x: x[:, top:top + h, left:left + w], [x], dtype, tolerance)


def test_cropping_a_skip_of_the_paper():
    """64x64 to 56x56 takes 4 px from each side; of 5 px too many, 2 at the top."""
    x = np.random.default_rng(0).standard_normal((1, 64, 64, 3))
    np.testing.assert_array_equal(functional.center_crop(x, 56).data, x[:, 4:60, 4:60])
    np.testing.assert_array_equal(functional.center_crop(x, (59, 64)).data, x[:, 2:61])


@MODES
@given(size=pairs(1, 4), around=margins(9), value=st.floats(-2, 2), seed=seeds)
def test_pad_equals_the_loop_oracle(mode, size, around, value, seed):
    """Margins up to nine times the image."""
    x = image(size, seed)
    np.testing.assert_array_equal(functional.pad(x, around, mode, value).data, naive.pad(x, around, mode, value))


@MODES
@given(size=pairs(1, 4), around=margins(9), seed=seeds)
def test_pad_gradient_equals_finite_differences(mode, size, around, seed):
    gradcheck(lambda x: functional.pad(x, around, mode), [image(size, seed)])


@MODES
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(size=pairs(5, 7), around=margins(4), seed=seeds)
def test_pad_equals_pytorch(torch, mode, dtype, tolerance, size, around, seed):
    """PyTorch reflects once: margins below the image's size."""
    top, bottom, left, right = around
    theirs = {"mode": "constant", "value": 1.5} if mode == "constant" else {"mode": mode.replace("edge", "replicate")}
    assert_equals_torch(
        torch, lambda x: functional.pad(x, around, mode, 1.5),
        lambda x: last(torch.nn.functional.pad(first(x), (left, right, top, bottom), **theirs)),
        [image(size, seed)], dtype, tolerance)


@pytest.mark.parametrize("mode, expected", [
    ("constant", [9, 9, 9, 9, 9, 1, 2, 3, 9, 9, 9, 9, 9, 9]),
    ("edge", [1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3]),
    ("reflect", [2, 1, 2, 3, 2, 1, 2, 3, 2, 1, 2, 3, 2, 1]),
])
def test_margins_larger_than_the_image(mode, expected):
    x = np.array([1.0, 2, 3]).reshape(1, 1, 3, 1)
    assert functional.pad(x, (0, 0, 5, 6), mode, 9).data.ravel().tolist() == expected
    assert functional.pad(x.reshape(1, 3, 1, 1), (5, 6, 0, 0), mode, 9).data.ravel().tolist() == expected


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_one_pixel_is_its_own_mirror_image(mode):
    y, cotangent, (dx,) = run(lambda x: functional.pad(x, (3, 2, 1, 4), mode), [np.full((1, 1, 1, 2), 7.0)])
    np.testing.assert_array_equal(y, np.full((1, 6, 6, 2), 7.0))
    assert_close(dx.ravel(), cotangent.sum((0, 1, 2)), 1e-12)


def test_pad_fills_with_zeros_by_default():
    assert functional.pad(np.ones((1, 1, 1, 1)), (0, 1, 1, 0)).data.ravel().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("f, shapes", [
    (functional.concat, [(2, 3, 4, 1), (2, 3, 4, 2)]),
    (lambda x: functional.crop(x, 1, 0, (2, 3)), [(2, 3, 4, 1)]),
    (lambda x: functional.center_crop(x, (3, 4)), [(2, 3, 4, 1)]),
    (lambda x: functional.pad(x, (1, 0, 2, 1), value=np.float64(0.5)), [(2, 3, 4, 1)]),
    (lambda x: functional.pad(x, (1, 0, 2, 1), "edge"), [(2, 3, 4, 1)]),
    (lambda x: functional.pad(x, (7, 0, 2, 8), "reflect"), [(2, 3, 4, 1)]),
])
def test_float32_stays_float32(f, shapes):
    assert_keeps_float32(f, *shapes)


def test_mixed_dtypes_are_refused():
    assert_refuses_mixed_dtypes(functional.concat, (1, 2, 2, 3), (1, 2, 2, 1), (1, 2, 2, 2))


X = np.zeros((2, 4, 6, 3))


@pytest.mark.parametrize("make, message", [
    (lambda: functional.concat(X, X[:, :3]),
     r"concat: the inputs must have one shape but for the channels; got \(2, 4, 6, 3\), \(2, 3, 6, 3\)"),
    (lambda: functional.concat(X, X[:1]), r"concat: the inputs .* \(1, 4, 6, 3\)"),     # never broadcast
    (lambda: functional.crop(X[0], 0, 0, 2), r"crop: x must be \(N, H, W, C\), channels last; .* \(4, 6, 3\)"),
    (lambda: functional.crop(X, 1, 0, 4), "crop: rows 1 to 5 and columns 0 to 4 are not all inside the image of 4x6"),
    (lambda: functional.crop(X, 0, -1, 4), "crop: .* columns -1 to 3 are not all inside the image"),
    (lambda: functional.crop(X, 0, 0, (0, 1)), r"size must be .* at least 1; got \(0, 1\)"),
    (lambda: functional.center_crop(X, (2, 7)), r"center_crop: size \(2, 7\) is larger than the image of 4x6 px"),
    (lambda: functional.center_crop(X[0], 2), r"center_crop: x must be \(N, H, W, C\)"),
    (lambda: functional.pad(X[0], (1, 1, 1, 1)), r"pad: x must be \(N, H, W, C\)"),
    (lambda: functional.pad(X, (1, 1, 1, 1), "wrap"), "pad: mode must be one of constant, edge, reflect; got 'wrap'"),
    (lambda: functional.pad(X, (1, 1)), r"pad: margins must be \(top, bottom, left, right\), .* got \(1, 1\)"),
    (lambda: functional.pad(X, (1, 1, -1, 1)), r"pad: margins .* each at least 0 px; got \(1, 1, -1, 1\)"),
    (lambda: functional.pad(X, 2), r"pad: margins must be \(top, bottom, left, right\), .* got 2"),
    (lambda: functional.pad(X, (1, 1, 0.5, 1), "edge"), r"pad: margins .* got \(1, 1, 0.5, 1\)"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
