"""The launches of kernels/sums.cu, and how kernels/reduce.cuh's kernels cut pixels and channels among blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

from minunet.backend import array_module
from minunet.cuda import launch
from minunet.ops.kernels.vector import vector_length

THREADS = 256           # of a block
WIDTH = 32              # of them side by side, at most
BLOCKS = 2048           # wanted: two times what the largest GPU holds at a time
LEAST, MOST = 4, 256    # pixels of a thread: loads on their way at once; numbers that one float adds up


class Cut(NamedTuple):
    """kernels/reduce.cuh's struct of this name."""

    pixels: int
    channels: int
    width: int
    rows: int
    chunk: int

    @classmethod
    def of(cls, x: Any) -> Cut:
        """By the shape of x (..., C) alone: with the order of its sums, their bits."""
        channels = x.shape[-1]
        pixels = x.size // max(channels, 1)
        groups = max(channels // vector_length(channels), 1)
        tiles = -(-groups // WIDTH)
        width = -(-groups // tiles)                         # tiles of about one width
        rows = THREADS // width
        each = -(-pixels // rows) * tiles // BLOCKS         # pixels of a thread
        return cls(pixels, channels, width, rows, min(max(each, LEAST), MOST) * rows)

    @property
    def chunks(self) -> int:
        """How many parts a channel's pixels are cut into."""
        return -(-self.pixels // self.chunk)

    @property
    def blocks(self) -> tuple[int, int]:
        """(chunks, tiles of channels)."""
        return self.chunks, -(-self.channels // (self.width * vector_length(self.channels)))

    @property
    def defines(self) -> dict[str, int]:
        """What the kernels are compiled with."""
        return {"VECTOR": vector_length(self.channels)}


def ready(*arrays: Any) -> tuple[Any, ...]:
    """The arrays (..., C), contiguous, and beginning where their vectors can be read: few have to be copied."""
    contiguous = map(array_module(*arrays).ascontiguousarray, arrays)
    return tuple(a if vector_length(a.shape[-1]) == vector_length(a.shape[-1], a) else a.copy() for a in contiguous)


def channel_sum(x: Any) -> Any:
    """(..., C) -> (C,)."""
    x, = ready(x)
    xp, cut = array_module(x), Cut.of(x)
    parts, sums = xp.empty((cut.channels, cut.chunks), x.dtype), xp.empty(cut.channels, x.dtype)
    launch("sums.partial_sums", x, parts, cut, blocks=cut.blocks, defines=cut.defines)
    launch("sums.total", parts, sums, cut.chunks, blocks=(cut.channels,), defines=cut.defines)
    return sums
