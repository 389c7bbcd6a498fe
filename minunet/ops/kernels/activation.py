"""The launches of kernels/activation.cu: 4 numbers a thread, or 1; for softmax, a group of threads a row."""

from __future__ import annotations

from typing import Any

from minunet.backend import array_module
from minunet.cuda import launch
from minunet.ops.kernels.vector import vector_length

WARP = 32


def elementwise(kernel: str, *arrays: Any, options: tuple[float, ...] = ()) -> Any:
    """y of x, or dx of (dy, y), number by number."""
    xp, shape = array_module(*arrays), arrays[0].shape
    result = xp.empty(shape, arrays[0].dtype)
    contiguous = [xp.ascontiguousarray(a) for a in arrays]
    vector = vector_length(result.size, *contiguous, result)
    launch(f"activation.{kernel}", *contiguous, result, result.size, *options, threads=result.size // vector,
           defines={"VECTOR": vector})
    return result


def over_channels(kernel: str, *arrays: Any) -> Any:
    """y of x, or dx of (dy, y), row by row of the last axis."""
    xp, shape = array_module(*arrays), arrays[0].shape
    result = xp.empty(shape, arrays[0].dtype)
    contiguous = [xp.ascontiguousarray(a) for a in arrays]
    channels = shape[-1]
    vector, rows = vector_length(channels, *contiguous, result), result.size // max(channels, 1)
    group = min(WARP, 1 << (max(channels // vector, 1) - 1).bit_length())     # the power of two that suffices
    launch(f"activation.{kernel}", *contiguous, result, rows, channels, group, threads=rows * group,
           defines={"VECTOR": vector})
    return result
