"""The launches of kernels/shape.cu: one for each part of a concatenation, or of its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from minunet.backend import array_module
from minunet.cuda import launch
from minunet.ops.kernels.vector import vector_length


def concat(xs: Sequence[Any]) -> Any:
    """(..., C1), (..., C2), ... -> (..., C1 + C2 + ...)."""
    xp = array_module(*xs)
    y = xp.empty((*xs[0].shape[:-1], sum(x.shape[-1] for x in xs)), xs[0].dtype)
    first = 0
    for x in xs:
        _copy(xp.ascontiguousarray(x), y, x.shape[-1], 0, first)
        first += x.shape[-1]
    return y


def split(y: Any, channels: Sequence[int]) -> tuple[Any, ...]:
    """(..., C1 + C2 + ...) -> (..., C1), (..., C2), ...: copies of these numbers of channels."""
    xp = array_module(y)
    y = xp.ascontiguousarray(y)
    parts, first = [], 0
    for c in channels:
        parts.append(xp.empty((*y.shape[:-1], c), y.dtype))
        _copy(y, parts[-1], c, first, 0)
        first += c
    return tuple(parts)


def _copy(x: Any, y: Any, channels: int, from_first: int, to_first: int) -> None:
    """This many channels of x, beginning with from_first, written into y's channels from to_first on."""
    pixels = math.prod(x.shape[:-1])
    vector = vector_length(math.gcd(channels, x.shape[-1], y.shape[-1], from_first, to_first), x, y)
    launch("shape.copy_channels", x, y, pixels, channels, x.shape[-1], from_first, y.shape[-1], to_first,
           threads=pixels * channels // vector, defines={"VECTOR": vector})
