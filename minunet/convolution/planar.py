"""Few channels, as of an image (1 or 3): the columns are long runs of pixels, made by shifting whole rows.

im2col copies a window of 3x3 pixels with 3 channels as three runs of nine numbers, which takes longer than to multiply
them. Here each image row is taken apart into channels, and copied once for each horizontal position in the kernel:

    lines[h, kw, c, ow] = x[h, ow·SW − PW + kw·DW, c]

The windows of output row oh cover the image rows h = oh·SH − PH + kh, which lie below each other in `lines`. So where
they lie, the lines from there on are the transposed column matrix (KH·KW·C, OW) of that output row; the matrices of
neighbouring output rows overlap. A pixel is copied KW times instead of KH·KW times.

Source: Cho and Brand, MEC: Memory-efficient convolution for deep neural network (2017).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet import memory, parallel
from minunet.convolution.products import GAP, Each, finish, multiply, multiply_each, panels
from minunet.geometry import Geometry, Pair

CHANNELS = 4                # at most
WIDTH = 32                  # px of an output row, at least: each is a matrix product of its own
BLOCK_BYTES = 1 << 19       # of lines that are made at a time; they stay in a core's second-level cache

Rows = tuple[int, slice]    # of the output: image, rows


def fits(geometry: Geometry, size: Pair, channels: int) -> bool:
    """Whether this is the faster way for images of this size in px; it needs kernel rows that are neighbours."""
    return (channels <= CHANNELS and geometry.kernel != (1, 1) and geometry.dilation[0] == 1
            and geometry.output_size(size)[1] >= WIDTH)


def forward(weight: np.ndarray, geometry: Geometry, x: np.ndarray, b: np.ndarray | None = None,
            relu: bool = False, each: Each = None) -> tuple[np.ndarray, list[Any]]:
    """A x [+ b] [then ReLU]: x (N, H, W, C), weight (KH, KW, C, F), b (F,) -> (N, OH, OW, F); see `im2col.forward`."""
    f, (oh, ow) = weight.shape[3], geometry.output_size(x.shape[1:3])
    y = memory.empty((len(x), oh, ow, f), x.dtype)
    right = panels(weight.reshape(-1, f))                                   # (KH*KW*C, F)
    bias = None if b is None else np.tile(b, ow)

    def job(rows: Rows) -> Any:
        multiply(_columns(x, geometry, rows), right, out=y[rows])
        finish(y[rows], bias, relu)
        return None if each is None else each(y[rows].reshape(-1, ow * f, copy=False))

    return y, parallel.run(job, _blocks(x, geometry))


def weight_grad(geometry: Geometry, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient of <y, A x> with respect to the weight: x (N, H, W, C), y (N, OH, OW, F) -> (KH, KW, C, F)."""
    f = y.shape[3]

    def partial_sum(rows: Rows) -> np.ndarray:
        columns = _columns(x, geometry, rows)
        products = memory.scratch((len(columns), columns.shape[2], f), x.dtype, "products")
        multiply_each(columns.transpose(0, 2, 1), y[rows], products)
        return products.reshape(len(products), -1).sum(0)

    dw = np.zeros((*geometry.kernel, x.shape[3], f))
    for part in parallel.run(partial_sum, _blocks(x, geometry)):            # in the same order on any machine
        dw += part.reshape(dw.shape)
    return dw.astype(x.dtype)


def _blocks(x: np.ndarray, geometry: Geometry) -> list[Rows]:
    """All output rows, in pieces of nearly equal height with about BLOCK_BYTES of lines."""
    oh, ow = geometry.output_size(x.shape[1:3])
    row_bytes = geometry.stride[0] * geometry.kernel[1] * x.shape[3] * (ow + GAP) * x.itemsize
    pieces = min(oh, -(-oh * row_bytes // BLOCK_BYTES))
    edges = [oh * i // pieces for i in range(pieces + 1)]
    return [(n, slice(*piece)) for n in range(len(x)) for piece in zip(edges, edges[1:])]


def _columns(x: np.ndarray, geometry: Geometry, rows: Rows) -> np.ndarray:
    """The column matrices (rows, OW, KH·KW·C) of output rows, in this thread's scratch."""
    (kh, kw), (sh, sw), (ph, pw), dw = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation[1]
    (_, h, w, c), ow, count = x.shape, geometry.output_size(x.shape[1:3])[1], rows[1].stop - rows[1].start
    top, height = rows[1].start * sh - ph, (count - 1) * sh + kh            # of the image rows that windows cover
    first = min(max(top, 0), h)
    last = max(first, min(top + height, h))                                 # of them, those inside the image

    planes = memory.scratch((height, c, w + 2 * pw), x.dtype, "planes")
    planes[...] = 0
    planes[first - top:last - top, :, pw:pw + w] = x[rows[0], first:last].transpose(0, 2, 1)
    lines = memory.scratch((height, kw, c, ow + GAP), x.dtype, "lines")
    for k in range(kw):
        lines[:, k, :, :ow] = planes[:, :, k * dw:k * dw + (ow - 1) * sw + 1:sw]

    on_h, _, on_line, on_pixel = lines.strides
    return np.lib.stride_tricks.as_strided(lines, (count, ow, kh * kw * c), (sh * on_h, on_pixel, on_line))
