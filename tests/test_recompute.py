"""Recomputation: the same gradients bit for bit, inputs alone kept, and what happens once happens once."""

import gc
import weakref

import numpy as np
import pytest

from minunet import Tensor, functional, gradcheck, no_grad
from minunet.autograd import is_recording, lift
from minunet.recompute import once, recompute
from tests.checks import leaf

seen = []


def net(x, w):
    """Two results, of several ops."""
    y = functional.relu(x * w + 1.0)
    return y * y, (y * x).sum()


def gradients(f, *arrays):
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    y, total = f(*tensors)
    (y.sum() + total * total).backward()
    return [y.data, total.data, *(t.grad for t in tensors)]


def test_the_gradients_of_a_recomputation_are_the_same_bit_for_bit():
    arrays = np.random.default_rng(0).standard_normal((2, 50)).astype(np.float32)
    plain = gradients(net, *arrays)
    for f in (lambda x, w: recompute(net, x, w),
              lambda x, w: recompute(lambda a, b: recompute(net, a * 1.0, b), x, w)):       # nested
        for a, b in zip(gradients(f, *arrays), plain, strict=True):
            assert a.tobytes() == b.tobytes()


def test_parameters_that_are_no_inputs_get_their_gradient():
    w, x = leaf(3), Tensor(np.ones(3))
    y = recompute(lambda x: x * w * w, x)
    assert y.requires_grad and not x.requires_grad
    y.sum().backward()
    np.testing.assert_allclose(w.grad, 2 * w.data)
    assert x.grad is None


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_two_results_may_be_unused(used):
    arrays = np.random.default_rng(0).standard_normal((2, 5))
    gradcheck(lambda x, w: recompute(net, x, w)[used] * 1.0, list(arrays))


def test_one_result_may_be_made_from_another():
    def f(x):
        first = x * x
        return first * 3.0, first, (first * 3.0) * first

    arrays = [np.array([0.5, -1.5])]
    gradcheck(lambda x: (lambda a, b, c: a * b + c)(*recompute(f, x)), arrays)


def test_a_function_may_return_its_input_and_leave_another_unused():
    x, unused = leaf(2), leaf(2)
    a, b = recompute(lambda x, unused: (x, x * 2), x, unused)
    (a + b).sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3])
    np.testing.assert_array_equal(unused.grad, [0, 0])


def test_only_the_inputs_are_kept_until_backward():
    made = []

    def keep(x):
        own = x.copy()
        made.append(weakref.ref(own))
        return x + 1, own

    op, x = lift(keep, lambda dy, own: (dy,)), leaf(2)
    gc.disable()
    try:
        y = recompute(lambda x: op(op(x)), x)
        assert [m() for m in made] == [None, None]
        y.sum().backward()
        assert [m() for m in made] == [None] * 4
    finally:
        gc.enable()


def test_nothing_is_computed_again_where_nothing_is_kept():
    calls = []

    def f(x):
        calls.append(is_recording())
        return x * 2

    with no_grad():
        assert not recompute(f, leaf(2)).requires_grad
    assert not recompute(f, Tensor(np.ones(2))).requires_grad
    y = recompute(f, leaf(2)).sum()
    assert calls == [False, True, True]
    with no_grad():
        y.backward()                        # what a backward computes again is recorded wherever it is called
    assert calls == [False, True, True, True]


def test_what_may_happen_once_happens_once():
    rng, happened = np.random.default_rng(0), []

    def f(x):
        factor = once(lambda: rng.standard_normal())
        once(lambda: happened.append("update"))
        return x * factor * functional.dropout(x, 0.5, rng)

    for nested in (f, lambda x: recompute(f, x)):
        happened.clear()
        x = Tensor(np.arange(1.0, 101), requires_grad=True)
        state = rng.bit_generator.state
        y = recompute(nested, x)
        drawn = rng.bit_generator.state
        y.sum().backward()
        assert happened == ["update"] and rng.bit_generator.state == drawn
        rng.bit_generator.state = state
        again = Tensor(x.data, requires_grad=True)
        f(again).sum().backward()
        np.testing.assert_array_equal(x.grad, again.grad)


def test_a_second_backward_of_a_recomputation_is_refused():
    y = recompute(lambda x: x * x, leaf(2)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="an earlier backward has passed the op"):
        y.backward()


def test_a_recomputation_that_fails_leaves_nothing_behind():
    fails = []

    def f(x):
        if fails:
            raise KeyError("second call")
        fails.append(1)
        return x * once(lambda: 2.0)

    y = recompute(f, leaf(2)).sum()
    with no_grad(), pytest.raises(KeyError):
        y.backward()
    assert is_recording() and once(lambda: "fresh") == "fresh"
    with no_grad():
        assert not is_recording()
