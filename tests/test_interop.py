"""Weights to PyTorch's order and back: one net, strictly loaded on both sides, gives the same numbers in both."""

import numpy as np
import pytest

from minunet import Tensor, functional, nn
from minunet.interop import from_torch, to_torch
from tests.checks import assert_close
from tests.peers import PRECISIONS, first, last

# name, minunet's shape, PyTorch's name, its shape: no two sizes alike where axes change places
ORDERS = [
    (lambda: nn.Conv2d(3, 4, (5, 2)), "weight", (5, 2, 3, 4), "weight", (4, 3, 5, 2)),
    (lambda: nn.Conv2d(3, 4, 1), "bias", (4,), "bias", (4,)),
    (lambda: nn.ConvTranspose2d(3, 4, (5, 2)), "weight", (5, 2, 4, 3), "weight", (3, 4, 5, 2)),
    (lambda: nn.Linear(3, 4), "weight", (3, 4), "weight", (4, 3)),
    (lambda: nn.BatchNorm2d(4), "gamma", (4,), "weight", (4,)),
    (lambda: nn.BatchNorm2d(4), "beta", (4,), "bias", (4,)),
    (lambda: nn.BatchNorm2d(4), "running_var", (4,), "running_var", (4,)),
]


def minunet_net():
    rng = np.random.default_rng(3)
    return nn.Sequential(
        nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=1, rng=rng), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(5, 4, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0), rng=rng),
                      nn.BatchNorm2d(4), nn.ELU()),
        nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False, rng=rng), nn.Flatten(), nn.Linear(2 * 16 * 18, 7, rng=rng))


def torch_net(torch):
    class Flatten(torch.nn.Module):
        """A row of the image as minunet lays it out, the channels last."""

        def forward(self, x):
            return x.movedim(1, -1).flatten(1)

    n = torch.nn
    return n.Sequential(
        n.Conv2d(3, 5, (3, 2), (2, 1), 1), n.BatchNorm2d(5), n.ReLU(),
        n.Sequential(n.ConvTranspose2d(5, 4, (3, 2), (2, 1), (1, 0), (1, 0)), n.BatchNorm2d(4), n.ELU()),
        n.ConvTranspose2d(4, 2, 2, 2, bias=False), Flatten(), n.Linear(2 * 16 * 18, 7))


def as_tensors(torch, state):
    return {name: torch.tensor(array) for name, array in state.items()}


def assert_nets_agree(torch, ours, theirs, dtype, tolerance):
    """Outputs, gradients and running statistics, in training and in prediction."""
    rng = np.random.default_rng(0)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        x = Tensor(rng.standard_normal((3, 8, 7, 3)).astype(dtype), requires_grad=True)
        leaf = torch.tensor(x.data, requires_grad=True)
        y, expected = ours(x), theirs(first(leaf))
        assert_close(y.data, expected.detach().numpy(), tolerance, "output")
        (y * y).sum().backward()
        (expected * expected).sum().backward()
        assert_close(x.grad, leaf.grad.numpy(), 10 * tolerance, "gradient")
    for name, array in to_torch(ours.state_dict()).items():
        if not name.endswith("num_batches_tracked"):
            assert_close(array, theirs.state_dict()[name].numpy(), tolerance, name)
    gradients = from_torch({name: p.grad for name, p in theirs.named_parameters()}
                           | {name: b for name, b in theirs.named_buffers()})
    for name, p in ours.named_parameters():
        assert_close(p.grad, gradients[name], 10 * tolerance, name)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_a_net_of_minunet_gives_the_same_numbers_in_pytorch(torch, dtype, tolerance):
    ours, theirs = minunet_net().astype(dtype), torch_net(torch).to(getattr(torch, dtype))
    ours(Tensor(np.random.default_rng(1).standard_normal((2, 8, 7, 3)).astype(dtype)))      # other statistics than 0, 1
    theirs.load_state_dict(as_tensors(torch, to_torch(ours.state_dict())), strict=True)
    assert_nets_agree(torch, ours, theirs, dtype, tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_a_net_of_pytorch_gives_the_same_numbers_in_minunet(torch, dtype, tolerance):
    torch.manual_seed(0)
    ours, theirs = minunet_net().astype(dtype), torch_net(torch).to(getattr(torch, dtype))
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    theirs(torch.randn(2, 3, 8, 7, dtype=getattr(torch, dtype)))
    ours.load_state_dict(from_torch(theirs.state_dict()))
    assert_nets_agree(torch, ours, theirs, dtype, tolerance)


@pytest.mark.parametrize("make, name, shape, their_name, their_shape", ORDERS)
def test_names_and_orders_are_those_of_pytorch(make, name, shape, their_name, their_shape):
    for prefix in ("", "a.", "a.0.b."):
        state = {prefix + key: array for key, array in make().state_dict().items()}
        theirs = to_torch(state)
        assert state[prefix + name].shape == shape and theirs[prefix + their_name].shape == their_shape
        back = from_torch(theirs)
        assert list(back) == list(state)
        assert back[prefix + name].shape == shape


def test_a_round_trip_changes_nothing_and_shares_no_memory():
    state = minunet_net().state_dict()
    state["3.1.running_mean"] += 2
    before = {name: array.copy() for name, array in state.items()}
    theirs = to_torch(state)
    back = from_torch(theirs)
    assert list(back) == list(state)
    for arrays in (theirs, back):
        for array in arrays.values():
            assert array.flags.c_contiguous
            array += 1
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array)
        np.testing.assert_array_equal(back[name], array + 1)
        assert back[name].dtype == np.float32


def test_every_number_goes_to_its_place():
    """The transposed convolution's weight is the convolution's own, in both libraries."""
    w = np.arange(120.0).reshape(5, 2, 3, 4)
    theirs = to_torch({"weight": w})["weight"]
    assert theirs.shape == (4, 3, 5, 2)
    for i, j, c, f in np.ndindex(w.shape):
        assert theirs[f, c, i, j] == w[i, j, c, f]


def test_batch_norms_get_pytorchs_counter_and_lose_it_again():
    theirs = to_torch(minunet_net().state_dict())
    counters = [name for name in theirs if name.endswith("num_batches_tracked")]
    assert counters == ["1.num_batches_tracked", "3.1.num_batches_tracked"]
    assert all(theirs[name] == 0 and theirs[name].dtype == np.int64 for name in counters)
    assert not [name for name in from_torch(theirs) if "num_batches" in name]


def test_weights_of_other_layers_keep_their_names():
    """Only what stands beside a running mean is a batch norm's gamma and beta."""
    ones = np.ones(2)
    theirs = {"norm.weight": ones, "norm.bias": ones, "norm.running_mean": ones, "norm.running_var": ones,
              "normal.weight": np.ones((2, 3)), "normal.bias": ones, "weight": np.ones((1, 2)), "bias": ones}
    assert list(from_torch(theirs)) == ["norm.gamma", "norm.beta", "norm.running_mean", "norm.running_var",
                                        "normal.weight", "normal.bias", "weight", "bias"]


def test_a_single_layer_agrees(torch):
    """A layer alone, whose names have no prefix; and its weight in the function."""
    rng = np.random.default_rng(0)
    layer, theirs = nn.ConvTranspose2d(4, 3, 2, stride=2, rng=rng), torch.nn.ConvTranspose2d(4, 3, 2, 2)
    theirs.load_state_dict(as_tensors(torch, to_torch(layer.state_dict())))
    x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    assert_close(layer(Tensor(x)).data, last(theirs(first(torch.tensor(x)))).detach().numpy(), 1e-5)
    assert_close(functional.conv_transpose2d(x, from_torch(theirs.state_dict())["weight"], stride=2).data,
                 layer(Tensor(x)).data, 1e-6)
