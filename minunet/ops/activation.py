"""Activations, element by element, and softmax over the channels. Each keeps its output, which tells its slope."""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet import memory
from minunet.backend import array_module, on_gpu
from minunet.ops.kernels.activation import elementwise, over_channels
from minunet.ops.rows import count_rows, in_blocks, repeated


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """max(x, 0)."""
    if on_gpu(x):
        y = elementwise("relu", x)
        return y, y
    rows, y = count_rows(x), memory.empty(x.shape, x.dtype)
    zeros = repeated([0], x.size // max(rows, 1), x.dtype)     # NumPy's maximum with an array is faster than with 0
    in_blocks(lambda x, y: np.maximum(x, zeros, out=y), rows, x, y)
    return y, y


def relu_backward(dy: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
    """dx = dy where y > 0, else 0 (also at 0)."""
    if on_gpu(dy):
        return (elementwise("relu_backward", dy, y),)
    dx = memory.empty(y.shape, dy.dtype)
    in_blocks(lambda dy, y, dx: np.multiply(dy, y > 0, out=dx), count_rows(y), dy, y, dx)
    return (dx,)


def leaky_relu(x: np.ndarray, *, slope: float = 0.01) -> tuple[np.ndarray, Any]:
    """x where x > 0, slope · x elsewhere."""
    if not slope >= 0:
        raise ValueError(f"leaky_relu: slope must be at least 0; got {slope!r}")
    slope = float(slope)                                    # a NumPy float64 would make float64 of float32
    if on_gpu(x):
        y = elementwise("leaky_relu", x, options=(slope,))
    else:
        y = array_module(x).where(x > 0, x, slope * x)
    return y, (y, slope)


def leaky_relu_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """dx = dy where y > 0 (exactly where x > 0), slope · dy elsewhere."""
    y, slope = cache
    if on_gpu(dy):
        return (elementwise("leaky_relu_backward", dy, y, options=(slope,)),)
    return (array_module(y).where(y > 0, dy, slope * dy),)


def elu(x: np.ndarray, *, alpha: float = 1.0) -> tuple[np.ndarray, Any]:
    """x where x > 0, alpha · (exp(x) − 1) elsewhere."""
    if not alpha > 0:
        raise ValueError(f"elu: alpha must be above 0; got {alpha!r}")
    xp, alpha = array_module(x), float(alpha)
    if on_gpu(x):
        y = elementwise("elu", x, options=(alpha,))
    else:
        y = xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))
    return y, (y, alpha)


def elu_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """dx = dy where y > 0; elsewhere the slope is alpha · exp(x) = y + alpha."""
    y, alpha = cache
    if on_gpu(dy):
        return (elementwise("elu_backward", dy, y, options=(alpha,)),)
    return (array_module(y).where(y > 0, dy, dy * (y + alpha)),)


def sigmoid(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 / (1 + exp(−x)), without overflow."""
    if on_gpu(x):
        y = elementwise("sigmoid", x)
        return y, y
    xp = array_module(x)
    e = xp.exp(-abs(x))                                     # in (0, 1]
    y = xp.where(x >= 0, 1, e) / (1 + e)
    return y, y


def sigmoid_backward(dy: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
    """dx = dy · y (1 − y)."""
    return (elementwise("sigmoid_backward", dy, y) if on_gpu(dy) else dy * y * (1 - y),)


def softmax(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """exp(x_k) / Σ_j exp(x_j) over the last axis, without overflow: (..., C) -> (..., C)."""
    if on_gpu(x):
        y = over_channels("softmax", x)
        return y, y
    y = array_module(x).exp(x - x.max(-1, keepdims=True))
    y /= y.sum(-1, keepdims=True)
    return y, y


def softmax_backward(dy: np.ndarray, y: np.ndarray) -> tuple[np.ndarray]:
    """∂y_j/∂x_k = y_j (δ_jk − y_k), so dx = y · (dy − Σ dy · y)."""
    if on_gpu(dy):
        return (over_channels("softmax_backward", dy, y),)
    return (y * (dy - (dy * y).sum(-1, keepdims=True)),)
