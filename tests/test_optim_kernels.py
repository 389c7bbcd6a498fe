"""Optimizers on a GPU: kernels/optimizer.cu against the CPU's rules, step by step; classes of one's own; states."""

import numpy as np
import pytest

from minunet import nn, optim
from minunet.backend import on_gpu, to_device
from minunet.ops.kernels import optimizer as kernels
from tests.checks import assert_close
from tests.devices import computed
from tests.test_optim import EACH, OPTIONS, RULES

SHAPES = [(1,), (3, 5, 2), (), (7,), (259,), (0, 3)]    # below and above the parts of these tests, nothing at all


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(kernels, "PART", 100)           # the last shape but one is cut into three


def gradients(step, dtype, without):
    rng = np.random.default_rng(step + 1)
    return [None if without(step, index) else np.asarray(rng.standard_normal(shape) * 10.0**rng.integers(-3, 2), dtype)
            for index, shape in enumerate(SHAPES)]


def start(dtype, device="cpu"):
    rng = np.random.default_rng(0)
    return [nn.Parameter(to_device(np.asarray(rng.standard_normal(shape), dtype), device)) for shape in SHAPES]


def walk(optimizer, steps, dtype, device="cpu", without=lambda step, index: (step + index) % 3 == 0):
    """Steps with these numbers' gradients, some of them missing, and a smaller learning rate from step 3."""
    rate = optimizer.lr
    for step in steps:
        for p, g in zip(optimizer.parameters, gradients(step, dtype, without), strict=True):
            p.grad = None if g is None else to_device(g, device)
        optimizer.lr = rate / (1 if step < 3 else 5)
        optimizer.step()
    optimizer.lr = rate


def everything(optimizer):
    """All arrays that a step changes."""
    return (*(p.data for p in optimizer.parameters), *(a for slot in optimizer.slots for a in optimizer.state[slot]))


@EACH
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-13)])
def test_steps_equal_the_cpus(device, name, options, dtype, tolerance):
    expected = getattr(optim, name)(start(dtype), **options)
    walk(expected, range(6), dtype)

    def f(*arrays):
        optimizer = getattr(optim, name)(map(nn.Parameter, arrays), **options)
        walk(optimizer, range(6), dtype, device)
        assert optimizer.taken == expected.taken
        return everything(optimizer)

    wanted = everything(expected)
    results = computed(device, f, *(p.data for p in start(dtype)))
    assert len(results) == len(wanted)
    for index, (a, b) in enumerate(zip(results, wanted)):
        assert a.dtype == dtype
        assert_close(a, b, tolerance, f"array {index}")


@RULES
@pytest.mark.parametrize("size", [256, 257, 1025, 4096, 4100, 9000])
def test_parts_of_many_elements(device, monkeypatch, name, size):
    """Parts as they are: a thread takes several elements at a time, and again; the last part is not full."""
    monkeypatch.undo()
    theta, g = np.random.default_rng(0).standard_normal((2, size)).astype(np.float32)

    def f(*arrays):
        ps = [nn.Parameter(a) for a in arrays[:2]]
        for p, gradient in zip(ps, arrays[2:]):
            p.grad = gradient
        optimizer = getattr(optim, name)(ps, lr=0.1)
        optimizer.step()
        return (*(p.data for p in ps), *optimizer.state[optimizer.slots[0]])

    arrays = theta, g, g, theta
    for a, b in zip(computed(device, f, *arrays), f(*(a.copy() for a in arrays)), strict=True):
        assert_close(a, b, 1e-6)


def test_one_launch_a_step(device, monkeypatch):
    """Whatever the number of parameters; and what the blocks own is worked out once for the same sizes."""
    names, cuts, launch, parts_of = [], [], kernels.launch, kernels.parts_of
    monkeypatch.setattr(kernels, "launch", lambda name, *args, **kw: (names.append(name), launch(name, *args, **kw)))
    monkeypatch.setattr(kernels, "parts_of", lambda *args: cuts.append(args) or parts_of(*args))
    optimizer = optim.AdamW(start(np.float32, device))
    walk(optimizer, range(4), np.float32, device, without=lambda step, index: step > 1 and index == 1)
    assert names == ["optimizer.adam"] * 4 and len(cuts) == 2
    walk(optimizer, range(1), np.float32, device, without=lambda step, index: True)
    assert len(names) == 4


@RULES
def test_parameters_of_both_dtypes(device, name):
    dtypes = np.float32, np.float64, np.float32
    ours, theirs = ([nn.Parameter(to_device(np.ones(3, dtype), place)) for dtype in dtypes]
                    for place in (device, "cpu"))
    for ps in (ours, theirs):
        for index, p in enumerate(ps):
            p.grad = p.data * (index + 1)
        getattr(optim, name)(ps, lr=0.1).step()
    for p, q in zip(ours, theirs):
        assert p.data.dtype == q.data.dtype
        assert_close(to_device(p.data, "cpu"), q.data, 1e-6)


@RULES
def test_views_that_do_not_lie_in_a_row(device, name):
    """A transposed parameter, and a gradient that runs backwards."""
    values = np.random.default_rng(0).standard_normal((2, 6, 8))
    expected, p = nn.Parameter(values[0].copy().T), nn.Parameter(to_device(values[0].copy(), device).T)
    expected.grad, p.grad = values[1].T, to_device(values[1].copy(), device).T
    q, other = nn.Parameter(values[0].copy()), nn.Parameter(to_device(values[0].copy(), device))
    q.grad, other.grad = values[1, :, ::-1], to_device(values[1].copy(), device)[:, ::-1]
    for ps in ([expected, q], [p, other]):
        optimizer = getattr(optim, name)(ps, lr=0.1)
        optimizer.step()
        optimizer.step()
    assert_close(to_device(p.data, "cpu"), expected.data, 1e-13)
    assert_close(to_device(other.data, "cpu"), q.data, 1e-13)


class Sign(optim.Optimizer):
    """An optimizer of one's own, which defines update only."""

    slots = ("last",)

    def update(self, theta, g, t, *state):
        (last,) = state
        theta -= self.lr * (g / abs(g) + last / t)
        last[...] = g


class Halved(optim.Adam):
    """Adam with another rule."""

    def update(self, theta, g, t, *state):
        super().update(theta, g * 0.5, t, *state)


@pytest.mark.parametrize("rule", [Sign, Halved])
def test_an_optimizer_of_ones_own_runs_on_a_gpu(device, rule):
    expected, optimizer = rule(start(np.float64), lr=0.1), rule(start(np.float64, device), lr=0.1)
    walk(expected, range(4), np.float64)
    walk(optimizer, range(4), np.float64, device)
    for p, q in zip(optimizer.parameters, expected.parameters):
        assert on_gpu(p.data)
        assert_close(to_device(p.data, "cpu"), q.data, 1e-13)


@pytest.mark.parametrize("name, options", OPTIONS[2:7:2])
def test_a_state_is_of_numpy_and_goes_on_anywhere(device, name, options):
    """Saved from the device, read by the CPU and by the device again: the same walk."""
    first = getattr(optim, name)(start(np.float64, device), **options)
    walk(first, range(3), np.float64, device)
    state = first.state_dict()
    assert all(type(a) is np.ndarray for a in state.values())
    kept = {key: a.copy() for key, a in state.items()}
    weights = [to_device(p.data, "cpu").copy() for p in first.parameters]
    walk(first, range(3, 6), np.float64, device)
    for key, a in kept.items():
        np.testing.assert_array_equal(state[key], a)    # copies
    for place in ("cpu", device):
        second = getattr(optim, name)([nn.Parameter(to_device(w.copy(), place)) for w in weights], **options)
        own = [a for slot in second.slots for a in second.state[slot]]
        second.load_state_dict(state)
        assert all(a is b for a, b in zip(own, (a for slot in second.slots for a in second.state[slot])))
        walk(second, range(3, 6), np.float64, place)
        for p, q in zip(second.parameters, first.parameters):
            assert_close(to_device(p.data, "cpu"), to_device(q.data, "cpu"), 1e-13)


@RULES
def test_an_optimizer_made_before_the_move_is_refused(device, name):
    p = nn.Parameter(np.ones(3))
    optimizer = getattr(optim, name)([p])
    p.data, p.grad = to_device(p.data, device), to_device(np.ones(3), device)
    with pytest.raises(TypeError, match=f"{name}: parameter 0 is on the device {device}, .*on {device}, cpu.*; make"):
        optimizer.step()


def test_a_step_keeps_infinity_as_the_cpu_does(device):
    """Without weight decay nothing is multiplied by it: 0 · ∞ would be no number."""
    for name in ("SGD", "Adam", "AdamW"):
        p = nn.Parameter(to_device(np.array([np.inf, 1.0]), device))
        p.grad = to_device(np.ones(2), device)
        getattr(optim, name)([p], weight_decay=0.0).step()
        assert np.isposinf(to_device(p.data, "cpu")[0]) and np.isfinite(to_device(p.data, "cpu")[1])
