"""gradcheck: passes what is right, catches planted faults and says where, tells kinks from faults."""

import itertools
import pickle
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings

from minunet import ConvMatrix, Tensor, functional, gradcheck
from minunet.autograd import lift
from minunet.gradient_check import SEED, GradientError, examine
from minunet.ops import conv, norm
from tests.strategies import cases, seeds

DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def square(x):
    return x * x, x


def with_backward(forward, backward, spoil):
    """The op whose gradients pass through spoil(*gradients)."""
    return lift(forward, lambda dy, cache: spoil(*backward(dy, cache)))


def spoiled_square(spoil):
    return with_backward(square, lambda dy, x: (2 * x * dy,), spoil)


def spoiled_conv(spoil):
    """A convolution of 4 to 4 channels: nothing but the numbers tells its weight's axes apart when the kernel is 4."""
    return with_backward(conv.conv2d, conv.conv2d_backward, spoil)


def message_of(f, inputs, **options):
    """What gradcheck says of a wrong gradient."""
    with pytest.raises(GradientError) as caught:
        gradcheck(f, inputs, **options)
    return str(caught.value)


def figures(message):
    """(input, index, analytic, numeric) as the message has them."""
    number = r"([-+.\deinfa]+)"
    found = re.search(rf"input (\d+) .*?At index (\(.*?\)) it is {number} \(analytic\), the finite difference "
                      rf"{number} \(numeric\)", message)
    assert found, message
    return int(found[1]), tuple(map(int, re.findall(r"\d+", found[2]))), float(found[3]), float(found[4])


# what is right

@DTYPES
@pytest.mark.parametrize("f, shapes", [
    (lambda x: x * x * x, [(3, 4)]),
    (lambda x, y: x / (y * y + 1), [(3, 4), (4,)]),
    (lambda x: x.sum(), [(3, 4)]),
    (lambda x: x + 0, [()]),
    (functional.softmax, [(2, 3, 4, 5)]),
    (functional.sigmoid, [(50,)]),
    (lambda *a: functional.conv2d(*a, padding=1), [(2, 6, 5, 3), (3, 3, 3, 4), (4,)]),
    (lambda *a: functional.conv_transpose2d(*a, stride=2), [(2, 3, 3, 4), (2, 2, 3, 4), (3,)]),
    (lambda *a: functional.batch_norm(*a)[0], [(4, 5, 5, 2), (2,), (2,)]),
    (lambda x: functional.relu(functional.max_pool2d(x, 2)), [(2, 8, 8, 3)]),
    (lambda x: functional.cross_entropy(x, np.arange(12).reshape(3, 4) % 5), [(3, 4, 5)]),
])
def test_right_gradients_pass(dtype, f, shapes):
    gradcheck(f, [normal(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)], elementwise=True)


@given(seeds)
@settings(max_examples=20)
def test_a_right_gradient_passes_with_any_cotangent_and_directions(seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((4, 30)), rng.standard_normal((30, 30))
    gradcheck(lambda x, w: functional.elu(functional.linear(x, w)), [x, w], rng=rng)
    gradcheck(lambda x, w: functional.relu(functional.linear(x, w)), [x.astype(np.float32), w.astype(np.float32)],
              rng=rng)


@pytest.mark.parametrize("offset, scale", [(0, 1e-3), (0, 1e4), (1e3, 1)])
def test_inputs_of_any_scale_pass(offset, scale):
    x = offset + scale * normal(4, 5)
    gradcheck(lambda x: x * x, [x], elementwise=True)
    message_of(spoiled_square(lambda dx: (2 * dx,)), [x])


def test_a_function_without_gradient_passes_when_it_is_constant():
    gradcheck(lambda x: Tensor(np.ones(3)), [normal(4)], elementwise=True)
    gradcheck(lambda x: x * 0, [normal(4)], elementwise=True)
    report = gradcheck(functional.relu, [-1 - abs(normal(4))], elementwise=True)
    assert report.worst_error == 0


def test_inputs_are_left_as_they_are():
    arrays = [normal(3, 4), normal(4, 3).T]                 # the second is not contiguous
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    gradcheck(lambda x, y: x * y, tensors, elementwise=True)
    for a, t, copy in zip(arrays, tensors, copies):
        np.testing.assert_array_equal(a, copy)
        assert t.grad is None


# what is wrong

@DTYPES
@pytest.mark.parametrize("spoil", [
    lambda dx: (2 * dx,), lambda dx: (dx / 2,), lambda dx: (-dx,), lambda dx: (0 * dx,), lambda dx: (1.1 * dx,),
    lambda dx: (dx + dx.dtype.type(0.3),), lambda dx: (dx.T.copy(),), lambda dx: (dx[::-1],), lambda dx: (dx * np.nan,),
    lambda dx: (dx + dx.dtype.type(np.inf),),
], ids=["twice", "half", "negative", "zero", "10% off", "a constant added", "axes exchanged", "reversed", "NaN", "inf"])
def test_a_wrong_gradient_is_caught(dtype, spoil):
    message = message_of(spoiled_square(spoil), [normal(5, 5, dtype=dtype)])
    assert message.startswith("gradcheck: the gradient of input 0 (5, 5) is wrong. At index (")
    assert "No kink lies within the step" in message


def swap(axis, other):
    return lambda a: np.ascontiguousarray(a.swapaxes(axis, other))


@pytest.mark.parametrize("spoil, position", [
    (lambda dx, dw, db: (2 * dx, dw, db), 0),
    (lambda dx, dw, db: (dx, 2 * dw, db), 1),
    (lambda dx, dw, db: (dx, dw, 2 * db), 2),
    (lambda dx, dw, db: (swap(1, 2)(dx), dw, db), 0),
    (lambda dx, dw, db: (swap(0, 3)(dx), dw, db), 0),
    (lambda dx, dw, db: (dx, swap(0, 1)(dw), db), 1),
    (lambda dx, dw, db: (dx, swap(2, 3)(dw), db), 1),
    (lambda dx, dw, db: (dx, swap(1, 2)(dw), db), 1),
    (lambda dx, dw, db: (dx, dw[::-1, ::-1], db), 1),
    (lambda dx, dw, db: (np.roll(dx, 1, 1), dw, db), 0),
    (lambda dx, dw, db: (dx, dw, db * 0), 2),
])
def test_a_wrong_gradient_of_a_convolution_is_caught(spoil, position):
    arrays = [normal(4, 7, 7, 4), normal(4, 4, 4, 4, seed=1), normal(4, seed=2)]
    gradcheck(spoiled_conv(lambda *gradients: gradients), arrays)
    assert figures(message_of(spoiled_conv(spoil), arrays))[0] == position


@given(cases(), seeds)
@settings(max_examples=15)
def test_a_gradient_twice_too_large_is_caught_for_any_convolution(case, seed):
    g = case.geometry
    x, w, _ = case.arrays()
    assume(ConvMatrix(w, g, case.size).sparse().nnz)    # else all windows lie in the padding, and twice 0 is right

    def f(x, w):
        return spoiled_conv(lambda dx, dw, _: (dx, 2 * dw, None))(x, w, None, stride=g.stride, padding=g.padding,
                                                                  dilation=g.dilation)

    message_of(f, [x, w], rng=np.random.default_rng(seed))


@pytest.mark.parametrize("term", ["mean(dy)", "mean(dy · x̂)"])
def test_a_batch_norm_that_forgets_a_term_is_caught(term):
    def forgetful(dy, cache):
        dx, dgamma, dbeta = norm.batch_norm_backward(dy, cache)
        x_hat = (cache.x - cache.mean) / cache.sigma
        missing = dbeta if term == "mean(dy)" else x_hat * dgamma
        return dx + cache.gamma / cache.sigma * missing / (dy.size // dy.shape[-1]), dgamma, dbeta

    arrays = [normal(3, 4, 4, 2), normal(2, seed=1), normal(2, seed=2)]
    gradcheck(lift(norm.batch_norm, norm.batch_norm_backward), arrays)
    assert figures(message_of(lift(norm.batch_norm, forgetful), arrays))[0] == 0


def test_a_product_that_forgets_a_factors_term_is_caught():
    def cube(x):
        return x * x * x, x

    message_of(lift(cube, lambda dy, x: (2 * x * x * dy,)), [normal(4)])
    message_of(lambda x: x * x * Tensor(x.data), [normal(4)])


@pytest.mark.parametrize("detach", [0, 1])
def test_a_missing_gradient_is_caught(detach):
    def f(*inputs):
        x, y = (Tensor(t.data) if i == detach else t for i, t in enumerate(inputs))
        return x * y

    position, _, analytic, numeric = figures(message_of(f, [normal(3), normal(3, seed=1)]))
    assert position == detach and analytic == 0 != numeric
    message_of(lambda x: Tensor(x.data * 2), [normal(3)])


@pytest.mark.parametrize("dtype, elementwise, wrong", [
    *itertools.product([np.float64], [False, True], [0, np.nan, np.inf, 1e3]),
    *itertools.product([np.float32], [False, True], [np.nan, np.inf, 1e3]),
    (np.float32, True, 0),
])
def test_a_single_wrong_element_is_named(dtype, elementwise, wrong):
    index = (7, 1, 20)

    def spoil(da, db):
        db[index] = wrong
        return da, db

    op = with_backward(lambda a, b: (a * b, (a, b)), lambda dy, cache: (dy * cache[1], dy * cache[0]), spoil)
    arrays = [normal(20, 3, 30, dtype=dtype, seed=3), normal(20, 3, 30, dtype=dtype, seed=1)]
    # the gradient is arrays[0] times the cotangent, the first numbers that the default generator draws
    right = arrays[0][index] * np.random.default_rng(SEED).standard_normal((20, 3, 30))[index]
    message = message_of(op, arrays, elementwise=elementwise, directions=0 if elementwise else 3)
    position, at, analytic, numeric = figures(message)
    assert (position, at) == (1, index) and f"input 1 {arrays[1].shape}" in message
    np.testing.assert_equal(analytic, wrong)
    assert abs(numeric - right) < (1e-6 if dtype == np.float64 else 1e-2) * max(1, abs(right))


def test_a_nan_in_the_value_is_not_passed_over():
    def f(x):
        return x * Tensor(np.array([1, np.nan, 1]))

    message_of(f, [normal(3)])


def test_permuted_outputs_are_caught_where_a_cotangent_of_ones_would_not():
    reversed_rows = lift(lambda x: (x[::-1] * 2, None), lambda dy, cache: (dy * 2,))
    x = normal(4, 3)
    gradcheck(lambda x: reversed_rows(x).sum(), [x], elementwise=True)          # a cotangent of ones
    message_of(reversed_rows, [x])


def test_the_tolerance_decides():
    f = spoiled_square(lambda dx: (dx * 1.01,))
    x = normal(5)
    message_of(f, [x], tolerance=1e-4)
    message_of(f, [x], tolerance=1e-4, elementwise=True, directions=0)
    assert "tolerance 0.0001" in message_of(f, [x], tolerance=1e-4)
    report = gradcheck(f, [x], tolerance=0.05, elementwise=True)
    assert report.tolerance == 0.05 and 0.001 < report.worst_error <= 0.02


def test_an_element_by_itself_is_compared_with_the_largest_one():
    """The gradient's norm, with which a direction is compared, would hide the error of one in a thousand elements."""
    def spoil(dx):
        dx[0] *= 1 + 1e-4
        return (dx,)

    x = np.concatenate([[1.0], np.full(1000, 2.0)])
    assert figures(message_of(spoiled_square(spoil), [x], elementwise=True, directions=0))[1] == (0,)


def test_the_error_says_in_numbers_what_its_message_says():
    wrong = with_backward(lambda a, b: (a * b, (a, b)), lambda dy, cache: (dy * cache[1], dy * cache[0]),
                          lambda da, db: (da, 3 * db))
    arrays = [normal(3, 4), normal(3, 4, seed=1)]
    with pytest.raises(GradientError) as caught:
        gradcheck(wrong, arrays)
    error = caught.value
    assert figures(str(error))[:2] == (error.input, error.index) and error.input == 1
    np.testing.assert_allclose(figures(str(error))[2:], (error.analytic, error.numeric), rtol=1e-8)
    assert abs(error.analytic / error.numeric - 3) < 1e-6 and error.near_kink is False
    assert pickle.loads(pickle.dumps(error)).index == error.index


def test_an_examination_goes_on_to_the_end():
    """Both wrong inputs are told, once each, as gradcheck tells of them; the right one between them is not."""
    product = with_backward(lambda a, b, c: (a * b * c, (a, b, c)),
                            lambda dy, k: (dy * k[1] * k[2], dy * k[0] * k[2], dy * k[0] * k[1]),
                            lambda da, db, dc: (2 * da, db, -dc))
    arrays = [normal(2, 3, seed=i) for i in range(3)]
    found = examine(product, arrays)
    assert [error.input for error in found.errors] == [0, 2]
    assert str(found.errors[0]) == message_of(product, arrays)
    assert found.report.comparisons == 3 * (3 + 6)
    for analytic, numeric, factor in zip(found.analytic, found.numeric, (2, 1, -1), strict=True):
        np.testing.assert_allclose(analytic, factor * numeric, rtol=1e-6)
    assert abs(found.report.by_element - 2) < 1e-6             # c's gradient is -1 times the right one
    assert np.isnan(examine(product, arrays, elementwise=False).numeric).all()


def test_an_examination_of_what_is_right_is_gradchecks_report():
    arrays = [normal(2, 3), normal(3, seed=1)]
    found = examine(lambda x, y: x * y * y, arrays)
    assert found.errors == [] and found.report == gradcheck(lambda x, y: x * y * y, arrays, elementwise=True)


@DTYPES
def test_the_measured_errors_are_told(dtype):
    """worst_error is what is left of them when the rounding is taken off."""
    report = gradcheck(functional.sigmoid, [normal(5, dtype=dtype)], elementwise=True)
    assert 0 < report.by_direction < report.tolerance and 0 < report.by_element < report.tolerance
    assert report.worst_error <= max(report.by_direction, report.by_element)
    assert 0 < report.rounding < (1e-7 if dtype == np.float64 else 1e-1)
    assert gradcheck(functional.sigmoid, [normal(5)]).by_element is None
    assert gradcheck(functional.sigmoid, [normal(5)], directions=0, elementwise=True).by_direction is None


# kinks

TIE = np.array([[1.0, 3.0], [3.0, 2.0]]).reshape(1, 2, 2, 1)
KINKS = [
    ("relu at 0", functional.relu, np.array([1.0, 0.0, -1.0]), (1,)),
    ("leaky_relu at 0", functional.leaky_relu, np.array([1.0, -1.0, 0.0]), (2,)),
    ("max_pool2d at a tie", lambda x: functional.max_pool2d(x, 2), TIE, (0, 0, 1, 0)),
]


@DTYPES
@pytest.mark.parametrize("f, x, index", [kink[1:] for kink in KINKS], ids=[kink[0] for kink in KINKS])
def test_a_kink_is_named_as_the_possible_cause(dtype, f, x, index):
    for options in ({}, {"elementwise": True, "directions": 0}):
        message = message_of(f, [x.astype(dtype)], **options)
        assert "The step crosses a kink there" in message and "may be the cause" in message
        if f is not KINKS[2][1]:
            assert figures(message)[1] == index
    shifted = x + np.random.default_rng(0).uniform(0.1, 0.2, x.shape)
    gradcheck(f, [shifted.astype(dtype)], elementwise=True)


@pytest.mark.parametrize("dtype, distance", [(np.float64, 3e-7), (np.float32, 3e-4)])
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("f, x, index", [kink[1:] for kink in KINKS], ids=[kink[0] for kink in KINKS])
def test_beside_a_kink_the_step_shrinks_until_it_lies_on_one_side(dtype, distance, side, f, x, index):
    x = x.copy()
    x[index] += side * distance
    gradcheck(f, [x.astype(dtype)], elementwise=True)


@pytest.mark.parametrize("distance", [1, 3e-7])
def test_a_wrong_gradient_beside_a_kink_is_not_blamed_on_it(distance):
    wrong = spoiled_square(lambda dx: (2 * dx,))
    message = message_of(lambda x: wrong(functional.relu(x)), [np.array([distance, -distance, 2.0])])
    assert "No kink lies within the step" in message


# how it is called

def test_f_that_draws_random_numbers_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="gradcheck: f gives two different results for the same input"):
        gradcheck(lambda x: functional.dropout(x, 0.5, rng), [normal(100)])
    gradcheck(lambda x: functional.dropout(x, 0.5, np.random.default_rng(0)), [normal(100)])


@pytest.mark.parametrize("inputs, got", [
    ([np.arange(3)], "int64"), ([np.ones(3), np.ones(3, np.float32)], "float64, float32"),
    ([np.ones(3, np.float16)], "float16"), ([np.ones(3, complex)], "complex128"), ([np.ones(3), np.arange(3)], "int64"),
    ([], ""),
])
def test_inputs_of_other_dtypes_are_refused(inputs, got):
    with pytest.raises(ValueError, match=f"inputs must be arrays of one dtype, float64 .* or float32; got .*{got}"):
        gradcheck(lambda *inputs: inputs[0] * 2, inputs)


@pytest.mark.parametrize("call, error, message", [
    (lambda: gradcheck(functional.relu, np.ones(3)), TypeError, "inputs must be a list of arrays; got a single one"),
    (lambda: gradcheck(functional.relu, Tensor(np.ones(3))), TypeError, "inputs must be a list of arrays"),
    (lambda: gradcheck(lambda x: x.data, [np.ones(3)]), TypeError, "f must return one Tensor; got ndarray"),
    (lambda: gradcheck(lambda x: (x, x), [np.ones(3)]), TypeError, "f must return one Tensor; got tuple"),
    (lambda: gradcheck(functional.relu, [np.ones(3)], directions=0), ValueError, "directions must be at least 1"),
])
def test_a_wrong_call_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("options, comparisons", [
    ({}, 2 * 3), ({"directions": 5}, 2 * 5), ({"elementwise": True}, 2 * 3 + 6 + 3),
    ({"elementwise": True, "directions": 0}, 6 + 3),
])
def test_the_report_tells_what_was_compared(options, comparisons):
    report = gradcheck(lambda x, y: x * y * y, [normal(2, 3), normal(3, seed=1)], **options)
    assert report.comparisons == comparisons
    assert 0 <= report.worst_error <= report.tolerance == 1e-6
    assert report == gradcheck(lambda x, y: x * y * y, [normal(2, 3), normal(3, seed=1)], **options)


@pytest.mark.parametrize("dtype, tolerance, step", [(np.float64, 1e-6, 6.055e-6), (np.float32, 1e-2, 4.921e-3)])
@pytest.mark.parametrize("scale, given", [(1.0, None), (100.0, None), (1.0, 0.125), (100.0, 0.125)])
def test_step_and_tolerance_follow_the_dtype(dtype, tolerance, step, scale, given):
    seen = []

    def f(x):
        seen.append(x.data.copy())
        return x * x

    x = np.full(3, scale, dtype)
    report = gradcheck(f, [x], elementwise=True, directions=0, step=given)
    assert report.tolerance == tolerance
    expected = step * scale if given is None else given
    moves = np.unique(np.round([abs(s.astype(float) - x).max() for s in seen], 9))
    np.testing.assert_allclose(moves[moves > 0], expected, rtol=2e-3)


def test_the_generator_draws_the_directions():
    def points(rng):
        seen = []
        gradcheck(lambda x: seen.append(x.data) or x * 2, [normal(5)], rng=rng)
        return np.array(seen)

    one, other, again = (points(np.random.default_rng(seed)) for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert (one[2:] != other[2:]).any()                     # the first two are at the inputs themselves


def test_inputs_with_the_usual_seed_are_not_drawn_again_as_cotangent():
    """With x as its own cotangent the gradient of a batch norm is about eps, lost in float32, and so is twice that."""
    def backward(dy, cache):
        dx, dgamma, dbeta = norm.batch_norm_backward(dy, cache)
        return 2 * dx, dgamma, dbeta

    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3))
    with pytest.raises(GradientError, match="the gradient of input 0"):
        gradcheck(lift(norm.batch_norm, backward), [a.astype(np.float32) for a in (x, np.ones(3), np.zeros(3))])
