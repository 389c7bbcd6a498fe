"""Tiles: how a block of an image is cut into overlapping squares for Winograd's algorithm, and put together again.

Tiles are laid out by the column in them, not one after the other: in an array (column in the tile, image, image row,
tile, channel) the same column of all tiles of a row is one long run, so that a small matrix times the columns
transforms all tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np

from minunet import memory
from minunet.convolution.products import GAP
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
    def whole(self) -> bool:
        """Whether no tile reaches beyond the outputs."""
        return all(n % m == 0 for n, m in zip(self.out_size, self.m))

    @property
    def outputs(self) -> Grid:
        """The same tiles, of the outputs: without overlap."""
        return self._replace(size=self.out_size, padding=(0, 0))

    def blocks(self, tiles: int, width: int, images: int = 1 << 30) -> list[Block]:
        """Blocks of about this many tiles, at most so many in a row: parts of an image, or several whole images.

        At least two blocks, where there are two rows of tiles.
        """
        rows, columns = self.tiles
        across = -(-columns // -(-columns // width))                # equal parts
        joined = max(1, min(tiles // (rows * columns), -(-self.images // 2), images)) if across == columns else 1
        down = rows if joined > 1 else max(1, min(tiles // across, rows if self.images > 1 else -(-rows // 2)))
        return [Block(n, min(n + joined, self.images), r, min(r + down, rows), c, min(c + across, columns))
                for n in range(0, self.images, joined) for r in range(0, rows, down)
                for c in range(0, columns, across)]


def outputs(y: np.ndarray, grid: Grid, block: Block) -> np.ndarray:
    """A block's part of an image of outputs (N, OH, OW, F), as rows (rows, L·F) of L pixels: a copy."""
    (mh, mw), f = grid.m, y.shape[3]
    part = y[block.first:block.last, mh * block.first_row:mh * block.last_row,
             mw * block.first_column:mw * block.last_column]
    return part.reshape(-1, part.shape[2] * f)


def positions(count: int, rows: int, columns: int, dtype: np.dtype, name: str | None = None) -> np.ndarray:
    """An uninitialised array (count, rows, columns) with a gap after each position: this thread's of that name."""
    def make() -> np.ndarray:
        shape = count, rows * columns + GAP
        flat = memory.empty(shape, dtype) if name is None else memory.scratch(shape, dtype, name)
        return flat[:, :-GAP].reshape(count, rows, columns, copy=False)

    return make() if name is None else memory.views((count, rows, columns, dtype.char, name), make)


def view(array: np.ndarray, start: int, shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """A strided view of a contiguous array; start and strides in elements (as_strided takes 5 µs, this 1)."""
    size = array.itemsize
    return np.ndarray(shape, array.dtype, array, start * size, [size * stride for stride in strides])


def gather(images: Sequence[np.ndarray], grid: Grid, block: Block, columns: np.ndarray) -> None:
    """Lay out a block's pixels by their column in the tile: columns (taps, images, rows, tiles, C), 0 outside.

    The images' channels lie side by side in C.
    """
    (h, w), (mh, mw) = grid.size, grid.m
    taps, n, height, tiles, _ = columns.shape
    top, left = mh * block.first_row - grid.padding[0], mw * block.first_column - grid.padding[1]
    first = min(height, max(0, -top))
    rows = slice(first, max(first, min(height, h - top)))       # that lie in the image
    columns[:, :, :rows.start] = columns[:, :, rows.stop:] = 0
    for tap, tile in agreeing_pixels(taps, tiles, mw, -left, w):
        columns[tap, :, rows, :tile.start] = columns[tap, :, rows, tile.stop:] = 0
        if rows.start == rows.stop or tile.start == tile.stop:
            continue
        channel = 0
        for x in images:
            c = x.shape[3]
            start = ((block.first * h + top + rows.start) * w + left + mw * tile.start + tap.start) * c
            shape = tap.stop - tap.start, n, rows.stop - rows.start, tile.stop - tile.start, c
            columns[tap, :, rows, tile, channel:channel + c] = view(x, start, shape, (c, h * w * c, w * c, mw * c, 1))
            channel += c


def scatter(tiles: np.ndarray, grid: Grid, block: Block, images: Sequence[np.ndarray]) -> None:
    """Put a block's tiles (m, m, P, F) where they belong in images (N, OH, OW, ·), whose channels lie side by side."""
    (h, w), (mh, mw), (n, down, across) = grid.out_size, grid.m, block.shape
    top, left = mh * block.first_row, mw * block.first_column
    by_pixel = tiles.reshape(mh, mw, n, down, across, -1).transpose(2, 3, 0, 4, 1, 5)   # (n, down, mh, across, mw, F)
    for i, row in agreeing_pixels(mh, down, mh, 0, h - top):
        for j, column in agreeing_pixels(mw, across, mw, 0, w - left):
            if row.start == row.stop or column.start == column.stop:
                continue
            channel = 0
            for y in images:
                f = y.shape[3]
                start = ((block.first * h + top + mh * row.start + i.start) * w
                         + left + mw * column.start + j.start) * f
                shape = (n, row.stop - row.start, i.stop - i.start, column.stop - column.start, j.stop - j.start, f)
                pixels = view(y, start, shape, (h * w * f, mh * w * f, w * f, mw * f, f, 1))
                pixels[...] = by_pixel[:, row, i, column, j, channel:channel + f]
                channel += f


@lru_cache(maxsize=1024)
def agreeing_pixels(taps: int, tiles: int, m: int, padding: int, length: int) -> list[tuple[slice, slice]]:
    """(taps, tiles): along one axis of this length, the tiles for which these neighbouring taps lie inside."""
    def inside(tap: int) -> tuple[int, int]:
        first = min(max(0, -(-(padding - tap) // m)), tiles)
        return first, max(first, min(tiles, (length - 1 + padding - tap) // m + 1))

    groups = [(slice(*bounds), list(group)) for bounds, group in groupby(range(taps), inside)]
    return [(slice(group[0], group[-1] + 1), tile) for tile, group in groups]


@lru_cache(maxsize=1024)
def agreeing_tiles(taps: int, tiles: range, m: int, padding: int, length: int) -> list[tuple[range, slice]]:
    """(tiles, taps): along one axis of this length, the taps that lie inside for each of these neighbouring tiles."""
    def inside(tile: int) -> tuple[int, int]:
        first = min(max(0, padding - m * tile), taps)
        return first, max(first, min(taps, length + padding - m * tile))

    groups = [(slice(*bounds), list(group)) for bounds, group in groupby(tiles, inside)]
    return [(range(group[0], group[-1] + 1), tap) for tap, group in groups]
