"""The convolutions of a U-Net: their sizes, their work, and the arrays that they are measured on.

Work is counted in one way for every algorithm: a product of A (OH·OW·F, H·W·C) with N images takes

    2 · N · OH · OW · KH · KW · C · F  FLOP   (windows that reach into the padding count in full)

and moves x (N, H, W, C), y (N, OH, OW, F) and the weight (KH, KW, C, F) once each, two of them read and the third
written, whichever of the three products it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minunet.errors import UserError
from minunet.geometry import Geometry, Pair

CHANNELS, CLASSES = 3, 2            # of the net's images and logits


@dataclass(frozen=True)
class Layer:
    """A convolution matrix of the net, and the places where it occurs. An up-convolution's is that of its transpose."""

    names: tuple[str, ...]
    channels: int
    filters: int
    geometry: Geometry
    size: Pair                      # (H, W) of x, px

    @property
    def out_size(self) -> Pair:
        """(OH, OW) of y, px."""
        return self.geometry.output_size(self.size)

    @property
    def is_up(self) -> bool:
        """Whether it is an up-convolution: its forward pass is Aᵀ y."""
        return self.geometry.stride != (1, 1)

    def shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Of the weight, x and y."""
        return ((*self.geometry.kernel, self.channels, self.filters), (batch, *self.size, self.channels),
                (batch, *self.out_size, self.filters))

    def flop(self, batch: int) -> int:
        """Of one product."""
        return 2 * batch * int(np.prod((*self.out_size, *self.geometry.kernel, self.channels, self.filters)))

    def nbytes(self, batch: int, itemsize: int = 4) -> int:
        """That one product moves at the least."""
        return itemsize * sum(int(np.prod(shape)) for shape in self.shapes(batch))

    def __str__(self) -> str:
        (kh, kw), (h, w) = self.geometry.kernel, self.size
        if self.is_up:
            return f"up {self.filters} -> {self.channels}, {kh}x{kw}, to {h}x{w} px"
        return f"{self.channels} -> {self.filters}, {kh}x{kw}, {h}x{w} px"


def unet_layers(size: Pair, base: int, depth: int = 4, classes: int = CLASSES) -> list[Layer]:
    """The different convolutions of a U-Net in the order of their first places, for images of this size in px."""
    if size[0] % 2**depth or size[1] % 2**depth:
        raise UserError(f"--size: height and width must be multiples of {2**depth}, because the net halves them "
                        f"{depth} times; got {size[0]}x{size[1]}")
    places: dict[tuple[Any, ...], list[str]] = {}

    def add(name: str, channels: int, filters: int, geometry: Geometry, level: int) -> None:
        level_size = size[0] >> level, size[1] >> level
        places.setdefault((channels, filters, geometry, level_size), []).append(name)

    widths = [base * 2**level for level in range(depth + 1)]
    three, two, one = Geometry(3, padding=1), Geometry(2, stride=2), Geometry(1)
    for level, width in enumerate(widths):
        above, prefix = (widths[level - 1], f"down.{level - 1}.convs") if level else (CHANNELS, "first")
        add(f"{prefix}.conv1", above, width, three, level)
        add(f"{prefix}.conv2", width, width, three, level)
    for place, level in enumerate(reversed(range(depth))):
        add(f"up.{place}.up", widths[level], widths[level + 1], two, level)
        add(f"up.{place}.convs.conv1", 2 * widths[level], widths[level], three, level)
        add(f"up.{place}.convs.conv2", widths[level], widths[level], three, level)
    add("head", base, classes, one, 0)
    return [Layer(tuple(names), *key) for key, names in places.items()]


def images(layer: Layer, batch: int, mean: float = 0.0) -> tuple[Any, Any, Any, np.random.Generator]:
    """weight, x and y of random numbers, the same in every process, and the generator that drew them.

    x and y have the standard deviation 1 about this mean.
    """
    rng = np.random.default_rng([layer.channels, layer.filters, *layer.geometry.kernel, *layer.size, batch])
    weight, x, y = (rng.standard_normal(shape, np.float32) for shape in layer.shapes(batch))
    return weight, x + np.float32(mean), y + np.float32(mean), rng
