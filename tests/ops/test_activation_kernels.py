"""kernels/activation.cu against the CPU: any count, any number of channels, NaN and infinities, views."""

import numpy as np
import pytest

from minunet.backend import to_device
from minunet.ops import activation
from minunet.ops.kernels import activation as kernels
from tests import naive
from tests.checks import assert_close
from tests.devices import computed
from tests.ops.against_cpu import PRECISIONS, assert_equals_cpu

OPTIONS = {"relu": {}, "leaky_relu": {"slope": 0.3}, "elu": {"alpha": 1.7}, "sigmoid": {}, "softmax": {}}
ELEMENTWISE = pytest.mark.parametrize("name", [name for name in OPTIONS if name != "softmax"])
ALL = pytest.mark.parametrize("name", OPTIONS)
SHAPES = pytest.mark.parametrize("shape", [(1,), (4,), (3, 7), (2, 3, 4, 4), (1023,), (1024,), (1029,), (0, 3)],
                                 ids=str)
CHANNELS = pytest.mark.parametrize("shape", [
    (5, 1), (40, 41, 1), (130, 2), (9, 11, 3), (7, 4), (70, 5), (33, 8), (13, 21), (3, 5, 32), (9, 33), (5, 64),
    (6, 128), (3, 132), (5, 260), (3, 77), (9,), (0, 4), (2, 3, 0),
], ids=str)


def pair(name):
    return getattr(activation, name), getattr(activation, f"{name}_backward")


def normal(shape):
    return 2 * np.random.default_rng(0).standard_normal(shape)


def both(name, options=None):
    """y and dx of (x, dy)."""
    op, backward = pair(name)

    def f(x, dy):
        y, cache = op(x, **(OPTIONS[name] if options is None else options))
        return y, *backward(dy, cache)
    return f


@PRECISIONS
@ELEMENTWISE
@SHAPES
def test_equals_the_cpu(device, name, shape, dtype, tolerance):
    assert_equals_cpu(device, pair(name), [normal(shape)], dtype, tolerance, **OPTIONS[name])


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_piecewise_linear_ones_have_the_bits_of_the_cpu(device, name, dtype):
    x, dy = normal((33, 9)).astype(dtype), normal((33, 9))[::-1].astype(dtype)
    for result, expected in zip(computed(device, both(name), x, dy), both(name)(x, dy), strict=True):
        np.testing.assert_array_equal(result, expected)


@PRECISIONS
@CHANNELS
def test_softmax_equals_the_cpu(device, shape, dtype, tolerance):
    if shape[-1] == 0:                                      # NumPy has no maximum of nothing
        return assert_empty(device, shape)
    assert_equals_cpu(device, pair("softmax"), [normal(shape)], dtype, tolerance)


def assert_empty(device, shape):
    for result in computed(device, both("softmax"), np.zeros(shape), np.zeros(shape)):
        assert result.shape == shape


@pytest.mark.parametrize("shape", [(9, 3), (5, 64), (3, 37)])
def test_softmax_equals_the_loop_oracle(device, shape):
    y, _ = computed(device, both("softmax"), normal(shape), normal(shape))
    assert_close(y, naive.softmax(normal(shape)), 1e-13)


@ALL
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_and_small_inputs(device, name, dtype):
    """No overflow at ten thousand, no loss of digits near 0, slope from the left at 0."""
    x = np.array([-1e4, -90, -1e-6, -0.0, 0.0, 1e-6, 90, 1e4], dtype)
    dy = np.arange(1, 9).astype(dtype)
    y, dx = both(name)(x, dy)
    ours, gradient = computed(device, both(name), x, dy)
    np.testing.assert_allclose(ours, y, rtol=1e-6 if dtype == np.float32 else 1e-14, atol=np.finfo(dtype).tiny)
    np.testing.assert_allclose(gradient, dx, rtol=2e-6 if dtype == np.float32 else 1e-13, atol=np.finfo(dtype).tiny)


@ALL
@pytest.mark.parametrize("channels", [3, 4, 9, 40])
def test_nan_and_infinity_go_where_they_go_on_the_cpu(device, name, channels):
    rng = np.random.default_rng(0)
    x, dy = (rng.choice([0.0, 1.0, -2.0, np.nan, np.inf, -np.inf], (31, channels), p=[.2, .3, .3, .05, .05, .1])
             for _ in range(2))
    x[:4], x[4:8, -1], x[8:12] = rng.standard_normal((4, channels)), -np.inf, -np.inf
    x[12:16], x[12:16, 0] = 1.0, np.nan
    with np.errstate(invalid="ignore"):
        expected = both(name)(x, dy)
    for result, wanted in zip(computed(device, both(name), x, dy), expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-13)


@ALL
def test_views_of_any_strides_and_beginnings(device, name):
    x, dy = normal((6, 8)), normal((8, 6)).T
    expected = both(name)(x[:, ::-1], dy)
    for result, wanted in zip(computed(device, lambda x, dy: both(name)(x[:, ::-1], dy.T), x, dy.T.copy()), expected):
        assert_close(result, wanted, 1e-14)
    shifted = computed(device, lambda x, dy: both(name)(x[1:].reshape(6, 8), dy[1:].reshape(6, 8)),
                       np.concatenate([[0], x[:, ::-1].ravel()]), np.concatenate([[0], dy.ravel()]))
    for result, wanted in zip(shifted, expected, strict=True):
        assert_close(result, wanted, 1e-14)


@ALL
def test_vectors_where_the_array_allows_them(device, monkeypatch, name):
    """Four numbers at a time need 16 bytes that the array begins at; in checked mode the simulator moves it there."""
    used = []
    monkeypatch.setattr(kernels, "launch", lambda *arguments, defines, **options: used.append(defines["VECTOR"]))
    x = to_device(np.zeros(33, np.float32), device)
    for part in x[:32].reshape(2, 16), x[1:].reshape(2, 16), x[:30].reshape(2, 15):
        getattr(activation, name)(part, **OPTIONS[name])
    assert used == [4, 1, 1]


@ALL
def test_an_array_without_axes_keeps_its_shape(device, name):
    if name == "softmax":
        return                                              # of the last axis
    x = to_device(np.array(0.5), device)
    y, cache = pair(name)[0](x)
    assert y.shape == () and pair(name)[1](x, cache)[0].shape == ()
