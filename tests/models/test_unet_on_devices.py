"""A tiny U-Net computed by kernels learns as it does on the CPU: the same losses, step by step, and predictions."""

import numpy as np
import pytest

from minunet import Tensor, UNet, functional, no_grad, optim
from minunet.backend import device_of, to_device
from minunet.checkpoint import Checkpoint, load_checkpoint
from tests.checks import assert_close

STEPS = 3


def scene(size, channels, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, *size, channels)).astype(np.float32), rng.integers(0, classes, (2, *size))


def learn(device, size, channels=3, classes=3, dtype=np.float32, optimizer=optim.Adam, precision=None, **options):
    """The losses of a few steps, and the logits' prediction after them."""
    model = UNet(channels, classes, base=4, depth=options.pop("depth", 2), output="softmax",
                 rng=np.random.default_rng(1), **options).astype(dtype).to(device, precision)
    images, masks = scene(size, channels, classes)
    loss_of, steps = functional.loss_function("ce+dice"), []
    optimizer = optimizer(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        logits = model(Tensor(to_device(images.astype(dtype), device)))
        h, w = logits.shape[1:3]
        top, left = (masks.shape[1] - h) // 2, (masks.shape[2] - w) // 2
        loss = loss_of(logits, masks[:, top:top + h, left:left + w])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps.append(loss.item())
    assert device_of(*(p.data for p in model.parameters()), *(p.grad for p in model.parameters())) == device
    return np.array(steps), model.predict(images)


OPTIONS = [
    {}, {"norm": None}, {"dropout": 0.3}, {"activation": "leaky_relu"}, {"activation": "elu"}, {"pool": "average"},
    {"up": "nearest"}, {"up": "bilinear"}, {"up": "bicubic"}, {"up": "unpool"},
    {"padding": "valid", "depth": 1, "up": "unpool"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_losses_as_on_the_cpu(device, options):
    size = (20, 22) if options.get("padding") == "valid" else (9, 12)
    losses, answer = learn(device, size, **options)
    expected, expected_answer = learn("cpu", size, **options)
    np.testing.assert_allclose(losses, expected, rtol=2e-4)
    assert type(answer) is np.ndarray
    assert_close(answer, expected_answer, 0.02)             # Adam's first steps divide by |gradient|, noise included
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Adam, optim.AdamW])
def test_in_float64_to_rounding(device, optimizer):
    losses, answer = learn(device, (8, 12), dtype=np.float64, optimizer=optimizer)
    expected, expected_answer = learn("cpu", (8, 12), dtype=np.float64, optimizer=optimizer)
    np.testing.assert_allclose(losses, expected, rtol=1e-8)
    assert_close(answer, expected_answer, 1e-5)


@pytest.mark.parametrize("precision, tolerance", [("tf32", 0.01), ("bf16", 0.05)])
def test_on_tensor_cores(device, precision, tolerance):
    losses, _ = learn(device, (8, 8), channels=4, classes=4, precision=precision)
    expected, _ = learn("cpu", (8, 8), channels=4, classes=4)
    np.testing.assert_allclose(losses, expected, rtol=tolerance)
    assert abs(losses - expected).max() > 1e-6              # operands were rounded


def test_predictions_on_a_device_stay_what_they_were(device):
    """The third is replayed, into the arrays of the second."""
    model = UNet(1, 2, base=2, depth=1).to(device)
    images = [scene((6, 6), 1, 2, seed)[0] for seed in range(4)]
    kept = [model.predict(x, device) for x in images]
    assert {device_of(answer) for answer in kept} == {device}
    expected = [UNet(1, 2, base=2, depth=1).predict(x) for x in images]
    for answer, reference in zip(kept, expected, strict=True):
        assert_close(to_device(answer, "cpu"), reference, 1e-5)
    assert not np.array_equal(expected[2], expected[3])


def test_a_precision_that_a_device_does_not_have_is_refused(device):
    model = UNet(1, 1, base=2, depth=1)
    for where, precision, allowed in (("cpu", "bf16", "float32, float64"), (device, "fp16", "float32, float64, tf32")):
        with pytest.raises(ValueError, match=f"precision must be one of {allowed}.* on the device {where}; got"):
            model.to(where, precision)
        assert model.device == "cpu" and model.head.precision == "float32"
    model.to(device, "bf16")
    with pytest.raises(ValueError, match="on the device cpu; got 'bf16'"):
        model.to("cpu")
    assert model.device == device
    assert model.to("cpu", "float32").predict(np.zeros((1, 2, 2, 1))).shape == (1, 2, 2, 1)


def test_moving_a_model_and_its_checkpoint(device, tmp_path):
    model = UNet(1, 2, base=2, depth=1)
    images, _ = scene((6, 6), 1, 2)
    answer, state = model.predict(images), model.state_dict()
    assert model.device == "cpu" and model.to(device) is model and model.device == device
    assert {device_of(getattr(m, name)) for _, m in model.named_modules() for name in m.buffer_names} == {device}
    moved = model.state_dict()
    assert all(type(a) is np.ndarray and np.array_equal(a, state[name]) for name, a in moved.items())
    Checkpoint(model, np.zeros(1, np.float32), np.ones(1, np.float32), ("a", "b")).save(tmp_path / "net.safetensors")
    back = load_checkpoint(tmp_path / "net.safetensors").model
    assert back.device == "cpu"
    np.testing.assert_array_equal(back.predict(images), answer)
    assert_close(model.predict(images), answer, 1e-5)
    model.load_state_dict(state)
    assert model.device == device
    with no_grad():
        assert device_of(model(Tensor(images)).data) == device      # constants come to the net
