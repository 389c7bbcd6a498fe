"""Batch normalisation: each channel to mean 0 and variance 1 over the batch and its pixels, then scaled and shifted.

Source: Ioffe and Szegedy, Batch normalization (2015), algorithm 1; the backward in closed form.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minunet.backend import same_dtype
from minunet.ops.sums import channel_sum


class Normalised(NamedTuple):
    """What the backward needs, and the batch's statistics (C,): mean, biased variance."""

    x_hat: np.ndarray
    gamma: np.ndarray
    sigma: np.ndarray
    mean: np.ndarray
    var: np.ndarray


def batch_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5
               ) -> tuple[np.ndarray, Normalised]:
    """y = γ x̂ + β with x̂ = (x − μ)/σ, σ = √(var + eps): x (..., C), gamma and beta (C,)."""
    _check("batch_norm", x, gamma, beta, eps)
    count = x.size // x.shape[-1]
    mean = channel_sum(x) / count
    x_hat = x - mean
    var = channel_sum(x_hat * x_hat) / count
    sigma = (var + float(eps)) ** 0.5
    x_hat /= sigma
    y = x_hat * gamma
    y += beta
    return y, Normalised(x_hat, gamma, sigma, mean, var)


def batch_norm_backward(dy: np.ndarray, cache: Normalised) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dγ = Σ dy · x̂, dβ = Σ dy. And μ, σ depend on x too: each pixel moves the mean and the variance of all.

    Write g = dy · γ for the gradient of x̂. Through x alone dx is g/σ; through μ it loses the mean of g/σ; through σ,
    with ∂σ/∂x = x̂ / count, it loses x̂ · mean(g · x̂)/σ. Together

        dx = γ/σ · (dy − mean(dy) − x̂ · mean(dy · x̂)).
    """
    x_hat, gamma, sigma, _, _ = cache
    count = dy.size // dy.shape[-1]
    dgamma, dbeta = channel_sum(dy * x_hat), channel_sum(dy)
    dx = x_hat * (-dgamma / count)
    dx += dy
    dx -= dbeta / count
    dx *= gamma / sigma
    return dx, dgamma, dbeta


def normalize(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, mean: np.ndarray, var: np.ndarray,
              eps: float = 1e-5) -> tuple[np.ndarray, Any]:
    """y = γ (x − mean)/√(var + eps) + β with statistics that are constants: batch norm in prediction."""
    _check("normalize", x, gamma, beta, eps, mean=mean, var=var)
    sigma = (var + float(eps)) ** 0.5
    scale = gamma / sigma
    y = x * scale
    y += beta - mean * scale
    return y, (x, gamma, sigma, mean)


def normalize_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An affine map of each channel: dx = dy · γ/σ, dγ = Σ dy · (x − mean)/σ, dβ = Σ dy."""
    x, gamma, sigma, mean = cache
    return dy * (gamma / sigma), channel_sum(dy * (x - mean)) / sigma, channel_sum(dy)


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
