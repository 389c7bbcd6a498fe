"""Inverted dropout with a mask that is a function of a key and the element's index, not of the order of drawing.

Philox4x32-10 turns (key, block index) into four 32-bit words; element i takes word i mod 4 of block i // 4. So every
device, and a recomputation, makes the same mask from the same key.

Source: Srivastava et al., Dropout (2014); Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet import memory, parallel
from minunet.backend import array_module, device_of, on_gpu, to_device
from minunet.ops.kernels import dropout as kernels
from minunet.ops.rows import count_rows, in_blocks

_CHUNK = 1 << 14        # blocks of four words made at a time: their intermediate results stay in cache


def dropout(x: np.ndarray, *, p: float, key: Any) -> tuple[np.ndarray, Any]:
    """x / (1 − p) where kept, 0 where dropped (with probability p).

    key: a 64-bit integer, or a uint64 array (1,) that holds it, beside x.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be at least 0 and below 1; got {p!r}")
    scale = x.dtype.type(1 / (1 - p))
    if on_gpu(x):                                           # keeps the key instead of the mask
        if not isinstance(key, array_module(x).ndarray):
            key = to_device(np.array([key % 2**64], np.uint64), device_of(x))
        options = _threshold(p), key, scale
        return kernels.dropout(x, *options), options
    keep = keep_mask(int(key[0]) if isinstance(key, np.ndarray) else int(key), x, p)
    return _masked(x, keep, scale), (keep, scale)


def dropout_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """A product with constants: dx = dy · mask / (1 − p)."""
    if on_gpu(dy):
        return (kernels.dropout(dy, *cache),)
    return (_masked(dy, *cache),)


def _masked(x: np.ndarray, keep: np.ndarray, scale: np.floating) -> np.ndarray:
    y = memory.empty(x.shape, x.dtype)

    def job(x: np.ndarray, keep: np.ndarray, y: np.ndarray) -> None:
        np.multiply(x, keep, out=y)
        np.multiply(y, scale, out=y)

    in_blocks(job, count_rows(x), x, keep, y)
    return y


def keep_mask(key: int, x: np.ndarray, p: float) -> np.ndarray:
    """bool in x's shape and beside it: element i is kept when its 32-bit word is at least p · 2^32."""
    xp = array_module(x)
    keep = xp.empty(x.size, bool)
    threshold = _threshold(p)

    def job(start: int) -> None:
        stop = min(start + 4 * _CHUNK, x.size)
        blocks = xp.arange(start // 4, (stop + 3) // 4, dtype=np.uint64)
        keep[start:stop] = philox4x32(blocks, key).ravel()[:stop - start] >= threshold

    parallel.run(job, range(0, x.size, 4 * _CHUNK))
    return keep.reshape(x.shape)


def _threshold(p: float) -> int:
    return round(p * 2**32)


def philox4x32(blocks: np.ndarray, key: int, rounds: int = 10) -> np.ndarray:
    """Four 32-bit words (count, 4), as uint64, for each 64-bit block index (count,) and a 64-bit key."""
    xp = array_module(blocks)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = blocks & low, blocks >> half, xp.zeros_like(blocks), xp.zeros_like(blocks)
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(rounds):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)     # 32 x 32 -> 64 bits
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low, (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return xp.stack([c0, c1, c2, c3], axis=1)
