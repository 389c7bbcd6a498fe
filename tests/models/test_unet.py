"""The U-Net: the figures that pin its architecture, sizes, options, gradients, and training beside PyTorch."""

import gc
import itertools
import weakref

import numpy as np
import pytest

from minunet import Tensor, UNet, functional, gradcheck, nn, no_grad, optim
from minunet.interop import from_torch, to_torch
from minunet.models.unet import CHOICES
from tests.checks import assert_close


def count(model):
    return sum(p.data.size for p in model.parameters())


def small(**options):
    """A net of a few hundred weights."""
    return UNet(**{"in_channels": 2, "classes": 3, "base": 2, "depth": 2, **options})


def run(model, size, batch=1, seed=0):
    x = np.random.default_rng(seed).standard_normal((batch, *size, model.config["in_channels"]))
    return model(Tensor(x.astype(model.parameters()[0].dtype)))


def test_the_papers_net():
    model = UNet(in_channels=1, classes=2, base=64, depth=4, padding="valid", norm=None)
    assert count(model) == 31_030_658
    assert model.output_size((572, 572)) == (388, 388)
    assert model.summary((572, 572)).rows[-1].shape == (1, 388, 388, 2)


def test_the_net_with_same_padding_and_batch_norm():
    assert count(UNet(in_channels=3, classes=2)) == 31_037_698


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (8, 8), (9, 17), (16, 5)])
def test_same_takes_any_size_and_gives_it_back(size):
    assert run(small(), size, batch=2).shape == (2, *size, 3)


def test_same_extends_bottom_and_right_by_the_edge_and_crops():
    model = small(norm=None).eval()
    x = np.random.default_rng(0).standard_normal((1, 6, 9, 2)).astype(np.float32)
    extended = np.pad(x, [(0, 0), (0, 2), (0, 3), (0, 0)], mode="edge")
    np.testing.assert_array_equal(model(Tensor(x)).data, model(Tensor(extended)).data[:, :6, :9])


def test_valid_sizes_at_depth_4():
    """188 is the smallest and gives 4; from there every 16th; each axis by itself."""
    model = UNet(1, 1, base=1, padding="valid", norm=None)
    assert [model.output_size((n, 188)) for n in (188, 204, 572)] == [(4, 4), (20, 4), (388, 4)]
    for n in range(1, 260):
        if n >= 188 and (n - 188) % 16 == 0:
            assert model.output_size((188, n)) == (4, n - 184)
        else:
            with pytest.raises(ValueError, match="does not fit the pooling"):
                model.output_size((188, n))


@pytest.mark.parametrize("size, nearest", [
    ((572, 570), "width 570: 556 or 572"), ((200, 188), "height 200: 188 or 204"), ((3, 188), "height 3: 188"),
    ((187, 189), "height 187: 188, width 189: 188 or 204"),
])
def test_a_valid_size_that_does_not_fit_is_refused_with_the_nearest(size, nearest):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} px .* sizes that do: {nearest}$"):
        UNet(1, 1, base=1, padding="valid", norm=None)(Tensor(np.zeros((1, *size, 1), np.float32)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_valid_logits_have_the_announced_size(depth):
    model = small(padding="valid", depth=depth)
    fits = [n for n in range(1, 120) if fits_valid(model, n)][:3]
    assert len(fits) == 3
    for h, w in itertools.product(fits, fits[:2]):
        assert run(model, (h, w)).shape == (1, *model.output_size((h, w)), 3)


def fits_valid(model, n):
    try:
        return bool(model.output_size((n, n)))
    except ValueError:
        return False


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_input_size_is_the_smallest_image_that_gives_enough(depth):
    """Against trying every size, one axis at a time."""
    model = small(padding="valid", depth=depth)
    fits = next(n for n in range(1, 200) if fits_valid(model, n))
    answered = {n: model.output_size((n, fits))[0] for n in range(1, 200) if fits_valid(model, n)}
    for wanted in range(1, 90):
        smallest = min(n for n, out in answered.items() if out >= wanted)
        assert model.input_size((wanted, 1)) == (smallest, fits)
        assert model.input_size((1, wanted)) == (fits, smallest)
        assert model.input_size(wanted) == (smallest, smallest)


def test_input_size_of_the_papers_net_and_of_same_padding():
    paper = UNet(1, 2, base=1, padding="valid", norm=None)
    assert paper.input_size((388, 388)) == (572, 572) and paper.input_size((389, 4)) == (588, 188)
    for size in [(1, 1), (5, 17)]:
        assert small().input_size(size) == size
    for padding in CHOICES["padding"]:
        with pytest.raises(ValueError, match="size"):
            small(padding=padding).input_size((0, 5))


OPTIONS = [
    dict(zip(("padding", "norm", "pool", "up"), values))
    for values in itertools.product(CHOICES["padding"], CHOICES["norm"], CHOICES["pool"], CHOICES["up"])
    if (values[2], values[3]) != ("average", "unpool")
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(str(v) for v in options.values()))
def test_every_combination_gives_gradients_and_is_walked_with_the_same_shapes(options):
    model = small(dropout=0.1, **options)
    size = (48, 44) if options["padding"] == "valid" else (10, 7)
    y = run(model, size)
    summary = model.summary(size)
    assert y.shape == (1, *model.output_size(size), 3) == summary.rows[-1].shape
    functional.cross_entropy(y, np.zeros(y.shape[:3], int)).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.shape == p.shape and np.isfinite(p.grad).all(), name


@pytest.mark.parametrize("options", [
    dict(activation="elu", pool="average", up=up, norm=norm, padding=padding)
    for up, norm, padding in [("transpose", "batch", "same"), ("transpose", None, "valid"),
                              ("bilinear", "batch", "same"), ("bicubic", None, "same"), ("nearest", None, "valid")]
], ids=lambda options: f"{options['up']}-{options['norm']}-{options['padding']}")
def test_gradient_of_the_whole_net_with_smooth_activations(options):
    """ELU's slope is continuous, and no winner is chosen anywhere: one step fits all."""
    assert_whole_gradient(small(**options), (44, 44) if options["padding"] == "valid" else (5, 7))


@pytest.mark.parametrize("options", [dict(), dict(activation="leaky_relu", norm=None), dict(up="unpool")],
                         ids=["relu", "leaky_relu", "unpool"])
def test_gradient_of_the_whole_net_between_its_kinks(options):
    """gradcheck makes the step smaller until no sign and no winner changes along it."""
    assert_whole_gradient(small(**options), (5, 7), step=1e-7)


def assert_whole_gradient(model, size, **options):
    """Image and every parameter, in float64, against finite differences."""
    model.astype(np.float64)
    parameters = model.parameters()
    rng = np.random.default_rng(3)
    size_out = model.output_size(size)
    target = rng.integers(3, size=(2, *size_out))

    slots = [(module, name) for _, module in model.named_modules()
             for name, value in vars(module).items() if isinstance(value, nn.Parameter)]

    def loss(x, *values):
        """The net as a function of the image and of every parameter: the given Tensors in the parameters' places."""
        for (module, name), value in zip(slots, values):
            setattr(module, name, value)
        logits = model(x)
        return functional.cross_entropy(logits, target) + logits.mean() * 0.1

    x = rng.standard_normal((2, *size, 2))
    report = gradcheck(loss, [x, *(p.data for p in parameters)], directions=1, **options)
    assert report.comparisons == 1 + len(parameters)


def test_dropout_is_after_pooling_so_the_skip_is_whole():
    """With everything but the skip dropped (almost surely), the first skip still reaches the logits."""
    model = small(depth=1, norm=None, dropout=0.999, classes=1)
    model.up[0].dropout.p = 0.0
    a, b = (run(model, (8, 8), seed=seed).data for seed in (1, 2))
    assert not np.array_equal(a, b)


def test_dropout_stands_behind_the_pooling_and_at_the_end_of_a_decoder_level():
    rows = [row.name for row in small(depth=1, dropout=0.9).summary((8, 8)).rows]
    assert rows.index("down.0.pool") + 1 == rows.index("down.0.dropout") == rows.index("down.0.convs.conv1") - 1
    assert rows.index("up.0.convs.norm2") + 1 == rows.index("up.0.dropout") == rows.index("head") - 1


@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_an_image_takes_the_nets_dtype(dtype):
    model = small()
    x = (np.random.default_rng(0).random((1, 8, 8, 2)) * 9).astype(dtype)
    assert model.predict(x).dtype == np.float32
    np.testing.assert_array_equal(model.predict(x), model.predict(x.astype(np.float32)))
    loss = functional.bce_with_logits(model(Tensor(x)), np.zeros((1, 8, 8, 3)))
    loss.backward()
    assert model.head.weight.grad.dtype == np.float32


def test_predict_applies_the_output_and_leaves_the_mode_alone():
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 2)).astype(np.float32)
    for output in CHOICES["output"]:
        model = small(output=output, dropout=0.5)
        logits = model.eval()(Tensor(x)).data
        model.train()
        p = model.predict(x)
        assert model.training and model.down[0].dropout.training
        expected = {"linear": logits, "sigmoid": 1 / (1 + np.exp(-logits)),
                    "softmax": np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)}[output]
        assert_close(p, expected, 1e-6)
        np.testing.assert_array_equal(p, model.predict(x))


def test_the_same_generator_makes_the_same_net():
    a, b, c = (small(rng=np.random.default_rng(seed)).state_dict() for seed in (5, 5, 6))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["first.conv1.weight"], c["first.conv1.weight"])


@pytest.mark.parametrize("activation, gain", [("relu", 2**0.5), ("leaky_relu", 1.4141), ("elu", 1.2452)])
def test_convolutions_are_initialised_with_their_activations_gain_and_the_head_with_1(activation, gain):
    state = UNet(64, 64, base=64, depth=1, activation=activation).state_dict()
    assert abs(state["first.conv1.weight"].std() * 24 / gain - 1) < 0.02       # fan-in 9 * 64
    assert abs(state["head.weight"].std() * 8 - 1) < 0.05


def test_the_output_is_a_sigmoid_unless_chosen_otherwise():
    assert UNet(1, 1, base=1, depth=1).config["output"] == "sigmoid"


@pytest.mark.parametrize("options, message", [
    (dict(base=0), "base must be an int of at least 1; got 0"), (dict(depth=1.5), "depth must be an int"),
    (dict(classes=True), "classes must be an int"), (dict(padding="full"), "padding must be one of 'same', 'valid'"),
    (dict(norm="group"), "norm must be one of 'batch', None"), (dict(up="deconv"), "up must be one of 'transpose', "),
    (dict(activation="gelu"), "activation must be one of"), (dict(pool="sum"), "pool must be one of 'max', 'average'"),
    (dict(output="tanh"), "output must be one of"), (dict(pool="average", up="unpool"), "needs pool='max'"),
    (dict(classes=1, output="softmax"), "always 1"), (dict(dropout=1), "below 1; got 1"),
])
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (8, 8, 2), (1, 2, 8, 8)])
def test_an_image_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"UNet: x must be \(N, H, W, 2\), channels last"):
        small()(Tensor(np.zeros(shape, np.float32)))


def test_summary_counts_what_the_net_has_and_does():
    model = small(padding="same", norm="batch", base=4, depth=1, in_channels=3, classes=2)
    summary = model.summary((10, 6), batch=2)
    assert summary.parameters == sum(row.parameters for row in summary.rows) == count(model)
    shapes = {row.name: row.shape for row in summary.rows}
    assert shapes["down.0.pool"] == (2, 5, 3, 4) and shapes["up.0.convs.conv1"] == (2, 10, 6, 4)
    # 3x3 convolutions at both sizes, the 2x2 transposed one at the lower, the head
    full, half = 2 * 10 * 6, 2 * 5 * 3
    assert summary.multiply_adds == (full * 9 * (3 * 4 + 4 * 4) + half * 9 * (4 * 8 + 8 * 8) + half * 4 * 8 * 4
                                     + full * 9 * (8 * 4 + 4 * 4) + full * 4 * 2)
    assert summary.activation_bytes == sum(4 * int(np.prod(row.shape)) for row in summary.rows)
    text = str(summary)
    assert "up.0.convs.conv2" in text and "forecast for training with Adam" in text


def test_a_forward_of_the_large_net_takes_48_and_193_giga_multiply_adds():
    model = UNet(3, 2)
    assert [round(model.summary((n, n)).multiply_adds / 1e9) for n in (256, 512)] == [48, 193]


def test_memory_returns_without_the_garbage_collector():
    """A step's Tensors and arrays are gone when the loss is, also when no backward ran."""
    model = small(up="unpool", dropout=0.1)
    gc.disable()
    try:
        for backward in (True, False):
            y = run(model, (8, 8))
            alive = [weakref.ref(y), weakref.ref(y.data)]
            if backward:
                y.sum().backward()
            del y
            assert all(reference() is None for reference in alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-8), (np.float32, 1e-3)])
@pytest.mark.parametrize("options", [dict(), dict(padding="valid", norm=None)], ids=["same-batch", "valid"])
def test_20_steps_of_training_equal_pytorchs(torch, dtype, tolerance, options):
    """The same weights, the same batches, Adam: the losses agree step by step, in the end so do all weights."""
    from benchmarks import torch_unet

    config = dict(in_channels=1, classes=1, base=4, depth=2, **options)
    ours = UNet(**config, rng=np.random.default_rng(7)).astype(dtype)
    theirs = torch_unet.UNet(**config).to(getattr(torch, np.dtype(dtype).name))
    state = ours.state_dict()
    theirs.load_state_dict({k: torch.tensor(v) for k, v in to_torch(state).items()})
    optimizers = optim.Adam(ours.parameters(), lr=1e-3), torch.optim.Adam(theirs.parameters(), lr=1e-3)
    rng = np.random.default_rng(1)
    size = (44, 52) if options else (32, 24)
    losses: list[list[float]] = [[], []]
    for _ in range(20):
        x = rng.standard_normal((3, *size, 1)).astype(dtype)
        y = (rng.random((3, *ours.output_size(size), 1)) < 0.3).astype(dtype)
        loss = functional.bce_with_logits(ours(Tensor(x)), y)
        other = torch.nn.functional.binary_cross_entropy_with_logits(
            theirs(torch.tensor(x).permute(0, 3, 1, 2)), torch.tensor(y).permute(0, 3, 1, 2))
        for optimizer, value, record in zip(optimizers, (loss, other), losses):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            record.append(value.item())
    np.testing.assert_allclose(losses[0], losses[1], rtol=tolerance)
    assert losses[0][-1] < losses[0][0]
    back = from_torch({k: v.numpy() for k, v in theirs.state_dict().items()})
    final = ours.state_dict()
    assert back.keys() == final.keys()
    if dtype == np.float64:
        for name, array in final.items():
            assert_close(array, back[name], 1e-7, name)


def test_prediction_after_training_uses_running_statistics():
    model = small(dropout=0.3)
    x = np.random.default_rng(0).standard_normal((4, 8, 8, 2)).astype(np.float32)
    before = model.predict(x)
    with no_grad():
        model(Tensor(3 * x + 1))            # a forward pass in training mode moves the running statistics
    assert not np.allclose(before, model.predict(x))
    # in prediction an image's result does not depend on the others of its batch
    assert_close(model.predict(x)[:1], model.predict(x[:1]), 1e-6)
