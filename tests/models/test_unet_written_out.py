"""The U-Net beside itself written out in functions: every option does what its name says."""

import itertools

import numpy as np
import pytest

from minunet import Tensor, UNet, functional
from tests.checks import assert_close

ACTIVATIONS = {"relu": functional.relu, "leaky_relu": functional.leaky_relu, "elu": functional.elu}
UPS = ("transpose", "nearest", "bilinear", "bicubic", "unpool")
OPTIONS = [
    dict(activation=activation, pool=pool, up=up, padding=padding)
    for activation, pool, up, padding in itertools.product(ACTIVATIONS, ("max", "average"), UPS, ("same", "valid"))
    if (pool, up) != ("average", "unpool")
]


def written_out(net, x, activation, pool, up, padding):
    """Logits for norm=None and sizes that fit, from the net's weights."""
    def double(convs, x):
        for conv in (convs.conv1, convs.conv2):
            x = ACTIVATIONS[activation](functional.conv2d(x, conv.weight, conv.bias, padding=int(padding == "same")))
        return x

    x = double(net.first, x)
    levels = []
    for down in net.down:
        if pool == "max":
            below, winners = functional.max_pool2d(x, 2, return_winners=True)
        else:
            below, winners = functional.avg_pool2d(x, 2), None
        levels.append((x, winners))
        x = double(down.convs, below)
    for level in net.up:
        skip, winners = levels.pop()
        if up == "transpose":
            x = functional.conv_transpose2d(x, level.up.weight, level.up.bias, stride=2)
        else:
            x = functional.conv2d(x, level.reduce.weight, level.reduce.bias)
            if up == "unpool":
                top, left = ((a - b) // 2 for a, b in zip(winners.shape[1:3], x.shape[1:3]))
                x = functional.max_unpool2d(x, winners[:, top:top + x.shape[1], left:left + x.shape[2]], 2)
            else:
                x = functional.resample(x, factor=2, method=up)
        x = double(level.convs, functional.concat(functional.center_crop(skip, x.shape[1:3]), x))
    return functional.conv2d(x, net.head.weight, net.head.bias)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_logits_equal_the_net_written_out(options):
    net = UNet(2, 3, base=2, depth=2, norm=None, **options).astype(np.float64)
    n = 60 if options["padding"] == "valid" else 8
    x = Tensor(np.random.default_rng(0).standard_normal((1, n, n, 2)))
    assert_close(net(x).data, written_out(net, x, **options).data, 1e-12)
