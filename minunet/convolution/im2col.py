"""The three products as matrix products: im2col, a GEMM, and col2im.

im2col lays each window of the image out as one row of a column matrix X (N·OH·OW, KH·KW·C). With the weight as
W (KH·KW·C, F), the convolution matrix A acts as

    A x            =  X W                 (`forward`)
    Aᵀ y           =  col2im(y Wᵀ)        (`transposed`: each row is added back to the pixels it came from)
    weight gradient = Xᵀ y                (`weight_grad`)

X repeats every pixel KH·KW times (1152 MiB for the widest layer of a 512x512 U-Net), so it is never stored: blocks of
it are made, multiplied while they are in cache, and overwritten. The columns of images with few channels are made in
`planar`; windows that tile the image, as those of the 2x2 up-convolution, need no col2im.

Source: Chellapilla, Puri, Simard, High performance convolutional neural networks for document processing (2006).
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from minunet import memory, parallel
from minunet.convolution import planar
from minunet.convolution.products import Each, depth, finish, multiply, panels
from minunet.convolution.windows import crop_border, pad_border, windows
from minunet.geometry import Geometry, Pair

# A block of columns should stay in a core's second-level cache, but a GEMM of fewer rows than this spends its time
# reading the weight instead of multiplying.
BLOCK_BYTES = 1 << 20
BLOCK_ROWS = 128

# Of a product that would be fewer blocks, so that threads can share it.
SHARES = 2

# From so many pixels on, the product of one row of windows is stored by itself where it belongs.
LONG_ROW = 32

# The weight gradient sums over pixels: in at most GROUPS partial sums of at least GROUP_PIXELS output pixels each.
# Where these are fewer than FEW, the rows of the kernel are shared out as well.
GROUPS = 16
GROUP_PIXELS = 2048
FEW = 8


class Block(NamedTuple):
    """A piece of the output whose pixels are contiguous: whole images, whole rows of one, or a part of one row."""

    images: slice
    rows: slice
    pixels: slice


def blocks(images: int, out_size: Pair, row_bytes: int, fewest: int | None = None) -> list[Block]:
    """Cut (images, OH, OW) output pixels into blocks of about BLOCK_BYTES of columns, at row_bytes a pixel.

    Blocks have at least `fewest` pixels, by default BLOCK_ROWS, if the images do. Above that there are at least SHARES.
    """
    oh, ow = out_size
    pixels = max(fewest or BLOCK_ROWS, min(BLOCK_BYTES // row_bytes, images * oh * ow // SHARES))
    steps = pixels // (oh * ow), pixels // ow, pixels       # images, rows or pixels in a block
    cuts = (parallel.slices(n, max(1, min(step, n))) for n, step in zip((images, oh, ow), steps))
    return [Block(*piece) for piece in itertools.product(*cuts)]


def forward(weight: np.ndarray, geometry: Geometry, x: np.ndarray, b: np.ndarray | None = None,
            relu: bool = False, each: Each = None) -> tuple[np.ndarray, list[Any]]:
    """A x [+ b] [then ReLU]: x (N, H, W, C), weight (KH, KW, C, F), b (F,) -> (N, OH, OW, F).

    And what each makes of its blocks, in their order.
    """
    f, size = weight.shape[3], x.shape[1:3]
    if planar.fits(geometry, size, x.shape[3]):
        return planar.forward(weight, geometry, x, b, relu, each)
    out_size = geometry.output_size(size)
    y = memory.empty((len(x), *out_size, f), x.dtype)
    windows_of_x = windows(pad_border(x, geometry), geometry, out_size)     # (N, OH, OW, KH, KW, C)
    matrix = panels(weight.reshape(-1, f))                                  # (KH*KW*C, F)
    bias = None if b is None else np.tile(b, out_size[1])                   # of a row of pixels

    def multiply_block(block: Block) -> Any:
        part = y[block]
        multiply(_columns(windows_of_x[block]), matrix, out=part.reshape(-1, f, copy=False))
        finish(part, bias, relu)
        return None if each is None else each(part.reshape(-1, part.shape[2] * f, copy=False))

    return y, parallel.run(multiply_block, blocks(len(x), out_size, weight[..., 0].size * x.itemsize))


def transposed(weight: np.ndarray, geometry: Geometry, y: np.ndarray, size: Pair,
               b: np.ndarray | None = None) -> np.ndarray:
    """Aᵀ y [+ b]: y (N, OH, OW, F), weight (KH, KW, C, F), b (C,) -> (N, H, W, C) with (H, W) = size."""
    if geometry.is_patches:
        return _transposed_patches(weight, geometry, y, size, b)
    n, out_size, f = len(y), y.shape[1:3], y.shape[3]
    (ph, pw), (h, w) = geometry.padding, size
    kh, kw, c, _ = weight.shape
    padded = memory.empty((n, h + 2 * ph, w + 2 * pw, c), y.dtype)
    padded[...] = 0
    windows_of_x = windows(padded, geometry, out_size)                      # (N, OH, OW, KH, KW, C)

    def add(band: list[Block]) -> None:
        """col2im: overlapping windows add up. The C columns of one kernel position lie in long runs on both sides."""
        for block in band:
            target = windows_of_x[block]
            columns = memory.scratch((*target.shape[:3], c), y.dtype)
            for i in range(kh):
                for j in range(kw):
                    # (pixels, F) @ (F, C)
                    np.matmul(y[block].reshape(-1, f), weight[i, j].T, out=columns.reshape(-1, c))
                    target[:, :, :, i, j] += columns

    row_bytes = (2 * c + f) * y.itemsize                                    # the columns, y and the sum
    for bands in _bands(blocks(n, out_size, row_bytes), geometry):
        parallel.run(add, bands)
    x = memory.empty((n, h, w, c), y.dtype)
    x[...] = crop_border(padded, geometry)
    finish(x, None if b is None else np.tile(b, w), relu=False)
    return x


def _transposed_patches(weight: np.ndarray, geometry: Geometry, y: np.ndarray, size: Pair,
                        b: np.ndarray | None) -> np.ndarray:
    """Aᵀ y [+ b] where windows tile the image, as for 1x1 and the 2x2 up-convolution: nothing is left to add up.

    For each row of the kernel, y Wᵀ holds the image rows that it covers, patch after patch as they lie in the image.
    """
    (n, oh, ow, f), (kh, kw, c, _) = y.shape, weight.shape
    x = memory.empty((n, *size, c), y.dtype)
    x[:, oh * kh:] = x[:, :, ow * kw:] = 0 if b is None else b              # pixels that no window covers
    patches = x[:, :oh * kh, :ow * kw].reshape(n, oh, kh, ow, kw * c, copy=False)
    matrices = [panels(row.reshape(-1, f).T) for row in weight]             # KH times (F, KW*C)
    bias = None if b is None else np.tile(b, ow * kw)                       # of a row of the image

    def multiply_block(block: Block) -> None:
        for i, matrix in enumerate(matrices):
            target = patches[block.images, block.rows, i, block.pixels]     # (n, oh, ow, KW*C)
            in_place = kh == 1 or ow >= LONG_ROW
            product = target if in_place else memory.scratch(target.shape, y.dtype)
            if product.flags.c_contiguous:
                multiply(y[block].reshape(-1, f), matrix, out=product.reshape(-1, kw * c))
            else:
                multiply(y[block], matrix, out=product)                     # row by row
            finish(product, bias, relu=False)
            if not in_place:
                target[...] = product

    parallel.run(multiply_block, blocks(n, (oh, ow), kh * kw * c * y.itemsize))
    return x


def weight_grad(geometry: Geometry, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of <y, A x> with respect to the weight: x (N, H, W, C), y (N, OH, OW, F) -> (KH, KW, C, F)."""
    if planar.fits(geometry, x.shape[1:3], x.shape[3]):
        return planar.weight_grad(geometry, x, y)
    out_size, f, c = y.shape[1:3], y.shape[3], x.shape[3]
    kh, kw = geometry.kernel
    windows_of_x = windows(pad_border(x, geometry), geometry, out_size)     # (N, OH, OW, KH, KW, C)
    pixels = len(x) * out_size[0] * out_size[1]
    few = pixels < FEW * GROUP_PIXELS
    shares = parallel.slices(kh, 1 if few else kh)                                  # rows of the kernel
    # of more pixels, because the product of each block is added to a total as large as the weight
    row_bytes = max(kw * c * (1 if few else kh) * x.itemsize, BLOCK_BYTES // depth(f))
    cut = blocks(len(x), out_size, row_bytes, 4 * BLOCK_ROWS)
    groups = min(GROUPS, pixels // GROUP_PIXELS, len(cut)) or 1
    sums = memory.empty((groups, kh, kw, c, f), x.dtype)
    if not cut:                                                             # no images
        sums[...] = 0

    def partial_sum(job: tuple[int, slice]) -> None:
        group, share = job
        total = sums[group, share].reshape(-1, f, copy=False)               # (share's KH*KW*C, F)
        for block in cut[group::groups]:
            first = block is cut[group]
            product = total if first else memory.scratch(total.shape, x.dtype, "product")
            columns = _columns(windows_of_x[block][:, :, :, share])
            multiply(columns.T, panels(y[block].reshape(-1, f)), out=product)
            if not first:
                total += product

    parallel.run(partial_sum, list(itertools.product(range(min(groups, len(cut))), shares)))
    dw = sums[0]
    for other in sums[1:]:                                                  # in the same order on any machine
        dw += other
    return dw if groups == 1 else dw.copy()


def _columns(windows_of_x: np.ndarray) -> np.ndarray:
    """im2col of a block of windows (n, oh, ow, KH, KW, C): (n·oh·ow, KH·KW·C), in scratch, or as it lies for 1x1."""
    n, oh, ow, kh, kw, c = windows_of_x.shape
    columns = windows_of_x
    if not windows_of_x.flags.c_contiguous:
        columns = memory.scratch(windows_of_x.shape, windows_of_x.dtype)
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
