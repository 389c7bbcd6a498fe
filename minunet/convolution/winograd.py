"""Winograd's convolution: 3x3 windows at stride 1 with a quarter of the multiplications.

Along one axis, m outputs of a filter with three taps g need m + 2 inputs d, and only m + 2 multiplications:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]                             F(m, 3); direct: 3 m multiplications

G g are the values of the polynomial g at m + 2 points; Aᵀ and Bᵀ are the transposes of taking the values of another
polynomial there, and of finding the polynomial from its values. In two dimensions, for every tile d of (m + 2)² pixels
and every filter, summed over the channels c,

    y_f = Aᵀ [Σ_c (G g_cf Gᵀ) ⊙ (Bᵀ d_c B)] A           F(m x m, 3x3)

For each of the (m + 2)² positions in a tile the sum is a matrix product, (tiles, C) @ (C, F). With m = 4 these take
36 multiplications where 16 pixels times 9 taps would take 144. Four functions make all products of a `ConvMatrix`:

    tiles_in        V = Bᵀ d B of every tile            (position, tile, channel)
    weights         U = G g Gᵀ                          (position, channel, filter)
    products        M = V U, position by position       (position, tile, filter)
    tiles_out       y = Aᵀ M A

The convolution is exactly that. Its weight gradient is the chain transposed at U: dg = Gᵀ (Vᵀ (A dy Aᵀ)) G, with this
A, not the convolution's matrix.

The transforms multiply by small whole numbers whose errors do not cancel: in float32 the result is a few times less
accurate than a plain sum (benchmarks/RESULTS.md). And what is not a number in one pixel is none in all outputs of its
tiles.

Source: Lavin and Gray, Fast algorithms for convolutional neural networks (2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minunet import memory, parallel
from minunet.convolution.products import GAP, Each, multiply_each, rectify, together
from minunet.convolution.tiles import Block, Grid, agreeing_tiles, gather, outputs, positions, scatter, view

Images = Sequence[np.ndarray]

WEIGHT_COLUMNS = 2048       # of the weights' matrix (9, C·F) that are transformed at a time,
WEIGHT_PARTS = 4            # and of these at least so many to a job


class Transforms(NamedTuple):
    """Bᵀ (m + 2, m + 2), G (m + 2, 3) and Aᵀ (m, m + 2) of F(m, 3), as float64."""

    BT: np.ndarray
    G: np.ndarray
    AT: np.ndarray


# Points 0, 1, −1, ∞, and for m = 4 also 2, −2. In both, position 1 is the point 1, where every power is 1: so adding a
# number to M at the position (1, 1) adds it to all outputs of the tile.
TRANSFORMS = {
    2: Transforms(
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
        np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64)),
    4: Transforms(
        np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
                  [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], np.float64),
        np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64)),
}


class Winograd:
    """F(m x m, 3x3): the four functions, and the transposes of the last three, for blocks of P tiles."""

    taps = 1                            # pixels of V side by side that are multiplied as one row

    def __init__(self, m: int, dtype: np.dtype):
        self.m, self.dtype = m, np.dtype(dtype)
        self.size = m + 2                                   # of a tile of inputs
        self.positions = self.size ** 2                     # of V and M
        BT, G, AT = TRANSFORMS[m]
        self.BT, self.AT = BT.astype(dtype), AT.astype(dtype)
        self.G2 = np.kron(G, G).astype(dtype)               # (positions, 9)

    @staticmethod
    def length(block: Block) -> int:
        """P, the rows of V and M at one position."""
        return block.tiles

    def tiles_in(self, images: Images, grid: Grid, block: Block, V: np.ndarray) -> None:
        """V (positions, P, C) = Bᵀ d B of the block's tiles d; the images' channels lie side by side."""
        self._transform(self.BT, images, grid, block, V)

    def tiles_out_backward(self, dy: np.ndarray, grid: Grid, block: Block, D: np.ndarray) -> None:
        """D (positions, P, F) = A dy Aᵀ of the block's tiles of outputs."""
        self._transform(self.AT.T, (dy,), grid.outputs, block, D)

    def weights(self, w: np.ndarray, turned: bool = False) -> np.ndarray:
        """U (positions, C, F) = G g Gᵀ of w (3, 3, C, F), or of w turned by 180°."""
        c, f = w.shape[2:]
        taps = w.reshape(9, c * f)
        U = positions(self.positions, c, f, self.dtype)
        flat, matrix = U.reshape(self.positions, c * f, copy=False), self.G2[:, ::-1].copy() if turned else self.G2
        _over_columns(lambda part: np.matmul(matrix, taps[:, part], out=flat[:, part]), c * f)
        return U

    def weights_backward(self, dU: np.ndarray) -> np.ndarray:
        """dw (3, 3, C, F) = Gᵀ dU G."""
        _, c, f = dU.shape
        dw = memory.empty((3, 3, c, f), self.dtype)
        taps, flat = dw.reshape(9, c * f), dU.reshape(self.positions, c * f, copy=False)
        _over_columns(lambda part: np.matmul(self.G2.T, flat[:, part], out=taps[:, part]), c * f)
        return dw

    @staticmethod
    def products(V: np.ndarray, U: np.ndarray, M: np.ndarray) -> None:
        """M = V U at each position: (P, C) @ (C, F)."""
        multiply_each(V, U, M)

    @staticmethod
    def products_backward(V: np.ndarray, D: np.ndarray, dU: np.ndarray) -> None:
        """dU = Vᵀ D at each position: (C, P) @ (P, F)."""
        multiply_each(V.transpose(0, 2, 1), D, dU)

    def tiles_out(self, M: np.ndarray, grid: Grid, block: Block, ys: Images, b: np.ndarray | None,
                  relu: bool, each: Each = None) -> Any:
        """y = Aᵀ M A of the block's tiles M (positions, P, F), plus b, then max(·, 0), into images side by side.

        b is added to M, in place. Returns what each makes of the block's pixels.
        """
        _, p, f = M.shape
        if b is not None:
            M[self.size + 1] += b                           # the position (1, 1)
        by_row, by_column, tiles = memory.views((self, "out", p, f), lambda: self._views_out(p, f))
        length = by_row.shape[-1]
        np.matmul(self.AT, M.reshape(self.size, self.size, -1, length, copy=False).transpose(1, 2, 0, 3), out=by_row)
        np.matmul(self.AT, by_column, out=tiles.reshape(self.m, self.m, -1, length).transpose(0, 2, 1, 3))
        pixels = tiles.reshape(self.m ** 2, p * f)
        if relu:
            rectify(pixels)
        scatter(tiles, grid, block, ys)
        return None if each is None else each(pixels if grid.whole else outputs(ys[0], grid, block))

    def _views_out(self, p: int, f: int) -> tuple[np.ndarray, ...]:
        """Scratch of `tiles_out`: AᵀM, rows of it as they are made and as they are read, and the tiles (m, m, P, F).

        Tiles lie side by side in rows (for a product: groups, position, tiles and filters) that are small products.
        """
        m, size, k = self.m, self.size, together(p, f * self.size * self.m)
        half = memory.scratch((m, size, p * f + GAP), self.dtype, "half")[..., :-GAP]
        half = half.reshape(m, size, p // k, k * f, copy=False)
        return half.transpose(1, 2, 0, 3), half.transpose(0, 2, 1, 3), memory.scratch((m, m, p, f), self.dtype, "tiles")

    def _transform(self, matrix: np.ndarray, images: Images, grid: Grid, block: Block, out: np.ndarray) -> None:
        """out (positions, P, C) = matrix d matrixᵀ of tiles d of taps x taps pixels; matrix is (m + 2, taps)."""
        (size, taps), c, shape = matrix.shape, out.shape[2], block.shape
        columns, by_column, half, by_row = memory.views((self, taps, c, shape), lambda: self._views_in(taps, c, shape))
        gather(images, grid, block, columns)
        np.matmul(matrix, by_column, out=half)
        np.matmul(matrix, by_row, out=out.reshape(size, size, *shape[:2], -1, copy=False).transpose(1, 2, 3, 0, 4))

    def _views_in(self, taps: int, c: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
        """Scratch of `_transform`: the columns as `gather` makes them, and as they are read; their transform as it is
        made, and as windows of taps lines, m lines apart, for each row of tiles."""
        (n, down, across), size = shape, self.size
        height = self.m * (down - 1) + taps                 # image rows for `down` rows of tiles
        count, line = n * height * across, across * c
        columns = memory.scratch((taps, count * c + GAP), self.dtype, "tiles")[:, :-GAP]
        half = memory.scratch((size, count * c + GAP), self.dtype, "half")
        k = together(count, c * size * taps)
        windows = view(half, 0, (size, n, down, taps, line), (half.shape[1], height * line, self.m * line, line, 1))
        return (columns.reshape(taps, n, height, across, c, copy=False),
                columns.reshape(taps, count // k, k * c, copy=False).transpose(1, 0, 2),
                half[:, :-GAP].reshape(size, count // k, k * c, copy=False).transpose(1, 0, 2), windows)


class RowWinograd:
    """F(4, 3) along the height alone, with half of the multiplications, for few channels: nothing is copied, image rows
    are transformed as they lie.

    A tile is four outputs below each other, and six inputs. At each of the six positions stays a convolution with a row
    of three taps. Three pixels of V beside each other are 3 C numbers in a row; every third such window is a row of a
    matrix (P / 3, 3 C) that lies in V as it is. So three products, with V shifted by 0, 1 and 2 pixels, make M: each
    every third pixel of it. V has two pixels more a row than there are tiles; what M holds at these, where the windows
    reach the next row, is not used. P is V's number of pixels: a multiple of 3, and the 2 that the last window reaches.
    """

    positions = 6                       # of V and M
    taps = 3                            # pixels of V side by side that are multiplied as one row

    def __init__(self, dtype: np.dtype):
        self.dtype = np.dtype(dtype)
        self.BT, self.G, self.AT = (matrix.astype(dtype) for matrix in TRANSFORMS[4])

    @staticmethod
    def length(block: Block) -> int:
        """P, the rows of V and M at one position."""
        _, down, across = block.shape
        return -(-down * (across + 2) // 3) * 3 + 2

    def tiles_in(self, images: Images, grid: Grid, block: Block, V: np.ndarray) -> None:
        """V (6, P, C) = Bᵀ d of six image rows d for each tile; the images' channels lie side by side."""
        self._transform(self.BT, images, grid, block, V)

    def tiles_out_backward(self, dy: np.ndarray, grid: Grid, block: Block, D: np.ndarray) -> None:
        """D (6, P, F) = A dy of four rows for each tile of outputs, zero at the last two pixels of a row."""
        self._transform(self.AT.T, (dy,), grid.outputs, block, D)

    def weights(self, w: np.ndarray, turned: bool = False) -> np.ndarray:
        """U (6, 3 C, F) = G g along the height of w (3, 3, C, F), or of w turned by 180°."""
        w = w[::-1, ::-1] if turned else w
        return (self.G @ w.reshape(3, -1)).reshape(6, -1, w.shape[3])

    def weights_backward(self, dU: np.ndarray) -> np.ndarray:
        """dw (3, 3, C, F) = Gᵀ dU along the height."""
        return (self.G.T @ dU.reshape(6, -1)).reshape(3, 3, -1, dU.shape[2])

    @staticmethod
    def products(V: np.ndarray, U: np.ndarray, M: np.ndarray) -> None:
        """M = V U for each shift: (P / 3, 3 C) @ (3 C, F)."""
        multiply_each(_shifted(V, 3), U[:, None], _thirds(M))

    @staticmethod
    def products_backward(V: np.ndarray, D: np.ndarray, dU: np.ndarray) -> None:
        """dU = Vᵀ D for each tap, with V shifted by it: (C, P - 2) @ (P - 2, F)."""
        by_tap = dU.reshape(6, 3, V.shape[2], -1, copy=False)
        multiply_each(_shifted(V, 1).swapaxes(2, 3), D[:, None, :-2], by_tap)

    def tiles_out(self, M: np.ndarray, grid: Grid, block: Block, ys: Images, b: np.ndarray | None,
                  relu: bool, each: Each = None) -> Any:
        """y = Aᵀ M of the block's tiles M (6, P, F), plus b, then max(·, 0), into images side by side.

        Returns what each makes of the block's pixels.
        """
        f, first, (_, down, across) = M.shape[2], block.first_row, block.shape
        if b is not None:
            M[1, :-2] += b
        rows = _rows(M, down, across + 2)[:, :, :across].reshape(6, down, -1, copy=False).transpose(1, 0, 2)
        place = (block.first, slice(4 * first, min(4 * block.last_row, grid.out_size[0])),
                 slice(block.first_column, block.last_column))
        pixels = (ys[0][place] if len(ys) == 1 else
                  memory.scratch((place[1].stop - 4 * first, across, f), self.dtype, "tiles"))
        lines = pixels.reshape(len(pixels), across * f, copy=False)
        for tiles, tap in agreeing_tiles(4, range(first, block.last_row), 4, 0, grid.out_size[0]):
            start, count = 4 * (tiles.start - first), tap.stop - tap.start
            np.matmul(self.AT[tap], rows[tiles.start - first:tiles.stop - first],
                      out=lines[start:start + len(tiles) * count].reshape(len(tiles), count, -1, copy=False))
        if relu:
            rectify(lines)
        if len(ys) > 1:
            channel = 0
            for y in ys:
                y[place] = pixels[..., channel:channel + y.shape[3]]
                channel += y.shape[3]
        return None if each is None else each(lines)

    def _transform(self, matrix: np.ndarray, images: Images, grid: Grid, block: Block, out: np.ndarray) -> None:
        """out (6, P, C) = matrix d of as many image rows d for each tile as the matrix (6, taps) has columns."""
        (h, w), (ph, pw), c, taps = grid.size, grid.padding, out.shape[2], matrix.shape[1]
        (_, down, across), first = block.shape, block.first_row
        top, left = max(0, 4 * first - ph), block.first_column - pw
        begin, end = max(0, left), min(w, left + across + taps - 4)         # the columns that lie in the image
        rows = _rows(out, down, across + 2)
        out[:, down * (across + 2):] = rows[:, :, :begin - left] = rows[:, :, end - left:] = 0
        inside = rows[:, :, begin - left:end - left].reshape(6, down, -1, copy=False).transpose(1, 0, 2)
        image, start, line = images[0], ((block.first * h + top) * w + begin) * c, w * c
        if len(images) > 1:
            lines = slice(top, min(h, 4 * (block.last_row - 1) - ph + taps))
            parts = [x[block.first, lines, begin:end] for x in images]
            image, start, line = _side_by_side(parts), 0, (end - begin) * c
        for tiles, tap in agreeing_tiles(taps, range(first, block.last_row), 4, ph, h):
            above = start + (4 * tiles.start - ph + tap.start - top) * line
            shape = len(tiles), tap.stop - tap.start, (end - begin) * c
            np.matmul(matrix[:, tap], view(image, above, shape, (4 * line, line, 1)),
                      out=inside[tiles.start - first:tiles.stop - first])


def _rows(V: np.ndarray, down: int, across: int) -> np.ndarray:
    """A view of V (6, P, C) as rows of tiles: (6, down, across, C)."""
    return V[:, :down * across].reshape(6, down, across, -1, copy=False)


def _shifted(V: np.ndarray, window: int) -> np.ndarray:
    """A view of V (6, P, C) shifted by 0, 1 and 2 pixels: windows of so many, (6, 3, (P - 2) / window, window · C)."""
    _, p, c = V.shape
    position, pixel, number = V.strides
    return np.lib.stride_tricks.as_strided(V, (6, 3, (p - 2) // window, window * c),
                                           (position, pixel, window * pixel, number))


def _thirds(M: np.ndarray) -> np.ndarray:
    """A view of M (6, P, F) as the results of windows of 3 pixels: (6, 3, (P - 2) / 3, F)."""
    return M[:, :-2].reshape(6, -1, 3, M.shape[2], copy=False).swapaxes(1, 2)


def _side_by_side(parts: Images) -> np.ndarray:
    """Images (H, W, ·) as one with all their channels, in scratch."""
    joined = memory.scratch((*parts[0].shape[:2], sum(part.shape[2] for part in parts)), parts[0].dtype, "tiles")
    return np.concatenate(parts, axis=2, out=joined)


def _over_columns(function: Callable[[slice], object], columns: int) -> None:
    """function of all columns, WEIGHT_COLUMNS at a time; several of these to a job."""
    parts = parallel.slices(columns, WEIGHT_COLUMNS)

    def several(group: slice) -> None:
        for part in parts[group]:
            function(part)

    parallel.run(several, parallel.slices(len(parts), max(WEIGHT_PARTS, -(-len(parts) // 8))))


@lru_cache(maxsize=None)
def in_tiles(m: int, dtype: np.dtype) -> Winograd:
    """`Winograd` of this m and dtype, made once."""
    return Winograd(m, dtype)


@lru_cache(maxsize=None)
def in_rows(dtype: np.dtype) -> RowWinograd:
    """`RowWinograd` of this dtype, made once."""
    return RowWinograd(dtype)
