"""Winograd's convolution: 3x3 windows at stride 1 with a quarter of the multiplications.

Along one axis, m outputs of a filter with three taps g need m + 2 inputs d, and only m + 2 multiplications:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]                             F(m, 3); direct: 3 m multiplications

G g are, up to factors, the values of the polynomial g at m + 2 points; Aᵀ and Bᵀ are the transposes of taking the
values of another polynomial there, and of finding the polynomial from its values. In two dimensions, for every tile d
of (m + 2)² pixels and every filter, summed over the channels c,

    y_f = Aᵀ [Σ_c (G g_cf Gᵀ) ⊙ (Bᵀ d_c B)] A           F(m x m, 3x3)

For each of the (m + 2)² positions in a tile the sum is a matrix product, (tiles, C) @ (C, F). With m = 4 these take
36 multiplications where 16 pixels times 9 taps would take 144. Four functions make all products of a `ConvMatrix`:

    tiles_in        V = Bᵀ d B of every tile            (position, tile, channel)
    weights         U = G g Gᵀ                          (position, channel, filter)
    products        M = V U, position by position       (position, tile, filter)
    tiles_out       y = Aᵀ M A

The convolution is exactly that, and so is its transpose, with the kernel turned by 180°. The weight gradient is the
chain transposed at U: dg = Gᵀ (Vᵀ (A dy Aᵀ)) G, with this A, not the convolution's matrix.

The transforms' numbers grow with m, and errors with them: in float32 a result is several times less accurate than a
plain sum (benchmarks/RESULTS.md). And one NaN or infinity in a pixel makes all outputs of its tiles NaN.

Source: Lavin and Gray, Fast algorithms for convolutional neural networks (2016).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minunet import memory, parallel
from minunet.convolution.products import GAP, Each, multiply_each
from minunet.convolution.tiles import Block, Grid, from_rows, joined, positions, to_rows, view

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

    def between(self, block: Block) -> int:
        """Pixels of scratch that the transforms take beside V and M."""
        n, down, across = block.shape
        return self.size * n * down * (self.m * across + 2)

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

        b is added to M, in place. Returns what each makes of the block's pixels, if there is one image.
        """
        if b is not None:
            M[self.size + 1] += b                           # the position (1, 1)
        by_tile, first, found = self._by_tile(M, block), 0, None
        for y in ys:
            last = first + y.shape[3]
            half, columns = self._half(self.m, y.shape[3], block.shape)
            np.matmul(self.AT, by_tile[..., first:last], out=columns)
            found = to_rows(self.AT, half, y, grid, block, relu, each)
            first = last
        return found

    def _transform(self, matrix: np.ndarray, images: Images, grid: Grid, block: Block, out: np.ndarray) -> None:
        """out (positions, P, C) = matrix d matrixᵀ of tiles d of taps x taps pixels; matrix is (m + 2, taps)."""
        by_tile, first, taps = self._by_tile(out, block), 0, matrix.shape[1]
        for x in images:
            last = first + x.shape[3]
            half, columns = self._half(taps, x.shape[3], block.shape)
            from_rows(matrix, x, grid, block, half.shape[3], half)
            np.matmul(matrix, columns, out=by_tile[..., first:last])
            first = last

    def _by_tile(self, V: np.ndarray, block: Block) -> np.ndarray:
        """V (positions, P, C) as (position below, images, down, across, position beside, C)."""
        return V.reshape(self.size, self.size, *block.shape, -1, copy=False).transpose(0, 2, 3, 4, 1, 5)

    def _half(self, taps: int, c: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Scratch for tiles of which the rows alone are transformed: (m + 2, images, down, columns, C).

        And a view of it with the columns of each tile, m from the next one's: (m + 2, images, down, across, taps, C).
        """
        def make() -> tuple[np.ndarray, np.ndarray]:
            n, down, across = shape
            width = self.m * (across - 1) + taps
            half = memory.scratch((self.size, n * down * width * c + GAP), self.dtype, "half")
            strides = half.shape[1], down * width * c, width * c, self.m * c, c, 1
            return (half[:, :-GAP].reshape(self.size, n, down, width, c, copy=False),
                    view(half, 0, (self.size, n, down, across, taps, c), strides))

        return memory.views((self, taps, c, shape), make)


class RowWinograd:
    """F(4, 3) along the height alone, with half of the multiplications, for few channels.

    A tile is four outputs below each other, and six inputs. At each of the six positions stays a convolution with a row
    of three taps. Three pixels of V beside each other are 3 C numbers in a row; every third such window is a row of a
    matrix ((P − 2) / 3, 3 C) that lies in V as it is. So three products, with V shifted by 0, 1 and 2 pixels, make M,
    each every third pixel of it. V has two pixels more a row than there are tiles; what M holds at these, where the
    windows reach the next row, is not used. P is V's number of pixels: a multiple of 3, and the 2 that the last window
    reaches.
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

    def between(self, block: Block) -> int:
        """Pixels of scratch that the transforms take beside V and M: of images side by side."""
        _, down, across = block.shape
        return (4 * down + 2) * (across + 2)

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
        """M = V U for each shift: ((P − 2) / 3, 3 C) @ (3 C, F)."""
        multiply_each(_shifted(V, 3), U[:, None], _thirds(M))

    @staticmethod
    def products_backward(V: np.ndarray, D: np.ndarray, dU: np.ndarray) -> None:
        """dU = Vᵀ D for each tap, with V shifted by it: (C, P - 2) @ (P - 2, F)."""
        by_tap = dU.reshape(6, 3, V.shape[2], -1, copy=False)
        multiply_each(_shifted(V, 1).swapaxes(2, 3), D[:, None, :-2], by_tap)

    def tiles_out(self, M: np.ndarray, grid: Grid, block: Block, ys: Images, b: np.ndarray | None,
                  relu: bool, each: Each = None) -> Any:
        """y = Aᵀ M of the block's tiles M (6, P, F), plus b, then max(·, 0), into images side by side.

        b is added to M, in place. Returns what each makes of the block's pixels, if there is one image.
        """
        if b is not None:
            M[1, :-2] += b
        rows = self._by_row(M, block)
        if len(ys) == 1:
            return to_rows(self.AT, rows, ys[0], grid, block, relu, each)
        (_, down, across), top, left = block.shape, 4 * block.first_row, block.first_column
        height = min(4 * down, grid.out_size[0] - top)
        pixels = memory.scratch((1, height, across, M.shape[2]), self.dtype, "joined")
        part = grid._replace(images=1, out_size=(height, across))
        to_rows(self.AT, rows, pixels, part, Block(0, 1, 0, down, 0, across), relu)
        channel = 0
        for y in ys:
            y[block.first, top:top + height, left:left + across] = pixels[0, ..., channel:channel + y.shape[3]]
            channel += y.shape[3]
        return None

    def _transform(self, matrix: np.ndarray, images: Images, grid: Grid, block: Block, out: np.ndarray) -> None:
        """out (6, P, C) = matrix d of as many image rows d for each tile as the matrix (6, taps) has columns."""
        rows, x = self._by_row(out, block), images[0]
        columns = rows.shape[3] + matrix.shape[1] - 6
        out[:, rows.shape[2] * rows.shape[3]:] = 0
        if len(images) > 1:
            x, grid, block = joined(images, grid, block, (matrix.shape[1], 3))
        from_rows(matrix, x, grid, block, columns, rows)

    @staticmethod
    def _by_row(V: np.ndarray, block: Block) -> np.ndarray:
        """V (6, P, C) as rows of tiles with the two pixels behind them: (6, 1, down, across + 2, C)."""
        _, down, across = block.shape
        return V[:, :down * (across + 2)].reshape(6, 1, down, across + 2, -1, copy=False)


def _shifted(V: np.ndarray, window: int) -> np.ndarray:
    """A view of V (6, P, C) shifted by 0, 1 and 2 pixels: windows of so many, (6, 3, (P - 2) / window, window · C)."""
    _, p, c = V.shape
    position, pixel, number = V.strides
    return np.lib.stride_tricks.as_strided(V, (6, 3, (p - 2) // window, window * c),
                                           (position, pixel, window * pixel, number))


def _thirds(M: np.ndarray) -> np.ndarray:
    """A view of M (6, P, F) as the results of windows of 3 pixels: (6, 3, (P - 2) / 3, F)."""
    return M[:, :-2].reshape(6, -1, 3, M.shape[2], copy=False).swapaxes(1, 2)


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
