"""Arithmetic with NumPy's broadcasting, sums and means; the gradient of a broadcast is a sum (`sum_to_shape`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet.backend import array_module, device_of
from minunet.ops.sums import sum_to_shape

Axis = int | tuple[int, ...] | None


def add(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Any]:
    """a + b."""
    device_of(a, b)             # one device, or a TypeError that names both
    return a + b, (a.shape, b.shape)


def add_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray]:
    """da = dy, db = dy, each summed to its shape."""
    a_shape, b_shape = cache
    return sum_to_shape(dy, a_shape), sum_to_shape(dy, b_shape)


def multiply(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Any]:
    """a · b, element by element."""
    device_of(a, b)
    return a * b, (a, b)


def multiply_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray]:
    """da = dy · b, db = dy · a."""
    a, b = cache
    return sum_to_shape(dy * b, a.shape), sum_to_shape(dy * a, b.shape)


def divide(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, Any]:
    """a / b, element by element."""
    device_of(a, b)
    y = a / b
    return y, (a.shape, b, y)


def divide_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray]:
    """da = dy / b; with y = a/b, db = −dy · y / b."""
    a_shape, b, y = cache
    da = dy / b
    return sum_to_shape(da, a_shape), sum_to_shape(-da * y, b.shape)


def power(x: np.ndarray, *, exponent: float) -> tuple[np.ndarray, Any]:
    """x raised to a constant exponent."""
    exponent = float(exponent)                              # a NumPy float64 would make float64 of float32
    return x**exponent, (x, exponent)


def power_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """dx = dy · exponent · x^(exponent − 1); 0 for the exponent 0, also at x = 0."""
    x, exponent = cache
    return (dy * (exponent * x ** (exponent - 1) if exponent != 0 else array_module(x).zeros_like(x)),)


def sum(x: np.ndarray, *, axis: Axis = None, keepdims: bool = False) -> tuple[np.ndarray, Any]:
    """Σ x over the axes (all of them for None)."""
    y = array_module(x).asarray(x.sum(axis=axis, keepdims=True, dtype=np.float64)).astype(x.dtype, copy=False)
    return y if keepdims else y.squeeze(axis), (x.shape, y.shape)


def sum_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """Every summand receives dy: dx = dy, with the summed axes back as ones, broadcast to x's shape."""
    shape, kept = cache
    return (array_module(dy).broadcast_to(dy.reshape(kept), shape).copy(),)


def reshape(x: np.ndarray, *, shape: tuple[int, ...]) -> tuple[np.ndarray, Any]:
    """The same numbers in another shape."""
    return x.reshape(shape), x.shape


def reshape_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """dx = dy in x's shape."""
    return (dy.reshape(cache),)
