"""Promised gradients that are refused or fail, and the memory that gradients leave."""

import gc
import threading
import weakref

import numpy as np
import pytest

from minunet import Tensor, UNet, memory, parallel
from minunet.autograd import lift
from tests.checks import leaf
from tests.parallel.promising import fail, scale, train
from tests.parallel.workers import all_busy, blas_threads, nothing_is_left, wait_for


@pytest.mark.parametrize("spoil, got", [
    (lambda g: g[:1], r"float64 \(1,\)"), (lambda g: g[:, None], r"float64 \(3, 1\)"),
    (lambda g: g.astype(np.float32), r"float32 \(3,\)"), (lambda g: None, "None"), (lambda g: 2.0, "a float"),
    (lambda g: g.tolist(), "a list"),
])
@pytest.mark.parametrize("on_leaf", [True, False])
def test_a_promised_gradient_that_does_not_fit_is_reported(spoil, got, on_leaf):
    w = leaf(3)
    op = scale(lambda function: parallel.later(lambda: spoil(function())))
    message = rf"backward of times: the gradient of input 1 must be float64 \(3,\), as the input; got {got}"
    with all_busy():
        with pytest.raises(ValueError, match=message):
            op(leaf(3), w if on_leaf else w * 1.0).sum().backward()
        assert not parallel._team.promises and w.grad is None


def test_one_promise_for_two_inputs_is_refused():
    a, b = leaf(3), leaf(3)
    op = lift(lambda a, b: (a + b, None), lambda dy, cache: (parallel.later(lambda: dy * 3),) * 2)
    with all_busy(), pytest.raises(RuntimeError, match="this promise was taken before"):
        op(a, b).sum().backward()


# exceptions

@pytest.mark.parametrize("maker", ["caller", "other"])
def test_an_exception_in_a_promised_gradient_comes_out_of_backward(maker):
    failed = threading.Event()

    def give(function):
        if maker == "caller":
            return parallel.later(fail)
        promise = parallel.later(lambda: (failed.set(), fail()))
        release(1)
        wait_for(failed)
        return promise

    before, after = leaf(3), leaf(3)
    with all_busy() as release:
        y = scale(give)(scale(parallel.later)(leaf(3), before), leaf(3))
        with pytest.raises(ZeroDivisionError, match="promised"):
            scale(parallel.later)(y, after).sum().backward()
        assert not parallel._team.promises
    assert nothing_is_left()
    assert after.grad is not None and before.grad is None   # it came in the order of the walk


def test_after_an_exception_in_an_op_promises_are_neither_made_nor_kept(blas, no_collector):
    made, seen = [], []

    def give(function):
        seen.append(weakref.ref(function))
        return parallel.later(lambda: made.append(function()))

    def fail_backward(dy, cache):
        assert len(parallel._team.promises) == 2
        raise KeyError("op")

    def attempt():
        w = leaf(3)
        failing = lift(lambda x: (x + 0, None), fail_backward)
        y = scale(give)(scale(give)(failing(leaf(3)), w), leaf(3))
        with pytest.raises(KeyError, match="op"):
            y.sum().backward()
        return w.grad

    with all_busy():
        assert attempt() is None
        assert not parallel._team.promises and [s() for s in seen] == [None, None]
    assert made == [] and nothing_is_left() and blas_threads() == 2


def test_a_backward_after_one_that_failed_is_as_always():
    with all_busy():
        with pytest.raises(ZeroDivisionError):
            scale(lambda function: parallel.later(fail))(leaf(3), leaf(3)).sum().backward()
        x, w = leaf(3), leaf(3)
        scale(parallel.later)(x, w).sum().backward()
    np.testing.assert_array_equal(w.grad, x.data)
    np.testing.assert_array_equal(x.grad, w.data)


# memory

def triple(x):
    return np.multiply(x, 3, out=memory.empty(x.shape, x.dtype))


@pytest.mark.parametrize("maker", ["caller", "other"])
@pytest.mark.parametrize("make, kept", [
    (lambda dy, keep: dy * 3, False), (lambda dy, keep: triple(dy), False), (lambda dy, keep: keep(triple(dy)), True),
    (lambda dy, keep: triple(dy)[:], True), (lambda dy, keep: keep(triple(dy)[:]).base, True),
    (lambda dy, keep: dy, True),
], ids=["fresh", "recycled memory", "kept", "a view", "seen by a view", "dy"])
def test_a_promised_gradient_is_copied_if_another_may_hold_it_and_only_then(maker, make, kept):
    addresses, others, made = [], [], threading.Event()

    def keep(array):
        others.append(array)
        return array

    def gradient(dy):
        result = make(dy, keep)
        addresses.append(result.ctypes.data)
        return result

    def backward(dy, cache):
        promise = parallel.later(lambda: (gradient(dy), made.set())[0])
        if maker == "other":
            release(1)
            wait_for(made)
        return (promise,)

    w, z = leaf(100, 100), leaf(100, 100)
    dy = np.ones((100, 100))
    with all_busy() as release:
        (lift(lambda w: (w + 0, None), backward)(w) + z).backward(dy)
    assert (w.grad.ctypes.data != addresses[0]) == kept
    others += [dy, z.grad]
    before = [a.copy() for a in others]
    w.grad *= 7
    assert all(np.array_equal(a, b) for a, b in zip(others, before, strict=True))


@pytest.mark.parametrize("maker", ["caller", "other"])
def test_what_a_gradient_is_made_of_is_free_when_it_has_come(maker, no_collector):
    """While the walk goes on: a promise keeps what its op had no longer than until it has been taken."""
    seen, alive, made = [], [], threading.Event()

    def give(function):
        seen.append(weakref.ref(function))
        promise = parallel.later(lambda: (function(), made.set())[0])
        if maker == "other":
            release(1)
            wait_for(made)
            made.clear()
        return promise

    def look_backward(dy, cache):
        alive.append([s() is not None for s in seen])
        return (dy,)

    look, y = lift(lambda x: (x + 0, None), look_backward), leaf(3)
    for _ in range(4):
        y = scale(give)(look(y), leaf(3))
    loss = y.sum()
    with all_busy(4) as release:
        loss.backward()
    waiting = maker == "caller"
    assert alive == [[waiting] * 1, [waiting] * 2, [False] + [waiting] * 2, [False] * 2 + [waiting] * 2]
    assert not any(s() is not None for s in seen)


def test_a_backward_leaves_nothing_for_the_collector(use, no_collector):
    use(2)
    train()
    gc.collect()
    for _ in range(3):
        train()
    assert gc.collect() == 0


def test_the_memory_of_a_net_returns(use, no_collector):
    use(3)
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)
    net = UNet(3, 2, base=8, depth=1)
    for _ in range(3):
        y = net(Tensor(x))
        seen = [weakref.ref(y), weakref.ref(y.data)]
        y.sum().backward()
        del y
        assert not any(s() is not None for s in seen) and all(p.grad is not None for p in net.parameters())
    assert nothing_is_left()
