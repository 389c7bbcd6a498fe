"""kernels/shape.cu and kernels/separable.cu against the CPU: concatenation, crops, padding in every mode."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minunet import functional, gradcheck
from minunet.backend import to_device
from minunet.ops import shape
from tests import naive
from tests.devices import computed
from tests.ops.against_cpu import PRECISIONS, assert_equals_cpu
from tests.ops.test_shape import branches, cuts
from tests.strategies import pairs, seeds

CONCAT = shape.concat, shape.concat_backward
CROP = shape.crop, shape.crop_backward
CENTER = shape.center_crop, shape.center_crop_backward
PAD = shape.pad, shape.pad_backward
MODES = pytest.mark.parametrize("mode", shape.MODES)
FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def images(*channels, size=(5, 7), batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, *size, c)) for c in channels]


@PRECISIONS
@pytest.mark.parametrize("channels", [(8, 8), (4, 12), (4, 3, 8), (1, 2), (3, 1, 4, 5), (6,), (8,), (4, 0, 4)], ids=str)
def test_concat_and_its_gradient_equal_the_cpu(device, channels, dtype, tolerance):
    y, *gradients = assert_equals_cpu(device, CONCAT, images(*channels), dtype, tolerance)
    np.testing.assert_array_equal(y, np.concatenate([x.astype(dtype) for x in images(*channels)], -1))
    assert [g.shape[-1] for g in gradients] == list(channels)


@FEW
@given(xs=branches())
def test_concat_of_any_number_of_axes(device, xs):
    y, = computed(device, lambda *xs: shape.concat(*xs)[0], *xs)
    np.testing.assert_array_equal(y, np.concatenate(xs, -1))


CUTS = [
    # size, top, left, part, channels
    ((16, 16), 2, 2, (12, 12), 8),              # the paper's skip connection, smaller
    ((9, 7), 0, 3, (4, 4), 4),
    ((9, 7), 5, 0, (4, 2), 3),
    ((5, 4), 0, 0, (5, 4), 4),
    ((5, 4), 4, 3, (1, 1), 1),
]


@PRECISIONS
@pytest.mark.parametrize("size, top, left, part, channels", CUTS)
def test_crop_and_its_gradient_equal_the_cpu(device, size, top, left, part, channels, dtype, tolerance):
    x = images(channels, size=size)
    y, dx = assert_equals_cpu(device, CROP, x, dtype, tolerance, top=top, left=left, size=part)
    np.testing.assert_array_equal(y, x[0].astype(dtype)[:, top:top + part[0], left:left + part[1]])
    outside = np.ones(size, bool)
    outside[top:top + part[0], left:left + part[1]] = False
    assert not dx[:, outside].any()
    assert_equals_cpu(device, CENTER, x, dtype, tolerance, size=part)


@FEW
@given(cut=cuts())
def test_crop_equals_the_loop_oracle(device, cut):
    x, top, left, size = cut
    y, = computed(device, lambda x: shape.crop(x, top=top, left=left, size=size)[0], x)
    np.testing.assert_array_equal(y, naive.crop(x, top, left, size))


@PRECISIONS
@MODES
@pytest.mark.parametrize("size, margins, channels", [
    ((6, 7), (1, 2, 3, 0), 4),
    ((12, 13), (4, 4, 4, 4), 4),                # several blocks
    ((3, 4), (7, 9, 0, 11), 3),                 # reflected more than once
    ((1, 1), (2, 1, 0, 3), 4),
    ((5, 4), (0, 0, 0, 0), 1),
])
def test_pad_and_its_gradient_equal_the_cpu(device, size, margins, channels, mode, dtype, tolerance):
    x = images(channels, size=size)
    y, _ = assert_equals_cpu(device, PAD, x, dtype, tolerance, margins=margins, mode=mode, value=1.25)
    np.testing.assert_array_equal(y, shape.pad(x[0].astype(dtype), margins=margins, mode=mode, value=1.25)[0])


@MODES
@FEW
@given(size=pairs(1, 4), margins=st.tuples(*[st.integers(0, 9)] * 4), value=st.floats(-2, 2), seed=seeds)
def test_pad_equals_the_loop_oracle(device, mode, size, margins, value, seed):
    x, = images(2, size=size, seed=seed)
    y, = computed(device, lambda x: shape.pad(x, margins=margins, mode=mode, value=value)[0], x)
    np.testing.assert_array_equal(y, naive.pad(x, margins, mode, value))


@pytest.mark.parametrize("value", [np.nan, -np.inf, 3, np.float64(0.5)])
def test_a_constant_is_any_number_and_touches_no_pixel(device, value):
    x, = images(4)
    x = x.astype(np.float32)
    y, = computed(device, lambda x: shape.pad(x, margins=(1, 0, 2, 1), value=value)[0], x)
    np.testing.assert_array_equal(y, shape.pad(x, margins=(1, 0, 2, 1), value=value)[0])


def test_pixels_of_nan_and_infinity_stay_where_they_are(device):
    x = np.array([np.nan, np.inf, 1, -np.inf, 0, 2]).reshape(1, 2, 3, 1)

    def f(x):
        y, cache = shape.pad(x, margins=(1, 0, 0, 2), mode="reflect")
        part, part_cache = shape.crop(y, top=1, left=1, size=(2, 3))
        return y, *shape.pad_backward(y, cache), part, *shape.crop_backward(part, part_cache)

    for result, wanted in zip(computed(device, f, x), f(x), strict=True):
        np.testing.assert_array_equal(result, wanted)


def test_gradients_equal_finite_differences(device):
    x, other = (to_device(a, device) for a in images(3, 2, size=(4, 3)))
    gradcheck(functional.concat, [x, other, x])
    gradcheck(lambda x: functional.crop(x, 1, 0, (2, 3)), [x])
    gradcheck(lambda x: functional.center_crop(x, (3, 2)), [x])
    for mode in shape.MODES:
        gradcheck(lambda x: functional.pad(x, (1, 5, 0, 4), mode), [x])


def test_strided_views_and_empty_batches(device):
    def f(x, dy):
        view = x[:, ::-1, ::2]
        y, cache = shape.concat(view, view)
        return y, *shape.concat_backward(dy[:, ::-1], cache), shape.crop(view, top=1, left=0, size=2)[0]

    x, = images(4, size=(5, 8))
    dy, = images(8, size=(5, 4))
    for result, wanted in zip(computed(device, f, x, dy), f(x, dy), strict=True):
        np.testing.assert_array_equal(result, wanted)
    empty = to_device(x[:0], device)
    assert shape.concat(empty, empty)[0].shape == (0, 5, 8, 8)
    assert shape.crop(empty, top=0, left=0, size=2)[0].shape == (0, 2, 2, 4)
    assert shape.pad(empty, margins=(1, 1, 0, 0))[0].shape == (0, 7, 8, 4)


def test_arrays_on_two_devices_are_refused(device):
    x, other = images(4, 4)
    with pytest.raises(TypeError, match=f"concat: all arrays must be on one device; input 0 is on {device}, input 1 is "
                                        "on cpu"):
        shape.concat(to_device(x, device), other)
