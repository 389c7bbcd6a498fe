"""Matrix products in the size that the matrix library likes best.

OpenBLAS copies ("packs") the operands of a large product into an order of its own. A small product it computes from
where they lie, and on processors with AVX-512 a fifth faster: 110 to 117 GFLOP/s a core instead of 90 to 100. So a
large product is written as many small ones: the left matrix is cut by its rows, the right one by its columns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from minunet import memory, parallel


def _has_small_products() -> bool:
    """Whether NumPy's matrix library computes small products without packing: OpenBLAS, where there is AVX-512."""
    return any(library.get("architecture") in ("SkylakeX", "Cooperlake", "SapphireRapids")
               for library in threadpool_info() if library["internal_api"] == "openblas")


# Called with each block of a product while it is in cache: rows (rows, L·F) of L pixels, in any order.
Each = Callable[[np.ndarray], Any] | None

# The largest M·N·K that OpenBLAS takes for a small product. Where it has none, nothing is cut: each piece is packed.
UNPACKED = 1_000_000 if _has_small_products() else sys.maxsize

# Small products are fastest with a multiple of 12 rows and of 16 columns, up to 64.
HEIGHT = 12
LOW = 8 * HEIGHT            # rows, from which on it makes no difference
WIDTH, WIDTH_STEP = 64, 16

# Numbers between two lines of scratch: at a distance of a power of two, lines displace each other from the cache.
GAP = 16


def panels(matrix: np.ndarray) -> list[np.ndarray]:
    """The right matrix (K, N) of a `multiply` in panels, each of a few columns.

    They are views; or copies, where columns lie too far apart for small products: in a transposed or very tall matrix.
    """
    k, n = matrix.shape
    width = min(WIDTH, UNPACKED // (HEIGHT * k) // WIDTH_STEP * WIDTH_STEP)
    if UNPACKED == sys.maxsize or width == 0:
        return [matrix]
    in_rows, pieces = matrix.flags.c_contiguous, range(0, n, width)
    if in_rows and (width == WIDTH or n <= width):
        return [matrix[:, first:first + width] for first in pieces]

    def copy(first: int) -> np.ndarray:
        columns = matrix[:, first:first + width]
        panel = memory.empty(columns.shape, matrix.dtype)
        if not in_rows:
            lines = memory.scratch((columns.shape[1], k + GAP), matrix.dtype, "panel")[:, :k]
            lines[...] = columns.T
            columns = lines.T
        panel[...] = columns
        return panel

    return parallel.run(copy, pieces)


def depth(n: int) -> int:
    """The largest K at which all n columns of a right matrix, or WIDTH of them, fit a small product."""
    return UNPACKED // (HEIGHT * min(WIDTH, -(-n // WIDTH_STEP) * WIDTH_STEP))


def multiply(a: np.ndarray, right: list[np.ndarray], out: np.ndarray) -> None:
    """out (..., M, N) = a (..., M, K) times the matrix (K, N) of these panels; a may be a transposed matrix."""
    if a.shape[-1] == 1:    # this NumPy computes itself, ten times as slow as BLAS: a column of zeros makes it K = 2
        a = np.concatenate([a, np.zeros_like(a)], axis=-1)
        right = [np.vstack([panel, np.zeros_like(panel)]) for panel in right]
    first = 0
    for panel in right:
        last = first + panel.shape[1]
        _multiply_panel(a, panel, out[..., first:last])
        first = last


def multiply_each(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out = a b for stacks of matrices (..., M, K) and (..., K, N), which may be transposed; b may be fewer than a."""
    k, n = b.shape[-2:]
    if b.strides[-2] < b.strides[-1]:               # transposed, which small products would read column by column
        np.matmul(a, b, out=out)
        return
    fitting = UNPACKED // (HEIGHT * k) // WIDTH * WIDTH
    width = min(2 * WIDTH, fitting) or n            # for many products at a time, twice WIDTH is faster
    for first in range(0, n, width):
        _multiply_panel(a, b[..., first:first + width], out[..., first:first + width])


def _multiply_panel(a: np.ndarray, panel: np.ndarray, out: np.ndarray) -> None:
    """out = a times a panel, which may be one for each matrix of a, in pieces of rows."""
    m = a.shape[-2]
    most = UNPACKED // (panel.shape[-2] * panel.shape[-1]) // HEIGHT * HEIGHT or m     # rows of a small product
    pieces = -(-m // most)
    even = next((n for n in range(pieces, pieces + 4) if m % n == 0), m)
    # equal pieces, which are one call; if these are low, a multiple of HEIGHT and a rest
    height = m // even if m >= even * LOW else min(m, -(-m // (pieces * HEIGHT)) * HEIGHT)
    whole = m - m % height
    np.matmul(_stack(a[..., :whole, :], height), panel[..., None, :, :], out=_stack(out[..., :whole, :], height))
    if whole < m:
        np.matmul(a[..., whole:, :], panel, out=out[..., whole:, :])


def _stack(matrix: np.ndarray, height: int) -> np.ndarray:
    """A view of the matrix as matrices of so many rows: (..., M / height, height, columns)."""
    return matrix.reshape(*matrix.shape[:-2], -1, height, matrix.shape[-1], copy=False)


def finish(y: np.ndarray, b: np.ndarray | None, relu: bool) -> None:
    """y + b, then the maximum with 0 if relu, in place: y (..., pixels, channels), b repeated for all these pixels.

    For all of them, because NumPy is slow where few numbers are repeated.
    """
    rows = y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1], copy=False)
    if b is not None:
        rows += b[:rows.shape[-1]]
    if relu:
        rectify(rows)


def rectify(rows: np.ndarray) -> None:
    """max(rows, 0) in place. With a row of zeros NumPy takes a third of the time that it takes with a number."""
    np.maximum(rows, _zeros(rows.shape[-1], rows.dtype.char), out=rows)


@lru_cache(maxsize=64)
def _zeros(count: int, dtype: str) -> np.ndarray:
    return np.zeros(count, dtype)
