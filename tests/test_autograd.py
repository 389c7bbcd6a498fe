"""Tensor, backward, no_grad, lift: random graphs, what is refused, ops of one's own."""

import operator
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import Tensor, functional, gradcheck, memory, no_grad
from minunet.autograd import lift
from minunet.backend import address, array_module, to_device
from minunet.convolution import im2col
from tests.checks import assert_close, leaf, run
from tests.peers import PRECISIONS, assert_equals_torch
from tests.strategies import seeds

# Functions of two values that minunet's Tensors and PyTorch's both understand; they keep or broadcast shapes.
STEPS = [
    operator.add, operator.sub, operator.mul,
    lambda a, b: a / (b * b + 1),
    lambda a, b: b - a.mean(axis=-1, keepdims=True),
    lambda a, b: 2.5 - a + b.sum(axis=(0, 1), keepdims=True) / 3,
    lambda a, b: -a * b + a.reshape(tuple(a.shape)),
]
SHAPES = [(2, 3, 4), (1, 3, 4), (2, 1, 1), (1, 1, 4), (1, 1, 1)]


@st.composite
def graphs(draw):
    """A function of some leaves, each used at least once and most values several times; and the leaves."""
    rng = np.random.default_rng(draw(seeds))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    leaves = [rng.uniform(-1.5, 1.5, shape) for shape in shapes]
    step = st.tuples(st.sampled_from(STEPS), st.integers(0, 99))
    first = draw(st.lists(step, min_size=len(leaves) - 1, max_size=len(leaves) - 1))
    more = draw(st.lists(step, min_size=1, max_size=4))

    def f(*leaves):
        values = [leaves[0]]
        for (g, _), one in zip(first, leaves[1:], strict=True):
            values += [one, g(values[-1], one)]
        for g, position in more:
            values.append(g(values[-1], values[position % len(values)]))
        return values[-1]

    return f, leaves


def square(x):
    return x * x, x


def square_backward(dy, x):
    return (2 * x * dy,)


# values and gradients

@given(graphs())
def test_gradients_of_random_graphs_equal_finite_differences(graph):
    gradcheck(*graph)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(graph=graphs())
def test_values_and_gradients_of_random_graphs_equal_pytorch(torch, dtype, tolerance, graph):
    f, leaves = graph
    assert_equals_torch(torch, f, f, leaves, dtype, tolerance)


def test_a_constant_gets_no_gradient_and_a_leaf_is_not_changed():
    x, c = leaf(3), Tensor(np.ones(3))
    before = x.data.copy()
    (x * c + c).sum().backward()
    assert c.grad is None and not c.requires_grad
    np.testing.assert_array_equal(x.data, before)


def test_gradients_of_several_uses_add_up():
    x = leaf(3)
    (x + 2 * x + x * x).sum().backward()
    np.testing.assert_allclose(x.grad, 3 + 2 * x.data, rtol=1e-15)


def test_gradients_of_several_backward_calls_add_up():
    x = leaf(3)
    for times in (1, 2, 3):
        (x * x).sum().backward()
        np.testing.assert_allclose(x.grad, times * 2 * x.data, rtol=1e-15)
    x.grad = None
    x.sum().backward()
    np.testing.assert_array_equal(x.grad, np.ones(3))


def test_a_sum_of_gradients_leaves_the_first_as_it_was():
    x = leaf(2)
    x.backward([3, 4])
    first = x.grad
    x.backward([3, 4])
    np.testing.assert_array_equal(first, [3, 4])


def test_every_op_is_passed_once_when_all_its_users_have_been():
    """A ladder of diamonds of unequal arms has 2^40 paths."""
    passed = []

    def twin(x):
        return 2 * x, len(twins)

    def twin_backward(dy, number):
        passed.append(number)
        return (2 * dy,)

    twin, twins = lift(twin, twin_backward), []
    x = leaf(2)
    y = x
    for _ in range(40):
        long = twin(y)
        twins.append(long)
        y = y + (long + 0.0) + y
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(2, 4.0**40))
    assert passed == list(range(39, -1, -1))


@pytest.mark.parametrize("order", ["old first", "new first"])
def test_an_op_waits_for_users_of_any_age(order):
    x = leaf(2)
    shared = x * x
    old = shared * 3
    new = (((shared + 1) * 2) + 1) * 5
    y = old * new if order == "old first" else new * old
    y.sum().backward()
    s = x.data**2
    np.testing.assert_allclose(x.grad, (3 * 5 * (2 * s + 3) + 3 * s * 10) * 2 * x.data, rtol=1e-14)


@pytest.mark.parametrize("constant", [
    np.arange(3), np.ones(3, np.float32), np.ones((2, 1)), np.float32(2), np.float64(2), np.array(2), [1, 2, 3], 2,
], ids=repr)
@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv], ids=lambda f: f.__name__)
def test_an_array_on_the_left_makes_a_tensor(f, constant):
    x = leaf(3)
    y = f(constant, x)
    assert type(y) is Tensor and y.requires_grad and y.dtype == np.float64
    np.testing.assert_allclose(y.data, f(np.asarray(constant, float), x.data), rtol=1e-15)


@pytest.mark.parametrize("f", [operator.matmul, operator.pow, np.add, np.maximum])
def test_numpy_does_not_make_object_arrays_of_a_tensor(f):
    with pytest.raises(TypeError):
        f(np.ones(3), leaf(3))


def test_a_leafs_own_backward_is_its_gradient():
    x = leaf(2)
    for times in (1, 2):
        x.backward([3, 4])
        np.testing.assert_array_equal(x.grad, np.array([3, 4]) * times)


def test_no_array_is_shared_between_gradients():
    x, y, cotangent = leaf(2, 3), leaf(2, 3), np.ones((2, 3))
    (x + y).backward(cotangent)
    x.backward(cotangent)
    a, b = leaf(2, 2), leaf(2, 3)
    functional.concat(a, b).backward(np.ones((2, 5)))
    root = leaf(2, 3)
    root.backward(cotangent)
    for grad in (x.grad, root.grad, a.grad):
        grad *= 7
    np.testing.assert_array_equal(y.grad, np.ones((2, 3)))
    np.testing.assert_array_equal(b.grad, np.ones((2, 3)))
    np.testing.assert_array_equal(cotangent, np.ones((2, 3)))
    assert a.grad.base is None and b.grad.base is None      # no view that keeps a larger array alive


def triple(dy):
    return np.multiply(dy, 3, out=memory.empty(dy.shape, dy.dtype))


def keep(kept, what):
    kept.append(what)
    return what


def keep_a_part(kept, array):
    kept.append(array[5:])
    return array


def read_only(array):
    array.flags.writeable = False
    return array


GRADIENTS = {       # what a backward returns for two inputs, and whether something else refers to the first's memory
    "fresh": (lambda dy, kept: (dy * 3, dy), False),
    "fresh in recycled memory": (lambda dy, kept: (triple(dy), dy), False),
    "dy": (lambda dy, kept: (dy, dy * 3), True),
    "a view of dy": (lambda dy, kept: (dy[:], dy * 3), True),
    "one for both": (lambda dy, kept: (dy * 3,) * 2, True),
    "views of one": (lambda dy, kept: tuple(array_module(dy).stack([dy, dy])), True),
    "kept": (lambda dy, kept: (keep(kept, dy * 3), dy), True),
    "kept in recycled memory": (lambda dy, kept: (keep(kept, triple(dy)), dy), True),
    "kept in part": (lambda dy, kept: (keep_a_part(kept, triple(dy)), dy), True),
    "kept with the tuple": (lambda dy, kept: keep(kept, (dy * 3, dy)), True),
    "kept with the list": (lambda dy, kept: keep(kept, [dy * 3, dy]), True),
    "read-only": (lambda dy, kept: (read_only(dy * 3), dy), True),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_is_copied_if_another_may_hold_it_and_only_then(kind):
    """Its owner changes it in place, and nothing else changes."""
    assert_copied_if_shared("cpu", *GRADIENTS[kind])


@pytest.mark.parametrize("kind", ["fresh", "dy", "a view of dy", "one for both", "views of one", "kept",
                                  "kept with the tuple", "kept with the list"])
def test_on_a_gpu_too(device, kind):
    assert_copied_if_shared(device, *GRADIENTS[kind])


def assert_copied_if_shared(device, returned, shared):
    kept, addresses = [], []

    def backward(dy, cache):
        gradients = returned(dy, kept)
        addresses.append(address(gradients[0]))
        return gradients

    x, y, z = (Tensor(to_device(leaf(100, 100).data, device), requires_grad=True) for _ in range(3))
    dy = to_device(np.ones((100, 100)), device)
    (lift(lambda x, y: (x + y, None), backward)(x, y) + z).backward(dy)
    copied = address(x.grad) != addresses[0]
    assert copied == shared or device == "sim"      # whose arrays are views of NumPy's, and all copied
    others = [dy, y.grad, z.grad, *(a for what in kept for a in (what if isinstance(what, (tuple, list)) else [what]))]
    before = [a.copy() for a in others]
    x.grad *= 7
    assert all(bool((a == b).all()) for a, b in zip(others, before))


def test_two_losses_may_share_leaves():
    x = leaf(3)
    first, second = (x * 2).sum(), (x * x).sum()
    second.backward()
    first.backward()
    np.testing.assert_allclose(x.grad, 2 + 2 * x.data, rtol=1e-15)


def test_losses_that_share_ops_are_added_up():
    x = leaf(3)
    shared = x * x
    first, second = shared.sum(), (shared * shared).sum()
    (first + second).backward()
    np.testing.assert_allclose(x.grad, 2 * x.data + 4 * x.data**3, rtol=1e-14)


# what is refused

def test_a_second_backward_says_so_and_changes_nothing():
    x = leaf(3)
    y = x * x
    loss = y.sum()
    loss.backward()
    before = x.grad.copy()
    other = (y * 2 + x).sum()
    for again in (loss, other):
        with pytest.raises(RuntimeError) as caught:
            again.backward()
        np.testing.assert_array_equal(x.grad, before)
        message = str(caught.value)
        assert "an earlier backward has passed the op" in message and "freed its cache" in message
        assert "run the forward pass again, or add the losses up and call backward once" in message


def under_no_grad():
    with no_grad():
        return leaf(1) * 2


@pytest.mark.parametrize("op", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_arithmetic_across_devices_names_both(device, op):
    here, there = np.ones(3), to_device(np.ones(3), device)
    for a, b in ((Tensor(here), there), (Tensor(there), Tensor(here)), (here, Tensor(there))):
        with pytest.raises(TypeError, match="different devices: .*move one with minunet.backend") as caught:
            op(a, b)
        assert "(3,) on cpu" in str(caught.value) and f"(3,) on {device}" in str(caught.value)


@pytest.mark.parametrize("make, error, message", [
    (lambda: leaf(2, 3).backward(), ValueError, r"a Tensor of shape \(2, 3\) needs a gradient of that shape"),
    (lambda: (leaf(2, 3) * 2).backward(np.ones(3)), ValueError, r"must have the Tensor's shape \(2, 3\); got \(3,\)"),
    (lambda: (leaf(1) * 2).backward(1.0), ValueError, r"must have the Tensor's shape \(1,\); got \(\)"),
    (lambda: Tensor(np.ones(1)).backward(), RuntimeError, "depends on no Tensor with requires_grad=True"),
    (lambda: (Tensor(np.ones(2)) * 2).sum().backward(), RuntimeError, "depends on no Tensor with requires_grad=True"),
    (lambda: under_no_grad().backward(), RuntimeError, r"\(or was computed under no_grad\)"),
    (lambda: leaf(2) + leaf(2, dtype=np.float32), TypeError, r"Tensors of float\d+ and float\d+ do not mix"),
    (lambda: leaf(2, dtype=np.float32) / leaf(2), TypeError, r"Tensors of float\d+ and float\d+ do not mix"),
    (lambda: Tensor(leaf(2)), TypeError, "data is a Tensor already"),
    (lambda: lift(lambda x: x * x, square_backward)(leaf(2)), ValueError, "must return y and its cache; got a ndarray"),
])
def test_errors_name_what_came_and_what_is_allowed(make, error, message):
    with pytest.raises(error, match=message):
        make()


# no_grad

def recorded():
    return (leaf(2) * 2).requires_grad


def test_nothing_is_recorded_under_no_grad():
    with no_grad():
        x = leaf(2)
        y = x * 2
        assert x.requires_grad and not y.requires_grad
        with no_grad():
            assert not recorded()
        assert not recorded()
    assert recorded()
    (x * y).sum().backward()                                # y is a constant
    np.testing.assert_array_equal(x.grad, y.data)


def test_no_grad_decorates_a_function():
    @no_grad()
    def f(depth):
        return recorded() or (depth > 0 and f(depth - 1))

    for _ in range(2):
        assert not f(3)
        assert recorded()


def test_no_grad_ends_with_an_exception():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert recorded()


def test_no_grad_holds_in_its_own_thread_only():
    inside, looked, seen = threading.Event(), threading.Event(), []

    def other():
        seen.append(recorded())                             # while the main thread is in no_grad
        with no_grad():
            seen.append(recorded())
            inside.set()
            looked.wait(10)

    with no_grad():
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10) and not recorded()
    seen.append(recorded())                                 # while the other thread is in no_grad
    looked.set()
    thread.join()
    assert seen == [True, False, True]


def test_caches_are_not_kept_under_no_grad():
    seen = []

    def keep(x):
        own = x.copy()
        seen.append(weakref.ref(own))
        return x + 1, own

    keep = lift(keep, lambda dy, own: (dy,))
    with no_grad():
        y = keep(leaf(2))
    z = keep(Tensor(np.ones(2)))                            # nothing to be differentiated: nothing is kept either
    assert y.data.shape == z.data.shape and [s() for s in seen] == [None, None]


# ops of one's own

def test_a_pair_of_array_functions_becomes_an_op():
    op = lift(square, square_backward)
    y, cotangent, (dx,) = run(op, [np.array([[1.0, -2.0, 3.0]])])
    np.testing.assert_array_equal(y, [[1, 4, 9]])
    np.testing.assert_array_equal(dx, cotangent * [[2, -4, 6]])
    gradcheck(op, [np.linspace(-1, 1, 5)])
    assert op.__name__ == "square" and "from square" in repr(op(leaf(1)))


def test_options_none_and_further_results_are_passed_on():
    def scaled(x, b=None, *, factor):
        return x * factor + (0 if b is None else b), (factor, x.shape)

    def scaled_backward(dy, cache, needs):
        seen.append(needs)
        return cache[0] * dy, dy if needs[1] else None

    seen = []
    op = lift(scaled, scaled_backward, also=lambda cache: (cache[0], "more"))
    for b in (leaf(2), np.ones(2), None):
        x = leaf(2)
        y, factor, more = op(x, b, factor=3.0)
        assert (factor, more) == (3.0, "more")
        y.sum().backward()
        np.testing.assert_array_equal(x.grad, [3, 3])
    assert seen == [(True, True), (True, False), (True, False)]


@pytest.mark.parametrize("returned, message", [
    (lambda dy: (dy[:1], dy), r"backward of pair: .* input 0 must be float64 \(3,\), as the input; got float64 \(1,\)"),
    (lambda dy: (dy, dy[:, None]), r"backward of pair: .* input 1 must be float64 \(3,\).*got float64 \(3, 1\)"),
    (lambda dy: (dy, dy.astype(np.float32)), r"backward of pair: .* input 1 .*got float32 \(3,\)"),
    (lambda dy: (dy, None), r"backward of pair: .* input 1 must be float64 \(3,\), as the input; got None"),
    (lambda dy: (dy, 2.0), "backward of pair: .* input 1 must be .*; got a float"),
    (lambda dy: (dy, dy.tolist()), "backward of pair: .* input 1 must be .*; got a list"),
    (lambda dy: (dy,), "backward of pair: must return a tuple of 2 gradients, one for each input; got 1"),
    (lambda dy: (dy, dy, dy), "backward of pair: must return a tuple of 2 gradients, one for each input; got 3"),
    (lambda dy: dy, "backward of pair: must return a tuple of 2 gradients"),
    (lambda dy: None, "backward of pair: must return a tuple of 2 gradients"),
])
def test_a_gradient_that_does_not_fit_is_reported(returned, message):
    def pair(a, b):
        return a + b, None

    a, b = leaf(3), leaf(3)
    with pytest.raises(ValueError, match=message):
        lift(pair, lambda dy, cache: returned(dy))(a * 1, b * 1).sum().backward()


def test_a_backward_gets_an_array_also_for_a_single_number():
    seen = []

    def keep_backward(dy, cache):
        seen.append(type(dy))
        return (dy,)

    x = leaf()
    y = lift(lambda x: (x + 0, None), keep_backward)(x)
    (y * y + y).backward()
    assert seen == [np.ndarray] and type(y.data) is type(x.grad) is np.ndarray
    assert_close(x.grad, 2 * x.data + 1, 1e-15)


@pytest.mark.parametrize("f, w, product, other", [
    (functional.conv2d, (3, 3, 2, 4), "transposed", "forward"),
    (functional.conv_transpose2d, (3, 3, 4, 2), "forward", "transposed"),
])
@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
def test_a_convolution_computes_only_the_gradients_that_are_needed(monkeypatch, f, w, product, other, wanted):
    calls = {"forward": 0, "transposed": 0, "weight_grad": 0}

    def count(name):
        original = getattr(im2col, name)

        def counted(*args):
            calls[name] += 1
            return original(*args)

        return counted

    x, weight = leaf(1, 5, 5, 2), leaf(*w)
    x.requires_grad, weight.requires_grad = wanted
    y = f(x, weight).sum()
    for name in calls:
        monkeypatch.setattr(im2col, name, count(name))
    y.backward()
    assert calls == {product: wanted[0], other: 0, "weight_grad": wanted[1]}
    assert [t.grad is not None for t in (x, weight)] == list(wanted)


# the Tensor itself

def test_floating_point_arrays_are_kept_and_other_numbers_become_float32():
    for dtype in (np.float32, np.float64):
        array = np.ones((2, 3), dtype)
        assert Tensor(array).data is array
        assert Tensor(dtype(2)).dtype == dtype
    for other in ([1, 2], 3, 2.5, np.arange(3), np.ones(2, bool), np.ones(2, np.float16)):
        x = Tensor(other)
        assert x.dtype == np.float32 and x.shape == np.shape(other)
        np.testing.assert_array_equal(x.data, other)


def test_a_tensor_tells_what_it_holds():
    x = leaf(2, 3)
    assert (x.shape, x.ndim, x.dtype, len(x), x.grad) == ((2, 3), 2, np.float64, 2, None)
    one = Tensor(2.5)
    assert one.item() == float(one) == 2.5 and isinstance(one.item(), float)
    assert repr(Tensor([1, 2])) == "Tensor(array([1., 2.], dtype=float32))"
    assert repr(Tensor([1], requires_grad=True)) == "Tensor(array([1.], dtype=float32), requires_grad=True)"
