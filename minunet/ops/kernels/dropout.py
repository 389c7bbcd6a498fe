"""The launch of kernels/dropout.cu: a thread makes the four words of one value of Philox's counter."""

from __future__ import annotations

from typing import Any

from minunet.backend import array_module
from minunet.cuda import launch
from minunet.ops.kernels.vector import vector_length


def dropout(x: Any, threshold: int, key: Any, scale: Any) -> Any:
    """x · mask · scale: element i is kept when its word of the key, an array (1,), is at least threshold."""
    xp = array_module(x)
    y, x = xp.empty(x.shape, x.dtype), xp.ascontiguousarray(x)
    launch("dropout.dropout", x, y, x.size, key, threshold, scale, threads=-(-x.size // 4),
           defines={"VECTOR": vector_length(x.size, x, y)})
    return y
