"""The launches of kernels/optimizer.cu: a step of many parameters at once, cut into parts of one block each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minunet.backend import device_of, to_device
from minunet.cuda import launch

PART = 4096         # elements of a block: 16 a thread


def parts_of(sizes: Sequence[int], device: str) -> Any:
    """What each block owns, on the device: int32 rows of parameter, first element, and the one behind the last."""
    rows = []
    for index, size in enumerate(sizes):
        first = np.arange(0, size, PART)
        rows.append(np.stack([np.full_like(first, index), first, np.minimum(first + PART, size)], 1))
    return to_device(np.concatenate(rows).astype(np.int32), device)


def adam(tables: Sequence[list[Any]], parts: Any, taken: Sequence[int], lr: float, betas: tuple[float, float],
         eps: float, decay: float, shrink: float) -> None:
    """Adam's step of arrays of one dtype (tables: θ, g, m, v), in place; taken: the number of each one's step, from 1.

    decay · θ is added to the gradient, shrink · θ taken from θ (weight decay as Adam and as AdamW has it).
    """
    (beta1, beta2), dtype = betas, tables[0][0].dtype
    coefficients = np.array([[lr / (1 - beta1**t) for t in taken], [1 / (1 - beta2**t)**0.5 for t in taken]], dtype)
    rates, corrections = to_device(coefficients, device_of(parts))
    launch("optimizer.adam", *tables, parts, rates, corrections, beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 - shrink,
           decay, blocks=(len(parts),))


def sgd(theta: list[Any], g: list[Any], velocity: list[Any], parts: Any, lr: float, momentum: float, nesterov: bool,
        decay: float) -> None:
    """SGD's step of arrays of one dtype, in place."""
    launch("optimizer.sgd", theta, g, velocity, parts, lr, momentum, int(nesterov), decay, blocks=(len(parts),))
