"""Optimizers: their rules by hand, step by step against PyTorch, parameters without gradient, what is refused."""

import math

import numpy as np
import pytest

from minunet import Tensor, functional, nn, optim
from tests.checks import assert_close

SHAPES = [(3, 2, 4), (5,), (2, 2), ()]
# a name in PyTorch too, and options
OPTIONS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.2}),
    ("Adam", {}),
    ("Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.01, "betas": (0.0, 0.0)}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.3}),
    ("AdamW", {"lr": 0.1, "betas": (0.7, 0.9), "eps": 1e-2, "weight_decay": 0.0}),
]
EACH = pytest.mark.parametrize("name, options", OPTIONS, ids=lambda value: str(value))
RULES = pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])


def parameters(dtype=np.float64):
    rng = np.random.default_rng(0)
    return [nn.Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def gradients(step, without=lambda step, index: False, dtype=np.float64):
    """Of each parameter in this step, of many sizes; None where there is none."""
    rng = np.random.default_rng(step + 1)
    return [None if without(step, index) else np.asarray(rng.standard_normal(shape) * 10.0**rng.integers(-3, 2), dtype)
            for index, shape in enumerate(SHAPES)]


@EACH
@pytest.mark.parametrize("without", [
    lambda step, index: False,
    lambda step, index: index == 1,                         # never
    lambda step, index: index == 2 and step < 4,            # not in the first steps: an unused head, a frozen encoder
    lambda step, index: (step + index) % 3 == 0,            # now and then
], ids=["all have gradients", "one has none", "one begins late", "some miss some"])
def test_twenty_steps_equal_pytorch(torch, name, options, without):
    ours = parameters()
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    optimizer, expected = getattr(optim, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(20):
        optimizer.zero_grad()
        expected.zero_grad()
        for p, q, g in zip(ours, theirs, gradients(step, without), strict=True):
            p.grad = g
            q.grad = None if g is None else torch.tensor(g)
        if step == 10:                                      # a schedule
            optimizer.lr /= 5
            expected.param_groups[0]["lr"] /= 5
        optimizer.step()
        expected.step()
        for index, (p, q) in enumerate(zip(ours, theirs)):
            assert_close(p.data, q.detach().numpy(), 1e-10, f"step {step}, parameter {index}")


@EACH
def test_a_training_equals_pytorch(torch, name, options):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 5)), rng.uniform(size=(16, 2))
    ours = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 2)).astype(np.float64)
    weights = [torch.tensor(p.data, requires_grad=True) for p in ours.parameters()]
    optimizer = getattr(optim, name)(ours.parameters(), **options)
    expected = getattr(torch.optim, name)(weights, **options)
    for _ in range(20):
        loss = functional.bce_with_logits(ours(Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        w1, b1, w2, b2 = weights
        logits = torch.sigmoid(torch.tensor(x) @ w1 + b1) @ w2 + b2
        theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(y))
        expected.zero_grad()
        theirs.backward()
        expected.step()
        assert abs(loss.item() - theirs.item()) < 1e-10
        for p, q in zip(ours.parameters(), weights):
            assert_close(p.data, q.detach().numpy(), 1e-10)


# by hand

def take(optimizer, p, *gs):
    """The parameter after a step with each gradient."""
    values = []
    for g in gs:
        p.grad = np.array(g)
        optimizer.step()
        values.append(p.data.copy())
    return values


def test_sgd_by_hand():
    def start():
        return nn.Parameter(np.array([1.0, -2.0]))

    p = start()
    np.testing.assert_allclose(take(optim.SGD([p], lr=0.5), p, [1.0, 4.0], [0.0, 2.0]), [[0.5, -4], [0.5, -5]])
    p = start()                                             # v = 1, then 0.5 · 1 + 3 = 3.5
    np.testing.assert_allclose(take(optim.SGD([p], lr=0.1, momentum=0.5), p, [1.0, 0], [3.0, 0]),
                               [[0.9, -2], [0.55, -2]])
    p = start()                                             # 1 + 0.5 · 1, then 3 + 0.5 · 3.5
    np.testing.assert_allclose(take(optim.SGD([p], lr=0.1, momentum=0.5, nesterov=True), p, [1.0, 0], [3.0, 0]),
                               [[0.85, -2], [0.375, -2]])
    p = start()                                             # g + 0.5 θ
    np.testing.assert_allclose(take(optim.SGD([p], lr=0.1, weight_decay=0.5), p, [1.0, 1.0]), [[0.85, -2]])


def test_adam_by_hand():
    """Corrected for its start, the first step has the length lr whatever the gradient; so has every one if it stays."""
    p = nn.Parameter(np.array([1.0, 1.0, 1.0]))
    g = [1e-3, -7.0, 1e5]
    values = take(optim.Adam([p], lr=0.01), p, g, g, g)
    np.testing.assert_allclose(values, [[1 - 0.01 * t, 1 + 0.01 * t, 1 - 0.01 * t] for t in (1, 2, 3)], rtol=1e-6)
    p = nn.Parameter(np.array([2.0]))                       # g = 1 + 0.5 · 2 = 2, of any size: one lr
    np.testing.assert_allclose(take(optim.Adam([p], lr=0.1, weight_decay=0.5), p, [1.0]), [[1.9]], rtol=1e-6)
    p = nn.Parameter(np.array([2.0]))                       # 2 · (1 − 0.1 · 0.5) − 0.1
    np.testing.assert_allclose(take(optim.AdamW([p], lr=0.1, weight_decay=0.5), p, [1.0]), [[1.8]], rtol=1e-6)
    p = nn.Parameter(np.array([0.0]))                       # m̂ = (1/4 · 1 + 1/2 · 3) / (3/4) = 7/3, v̂ = 19/3 likewise
    values = take(optim.Adam([p], lr=1.0, betas=(0.5, 0.5), eps=1e-12), p, [1.0], [3.0])
    np.testing.assert_allclose(values, [[-1], [-1 - (7 / 3) / math.sqrt(19 / 3)]], rtol=1e-9)


def test_a_parameters_first_step_is_its_first_gradient():
    """Adam's correction counts the steps that the parameter took, not those that it had no gradient in."""
    early, late = nn.Parameter(np.zeros(1)), nn.Parameter(np.zeros(1))
    optimizer = optim.Adam([early, late], lr=0.01)
    for _ in range(10):
        early.grad = np.ones(1)
        optimizer.step()
    late.grad = np.full(1, 5.0)
    optimizer.step()
    np.testing.assert_allclose([early.data, late.data], [[-0.11], [-0.01]], rtol=1e-6)


# what a step touches

@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_changes_parameters_in_place_and_nothing_else(name, options, dtype):
    ps = parameters(dtype)
    options = {key: np.float64(value) if isinstance(value, float) else value for key, value in options.items()}
    optimizer = getattr(optim, name)(ps, **options)
    arrays, before = [p.data for p in ps], [p.data.copy() for p in ps]
    for step in range(3):
        given = gradients(step, lambda step, index: index == 1, dtype)
        for p, g in zip(ps, given):
            p.grad = g
            if g is not None:
                g.flags.writeable = False                   # a step that writes into it raises
        optimizer.step()
    for index, (p, array, old) in enumerate(zip(ps, arrays, before)):
        assert p.data is array and array.dtype == dtype
        assert (array == old).all() == (index == 1)


@EACH
@pytest.mark.parametrize("block", [1, 4, 5, 100])
@pytest.mark.parametrize("threads", ["1", "3"])
def test_blocks_on_the_cores_change_no_bit(monkeypatch, name, options, block, threads):
    """A class derived from a rule may look at a whole parameter, so it is stepped one parameter at a time."""
    monkeypatch.setattr(optim, "BLOCK", block)
    monkeypatch.setenv("MINUNET_NUM_THREADS", threads)
    rule = getattr(optim, name)
    optimizers = [kind(parameters(np.float32), **options) for kind in (rule, type("Derived", (rule,), {}))]
    for optimizer in optimizers:
        walk(optimizer, range(5), np.float32)
    blocks, whole = (optimizer.state_dict() | dict(enumerate(p.data for p in optimizer.parameters))
                     for optimizer in optimizers)
    for key, array in whole.items():
        np.testing.assert_array_equal(blocks[key], array, str(key))


@RULES
def test_arrays_in_any_order_of_memory(name):
    ours, theirs = [nn.Parameter(np.ones((3, 4)))], [nn.Parameter(np.asfortranarray(np.ones((3, 4))))]
    g = np.arange(12.0).reshape(3, 4)
    for (p,), given in ((ours, np.asfortranarray(g)), (theirs, g)):
        optimizer = getattr(optim, name)([p])
        for _ in range(2):
            p.grad = given
            optimizer.step()
    np.testing.assert_array_equal(ours[0].data, theirs[0].data)
    assert len(np.unique(ours[0].data)) > 1


def test_jobs_are_about_as_large_as_a_block():
    """50 small parameters are one job, a large one many; every number is in one of them."""
    size = optim.BLOCK
    sizes = [*[size // 100] * 50, 3 * size + 7, 0, 5, size]
    arrays = [np.zeros(n, np.float32) for n in sizes]
    jobs = optim._cut([(k, a, a) for k, a in enumerate(arrays)])
    amounts = [sum(row[1].size for row in job) for job in jobs]
    assert sum(amounts) == sum(sizes) and len(jobs) == 4 and max(amounts) < 2 * size
    for t, part, again in (row for job in jobs for row in job):
        part += 1
        assert part.base is arrays[t] and again is not part
    assert all((a == 1).all() for a in arrays)
    assert optim._cut([]) == []


@RULES
def test_no_gradient_changes_nothing(name):
    ps = parameters()
    before = [p.data.copy() for p in ps]
    optimizer = getattr(optim, name)(ps, lr=0.1, weight_decay=0.5)
    optimizer.step()
    for p, old in zip(ps, before):
        np.testing.assert_array_equal(p.data, old)


@RULES
def test_zero_grad_forgets_gradients(name):
    ps = parameters()
    optimizer = getattr(optim, name)(p for p in ps)         # an iterator is enough
    for p in ps:
        p.grad = np.ones_like(p.data)
    optimizer.zero_grad()
    assert all(p.grad is None for p in ps) and optimizer.parameters == ps


@RULES
def test_a_training_step_goes_down(name):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 4)).astype(np.float32), rng.integers(0, 2, (32, 1))
    model = nn.Linear(4, 1)
    optimizer, losses = getattr(optim, name)(model.parameters(), lr=0.05), []
    for _ in range(30):
        loss = functional.bce_with_logits(model(Tensor(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[10] < losses[0]


# going on


def walk(optimizer, steps, dtype=np.float64):
    """Steps with the gradients of these numbers, of which one parameter has none now and then."""
    for step in steps:
        for p, g in zip(optimizer.parameters, gradients(step, lambda step, index: (step + index) % 3 == 0, dtype)):
            p.grad = g
        optimizer.step()


@EACH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_optimizer_goes_on_from_a_state_bit_for_bit(name, options, dtype):
    whole = getattr(optim, name)(parameters(dtype), **options)
    walk(whole, range(9), dtype)
    first = getattr(optim, name)(parameters(dtype), **options)
    walk(first, range(5), dtype)
    state = first.state_dict()
    kept = {key: array.copy() for key, array in state.items()}
    ps = [nn.Parameter(p.data.copy()) for p in first.parameters]
    walk(first, range(20, 23), dtype)                       # the state is a copy: this leaves it alone
    second = getattr(optim, name)(ps, **options)
    second.load_state_dict(state)
    assert second.steps == 5 and second.taken == [sum((step + index) % 3 != 0 for step in range(5))
                                                  for index in range(len(SHAPES))]
    walk(second, range(5, 9), dtype)
    for p, expected in zip(second.parameters, whole.parameters, strict=True):
        np.testing.assert_array_equal(p.data, expected.data)
    assert second.state_dict().keys() == whole.state_dict().keys() == state.keys()
    for key, array in whole.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[key], array)
        np.testing.assert_array_equal(state[key], kept[key])    # nor did the second one write into it


def test_a_state_names_what_it_holds():
    optimizer = optim.Adam(parameters())
    walk(optimizer, range(2))
    state = optimizer.state_dict()
    assert set(state) == {"steps", "taken", *(f"{slot}.{i}" for slot in "mv" for i in range(len(SHAPES)))}
    assert state["steps"] == 2 and state["taken"].tolist() == [1, 2, 1, 1]
    assert [state[f"v.{i}"].shape for i in range(len(SHAPES))] == SHAPES


def renamed(state):
    return {"n" + key[1:] if key.startswith("m.") else key: array for key, array in state.items()}


@pytest.mark.parametrize("spoil, words", [
    (lambda state: {}, r"not that of Adam with these parameters \(m.0, m.1, m.2, m.3\)"),
    (lambda state: optim.SGD(parameters()).state_dict(), "not that of Adam"),
    (renamed, "not that of Adam"),
    (lambda state: optim.Adam(parameters()[:3]).state_dict(), r"\(m.3, v.3\)"),
    (lambda state: {key: array for key, array in state.items() if key != "steps"}, r"\(steps\)"),
    (lambda state: state | {"extra": np.zeros(1)}, r"\(extra\)"),
    (lambda state: state | {"v.1": np.zeros(6)}, r"\(v.1\)"),
    (lambda state: state | {"v.0": np.zeros((3, 4, 2))}, r"\(v.0\)"),
    (lambda state: state | {"taken": np.zeros(3, int)}, r"\(taken\)"),
])
def test_a_foreign_state_is_refused_and_changes_nothing(spoil, words):
    optimizer = optim.Adam(parameters())
    walk(optimizer, range(2))
    before = optimizer.state_dict()
    other = optim.Adam(parameters())
    walk(other, range(3, 6))
    with pytest.raises(ValueError, match=f"load_state_dict: .*{words}"):
        optimizer.load_state_dict(spoil(other.state_dict()))
    after = optimizer.state_dict()
    assert after.keys() == before.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array)


# a schedule


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("lr", [1.0, 3e-4])
def test_cosine_falls_from_lr_to_0(steps, lr):
    values = [optim.cosine(step, steps, lr) for step in range(steps + 1)]
    assert values[0] == lr and values[-1] == pytest.approx(0, abs=1e-15) and min(values) >= 0
    assert all(a > b for a, b in zip(values, values[1:]))
    np.testing.assert_allclose(np.add(values, values[::-1]), lr, rtol=1e-12)     # as far below the half as above


def test_cosine_by_hand():
    assert optim.cosine(50, 100, 0.2) == pytest.approx(0.1)
    assert optim.cosine(1, 3, 0.2) == pytest.approx(0.15) and optim.cosine(2, 3, 0.2) == pytest.approx(0.05)
    assert optim.cosine(1, 4, 1.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert optim.cosine(99, 100, 1.0) == pytest.approx((math.pi / 100)**2 / 4, rel=1e-3)


P = [nn.Parameter(np.ones(3))]


@pytest.mark.parametrize("make, message", [
    *((lambda rule=rule: rule([]), "got no parameters") for rule in (optim.SGD, optim.Adam, optim.AdamW)),
    *((lambda rule=rule, lr=lr: rule(P, lr=lr), f"lr must be above 0 .*; got {lr}")
      for rule in (optim.SGD, optim.Adam, optim.AdamW) for lr in (0, -0.1, math.nan, math.inf)),
    *((lambda rule=rule: rule(P, weight_decay=-0.1), "weight_decay must be at least 0; got -0.1")
      for rule in (optim.SGD, optim.Adam, optim.AdamW)),
    (lambda: optim.SGD(P, nesterov=True), "SGD: nesterov needs a momentum above 0; got 0.0"),
    (lambda: optim.SGD(P, momentum=-0.5), "SGD: momentum must be at least 0; got -0.5"),
    (lambda: optim.Adam(P, betas=(1.0, 0.9)), r"Adam: betas must be .* below 1; got \(1.0, 0.9\)"),
    (lambda: optim.Adam(P, betas=(0.9, -0.1)), r"betas must be .*at least 0 and below 1; got \(0.9, -0.1\)"),
    (lambda: optim.AdamW(P, betas=(0.9, math.nan)), r"betas must be .*at least 0 and below 1; got \(0.9, nan\)"),
    (lambda: optim.Adam(P, betas=(0.9,)), r"betas must be .* got \(0.9,\)"),
    (lambda: optim.Adam(P, eps=-1e-8), "Adam: eps must be at least 0; got -1e-08"),
    (lambda: optim.SGD([*P, nn.Parameter(np.ones(2)), *P]), "a parameter is given twice"),
    (lambda: optim.SGD([np.ones(3)]), "parameters must be Tensors, .*; got ndarray"),
    (lambda: optim.SGD(nn.Linear(2, 2).named_parameters()), "parameters must be Tensors, .*; got tuple"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
