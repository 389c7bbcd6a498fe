"""Activations and softmax: the loop oracle, finite differences, PyTorch; kinks, large inputs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minunet import functional, gradcheck
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, run
from tests.peers import PRECISIONS, assert_equals_torch
from tests.strategies import seeds

# name: options drawn, the function of one number
ELEMENTWISE = {
    "relu": (st.just({}), lambda z: max(z, 0.0)),
    "leaky_relu": (st.fixed_dictionaries({}, optional={"slope": st.floats(0, 2)}),
                   lambda z, slope=0.01: z if z > 0 else slope * z),
    "elu": (st.fixed_dictionaries({}, optional={"alpha": st.floats(0.1, 3)}),
            lambda z, alpha=1.0: z if z > 0 else alpha * (math.exp(z) - 1)),
    "sigmoid": (st.just({}), lambda z: 1 / (1 + math.exp(-z))),
    "softmax": (st.just({}), None),
}
TORCH_NAMES = {"slope": "negative_slope", "alpha": "alpha"}
NAMES = pytest.mark.parametrize("name", ELEMENTWISE)
shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
arrays = st.builds(lambda shape, seed: 2 * np.random.default_rng(seed).standard_normal(shape), shapes, seeds)


def op(name, data):
    options = data.draw(ELEMENTWISE[name][0])
    return options, lambda x: getattr(functional, name)(x, **options)


@NAMES
@given(x=arrays, data=st.data())
def test_values_equal_the_loop_oracle(name, x, data):
    options, f = op(name, data)
    if name == "softmax":
        expected = naive.softmax(x)
    else:
        expected = np.reshape([ELEMENTWISE[name][1](float(z), **options) for z in x.ravel()], x.shape)
    assert_close(f(x).data, expected, 1e-13)


@NAMES
@given(x=arrays, data=st.data())
def test_gradient_equals_finite_differences(name, x, data):
    gradcheck(op(name, data)[1], [x])


@NAMES
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(x=arrays, data=st.data())
def test_equals_pytorch(torch, name, dtype, tolerance, x, data):
    """At 0 too, where PyTorch, as here, takes the slope from the left."""
    options, f = op(name, data)
    x.ravel()[::3] = 0
    theirs = {TORCH_NAMES[key]: value for key, value in options.items()} | ({"dim": -1} if name == "softmax" else {})
    where = torch if name == "sigmoid" else torch.nn.functional
    assert_equals_torch(torch, f, lambda x: getattr(where, name)(x, **theirs), [x], dtype, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name, values, slopes", [
    ("relu", [0, 0, 0, 1e4], [0, 0, 0, 1]),
    ("leaky_relu", [-100, 0, 0, 1e4], [0.01, 0.01, 0.01, 1]),
    ("elu", [-1, 0, 0, 1e4], [0, 1, 1, 1]),
    ("sigmoid", [0, 0.5, 0.5, 1], [0, 0.25, 0.25, 0]),
    ("softmax", [0, 0, 0, 1], None),
])
def test_slopes_at_0_and_values_at_ten_thousand(name, values, slopes, dtype):
    x = np.array([-1e4, -0.0, 0.0, 1e4], dtype)
    y, cotangent, (dx,) = run(getattr(functional, name), [x])
    np.testing.assert_allclose(y, np.array(values, dtype), rtol=1e-6)
    np.testing.assert_allclose(dx, cotangent * slopes if slopes else np.zeros(4), rtol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(x=arrays, offset=st.floats(-1e4, 1e4))
def test_softmax_sums_to_1_and_a_common_offset_changes_nothing(dtype, tolerance, x, offset):
    x = x.astype(dtype).round(3)
    y = functional.softmax(x).data
    assert_close(y.sum(-1), np.ones(x.shape[:-1]), tolerance)
    assert_close(functional.softmax(x + x.dtype.type(round(offset))).data, y, 1e3 * tolerance)


@pytest.mark.parametrize("f", [
    functional.relu, functional.leaky_relu, functional.elu, functional.sigmoid, functional.softmax,
    lambda x: functional.leaky_relu(x, np.float64(0.1)), lambda x: functional.elu(x, np.float64(0.5)),
])
def test_float32_stays_float32(f):
    assert_keeps_float32(f, (2, 3, 4, 5))


@pytest.mark.parametrize("make, message", [
    (lambda: functional.leaky_relu(np.ones(3), -0.1), "leaky_relu: slope must be at least 0; got -0.1"),
    (lambda: functional.leaky_relu(np.ones(3), math.nan), "leaky_relu: slope must be at least 0; got nan"),
    (lambda: functional.elu(np.ones(3), 0), "elu: alpha must be above 0; got 0"),
    (lambda: functional.elu(np.ones(3), math.nan), "elu: alpha must be above 0; got nan"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
