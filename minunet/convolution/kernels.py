"""The three products on a GPU, real or simulated: rungs 1 to 3 of the ladder of kernels, for any geometry.

| rung | algorithm | kernels | |
|---|---|---|---|
| 1 | "direct" | conv_direct.cu | one thread an output number |
| 2 | "im2col" | im2col.cu | the column matrix, chunk by chunk, and the array module's GEMM |
| 3 | "implicit" | conv_implicit.cu, conv_slices.cu | a tiled GEMM that never stores the column matrix |

Images are (N, H, W, C), weights (KH, KW, C, F); every array is contiguous, float32 or float64. Tiles and slices are
chosen by shape alone: every device computes the same sums in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from minunet.backend import address, array_module
from minunet.convolution.shape import Conv
from minunet.cuda import launch
from minunet.geometry import Geometry, Pair

ALGORITHMS = ("direct", "im2col", "implicit")

COLUMN_BYTES = 256 << 20        # of a chunk of the column matrix, or one row of windows where that is more
RESIDENT_BLOCKS = 264           # that run at the same time on the largest GPUs: 2 on each of 132 multiprocessors
FULL_ENOUGH = 0.85              # of the last round of resident blocks
SLICE_DEPTH = 256               # a slice of a sum is at least so long, or its result costs more than its sum


class Tile(NamedTuple):
    """m x n results of a block of 256 threads, thread_m x thread_n of each, k terms at a time (kernels/gemm.cuh)."""

    m: int
    n: int
    k: int
    thread_m: int
    thread_n: int


WIDE = Tile(128, 128, 8, 8, 8)
TALL = Tile(256, 64, 8, 8, 8)       # up to 64 filters
MIDDLE = Tile(128, 64, 8, 8, 4)     # odd channels, double, or few rows
NARROW = Tile(256, 32, 8, 8, 4)     # up to 32 results a pixel: a head with many classes
HEAD = Tile(256, 8, 8, 4, 2)        # up to 8: a head with few classes, the gradient of an RGB image
FLAT = Tile(32, 64, 16, 2, 4)       # weight gradient of the first layer: 9 or 27 rows
SLIM = Tile(64, 32, 16, 2, 4)       # weight gradient of a head with many classes
TINY = Tile(64, 8, 32, 2, 1)        # and of one with few

# what conv_implicit.cu is compiled with
DEFINES = ("TILE_M", "TILE_N", "TILE_K", "THREAD_M", "THREAD_N", "CHANNEL_VECTOR", "FILTER_VECTOR")


def tile_for(rows: int, columns: int, by_four: bool) -> Tile:
    """The tile for a product of rows x columns results: one that wastes few of its threads on results beyond them.

    by_four: whether all is loaded four numbers at a time. The largest tiles have no registers left for anything else.
    """
    if columns <= 8:
        return TINY if rows <= 1024 else HEAD
    if columns <= 32:
        return SLIM if rows <= 1024 else NARROW
    if rows <= 32:
        return FLAT
    if not by_four or columns <= 64 and rows < 2048:
        return MIDDLE
    return WIDE if columns > 64 else TALL


def slices_for(tiles: int, depth: int) -> int:
    """Into how many slices to cut sums of depth terms, so that this many tiles keep a large GPU busy.

    The fewest that leave its last round of blocks full enough; or else those that leave it fullest.
    """
    if tiles == 0:
        return 1

    def fullness(slices: int) -> float:
        rounds = tiles * slices / RESIDENT_BLOCKS
        return min(rounds / math.ceil(rounds), FULL_ENOUGH)

    most = min(depth // SLICE_DEPTH, 4 * RESIDENT_BLOCKS // tiles)
    return max(range(1, max(1, most) + 1), key=lambda slices: (fullness(slices), -slices))


def forward(weight: Any, geometry: Geometry, x: Any, bias: Any = None, relu: bool = False,
            algorithm: str = "implicit") -> Any:
    """A x, plus bias (F,), negative results set to 0 if relu: x (N, H, W, C) -> (N, OH, OW, F)."""
    s = Conv.of(geometry, len(x), x.shape[1:3], *weight.shape[2:])
    shape = (s.images, s.out_height, s.out_width, s.filters)
    if algorithm == "im2col":
        return _forward_im2col(weight, s, x, shape, bias, relu)
    if algorithm == "direct":
        y = array_module(x).empty(shape, x.dtype)
        launch("conv_direct.forward", x, weight, weight if bias is None else bias, y, s, bias is not None, int(relu),
               threads=y.size)
        return y
    rows, depth = s.images * s.out_height * s.out_width, s.kernel_h * s.kernel_w * s.channels
    return _implicit("forward", s, x, weight, shape, (rows, s.filters, depth), bias, relu)


def transposed(weight: Any, geometry: Geometry, y: Any, size: Pair, bias: Any = None,
               algorithm: str = "implicit") -> Any:
    """Aᵀ y, plus bias (C,): y (N, OH, OW, F) -> (N, H, W, C) with (H, W) = size."""
    s = Conv.of(geometry, len(y), size, *weight.shape[2:])
    shape = (s.images, s.height, s.width, s.channels)
    if algorithm == "im2col":
        return _transposed_im2col(weight, s, y, shape, bias)
    if algorithm == "direct":
        x = array_module(y).empty(shape, y.dtype)
        launch("conv_direct.transposed", y, weight, weight if bias is None else bias, x, s, bias is not None,
               threads=x.size)
        return x
    if geometry.is_patches:
        patches = s.images * -(-s.height // s.kernel_h) * -(-s.width // s.kernel_w)
        product = (patches, s.kernel_h * s.kernel_w * s.channels, s.filters)
        return _implicit("transposed_patches", s, y, weight, shape, product, bias)
    product = (s.images * s.height * s.width, s.channels, s.kernel_h * s.kernel_w * s.filters)
    return _implicit("transposed", s, y, weight, shape, product, bias)


def weight_grad(geometry: Geometry, x: Any, y: Any, algorithm: str = "implicit") -> Any:
    """The gradient of <y, A x> with respect to the weight: x (N, H, W, C), y (N, OH, OW, F) -> (KH, KW, C, F)."""
    s = Conv.of(geometry, len(x), x.shape[1:3], x.shape[3], y.shape[3])
    shape = (s.kernel_h, s.kernel_w, s.channels, s.filters)
    if algorithm == "im2col":
        return _weight_grad_im2col(s, x, y, shape)
    if algorithm == "direct":
        dw = array_module(x, y).empty(shape, x.dtype)
        launch("conv_direct.weight_grad", x, y, dw, s, threads=dw.size)
        return dw
    rows, depth = s.kernel_h * s.kernel_w * s.channels, s.images * s.out_height * s.out_width
    return _implicit("weight_grad", s, x, y, shape, (rows, s.filters, depth))


# ---- rung 3: implicit GEMM

def _implicit(kernel: str, s: Conv, left: Any, right: Any, shape: tuple[int, ...], product: tuple[int, int, int],
              bias: Any = None, relu: bool = False) -> Any:
    """One of the products, (rows, columns, depth) as a GEMM, in slices of its depth where its tiles are few."""
    xp, (rows, columns, depth) = array_module(left, right), product
    vectors = _vectors(s, left, right)
    tile = tile_for(rows, columns, set(vectors) == {4})
    tiles = -(-rows // tile.m), -(-columns // tile.n)
    slices = slices_for(tiles[0] * tiles[1], depth)
    slice_depth = -(-depth // (slices * tile.k)) * tile.k
    slices = max(1, -(-depth // slice_depth)) if depth else 1
    result = xp.empty(shape, left.dtype)
    out = result if slices == 1 else xp.empty((slices, *shape), left.dtype)
    finish = (int(bias is not None), int(relu))
    arguments: list[Any] = [left, right, out, s, slice_depth]
    if kernel != "weight_grad":
        arguments.insert(2, right if bias is None else bias)
        arguments += (finish if slices == 1 else (0, 0))[:2 if kernel == "forward" else 1]
    launch(f"conv_implicit.{kernel}", *arguments, blocks=(*tiles, slices),
           defines=dict(zip(DEFINES, (*tile, *vectors), strict=True)))
    if slices > 1:
        count, channels = result.size, shape[-1]
        launch("conv_slices.sum_slices", out, right if bias is None else bias, result, count, slices, channels, *finish,
               blocks=(-(-count // 32),))
    return result


def _vectors(s: Conv, *arrays: Any) -> tuple[int, int]:
    """How many channels, and how many filters, are loaded at once: 16 bytes, or one where they do not fit."""
    wide = 16 // arrays[0].dtype.itemsize
    aligned = all(address(array) % 16 == 0 for array in arrays)
    channels, filters = (wide if aligned and n % wide == 0 else 1 for n in (s.channels, s.filters))
    return channels, filters


# ---- rung 2: im2col and the array module's GEMM

class Chunk(NamedTuple):
    """Rows of windows whose columns are made together: all rows of some images, or some rows of one."""

    first_image: int
    images: int
    first_row: int
    rows: int


def chunks(s: Conv, itemsize: int) -> Iterator[Chunk]:
    """Cut all windows into chunks of at most COLUMN_BYTES of columns."""
    rows = COLUMN_BYTES // (s.out_width * s.kernel_h * s.kernel_w * s.channels * itemsize)      # that fit
    images, rows = max(1, rows // s.out_height), max(1, min(rows, s.out_height))
    for image in range(0, s.images, images):
        for row in range(0, s.out_height, rows):
            yield Chunk(image, min(images, s.images - image), row, min(rows, s.out_height - row))


def _columns(s: Conv, x: Any, chunk: Chunk) -> Any:
    """im2col of a chunk: (windows, KH*KW*C)."""
    windows = chunk.images * chunk.rows * s.out_width
    columns = array_module(x).empty((windows, s.kernel_h * s.kernel_w * s.channels), x.dtype)
    launch("im2col.im2col", x, columns, s, *chunk, threads=columns.size)
    return columns


def _windows(s: Conv, y: Any, chunk: Chunk) -> Any:
    """A chunk's part of y, a view: (windows, F)."""
    first = (chunk.first_image * s.out_height + chunk.first_row) * s.out_width
    return y.reshape(-1, s.filters)[first:first + chunk.images * chunk.rows * s.out_width]


def _forward_im2col(weight: Any, s: Conv, x: Any, shape: tuple[int, ...], bias: Any, relu: bool) -> Any:
    xp = array_module(weight, x)
    y = xp.empty(shape, x.dtype)
    matrix = weight.reshape(-1, s.filters)                                      # (KH*KW*C, F)
    for chunk in chunks(s, x.dtype.itemsize):
        xp.matmul(_columns(s, x, chunk), matrix, out=_windows(s, y, chunk))
    if bias is not None or relu:
        launch("im2col.epilogue", y, y if bias is None else bias, y.size, s.filters, bias is not None, int(relu),
               threads=y.size)
    return y


def _transposed_im2col(weight: Any, s: Conv, y: Any, shape: tuple[int, ...], bias: Any) -> Any:
    xp = array_module(weight, y)
    x = xp.zeros(shape, y.dtype)
    if bias is not None:
        x += bias
    matrix = weight.reshape(-1, s.filters).T                                    # (F, KH*KW*C)
    for chunk in chunks(s, y.dtype.itemsize):
        columns = xp.matmul(_windows(s, y, chunk), matrix)                      # (windows, KH*KW*C)
        top = max(0, chunk.first_row * s.stride_h - s.pad_h)
        last = (chunk.first_row + chunk.rows - 1) * s.stride_h - s.pad_h + (s.kernel_h - 1) * s.dilation_h
        height = min(s.height, last + 1) - top
        if height > 0:                                                          # else all in the padding
            launch("im2col.col2im", columns, x, s, *chunk, top, height,
                   threads=chunk.images * height * s.width * s.channels)
    return x


def _weight_grad_im2col(s: Conv, x: Any, y: Any, shape: tuple[int, ...]) -> Any:
    xp = array_module(x, y)
    dw = xp.zeros((s.kernel_h * s.kernel_w * s.channels, s.filters), x.dtype)
    for chunk in chunks(s, x.dtype.itemsize):
        dw += xp.matmul(_columns(s, x, chunk).T, _windows(s, y, chunk))         # (KH*KW*C, windows) @ (windows, F)
    return dw.reshape(shape)
