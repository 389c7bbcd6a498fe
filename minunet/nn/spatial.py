"""Layers without parameters that change an image's size or number of channels: pooling, resampling, crops, and others.

Shapes are (N, H, W, C), channels last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet import functional
from minunet.autograd import Tensor
from minunet.geometry import Geometry, IntOrPair, Pair, as_pair
from minunet.nn.module import Kept, Module, Shape


class _Pool2d(Module):
    """A layer with windows; the stride defaults to the kernel."""

    def __init__(self, kernel: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0):
        self.geometry = Geometry(kernel, kernel if stride is None else stride, padding)

    def output_shape(self, x: Shape) -> Shape:
        """(N, OH, OW, C)."""
        return (x[0], *self.geometry.output_size(x[1:3]), x[3])


class MaxPool2d(_Pool2d):
    """The maximum of each window: (N, H, W, C) -> (N, OH, OW, C); `with_winners` also gives their positions."""

    kept = Kept(extra=0.25)                                 # one byte for each winner

    def forward(self, x: Tensor) -> Tensor:
        """The maxima."""
        g = self.geometry
        return functional.max_pool2d(x, g.kernel, g.stride, g.padding)

    def with_winners(self, x: Any) -> tuple[Any, Any]:
        """The maxima, and the winners' positions for `MaxUnpool2d`."""
        if not isinstance(x, Tensor):
            return self(x), None
        g = self.geometry
        return functional.max_pool2d(x, g.kernel, g.stride, g.padding, return_winners=True)


class AvgPool2d(_Pool2d):
    """The mean of each window: (N, H, W, C) -> (N, OH, OW, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """The means."""
        g = self.geometry
        return functional.avg_pool2d(x, g.kernel, g.stride, g.padding)


class MaxUnpool2d(_Pool2d):
    """Values put back where their maxima came from: (N, OH, OW, C), winners -> (N, H, W, C).

    (H, W) is size, by default the smallest image with these windows.
    """

    def __init__(self, kernel: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0,
                 size: IntOrPair | None = None):
        super().__init__(kernel, stride, padding)
        self.size = None if size is None else as_pair(size, "size", 1)

    def forward(self, x: Tensor, winners: np.ndarray) -> Tensor:
        """The values at their winners' pixels, zeros elsewhere."""
        g = self.geometry
        return functional.max_unpool2d(x, winners, g.kernel, g.stride, g.padding, self.size)

    def output_shape(self, x: Shape) -> Shape:
        """(N, H, W, C)."""
        return (x[0], *(self.size or self.geometry.transposed_size(x[1:3])), x[3])


class Resample(Module):
    """Fixed interpolation by a whole factor: (N, H, W, C) -> (N, factor·H, factor·W, C)."""

    def __init__(self, factor: int, method: str = "nearest"):
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise ValueError(f"Resample: factor must be an int of at least 1; got {factor!r}")
        self.factor, self.method = factor, method

    def forward(self, x: Tensor) -> Tensor:
        """The interpolated image."""
        return functional.resample(x, factor=self.factor, method=self.method)

    def output_shape(self, x: Shape) -> Shape:
        """(N, factor·H, factor·W, C)."""
        return x[0], self.factor * x[1], self.factor * x[2], x[3]


class Flatten(Module):
    """Each image as one row: (N, H, W, C) -> (N, H·W·C)."""

    def forward(self, x: Tensor) -> Tensor:
        """The rows."""
        return functional.flatten(x)

    def output_shape(self, x: Shape) -> Shape:
        """(N, H·W·C)."""
        return x[0], int(np.prod(x[1:]))


class Concat(Module):
    """The channels of both inputs side by side."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, H, W, A), (N, H, W, B) -> (N, H, W, A + B)."""
        return functional.concat(a, b)

    def output_shape(self, a: Shape, b: Shape) -> Shape:
        """(N, H, W, A + B)."""
        return (*a[:3], a[3] + b[3])


class CenterCrop(Module):
    """The middle of the first input, of the second one's size ("copy and crop")."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """(N, H, W, C), (N, OH, OW, ·) -> (N, OH, OW, C)."""
        return functional.center_crop(x, like.shape[1:3])

    def output_shape(self, x: Shape, like: Shape) -> Shape:
        """(N, OH, OW, C)."""
        return (x[0], *like[1:3], x[3])


class Crop(Module):
    """The top left part of the first input, of the second one's size: undoes `Pad` to a multiple."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """(N, H, W, C), (N, OH, OW, ·) -> (N, OH, OW, C); x itself when the sizes are equal."""
        return x if x.shape[1:3] == like.shape[1:3] else functional.crop(x, 0, 0, like.shape[1:3])

    def output_shape(self, x: Shape, like: Shape) -> Shape:
        """(N, OH, OW, C)."""
        return (x[0], *like[1:3], x[3])


class Pad(Module):
    """Bottom and right extended by the edge's pixels to the next multiple of a number of px."""

    def __init__(self, multiple: IntOrPair):
        self.multiple: Pair = as_pair(multiple, "multiple", 1)

    def forward(self, x: Tensor) -> Tensor:
        """The extended image; x itself when its size is a multiple already."""
        _, h, w, _ = self.output_shape(x.shape)
        bottom, right = h - x.shape[1], w - x.shape[2]
        return functional.pad(x, (0, bottom, 0, right), "edge") if bottom or right else x

    def output_shape(self, x: Shape) -> Shape:
        """(N, H, W, C) with H and W rounded up."""
        (mh, mw) = self.multiple
        return x[0], -(-x[1] // mh) * mh, -(-x[2] // mw) * mw, x[3]
