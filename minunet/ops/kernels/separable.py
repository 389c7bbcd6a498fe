"""The launch of kernels/separable.cu: a product with R_height ⊗ R_width, or with its transpose.

The two matrices, one for an axis, are built on the host by the op that knows them and stay on the device as long as
they are asked for: a net needs a few for each level and size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from minunet import tape
from minunet.backend import array_module, device_of, to_device
from minunet.cuda import launch
from minunet.ops.kernels.vector import vector_length


class Axis(NamedTuple):
    """The matrix of one axis on a device, in compressed sparse rows: row o has start[o] .. start[o + 1] − 1."""

    start: Any
    index: Any
    weight: Any


def product(x: Any, matrix: Callable[..., Any], height: tuple[Any, ...], width: tuple[Any, ...], *,
            transposed: bool = False, value: float = 0.0) -> Any:
    """y = (R_height ⊗ R_width) x, or x's product with the transpose: (N, H, W, C) -> (N, OH, OW, C).

    R_height is matrix(*height), (OH, H), and R_width is matrix(*width), (OW, W). Where y has no source it is value.
    """
    xp, place = array_module(x), (x.dtype, device_of(x), str(x.device))
    rows, columns = (tape.keep(_axis(matrix, axis, transposed, *place)) for axis in (height, width))
    n, h, w, c = x.shape
    oh, ow = (len(axis.start) - 1 for axis in (rows, columns))
    x, y = xp.ascontiguousarray(x), xp.empty((n, oh, ow, c), x.dtype)
    vector = vector_length(c, x, y)
    launch("separable.separable", x, y, *rows, *columns, n, h, w, c, oh, ow, value, threads=y.size // vector,
           defines={"VECTOR": vector})
    return y


@lru_cache(maxsize=256)
def _axis(matrix: Callable[..., Any], arguments: tuple[Any, ...], transposed: bool, dtype: np.dtype, device: str,
          which: str) -> Axis:
    """matrix(*arguments) on a device; which: of several GPUs, the one that holds it."""
    R = matrix(*arguments)
    R = scipy.sparse.csr_array(R.T if transposed else R)
    return Axis(*(to_device(array, device) for array in
                  (R.indptr.astype(np.int32), R.indices.astype(np.int32), R.data.astype(dtype))))
