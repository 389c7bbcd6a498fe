"""The launches of kernels/pool.cu: one thread for 4 channels (or 1) of a window, or of a pixel, gathers its sum."""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet.backend import array_module
from minunet.convolution.shape import Conv
from minunet.cuda import launch
from minunet.geometry import Geometry, Pair
from minunet.ops.kernels.vector import vector_length


def max_pool2d(x: Any, geometry: Geometry) -> tuple[Any, Any]:
    """The maximum of each window and its position there: (N, H, W, C) -> two of (N, OH, OW, C)."""
    xp, wide, shape = array_module(x), _is_wide(geometry), _shape(geometry, x, x.shape[1:3])
    y = xp.empty((len(x), shape.out_height, shape.out_width, shape.channels), x.dtype)
    winners = xp.empty(y.shape, np.uint32 if wide else np.uint8)
    _launch("max_pool2d_wide" if wide else "max_pool2d", y, (xp.ascontiguousarray(x), y, winners), shape)
    return y, winners.astype(_winner(geometry), copy=False)


def max_unpool2d(y: Any, winners: Any, geometry: Geometry, size: Pair, onto: Any = None) -> Any:
    """The sum of each pixel's windows that it wins, also max_pool2d's gradient: (N, OH, OW, C) -> (N, H, W, C).

    onto (N, H, W, C): numbers that it is added to.
    """
    xp, wide, shape = array_module(y, winners), _is_wide(geometry), _shape(geometry, y, size)
    y, winners = xp.ascontiguousarray(y), _for_kernel(winners, geometry)
    x = xp.empty((len(y), *size, shape.channels), y.dtype)
    given = int(onto is not None)
    arrays = y, winners, xp.ascontiguousarray(onto) if given else y, x         # a pointer must point somewhere
    if geometry.is_patches and not wide:
        (kh, kw), (h, w) = geometry.kernel, size
        patches = len(y) * -(-h // kh) * -(-w // kw) * shape.channels
        _launch("max_unpool2d_patches", x, arrays, shape, given, numbers=patches)
    else:
        _launch("max_unpool2d_wide" if wide else "max_unpool2d", x, arrays, shape, given)
    return x


def max_unpool2d_backward(dx: Any, winners: Any, geometry: Geometry) -> Any:
    """The gradient of each winner's pixel: (N, H, W, C) -> (N, OH, OW, C)."""
    xp, shape = array_module(dx, winners), _shape(geometry, dx, dx.shape[1:3])
    dy = xp.empty(winners.shape, dx.dtype)
    _launch("max_unpool2d_backward_wide" if _is_wide(geometry) else "max_unpool2d_backward", dy,
            (xp.ascontiguousarray(dx), _for_kernel(winners, geometry), dy), shape)
    return dy


def avg_pool2d(x: Any, geometry: Geometry) -> Any:
    """The mean of each window: (N, H, W, C) -> (N, OH, OW, C)."""
    xp, shape = array_module(x), _shape(geometry, x, x.shape[1:3])
    y = xp.empty((len(x), shape.out_height, shape.out_width, shape.channels), x.dtype)
    _launch("avg_pool2d", y, (xp.ascontiguousarray(x), y), shape)
    return y


def avg_pool2d_backward(dy: Any, geometry: Geometry, size: Pair) -> Any:
    """The sum of each pixel's shares of the windows that cover it: (N, OH, OW, C) -> (N, H, W, C)."""
    xp, shape = array_module(dy), _shape(geometry, dy, size)
    dx = xp.empty((len(dy), *size, shape.channels), dy.dtype)
    _launch("avg_pool2d_backward", dx, (xp.ascontiguousarray(dy), dx), shape)
    return dx


def _launch(kernel: str, output: Any, arrays: tuple[Any, ...], shape: Conv, *flags: int,
            numbers: int | None = None) -> None:
    """One thread for every 4 or 1 of the output's numbers."""
    vector = vector_length(shape.channels, *arrays)
    launch(f"pool.{kernel}", *arrays, shape, *flags, threads=(output.size if numbers is None else numbers) // vector,
           defines={"VECTOR": vector})


def _shape(geometry: Geometry, x: Any, size: Pair) -> Conv:
    return Conv.of(geometry, len(x), size, x.shape[3], x.shape[3])


def _winner(geometry: Geometry) -> np.dtype:
    """The type of a winner, as on the CPU: the smallest that holds every position."""
    return np.min_scalar_type(geometry.kernel[0] * geometry.kernel[1] - 1)


def _is_wide(geometry: Geometry) -> bool:
    """Whether a position does not fit one byte; the kernels then take four."""
    return _winner(geometry) != np.uint8


def _for_kernel(winners: Any, geometry: Geometry) -> Any:
    dtype = np.uint32 if _is_wide(geometry) else np.uint8
    return array_module(winners).ascontiguousarray(winners.astype(dtype, copy=False))
