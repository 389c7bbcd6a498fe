"""Sums that stay accurate in float32 (the last stage adds in float64), and the transpose of broadcasting: a sum."""

from __future__ import annotations

import numpy as np

from minunet.backend import on_gpu
from minunet.ops.kernels import sums as kernels
from minunet.ops.rows import channel_sums, count_rows, in_blocks


def channel_sum(x: np.ndarray) -> np.ndarray:
    """Σ over all but the last axis: (..., C) -> (C,).

    Blocks in x's dtype, then the blocks' sums in float64: adding a million pixels one by one in float32 would lose
    three digits.
    """
    if on_gpu(x):
        return kernels.channel_sum(x)
    parts = in_blocks(lambda block: channel_sums(block, x.shape[-1]), count_rows(x), x)
    return sum(parts, np.zeros(x.shape[-1])).astype(x.dtype)


def sum_to_shape(dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of an array that was broadcast from shape to dy's shape: dy summed over what was repeated."""
    extra = dy.ndim - len(shape)
    repeated = tuple(range(extra)) + tuple(
        extra + axis for axis, n in enumerate(shape) if n == 1 and dy.shape[extra + axis] != 1)
    if not repeated:
        return dy
    return dy.sum(axis=repeated, dtype=np.float64).reshape(shape).astype(dy.dtype, copy=False)
