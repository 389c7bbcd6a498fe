"""Module: names and order of what it holds, state dicts, train and eval, dtypes, Sequential."""

import numpy as np
import pytest

from minunet import Tensor, nn


class Scale(nn.Module):
    """A module with parameters of its own, and a buffer."""

    buffer_names = ("seen",)

    def __init__(self, value=2.0):
        self.b = nn.Parameter(np.full(3, value, np.float32))
        self.a = nn.Parameter(np.zeros((2, 3), np.float32))
        self.seen = np.zeros(2, np.float32)
        self.constant = np.ones(3)
        self.tensor = Tensor(np.ones(3))
        self.nothing = None

    def forward(self, x):
        return x * self.b


class Net(nn.Module):
    """Modules as attributes, in lists and tuples, nested and repeated in kind."""

    def __init__(self, rng=None):
        rng = np.random.default_rng(0) if rng is None else rng
        self.stem = nn.Conv2d(3, 4, 3, rng=rng)
        self.levels = [nn.Sequential(nn.Conv2d(4, 4, 1, bias=False, rng=rng), nn.BatchNorm2d(4)), Scale()]
        self.head = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2, rng=rng)))
        self.pair = (nn.ReLU(), Scale(5.0))


NAMES = ["stem.weight", "stem.bias", "levels.0.0.weight", "levels.0.1.gamma", "levels.0.1.beta", "levels.1.b",
         "levels.1.a", "head.1.1.weight", "head.1.1.bias", "pair.1.b", "pair.1.a"]
BUFFERS = ["levels.0.1.running_mean", "levels.0.1.running_var", "levels.1.seen", "pair.1.seen"]


def values(net):
    return {name: array.copy() for name, array in net.state_dict().items()}


def assert_same(state, expected):
    assert list(state) == list(expected)
    for name, array in state.items():
        np.testing.assert_array_equal(array, expected[name])


# what a module holds

def test_parameters_are_found_in_the_order_of_their_definition():
    net = Net()
    named = list(net.named_parameters())
    assert [name for name, _ in named] == NAMES
    assert all(type(p) is nn.Parameter and p.requires_grad for _, p in named)
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in named]
    assert dict(named)["levels.0.1.gamma"] is net.levels[0][1].gamma


def test_modules_are_found_depth_first():
    found = [(name, type(module).__name__) for name, module in Net().named_modules()]
    assert found == [
        ("", "Net"), ("stem", "Conv2d"), ("levels.0", "Sequential"), ("levels.0.0", "Conv2d"),
        ("levels.0.1", "BatchNorm2d"), ("levels.1", "Scale"), ("head", "Sequential"), ("head.0", "ReLU"),
        ("head.1", "Sequential"), ("head.1.0", "Dropout"), ("head.1.1", "Linear"), ("pair.0", "ReLU"),
        ("pair.1", "Scale")]


def test_parameters_and_modules_are_found_in_lists_tuples_and_dicts():
    net = nn.Module()
    net.scales = [nn.Parameter(np.ones(2)), nn.Parameter(np.ones(3))]
    net.parts = {"a": nn.Linear(2, 3, bias=False), "b": nn.Parameter(np.ones(4))}
    net.pair = (nn.ReLU(), nn.Linear(1, 1, bias=False))
    assert [(name, p.shape) for name, p in net.named_parameters()] == [
        ("scales.0", (2,)), ("scales.1", (3,)), ("parts.b", (4,)),
        ("parts.a.weight", (2, 3)), ("pair.1.weight", (1, 1))]
    net.load_state_dict({name: 0 * array for name, array in net.state_dict().items()})
    assert not net.scales[1].data.any() and not net.parts["a"].weight.data.any()


def test_a_parameter_that_two_modules_share_is_listed_once_for_the_optimizer():
    net = nn.Sequential(Scale(), Scale())
    net[1].b = net[0].b
    assert len(net.parameters()) == 3 and len({id(p) for p in net.parameters()}) == 3
    assert set(net.state_dict()) >= {"0.b", "1.b"}


def test_a_bare_layer_has_names_without_a_prefix():
    assert list(nn.BatchNorm2d(2).state_dict()) == ["gamma", "beta", "running_mean", "running_var"]


def test_an_unknown_forward_is_an_error():
    with pytest.raises(TypeError, match="Net has no forward method"):
        Net()(Tensor(np.ones(3)))


# state dicts

def test_a_state_dict_holds_parameters_and_buffers_as_copies():
    net = Net()
    state = net.state_dict()
    assert sorted(state) == sorted(NAMES + BUFFERS)
    before = values(net)
    for array in state.values():
        assert type(array) is np.ndarray
        array += 7
    assert_same(net.state_dict(), before)


def test_loading_a_state_dict_copies_it():
    net, other = Net(), Net(np.random.default_rng(1))
    other.levels[0][1].running_var += 3
    state = other.state_dict()
    parameters = net.parameters()
    net.load_state_dict(state)
    for name, array in state.items():
        np.testing.assert_array_equal(net.state_dict()[name], array)
        array += 7
    assert_same(net.state_dict(), values(other))
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]     # an optimizer's parameters stay


@pytest.mark.parametrize("own, other", [(np.float32, np.float64), (np.float64, np.float32)])
def test_values_are_converted_to_the_modules_dtype(own, other):
    net = nn.BatchNorm2d(2).astype(own)
    net.load_state_dict({name: np.full(2, 1.5, other) for name in net.state_dict()})
    assert {array.dtype for array in net.state_dict().values()} == {np.dtype(own)}
    np.testing.assert_array_equal(net.gamma.data, [1.5, 1.5])


def test_lists_and_arrays_that_are_not_contiguous_can_be_loaded():
    layer = nn.Linear(2, 3)
    layer.load_state_dict({"weight": np.arange(6.0).reshape(3, 2).T, "bias": [1, 2, 3]})
    np.testing.assert_array_equal(layer.weight.data, [[0, 2, 4], [1, 3, 5]])
    assert layer.weight.data.flags.c_contiguous
    np.testing.assert_array_equal(layer.bias.data, [1, 2, 3])


def without(state, *names):
    return {name: array for name, array in state.items() if name not in names}


@pytest.mark.parametrize("change, said", [
    (lambda s: without(s, "stem.bias"), ["missing: stem.bias"]),
    (lambda s: without(s, "levels.0.1.running_var"), ["missing: levels.0.1.running_var"]),
    (lambda s: s | {"stem.extra": np.ones(3)}, ["unexpected: stem.extra"]),
    (lambda s: s | {"stem.bias": np.ones(5)}, [r"stem.bias is (5,), the model has (4,)"]),
    (lambda s: s | {"stem.bias": np.ones((1, 4))}, [r"stem.bias is (1, 4), the model has (4,)"]),
    (lambda s: s | {"stem.bias": np.float32(1)}, [r"stem.bias is (), the model has (4,)"]),
    (lambda s: s | {"stem.weight": s["stem.weight"].transpose(3, 2, 0, 1)},
     ["stem.weight is (4, 3, 3, 3), the model has (3, 3, 3, 4)"]),
    (lambda s: without(s, "pair.1.a", "pair.1.seen") | {"x": np.ones(1), "head.1.1.bias": np.ones(1)},
     ["missing: pair.1.a", "missing: pair.1.seen", "unexpected: x", "head.1.1.bias is (1,), the model has (2,)"]),
    (lambda s: {}, ["missing: stem.weight", "and 7 more"]),
    (lambda s: s | {"pair.1.seen": np.array(["a", "b"])}, ["pair.1.seen", "number"]),
    (lambda s: s | {"pair.1.seen": np.array([1j, 2])}, ["pair.1.seen", "complex128"]),
    (lambda s: s | {"pair.1.seen": np.array([None, 2])}, ["pair.1.seen", "object"]),
])
def test_a_state_dict_that_does_not_fit_is_refused_and_nothing_is_changed(change, said):
    net, other = Net(), Net(np.random.default_rng(1))
    before = values(net)
    with pytest.raises(ValueError, match="^load_state_dict: ") as caught:
        net.load_state_dict(change(other.state_dict()))
    for part in said:
        assert part in str(caught.value)
    assert_same(net.state_dict(), before)


# modes and dtypes

def test_train_and_eval_reach_every_module_and_return_the_module():
    net = Net()
    modules = [module for _, module in net.named_modules()]
    assert all(module.training for module in modules)
    assert net.eval() is net and not any(module.training for module in modules)
    assert net.train() is net and all(module.training for module in modules)
    net.levels[0].eval()
    assert [module.training for module in modules].count(False) == 3
    assert net.train(False) is net and not any(module.training for module in modules)
    assert Net().training                                   # another net is not changed


@pytest.mark.parametrize("dtype", [np.float64, "float64", np.dtype(np.float64)])
def test_astype_converts_parameters_and_buffers_in_place(dtype):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    x = np.random.default_rng(0).standard_normal((2, 5, 5, 3))
    expected = net(Tensor(x.astype(np.float32))).data
    net(Tensor(x.astype(np.float32))).sum().backward()
    parameters = net.parameters()
    assert net.astype(dtype) is net
    assert {array.dtype for array in net.state_dict().values()} == {np.dtype(np.float64)}
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters] and all(p.grad is None for p in parameters)
    y = net(Tensor(x))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y.data, expected, atol=1e-5)
    assert net.eval()(Tensor(x)).dtype == np.float64
    assert net.astype(np.float32)(Tensor(x.astype(np.float32))).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, int, "complex64", bool])
def test_other_dtypes_are_refused(dtype):
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="astype: dtype must be float32 or float64; got"):
        net.astype(dtype)
    assert net.weight.dtype == np.float32


# Sequential, and walking with shapes

def test_sequential_applies_its_modules_one_after_the_other():
    add = nn.Linear(2, 2)
    add.load_state_dict({"weight": np.eye(2), "bias": np.ones(2)})
    net = nn.Sequential(Scale(), Scale(3.0))
    np.testing.assert_array_equal(net(Tensor(np.ones((1, 3), np.float32))).data, [[6, 6, 6]])
    net = nn.Sequential(add, nn.Sequential(nn.ReLU(), add), nn.ReLU())
    np.testing.assert_array_equal(net(Tensor(np.array([[-3, 2]], np.float32))).data, [[1, 4]])
    assert len(net) == 3 and net[0] is add and net[-1] is net.modules[2]
    x = Tensor(np.ones(3))
    assert nn.Sequential()(x) is x


def test_a_walk_with_a_placeholder_records_every_layer_and_runs_none():
    def refuse(x):
        raise AssertionError("a layer ran")

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(2)), nn.Flatten(),
                        nn.Linear(36, 2))
    layers = [module for _, module in net.named_modules() if not isinstance(module, nn.Sequential)]
    for layer in layers:
        layer.forward = refuse
    image = nn.Placeholder((5, 9, 8, 3))
    with nn.record_layers() as calls:
        out = net(image)
        with nn.record_layers() as inner:
            net[0](image)
    assert out.shape == (5, 2)
    assert [call.layer for call in calls] == layers and len(inner) == 1
    assert [call.output.shape for call in calls] == [(5, 7, 6, 4), (5, 7, 6, 4), (5, 3, 3, 4), (5, 36), (5, 2)]
    assert calls[0].inputs == (image,) and calls[1].inputs == (calls[0].output,) and calls[-1].output is out
    net[0](image)                                           # nobody is listening any more
    assert len(calls) == 5 and len(inner) == 1
