"""conv2d, conv_transpose2d, linear, flatten: loop oracles, finite differences, PyTorch, what each refuses."""

from typing import Any, Callable, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minunet import Tensor, functional, gradcheck
from minunet.ops import conv
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, assert_refuses_mixed_dtypes, run
from tests.peers import PRECISIONS, assert_equals_torch, first, kernel, last
from tests.strategies import cases


class Drawn(NamedTuple):
    """An op with drawn options, its inputs (x, w, b), and the same op as a loop and in PyTorch."""

    ours: Callable[..., Tensor]
    arrays: tuple[np.ndarray, ...]
    loop: Callable[..., np.ndarray]
    theirs: Callable[..., Any]


def conv2d(case):
    g = case.geometry
    x, w, _ = case.arrays()
    return Drawn(
        lambda x, w, b=None: functional.conv2d(x, w, b, g.stride, g.padding, g.dilation),
        (x, w, np.random.default_rng(case.seed + 1).standard_normal(case.filters)),
        lambda x, w, b: naive.conv2d(x, w, g.stride, g.padding, g.dilation) + b,
        lambda nn, x, w, b: last(nn.conv2d(first(x), kernel(w), b, g.stride, g.padding, g.dilation)),
    )


def conv_transpose2d(case):
    """The output padding is what leads back to the case's image: over the cases, 0 .. stride − 1 along each axis."""
    g = case.geometry
    _, w, y = case.arrays()
    extra = tuple((n + 2 * p - e) % s for n, p, e, s in zip(case.size, g.padding, g.extent, g.stride))
    return Drawn(
        lambda x, w, b=None: functional.conv_transpose2d(x, w, b, g.stride, g.padding, extra, g.dilation),
        (y, w, np.random.default_rng(case.seed + 1).standard_normal(case.channels)),
        lambda x, w, b: naive.conv_transpose2d(x, w, g.stride, g.padding, g.dilation, case.size) + b,
        lambda nn, x, w, b: last(nn.conv_transpose2d(first(x), kernel(w), b, g.stride, g.padding, extra,
                                                     dilation=g.dilation)),
    )


def linear(case):
    shapes = (case.batch, case.size[0]), (case.size[0], case.filters), (case.filters,)
    rng = np.random.default_rng(case.seed)
    return Drawn(
        functional.linear,
        tuple(rng.standard_normal(shape) for shape in shapes),
        naive.linear,
        lambda nn, x, w, b: nn.linear(x, w.T, b),
    )


OPS = pytest.mark.parametrize("op", [conv2d, conv_transpose2d, linear])
SHAPES = pytest.mark.parametrize("f, shapes", [
    (lambda *a: functional.conv2d(*a, padding=1), [(2, 5, 4, 3), (3, 3, 3, 2), (2,)]),
    (lambda *a: functional.conv_transpose2d(*a, stride=2), [(2, 3, 4, 2), (2, 2, 3, 2), (3,)]),
    (functional.linear, [(4, 3), (3, 2), (2,)]),
])


@OPS
@given(case=cases())
def test_values_equal_the_loop_oracle(op, case):
    op = op(case)
    assert_close(op.ours(*op.arrays).data, op.loop(*op.arrays), 1e-10)


@OPS
@given(case=cases(), biased=st.booleans())
def test_gradients_equal_finite_differences(op, case, biased):
    op = op(case)
    gradcheck(op.ours, op.arrays if biased else op.arrays[:2])


@OPS
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(case=cases())
def test_values_and_gradients_equal_pytorch(op, torch, dtype, tolerance, case):
    op = op(case)
    theirs = op.theirs
    assert_equals_torch(torch, op.ours, lambda *a: theirs(torch.nn.functional, *a), op.arrays, dtype, tolerance)


@OPS
@given(case=cases())
@settings(max_examples=20)
def test_the_bias_is_optional(op, case):
    op = op(case)
    x, w, b = op.arrays
    assert_close(op.ours(x, w).data + b, op.ours(x, w, b).data, 1e-12)


@SHAPES
def test_a_constant_input_gets_no_gradient_and_leaves_the_others_theirs(f, shapes):
    arrays = [np.random.default_rng(1).standard_normal(shape) for shape in shapes]
    _, cotangent, gradients = run(f, arrays)
    for wanted, gradient in enumerate(gradients):
        tensors = [Tensor(a, requires_grad=i == wanted) for i, a in enumerate(arrays)]
        f(*tensors).backward(cotangent)
        assert [t.grad is None for t in tensors] == [i != wanted for i in range(3)]
        np.testing.assert_array_equal(tensors[wanted].grad, gradient)


@SHAPES
def test_float32_stays_float32(f, shapes):
    assert_keeps_float32(f, *shapes)
    assert_keeps_float32(f, *shapes[:2])


@SHAPES
def test_mixed_dtypes_are_refused(f, shapes):
    assert_refuses_mixed_dtypes(f, *shapes)


def test_a_wide_linear_layer_is_cut_into_columns(monkeypatch):
    """Into pieces that do not divide it: values and gradients."""
    monkeypatch.setattr(conv, "COLUMNS", 5)
    rng = np.random.default_rng(0)
    x, w, b, dy = (rng.standard_normal(shape) for shape in ((4, 13), (13, 11), (11,), (4, 11)))
    y, cache = conv.linear(x, w, b)
    assert_close(y, x @ w + b, 1e-13)
    for a, expected in zip(conv.linear_backward(dy, cache), (dy @ w.T, x.T @ dy, dy.sum(0)), strict=True):
        assert_close(a, expected, 1e-13)


def test_a_transposed_convolution_with_one_weight_undoes_the_sizes_of_the_convolution():
    """The same weight array serves both, and output_padding alone chooses among the sizes that share one y."""
    w = np.random.default_rng(0).standard_normal((3, 2, 4, 5))
    for size in [(7, 8), (8, 8), (7, 9), (8, 9)]:
        y = functional.conv2d(np.ones((2, *size, 4)), w, stride=2, padding=(1, 0))
        assert y.shape == (2, 4, 4, 5)
        extra = size[0] - 7, size[1] - 8
        assert functional.conv_transpose2d(y, w, None, 2, (1, 0), extra).shape == (2, *size, 4)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(0, 99))
@settings(max_examples=20)
def test_flatten_lays_each_image_out_as_one_row(shape, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    y, cotangent, (dx,) = run(functional.flatten, [x])
    assert y.shape == (shape[0], np.prod(shape[1:]))
    for n, row in enumerate(y):
        assert list(row) == [x[(n, *index)] for index in np.ndindex(*shape[1:])]     # the last axis runs fastest
    np.testing.assert_array_equal(dx, cotangent.reshape(shape))
    gradcheck(functional.flatten, [x])


def test_flatten_keeps_float32():
    assert_keeps_float32(functional.flatten, (2, 3, 4, 1))


def zeros(*shape):
    return np.zeros(shape)


X, W = zeros(8, 64, 64, 4), zeros(3, 3, 4, 2)


@pytest.mark.parametrize("make, message", [
    (lambda: functional.conv2d(X, zeros(3, 3, 3, 2)),
     r"conv2d: weight has 3 input channels, x has 4 \(x is \(8, 64, 64, 4\), channels last"),
    (lambda: functional.conv2d(X[0], W), r"conv2d: x must be \(N, H, W, C\), channels last; .* \(64, 64, 4\)"),
    (lambda: functional.conv2d(X, W[0]), r"conv2d: weight must be 4-d, \(KH, KW, .*\(3, 4, 2\)"),
    (lambda: functional.conv2d(X, W, zeros(4)), r"conv2d: bias must be \(2,\).*\(4,\)"),
    (lambda: functional.conv2d(X, W, zeros(1)), r"conv2d: bias must be \(2,\).*\(1,\)"),
    (lambda: functional.conv2d(X, W, stride=0), "stride must be an int or .* at least 1; got 0"),
    (lambda: functional.conv2d(X, W, padding=(1, -1)), r"padding must be .* at least 0; got \(1, -1\)"),
    (lambda: functional.conv2d(X, W, dilation=40), "kernel: its window spans 81 px in height .* only 64 px"),
    (lambda: functional.conv_transpose2d(X, W), "conv_transpose2d: weight has 2 input channels, x has 4"),
    (lambda: functional.conv_transpose2d(X[..., 0], W), r"conv_transpose2d: x must be \(N, H, W, C\)"),
    (lambda: functional.conv_transpose2d(X[..., :2], W, zeros(2)), r"conv_transpose2d: bias must be \(4,\).*\(2,\)"),
    (lambda: functional.conv_transpose2d(X[..., :2], W, stride=2, output_padding=(0, 2)),
     "output_padding must be below the stride, 0 to 1 in width; got 2"),
    (lambda: functional.conv_transpose2d(X[:, :1, :1, :2], W, padding=2), "padding: the transposed size in height"),
    (lambda: functional.linear(zeros(2, 3), zeros(4, 5)),
     r"linear: x must be \(N, C\) and weight \(C, F\); x is \(2, 3\), weight is \(4, 5\)"),
    (lambda: functional.linear(zeros(2, 3, 3), zeros(3, 5)), r"linear: x must be \(N, C\).*x is \(2, 3, 3\)"),
    (lambda: functional.linear(zeros(2, 3), zeros(3, 5), zeros(3)), r"linear: bias must be \(5,\).*\(3,\)"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(cases(), st.lists(st.integers(1, 3), min_size=2, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_images_side_by_side_equal_their_concatenation(case, channels, biased, relu):
    """Value and every gradient, also where only some of them are wanted."""
    g, rng = case.geometry, np.random.default_rng(case.seed)
    xs = [rng.standard_normal((case.batch, *case.size, c)) for c in channels]
    w, b = rng.standard_normal((*g.kernel, sum(channels), case.filters)), rng.standard_normal(case.filters)
    others = [w, b] if biased else [w]

    def f(join):
        def op(w, *inputs):
            b, xs = (inputs[0], inputs[1:]) if biased else (None, inputs)
            return functional.conv2d(functional.concat(*xs) if join else xs, w, b, g.stride, g.padding, g.dilation,
                                     relu=relu)
        return run(op, [*others, *xs])

    (y, _, gradients), (expected, _, wanted) = f(False), f(True)
    assert_close(y, expected, 1e-12)
    for a, e in zip(gradients, wanted, strict=True):
        assert_close(a, e, 1e-12)
    leaves = [Tensor(x, requires_grad=i == 1) for i, x in enumerate(xs)]
    functional.conv2d(tuple(leaves), w, b if biased else None, g.stride, g.padding, g.dilation, relu=relu).backward(
        np.random.default_rng(0).standard_normal(y.shape))
    assert [leaf.grad is None for leaf in leaves] == [i != 1 for i in range(len(xs))]
    assert_close(leaves[1].grad, wanted[len(others) + 1], 1e-12)
