"""Ops with several differentiable results: which of them are used, and how often; and `recompute`, one of them."""

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import Tensor, functional, gradcheck, no_grad
from minunet.autograd import is_recording, lift, once, recompute, record_kinks
from tests.checks import leaf

seen = []


def sum_and_product(a, b):
    return (a + b, a * b), (a, b)


def sum_and_product_backward(dys, cache):
    seen.append(tuple(dy is not None for dy in dys))
    (dsum, dproduct), (a, b) = dys, cache
    dsum = 0 if dsum is None else dsum
    dproduct = 0 if dproduct is None else dproduct
    return dsum + dproduct * b, dsum + dproduct * a


both = lift(sum_and_product, sum_and_product_backward, also=lambda cache: ("more",))


@pytest.fixture(autouse=True)
def _nothing_seen():
    seen.clear()


@pytest.mark.parametrize("use, given_to_backward", [
    (lambda s, p: s * p, (True, True)), (lambda s, p: s * 3.0, (True, False)), (lambda s, p: p * p, (False, True)),
    (lambda s, p: p + s * p + s, (True, True)), (lambda s, p: s + s * s, (True, False)),
    (lambda s, p: p, (False, True)),
])
def test_results_used_once_twice_or_not(use, given_to_backward):
    arrays = [np.array([1.0, 2, 3]), np.array([4.0, -5, 6])]
    gradcheck(lambda a, b: use(*both(a, b)[:2]), arrays)
    seen.clear()
    a, b = (Tensor(x, requires_grad=True) for x in arrays)
    s, p, more = both(a, b)
    assert more == "more" and s.requires_grad and p.requires_grad and "from sum_and_product" in repr(p)
    use(s, p).sum().backward()
    assert seen == [given_to_backward]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_chains_of_several_results(which):
    """Each op takes both results of the one before, in any order: it is passed once, when both have their gradient."""
    def f(a, b):
        for swap in which:
            s, p, _ = both(a, b)
            a, b = (p * 0.5, s * 0.5) if swap else (s * 0.5, p * 0.5)
        return a + b

    seen.clear()
    a, b = leaf(2), leaf(2)
    f(a, b).sum().backward()
    assert seen == [(True, True)] * len(which)
    gradcheck(lambda a, b: f(a * 0.1, b * 0.1), [np.array([0.1, -0.2]), np.array([0.3, 0.4])])


def test_deep_graphs_do_not_recurse():
    x = leaf(1)
    a, b = x, x
    for _ in range(20_000):
        a, b, _ = both(a * 0.5, b * 0.0)
    a.sum().backward()
    assert x.grad is not None


def test_an_unused_branch_of_a_result_does_not_hold_the_others_up():
    a, b = leaf(2), leaf(2)
    s, p, _ = both(a, b)
    unused = p * 2                                          # part of no loss
    s.sum().backward()
    np.testing.assert_array_equal(a.grad, [1, 1])
    assert unused.requires_grad and seen == [(True, False)]


def test_the_other_results_backward_says_that_the_op_has_been_passed():
    s, p, _ = both(leaf(2), leaf(2))
    s.sum().backward()
    with pytest.raises(RuntimeError, match="an earlier backward has passed the op sum_and_product"):
        p.sum().backward()


def test_results_may_have_shapes_and_dtypes_of_their_own():
    def parts(x):
        return (x[:1], x[1:].reshape(-1, 1)), len(x)

    def parts_backward(dys, length):
        first, rest = dys
        return (np.concatenate([np.zeros(1) if first is None else first,
                                np.zeros(length - 1) if rest is None else rest.ravel()]),)

    op = lift(parts, parts_backward)
    gradcheck(lambda x: op(x)[0] * op(x)[1], [np.array([1.0, 2, 3])])
    x = leaf(3)
    op(x)[1].backward(np.ones((2, 1)))
    np.testing.assert_array_equal(x.grad, [0, 1, 1])
    with pytest.raises(ValueError, match=r"gradient must have the Tensor's shape \(1,\); got \(2, 1\)"):
        op(x)[0].backward(np.ones((2, 1)))


def test_nothing_is_kept_under_no_grad():
    with no_grad():
        s, p, _ = both(leaf(2), leaf(2))
    assert not s.requires_grad and not p.requires_grad


def test_a_tuple_of_one_is_a_tuple():
    op = lift(lambda x: ((x * 2,), None), lambda dys, cache: (2 * dys[0],))
    (y,) = op(leaf(2))
    y.sum().backward()


def test_kinks_may_be_several():
    op = lift(sum_and_product, sum_and_product_backward, kink=lambda cache: tuple(a > 0 for a in cache))
    with record_kinks() as kinks:
        op(np.array([1.0, -1]), np.array([-1.0, 1]))
    assert [k.tolist() for k in kinks] == [[True, False], [False, True]]


# recompute

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
