"""Nearest, bilinear and bicubic resampling: the loop oracle, finite differences, PyTorch; ties, factors, borders."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from minunet import functional, gradcheck
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, run
from tests.peers import PRECISIONS, assert_equals_torch, first, last
from tests.strategies import pairs, seeds

METHODS = pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
sizes = pairs(1, 8)


def image(size, seed, batch=2, channels=2):
    return np.random.default_rng(seed).standard_normal((batch, *size, channels))


def has_tie(size, full):
    """Whether some output pixel's centre lies exactly between two input pixels."""
    return any((2 * o + 1) * n % (2 * out) == 0 for n, out in zip(size, full) for o in range(out))


@METHODS
@given(size=sizes, full=pairs(1, 12), seed=seeds)
def test_values_equal_the_loop_oracle(method, size, full, seed):
    x = image(size, seed)
    assert_close(functional.resample(x, full, method=method).data, naive.resample(x, full, method), 1e-12)


@METHODS
@given(size=sizes, full=pairs(1, 12), seed=seeds)
def test_gradient_equals_finite_differences(method, size, full, seed):
    gradcheck(lambda x: functional.resample(x, full, method=method), [image(size, seed)])


@METHODS
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(size=sizes, full=pairs(1, 12), seed=seeds)
def test_equals_pytorch(torch, method, dtype, tolerance, size, full, seed):
    """Without align_corners and antialiasing; nearest-exact only away from ties, as it computes in float32."""
    theirs = {"mode": "nearest-exact"} if method == "nearest" else {"mode": method, "align_corners": False}
    assume(method != "nearest" or not has_tie(size, full))
    assert_equals_torch(
        torch, lambda x: functional.resample(x, full, method=method),
        lambda x: last(torch.nn.functional.interpolate(first(x), full, **theirs)),
        [image(size, seed)], dtype, tolerance)


@given(st.integers(1, 40), st.integers(1, 60))
@example(2, 49)
@example(8, 98)
def test_nearest_reads_floor_of_2o_plus_1_times_n_over_2_out(n, out):
    """Also at ties, where the centre of an output pixel lies on the border of two input pixels: the right one.

    The examples are sizes at which the ratio n/out as a float lands on the wrong side of a tie.
    """
    y = functional.resample(np.arange(n, dtype=float).reshape(1, 1, n, 1), (1, out), method="nearest")
    assert y.data.ravel().tolist() == [(2 * o + 1) * n // (2 * out) for o in range(out)]


def test_halving_takes_the_second_of_two_nearest():
    y = functional.resample(np.arange(16.0).reshape(1, 4, 4, 1), factor=0.5, method="nearest")
    assert y.data.ravel().tolist() == [5, 7, 13, 15]


@METHODS
@given(size=sizes, factor=st.floats(0.2, 3), other=st.floats(0.2, 3), seed=seeds)
def test_a_factor_only_chooses_the_size(method, size, factor, other, seed):
    x = image(size, seed, 1, 1)
    for given_factor, factors in [(factor, (factor, factor)), ((factor, other), (factor, other))]:
        full = tuple(math.floor(f * n) for f, n in zip(factors, size))
        assume(min(full) >= 1)
        y = functional.resample(x, factor=given_factor, method=method)
        np.testing.assert_array_equal(y.data, functional.resample(x, full, method=method).data)


@METHODS
@given(size=sizes, seed=seeds)
def test_the_same_size_changes_nothing(method, size, seed):
    x = image(size, seed)
    assert_close(functional.resample(x, size, method=method).data, x, 1e-15)


@METHODS
@given(size=sizes, full=pairs(1, 12))
def test_a_constant_stays_constant_and_every_output_gives_its_whole_gradient_back(method, size, full):
    y, cotangent, (dx,) = run(lambda x: functional.resample(x, full, method=method), [np.full((1, *size, 2), 3.0)])
    assert_close(y, np.full((1, *full, 2), 3.0), 1e-12)
    assert_close(dx.sum((1, 2)), cotangent.sum((1, 2)), 1e-12)


@METHODS
def test_float32_stays_float32(method):
    assert_keeps_float32(lambda x: functional.resample(x, (3, 7), method=method), (2, 5, 4, 3))


def test_an_int_is_height_and_width():
    assert functional.resample(image((2, 3), 0), 5).shape == functional.resample(image((2, 3), 0), (5, 5)).shape


X = np.zeros((1, 4, 6, 2))


@pytest.mark.parametrize("make, message", [
    (lambda: functional.resample(X[0], 2), r"resample: x must be \(N, H, W, C\), channels last; .* \(4, 6, 2\)"),
    (lambda: functional.resample(X), "resample: give either size or factor; got size=None, factor=None"),
    (lambda: functional.resample(X, 2, 2.0), "resample: give either size or factor; got size=2, factor=2.0"),
    (lambda: functional.resample(X, 2, method="cubic"),
     "resample: method must be one of nearest, bilinear, bicubic; got 'cubic'"),
    (lambda: functional.resample(X, (0, 3)), r"size must be .* at least 1; got \(0, 3\)"),
    (lambda: functional.resample(X, 2.5), "size must be an int or .*; got 2.5"),
    (lambda: functional.resample(X, factor=0.2), r"resample: factor .* at least 1x1 px of \(4, 6\); got 0.2"),
    (lambda: functional.resample(X, factor=-1), "resample: factor .* got -1"),
    (lambda: functional.resample(X, factor=math.nan), "resample: factor .* got nan"),
    (lambda: functional.resample(X, factor=math.inf), "resample: factor .* got inf"),
    (lambda: functional.resample(X, factor="2"), "resample: factor must be a number, or .*; got '2'"),
    (lambda: functional.resample(X, factor=(2.0, 2.0, 2.0)), r"resample: factor .* got \(2.0, 2.0, 2.0\)"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
