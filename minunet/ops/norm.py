"""Batch normalisation: each channel to mean 0 and variance 1 over the batch and its pixels, then scaled and shifted.

With relu=True also max(·, 0) of that, in one op. On the CPU the forward goes over memory twice, for the statistics and
for y, and so does the backward, for two sums and for dx; each time all is done to a block of rows while it is in cache.

Source: Ioffe and Szegedy, Batch normalization (2015), algorithm 1; the backward in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minunet import memory
from minunet.backend import on_gpu, same_dtype
from minunet.convolution.products import rectify
from minunet.ops.kernels import norm as kernels
from minunet.ops.rows import channel_sums, count_rows, in_blocks, repeated

Sums = tuple[np.ndarray, np.ndarray]

FAR = 4                 # σ; of channels whose mean is farther from 0, x − mean keeps the digits that x² would lose


class Moments(NamedTuple):
    """Of a block: its number of pixels; for each channel a shift s, Σ (x − s) and Σ (x − s)²."""

    pixels: int
    shift: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @property
    def far(self) -> bool:
        """Whether some channel's mean is far from its shift."""
        sums, squares = (part.astype(np.float64) / self.pixels for part in (self.sums, self.squares))
        return not ((sums**2 * (1 + 1 / FAR**2) <= squares) & (squares < np.inf)).all()     # also if they overflow


class Normalised(NamedTuple):
    """What the backward needs: x, and y if the ReLU is fused; numbers for each channel (C,), the statistics in float64.

    constant: mean and variance do not depend on x. On a GPU it is `kernels.Kept`, with mean, var and positive likewise.
    """

    x: np.ndarray
    y: np.ndarray | None
    gamma: np.ndarray
    exact_mean: np.ndarray
    exact_var: np.ndarray
    eps: float
    constant: bool = False

    @property
    def mean(self) -> np.ndarray:
        """The mean, in x's dtype."""
        return self.exact_mean.astype(self.x.dtype)

    @property
    def centre(self) -> np.ndarray | None:
        """What is subtracted from x: the mean in x's dtype; None, for 0, if no channel's mean is far from 0."""
        return self.mean if (self.exact_mean**2 > FAR**2 * self.exact_var).any() else None

    @property
    def off_centre(self) -> np.ndarray:
        """The mean's distance from the centre, in float64."""
        centre = self.centre
        return self.exact_mean if centre is None else self.exact_mean - centre

    @property
    def var(self) -> np.ndarray:
        """The biased variance, in x's dtype."""
        return self.exact_var.astype(self.x.dtype)

    @property
    def sigma(self) -> np.ndarray:
        """√(var + eps), in float64."""
        return np.sqrt(self.exact_var + self.eps)

    @property
    def positive(self) -> np.ndarray:
        """Where y > 0, the kink of a fused ReLU; without one an empty array."""
        return (self.x[:0] if self.y is None else self.y) > 0


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5,
               relu: bool = False) -> tuple[np.ndarray, Normalised | kernels.Kept]:
    """y = γ x̂ + β with x̂ = (x − μ)/σ, σ = √(var + eps): x (..., C), gamma and beta (C,).

    With relu, y = max(γ x̂ + β, 0).
    """
    _check("batch_norm", x, gamma, beta, eps)
    if on_gpu(x):
        return kernels.batch_norm(x, gamma, beta, float(eps), bool(relu))
    return _normalised(Normalised(x, None, gamma, *statistics(x), float(eps)), beta, relu)


def batch_norm_backward(dy: np.ndarray, cache: Normalised | kernels.Kept
                        ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dγ = Σ dy · x̂, dβ = Σ dy. And μ, σ depend on x too: each pixel moves the mean and the variance of all.

    Write g = dy · γ for the gradient of x̂. Through x alone dx is g/σ; through μ it loses the mean of g/σ; through σ,
    with ∂σ/∂x = x̂ / count, it loses x̂ · mean(g · x̂)/σ. Together

        dx = γ/σ · (dy − mean(dy) − x̂ · mean(dy · x̂)).

    Where the ReLU is fused, dy is first its gradient, dy · (y > 0).
    """
    if isinstance(cache, kernels.Kept):
        return kernels.backward(dy, cache)
    x, y, dx = cache.x, cache.y, memory.empty(cache.x.shape, dy.dtype)
    rows = count_rows(x)
    sums_of = gradient_sums(cache, x.size // rows)

    def job(dy: np.ndarray, x: np.ndarray, y: np.ndarray | None, g: np.ndarray) -> Sums:
        if y is None:
            return sums_of(dy, x)
        positive = memory.scratch(y.shape, np.dtype(bool))
        np.multiply(dy, np.greater(y, 0, out=positive), out=g)
        return sums_of(g, x)

    sums = in_blocks(job, rows, dy, x, y, dx)
    return input_gradient(dy if y is None else dx, cache, sums, out=dx)


def normalize(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, mean: np.ndarray, var: np.ndarray,
              eps: float = 1e-5, relu: bool = False) -> tuple[np.ndarray, Normalised | kernels.Kept]:
    """y = γ (x − mean)/√(var + eps) + β with statistics that are constants: batch norm in prediction.

    With relu, the maximum of this and 0.
    """
    _check("normalize", x, gamma, beta, eps, mean=mean, var=var)
    if on_gpu(x):
        return kernels.normalize(x, gamma, beta, mean, var, float(eps), bool(relu))
    exact = mean.astype(np.float64), var.astype(np.float64)
    return _normalised(Normalised(x, None, gamma, *exact, float(eps), constant=True), beta, relu)


def update_running(running_mean: np.ndarray, running_var: np.ndarray, mean: np.ndarray, var: np.ndarray, *,
                   momentum: float, count: int) -> None:
    """running ← (1 − momentum) · running + momentum · batch, in place: (C,) each; of the variance the unbiased one.

    mean, var: of a batch of count values a channel, var biased. One value has no variance: that of running stays.
    """
    unbiased = count / (count - 1) if count > 1 else 0.0
    if on_gpu(running_mean):
        kernels.update_running(running_mean, running_var, mean, var, float(momentum), unbiased)
        return
    for running, batch in ((running_mean, mean), (running_var, var * unbiased))[:2 if count > 1 else 1]:
        running *= 1 - momentum
        running += momentum * batch


# an affine map of each channel: dx = dy · γ/σ; dγ and dβ as above
normalize_backward = batch_norm_backward


def _normalised(cache: Normalised, beta: np.ndarray, relu: bool) -> tuple[np.ndarray, Normalised]:
    """y, and the cache with it where the backward needs it."""
    x, y = cache.x, memory.empty(cache.x.shape, cache.x.dtype)
    rows = count_rows(x)
    in_blocks(application(cache, beta, relu, x.size // rows), rows, x, y)
    return y, cache._replace(y=y) if relu else cache


def statistics(x: np.ndarray) -> Sums:
    """Mean and biased variance of each channel in float64: (..., C) -> (C,), (C,)."""
    return combined(in_blocks(moments(x.shape[-1]), count_rows(x), x))


def moments(channels: int) -> Callable[[np.ndarray], Moments]:
    """block -> its `Moments`, for blocks (rows, L·C): without a shift; if a mean is far from 0, shifted by the means.

    So however large a mean is, no digits are lost to it.

    Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983), section 3: shifted data.
    """
    def shifted(shift: np.ndarray, block: np.ndarray) -> Moments:
        squares = np.multiply(block, block, out=memory.scratch(block.shape, block.dtype, "squares"))
        return Moments(block.size // channels, shift, channel_sums(block, channels), channel_sums(squares, channels))

    def job(block: np.ndarray) -> Moments:
        found = shifted(np.zeros(channels, block.dtype), block)
        if not found.far:
            return found
        means = found.sums / found.pixels
        centred = memory.scratch(block.shape, block.dtype)
        return shifted(means, np.subtract(block, repeated(means, block.shape[1], block.dtype), out=centred))

    return job


def combined(parts: Sequence[Moments]) -> Sums:
    """Mean and biased variance of all blocks in float64, (C,) each, whatever their sizes.

    The variance of all is the mean of their variances and of their means' squared distances from the mean of all.

    Source: as above, section 2: pairwise combination.
    """
    pixels, shift, sums, squares = (np.array(part, np.float64) for part in zip(*parts))      # (blocks, C)
    pixels = pixels[:, None]
    weights, off = pixels / pixels.sum(), sums / pixels
    means = shift + off
    mean = (weights * means).sum(0)
    return mean, (weights * (squares / pixels - off**2 + (means - mean)**2)).sum(0)


def application(cache: Normalised, beta: np.ndarray, relu: bool, length: int) -> Callable[..., None]:
    """x -> y for blocks with rows of this length: γ x̂ + β, with relu the maximum of this and 0, written into y."""
    dtype, scale = cache.x.dtype, cache.gamma / cache.sigma
    shift = repeated(beta - cache.off_centre * scale, length, dtype)
    scale, centre = repeated(scale, length, dtype), _repeated_centre(cache, length)

    def apply(x: np.ndarray, y: np.ndarray) -> None:
        if centre is not None:
            x = np.subtract(x, centre, out=y)
        np.multiply(x, scale, out=y)
        np.add(y, shift, out=y)
        if relu:
            rectify(y)

    return apply


def gradient_sums(cache: Normalised, length: int) -> Callable[[np.ndarray, np.ndarray], Sums]:
    """(g, x) -> Σ g, Σ g (x − centre) for blocks with rows of this length."""
    centre, channels = _repeated_centre(cache, length), len(cache.gamma)

    def sums(g: np.ndarray, x: np.ndarray) -> Sums:
        product = memory.scratch(x.shape, x.dtype)
        if centre is not None:
            x = np.subtract(x, centre, out=product)
        np.multiply(x, g, out=product)
        return channel_sums(g, channels), channel_sums(product, channels)

    return sums


def _repeated_centre(cache: Normalised, length: int) -> np.ndarray | None:
    centre = cache.centre
    return None if centre is None else repeated(centre, length, cache.x.dtype)


def input_gradient(g: np.ndarray, cache: Normalised, sums: list[Sums], out: np.ndarray
                   ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx, dγ, dβ from the gradient g of the ReLU's input, and its `gradient_sums`. dx is out, which may be g."""
    x, dtype, sigma = cache.x, cache.x.dtype, cache.sigma
    dbeta, dgamma = (np.sum(part, axis=0, dtype=np.float64) for part in zip(*sums))
    dgamma = (dgamma - cache.off_centre * dbeta) / sigma
    rows, count = count_rows(x), x.size // len(sigma)
    # mean(g) + x̂ · mean(g · x̂) = slope · (x − centre) + offset
    slope = dgamma / (count * sigma)
    offset = dbeta / count - cache.off_centre * slope
    slope, offset, scale = (repeated(a, x.size // rows, dtype) for a in (slope, offset, cache.gamma / sigma))
    centre = _repeated_centre(cache, x.size // rows)

    def job(g: np.ndarray, x: np.ndarray, dx: np.ndarray) -> None:
        if cache.constant:
            np.multiply(g, scale, out=dx)
            return
        loss = memory.scratch(x.shape, dtype)
        if centre is not None:
            x = np.subtract(x, centre, out=loss)
        np.multiply(x, slope, out=loss)
        np.add(loss, offset, out=loss)
        np.subtract(g, loss, out=dx)
        np.multiply(dx, scale, out=dx)

    in_blocks(job, rows, g, x, out)
    return out, dgamma.astype(dtype), dbeta.astype(dtype)


def _check(name: str, x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float,
           **statistics: np.ndarray) -> None:
    same_dtype(name, x=x, gamma=gamma, beta=beta, **statistics)
    if x.ndim < 2 or x.size == 0 or gamma.shape != x.shape[-1:] or beta.shape != x.shape[-1:]:
        raise ValueError(f"{name}: x must be (..., C), not empty, gamma and beta (C,); "
                         f"x is {x.shape}, gamma {gamma.shape}, beta {beta.shape}")
    if any(a.shape != gamma.shape for a in statistics.values()):
        raise ValueError(f"{name}: {' and '.join(statistics)} must be {gamma.shape}, one number for each channel; got "
                         + ", ".join(f"{key} {a.shape}" for key, a in statistics.items()))
    if not eps > 0:
        raise ValueError(f"{name}: eps must be above 0; got {eps!r}")
