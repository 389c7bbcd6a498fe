"""Sums that stay accurate in float32 (the last stage adds in float64), and the transpose of broadcasting: a sum."""

from __future__ import annotations

import numpy as np

from minunet.backend import on_gpu
from minunet.ops.kernels import sums as kernels


def channel_sum(x: np.ndarray) -> np.ndarray:
    """Σ over all but the last axis: (..., C) -> (C,).

    Rows in x's dtype, then the rows' sums in float64: adding a million pixels one by one in float32 would lose three
    digits.
    """
    if on_gpu(x):
        return kernels.channel_sum(x)
    if x.ndim < 3:
        return x.reshape(-1, x.shape[-1]).sum(0, dtype=np.float64).astype(x.dtype)
    return x.sum(-2).reshape(-1, x.shape[-1]).sum(0, dtype=np.float64).astype(x.dtype)


def sum_to_shape(dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of an array that was broadcast from shape to dy's shape: dy summed over what was repeated."""
    extra = dy.ndim - len(shape)
    repeated = tuple(range(extra)) + tuple(
        extra + axis for axis, n in enumerate(shape) if n == 1 and dy.shape[extra + axis] != 1)
    if not repeated:
        return dy
    return dy.sum(axis=repeated, dtype=np.float64).reshape(shape).astype(dy.dtype, copy=False)
