"""The U-Net's unit and recomputation: the same numbers as layer by layer, in training and prediction; less memory."""

import gc

import numpy as np
import pytest

from minunet import Tensor, UNet, functional, memory, nn, no_grad
from minunet.checkpoint import Checkpoint, load_checkpoint
from minunet.models import DoubleConv
from tests.checks import assert_close

SIZE = (16, 12)


def make(dtype=np.float64, **options):
    return UNet(**{"in_channels": 2, "classes": 3, "base": 4, "depth": 2, "rng": np.random.default_rng(3), **options}
                ).astype(dtype)


def step(model, size=SIZE, seed=0):
    """Logits, gradients by name, and the state after one forward and backward pass."""
    x = np.random.default_rng(seed).standard_normal((2, *size, 2)).astype(model.head.weight.dtype)
    logits = model(Tensor(x))
    (logits * logits).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return {"logits": logits.data, **{f"d {name}": grad for name, grad in found.items()}, **model.state_dict()}


def layer_by_layer(convs, *xs):
    """What a DoubleConv stands for, by its layers."""
    x = functional.concat(*xs) if len(xs) > 1 else xs[0]
    return convs.norm2(convs.conv2(convs.norm1(convs.conv1(x))))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("channels", [(3,), (2, 1)])
def test_two_convolutions_equal_their_layers(training, padding, channels):
    """Values, all gradients, maxima, and the running statistics, which move once."""
    found = []
    for fused in (True, False):
        convs = DoubleConv(3, 4, padding, "batch", "relu", np.random.default_rng(0)).astype(np.float64).train(training)
        rng = np.random.default_rng(1)
        for name, p in convs.named_parameters():
            p.data = p.data + 0.3 * rng.standard_normal(p.shape)
        xs = [Tensor(rng.standard_normal((2, 12, 8, c)), requires_grad=True) for c in channels]
        y, pooled = convs(*xs, pool=True) if fused else (lambda y: (y, functional.max_pool2d(y, 2)))(
            layer_by_layer(convs, *xs))
        ((y * y).sum() + (pooled * pooled).sum()).backward()
        found.append([y.data, pooled.data, *(t.grad for t in (*xs, *convs.parameters())),
                      *convs.state_dict().values()])
        if fused:
            with no_grad():
                again = convs.eval()(*xs)
            assert_close(again.data, layer_by_layer(convs, *xs).data, 1e-12)        # folded into the weights
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 1e-11)


def test_a_prediction_folds_batch_norm_into_the_weights(monkeypatch):
    model, calls = make(), []
    step(model)
    model.eval()
    x = Tensor(np.random.default_rng(1).standard_normal((1, *SIZE, 2)))
    monkeypatch.setattr(functional, "normalize", lambda *a, original=functional.normalize, **k: (
        calls.append("normalize"), original(*a, **k))[1])
    y = model(x)                                    # parameters want gradients: layer by layer
    assert calls == ["normalize"] * 10 and y.requires_grad
    with no_grad():
        assert_close(model(x).data, y.data, 1e-12)
    for p in model.parameters():
        p.requires_grad = False
    assert_close(model(x).data, y.data, 1e-12)
    assert len(calls) == 10
    image = Tensor(x.data, requires_grad=True)
    model(image).sum().backward()                   # of the image, with constant weights
    assert len(calls) == 20 and np.abs(image.grad).max() > 0


OPTIONS = [{}, {"dropout": 0.4}, {"up": "unpool"}, {"pool": "average", "up": "nearest"}, {"norm": None},
           {"activation": "elu"}, {"padding": "valid", "depth": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_recomputation_gives_the_same_bits(options, dtype):
    """Gradients, running statistics after one update, and the dropout's masks of two steps."""
    size = (20, 24) if options.get("padding") == "valid" else (9, 12)
    found = []
    for recompute in (False, True):
        model = make(dtype, recompute=recompute, **options)
        assert model.recompute is recompute
        first = step(model, size)
        found.append([first, step(model, size, seed=1)])
    for plain, again in zip(*found):
        for name, array in plain.items():
            assert array.tobytes() == again[name].tobytes(), name


def test_recomputation_is_an_attribute_and_no_part_of_a_checkpoint(tmp_path):
    model = make(np.float32, recompute=True)
    assert "recompute" not in model.config
    plain = make(np.float32)
    assert list(plain.state_dict()) == list(model.state_dict())
    path, mean, std = tmp_path / "net.safetensors", np.zeros(2, np.float32), np.ones(2, np.float32)
    Checkpoint(model, mean, std, ("a", "b", "c")).save(path)
    back = load_checkpoint(path).model
    assert not back.recompute
    back.recompute = True
    assert all(m.recompute for _, m in back.named_modules() if isinstance(m, DoubleConv)) and back.recompute


def peak_of_a_step(model, shape):
    """The most bytes that arrays of the arena use at one time, in a step without its first page."""
    gc.collect()
    memory.release()
    before = memory.statistics().used
    logits = model(Tensor(np.ones(shape, np.float32)))
    logits.sum().backward()
    return memory.statistics().most - before


def test_recomputation_takes_less_memory():
    shape, peaks = (1, 256, 256, 3), []
    for recompute in (False, True):
        model = UNet(3, 1, base=8, depth=3, recompute=recompute)
        peaks.append(peak_of_a_step(model, shape))
        del model
    assert peaks[1] < 0.85 * peaks[0]           # of both about 10 MB are scratch


def test_a_walk_with_shapes_alone_knows_every_layer():
    model = make(recompute=True)
    rows = {row.name: row.shape for row in model.summary((16, 16)).rows}
    assert rows["first.norm2"] == (1, 16, 16, 4) and rows["down.0.pool"] == (1, 8, 8, 4)
    assert rows["up.1.convs.conv1"] == (1, 16, 16, 4)


def test_a_layer_takes_images_side_by_side():
    layer, rng = nn.Conv2d(5, 2, 3, padding=1), np.random.default_rng(0)
    a, b = (Tensor(rng.standard_normal((1, 4, 6, c)).astype(np.float32)) for c in (3, 2))
    assert_close(layer(a, b).data, layer(functional.concat(a, b)).data, 1e-6)
