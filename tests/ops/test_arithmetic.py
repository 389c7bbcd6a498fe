"""Tensor arithmetic with broadcasting, sums, means, reshape: loop oracles, finite differences, PyTorch."""

import itertools
import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minunet import Tensor, functional, gradcheck
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, assert_refuses_mixed_dtypes, run
from tests.peers import PRECISIONS, assert_equals_torch
from tests.strategies import seeds

OPERATORS = pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv],
                                    ids=lambda f: f.__name__)


@st.composite
def operands(draw):
    """Two arrays that broadcast, the second away from 0."""
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3)).input_shapes
    rng = np.random.default_rng(draw(seeds))
    a, b = (rng.standard_normal(shape) for shape in shapes)
    return np.asarray(a), np.asarray(np.copysign(0.5 + abs(b), b))


@st.composite
def reductions(draw):
    """An array and what to reduce: an axis, some axes, all; with or without keepdims."""
    x = np.random.default_rng(draw(seeds)).standard_normal(draw(hnp.array_shapes(max_dims=4, max_side=4)))
    axis = st.integers(-x.ndim, x.ndim - 1)
    some = hnp.valid_tuple_axes(x.ndim, min_size=1)
    return x, {"axis": draw(st.one_of(st.none(), axis, some)), "keepdims": draw(st.booleans())}


@OPERATORS
@given(pair=operands())
def test_values_equal_the_loop_oracle(f, pair):
    assert_close(f(*map(Tensor, pair)).data, naive.broadcast(f, *pair), 1e-15)


@OPERATORS
@given(pair=operands())
def test_gradients_equal_finite_differences(f, pair):
    gradcheck(f, pair)


@OPERATORS
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(pair=operands())
def test_values_and_gradients_equal_pytorch(torch, f, dtype, tolerance, pair):
    assert_equals_torch(torch, f, f, pair, dtype, tolerance)


@OPERATORS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [3, 0.5, np.float64(0.5), np.full((2, 1), 2.0), np.full(3, 2.0, np.float32)])
def test_constants_stand_on_either_side_and_take_the_tensors_dtype(f, dtype, constant):
    x = np.random.default_rng(0).uniform(1, 2, (2, 3)).astype(dtype)
    for one in (lambda t: f(t, constant), lambda t: f(constant, t)):
        y, _, (dx,) = run(one, [x])
        assert y.dtype == dx.dtype == dtype
        np.testing.assert_allclose(y, one(x.astype(float)), rtol=1e-6)
        gradcheck(one, [x.astype(float)])


@given(reductions(), st.sampled_from(["sum", "mean"]))
def test_sums_and_means_equal_the_loop_oracle(reduction, name):
    x, options = reduction
    y = getattr(Tensor(x), name)(**options).data
    axes = options["axis"]
    axes = range(x.ndim) if axes is None else [a % x.ndim for a in np.atleast_1d(axes)]
    expected = np.zeros([1 if a in axes else n for a, n in enumerate(x.shape)])
    for index in np.ndindex(x.shape):
        expected[tuple(0 if a in axes else i for a, i in enumerate(index))] += x[index]
    expected /= math.prod(x.shape[a] for a in axes) if name == "mean" else 1
    assert_close(y, expected if options["keepdims"] else expected.squeeze(tuple(axes)), 1e-12)


@given(reductions(), st.sampled_from(["sum", "mean"]))
def test_gradients_of_sums_and_means_equal_finite_differences(reduction, name):
    x, options = reduction
    gradcheck(lambda x: getattr(x, name)(**options), [x])


@pytest.mark.parametrize("name", ["sum", "mean"])
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(reduction=reductions())
def test_sums_and_means_equal_pytorch(torch, name, dtype, tolerance, reduction):
    x, options = reduction
    assert_equals_torch(torch, lambda x: getattr(x, name)(**options),
                        lambda x: getattr(x, name)(dim=options["axis"], keepdim=options["keepdims"]),
                        [x], dtype, tolerance)


BASE = np.random.default_rng(0).uniform(0.5, 2, (3, 4))
EXPONENTS = pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1, 2, 3])


@EXPONENTS
def test_powers_equal_the_loop_oracle_and_their_gradients_finite_differences(exponent):
    assert_close((Tensor(BASE)**exponent).data, [[float(v)**exponent for v in row] for row in BASE], 1e-14)
    gradcheck(lambda x: x**exponent, [BASE])


@EXPONENTS
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_powers_equal_pytorch(torch, exponent, dtype, tolerance):
    assert_equals_torch(torch, lambda x: x**exponent, lambda x: x**exponent, [BASE], dtype, tolerance)


@pytest.mark.parametrize("exponent, slope", [(0, 0), (1, 1), (2, 0), (3, 0)])
def test_powers_of_0_have_a_slope(exponent, slope):
    _, cotangent, (dx,) = run(lambda x: x**exponent, [np.zeros(3)])
    np.testing.assert_array_equal(dx, slope * cotangent)


@pytest.mark.parametrize("f", [
    lambda s, x: s * 2 + s, lambda s, x: s**2 / (s + 1), lambda s, x: (s.sum() * 2).mean(), lambda s, x: s - x.mean(),
    lambda s, x: functional.leaky_relu(s * s) * 3, lambda s, x: functional.elu(s / 2) * x,
    lambda s, x: functional.sigmoid(s) + functional.relu(s), lambda s, x: (s * 2).reshape((1, 1)) * x,
])
def test_single_numbers_pass_gradients_on(f):
    """NumPy turns arrays without axes into scalars of its own at the first chance; a loss is such an array."""
    x = np.random.default_rng(0).uniform(0.1, 1, (2, 3))
    gradcheck(lambda x: f(x.sum(), x), [x])
    assert_keeps_float32(lambda x: f(x.sum(), x), (2, 3))


def test_negation():
    y, cotangent, (dx,) = run(operator.neg, [np.array([1.0, -2.0])])
    np.testing.assert_array_equal(y, [-1, 2])
    np.testing.assert_array_equal(dx, -cotangent)


def test_one_tensor_on_both_sides_gets_both_gradients():
    x = np.random.default_rng(0).uniform(1, 2, (3, 2))
    for f, slope in [(operator.add, 2), (operator.mul, 2 * x), (operator.sub, 0), (operator.truediv, 0)]:
        _, cotangent, (dx,) = run(lambda t: f(t, t), [x])
        assert_close(dx, cotangent * slope, 1e-15)


@given(st.permutations([2, 3, 4, 1]), st.permutations([2, 3, 4, 1]), seeds)
@settings(max_examples=20)
def test_reshape_keeps_the_order(shape, new_shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    y, cotangent, (dx,) = run(lambda t: t.reshape(tuple(new_shape)), [x])
    for i, j in zip(itertools.product(*map(range, shape)), itertools.product(*map(range, new_shape)), strict=True):
        assert y[j] == x[i] and dx[i] == cotangent[j]


@pytest.mark.parametrize("f, shapes", [
    *((f, [(2, 3), (3,)]) for f in (operator.add, operator.sub, operator.mul, operator.truediv)),
    (operator.neg, [(2, 3)]), (lambda x: (x * x + 1)**0.5, [(2, 3)]), (lambda x: x**np.float64(2), [(2, 3)]),
    (lambda x: x.sum(), [(2, 3)]), (lambda x: x.sum(1), [(2, 3)]), (lambda x: x.mean(0), [(2, 3)]),
    (lambda x: x.mean(), [(2, 3)]), (lambda x: x.reshape((3, 2)), [(2, 3)]),
])
def test_float32_stays_float32(f, shapes):
    assert_keeps_float32(f, *shapes)


@OPERATORS
def test_mixed_dtypes_are_refused(f):
    assert_refuses_mixed_dtypes(f, (2, 3), (3,))


def test_only_a_constant_number_is_an_exponent():
    with pytest.raises(TypeError, match="raised to a constant number only; got Tensor"):
        Tensor(np.ones(3)) ** Tensor(np.ones(3))
