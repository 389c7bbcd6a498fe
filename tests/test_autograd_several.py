"""Ops with several differentiable results: which of them are used, and how often."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import Tensor, gradcheck, no_grad
from minunet.autograd import lift, record_kinks
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
    x = leaf(2)
    (y,) = op(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_kinks_may_be_several():
    op = lift(sum_and_product, sum_and_product_backward, kink=lambda cache: tuple(a > 0 for a in cache))
    with record_kinks() as kinks:
        op(np.array([1.0, -1]), np.array([-1.0, 1]))
    assert [k.tolist() for k in kinks] == [[True, False], [False, True]]
