"""Putting images together and cutting them: concatenation of channels, crops ("copy and crop"), padding."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from minunet.backend import array_module, same_dtype
from minunet.geometry import IntOrPair, as_pair

Margins = tuple[int, int, int, int]
MODES = ("constant", "edge", "reflect")


def concat(*xs: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The channels of all inputs side by side: (..., C1), (..., C2), ... -> (..., C1 + C2 + ...)."""
    same_dtype("concat", **{f"input {i}": x for i, x in enumerate(xs)})
    if len({x.shape[:-1] for x in xs}) != 1:
        raise ValueError("concat: the inputs must have one shape but for the channels; got "
                         + ", ".join(str(x.shape) for x in xs))
    return array_module(*xs).concatenate(xs, axis=-1), [x.shape[-1] for x in xs]


def concat_backward(dy: np.ndarray, channels: list[int]) -> tuple[np.ndarray, ...]:
    """Each input gets the gradient of its own channels: copies, because a view would keep all of dy alive."""
    xp = array_module(dy)
    return tuple(xp.ascontiguousarray(part) for part in xp.split(dy, np.cumsum(channels)[:-1], axis=-1))


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
    y = x[:, top:top + height, left:left + width]
    return array_module(x).ascontiguousarray(y), (x.shape, top, left)


def crop_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """The kept pixels get their gradient, those that were cut off 0."""
    shape, top, left = cache
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
