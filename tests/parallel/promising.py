"""An op and a net whose backwards promise gradients."""

import numpy as np

from minunet import Tensor, UNet, functional
from minunet.autograd import lift


def scale(give, factor=1.0):
    """An op x · w whose backward gives w's gradient, times a factor, by way of a function of it."""
    def times(x, w):
        return x * w, (x, w)

    def times_backward(dy, cache):
        x, w = cache
        return dy * w, give(lambda: dy * x * dy.dtype.type(factor))

    return lift(times, times_backward)


def train(**options):
    """The gradients of a small net's parameters, and its input's."""
    rng = np.random.default_rng(0)
    net = UNet(3, 2, base=8, depth=2, rng=np.random.default_rng(1), **options)
    x = Tensor(rng.standard_normal((2, 40, 48, 3), np.float32), requires_grad=True)
    functional.loss_function("ce+dice")(net(x), rng.integers(0, 2, (2, 40, 48))).backward()
    return [p.grad for p in net.parameters()] + [x.grad]


def fail():
    raise ZeroDivisionError("promised")
