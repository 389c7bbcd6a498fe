"""The three products as matrix products: im2col, a GEMM, and col2im.

im2col lays each window of the image out as one row of a column matrix X (N·OH·OW, KH·KW·C). With the weight as
W (KH·KW·C, F), the convolution matrix A acts as

    A x            =  X W                 (`forward`)
    Aᵀ y           =  col2im(y Wᵀ)        (`transposed`: each row is added back to the pixels it came from)
    weight gradient = Xᵀ y                (`weight_grad`)

X repeats every pixel KH·KW times (1152 MiB for the widest layer of a 512x512 U-Net), so it is never stored: blocks of
it are made, multiplied while they are in cache, and overwritten.

Source: Chellapilla, Puri, Simard, High performance convolutional neural networks for document processing (2006).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from minunet import parallel
from minunet.backend import array_module
from minunet.convolution.windows import crop_border, pad_border, windows
from minunet.geometry import Geometry, Pair

# A block of columns should stay in a core's second-level cache, but a GEMM of fewer rows than this spends its time
# reading the weight instead of multiplying.
BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 128

# The weight gradient sums over pixels: in at most GROUPS partial sums of at least GROUP_PIXELS output pixels each.
GROUPS = 16
GROUP_PIXELS = 512

# Rows of one large product that a thread takes at a time, where there are no columns to make.
PART_ROWS = 8192


class Block(NamedTuple):
    """A piece of the output whose pixels are contiguous: whole images, whole rows of one, or a part of one row."""

    images: slice
    rows: slice
    pixels: slice


def blocks(images: int, out_size: Pair, row_bytes: int) -> list[Block]:
    """Cut (images, OH, OW) output pixels into blocks of about BLOCK_BYTES of columns, at row_bytes a pixel."""
    oh, ow = out_size
    pixels = max(BLOCK_ROWS, BLOCK_BYTES // row_bytes)
    steps = pixels // (oh * ow), pixels // ow, pixels       # images, rows or pixels in a block
    cuts = (_ranges(n, max(1, min(step, n))) for n, step in zip((images, oh, ow), steps))
    return [Block(*piece) for piece in itertools.product(*cuts)]


def _ranges(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def forward(weight: np.ndarray, geometry: Geometry, x: np.ndarray) -> np.ndarray:
    """A x: x (N, H, W, C), weight (KH, KW, C, F) -> (N, OH, OW, F)."""
    xp = array_module(weight, x)
    out_size = geometry.output_size(x.shape[1:3])
    f = weight.shape[3]
    y = xp.empty((len(x), *out_size, f), x.dtype)
    if geometry.is_patches:
        rows, target = _patch_rows(x, y, geometry)

        def multiply_patches(part: slice) -> None:
            xp.matmul(rows[0][part], weight[0].reshape(-1, f), out=target[part])    # (..., OW, KW*C) @ (KW*C, F)
            for row, w_row in zip(rows[1:], weight[1:]):
                target[part] += row[part] @ w_row.reshape(-1, f)

        parallel.run(multiply_patches, _parts(target))
        return y
    windows_of_x = windows(pad_border(x, geometry), geometry, out_size)     # (N, OH, OW, KH, KW, C)
    matrix = weight.reshape(-1, f)                                          # (KH*KW*C, F)

    def multiply(block: Block) -> None:
        xp.matmul(_columns(windows_of_x[block]), matrix, out=y[block].reshape(-1, f))

    parallel.run(multiply, blocks(len(x), out_size, len(matrix) * x.itemsize))
    return y


def transposed(weight: np.ndarray, geometry: Geometry, y: np.ndarray, size: Pair) -> np.ndarray:
    """Aᵀ y: y (N, OH, OW, F), weight (KH, KW, C, F) -> (N, H, W, C) with (H, W) = size."""
    xp = array_module(weight, y)
    n, out_size, f = len(y), y.shape[1:3], y.shape[3]
    (ph, pw), (h, w) = geometry.padding, size
    kh, kw, c, _ = weight.shape
    if geometry.is_patches:
        covered = (out_size[0] * kh, out_size[1] * kw) == size
        x = (xp.empty if covered else xp.zeros)((n, *size, c), y.dtype)     # pixels that no window covers are 0
        rows, source = _patch_rows(x, y, geometry)

        def multiply_patches(part: slice) -> None:
            for row, w_row in zip(rows, weight):
                xp.matmul(source[part], w_row.reshape(-1, f).T, out=row[part])      # (..., OW, F) @ (F, KW*C)

        parallel.run(multiply_patches, _parts(source))
        return x
    padded = xp.zeros((n, h + 2 * ph, w + 2 * pw, c), y.dtype)
    windows_of_x = windows(padded, geometry, out_size)                      # (N, OH, OW, KH, KW, C)

    def add(band: list[Block]) -> None:
        """col2im: overlapping windows add up. The C columns of one kernel position lie in long runs on both sides."""
        for block in band:
            target = windows_of_x[block]
            columns = parallel.scratch((*target.shape[:3], c), y.dtype)
            for i in range(kh):
                for j in range(kw):
                    # (pixels, F) @ (F, C)
                    xp.matmul(y[block].reshape(-1, f), weight[i, j].T, out=columns.reshape(-1, c))
                    target[:, :, :, i, j] += columns

    row_bytes = (2 * c + f) * y.itemsize                                    # the columns, y and the sum
    for bands in _bands(blocks(n, out_size, row_bytes), geometry):
        parallel.run(add, bands)
    return xp.ascontiguousarray(crop_border(padded, geometry))


def weight_grad(geometry: Geometry, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of <y, A x> with respect to the weight: x (N, H, W, C), y (N, OH, OW, F) -> (KH, KW, C, F)."""
    xp = array_module(x, y)
    out_size, f, c = y.shape[1:3], y.shape[3], x.shape[3]
    windows_of_x = windows(pad_border(x, geometry), geometry, out_size)     # (N, OH, OW, KH, KW, C)
    length = geometry.kernel[0] * geometry.kernel[1] * c
    cut = blocks(len(x), out_size, length * x.itemsize)
    pixels = len(x) * out_size[0] * out_size[1]
    groups = min(GROUPS, pixels // GROUP_PIXELS, len(cut)) or 1

    def partial_sum(group: int) -> np.ndarray:
        total = xp.zeros((length, f), y.dtype)
        for block in cut[group::groups]:
            total += _columns(windows_of_x[block]).T @ y[block].reshape(-1, f)
        return total

    dw, *others = parallel.run(partial_sum, range(groups))
    for other in others:                                                    # in the same order on any machine
        dw += other
    return dw.reshape(*geometry.kernel, c, f)


def _columns(windows_of_x: np.ndarray) -> np.ndarray:
    """im2col of a block of windows (n, oh, ow, KH, KW, C): (n·oh·ow, KH·KW·C), in scratch, or as it lies for 1x1."""
    n, oh, ow, kh, kw, c = windows_of_x.shape
    columns = windows_of_x
    if not windows_of_x.flags.c_contiguous:
        columns = parallel.scratch(windows_of_x.shape, windows_of_x.dtype)
        columns[...] = windows_of_x
    return columns.reshape(n * oh * ow, kh * kw * c)


def _bands(cut: list[Block], geometry: Geometry) -> tuple[list[list[Block]], list[list[Block]]]:
    """Blocks as two lists of bands: the bands of one list have no pixel of the image in common.

    Windows of neighbouring rows overlap, so neighbouring blocks may not be added at the same time. A band is as many
    rows as the overlap reaches; all even bands are added first, then all odd ones: a fixed order of sums.
    """
    if not cut:
        return [], []
    step = cut[0].rows.stop
    reach = -(-geometry.extent[0] // geometry.stride[0]) - 1                # rows of windows that a window overlaps
    height = step * max(1, -(-reach // step))
    bands: dict[tuple[int, int], list[Block]] = {}
    for block in cut:
        bands.setdefault((block.images.start, block.rows.start // height), []).append(block)
    even, odd = ([band for (_, i), band in bands.items() if i % 2 == parity] for parity in (0, 1))
    return even, odd


def _patch_rows(x: np.ndarray, y: np.ndarray, geometry: Geometry) -> tuple[list[np.ndarray], np.ndarray]:
    """For windows that tile the image: row kh of every window as KH views of x (..., OW, KW·C), and y (..., OW, F).

    Within an image row, windows side by side are already the rows of a matrix, so nothing is copied. With 1x1
    windows, all pixels of all images form a single matrix.
    """
    (kh, kw), (n, oh, ow, f), c = geometry.kernel, y.shape, x.shape[3]
    rows = [x[:, i:oh * kh:kh, :ow * kw] for i in range(kh)]                # (N, OH, OW*KW, C)
    single = kh == 1 and rows[0].flags.c_contiguous
    leading = (n * oh * ow,) if single else (n, oh, ow)
    reshape = array_module(x, y).reshape
    return [reshape(r, (*leading, kw * c), copy=False) for r in rows], reshape(y, (*leading, f), copy=False)


def _parts(array: np.ndarray) -> list[slice]:
    """Slices of the first axis: single images, or PART_ROWS rows of a single matrix."""
    return _ranges(len(array), 1 if array.ndim == 4 else PART_ROWS)
