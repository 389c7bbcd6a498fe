"""How many neighbouring channels a thread moves as one: the VECTOR that kernels/vector.cuh is compiled with."""

from __future__ import annotations

from typing import Any

from minunet.backend import address

LENGTH, BYTES = 4, 16


def vector_length(channels: int, *arrays: Any) -> int:
    """4 where it divides the channels (of several counts, give a common divisor) and all arrays lie on 16 bytes."""
    return LENGTH if channels % LENGTH == 0 and all(address(a) % BYTES == 0 for a in arrays) else 1
