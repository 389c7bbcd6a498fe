"""The U-Net's unit as one op: convolution, batch norm, ReLU, and on request the 2x2 max-pool behind it.

    z = A x,    y = max(γ (z − μ)/σ + β, 0),    pooled = the maximum of each 2x2 window of y

On the CPU this goes over memory as seldom as it can: the statistics of z are taken while its blocks are in cache; y and
pooled are made in one pass; the backward takes one for the gradient behind the ReLU and its sums, and one for that of
z. It keeps x, z, y and pooled, of which all but z are other ops' inputs, and no winners: y and pooled tell them. On a
GPU the kernels of the three ops do the same work one after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minunet import memory, parallel
from minunet.backend import on_gpu, same_dtype
from minunet.convolution import ConvMatrix
from minunet.geometry import Geometry, IntOrPair
from minunet.ops import norm
from minunet.ops import pool as pooling
from minunet.ops.conv import Later, check_images, gradients, joined
from minunet.ops.kernels import norm as kernels
from minunet.ops.kernels import pool as pool_kernels
from minunet.ops.rows import count_rows, in_blocks

Arrays = tuple[np.ndarray, ...]


class Unit(NamedTuple):
    """What the backward needs: the matrix, its images as its products read them, the channels of each, the batch norm's
    cache (of z and y), and that of the pooling.

    pooled is the result on the CPU, `pool.Pooled` on a GPU, None without pooling.
    """

    A: ConvMatrix
    xs: Any
    channels: tuple[int, ...]
    normalised: Any
    pooled: Any

    @property
    def mean(self) -> np.ndarray:
        """The batch's mean of z, (F,)."""
        return self.normalised.mean

    @property
    def var(self) -> np.ndarray:
        """The batch's biased variance of z, (F,)."""
        return self.normalised.var

    @property
    def positive(self) -> np.ndarray:
        """Where y > 0: the ReLU's kink."""
        return self.normalised.positive

    @property
    def winners(self) -> np.ndarray:
        """The winners, as `pool.max_pool2d` numbers them; without pooling an empty array."""
        if self.pooled is None:
            return self.positive[:0]
        if isinstance(self.pooled, pooling.Pooled):
            return self.pooled.winners
        n, h, w, channels = self.pooled.shape
        windows = self.normalised.y.reshape(n * h, 2, w, 2, channels)
        won = windows == self.pooled.reshape(n * h, 1, w, 1, channels)
        _keep_first(won)
        number = np.arange(4, dtype=np.uint8).reshape(2, 1, 2, 1)
        return (won * number).sum((1, 3), dtype=np.uint8).reshape(self.pooled.shape)


def conv_norm_relu(w: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *xs: np.ndarray, eps: float = 1e-5,
                   padding: IntOrPair = 1, pool: bool = False, precision: str = "float32"
                   ) -> tuple[Any, Unit]:
    """y = max(batch_norm(A x), 0): xs (N, H, W, ·) with C channels side by side, w (KH, KW, C, F), gamma, beta (F,).

    y (N, OH, OW, F); with pool (y, pooled), pooled (N, OH/2, OW/2, F): OH and OW must then be even.
    """
    check_images("conv_norm_relu", xs, w, None)
    A = ConvMatrix(w, Geometry(w.shape[:2], 1, padding), xs[0].shape[1:3], precision=precision)
    _check(A, gamma, beta, len(xs[0]), eps, pool)
    images, channels = joined(xs)
    if on_gpu(w):
        images = A.prepared(images)     # in BF16 half the memory; of a U-Net's x nobody else keeps anything
        y, normalised = norm.batch_norm(A.affine(images), gamma, beta, eps=eps, relu=True)
        if pool:
            pooled, where = pooling.max_pool2d(y, kernel=2)
            return (y, pooled), Unit(A, images, channels, normalised, where)
        return y, Unit(A, images, channels, normalised, None)
    z, moments = A.with_each(images, norm.moments(len(gamma)))
    y, maxima, normalised = _normalised(z, norm.combined(moments), gamma, beta, float(eps), pool)
    return (y, maxima) if pool else y, Unit(A, images, channels, normalised, maxima)


def conv_norm_relu_backward(dy: Any, cache: Unit, needs: tuple[bool, ...], later: Later = parallel.at_once
                            ) -> tuple[np.ndarray | None, ...]:
    """Backwards through the four steps.

    A maximum passes its gradient on to its winner, the first of equal numbers; there y's own gradient is added, and the
    ReLU lets through what is positive: g = (dy + unpooled) · (y > 0). Batch norm makes of it (see `norm`)

        dz = γ/σ · (g − mean(g) − ẑ · mean(g · ẑ)),    dγ = Σ g · ẑ,    dβ = Σ g,    ẑ = (z − μ)/σ;

    and z = A x gives dx = Aᵀ dz, dw = weight_grad(x, dz). The sums are taken while g is made, and dz takes g's place.
    """
    A, xs, channels, normalised, pooled = cache
    dy, dpooled = (dy, None) if pooled is None else dy
    if on_gpu(A.weight):
        if dpooled is not None:
            winners, geometry, size = pooled
            dy = pool_kernels.max_unpool2d(dpooled, winners, geometry, size, onto=dy)
        dz, dgamma, dbeta = norm.batch_norm_backward(dy, normalised)
    else:
        dz, dgamma, dbeta = _normalised_backward(dy, dpooled, normalised, pooled)
    dw, *dxs = gradients(A, xs, channels, dz, (needs[0], *needs[3:]), later)
    return dw, dgamma, dbeta, *dxs


def fold(w: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float) -> Arrays:
    """The w and b with which A x + b is batch norm of A x in prediction: w · γ/σ for each filter, β − mean · γ/σ."""
    if on_gpu(w):
        return kernels.fold(w, gamma, beta, mean, var, float(eps))
    scale = gamma / (var + eps) ** 0.5
    shift = beta - mean * scale
    folded = memory.empty(w.shape, w.dtype)
    in_blocks(lambda w, folded: np.multiply(w, scale, out=folded), w.size // len(scale), w, folded)
    return folded, shift


def pooled(y: np.ndarray) -> np.ndarray:
    """The maximum of each 2x2 window, without the winners: for prediction. y (N, H, W, F), H and W even."""
    if on_gpu(y):
        return pooling.max_pool2d(y, kernel=2)[0]
    n, h, w, channels = y.shape
    maxima = memory.empty((n, h // 2, w // 2, channels), y.dtype)
    in_blocks(lambda y, maxima: _pool(y, maxima, channels), count_rows(maxima), y, maxima)
    return maxima


def _pool(lines: np.ndarray, maxima: np.ndarray, channels: int) -> None:
    """Rows of two lines each, (rows, 2·W·C), to their 2x2 maxima, (rows, W/2·C)."""
    upper, lower = np.split(lines, 2, axis=1)
    taller = np.maximum(upper, lower, out=memory.scratch(upper.shape, upper.dtype))
    pairs = taller.reshape(len(lines), -1, 2, channels)
    np.maximum(pairs[:, :, 0], pairs[:, :, 1], out=maxima.reshape(len(lines), -1, channels))


def _normalised(z: np.ndarray, statistics: norm.Sums, gamma: np.ndarray, beta: np.ndarray, eps: float, pool: bool
                ) -> tuple[np.ndarray, np.ndarray | None, norm.Normalised]:
    """y, pooled and what the backward needs."""
    n, h, w, channels = z.shape
    y = memory.empty(z.shape, z.dtype)
    pooled = memory.empty((n, h // 2, w // 2, channels), z.dtype) if pool else None
    cache = norm.Normalised(z, y, gamma, *statistics, eps)
    rows = _rows(z, pooled)
    apply = norm.application(cache, beta, True, z.size // rows)

    def job(z: np.ndarray, y: np.ndarray, pooled: np.ndarray | None) -> None:
        apply(z, y)
        if pooled is not None:
            _pool(y, pooled, channels)

    in_blocks(job, rows, z, y, pooled)
    return y, pooled, cache


def _normalised_backward(dy: np.ndarray | None, dpooled: np.ndarray | None, cache: norm.Normalised,
                         pooled: np.ndarray | None) -> Arrays:
    """dz, dγ, dβ."""
    z, channels = cache.x, cache.x.shape[3]
    g = memory.empty(z.shape, z.dtype)
    rows = _rows(z, dpooled)
    sums_of = norm.gradient_sums(cache, z.size // rows)

    def job(dy: Any, dpooled: np.ndarray | None, y: np.ndarray, pooled: np.ndarray | None,
            z: np.ndarray, g: np.ndarray) -> norm.Sums:
        positive = np.greater(y, 0, out=memory.scratch(y.shape, np.dtype(bool), "positive"))
        if pooled is None or dpooled is None:
            np.multiply(dy, positive, out=g)
            return sums_of(g, z)
        lines = len(y), 2, y.shape[1] // 2
        won = np.equal(y.reshape(lines), _widened(pooled, channels), out=memory.scratch(lines, np.dtype(bool), "won"))
        won &= positive.reshape(lines)
        if np.count_nonzero(won) > np.count_nonzero(pooled > 0):        # equal numbers in one window, which are rare
            _keep_first(won.reshape(len(y), 2, -1, 2, channels))
        np.multiply(_widened(dpooled, channels), won, out=g.reshape(lines))
        if dy is not None:
            np.add(g, dy, out=g)
            np.multiply(g, positive, out=g)
        return sums_of(g, z)

    sums = in_blocks(job, rows, dy, dpooled, cache.y, None if dpooled is None else pooled, z, g)
    return norm.input_gradient(g, cache, sums, out=g)


def _check(A: ConvMatrix, gamma: np.ndarray, beta: np.ndarray, batch: int, eps: float, pool: bool) -> None:
    """The border's check of what is not the convolution's."""
    name, filters = "conv_norm_relu", A.weight.shape[3]
    same_dtype(name, weight=A.weight, gamma=gamma, beta=beta)
    if gamma.shape != (filters,) or beta.shape != (filters,):
        raise ValueError(f"{name}: gamma and beta must be ({filters},), one number for each filter; got gamma "
                         f"{gamma.shape}, beta {beta.shape}")
    if batch == 0:
        raise ValueError(f"{name}: x must not be empty; it has the statistics of no image")
    if not eps > 0:
        raise ValueError(f"{name}: eps must be above 0; got {eps!r}")
    if pool and any(n % 2 for n in A.out_size):
        raise ValueError(f"{name}: with pool the result's height and width must be even; got {A.out_size}")


def _rows(z: np.ndarray, pooled: np.ndarray | None) -> int:
    """Into how many rows the images are cut: with pooling, two lines of an image are one, and their pooled line is."""
    return count_rows(z if pooled is None else pooled)


def _widened(maxima: np.ndarray, channels: int) -> np.ndarray:
    """Each pixel twice, in scratch: (rows, W/2·C) -> (rows, 1, W·C)."""
    wide = memory.scratch((len(maxima), maxima.shape[1] // channels, 2, channels), maxima.dtype, "wide")
    wide[...] = maxima.reshape(len(maxima), -1, 1, channels)
    return wide.reshape(len(maxima), 1, -1)


def _keep_first(won: np.ndarray) -> None:
    """Of several winners in a window, keep the first, in place: won (rows, 2, W/2, 2, C)."""
    free = np.ones(won[:, 0, :, 0].shape, bool)
    for i, j in np.ndindex(2, 2):
        won[:, i, :, j] &= free
        free ^= won[:, i, :, j]
