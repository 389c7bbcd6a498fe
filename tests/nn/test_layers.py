"""Layers: equal to their functions, shapes and costs known without running, initial weights, batch norm, dropout."""

import itertools
import math
from typing import Callable, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minunet import Geometry, Tensor, functional, gradcheck, nn, no_grad
from minunet.backend import to_device
from minunet.nn.init import GAINS, he_normal, transposed_fan_in
from tests.checks import assert_close
from tests.peers import PRECISIONS, first, last
from tests.strategies import cases, geometries, pairs, seeds


class Layer(NamedTuple):
    """How to make a layer, its function of (layer, *inputs), the channels of its inputs, what its weights are."""

    make: Callable[..., nn.Module]
    function: Callable[..., Tensor]
    inputs: tuple[int, ...] = (3,)
    state: dict[str, tuple[int, ...]] = {}


LAYERS = {
    "Conv2d": Layer(
        lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), rng=np.random.default_rng(1)),
        lambda m, x: functional.conv2d(x, m.weight, m.bias, (2, 1), (1, 2), (1, 2)),
        state={"weight": (3, 2, 3, 5), "bias": (5,)}),
    "Conv2d without bias": Layer(
        lambda: nn.Conv2d(3, 4, 1, bias=False), lambda m, x: functional.conv2d(x, m.weight),
        state={"weight": (1, 1, 3, 4)}),
    "ConvTranspose2d": Layer(
        lambda: nn.ConvTranspose2d(3, 5, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(0, 2), dilation=(1, 2)),
        lambda m, x: functional.conv_transpose2d(x, m.weight, m.bias, (2, 3), (1, 0), (0, 2), (1, 2)),
        state={"weight": (3, 2, 5, 3), "bias": (5,)}),
    "ConvTranspose2d without bias": Layer(
        lambda: nn.ConvTranspose2d(3, 2, 2, stride=2, bias=False),
        lambda m, x: functional.conv_transpose2d(x, m.weight, stride=2), state={"weight": (2, 2, 2, 3)}),
    "BatchNorm2d": Layer(
        lambda: nn.BatchNorm2d(3, eps=1e-3), lambda m, x: functional.batch_norm(x, m.gamma, m.beta, 1e-3)[0],
        state={"gamma": (3,), "beta": (3,), "running_mean": (3,), "running_var": (3,)}),
    "ReLU": Layer(nn.ReLU, lambda m, x: functional.relu(x)),
    "LeakyReLU": Layer(lambda: nn.LeakyReLU(0.2), lambda m, x: functional.leaky_relu(x, 0.2)),
    "ELU": Layer(lambda: nn.ELU(0.7), lambda m, x: functional.elu(x, 0.7)),
    "Sigmoid": Layer(nn.Sigmoid, lambda m, x: functional.sigmoid(x)),
    "Softmax": Layer(nn.Softmax, lambda m, x: functional.softmax(x)),
    "Dropout": Layer(lambda: nn.Dropout(0.3, np.random.default_rng(5)),
                     lambda m, x: functional.dropout(x, 0.3, np.random.default_rng(5))),
    "MaxPool2d": Layer(lambda: nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0)),
                       lambda m, x: functional.max_pool2d(x, (3, 2), (2, 1), (1, 0))),
    "MaxPool2d by 2": Layer(lambda: nn.MaxPool2d(2), lambda m, x: functional.max_pool2d(x, 2)),
    "AvgPool2d": Layer(lambda: nn.AvgPool2d(3, stride=2, padding=1), lambda m, x: functional.avg_pool2d(x, 3, 2, 1)),
    "AvgPool2d by 2": Layer(lambda: nn.AvgPool2d(2), lambda m, x: functional.avg_pool2d(x, 2)),
    "Resample nearest": Layer(lambda: nn.Resample(3), lambda m, x: functional.resample(x, factor=3)),
    "Resample bicubic": Layer(lambda: nn.Resample(2, "bicubic"),
                              lambda m, x: functional.resample(x, factor=2, method="bicubic")),
    "Flatten": Layer(nn.Flatten, lambda m, x: functional.flatten(x)),
    "Concat": Layer(nn.Concat, lambda m, a, b: functional.concat(a, b), (3, 4)),
    "Pad": Layer(lambda: nn.Pad((4, 8)),
                 lambda m, x: functional.pad(x, (0, -x.shape[1] % 4, 0, -x.shape[2] % 8), "edge")),
}
EACH_LAYER = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
SIZES = pytest.mark.parametrize("size", [(6, 8), (7, 5), (13, 4)])


def images(size, *channels, dtype=np.float32, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, *size, c)).astype(dtype) for c in channels]


def test_every_layer_is_in_the_tables():
    made = {type(layer.make()) for layer in LAYERS.values()} | {nn.Linear, nn.CenterCrop, nn.Crop, nn.MaxUnpool2d}
    exported = {value for name in nn.__all__ if isinstance(value := getattr(nn, name), type)}
    assert made | {nn.Module, nn.Sequential} == {t for t in exported if issubclass(t, nn.Module)}


@EACH_LAYER
@SIZES
def test_a_layer_equals_its_function(layer, size):
    module, inputs = layer.make(), list(map(Tensor, images(size, *layer.inputs)))
    assert {name: array.shape for name, array in module.state_dict().items()} == layer.state
    expected, y = layer.function(module, *inputs), module(*inputs)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y.data, expected.data)


@EACH_LAYER
@SIZES
def test_a_placeholder_gets_the_shape_that_running_gives(layer, size):
    arrays = images(size, *layer.inputs)
    for module in (layer.make(), layer.make().eval()):
        walked = module(*(nn.Placeholder(a.shape) for a in arrays))
        assert type(walked) is nn.Placeholder
        assert walked.shape == module(*map(Tensor, arrays)).shape
        assert all(type(n) is int for n in walked.shape)


@EACH_LAYER
def test_gradients_of_a_layer_and_its_parameters_equal_finite_differences(layer):
    module = layer.make().astype(np.float64)
    names = [name for name, _ in module.named_parameters()]
    arrays = images((5, 6), *layer.inputs, dtype=np.float64)

    def f(*tensors):
        for name, t in zip(names, tensors[len(arrays):], strict=True):
            setattr(module, name, t)
        if isinstance(module, nn.Dropout):
            module.rng = np.random.default_rng(0)
        return module(*tensors[:len(arrays)])

    gradcheck(f, arrays + [p.data for p in module.parameters()])


@given(cases(), st.booleans(), seeds)
@settings(max_examples=30)
def test_convolutions_of_any_geometry(case, biased, seed):
    """Both layers against their functions; shapes without running; one multiply-add for each product of the sums."""
    g, rng = case.geometry, np.random.default_rng(seed)
    x, _, y = map(Tensor, case.arrays(np.float32))
    extra = tuple((n + 2 * p - e) % s for n, p, e, s in zip(case.size, g.padding, g.extent, g.stride))
    down = nn.Conv2d(case.channels, case.filters, g.kernel, g.stride, g.padding, g.dilation, biased, rng=rng)
    up = nn.ConvTranspose2d(case.filters, case.channels, g.kernel, g.stride, g.padding, extra, g.dilation, biased,
                            rng=rng)
    assert (down.bias is not None) == (up.bias is not None) == biased
    assert down.weight.shape == up.weight.shape == (*g.kernel, case.channels, case.filters)
    bias = rng.standard_normal(case.channels).astype(np.float32)
    if biased:
        up.bias.data[...] = bias
    expected = functional.conv_transpose2d(y, up.weight, up.bias, g.stride, g.padding, extra, g.dilation)
    np.testing.assert_array_equal(up(y).data, expected.data)
    windows = range(case.batch), *map(range, y.shape[1:3])
    products = sum(1 for _ in itertools.product(*windows, *map(range, (*g.kernel, case.channels, case.filters))))
    for layer, given_, made in ((down, x, y), (up, y, x)):
        shape = layer(nn.Placeholder(given_.shape)).shape
        assert shape == made.shape == layer(given_).shape
        assert layer.multiply_adds(shape) == products


def test_multiply_adds_of_other_layers():
    layer = nn.Linear(7, 3)
    assert layer(nn.Placeholder((5, 7))).shape == layer(Tensor(np.ones((5, 7), np.float32))).shape == (5, 3)
    assert layer.multiply_adds((5, 3)) == sum(1 for _ in itertools.product(range(5), range(7), range(3)))
    for layer in LAYERS.values():
        if "Conv" not in type(layer.make()).__name__:
            assert layer.make().multiply_adds((2, 6, 6, 3)) == 0


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_its_function(bias):
    layer = nn.Linear(4, 3, bias=bias)
    if bias:
        layer.bias.data[...] = [1, 2, 3]
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_array_equal(layer(Tensor(x)).data, functional.linear(x, layer.weight, layer.bias).data)
    assert {name: a.shape for name, a in layer.state_dict().items()} == (
        {"weight": (4, 3), "bias": (3,)} if bias else {"weight": (4, 3)})


@given(geometries(max_dilation=1), pairs(0, 5), seeds)
@settings(max_examples=30)
def test_unpooling_puts_maxima_back(geometry, more, seed):
    kernel, stride = geometry.kernel, geometry.stride
    padding = tuple(min(p, k - 1) for p, k in zip(geometry.padding, kernel))
    x = np.random.default_rng(seed).standard_normal((2, *(k + n for k, n in zip(kernel, more)), 3))
    pool, unpool = nn.MaxPool2d(kernel, stride, padding), nn.MaxUnpool2d(kernel, stride, padding)
    y, winners = pool.with_winners(Tensor(x))
    expected, expected_winners = functional.max_pool2d(x, kernel, stride, padding, return_winners=True)
    np.testing.assert_array_equal(y.data, expected.data)
    np.testing.assert_array_equal(winners, expected_winners)
    np.testing.assert_array_equal(pool(Tensor(x)).data, expected.data)
    walked, none = pool.with_winners(nn.Placeholder(x.shape))
    assert walked.shape == y.shape and none is None
    try:
        back = functional.max_unpool2d(y, winners, kernel, stride, padding)
    except ValueError:                                      # an image of such padding has no pixel
        return
    np.testing.assert_array_equal(unpool(y, winners).data, back.data)
    assert unpool(walked, none).shape == back.shape


@pytest.mark.parametrize("make, function", [
    (nn.CenterCrop, lambda x, like: functional.center_crop(x, like.shape[1:3])),
    (nn.Crop, lambda x, like: functional.crop(x, 0, 0, like.shape[1:3])),
])
@pytest.mark.parametrize("like", [(7, 6), (5, 6), (4, 3), (1, 1)])
def test_crops_take_the_second_inputs_size(make, function, like):
    x, target = map(Tensor, (images((7, 6), 3)[0], images(like, 2)[0]))
    y = make()(x, target)
    np.testing.assert_array_equal(y.data, function(x, target).data)
    walked = make()(nn.Placeholder(x.shape), nn.Placeholder(target.shape))
    assert walked.shape == y.shape == (2, *like, 3)


@given(pairs(1, 9), pairs(1, 4))
@settings(max_examples=30)
def test_crop_undoes_pad(size, multiple):
    x = Tensor(images(size, 2)[0])
    padded = nn.Pad(multiple)(x)
    assert all(n % m == 0 and 0 <= n - s < m for n, m, s in zip(padded.shape[1:3], multiple, size))
    np.testing.assert_array_equal(nn.Crop()(padded, x).data, x.data)
    np.testing.assert_array_equal(padded.data[:, size[0]:, :size[1]], np.broadcast_to(
        x.data[:, -1:], (2, padded.shape[1] - size[0], size[1], 2)))


# initial weights

BIG = [
    ("3x3", lambda **o: nn.Conv2d(32, 64, 3, **o), 9 * 32, math.sqrt(2)),
    ("5x1", lambda **o: nn.Conv2d(64, 32, (5, 1), **o), 5 * 64, math.sqrt(2)),
    ("linear", lambda **o: nn.Linear(100, 200, **o), 100, math.sqrt(2)),
    ("transposed 2x2 by 2", lambda **o: nn.ConvTranspose2d(64, 64, 2, stride=2, **o), 64, 1),
    ("transposed 3x3 by 2", lambda **o: nn.ConvTranspose2d(64, 32, 3, stride=2, **o), 64 * 2 * 2, 1),
    ("transposed 3x3 by 1", lambda **o: nn.ConvTranspose2d(64, 32, 3, **o), 64 * 9, 1),
    ("transposed 5x2 by 2x3", lambda **o: nn.ConvTranspose2d(64, 64, (5, 2), stride=(2, 3), **o), 64 * 3 * 1, 1),
]
WEIGHTS = pytest.mark.parametrize("make, fan_in, gain", [case[1:] for case in BIG], ids=[case[0] for case in BIG])


@WEIGHTS
@pytest.mark.parametrize("own_gain", [None, 0.5, GAINS["elu"]])
def test_weights_are_normal_with_the_variance_of_he(make, fan_in, gain, own_gain):
    layer = make(rng=np.random.default_rng(3), **({} if own_gain is None else {"gain": own_gain}))
    w = layer.weight.data.astype(np.float64)
    sigma = (gain if own_gain is None else own_gain) / math.sqrt(fan_in)
    assert abs(w.std() / sigma - 1) < 0.03
    assert abs(w.mean()) < 4 * sigma / math.sqrt(w.size)
    z = np.sort(w.ravel()) / sigma
    share = np.searchsorted(z, [-2, -1, 0, 1, 2]) / w.size
    np.testing.assert_allclose(share, [0.0228, 0.1587, 0.5, 0.8413, 0.9772], atol=0.02)
    assert layer.weight.dtype == np.float32 and not layer.bias.data.any()


@given(geometries(max_dilation=1), st.integers(1, 5))
def test_the_fan_in_of_a_transposed_convolution_is_the_most_products_that_a_pixel_sums_up(geometry, filters):
    """Counted along each axis: the kernel positions of neighbouring windows that meet in one pixel."""
    most = []
    for k, s in zip(geometry.kernel, geometry.stride):
        hits: dict[int, int] = {}
        for o, position in itertools.product(range(k + 2), range(k)):
            hits[o * s + position] = hits.get(o * s + position, 0) + 1
        most.append(max(hits.values()))
    assert transposed_fan_in(geometry, filters) == filters * most[0] * most[1]


@WEIGHTS
def test_weights_come_from_the_generator_alone(make, fan_in, gain):
    one, same, other = (make(rng=np.random.default_rng(seed)).weight.data for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    rng = np.random.default_rng(1)
    assert (make(rng=rng).weight.data != make(rng=rng).weight.data).any()


def test_activations_keep_their_size_through_many_layers():
    rng = np.random.default_rng(0)
    for name, activation in (("relu", functional.relu), ("leaky_relu", functional.leaky_relu), ("elu", functional.elu)):
        x = activation(rng.standard_normal((64, 512), np.float32))
        with no_grad():
            for _ in range(8):
                x = activation(nn.Linear(512, 512, gain=GAINS[name], rng=rng)(x))
        assert 0.5 < float((x.data**2).mean()) * GAINS[name]**2 < 2, name


@pytest.mark.parametrize("name, f", [
    ("relu", functional.relu), ("leaky_relu", functional.leaky_relu), ("elu", functional.elu), ("linear", lambda x: x),
])
def test_gains_are_what_keeps_the_second_moment(name, f):
    z = np.linspace(-12, 12, 200_001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    y = f(Tensor(z)).data
    assert abs(GAINS[name] - 1 / math.sqrt((y * y * density).sum() * (z[1] - z[0]))) < 1e-4


def test_he_normal_scales_a_standard_normal():
    w = he_normal((3, 4), 8, 2.0, np.random.default_rng(0))
    z = np.random.default_rng(0).standard_normal((3, 4), dtype=np.float32)
    np.testing.assert_allclose(w, z * 2 / math.sqrt(8), rtol=1e-6)
    assert transposed_fan_in(Geometry(3, stride=2), 5) == 20


# batch norm and dropout

@pytest.mark.parametrize("options", [{}, {"eps": 0.1, "momentum": 0.3}, {"momentum": np.float64(0.1)}])
@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_batch_norm_equals_pytorch_over_several_steps_and_in_prediction(torch, dtype, tolerance, options):
    rng = np.random.default_rng(0)
    ours = nn.BatchNorm2d(3, **options).astype(dtype)
    theirs = torch.nn.BatchNorm2d(3, **options).to(getattr(torch, dtype))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data[...] = rng.uniform(0.5, 1.5, 3)
        q.data = torch.tensor(p.data)
    for step in range(8):
        if step == 5:
            ours.eval()
            theirs.eval()
        x = Tensor((rng.standard_normal((2, 3 + step, 4, 3)) * [1, 5, 0.1] + [0, 3, -1]).astype(dtype),
                   requires_grad=True)
        cotangent = rng.standard_normal(x.shape).astype(dtype)
        leaf = torch.tensor(x.data, requires_grad=True)
        y, expected = ours(x), last(theirs(first(leaf)))
        for tensors in (ours.parameters(), theirs.parameters()):
            for p in tensors:
                p.grad = None
        y.backward(cotangent)
        expected.backward(torch.tensor(cotangent))
        pairs_of = [(y.data, expected), (x.grad, leaf.grad), (ours.gamma.grad, theirs.weight.grad),
                    (ours.beta.grad, theirs.bias.grad), (ours.running_mean, theirs.running_mean),
                    (ours.running_var, theirs.running_var)]
        for a, b in pairs_of:
            assert a.dtype == np.dtype(dtype)
            assert_close(a, b.detach().numpy(), tolerance, f"step {step}")


def test_running_statistics_are_nine_tenths_old_and_one_tenth_of_the_unbiased_batch():
    x = images((4, 5), 3, dtype=np.float64, batch=3)[0]
    layer = nn.BatchNorm2d(3).astype(np.float64)
    mean, var = np.zeros(3), np.ones(3)
    for _ in range(3):
        layer(Tensor(x))
        mean, var = 0.9 * mean + 0.1 * x.mean((0, 1, 2)), 0.9 * var + 0.1 * x.var((0, 1, 2), ddof=1)
        assert_close(layer.running_mean, mean, 1e-14)
        assert_close(layer.running_var, var, 1e-14)
    layer.eval()
    y = layer(Tensor(x)).data
    assert_close(y, (x - mean) / np.sqrt(var + 1e-5), 1e-14)
    assert_close(layer.running_mean, mean, 1e-14)


def test_one_value_a_channel_leaves_the_running_variance_and_gives_no_gradient():
    layer = nn.BatchNorm2d(2)
    x = Tensor(np.array([[[[3.0, -5.0]]]], np.float32), requires_grad=True)
    y = layer(x)
    (y * y + y).sum().backward()
    np.testing.assert_array_equal(y.data, np.zeros((1, 1, 1, 2)))
    np.testing.assert_array_equal(x.grad, np.zeros((1, 1, 1, 2)))
    np.testing.assert_array_equal(layer.running_var, [1, 1])
    np.testing.assert_allclose(layer.running_mean, [0.3, -0.5], rtol=1e-6)


def test_a_constant_channel_gives_no_nan():
    layer = nn.BatchNorm2d(2)
    x = Tensor(np.full((2, 3, 3, 2), 7.0, np.float32), requires_grad=True)
    for _ in range(3):
        (layer(x) ** 2).sum().backward()
    assert np.isfinite(x.grad).all() and np.isfinite(layer.eval()(x).data).all()
    np.testing.assert_allclose(layer.running_var, [0.9**3] * 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.5, 0.1, 0])
def test_dropout_drops_in_training_only_and_draws_only_then(p, dtype):
    rng = np.random.default_rng(0)
    layer = nn.Dropout(p, rng)
    x = Tensor(np.ones((4, 5, 5, 4), dtype))
    start = rng.bit_generator.state
    layer.eval()
    np.testing.assert_array_equal(layer(x).data, x.data)
    layer(nn.Placeholder(x.shape))
    layer.train()(nn.Placeholder(x.shape))
    assert rng.bit_generator.state == start
    y = layer(x).data
    assert set(np.unique(y)) <= {0, dtype(1 / (1 - p))} and y.dtype == dtype
    assert (rng.bit_generator.state == start) == (p == 0) == bool((y == 1).all())
    again = layer(x).data
    assert bool((y != again).any()) == (p > 0)


@pytest.mark.parametrize("make, message", [
    (lambda: nn.Dropout(1.0), "Dropout: p must be at least 0 and below 1; got 1.0"),
    (lambda: nn.Dropout(-0.1), "Dropout: p must be at least 0 and below 1; got -0.1"),
    (lambda: nn.Dropout(math.nan), "Dropout: p must be at least 0 and below 1; got nan"),
    (lambda: nn.Conv2d(3, 4, 0), "kernel must be"),
    (lambda: nn.Conv2d(3, 4, 3, stride=0), "stride must be"),
    (lambda: nn.ConvTranspose2d(3, 4, 2, output_padding=-1), "output_padding must be"),
    (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2, output_padding=2)(nn.Placeholder((1, 2, 2, 3))),
     "output_padding must be below the stride"),
    (lambda: nn.Pad(0), "multiple must be"),
    (lambda: nn.Resample(1.5), "Resample: factor must be an int of at least 1; got 1.5"),
    (lambda: nn.BatchNorm2d(3, momentum=0), "BatchNorm2d: momentum must be above 0 and at most 1; got 0"),
    (lambda: nn.Conv2d(3, 4, 5)(nn.Placeholder((1, 4, 9, 3))), "kernel: its window spans 5 px in height"),
    (lambda: nn.MaxPool2d(3)(nn.Placeholder((1, 4, 2, 3))), "kernel: its window spans 3 px in width"),
    (lambda: nn.Conv2d(3, 4, 3)(Tensor(images((5, 5), 2)[0])), "conv2d: weight has 3 input channels, x has 2"),
    (lambda: nn.BatchNorm2d(4)(Tensor(images((5, 5), 2)[0])), "batch_norm: .* gamma and beta"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_statistics_that_move_before_the_backward_do_not_change_it(device):
    """A prediction's backward uses those of its forward, on every device."""
    rng = np.random.default_rng(0)
    x, other, gradients = rng.standard_normal((2, 4, 4, 3), np.float32), rng.standard_normal((2, 4, 4, 3)) * 5, []
    for place in ("cpu", device):
        for moved in (False, True):
            layer = nn.BatchNorm2d(3).to(place)
            y = layer.eval()(Tensor(to_device(x, place), requires_grad=True))
            if moved:
                layer.train()(Tensor(to_device(other.astype(np.float32), place)))
            (y * y).sum().backward()
            gradients.append(to_device(layer.gamma.grad, "cpu"))
    for gradient in gradients[1:]:
        assert_close(gradient, gradients[0], 1e-5)
