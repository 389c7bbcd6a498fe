"""Replayed: what is recorded and when, what ends a recording, and that the results are always the function's."""

import copy
import gc
import threading
import weakref
from functools import partial

import numpy as np
import pytest

from minunet import Tensor, UNet, nn, replay
from minunet.backend import to_device
from minunet.nn import replayed as policy


class Scale(nn.Module):
    """A module with all that a module may consist of."""

    def __init__(self):
        self.factor = nn.Parameter(np.full(3, 2, np.float32))
        self.power, self.parts, self.table = 1, [nn.Dropout(0.5), None], {"shift": 0.0}
        self.pair, self.tensor = (nn.Parameter(np.ones(3, np.float32)),), Tensor(np.zeros(3, np.float32))
        self.calls = 0

    def compute(self, x):
        self.calls += 1                 # so that a test sees when it is called; no launch depends on it
        return (x * self.factor.data) * self.power + self.table["shift"] + self.parts[0].p


@pytest.fixture
def module(device):
    return Scale().to(device)


@pytest.fixture
def replayed():
    return nn.Replayed(Scale.compute, without=("calls", "training"))


def images(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).random((*shape, 3)).astype(dtype)


def take(y):
    return to_device(y, "cpu").copy()


def calls(module, replayed, *inputs):
    """In which of these calls the function itself was called; their results are right."""
    called = []
    for x in inputs:
        before = module.calls
        y = replayed(module, x, take=take)
        expected = x * to_device(module.factor.data, "cpu") * np.float32(module.power)
        np.testing.assert_array_equal(y, expected + np.float32(module.table["shift"]) + np.float32(module.parts[0].p))
        called.append(module.calls - before)
    return called


def test_the_second_call_is_recorded_and_the_following_ones_are_replayed(module, replayed):
    assert calls(module, replayed, *(images(2, seed=seed) for seed in range(5))) == [1, 1, 0, 0, 0]


def test_other_shapes_and_dtypes_end_the_recording(module, replayed):
    a, b, c = images(2), images(3), images(2, dtype=np.float64)
    assert calls(module, replayed, a, a, a, b, a, a, a, c, c, c) == [1, 1, 0, 1, 1, 1, 0, 1, 1, 0]
    assert calls(module, replayed, a, b, a, b) == [1, 1, 1, 1]


CHANGES = {
    "a parameter's array": lambda m: setattr(m.factor, "data", m.factor.data * 3),
    "a parameter": lambda m: setattr(m, "factor", nn.Parameter(m.factor.data * 3)),
    "whether a parameter learns": lambda m: setattr(m.factor, "requires_grad", False),
    "weights": lambda m: m.load_state_dict(m.state_dict() | {"factor": np.full(3, 5, np.float32)}),
    "a number": lambda m: setattr(m, "power", 7),
    "an attribute of a part": lambda m: setattr(m.parts[0], "p", 0.25),
    "a part": lambda m: m.parts.__setitem__(0, nn.Dropout(0.75)),
    "a parameter's array in a tuple": lambda m: setattr(m.pair[0], "data", m.pair[0].data * 1),
    "a Tensor's array": lambda m: setattr(m.tensor, "data", m.tensor.data * 1),
    "a new part": lambda m: m.parts.append(nn.ReLU()),
    "a part less": lambda m: m.parts.pop(),
    "an entry": lambda m: m.table.update(shift=4.0),
    "an entry less": lambda m: m.table.update(more=m.table.pop("more", 1)),
    "a new attribute": lambda m: setattr(m, "added", 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_is_not_what_it_was_is_recorded_anew(module, replayed, change):
    x = images(2)
    assert calls(module, replayed, x, x, x) == [1, 1, 0]
    CHANGES[change](module)
    assert calls(module, replayed, x, x, x) == [1, 1, 0]


def test_what_is_changed_in_place_and_what_makes_no_difference_does_not_count(module, replayed):
    x = images(2)
    calls(module, replayed, x, x)
    module.factor.data *= 2
    module.eval()
    assert calls(module, replayed, x) == [0]


def test_another_module_is_recorded_by_itself(module, replayed, device):
    other, x = Scale().to(device), images(2)
    other.factor.data *= 2
    assert calls(module, replayed, x, x, x) == [1, 1, 0]
    assert calls(other, replayed, x, x, x) == [1, 1, 0]


def test_on_the_cpu_nothing_is_recorded(replayed):
    module, x = Scale(), images(2)
    assert calls(module, replayed, x, x, x) == [1, 1, 1] and replayed._last is None


def test_too_little_memory_for_a_recording(module, replayed, monkeypatch):
    """The function is called each time, and no second recording is tried, but for other shapes."""
    tried, recording = [], policy.Recording

    def large(function, arrays, device):
        tried.append(len(arrays[0]))
        if len(arrays[0]) > 2:
            raise MemoryError
        return recording(function, arrays, device)

    monkeypatch.setattr(policy, "Recording", large)
    x, small = images(3), images(2)
    with pytest.warns(UserWarning, match="kernel by kernel, not as one graph: there is too little memory"):
        assert calls(module, replayed, *[x] * 4, *[small] * 3, *[x] * 3) == [1] * 6 + [0] + [1] * 3
    assert tried == [3, 2, 3]


def test_what_cannot_be_recorded_is_said_once_and_computed_nevertheless(module, device):
    def function(module, x):
        assert float(x.sum()) > 0
        return module.compute(x)

    replayed, x = nn.Replayed(function, without=("calls",)), images(2)
    assert calls(module, replayed, x) == [1]
    with pytest.warns(UserWarning, match=f"on the device {device} is launched kernel by kernel, not as one graph: "):
        assert calls(module, replayed, x) == [1]
    assert calls(module, replayed, x, x) == [1, 1]


def test_a_recording_that_fails_leaves_nothing(module, device):
    fails = [False]

    def function(module, x):
        if fails[0]:
            raise ValueError("on purpose")
        return module.compute(x)

    replayed, x = nn.Replayed(function, without=("calls",)), images(2)
    calls(module, replayed, x)
    fails[0] = True
    with pytest.raises(ValueError, match="on purpose"):
        replayed(module, x, take=take)
    fails[0] = False
    assert calls(module, replayed, x, x) == [1, 0]


def test_threads_wait_for_each_other(module, device):
    """The second one comes while the first is about to take its results, which are not overwritten."""
    x, z = images(2), images(2, seed=1)
    inside, leave, found = threading.Event(), threading.Event(), {}

    def slowly(y):
        if threading.current_thread().name == "first":
            inside.set()
            assert leave.wait(20)
        return take(y)

    def run(name, x):
        found[name] = replayed(module, x, take=slowly)

    replayed = nn.Replayed(Scale.compute, without=("calls",))
    calls(module, replayed, x, x)
    threads = [threading.Thread(target=run, args=given, name=given[0]) for given in (("first", x), ("second", z))]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    threads[1].join(0.2)
    assert not found
    leave.set()
    for thread, name, given in zip(threads, ("first", "second"), (x, z)):
        thread.join(20)
        np.testing.assert_array_equal(found[name], given * 2 + np.float32(0.5))


def test_a_call_within_a_recording_is_a_part_of_it(module, device):
    """It returns what is computed there, so take must not read."""
    inner = partial(nn.Replayed(Scale.compute, without=("calls",)), module, take=lambda y: y)
    x = images(2)
    inner(x)
    recording = replay.Recording(lambda x: inner(x) + 1, [x], device)
    for other in (images(2, seed=1), images(2, seed=2)):
        np.testing.assert_array_equal(to_device(recording.replay(other), "cpu"), other * 2 + np.float32(0.5) + 1)


def test_release_ends_all_recordings(module, replayed):
    x = images(2)
    calls(module, replayed, x, x)
    kept = weakref.ref(replayed._recording)
    nn.release_recordings()
    gc.collect()
    assert kept() is None and calls(module, replayed, x, x, x) == [1, 1, 0]


def test_a_copy_has_no_recording(module, replayed):
    x = images(2)
    calls(module, replayed, x, x)
    assert calls(module, copy.deepcopy(replayed), x, x, x) == [1, 1, 0]
    assert calls(module, replayed, x) == [0]


def test_a_net_goes_with_its_last_reference(device):
    for place in ("cpu", device):
        model = UNet(1, 1, base=2, depth=1).to(place)
        for _ in range(3):
            model.predict(np.zeros((1, 4, 4, 1), np.float32))
        kept = weakref.ref(model)
        del model
        if place != "cpu":              # a snapshot holds the attributes of the net, and so itself
            gc.collect()
        assert kept() is None


@pytest.mark.parametrize("options", [
    {}, {"norm": None}, {"pool": "average"}, {"activation": "elu"}, {"up": "bilinear"}, {"up": "unpool"},
    {"output": "softmax", "classes": 3}, {"output": "linear"}, {"dropout": 0.5}, {"padding": "valid", "depth": 1},
], ids=str)
def test_predictions_are_the_same_to_the_bit(device, options):
    """With weights that change in place, as in training, and in whatever mode the net is."""
    options = {"classes": 1, "depth": 2, **options}
    model = UNet(3, base=2, rng=np.random.default_rng(1), **options).to(device)
    size = (20, 22) if options.get("padding") == "valid" else (9, 12)
    rng = np.random.default_rng(0)
    for number in range(5):
        x = rng.standard_normal((2, *size, 3), np.float32)
        y = model.predict(x)
        assert y.tobytes() == copy.deepcopy(model).predict(x).tobytes()
        assert (model._prediction._recording is not None) == (number > 0)
        model.train(number % 2 == 0)
        for p in model.parameters():
            p.data *= 1.1


def test_a_prediction_is_the_callers_own(device):
    model = UNet(1, 1, base=2, depth=1).to(device)
    first, second, third = (model.predict(images(1, 4, 4, seed=seed)[..., :1]) for seed in range(3))
    assert first.tobytes() != second.tobytes() != third.tobytes()
