"""Images as matrices of long rows, gone through in blocks that stay in a core's cache: elementwise work at full speed.

(N, H, W, C) is (N·H, W·C): NumPy's loops are fast over long rows and slow over a few channels, so what belongs to a
channel is repeated W times, to the length of a row. All that has to be done to a block is done while it is in cache,
and the blocks are shared out among the cores. They are cut by shape alone, so sums do not depend on the cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from minunet import parallel

Result = TypeVar("Result")

BLOCK = 1 << 18         # elements; fewer would stay in a faster cache, but then Python becomes the slower part


def count_rows(x: np.ndarray) -> int:
    """N·H for images (N, H, W, C), N for rows (N, C)."""
    return math.prod(x.shape[:-2] if x.ndim > 2 else x.shape[:-1])


def in_blocks(function: Callable[..., Result], rows: int, *arrays: np.ndarray | None) -> list[Result]:
    """function(*blocks) for blocks of the same rows of all arrays; the results in the order of the rows.

    Each array is seen as so many rows, of whatever length that makes them; a block is (some of the rows, that length).
    None stays None. What a function writes into a block lands in its array if that is contiguous.
    """
    matrices = [None if a is None else a.reshape(rows, a.size // max(rows, 1)) for a in arrays]
    longest = max(m.shape[1] for m in matrices if m is not None)
    step = max(1, BLOCK // max(1, longest))

    def job(start: int) -> Result:
        return function(*(None if m is None else m[start:start + step] for m in matrices))

    return parallel.run(job, range(0, rows, step))


def repeated(values: Any, length: int, dtype: Any) -> np.ndarray:
    """Numbers for each channel, repeated to a row of this length."""
    row = np.empty(length, dtype)
    row.reshape(-1, len(values))[...] = values
    return row


def channel_sums(block: np.ndarray, channels: int) -> np.ndarray:
    """Σ over the block's pixels: (C,), in its dtype.

    Products with ones, which BLAS computes fastest. Of p pixels, those √p apart are added up first, then these sums:
    2 √p additions one after the other round far less than p.
    """
    pixels = block.reshape(-1, channels)
    first = 1 << len(pixels).bit_length() // 2
    second, rest = divmod(len(pixels), first)
    sums = _ones(first, block.dtype) @ pixels[:first * second].reshape(first, second * channels)
    sums = _ones(second, block.dtype) @ sums.reshape(second, channels)
    return sums + _ones(rest, block.dtype) @ pixels[first * second:] if rest else sums


@lru_cache(maxsize=64)
def _ones(count: int, dtype: np.dtype) -> np.ndarray:
    return np.ones(count, dtype)
