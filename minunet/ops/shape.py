"""Putting images together and cutting them: concatenation of channels, crops ("copy and crop"), padding."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from minunet import memory
from minunet.backend import FLOATS, array_module, on_gpu, same_dtype
from minunet.geometry import IntOrPair, as_pair
from minunet.ops.kernels import separable
from minunet.ops.kernels import shape as kernels
from minunet.ops.rows import in_blocks

Margins = tuple[int, int, int, int]
MODES = ("constant", "edge", "reflect")


def concat(*xs: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The channels of all inputs side by side: (..., C1), (..., C2), ... -> (..., C1 + C2 + ...)."""
    same_dtype("concat", **{f"input {i}": x for i, x in enumerate(xs)})
    if len({x.shape[:-1] for x in xs}) != 1:
        raise ValueError("concat: the inputs must have one shape but for the channels; got "
                         + ", ".join(str(x.shape) for x in xs))
    channels = [x.shape[-1] for x in xs]
    if on_gpu(xs[0]):
        return kernels.concat(xs), channels
    y = memory.empty((*xs[0].shape[:-1], sum(channels)), xs[0].dtype)
    in_blocks(lambda y, *xs: np.concatenate(xs, axis=-1, out=y), math.prod(y.shape[:-1]), y, *xs)
    return y, channels


def concat_backward(dy: np.ndarray, channels: list[int]) -> tuple[np.ndarray, ...]:
    """Each input gets the gradient of its own channels: copies, because a view would keep all of dy alive."""
    if on_gpu(dy):
        return kernels.split(dy, channels)
    dxs = tuple(memory.empty((*dy.shape[:-1], c), dy.dtype) for c in channels)

    def job(dy: np.ndarray, *dxs: np.ndarray) -> None:
        for dx, part in zip(dxs, np.split(dy, np.cumsum(channels)[:-1], axis=-1)):
            dx[...] = part

    in_blocks(job, math.prod(dy.shape[:-1]), dy, *dxs)
    return dxs


def crop(x: np.ndarray, *, top: int, left: int, size: IntOrPair) -> tuple[np.ndarray, Any]:
    """The part of this size (height, width) in px that begins at row top and column left: (N, H, W, C) -> ..."""
    _check_image("crop", x)
    height, width = as_pair(size, "size", 1)
    _, h, w, _ = x.shape
    if not all(isinstance(start, (int, np.integer)) for start in (top, left)):
        raise ValueError(f"crop: top and left must be ints, in px; got {top!r} and {left!r}")
    if not (0 <= top <= h - height and 0 <= left <= w - width):
        raise ValueError(f"crop: rows {top} to {top + height} and columns {left} to {left + width} are not all inside "
                         f"the image of {h}x{w} px")
    if on_gpu(x) and x.dtype in FLOATS:         # the winners of a pooling, which are integers, are cropped below
        axes = _kept(x.shape, top, left, (height, width))
        return separable.product(x, _padding_matrix, *axes, transposed=True), (x.shape, top, left)
    y = x[:, top:top + height, left:left + width]
    return array_module(x).ascontiguousarray(y), (x.shape, top, left)


def crop_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """The kept pixels get their gradient, those that were cut off 0."""
    shape, top, left = cache
    if on_gpu(dy):
        return (separable.product(dy, _padding_matrix, *_kept(shape, top, left, dy.shape[1:3])),)
    dx = array_module(dy).zeros(shape, dy.dtype)
    dx[:, top:top + dy.shape[1], left:left + dy.shape[2]] = dy
    return (dx,)


def center_crop(x: np.ndarray, *, size: IntOrPair) -> tuple[np.ndarray, Any]:
    """The middle of this size; of an odd margin, the larger part is cut off at the bottom and right."""
    _check_image("center_crop", x)
    height, width = as_pair(size, "size", 1)
    _, h, w, _ = x.shape
    if height > h or width > w:
        raise ValueError(f"center_crop: size {(height, width)} is larger than the image of {h}x{w} px")
    return crop(x, top=(h - height) // 2, left=(w - width) // 2, size=(height, width))


center_crop_backward = crop_backward


def pad(x: np.ndarray, *, margins: Margins, mode: str = "constant", value: float = 0.0) -> tuple[np.ndarray, Any]:
    """x with (top, bottom, left, right) further px: constant, the edge's pixel, or reflected at the edge's pixel."""
    _check_image("pad", x)
    if mode not in MODES:
        raise ValueError(f"pad: mode must be one of {', '.join(MODES)}; got {mode!r}")
    if np.shape(margins) != (4,) or not all(isinstance(m, numbers.Integral) and m >= 0 for m in margins):
        raise ValueError(f"pad: margins must be (top, bottom, left, right), each at least 0 px; got {margins!r}")
    top, bottom, left, right = margins
    n, h, w, c = x.shape
    if on_gpu(x):
        axes = (h, top, bottom, mode), (w, left, right, mode)
        return separable.product(x, _padding_matrix, *axes, value=float(value)), (margins, mode, (h, w))
    if mode == "constant":
        y = array_module(x).full((n, top + h + bottom, left + w + right, c), value, x.dtype)
        y[:, top:top + h, left:left + w] = x
    else:
        rows, columns = _sources(h, top, bottom, mode), _sources(w, left, right, mode)
        y = x[:, rows][:, :, columns]
    return y, (margins, mode, (h, w))


def pad_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """A pixel's gradient is the sum of the gradients of all its copies; a constant's copies have none."""
    (top, bottom, left, right), mode, (h, w) = cache
    if on_gpu(dy):
        axes = (h, top, bottom, mode), (w, left, right, mode)
        return (separable.product(dy, _padding_matrix, *axes, transposed=True),)
    if mode != "constant":
        dy = _fold(dy, 1, top, bottom, mode)
        return (_fold(dy, 2, left, right, mode),)
    return (array_module(dy).ascontiguousarray(dy[:, top:top + h, left:left + w]),)


def _sources(n: int, before: int, after: int, mode: str) -> np.ndarray:
    """The pixel, 0 .. n − 1, that each position −before .. n + after − 1 copies."""
    position = np.arange(-before, n + after)
    if mode == "edge" or n == 1:
        return np.clip(position, 0, n - 1)
    period = 2 * (n - 1)                                    # reflected as often as needed: a triangular wave
    position = position % period
    return np.minimum(position, period - position)


def _padding_matrix(n: int, before: int, after: int, mode: str) -> scipy.sparse.coo_array:
    """The padding of one axis, (before + n + after, n): a one in each row, none in the rows of a constant."""
    rows = np.arange(before + n + after)
    columns = rows - before if mode == "constant" else _sources(n, before, after, mode)
    inside = (0 <= columns) & (columns < n)
    return scipy.sparse.coo_array((np.ones(inside.sum()), (rows[inside], columns[inside])), (len(rows), n))


def _kept(shape: tuple[int, ...], top: int, left: int, size: Sequence[int]) -> Any:
    """A crop's axes as those of the padding with zeros that it is the transpose of."""
    return tuple((out, first, n - first - out, "constant") for n, first, out in zip(shape[1:3], (top, left), size))


def _fold(dy: np.ndarray, axis: int, before: int, after: int, mode: str) -> np.ndarray:
    """The transpose of copying along one axis: each border line is added to the line that it copied."""
    lines = array_module(dy).moveaxis(dy, axis, 0)
    n = len(lines) - before - after
    dx = lines[before:before + n].copy()
    sources = _sources(n, before, after, mode)
    for position in (*range(before), *range(before + n, len(lines))):
        dx[sources[position]] += lines[position]
    return array_module(dy).moveaxis(dx, 0, axis)


def _check_image(name: str, x: np.ndarray) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: x must be (N, H, W, C), channels last; its shape is {x.shape}")
