"""Pooling and unpooling: each window reduced to its maximum or mean, and maxima put back where they came from.

Max-pooling keeps each window's winner as its position inside the window (one byte up to 256 positions). Unpooling
and the gradient of max-pooling are then the same scatter to the winners; the gradient of unpooling is the gather back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minunet import memory, parallel, tape
from minunet.backend import device_of, on_gpu
from minunet.convolution.im2col import blocks
from minunet.convolution.windows import crop_border, pad_border, windows
from minunet.geometry import Geometry, IntOrPair, Pair, as_pair
from minunet.ops.kernels import pool as kernels
from minunet.ops.rows import count_rows, in_blocks


class Pooled(NamedTuple):
    """What max-pooling and unpooling keep: the winners (N, OH, OW, C), the geometry, the image's size."""

    winners: np.ndarray
    geometry: Geometry
    size: Pair


def max_pool2d(x: np.ndarray, *, kernel: IntOrPair, stride: IntOrPair | None = None,
               padding: IntOrPair = 0) -> tuple[np.ndarray, Pooled]:
    """The maximum of each window, padding counting as −inf: (N, H, W, C) -> (N, OH, OW, C). Ties: the first wins."""
    geometry = _geometry("max_pool2d", x, kernel, stride, padding)
    if any(p >= k for p, k in zip(geometry.padding, geometry.kernel)):
        raise ValueError(f"max_pool2d: padding must be below the kernel along each axis, so that every window holds a "
                         f"pixel; got padding {geometry.padding}, kernel {geometry.kernel}")
    if on_gpu(x):
        y, winners = kernels.max_pool2d(x, geometry)
        return y, Pooled(winners, geometry, x.shape[1:3])
    out_size = geometry.output_size(x.shape[1:3])
    view = windows(pad_border(x, geometry, -np.inf), geometry, out_size)     # (N, OH, OW, KH, KW, C)
    y = memory.empty((len(x), *out_size, x.shape[3]), x.dtype)
    winners = memory.empty(y.shape, np.min_scalar_type(geometry.kernel[0] * geometry.kernel[1] - 1))

    def job(view: np.ndarray, y: np.ndarray, winners: np.ndarray) -> None:
        y[...], winners[...] = view[:, :, :, 0, 0], 0
        for position, (i, j) in list(enumerate(np.ndindex(geometry.kernel)))[1:]:
            candidate = view[:, :, :, i, j]
            # a later position is a larger number, so the last to win is the maximum; quicker than a masked assignment
            np.maximum(winners, (candidate > y) * winners.dtype.type(position), out=winners)
            np.maximum(y, candidate, out=y)                 # unlike `>`, carries a NaN on

    _in_blocks(job, view, y, winners)
    return y, Pooled(winners, geometry, x.shape[1:3])


def max_pool2d_backward(dy: np.ndarray, cache: Pooled) -> tuple[np.ndarray]:
    """y is the winning pixel itself, so its gradient goes to that pixel alone; where windows overlap, they add."""
    return (_scatter(dy, cache),)


def max_unpool2d(y: np.ndarray, *, winners: np.ndarray, kernel: IntOrPair, stride: IntOrPair | None = None,
                 padding: IntOrPair = 0, size: IntOrPair | None = None) -> tuple[np.ndarray, Pooled]:
    """Each value put at its window's winner, zero elsewhere; values that meet add: (N, OH, OW, C) -> (N, H, W, C).

    A winner in the padding or outside the image is left out. size defaults to the smallest with these windows.
    """
    geometry = _geometry("max_unpool2d", y, kernel, stride, padding)
    device_of(y, winners)               # one device, or a TypeError
    positions = geometry.kernel[0] * geometry.kernel[1]
    readable = winners.size and not tape.is_recording()
    if winners.shape != y.shape or winners.dtype.kind != "u" or (readable and int(winners.max()) >= positions):
        raise ValueError(f"max_unpool2d: winners must be unsigned integers below {positions} (positions in the "
                         f"{geometry.kernel} window) in x's shape {y.shape}; got {winners.dtype} {winners.shape}")
    full = geometry.transposed_size(y.shape[1:3]) if size is None else as_pair(size, "size", 1)
    if geometry.output_size(full) != y.shape[1:3]:
        raise ValueError(f"max_unpool2d: an image of size {full} has {geometry.output_size(full)} windows, "
                         f"x has {y.shape[1:3]}")
    cache = Pooled(winners, geometry, full)
    return _scatter(y, cache), cache


def max_unpool2d_backward(dx: np.ndarray, cache: Pooled) -> tuple[np.ndarray]:
    """Each value was copied to its winner's pixel: its gradient is the gradient of that pixel."""
    winners, geometry, _ = cache
    if on_gpu(dx):
        return (kernels.max_unpool2d_backward(dx, winners, geometry),)
    view = windows(pad_border(dx, geometry), geometry, winners.shape[1:3])
    dy = memory.empty(winners.shape, dx.dtype)

    def job(view: np.ndarray, dy: np.ndarray, winners: np.ndarray) -> None:
        dy[...] = 0
        for position, (i, j) in enumerate(np.ndindex(geometry.kernel)):
            dy += view[:, :, :, i, j] * (winners == position)

    _in_blocks(job, view, dy, winners)
    return (dy,)


def avg_pool2d(x: np.ndarray, *, kernel: IntOrPair, stride: IntOrPair | None = None,
               padding: IntOrPair = 0) -> tuple[np.ndarray, Any]:
    """The mean of each window, padding counting as zeros: (N, H, W, C) -> (N, OH, OW, C)."""
    geometry = _geometry("avg_pool2d", x, kernel, stride, padding)
    if on_gpu(x):
        return kernels.avg_pool2d(x, geometry), (geometry, x.shape[1:3])
    out_size = geometry.output_size(x.shape[1:3])
    y = memory.empty((len(x), *out_size, x.shape[3]), x.dtype)

    def job(view: np.ndarray, y: np.ndarray) -> None:
        y[...] = view[:, :, :, 0, 0]
        for i, j in list(np.ndindex(geometry.kernel))[1:]:
            y += view[:, :, :, i, j]
        y /= geometry.kernel[0] * geometry.kernel[1]

    _in_blocks(job, windows(pad_border(x, geometry), geometry, out_size), y)
    return y, (geometry, x.shape[1:3])


def avg_pool2d_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """Each of a window's KH·KW pixels receives dy / (KH·KW); where windows overlap, they add."""
    geometry, size = cache
    if on_gpu(dy):
        return (kernels.avg_pool2d_backward(dy, geometry, size),)
    padded, view = _padded_zeros(dy, geometry, size)

    def job(view: np.ndarray, dy: np.ndarray) -> None:
        share = dy / (geometry.kernel[0] * geometry.kernel[1])
        for i, j in np.ndindex(geometry.kernel):
            view[:, :, :, i, j] += share

    _in_blocks(job, view, dy, overlap=_overlap(geometry))
    return (crop_border(padded, geometry),)


def _scatter(values: np.ndarray, pooled: Pooled) -> np.ndarray:
    """values (N, OH, OW, C) added to their winners' pixels: (N, H, W, C)."""
    winners, geometry, size = pooled
    if on_gpu(values):
        return kernels.max_unpool2d(values, winners, geometry, size)
    padded, view = _padded_zeros(values, geometry, size)

    def job(view: np.ndarray, values: np.ndarray, winners: np.ndarray) -> None:
        for position, (i, j) in enumerate(np.ndindex(geometry.kernel)):
            view[:, :, :, i, j] += values * (winners == position)

    _in_blocks(job, view, values, winners, overlap=_overlap(geometry))
    return crop_border(padded, geometry)


def _in_blocks(job: Callable[..., None], view: np.ndarray, *arrays: np.ndarray, overlap: bool = False) -> None:
    """job(*parts) for blocks of all windows (N, OH, OW, KH, KW, C) and of arrays beside them, on all cores.

    Where a job writes into windows that overlap, a block is all of an image.
    """
    n, oh, ow, kh, kw, c = view.shape
    pieces: Sequence[Any] = range(n) if overlap else blocks(n, (oh, ow), kh * kw * c * view.itemsize)
    parallel.run(lambda piece: job(*(a[piece:piece + 1] if overlap else a[piece] for a in (view, *arrays))), pieces)


def _overlap(geometry: Geometry) -> bool:
    return any(extent > stride for extent, stride in zip(geometry.extent, geometry.stride))


def _padded_zeros(values: np.ndarray, geometry: Geometry, size: Pair) -> tuple[np.ndarray, np.ndarray]:
    """A padded image of zeros for values (N, OH, OW, C), and its windows (N, OH, OW, KH, KW, C)."""
    (ph, pw), (h, w) = geometry.padding, size
    padded = memory.empty((len(values), h + 2 * ph, w + 2 * pw, values.shape[3]), values.dtype)
    in_blocks(lambda block: block.fill(0), count_rows(padded), padded)
    return padded, windows(padded, geometry, values.shape[1:3])


def _geometry(name: str, x: np.ndarray, kernel: IntOrPair, stride: IntOrPair | None, padding: IntOrPair) -> Geometry:
    """The windows; the stride defaults to the kernel (windows side by side)."""
    if x.ndim != 4:
        raise ValueError(f"{name}: x must be (N, H, W, C), channels last; its shape is {x.shape}")
    return Geometry(kernel, kernel if stride is None else stride, padding)
