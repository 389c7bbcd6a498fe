"""The three products of a `ConvMatrix` by Winograd's algorithm: which form of it, and in what order over the tiles.

A x is tiles in, products, tiles out. At stride 1, Aᵀ y is a convolution too, with the kernel turned by 180° and
channels and filters exchanged.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minunet import memory, parallel
from minunet.convolution.products import UNPACKED, Each
from minunet.convolution.tiles import Block, Grid, positions
from minunet.convolution.winograd import Images, RowWinograd, Winograd, in_rows, in_tiles
from minunet.geometry import Pair

# Crossovers between the forms, see `plan`.
NARROW = 64                 # channels and filters together
BY_BLOCKS = 1 << 16         # channels times filters, for A x and Aᵀ y
BY_BLOCKS_GRADIENT = 1 << 14
FEW_TILES, WIDE = 64, 256   # tiles; channels or filters

# Numbers in a kernel from which on Aᵀ y multiplies by its transposed U as it lies: to copy these takes longer than what
# products with a copy are faster.
TRANSPOSED = 9 << 19

# Blocks. Larger ones leave the cache; but between the steps of a block threads hand over the interpreter, which takes
# longer than the steps of a small one.
BLOCK_NUMBERS = 900_000     # of V and M; twice that in a gradient by `Winograd`, which adds to a large dU after each
FEWEST_BLOCKS = 4           # of a product, as long as they keep
BLOCK_TILES = 64            # so many tiles
GROUPS = 8                  # the most partial sums of a weight gradient; each takes every so many-th block

# Chunks.
PART_NUMBERS = 400_000      # of V: a block of those that are transformed first,
CHUNK_NUMBERS = 1 << 23     # and all of them together
POSITIONS = 3               # whose products are then one job

SMALL = 1 << 17             # numbers that are not shared out among threads


class Plan(NamedTuple):
    """How a product goes over its tiles: block by block through all functions, or each function over many blocks first.

    A block stays in a core's cache from its first transform to its last. But with many channels it would read all of U
    for a few tiles. Then the blocks of a chunk are all transformed first, and each matrix of U is read once for them.
    """

    algorithm: Winograd | RowWinograd
    grid: Grid
    blocks: list[Block]
    chunk: int = 0          # blocks; 0: each block by itself

    @property
    def chunks(self) -> list[list[Block]]:
        """The blocks by chunks."""
        return [self.blocks[part] for part in parallel.slices(len(self.blocks), self.chunk)]


def plan(images: int, size: Pair, out_size: Pair, padding: Pair, c: int, f: int, dtype: np.dtype,
         gradient: bool = False) -> Plan:
    """The fastest form for these sizes, as measured on two cores with AVX-512; gradient for the weight gradient."""
    if c + f <= NARROW:         # transforms in two dimensions would take longer than what they save
        rows, grid = in_rows(dtype), Grid((4, 1), images, size, out_size, padding)
        tiles = BLOCK_NUMBERS // (rows.positions * (c + f))
        return Plan(rows, grid, grid.blocks(tiles, _widest(rows.positions, 1, c, f), images=1))
    tiles, m = images * -(-out_size[0] // 4) * -(-out_size[1] // 4), 4
    if max(c, f) > WIDE and tiles < FEW_TILES:
        m = 2                   # otherwise transforming the weights would take longer than multiplying
    algorithm, grid = in_tiles(m, dtype), Grid((m, m), images, size, out_size, padding)
    widest = _widest(algorithm.size, m, c, f)
    if c * f <= (BY_BLOCKS_GRADIENT if gradient else BY_BLOCKS):
        numbers = BLOCK_NUMBERS * (2 if gradient else 1)
        tiles = max(BLOCK_TILES, min(numbers // (algorithm.positions * (c + f)), tiles // FEWEST_BLOCKS))
        return Plan(algorithm, grid, grid.blocks(tiles, min(tiles, widest)))
    tiles = max(1, PART_NUMBERS // (algorithm.positions * max(c, f)))
    blocks = grid.blocks(tiles, min(2 * tiles, widest))
    numbers = algorithm.positions * max(c, f) * max((block.tiles for block in blocks), default=1)
    return Plan(algorithm, grid, blocks, chunk=max(1, CHUNK_NUMBERS // numbers))


def _widest(size: int, m: int, c: int, f: int) -> int:
    """The most tiles of m columns in a row whose transform, (size, size) @ (size, columns · channels), is small."""
    return max(1, UNPACKED // (size**2 * max(c, f)) // m - 1)


def forward(w: np.ndarray, xs: Images, padding: Pair, b: np.ndarray | None = None, relu: bool = False,
            each: Each = None) -> tuple[np.ndarray, list[Any]]:
    """A x + b, or the maximum of this and 0: images side by side xs (N, H, W, ·), w (3, 3, C, F) -> (N, OH, OW, F).

    And what each makes of its blocks, in their order.
    """
    n, height, width, _ = xs[0].shape
    out_size = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    y = memory.empty((n, *out_size, w.shape[3]), w.dtype)
    chosen = plan(n, (height, width), out_size, padding, w.shape[2], w.shape[3], w.dtype)
    return y, _convolve(chosen, chosen.algorithm.weights(w), xs, (y,), b, relu, each)


def transposed(w: np.ndarray, y: np.ndarray, padding: Pair, channels: Sequence[int],
               b: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Aᵀ y + b, cut into images (N, H, W, ·) of these channels: y (N, OH, OW, F), w (3, 3, C, F)."""
    n, height, width, f = y.shape
    size = height - 2 * padding[0] + 2, width - 2 * padding[1] + 2
    xs = tuple(memory.empty((n, *size, c), w.dtype) for c in channels)
    c = w.shape[2]
    chosen = plan(n, (height, width), size, (2 - padding[0], 2 - padding[1]), f, c, w.dtype)
    if w.size < TRANSPOSED:
        U = chosen.algorithm.weights(_exchanged(w), turned=True)
    else:
        U = chosen.algorithm.weights(w, turned=True).transpose(0, 2, 1)
    _convolve(chosen, U, (y,), xs, b)
    return xs


def _exchanged(w: np.ndarray) -> np.ndarray:
    """w (3, 3, C, F) with channels and filters exchanged, (3, 3, F, C)."""
    c, f = w.shape[2:]
    exchanged = memory.empty((3, 3, f, c), w.dtype)
    taps, taps_of_w = exchanged.reshape(9, f, c), w.reshape(9, c, f)
    # Of a large matrix few rows at a time: the columns that they become share few lines of the cache.
    rows = parallel.slices(c, 8 if f >= 512 else c)

    def exchange(part: slice) -> None:
        for some in rows:
            taps[part, :, some] = taps_of_w[part, some].swapaxes(1, 2)

    parallel.run(exchange, parallel.slices(9, 9 if w.size <= SMALL else 1))
    return exchanged


def weight_grad(xs: Images, y: np.ndarray, padding: Pair) -> np.ndarray:
    """The gradient of <y, A x> with respect to w: images side by side xs, y (N, OH, OW, F) -> (3, 3, C, F)."""
    n, height, width, _ = xs[0].shape
    c, f = sum(x.shape[3] for x in xs), y.shape[3]
    chosen = plan(n, (height, width), y.shape[1:3], padding, c, f, y.dtype, gradient=True)
    algorithm, grid, blocks, _ = chosen
    if not blocks:                                      # no images
        return np.zeros((3, 3, c, f), y.dtype)

    def sums(name: str | None = None) -> np.ndarray:
        return positions(algorithm.positions, algorithm.taps * c, f, y.dtype, name)

    if chosen.chunk:
        dU = sums()
        for number, chunk in enumerate(chosen.chunks):
            _add_chunk(chosen, chunk, xs, y, dU, first=number == 0)
        return algorithm.weights_backward(dU)

    def products(block: Block, dU: np.ndarray) -> None:
        V, D = (positions(algorithm.positions, algorithm.length(block), channels, y.dtype, name)
                for name, channels in (("V", c), ("M", f)))
        algorithm.tiles_in(xs, grid, block, V)
        algorithm.tiles_out_backward(y, grid, block, D)
        algorithm.products_backward(V, D, dU)

    def partial_sum(group: int) -> np.ndarray:
        total = sums()
        products(blocks[group], total)
        for block in blocks[group + groups::groups]:
            more = sums("dU")
            products(block, more)
            total += more
        return total

    groups = min(GROUPS, len(blocks))
    dU, *others = parallel.run(partial_sum, range(groups))

    def add(part: slice) -> None:
        for other in others:                            # in the same order on any machine
            dU[part] += other[part]

    parallel.run(add, parallel.slices(algorithm.positions, -(-algorithm.positions // (4 if dU.size > SMALL else 1))))
    return algorithm.weights_backward(dU)


def _convolve(chosen: Plan, U: np.ndarray, xs: Images, ys: Images, b: np.ndarray | None, relu: bool = False,
              each: Each = None) -> list[Any]:
    """Tiles in, products, tiles out; what each makes of the blocks."""
    algorithm, grid, c, f = *chosen[:2], U.shape[1] // chosen.algorithm.taps, U.shape[2]

    def through(block: Block) -> Any:
        V, M = (positions(algorithm.positions, algorithm.length(block), channels, U.dtype, name)
                for name, channels in (("V", c), ("M", f)))
        algorithm.tiles_in(xs, grid, block, V)
        algorithm.products(V, U, M)
        return algorithm.tiles_out(M, grid, block, ys, b, relu, each)

    if not chosen.chunk:
        return parallel.run(through, chosen.blocks)
    found = []
    for chunk in chosen.chunks:
        place, tiles = _places(chunk)
        V, M = (positions(algorithm.positions, tiles, channels, U.dtype) for channels in (c, f))
        parallel.run(lambda block: algorithm.tiles_in(xs, grid, block, V[:, place[block]]), chunk)
        parallel.run(lambda q: algorithm.products(V[q], U[q], M[q]), parallel.slices(algorithm.positions, POSITIONS))
        found += parallel.run(
            lambda block: algorithm.tiles_out(M[:, place[block]], grid, block, ys, b, relu, each), chunk)
    return found


def _add_chunk(chosen: Plan, chunk: list[Block], xs: Images, y: np.ndarray, dU: np.ndarray, first: bool) -> None:
    """Add the products of a chunk's tiles to dU, or begin it with them."""
    algorithm, grid, (_, c, f) = *chosen[:2], dU.shape
    place, tiles = _places(chunk)
    V, D = (positions(algorithm.positions, tiles, channels, y.dtype) for channels in (c, f))

    def transform(block: Block) -> None:
        algorithm.tiles_in(xs, grid, block, V[:, place[block]])
        algorithm.tiles_out_backward(y, grid, block, D[:, place[block]])

    def multiply(q: slice) -> None:
        products = dU[q] if first else positions(q.stop - q.start, c, f, y.dtype, "dU")
        algorithm.products_backward(V[q], D[q], products)
        if not first:
            dU[q] += products

    parallel.run(transform, chunk)
    parallel.run(multiply, parallel.slices(algorithm.positions, POSITIONS))


def _places(chunk: list[Block]) -> tuple[dict[Block, slice], int]:
    """Where each block's tiles stand in V among those of its chunk, and how many tiles these are."""
    stops = list(itertools.accumulate(block.tiles for block in chunk))
    return {block: slice(stop - block.tiles, stop) for block, stop in zip(chunk, stops)}, stops[-1]
