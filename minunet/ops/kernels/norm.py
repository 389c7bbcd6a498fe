"""The launches of kernels/norm.cu: statistics, y, and the gradients; the backward keeps x, no x̂ and no y."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minunet.backend import array_module
from minunet.cuda import launch
from minunet.ops.kernels.sums import Cut, ready


class Kept(NamedTuple):
    """What the backward needs: x and numbers for each channel (C,). constant: mean and var do not depend on x."""

    x: Any
    gamma: Any
    beta: Any
    mean: Any
    var: Any
    eps: float
    relu: bool
    constant: bool

    @property
    def positive(self) -> Any:
        """Where y > 0, if the ReLU is fused; else an empty array."""
        return (_apply(self) if self.relu else self.x[:0]) > 0


def batch_norm(x: Any, gamma: Any, beta: Any, eps: float, relu: bool) -> tuple[Any, Kept]:
    """y, and what the backward needs."""
    x, gamma, beta = ready(x, gamma, beta)
    mean, var = statistics(x)
    cache = Kept(x, gamma, beta, mean, var, eps, relu, constant=False)
    return _apply(cache), cache


def normalize(x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float, relu: bool) -> tuple[Any, Kept]:
    """y from given statistics, and what the backward needs."""
    x, gamma, beta = ready(x, gamma, beta)
    mean, var = mean.copy(), var.copy()         # running statistics move in place, perhaps before the backward
    cache = Kept(x, gamma, beta, mean, var, eps, relu, constant=True)
    return _apply(cache), cache


def statistics(x: Any) -> tuple[Any, Any]:
    """Mean and biased variance of each channel: (..., C) -> (C,), (C,), in one pass over x."""
    x, = ready(x)
    xp, cut = array_module(x), Cut.of(x)
    means, squares = (xp.empty((cut.channels, cut.chunks), dtype) for dtype in (np.float64, x.dtype))
    mean, var = (xp.empty(cut.channels, x.dtype) for _ in range(2))
    launch("norm.moments", x, means, squares, cut, blocks=cut.blocks, defines=cut.defines)
    launch("norm.batch_statistics", means, squares, mean, var, cut, cut.chunks, blocks=(cut.channels,),
           defines=cut.defines)
    return mean, var


def update_running(running_mean: Any, running_var: Any, mean: Any, var: Any, momentum: float, unbiased: float) -> None:
    """Move the running statistics, in place; unbiased: what makes the unbiased variance of var, 0 if there is none."""
    mean, var = ready(*(a.astype(running_mean.dtype, copy=False) for a in (mean, var)))
    launch("norm.update_running", mean, var, running_mean, running_var, mean.size, momentum, 1 - momentum, unbiased,
           threads=mean.size)


def fold(w: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float) -> tuple[Any, Any]:
    """w (KH, KW, C, F) and b (F,) with which A x + b is batch norm of A x."""
    xp, arrays = array_module(w), [array_module(w).ascontiguousarray(a) for a in (w, gamma, beta, mean, var)]
    folded, shift = xp.empty(w.shape, w.dtype), xp.empty(gamma.shape, w.dtype)
    launch("norm.fold", *arrays, folded, shift, w.size, gamma.size, eps, threads=w.size)
    return folded, shift


def backward(dy: Any, cache: Kept) -> tuple[Any, Any, Any]:
    """dx, dgamma, dbeta."""
    (dy,), cut = ready(dy), Cut.of(dy)
    xp = array_module(dy)
    x, gamma, beta, mean, var, eps, relu, constant = cache
    channel = mean, var, gamma, beta
    sums = [xp.empty((cut.channels, cut.chunks), dy.dtype) for _ in range(2)]
    dgamma, dbeta = (xp.empty(cut.channels, dy.dtype) for _ in range(2))
    launch("norm.gradient_sums", dy, x, *channel, *sums, cut, eps, int(relu), blocks=cut.blocks, defines=cut.defines)
    launch("norm.parameter_gradients", *sums, var, dgamma, dbeta, cut.chunks, eps, blocks=(cut.channels,),
           defines=cut.defines)
    dx = xp.empty(x.shape, dy.dtype)
    launch("norm.input_gradient", dy, x, *channel, dgamma, dbeta, dx, cut, eps, int(relu), int(constant),
           blocks=cut.blocks, defines=cut.defines)
    return dx, dgamma, dbeta


def _apply(cache: Kept) -> Any:
    """y."""
    x, gamma, beta, mean, var, eps, relu, _ = cache
    cut, y = Cut.of(x), array_module(x).empty(x.shape, x.dtype)
    launch("norm.normalize", x, mean, var, gamma, beta, y, cut, eps, int(relu), blocks=cut.blocks, defines=cut.defines)
    return y
