"""What hypothesis draws: geometries, image sizes that fit them, batches, channels; small enough for loop oracles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from minunet import Geometry


class Case(NamedTuple):
    """A convolution to be checked."""

    geometry: Geometry
    size: tuple[int, int]
    batch: int
    channels: int
    filters: int
    seed: int

    def arrays(self, dtype=np.float64):
        """Random x, w, y of the right shapes."""
        rng = np.random.default_rng(self.seed)
        out_size = self.geometry.output_size(self.size)
        shapes = ((self.batch, *self.size, self.channels), (*self.geometry.kernel, self.channels, self.filters),
                  (self.batch, *out_size, self.filters))
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def pairs(low, high):
    """An independent number for height and for width."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


seeds = st.integers(0, 2**32 - 1)


@st.composite
def geometries(draw, max_kernel=4, max_stride=4, max_padding=3, max_dilation=3):
    """Any geometry, with the U-Net's own kinds (3x3 same, 2x2 stride 2, 1x1) drawn often."""
    if draw(st.booleans()):
        return draw(st.sampled_from([Geometry(3, padding=1), Geometry(3), Geometry(2, stride=2), Geometry(1),
                                     Geometry((1, 3), stride=(1, 3)), Geometry(1, stride=2)]))
    return Geometry(draw(pairs(1, max_kernel)), draw(pairs(1, max_stride)), draw(pairs(0, max_padding)),
                    draw(pairs(1, max_dilation)))


@st.composite
def cases(draw, **limits):
    """A geometry with an image that it fits, a batch and channels."""
    geometry = draw(geometries(**limits))
    size = tuple(draw(st.integers(max(1, e - 2 * p), max(1, e - 2 * p) + 6))
                 for e, p in zip(geometry.extent, geometry.padding))
    small = st.integers(1, 3)
    return Case(geometry, size, draw(small), draw(small), draw(small), draw(seeds))
