"""A small example of every op: what is checked against finite differences, and run to see its kernels at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minunet import functional as F
from minunet.autograd import Tensor
from minunet.backend import to_device

Shape = tuple[int, ...]


class Case(NamedTuple):
    """f(*inputs, *constants) as a Tensor: inputs of these shapes are differentiable, constants are arrays."""

    f: Callable[..., Tensor]
    shapes: tuple[Shape, ...]
    constants: tuple[np.ndarray, ...] = ()

    def inputs(self, device: str, dtype: Any = np.float64, seed: int = 0) -> list[Any]:
        """Normally distributed arrays on a device."""
        rng = np.random.default_rng((seed, 1))      # gradcheck's own would draw them again: x as x's cotangent
        return [to_device(rng.standard_normal(shape).astype(dtype), device) for shape in self.shapes]

    def on(self, device: str, dtype: Any = np.float64) -> Callable[..., Tensor]:
        """f as a function of the inputs alone, with the constants on a device."""
        constants = [to_device(c.astype(dtype) if c.dtype.kind == "f" else c, device) for c in self.constants]
        return lambda *inputs: self.f(*inputs, *constants)


IMAGE = (2, 5, 6, 3)
LOGITS = (1, 3, 4, 3)
IDS = np.array([[[0, 1, 2, 2], [1, 255, 0, 1], [2, 2, 1, 0]]])                  # 255: ignored
FRACTIONS = np.random.default_rng(5).uniform(0, 1, LOGITS)
WEIGHTS = np.random.default_rng(6).uniform(0, 2, LOGITS[:3])
CLASS_WEIGHTS = [1, 2, 0.5]


def _unit_and_maxima(x: Tensor, x2: Tensor, w: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Both results, so that both gradients come together."""
    y, pooled, *_ = F.conv_norm_relu((x, x2), w, gamma, beta, pool=True)
    return F.concat(F.max_pool2d(y * y, 2), pooled)


CASES: dict[str, Case] = {
    "conv2d": Case(lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=1), (IMAGE, (3, 3, 3, 4), (4,))),
    "conv2d 3x3": Case(lambda x, w, b: F.conv2d(x, w, b, padding=1), ((1, 6, 5, 4), (3, 3, 4, 8), (8,))),
    "conv2d, relu": Case(lambda x, w, b: F.conv2d(x, w, b, relu=True), (IMAGE, (3, 3, 3, 4), (4,))),
    "conv2d, images side by side": Case(lambda x, x2, w: F.conv2d((x, x2), w), (IMAGE, (2, 5, 6, 2), (3, 3, 5, 4))),
    "conv_norm_relu": Case(lambda x, w, gamma, beta: F.conv_norm_relu(x, w, gamma, beta)[0],
                           (IMAGE, (3, 3, 3, 4), (4,), (4,))),
    "conv_norm_relu, pool": Case(_unit_and_maxima, ((2, 4, 6, 3), (2, 4, 6, 1), (3, 3, 4, 3), (3,), (3,))),
    "conv2d 1x1": Case(F.conv2d, (IMAGE, (1, 1, 3, 4), (4,))),
    "conv_transpose2d": Case(lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1),
                             ((2, 3, 2, 4), (3, 3, 3, 4), (3,))),
    "conv_transpose2d 2x2": Case(lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2),
                                 ((2, 3, 2, 4), (2, 2, 3, 4), (3,))),
    "linear": Case(F.linear, ((3, 4), (4, 5), (5,))),
    "flatten": Case(F.flatten, (IMAGE,)),
    "max_pool2d": Case(lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    "max_pool2d overlapping": Case(lambda x: F.max_pool2d(x, 3, 2, 1), (IMAGE,)),
    "avg_pool2d": Case(lambda x: F.avg_pool2d(x, 3, 2, 1), (IMAGE,)),
    "max_unpool2d": Case(lambda x, winners: F.max_unpool2d(x, winners, 2), ((2, 2, 3, 3),),
                         (np.arange(36, dtype=np.uint8).reshape(2, 2, 3, 3) % 4,)),
    "nearest": Case(lambda x: F.resample(x, factor=2, method="nearest"), (IMAGE,)),
    "bilinear": Case(lambda x: F.resample(x, size=(7, 4), method="bilinear"), (IMAGE,)),
    "bicubic": Case(lambda x: F.resample(x, size=(9, 11), method="bicubic"), (IMAGE,)),
    "batch_norm": Case(lambda x, gamma, beta: F.batch_norm(x, gamma, beta)[0], (IMAGE, (3,), (3,))),
    "batch_norm, relu": Case(lambda x, gamma, beta: F.batch_norm(x, gamma, beta, relu=True)[0], (IMAGE, (3,), (3,))),
    "normalize": Case(F.normalize, (IMAGE, (3,), (3,)), (np.arange(3.0), np.array([2.0, 1, 0.5]))),
    "relu": Case(F.relu, (IMAGE,)),
    "leaky_relu": Case(F.leaky_relu, (IMAGE,)),
    "elu": Case(F.elu, (IMAGE,)),
    "sigmoid": Case(F.sigmoid, (IMAGE,)),
    "softmax": Case(F.softmax, (IMAGE,)),
    "dropout": Case(lambda x: F.dropout(x, 0.4, np.random.default_rng(3)), (IMAGE,)),
    "concat": Case(F.concat, (IMAGE, (2, 5, 6, 2))),
    "crop": Case(lambda x: F.crop(x, 1, 2, (3, 4)), (IMAGE,)),
    "center_crop": Case(lambda x: F.center_crop(x, (3, 3)), (IMAGE,)),
    "pad": Case(lambda x: F.pad(x, (1, 0, 2, 3), "constant", 2.0), (IMAGE,)),
    "pad, edge": Case(lambda x: F.pad(x, (1, 0, 2, 3), "edge"), (IMAGE,)),
    "pad, reflect": Case(lambda x: F.pad(x, (1, 4, 2, 3), "reflect"), (IMAGE,)),
    "cross_entropy": Case(lambda z: F.cross_entropy(z, IDS, weights=WEIGHTS, class_weights=CLASS_WEIGHTS,
                                                    ignore_index=255), (LOGITS,)),
    "bce_with_logits": Case(lambda z: F.bce_with_logits(z, np.where(FRACTIONS < 0.1, 255, FRACTIONS), weights=WEIGHTS,
                                                        class_weights=CLASS_WEIGHTS, ignore_index=255), (LOGITS,)),
    "dice, softmax": Case(lambda z: F.dice(z, IDS, weights=WEIGHTS, ignore_index=255), (LOGITS,)),
    "dice, sigmoid": Case(lambda z: F.dice(z, FRACTIONS, class_weights=CLASS_WEIGHTS), (LOGITS,)),
    "arithmetic": Case(lambda a, b: ((a + b) * a / (b * b + 2.0) - a**2).sum(1).mean(), ((4, 3), (3,))),
}
