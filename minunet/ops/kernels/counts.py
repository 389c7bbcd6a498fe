"""The launches of kernels/counts.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet.backend import array_module
from minunet.cuda import launch

THREADS, BLOCKS = 256, 1024         # of a block; at most
BINS, COPIES = 4096, 32             # counts in a block's shared memory; copies of each, at most


def confusion(truth: Any, prediction: Any, ids: int) -> Any:
    """(ids, ids) uint64: the pixels of each pair [truth, prediction] of uint8 ids.

    A pixel with an id that is none is not counted.
    """
    xp = array_module(truth, prediction)
    counts = xp.zeros((ids, ids), np.uint64)
    copies = min(COPIES, 1 << (BINS // ids**2).bit_length() - 1) if ids**2 <= BINS else 0
    launch("counts.confusion", xp.ascontiguousarray(truth), xp.ascontiguousarray(prediction), counts, truth.size, ids,
           copies, blocks=(min(BLOCKS, -(-truth.size // THREADS)),))
    return counts


def class_ids(answer: Any, threshold: float) -> Any:
    """(H, W) uint8 of (H, W, K): the first of the largest, or of one class whether it reaches the threshold."""
    xp = array_module(answer)
    ids = xp.empty(answer.shape[:-1], np.uint8)
    launch("counts.class_ids", xp.ascontiguousarray(answer), ids, ids.size, answer.shape[-1], float(threshold),
           threads=ids.size)
    return ids
