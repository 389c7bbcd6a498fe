"""What a net holds and makes of an image, against loops and plain calls of the ops; and the net is left as it was."""


import numpy as np
import pytest

from minunet import UNet
from minunet import functional as F
from minunet import nn
from minunet.checkpoint import Checkpoint
from minunet.errors import UserError
from minunet.inference import probabilities
from minunet.study import net
from minunet.study.net import (
    checkerboard,
    constant_answer,
    constant_input,
    kept_bytes,
    kernels,
    layer_of,
    layers,
    look,
    recorded,
    replaced,
    strongest,
    without_skip,
    words,
)
from tests import naive
from tests.checks import assert_close

NETS = [{}, {"norm": None}, {"padding": "valid", "depth": 1}, {"padding": "valid", "norm": None}, {"size": (12, 20)},
        {"dropout": 0.5, "activation": "elu"}, {"pool": "average", "activation": "leaky_relu"}, {"depth": 3},
        {"up": "nearest"}, {"up": "bilinear", "padding": "valid"}, {"up": "bicubic", "size": (9, 14)},
        {"up": "unpool"}, {"up": "unpool", "padding": "valid", "depth": 1}, {"recompute": True}]


def made(channels=1, classes=1, size=None, **options):
    """A net that nobody trained, in a checkpoint; none of its numbers is 0 or 1, and no probability is quite."""
    rng = np.random.default_rng(5)
    model = UNet(channels, classes, **({"base": 2, "depth": 2, "output": "sigmoid" if classes == 1 else "softmax",
                                        "rng": rng} | options))
    state = model.state_dict()
    model.load_state_dict({name: np.abs(moved) if "var" in name else moved for name, moved in (
        (name, a + rng.normal(0.02, 0.05, a.shape)) for name, a in state.items())})
    return Checkpoint(model, np.full(channels, 0.4, np.float32), np.full(channels, 0.2, np.float32),
                      tuple(f"kind {k}" for k in range(classes)), size)


def picture(height=13, width=18, channels=1, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


def every_vars(model):
    return {name: sorted(vars(module)) for name, module in model.named_modules()}


# Layers


def test_the_layers_have_names_in_the_order_of_the_data():
    model = made(depth=3).model
    assert list(layers(model)) == ["first", "down1", "down2", "bridge", "up1", "up2", "up3", "head"]
    assert layer_of(model, "up1") is model.up[0] and layer_of(model, "bridge") is model.down[-1]
    assert layer_of(model, "up1").convs.conv2.weight.shape[3] == 8        # the deepest of the ways up
    assert list(layers(made(depth=1).model)) == ["first", "bridge", "up1", "head"]


@pytest.mark.parametrize("name", ["up3", "up0", "down2", "", "up.0", "UP1"])
def test_an_unknown_layer_is_refused_with_those_that_there_are(name):
    with pytest.raises(ValueError) as caught:
        layer_of(made().model, name)
    assert str(caught.value) == (f"there is no layer {name!r}; this net has, from the image to the classes, first, "
                                 "down1, bridge, up1, up2, head (up1 is the first way up after the bridge)")


@pytest.mark.parametrize("options, up", [
    ({"pool": "average"}, "2x2 transposed convolution, stride 2"),
    ({"up": "nearest"}, "1x1 convolution, nearest neighbour"), ({"up": "unpool"}, "1x1 convolution, unpooling"),
    ({"up": "bilinear"}, "1x1 convolution, bilinear interpolation"),
    ({"up": "bicubic"}, "1x1 convolution, bicubic interpolation")], ids=str)
def test_every_layer_says_what_it_does(options, up):
    model = made(**options).model
    said = [words(model, name) for name in layers(model)]
    assert said[1] == f"2x2 {model.config['pool']}-pooling; two 3x3 convolutions" and said[-1].startswith("1x1")
    assert said[3] == f"{up}; the skip connection beside it; two 3x3 convolutions"


def test_a_way_up_of_another_kernel_is_called_so():
    model = made().model
    model.up[0].up = nn.ConvTranspose2d(8, 4, (3, 4), stride=(2, 1), padding=1)
    assert words(model, "up1").startswith("3x4 transposed convolution, stride 2x1;")


@pytest.mark.parametrize("options", NETS, ids=str)
def test_kernels_are_inputs_by_outputs(options):
    model = made(3, 4, **options).model
    base, transpose = 2 * 2 ** model.config["depth"], model.config["up"] == "transpose"
    assert kernels(model.first)[1].shape == (3, 3, 3, 2)
    assert kernels(layer_of(model, "bridge"))[1].shape == (3, 3, base // 2, base)
    assert kernels(model.up[0])[1].shape == (2 if transpose else 1, 2 if transpose else 1, base, base // 2)
    assert kernels(model.head)[1].shape == (1, 1, 2, 4)


def test_a_kernel_of_a_way_up_is_the_stamp_of_one_number():
    up = made().model.up[0]
    what, weight = kernels(up)
    assert what == "the transposed convolution"
    x = np.zeros((1, 3, 3, 8), np.float32)
    x[0, 1, 2, 5] = 1
    stamped = up.up(x).data - up.up(0 * x).data
    assert_close(stamped[0, 2:4, 4:6], weight[:, :, 5], 1e-6)


# Looking


@pytest.mark.parametrize("channels, classes", [(1, 1), (3, 4)])
@pytest.mark.parametrize("options", NETS, ids=str)
def test_a_look_is_the_prediction_bit_for_bit_and_leaves_the_net_as_it_was(options, channels, classes):
    checkpoint, image = made(channels, classes, **options), picture(channels=channels)
    expected = probabilities(checkpoint, image)
    before, attributes = checkpoint.model.state_dict(), every_vars(checkpoint.model)
    seen = look(checkpoint, image)
    np.testing.assert_array_equal(seen.answer, expected)
    without_skip(seen, checkpoint.model.up[0])
    np.testing.assert_array_equal(probabilities(checkpoint, image), expected)
    assert every_vars(checkpoint.model) == attributes
    assert all((array == before[name]).all() for name, array in checkpoint.model.state_dict().items())


def pooled(maps, kind):
    return naive.pool2d(maps[None].astype(np.float64), (2, 2), (2, 2), (0, 0), kind)[0][0]


def raised(model, up, x, skip):
    """What the way up makes of (H, W, F), with the ops that it says it uses."""
    kind = model.config["up"]
    if kind == "transpose":
        return F.conv_transpose2d(x[None], up.up.weight, up.up.bias, stride=2).data[0]
    x = F.conv2d(x[None], up.reduce.weight, up.reduce.bias).data
    if kind == "unpool":
        _, winners = F.max_pool2d(skip[None], 2, return_winners=True)
        top, left = ((a - b) // 2 for a, b in zip(winners.shape[1:3], x.shape[1:3]))
        winners = np.ascontiguousarray(winners[:, top:top + x.shape[1], left:left + x.shape[2]])
        return F.max_unpool2d(x, winners, 2).data[0]
    return F.resample(x, factor=2, method=kind).data[0]


@pytest.mark.parametrize("options", NETS, ids=str)
def test_the_maps_are_what_the_layers_make_of_each_other(options):
    checkpoint = made(3, 4, **options)
    model, seen = checkpoint.model, look(checkpoint, picture(channels=3))
    names = list(layers(model))
    depth = model.config["depth"]
    for i in range(1, depth + 1):
        above, after_pooling, _ = seen.stages(names[i]).values()
        np.testing.assert_array_equal(above, seen.output(names[i - 1]))
        assert_close(after_pooling, pooled(above, model.config["pool"]), 1e-6)
    for i, up in enumerate(model.up):
        below, after, skip, end = seen.stages(f"up{i + 1}").values()
        encoder = seen.output(names[depth - 1 - i])
        np.testing.assert_array_equal(below, seen.output(names[depth + i]))
        assert_close(after, raised(model, up, below, encoder), 1e-6)
        top, left = ((a - b) // 2 for a, b in zip(encoder.shape, after.shape[:2]))
        np.testing.assert_array_equal(skip, encoder[top:top + after.shape[0], left:left + after.shape[1]])
        assert_close(F.conv2d(np.concatenate([skip, after], 2)[None], up.convs.conv1.weight, up.convs.conv1.bias,
                              padding=up.convs.conv1.geometry.padding).data[0].shape, (*np.array(end.shape[:2]) + (
                                  0 if model.config["padding"] == "same" else 2), end.shape[2]), 0)
    last, logits = seen.stages("head").values()
    assert_close(logits, naive.conv2d(last[None], model.head.weight.data, (1, 1), (0, 0), (1, 1))[0]
                 + model.head.bias.data, 1e-5)
    exponential = np.exp(logits - logits.max(2, keepdims=True))
    if checkpoint.size is None:
        h, w = min(13, len(logits)), min(18, logits.shape[1])
        assert_close(seen.answer[:h, :w], (exponential / exponential.sum(2, keepdims=True))[:h, :w], 1e-5)


def test_the_first_layer_is_given_the_normalised_image_extended_by_its_edge():
    image = picture()
    given = look(made(), image).stages("first")["before: the normalised image"]
    assert_close(given, np.pad((image - np.float32(0.4)) / np.float32(0.2), [(0, 3), (0, 2), (0, 0)], "edge"), 1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (1, 8, 8, 1)])
def test_an_image_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError) as caught:
        look(made(), np.zeros(shape, np.float32))
    assert str(caught.value) == f"image must be (H, W, 1), with as many channels as the net reads; its shape is {shape}"


@pytest.mark.parametrize("options", NETS, ids=str)
def test_what_is_kept_is_known_from_shapes_alone(options):
    checkpoint = made(3, 4, **options)
    for height, width in ((64, 80), (13, 17)):
        seen = look(checkpoint, picture(height, width, 3))
        kept: list[np.ndarray] = []
        for array in sorted((a for call in seen.calls.values() for a in (*call.inputs, call.output)),
                            key=lambda a: -a.nbytes):
            if not any(np.may_share_memory(array, other) for other in kept):
                kept.append(array)
        size = checkpoint.model.input_size(checkpoint.size or (height, width))
        assert sum(array.nbytes for array in kept) == kept_bytes(checkpoint.model, size)


def test_an_image_whose_maps_would_not_fit_is_refused_before_anything_is_computed():
    checkpoint = made(base=64, depth=1)
    # at 40 Mpx: 2 images, 4 maps of 64 channels, and at a quarter of the pixels 64 and 128
    expected = 4 * 40e6 * (2 + 3 * 64 + (64 + 128) / 4) / 2**30
    with pytest.raises(UserError) as caught:
        look(checkpoint, np.broadcast_to(np.float32(0), (8000, 5000, 1)))
    assert str(caught.value) == (
        f"the net reads this image at 8000x5000 px, where its feature maps take {expected:.1f} GiB, and to look at "
        "them all are kept, at most 4 GiB; give a part of the image, or scale it down")


def test_the_size_that_counts_is_that_at_which_the_net_reads_the_image(monkeypatch):
    monkeypatch.setattr(net, "MOST", 50_000)
    with pytest.raises(UserError, match="reads this image at 90x80 px"):
        look(made(), picture(90, 80))
    assert look(made(size=(12, 20)), picture(90, 80)).output("first").shape == (12, 20, 2)


def test_an_error_in_the_net_leaves_it_as_it_was():
    checkpoint = made()
    probabilities(checkpoint, picture())
    attributes = every_vars(checkpoint.model)
    with pytest.raises(RuntimeError, match="broken"), recorded([checkpoint.model.first, checkpoint.model.head]):
        def fail(forward, *inputs, **options):
            raise RuntimeError("broken")
        with replaced(checkpoint.model.up[0].convs, fail):
            probabilities(checkpoint, picture())
    assert every_vars(checkpoint.model) == attributes


def test_replacements_lie_around_each_other():
    head, x = made().model.head, np.ones((1, 2, 2, 2), np.float32)
    plain = head(x).data
    with replaced(head, lambda forward, x: forward(x).data + 1):
        with replaced(head, lambda forward, x: forward(x) * 2):
            np.testing.assert_array_equal(head(x), (plain + 1) * 2)
        np.testing.assert_array_equal(head(x), plain + 1)
    np.testing.assert_array_equal(head(x).data, plain)


def test_the_strongest_channels_are_those_that_vary_most():
    maps = np.zeros((2, 2, 5), np.float32)
    maps[..., 1] = 100                                  # large, but the same everywhere
    maps[0, 0, 2], maps[0, 0, 4], maps[0, 0, 3] = 1, -3, 1
    assert strongest(maps, 3).tolist() == [4, 2, 3]
    assert strongest(maps, 9).tolist() == [4, 2, 3, 0, 1]


# The way up


def test_the_answer_of_a_transposed_convolution_to_a_constant():
    up = made().model.up[1]
    constant = np.array([0.5, -1, 2, 0.25], np.float32)
    answer = constant_answer(up, constant)
    w, b = up.up.weight.data.astype(np.float64), up.up.bias.data
    assert answer.shape == (8, 8, 2)
    for i, j, c in np.ndindex(answer.shape):
        expected = b[c] + sum(w[i % 2, j % 2, c, f] * constant[f] for f in range(4))
        assert answer[i, j, c] == pytest.approx(expected, abs=1e-6)


def test_the_checkerboard_by_loops():
    answer = constant_answer(made().model.up[0], np.ones(8, np.float32)).astype(float)
    pattern = level = 0.0
    for c in range(answer.shape[2]):
        values = [answer[i, j, c] for i, j in np.ndindex(answer.shape[:2])]
        mean = sum(values) / len(values)
        pattern += sum((v - mean) ** 2 for v in values) / len(values)
        level += mean ** 2
    assert checkerboard(answer) == pytest.approx((pattern / level) ** 0.5, rel=1e-9) and checkerboard(answer) > 0.05


def test_the_checkerboard_of_known_patterns():
    stripes = np.tile([[1.0, 3.0]], (4, 2))[..., None]
    assert [checkerboard(scale * stripes) for scale in (1, -1, 1e-20, 1e20)] == pytest.approx([0.5] * 4)
    assert checkerboard(np.full((4, 4, 3), 7.0)) == checkerboard(np.zeros((4, 4, 3))) == 0
    assert checkerboard(stripes - 2) == float("inf")
    # one flat output of the same level halves the square
    assert checkerboard(np.concatenate([stripes, np.full((4, 4, 1), 2.0)], 2)) == pytest.approx(0.5 / 2**0.5)


@pytest.mark.parametrize("up", ["nearest", "bilinear", "bicubic"])
def test_an_interpolation_makes_no_checkerboard(up):
    assert checkerboard(constant_answer(made(up=up).model.up[0], np.linspace(-1, 2, 8))) < 1e-6


def test_unpooling_makes_one():
    """In every window one pixel has the number, three are 0."""
    assert checkerboard(constant_answer(made(up="unpool").model.up[0], np.linspace(-1, 2, 8))) == pytest.approx(3**0.5)


def test_a_kernel_of_equal_elements_makes_none():
    up = made().model.up[0]
    up.up.weight.data[...] = up.up.weight.data[:1, :1]
    assert checkerboard(constant_answer(up, np.linspace(-1, 2, 8))) < 1e-6


def test_the_constant_is_one_or_the_mean_over_the_image():
    checkpoint = made()
    seen, (first, _) = look(checkpoint, picture()), checkpoint.model.up
    np.testing.assert_array_equal(constant_input(first), np.ones(8))
    assert_close(constant_input(first, seen), seen.output("bridge").mean((0, 1)), 1e-6)


# The skip connection


@pytest.mark.parametrize("options", NETS, ids=str)
@pytest.mark.parametrize("which", [0, -1])
def test_zeros_for_a_skip_connection_are_weights_of_zero_behind_it(options, which):
    checkpoint, image = made(1, 3, **options), picture()
    up = checkpoint.model.up[which]
    found = without_skip(look(checkpoint, image), up)
    conv = up.convs.conv1
    conv.weight.data[:, :, :conv.weight.shape[2] // 2] = 0
    assert found.change > 1e-3
    assert_close(found.answer, probabilities(checkpoint, image), 1e-5)


def test_the_mean_for_a_skip_connection_is_a_bias_behind_it():
    checkpoint, image = made(1, 3, padding="valid", norm=None), picture()
    up, seen = checkpoint.model.up[1], look(checkpoint, image)
    found = without_skip(seen, up, mean=True)
    assert np.abs(found.answer - without_skip(seen, up).answer).max() > 1e-2
    conv, skip = up.convs.conv1, seen.stages("up2")["the skip connection beside it"]
    half = conv.weight.shape[2] // 2
    conv.bias.data += np.einsum("klcf,c->f", conv.weight.data[:, :, :half], skip.mean((0, 1)))
    conv.weight.data[:, :, :half] = 0
    assert_close(found.answer, probabilities(checkpoint, image), 1e-5)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_figures_by_loops(classes):
    checkpoint, image = made(1, classes), picture(7, 9)
    seen = look(checkpoint, image)
    found = without_skip(seen, checkpoint.model.up[0])
    changed, moved = 0, 0.0
    for i, j in np.ndindex(7, 9):
        a, b = seen.answer[i, j], found.answer[i, j]
        changed += (a[0] >= 0.5) != (b[0] >= 0.5) if classes == 1 else int(np.argmax(a)) != int(np.argmax(b))
        moved += sum(abs(float(p) - float(q)) for p, q in zip(a, b))
    assert found.classes == pytest.approx(changed / 63) and found.change == pytest.approx(moved / 63 / classes)
    assert found.change > 1e-3
