"""The convolution matrix written out: every element at its row and column.

Row (oh, ow, f) holds the kernel's values for filter f, at the columns (h, w, c) of the pixels that its window covers;
everything else is zero. Nothing computes with this matrix; it is there to be looked at and compared with.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from minunet.geometry import Geometry, Pair


def sparse_matrix(weight: np.ndarray, geometry: Geometry, size: Pair) -> scipy.sparse.csr_array:
    """A as (OH·OW·F, H·W·C) in compressed sparse rows, for weight (KH, KW, C, F) and images of this size in px."""
    (h, w), (oh, ow) = size, geometry.output_size(size)
    kh, kw, c, f = weight.shape
    # the input position (row, column) of each window's kernel position, per axis
    rows = _positions(oh, geometry, 0)[:, None, :, None]            # (OH, 1, KH, 1)
    cols = _positions(ow, geometry, 1)[None, :, None, :]            # (1, OW, 1, KW)
    inside = (0 <= rows) & (rows < h) & (0 <= cols) & (cols < w)    # (OH, OW, KH, KW): not in the padding
    o1, o2, k1, k2 = np.nonzero(inside)
    pixel = (rows * w + cols)[o1, o2, k1, k2]                       # (taps,)
    row = ((o1 * ow + o2)[:, None] * f + np.arange(f))[:, None, :]          # (taps, 1, F)
    column = (pixel[:, None] * c + np.arange(c))[:, :, None]                # (taps, C, 1)
    values = weight[k1, k2]                                                 # (taps, C, F)
    row, column = (np.broadcast_to(index, values.shape).ravel() for index in (row, column))
    return scipy.sparse.csr_array((values.ravel(), (row, column)), shape=(oh * ow * f, h * w * c))


def _positions(windows: int, geometry: Geometry, axis: int) -> np.ndarray:
    """o·stride − padding + k·dilation for all windows o and kernel positions k: (windows, kernel)."""
    o, k = np.arange(windows)[:, None], np.arange(geometry.kernel[axis])
    return o * geometry.stride[axis] - geometry.padding[axis] + k * geometry.dilation[axis]
