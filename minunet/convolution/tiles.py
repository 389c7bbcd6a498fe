"""Tiles: how a block of an image is cut into overlapping tiles for Winograd's algorithm, and put together again.

Images are read and written where they lie: a small matrix times image rows below each other transforms a row of tiles
along the height, and what comes out is read by tiles along the width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minunet import memory
from minunet.convolution.products import GAP, Each, rectify
from minunet.geometry import Pair


class Block(NamedTuple):
    """A rectangle of tiles, first to last (not included), of the images first to last."""

    first: int
    last: int
    first_row: int
    last_row: int
    first_column: int
    last_column: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns of tiles."""
        return self.last - self.first, self.last_row - self.first_row, self.last_column - self.first_column

    @property
    def tiles(self) -> int:
        """Their number."""
        return prod(self.shape)


class Grid(NamedTuple):
    """How the outputs (images, *out_size) are cut into tiles of m[0] x m[1] px, and where a tile's inputs lie.

    Along each axis tile t covers the outputs m·t to m·t + m − 1 and reads the inputs from m·t − padding on. Tiles at
    the bottom and right may reach beyond the outputs.
    """

    m: Pair
    images: int
    size: Pair              # of the inputs
    out_size: Pair
    padding: Pair

    @property
    def tiles(self) -> Pair:
        """Rows and columns of tiles."""
        return -(-self.out_size[0] // self.m[0]), -(-self.out_size[1] // self.m[1])

    @property
    def outputs(self) -> Grid:
        """The same tiles, of the outputs: without overlap."""
        return self._replace(size=self.out_size, padding=(0, 0))

    def blocks(self, tiles: int, width: int, images: int = 1 << 30) -> list[Block]:
        """Blocks of about this many tiles, at most so many in a row: parts of an image, or several whole images.

        images: the most that a block has. At least two blocks, where there are two images or two rows of tiles.
        """
        rows, columns = self.tiles
        across = -(-columns // -(-columns // width))                # equal parts
        whole = max(1, min(tiles // (rows * columns), -(-self.images // 2), images)) if across == columns else 1
        down = rows if whole > 1 else max(1, min(tiles // across, rows if self.images > 1 else -(-rows // 2)))
        return [Block(n, min(n + whole, self.images), r, min(r + down, rows), c, min(c + across, columns))
                for n in range(0, self.images, whole) for r in range(0, rows, down)
                for c in range(0, columns, across)]


def positions(count: int, rows: int, columns: int, dtype: np.dtype, name: str | None = None) -> np.ndarray:
    """An uninitialised array (count, rows, columns), a gap after each position: new, or this thread's of that name."""
    def make() -> np.ndarray:
        shape = count, rows * columns + GAP
        flat = memory.empty(shape, dtype) if name is None else memory.scratch(shape, dtype, name)
        return flat[:, :-GAP].reshape(count, rows, columns, copy=False)

    return make() if name is None else memory.views((count, rows, columns, dtype.char, name), make)


def view(array: np.ndarray, start: int, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """A strided view of a contiguous array; start and strides in elements (as_strided takes 5 µs, this 1)."""
    size = array.itemsize
    return np.ndarray(shape, array.dtype, array, start * size, [size * stride for stride in strides])


def from_rows(matrix: np.ndarray, x: np.ndarray, grid: Grid, block: Block, columns: int, out: np.ndarray) -> None:
    """out (K, images, down, ·, C) = matrix d, for the image rows d below each other in each tile: matrix (K, rows).

    It takes `columns` columns from the block's first one on; outside the image, and in out's further columns, out is 0.
    """
    (h, w), (mh, mw), (ph, pw), c, taps = grid.size, grid.m, grid.padding, x.shape[3], matrix.shape[1]
    left = mw * block.first_column - pw
    begin, end = max(0, left), min(w, left + columns)           # the columns that lie in the image
    out[:, :, :, :begin - left] = out[:, :, :, end - left:] = 0
    inside = out[:, :, :, begin - left:end - left].reshape(*out.shape[:3], -1, copy=False).transpose(1, 2, 0, 3)
    for tiles, tap in agreeing_tiles(taps, range(block.first_row, block.last_row), mh, ph, h):
        start = ((block.first * h + mh * tiles.start - ph + tap.start) * w + begin) * c
        shape = len(inside), len(tiles), tap.stop - tap.start, (end - begin) * c
        np.matmul(matrix[:, tap], view(x, start, shape, (h * w * c, mh * w * c, w * c, 1)),
                  out=inside[:, tiles.start - block.first_row:tiles.stop - block.first_row])


def to_rows(matrix: np.ndarray, M: np.ndarray, y: np.ndarray, grid: Grid, block: Block, relu: bool = False,
            each: Each = None) -> Any:
    """The image rows of y (N, OH, OW, F) below each other in each tile = matrix M, with relu the maximum of it and 0.

    M (K, images, down, ·, F), of which as many columns are taken as the block has in y; matrix (m, K). Returns what
    each makes of the block's pixels.
    """
    (h, w), (mh, mw), f = grid.out_size, grid.m, y.shape[3]
    left, right = mw * block.first_column, min(w, mw * block.last_column)
    width = right - left
    rows = M[:, :, :, :width].reshape(*M.shape[:3], -1, copy=False).transpose(1, 2, 0, 3)
    for tiles, tap in agreeing_tiles(mh, range(block.first_row, block.last_row), mh, 0, h):
        start = ((block.first * h + mh * tiles.start) * w + left) * f
        shape = len(rows), len(tiles), tap.stop - tap.start, width * f
        np.matmul(matrix[tap], rows[:, tiles.start - block.first_row:tiles.stop - block.first_row],
                  out=view(y, start, shape, (h * w * f, mh * w * f, w * f, 1)))
    if not relu and each is None:
        return None
    pixels = y[block.first:block.last, mh * block.first_row:mh * block.last_row, left:right]
    pixels = pixels.reshape(-1, width * f, copy=False)
    if relu:
        rectify(pixels)
    return None if each is None else each(pixels)


def joined(images: Sequence[np.ndarray], grid: Grid, block: Block, taps: Pair) -> tuple[np.ndarray, Grid, Block]:
    """What a block within one image reads, with all images' channels side by side: a copy, as an image in scratch.

    And the same tiles' grid on it, and the block there. taps: the height and width of what a tile reads, in px.
    """
    _, down, across = block.shape
    starts = [m * first - p for m, first, p in zip(grid.m, (block.first_row, block.first_column), grid.padding)]
    stops = [start + m * (tiles - 1) + t for start, m, tiles, t in zip(starts, grid.m, (down, across), taps)]
    inside = [slice(max(0, start), min(n, stop)) for start, stop, n in zip(starts, stops, grid.size)]
    parts = [x[block.first, inside[0], inside[1]] for x in images]
    size = parts[0].shape[:2]
    x = memory.scratch((1, *size, sum(x.shape[2] for x in parts)), parts[0].dtype, "joined")
    np.concatenate(parts, axis=2, out=x[0])
    above, before = (place.start - start for place, start in zip(inside, starts))
    return x, grid._replace(images=1, size=size, padding=(above, before)), Block(0, 1, 0, down, 0, across)


@lru_cache(maxsize=1024)
def agreeing_tiles(taps: int, tiles: range, m: int, padding: int, length: int) -> list[tuple[range, slice]]:
    """(tiles, taps): along one axis of this length, runs of neighbouring tiles, and which of their taps lie inside."""
    def inside(tile: int) -> tuple[int, int]:
        first = min(max(0, padding - m * tile), taps)
        return first, max(first, min(taps, length + padding - m * tile))

    groups = [(slice(*bounds), list(group)) for bounds, group in groupby(tiles, inside)]
    return [(range(group[0], group[-1] + 1), tap) for tap, group in groups]
