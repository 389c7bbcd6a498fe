"""Batch normalisation: each channel to mean 0 and variance 1 over the batch and its pixels, then scaled and shifted.

With relu=True also max(·, 0) of that, in one op: it keeps one array less, and on a GPU passes over memory once less.

Source: Ioffe and Szegedy, Batch normalization (2015), algorithm 1; the backward in closed form.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minunet.backend import on_gpu, same_dtype
from minunet.ops.kernels import norm as kernels
from minunet.ops.sums import channel_sum


class Normalised(NamedTuple):
    """What the backward needs, and the batch's statistics (C,): mean, biased variance; y if the ReLU is fused.

    On a GPU it is `kernels.Kept`, with mean, var and positive likewise.
    """

    x_hat: np.ndarray
    gamma: np.ndarray
    sigma: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    y: np.ndarray | None = None

    @property
    def positive(self) -> np.ndarray:
        """Where y > 0, the kink of a fused ReLU; without one an empty array."""
        return _positive(self.y, self.x_hat)


class Affine(NamedTuple):
    """What the backward needs where mean and σ are constants. On a GPU it is `kernels.Kept`."""

    x: np.ndarray
    gamma: np.ndarray
    sigma: np.ndarray
    mean: np.ndarray
    y: np.ndarray | None = None

    @property
    def positive(self) -> np.ndarray:
        """As `Normalised.positive`."""
        return _positive(self.y, self.x)


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5,
               relu: bool = False) -> tuple[np.ndarray, Normalised | kernels.Kept]:
    """y = γ x̂ + β with x̂ = (x − μ)/σ, σ = √(var + eps): x (..., C), gamma and beta (C,).

    With relu, y = max(γ x̂ + β, 0).
    """
    _check("batch_norm", x, gamma, beta, eps)
    if on_gpu(x):
        return kernels.batch_norm(x, gamma, beta, float(eps), bool(relu))
    count = x.size // x.shape[-1]
    mean = channel_sum(x) / count
    x_hat = x - mean
    var = channel_sum(x_hat * x_hat) / count
    sigma = (var + float(eps)) ** 0.5
    x_hat /= sigma
    y = x_hat * gamma
    y += beta
    return y, Normalised(x_hat, gamma, sigma, mean, var, _rectify(y) if relu else None)


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
    x_hat, gamma, sigma, _, _, y = cache
    if y is not None:
        dy = dy * (y > 0)
    count = dy.size // dy.shape[-1]
    dgamma, dbeta = channel_sum(dy * x_hat), channel_sum(dy)
    dx = x_hat * (-dgamma / count)
    dx += dy
    dx -= dbeta / count
    dx *= gamma / sigma
    return dx, dgamma, dbeta


def normalize(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, mean: np.ndarray, var: np.ndarray,
              eps: float = 1e-5, relu: bool = False) -> tuple[np.ndarray, Affine | kernels.Kept]:
    """y = γ (x − mean)/√(var + eps) + β with statistics that are constants: batch norm in prediction.

    With relu, the maximum of this and 0.
    """
    _check("normalize", x, gamma, beta, eps, mean=mean, var=var)
    if on_gpu(x):
        return kernels.normalize(x, gamma, beta, mean, var, float(eps), bool(relu))
    sigma = (var + float(eps)) ** 0.5
    scale = gamma / sigma
    y = x * scale
    y += beta - mean * scale
    return y, Affine(x, gamma, sigma, mean, _rectify(y) if relu else None)


def normalize_backward(dy: np.ndarray, cache: Affine | kernels.Kept
                       ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An affine map of each channel: dx = dy · γ/σ, dγ = Σ dy · (x − mean)/σ, dβ = Σ dy."""
    if isinstance(cache, kernels.Kept):
        return kernels.backward(dy, cache)
    x, gamma, sigma, mean, y = cache
    if y is not None:
        dy = dy * (y > 0)
    return dy * (gamma / sigma), channel_sum(dy * (x - mean)) / sigma, channel_sum(dy)


def _rectify(y: np.ndarray) -> np.ndarray:
    """max(y, 0) in place."""
    return np.maximum(y, 0, out=y)


def _positive(y: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    return (x[:0] if y is None else y) > 0


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
