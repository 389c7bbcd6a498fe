"""Gradients that a backward promises: the same bits, their order, who is given one, recomputation."""

import threading
from functools import partial, reduce

import numpy as np
import pytest

from minunet import Tensor, functional, graph, parallel
from minunet.autograd import lift
from minunet.ops import conv
from minunet.recompute import recompute
from tests.checks import leaf
from tests.parallel.promising import fail, scale, train
from tests.parallel.workers import all_busy, blas_threads, nothing_is_left, wait_for


@pytest.mark.parametrize("options", [{}, {"norm": None}, {"recompute": True}, {"up": "bilinear", "activation": "elu"}],
                         ids=str)
def test_the_gradients_of_a_net_have_the_same_bits_with_any_number_of_threads(use, blas, options):
    use(1)
    expected = train(**options)
    for count in (2, 3, 5):
        use(count)
        for actual, one in zip(train(**options), expected, strict=True):
            assert actual.dtype == one.dtype and actual.tobytes() == one.tobytes()
    assert nothing_is_left()


def test_the_gradients_of_a_net_have_the_same_bits_when_nobody_but_the_caller_makes_them(use):
    use(1)
    expected = train()
    with all_busy():
        for actual, one in zip(train(), expected, strict=True):
            assert actual.tobytes() == one.tobytes()


FACTORS = [1e8, 1.0, -1e8, 3.0, 1e-3, 7e7, -7e7, 2.0]      # whose sum in float32 depends on their order


@pytest.mark.parametrize("promised", [0b11111111, 0b01010101, 0b10000001, 0b00001111, 0b11110000, 0b00100100])
@pytest.mark.parametrize("most", [1, 2, 100])
def test_the_gradients_of_a_shared_weight_add_up_in_the_order_of_the_walk(monkeypatch, promised, most):
    """Promised or ready, and whichever are made first: others make the last first."""
    def gradient(gives):
        w, y = leaf(50, dtype=np.float32), Tensor(np.ones(50, np.float32))
        for give, factor in zip(gives, FACTORS, strict=True):
            y = scale(give, factor)(y, w)
        y.sum().backward()
        return w.grad

    def record(function):
        parts.append(function())
        return parts[-1]

    def last_first(function):
        promise = parallel.later(function)
        parallel._team.promises.rotate()
        return promise

    monkeypatch.setattr(graph, "PROMISED", most)
    parts = []
    expected = gradient([record] * 8)
    assert np.array_equal(expected, reduce(np.add, parts)) and not np.array_equal(expected, reduce(np.add, parts[::-1]))
    gives = [last_first if promised >> i & 1 else parallel.at_once for i in range(8)]
    with all_busy():
        assert gradient(gives).tobytes() == expected.tobytes()
    monkeypatch.setenv("MINUNET_NUM_THREADS", "3")
    for _ in range(5):
        assert gradient(gives).tobytes() == expected.tobytes()


def test_a_ready_gradient_waits_for_one_that_was_promised_to_the_same_leaf_before():
    w, seen = leaf(3), []

    def look_backward(dy, cache):
        seen.append(None if w.grad is None else w.grad.copy())
        return (dy,)

    look = lift(lambda x: (x + 0, None), look_backward)
    with all_busy():
        y = scale(parallel.at_once)(look(look(Tensor(np.ones(3), requires_grad=True))), w)
        scale(parallel.later, 10)(y, w).backward(np.ones(3))
    assert seen == [None, None]
    np.testing.assert_allclose(w.grad, 10 * w.data + w.data)


@pytest.mark.parametrize("before", [True, False])
def test_a_ready_gradient_comes_at_once_where_none_was_promised_to_its_leaf(before):
    """Whatever was promised to another leaf: gradients that wait take memory."""
    w, promised, seen = leaf(3), leaf(3), []

    def look_backward(dy, cache):
        seen.append((promised.grad is not None, w.grad is not None))
        return (dy,)

    look = lift(lambda x: (x + 0, None), look_backward)
    with all_busy():
        y = look(leaf(3))
        for give, one in [(parallel.at_once, w), (parallel.later, promised)][::1 if before else -1]:
            y = scale(give)(y, one)
        y.sum().backward()
    assert seen == [(False, True)] and promised.grad is not None


def test_gradients_of_a_leaf_that_is_a_result_come_first():
    ones = np.ones(3, np.float32)
    w = Tensor(ones, requires_grad=True)
    with all_busy():
        y = scale(parallel.later, -1e8)(scale(parallel.later)(ones, w), w)
        graph.walk([y.origin, w.origin], [ones, np.full(3, 1e8, np.float32)])
    np.testing.assert_array_equal(w.grad, ones)             # (1e8 − 1e8) + 1


def test_gradients_add_up_to_those_of_an_earlier_backward():
    w = leaf(3)
    for times in (1, 2, 3):
        with all_busy():
            scale(parallel.later)(Tensor(np.full(3, 2.0)), w).sum().backward()
        np.testing.assert_array_equal(w.grad, np.full(3, times * 2.0))


# who is given a promise

def test_a_promise_for_what_is_no_leaf_is_taken_at_once():
    x, w, seen = leaf(3), leaf(3), []

    def look_backward(dy, cache):
        seen.append((type(dy), len(parallel._team.promises)))
        return (dy,)

    look = lift(lambda x: (x + 0, None), look_backward)
    with all_busy():
        scale(parallel.later)(x.data, look(w * 1.0)).sum().backward()
    assert seen == [(np.ndarray, 0)]
    np.testing.assert_array_equal(w.grad, x.data)


def test_a_promise_for_what_needs_no_gradient_is_not_kept():
    made, x = [], leaf(3)
    with all_busy():
        scale(lambda function: parallel.later(lambda: made.append(function())))(x, np.ones(3)).sum().backward()
        assert not parallel._team.promises
    np.testing.assert_array_equal(x.grad, np.ones(3))
    assert made == []


@pytest.mark.parametrize("most", [1, 2, 4])
def test_so_many_promises_are_outstanding_at_most(monkeypatch, most):
    """At each op's backward; the first in the walk are made first, when there are more."""
    monkeypatch.setattr(graph, "PROMISED", most)
    outstanding, made = [], []

    def give(number, function):
        outstanding.append(len(parallel._team.promises))
        return parallel.later(lambda: (made.append(number), function())[1])

    y = Tensor(np.ones(3))
    for number in range(8):
        y = scale(partial(give, number))(y, leaf(3))
    with all_busy():                                        # nobody but the caller makes any
        y.sum().backward()
    assert outstanding == [min(number, most) for number in range(8)]
    assert made == [7, 6, 5, 4, 3, 2, 1, 0]


def test_outside_a_backward_ops_promise_nothing(use):
    use(2)
    x, w = np.ones((1, 8, 8, 3)), np.ones((3, 3, 3, 4))
    y, cache = conv.conv2d(x, w)
    assert all(type(gradient) is np.ndarray for gradient in conv.conv2d_backward(y, cache)[:2])


@pytest.mark.parametrize("f, w", [(functional.conv2d, (3, 3, 2, 4)), (functional.conv_transpose2d, (3, 3, 4, 2))])
def test_convolutions_promise_their_weights_gradients(f, w):
    x, weight, counts = leaf(1, 6, 6, 2), leaf(*w), []

    def look_backward(dy, cache):
        counts.append(len(parallel._team.promises))
        return (dy,)

    look = lift(lambda x: (x + 0, None), look_backward)
    with all_busy():
        f(look(x), weight).sum().backward()
    assert counts == [1] and weight.grad.shape == w


def test_another_thread_makes_a_gradient_while_the_walk_goes_on(use):
    use(2)
    made, makers = threading.Event(), []

    def give(function):
        return parallel.later(lambda: (makers.append(threading.get_ident()), function(), made.set())[1])

    def wait_backward(dy, cache):
        wait_for(made)
        return (dy,)

    x, w = leaf(3), leaf(3)
    waiting = lift(lambda x: (x + 0, None), wait_backward)
    scale(give)(waiting(x), w).sum().backward()
    assert makers and makers[0] != threading.get_ident()
    np.testing.assert_array_equal(w.grad, x.data)


# recomputation

def test_a_recomputation_keeps_its_promises():
    """Its parameters get their gradients before the gradient of its input goes on."""
    x, inner, outer, seen = leaf(3), leaf(3), leaf(3), []

    def look_backward(dy, cache):
        seen.append((inner.grad is not None, outer.grad is not None))
        return (dy,)

    look = lift(lambda x: (x + 0, None), look_backward)
    promising = scale(parallel.later)
    with all_busy():
        promising(recompute(lambda x: promising(promising(x, inner), inner), look(x)), outer).sum().backward()
    assert seen == [(True, True)] and nothing_is_left()
    expected = [t.data.copy() for t in (x, inner, outer)]
    a, b, c = (Tensor(data, requires_grad=True) for data in expected)
    (a * b * b * c).sum().backward()
    for tensor, one in zip((x, inner, outer), (a, b, c)):
        np.testing.assert_allclose(tensor.grad, one.grad, rtol=1e-15)


def test_nothing_is_put_aside_while_a_part_is_recomputed():
    """Neither what came before it, nor between its own ops: a promise keeps arrays that recomputation is to save."""
    done = []

    def note(name):
        return lambda function: parallel.later(lambda: (done.append(name), function())[1])

    def look_backward(dy, _):
        done.append("looked")
        return (dy,)

    look = lift(lambda x: (x + 0, None), look_backward)
    w = [leaf(3) for _ in range(3)]
    with all_busy():
        y = recompute(lambda x: scale(note("outer"))(look(scale(note("inner"))(x, w[0])), w[1]), leaf(3))
        scale(note("before"))(y, w[2]).sum().backward()
    assert done == ["before", "outer", "looked", "inner"]


# BLAS's own threads

def test_ops_have_one_thread_of_blas_forwards_and_backwards(blas):
    seen = []

    def look(x):
        seen.append(blas_threads())
        return x + 0, None

    def look_backward(dy, cache):
        seen.append(blas_threads())
        return (dy,)

    look = lift(look, look_backward)
    look(look(leaf(3))).sum().backward()
    assert seen == [1] * 4 and blas_threads() == 2
    with pytest.raises(ValueError, match="must return y and its cache"):
        lift(lambda x: x, look_backward)(leaf(3))
    with pytest.raises(ZeroDivisionError):
        lift(lambda x: fail(), look_backward)(leaf(3))
