"""Recordings on a device: every replay computes what the function would, of new inputs and in place."""

import gc

import numpy as np
import pytest

from minunet import Tensor, UNet, functional, nn, no_grad, optim
from minunet.backend import array_module, device_of, on_gpu, to_device
from minunet.ops import dropout, norm
from minunet.ops.kernels import separable as kernels
from minunet.replay import Recording, fresh
from minunet.tape import NotRecordable


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def host(value):
    return np.asarray(to_device(value, "cpu")) if on_gpu(value) else value


OPERATIONS = {
    "ufuncs": lambda x: (x * 2 + 1) / x,
    "a reduction": lambda x: x.sum(axis=0) * 2,
    "a reduction to a number": lambda x: x.sum() * 2,
    "in place": lambda x: add_in_place(x.copy()),
    "written through a view": lambda x: write_part(x.copy()),
    "dtypes": lambda x: x.astype(np.float64) + 1,
    "no copy": lambda x: x.astype(np.float32, copy=False) * 3,
    "channels": lambda x: array_module(x).concatenate([x, x * 2], axis=-1),
    "parts": lambda x: [array_module(x).ascontiguousarray(part) for part in array_module(x).split(x, 2, axis=-1)],
    "a copy and a view": lambda x: (array_module(x).array(x), x.reshape(-1)[1:] * 1),
    "rearranged": lambda x: x.T.ravel() + x.T.reshape(-1),
    "constants": lambda x: array_module(x).full(x.shape, 3, x.dtype) * x + array_module(x).ones_like(x),
    "a choice": lambda x: array_module(x).where(x > 0, x, -x),
    "methods": lambda x: [x.argmax(axis=1) * 1, x.argsort(axis=0) * 1, x.flatten(), x.take(2), x.repeat(2), x.max(),
                          x.min(axis=1), x.dot(x.T), x.mean(), x.cumsum(), x.clip(-1, 1), x.round(1), x.trace()],
    "methods in place": lambda x: [sorted_and_filled(x.copy())],
    "an element": lambda x: x[1, 2] * 2,
    "Tensors with numbers": lambda x: (((Tensor(x) * 2 + 1 - x.dtype.type(3)) / 6) ** 2 - (1 - Tensor(x))).data,
    "a mean": lambda x: Tensor(x).mean().data,
    "nothing dropped": lambda x: functional.dropout(x, 0, np.random.default_rng(0)).data * 1,
    "a launch": lambda x: functional.sigmoid(x).data,
    "interpolation": lambda x: functional.resample(x.reshape(1, 4, 6, 2), factor=2, method="bilinear").data,
    "launches": lambda x: functional.conv2d(x.reshape(1, 4, 6, 2), array_module(x).full((3, 3, 2, 5), 0.1, x.dtype),
                                            padding=1).data,
}


def add_in_place(x):
    x += x
    x *= 3
    return x


def sorted_and_filled(x):
    x.sort(axis=1)
    x[0].fill(4)
    return x


def write_part(x):
    x[1:] = x[:1] * 2
    x[:, 0] = 7
    return x


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_replay_computes_what_the_function_does(device, name):
    if device == "cuda" and name.startswith("methods"):
        pytest.skip("what of these CuPy records is its own affair")
    function = OPERATIONS[name]
    inputs = [normal(8, 6, seed=seed) for seed in range(3)]
    expected = [function(to_device(x, device)) for x in inputs]
    recording = Recording(function, [inputs[0]], device)
    kernels._axis.cache_clear()                 # what a recording needs, it keeps
    gc.collect()
    for number, (x, wanted) in enumerate(zip(inputs, expected)):
        results = recording.replay(to_device(x, device) if number == 1 else x) if number else recording.results
        assert results is recording.results
        several = isinstance(results, (list, tuple))
        for result, value in zip(results if several else [results], wanted if several else [wanted], strict=True):
            assert device_of(result) == device
            np.testing.assert_array_equal(host(result), host(value))


def test_what_is_changed_in_place_is_changed_once_a_time(device):
    total, mean, var = (to_device(np.zeros(3, np.float32), device) for _ in range(3))

    def function(x):
        total[...] = total + x.sum(axis=0)
        norm.update_running(mean, var, x[0], x[1], momentum=0.5, count=4)
        return total * 1

    inputs = [np.full((2, 3), value, np.float32) for value in (1, 2, 4)]
    recording = Recording(function, inputs[:1], device)
    assert host(total).tolist() == [2, 2, 2] and host(mean).tolist() == [0.5] * 3
    results = [host(recording.replay(x)).tolist() for x in inputs[1:]]
    assert results == [[6] * 3, [14] * 3]
    assert host(mean).tolist() == [0.5 * 4 + 0.25 * 2 + 0.125] * 3
    np.testing.assert_allclose(host(var), (0.5 * 4 + 0.25 * 2 + 0.125) * 4 / 3, rtol=1e-6)


def test_fresh_numbers_are_made_once_a_time_and_in_order(device):
    made = iter(range(100))

    def function(x):
        first, second = (fresh(lambda: np.array([next(made)], np.float32), device) for _ in range(2))
        return x + 10 * first + second

    x = np.zeros(2, np.float32)
    recording = Recording(function, [x], device)
    values = [host(recording.results).tolist()] + [host(recording.replay(x)).tolist() for _ in range(3)]
    assert values == [[1, 1], [23, 23], [45, 45], [67, 67]] and next(made) == 8
    assert host(function(to_device(x, device))).tolist() == [10 * 9 + 10] * 2     # without a recording


def test_a_number_that_is_not_fresh_is_baked_in(device):
    """Which is why dropout's key is: else every step would drop the same numbers."""
    rng = np.random.default_rng(0)
    x = np.ones((4, 8), np.float32)
    baked = Recording(lambda x: x * float(rng.random()), [x], device)
    first = host(baked.results).copy()
    np.testing.assert_array_equal(host(baked.replay(x)), first)

    def dropped(rng, x):
        return functional.dropout(x, 0.5, rng).data

    expected = [host(dropped(rng, to_device(x, device))) for rng in [np.random.default_rng(1)] for _ in range(4)]
    recording = Recording(lambda x, rng=np.random.default_rng(1): dropped(rng, x), [x], device)
    for number, wanted in enumerate(expected):
        np.testing.assert_array_equal(host(recording.replay(x) if number else recording.results), wanted)
    assert len({wanted.tobytes() for wanted in expected}) == 4


def test_a_key_may_be_an_array(device):
    x = normal(5, 7)
    for key in (3, 2**64 - 1):
        expected = dropout.dropout(x, p=0.4, key=key)[0]
        array = np.array([key], np.uint64)
        np.testing.assert_array_equal(dropout.dropout(x, p=0.4, key=array)[0], expected)
        on_device = to_device(x, device)
        for given in (key, to_device(array, device)):
            np.testing.assert_array_equal(host(dropout.dropout(on_device, p=0.4, key=given)[0]), expected)


@pytest.mark.parametrize("read", [lambda x: to_device(x, "cpu"), lambda x: float(x[0, 0]),
                                  lambda x: bool((x > 0).any()), lambda x: x[0, 0].item(), lambda x: x.tolist(),
                                  lambda x: x.tobytes(), lambda x: complex(x[0, 0]), lambda x: f"{x[0, 0]}"],
                         ids=["to_device", "float", "bool", "item", "tolist", "tobytes", "complex", "format"])
def test_nothing_is_read_back_while_a_recording_runs(device, read):
    x = normal(2, 3)
    with pytest.raises(NotRecordable, match="read back from the device" if device == "sim" else None):
        Recording(lambda x: (read(x), x)[1], [x], device)
    read(to_device(x, device))                              # and afterwards all is as before


def test_nothing_is_brought_while_a_recording_runs(device):
    with pytest.raises(NotRecordable, match="cannot be brought to the device while its work is recorded .*: give them"):
        Recording(lambda x: x + to_device(normal(2, 3), device), [normal(2, 3)], device)
    assert device_of(to_device(normal(2), device)) == device


def test_a_recording_holds_what_its_launches_use(device):
    """Also the tables that a cache would forget: their memory would be another array's, and the graph would read it."""
    x = normal(1, 3, 5, 2)
    functional.resample(to_device(x, device), factor=2, method="bilinear")
    recording = Recording(lambda x: functional.resample(x, factor=2, method="bilinear").data, [x], device)
    assert [type(value) for value in recording._tape.kept] == [kernels.Axis] * 2


def test_what_the_first_call_keeps_has_to_be_there(device):
    """A table that was brought to the device while a recording runs would be empty there, and kept."""
    kernels._axis.cache_clear()
    x = normal(1, 3, 5, 2)
    with pytest.raises(NotRecordable, match="cannot be brought"):
        Recording(lambda x: functional.resample(x, factor=2, method="bilinear").data, [x], device)
    expected = host(functional.resample(to_device(x, device), factor=2, method="bilinear").data)
    recording = Recording(lambda x: functional.resample(x, factor=2, method="bilinear").data, [x], device)
    np.testing.assert_array_equal(host(recording.results), expected)


def test_targets_are_checked_but_while_a_recording_runs(device):
    """What can be known without reading is."""
    logits, target = to_device(normal(1, 4, 4, 3), device), np.full((1, 4, 4), 9, np.uint8)
    with pytest.raises(ValueError, match="class id 9"):
        functional.cross_entropy(logits, to_device(target, device))
    with pytest.raises(ValueError, match="target must hold integer class ids"):
        Recording(lambda t: functional.cross_entropy(logits, t).data, [target[:, 1:]], device)
    right = target % 3
    recording = Recording(lambda t: functional.cross_entropy(logits, t, ignore_index=255).data, [right], device)
    for found in (right, right + (right == 0) * np.uint8(255), (right + np.uint8(1)) % np.uint8(3)):
        wanted = functional.cross_entropy(logits, to_device(found, device), ignore_index=255).item()
        assert float(host(recording.replay(found))) == wanted


@pytest.mark.parametrize("options", [
    {}, {"norm": None}, {"dropout": 0.3}, {"dropout": 0.3, "recompute": True}, {"activation": "leaky_relu"},
    {"activation": "elu"}, {"pool": "average"}, {"up": "nearest"}, {"up": "bilinear"}, {"up": "bicubic"},
    {"up": "unpool"}, {"padding": "valid", "depth": 1},
], ids=str)
@pytest.mark.parametrize("classes", [1, 3])
def test_training_steps_are_the_same_to_the_bit(device, options, classes):
    """Gradients, running statistics and what the optimizer makes of them, each step on other images."""
    options = {"depth": 2, **options}
    size = (20, 22) if options.get("padding") == "valid" else (9, 12)
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((2, *size, 3), np.float32), rng.integers(0, max(2, classes), (2, *size), np.uint8))
               for _ in range(4)]
    for _, masks in batches:
        masks[0, 0, :3] = 255
    loss_of = functional.loss_function("bce+dice" if classes == 1 else "ce+dice")

    def gradients(model, images, masks):
        logits = model(Tensor(images))
        margins = [(n - m) // 2 for n, m in zip(masks.shape[1:], logits.shape[1:3])]
        masks = masks[:, margins[0]:margins[0] + logits.shape[1], margins[1]:margins[1] + logits.shape[2]]
        for p in model.parameters():
            p.grad = None
        loss = loss_of(logits, masks[..., None] if classes == 1 else masks, ignore_index=255)
        loss.backward()
        return loss.data, [p.grad for p in model.parameters()]

    def learn(recorded):
        model = UNet(3, classes, base=4, rng=np.random.default_rng(1), **options).to(device)
        optimizer, recording, losses = optim.Adam(model.parameters(), lr=1e-2), None, []
        for images, masks in batches:
            if not recorded:
                loss, found = gradients(model, *(to_device(a, device) for a in (images, masks)))
            elif recording is None:
                recording = Recording(lambda *arrays: gradients(model, *arrays), (images, masks), device)
                loss, found = recording.results
            else:
                loss, found = recording.replay(images, masks)
            for p, g in zip(model.parameters(), found):
                p.grad = g
            optimizer.step()
            losses.append(float(host(loss)))
        with no_grad():
            return losses, model.state_dict()

    expected, expected_state = learn(False)
    losses, state = learn(True)
    assert losses == expected and len(set(losses)) == 4
    for name, array in expected_state.items():
        assert state[name].tobytes() == array.tobytes(), name


def test_batch_norm_changes_its_running_statistics_in_place():
    layer = nn.BatchNorm2d(3)
    mean, var = layer.running_mean, layer.running_var
    layer(Tensor(normal(2, 4, 4, 3)))
    assert layer.running_mean is mean and layer.running_var is var and mean.any() and (var != 1).all()
