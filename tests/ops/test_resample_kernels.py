"""kernels/separable.cu against the CPU: resampling to larger and smaller sizes, its transpose, vectors of channels."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from minunet import functional, gradcheck
from minunet.backend import to_device
from minunet.ops import resample
from tests import naive
from tests.checks import assert_close
from tests.devices import computed
from tests.ops.against_cpu import PRECISIONS, assert_equals_cpu
from tests.strategies import pairs, seeds

PAIR = resample.resample, resample.resample_backward
METHODS = pytest.mark.parametrize("method", resample.METHODS)
SIZES = pytest.mark.parametrize("size, full, batch, channels", [
    ((6, 5), (12, 10), 2, 4),               # the decoder's doubling
    ((5, 9), (11, 4), 2, 3),                # up along one axis, down along the other
    ((9, 13), (4, 5), 1, 8),                # pixels that nothing reads
    ((1, 1), (3, 5), 2, 4),                 # one pixel read by all
    ((7, 3), (1, 1), 1, 5),
    ((8, 9), (23, 19), 2, 4),               # several blocks
    ((5, 4), (5, 4), 1, 1),
])


def image(size, batch=2, channels=2, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, *size, channels))


@PRECISIONS
@METHODS
@SIZES
def test_resampling_and_its_transpose_equal_the_cpu(device, method, size, full, batch, channels, dtype, tolerance):
    assert_equals_cpu(device, PAIR, [image(size, batch, channels)], dtype, tolerance, size=full, method=method)


@SIZES
def test_nearest_copies_bits(device, size, full, batch, channels):
    x = image(size, batch, channels).astype(np.float32)
    y, = computed(device, lambda x: resample.resample(x, size=full)[0], x)
    np.testing.assert_array_equal(y, resample.resample(x, size=full)[0])


@METHODS
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=pairs(1, 8), full=pairs(1, 12), seed=seeds)
def test_values_equal_the_loop_oracle(device, method, size, full, seed):
    x = image(size, seed=seed)
    y, = computed(device, lambda x: resample.resample(x, size=full, method=method)[0], x)
    assert_close(y, naive.resample(x, full, method), 1e-12)


@METHODS
def test_the_transpose_is_the_transpose(device, method):
    """<y, R x> = <Rᵀ y, x>, without the CPU's code."""
    x, y = image((5, 8)), image((11, 3), seed=1)
    Rx, RTy = computed(device, lambda x, y: (resample.resample(x, size=(11, 3), method=method)[0],
                                             *resample.resample_backward(y, resample.resample(
                                                 x, size=(11, 3), method=method)[1])), x, y)
    assert abs(np.vdot(y, Rx) - np.vdot(RTy, x)) <= 1e-12 * np.linalg.norm(y) * np.linalg.norm(Rx)


@METHODS
def test_gradient_equals_finite_differences(device, method):
    gradcheck(lambda x: functional.resample(x, (7, 3), method=method), [to_device(image((4, 5)), device)])


@METHODS
def test_nan_and_infinity_go_where_they_go_on_the_cpu(device, method):
    """A neighbour of weight 0 counts."""
    x = np.random.default_rng(0).choice([0.0, 1.0, np.nan, np.inf], (1, 6, 7, 4), p=[.5, .4, .05, .05])

    def f(x):
        return resample.resample(x, size=(6, 14), method=method)[0]

    y, = computed(device, f, x)
    expected = f(x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(expected))


def test_a_net_may_use_several_sizes_and_dtypes_in_turn(device):
    """The matrices that are kept do not take each other's place."""
    for _ in range(2):
        for dtype in (np.float32, np.float64):
            for full in ((4, 6), (6, 4), (3, 3)):
                assert_equals_cpu(device, PAIR, [image((3, 3), 1, 2)], dtype, 1e-5, size=full, method="bilinear")


def test_strided_views_and_empty_batches(device):
    x = image((5, 8), 2, 4)
    y, = computed(device, lambda x: resample.resample(x[:, ::-1, ::2], size=(3, 7), method="bicubic")[0], x)
    assert_close(y, resample.resample(x[:, ::-1, ::2], size=(3, 7), method="bicubic")[0], 1e-12)
    assert resample.resample(to_device(x[:0], device), size=(3, 7))[0].shape == (0, 3, 7, 4)
