"""Fixed interpolation to another size: nearest, bilinear, bicubic. It, too, is a matrix product, y = R x.

R = R_height ⊗ R_width has a row for each output pixel, with at most 1, 4 or 16 weights in it, the same for all
channels; the gradient is the product with Rᵀ. Pixel centres are at half-integers: output pixel o lies at the input
position (o + 1/2) · in/out − 1/2 (so "nearest" is what PyTorch calls nearest-exact).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse

from minunet.backend import array_module, on_gpu
from minunet.geometry import IntOrPair, Pair, as_pair
from minunet.ops.kernels import separable

METHODS = ("nearest", "bilinear", "bicubic")


def resample(x: np.ndarray, *, size: IntOrPair | None = None, factor: float | tuple[float, float] | None = None,
             method: str = "nearest") -> tuple[np.ndarray, Any]:
    """y = R x: (N, H, W, C) -> (N, *size, C); a factor only chooses size = floor(factor · (H, W))."""
    if x.ndim != 4:
        raise ValueError(f"resample: x must be (N, H, W, C), channels last; its shape is {x.shape}")
    if method not in METHODS:
        raise ValueError(f"resample: method must be one of {', '.join(METHODS)}; got {method!r}")
    full = _target(x.shape[1:3], size, factor)
    if on_gpu(x):
        axes = [(n, out, method) for n, out in zip(x.shape[1:3], full)]
        return separable.product(x, _axis_matrix, *axes), (axes, x.shape[1:3])
    R = interpolation_matrix(x.shape[1:3], full, method, x.dtype)
    return _apply(R, x, full), (R, x.shape[1:3])


def resample_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray]:
    """<dy, R x> = <Rᵀ dy, x>: dx = Rᵀ dy."""
    R, size = cache
    if on_gpu(dy):                      # its axes, which say how to make it
        return (separable.product(dy, _axis_matrix, *R, transposed=True),)
    return (_apply(R.T, dy, size),)


def _apply(matrix: Any, x: np.ndarray, size: Pair) -> np.ndarray:
    y = array_module(x).empty((len(x), *size, x.shape[3]), x.dtype)
    for n, image in enumerate(x):
        y[n] = (matrix @ image.reshape(-1, x.shape[3])).reshape(y[n].shape)     # (OH*OW, H*W) @ (H*W, C)
    return y


def _target(size: Pair, wanted: IntOrPair | None, factor: float | tuple[float, float] | None) -> Pair:
    if (wanted is None) == (factor is None):
        raise ValueError(f"resample: give either size or factor; got size={wanted!r}, factor={factor!r}")
    if wanted is not None:
        return as_pair(wanted, "size", 1)
    factors = factor if isinstance(factor, tuple) else (factor, factor)
    try:
        full = tuple(math.floor(f * n) for f, n in zip(factors, size, strict=True))     # type: ignore[operator]
    except (TypeError, ValueError, OverflowError):
        full = (0, 0)
    if min(full) < 1:
        raise ValueError(f"resample: factor must be a number, or (height, width), that leaves at least 1x1 px of "
                         f"{size}; got {factor!r}")
    return full[0], full[1]


@lru_cache(maxsize=16)          # a net needs one for each level and size; the largest here take some 30 MB
def interpolation_matrix(size: Pair, full: Pair, method: str, dtype: np.dtype) -> scipy.sparse.csr_array:
    """R (OH·OW, H·W) in compressed sparse rows, from images of this size to the full size, both (height, width) px."""
    per_axis = [_axis_matrix(n, out, method) for n, out in zip(size, full)]
    return scipy.sparse.csr_array(scipy.sparse.kron(*per_axis, format="csr"), dtype=dtype)


def _axis_matrix(n: int, out: int, method: str) -> scipy.sparse.coo_array:
    """One axis: (out, n). Positions beyond the border read the border's pixel, so its weights add up."""
    o = np.arange(out)
    if method == "nearest":
        # in integers, because a float may land on the wrong side of a tie
        return scipy.sparse.coo_array((np.ones(out), (o, (2 * o + 1) * n // (2 * out))), shape=(out, n))
    position = (o + 0.5) * n / out - 0.5
    first = np.floor(position).astype(int)
    t = position - first                                    # 0 <= t < 1
    if method == "bilinear":
        offsets, weights = [0, 1], [1 - t, t]
    else:
        offsets = [-1, 0, 1, 2]
        weights = [_cubic_far(1 + t), _cubic_near(t), _cubic_near(1 - t), _cubic_far(2 - t)]
    columns = [np.clip(first + k, 0, n - 1) for k in offsets]
    rows = np.tile(o, len(offsets))
    return scipy.sparse.coo_array((np.concatenate(weights), (rows, np.concatenate(columns))), shape=(out, n))


# Keys, Cubic convolution interpolation for digital image processing (1981): the kernel with one free parameter a, here
# −0.75 as in PyTorch and OpenCV
_A = -0.75


def _cubic_near(d: np.ndarray) -> np.ndarray:
    """The weight of a pixel at a distance of 0 to 1 px."""
    return ((_A + 2) * d - (_A + 3)) * d * d + 1


def _cubic_far(d: np.ndarray) -> np.ndarray:
    """The weight of a pixel at a distance of 1 to 2 px."""
    return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A
