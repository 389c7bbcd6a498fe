"""The launches of kernels/loss.cu and dice.cu: sums over all pixels, the gradient with the blocks' losses, the loss.

Targets come checked, on the device, as int32 class ids or as fractions in the logits' dtype, with the value `ignore`
whose pixels count for nothing (None if all count); weights in the logits' dtype, or None for ones, for which no array
is made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minunet.backend import array_module
from minunet.cuda import launch

NOBODY = -1         # ignored if nothing is: neither a class id nor a fraction
THREADS = 256       # of a block
BLOCKS = 1024       # at most; with more pixels every block takes more (the same on every device, so the same bits)


class Loss(NamedTuple):
    """kernels/loss.cuh's struct of this name."""

    pixels: int
    classes: int
    group: int
    ignore: int
    weighted: int
    class_weighted: int
    of_ids: int

    def blocks(self, threads: int) -> int:
        """How many blocks share this many threads' work."""
        return max(1, min(BLOCKS, -(-threads // THREADS)))


def cross_entropy(logits: Any, ids: Any, weights: Any, class_weights: Any, ignore: int | None) -> tuple[Any, Any]:
    """The loss () and its gradient, of logits (..., K)."""
    logits, ids, weights, class_weights, loss = _arguments(logits, ids, weights, class_weights, ignore)
    xp = array_module(logits)
    if loss.weighted or loss.class_weighted or ignore is not None:
        sums = xp.empty(loss.blocks(loss.pixels), np.float64)
        launch("loss.sum_weights", ids, weights, class_weights, sums, loss, blocks=sums.shape)
    else:
        sums = xp.full(1, loss.pixels, np.float64)
    return _mean("cross_entropy", logits, ids, weights, class_weights, sums, loss, loss.pixels * loss.group)


def bce_with_logits(logits: Any, target: Any, weights: Any, class_weights: Any, ignore: int | None) -> tuple[Any, Any]:
    """The loss () and its gradient, of logits and fractions of one shape."""
    logits, target, weights, class_weights, loss = _arguments(logits, target, weights, class_weights, ignore)
    xp = array_module(logits)
    if ignore is not None:
        sums = xp.empty(loss.blocks(logits.size), np.float64)
        launch("loss.count_fractions", target, sums, loss, blocks=sums.shape)
    else:
        sums = xp.full(1, logits.size, np.float64)
    return _mean("bce_with_logits", logits, target, weights, class_weights, sums, loss, logits.size)


def dice(logits: Any, target: Any, weights: Any, class_weights: Any, ignore: int | None, smooth: float,
         of_ids: bool) -> tuple[Any, Any, Any]:
    """The loss (), its gradient, and which classes are present (K,)."""
    logits, target, weights, class_weights, loss = _arguments(logits, target, weights, class_weights, ignore, of_ids)
    xp, k = array_module(logits), loss.classes
    ids, fractions = (target, xp.empty(0, logits.dtype)) if of_ids else (xp.empty(0, np.int32), target)
    blocks = loss.blocks(loss.pixels * loss.group)
    overlaps, totals, found = (xp.empty((k, blocks), dtype) for dtype in (np.float64, np.float64, np.int32))
    launch("dice.dice_sums", logits, ids, fractions, weights, overlaps, totals, found, loss,
           blocks=(blocks, -(-k // loss.group)))
    slopes, offsets, losses = xp.empty(k, logits.dtype), xp.empty(k, logits.dtype), xp.empty(k, np.float64)
    present, y, gradient = xp.empty(k, bool), xp.empty((), logits.dtype), xp.empty(logits.shape, logits.dtype)
    launch("dice.dice_loss", overlaps, totals, found, blocks, class_weights, float(smooth), losses, slopes, offsets,
           present, y, loss, blocks=(1,))
    launch("dice.dice", logits, ids, fractions, weights, slopes, offsets, gradient, loss, blocks=(blocks,))
    return y, gradient, present


def _mean(kernel: str, logits: Any, target: Any, weights: Any, class_weights: Any, sums: Any, loss: Loss,
          threads: int) -> tuple[Any, Any]:
    """The gradient and the blocks' losses, given the sums of what the mean divides by; then the loss."""
    xp = array_module(logits)
    gradient, losses = xp.empty(logits.shape, logits.dtype), xp.empty(loss.blocks(threads), np.float64)
    launch(f"loss.{kernel}", logits, target, weights, class_weights, sums, sums.size, gradient, losses, loss,
           blocks=losses.shape)
    y = xp.empty((), logits.dtype)
    launch("loss.total_loss", losses, losses.size, y, threads=1)
    return y, gradient


def _arguments(logits: Any, target: Any, weights: Any, class_weights: Any, ignore: int | None,
               of_ids: bool = False) -> Any:
    """The arrays, contiguous, empty ones for None; and their struct."""
    xp, k = array_module(logits), logits.shape[-1]
    loss = Loss(logits.size // max(k, 1), k, min(32, 1 << (k - 1).bit_length()), NOBODY if ignore is None else ignore,
                int(weights is not None), int(class_weights is not None), int(of_ids))
    weights, class_weights = (xp.empty(0, logits.dtype) if w is None else xp.ascontiguousarray(w)
                              for w in (weights, class_weights))
    return xp.ascontiguousarray(logits), xp.ascontiguousarray(target), weights, class_weights, loss
