"""The layers. Each holds its parameters and options and calls one function; shapes are (N, H, W, C), channels last.

`output_shape`, `multiply_adds` and `kept` say what a layer makes, costs and keeps, without running it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet import functional
from minunet.autograd import Tensor, is_recording
from minunet.geometry import Geometry, IntOrPair, as_pair
from minunet.nn.init import GAINS, as_generator, he_normal, transposed_fan_in
from minunet.nn.module import Kept, Module, Parameter, Shape
from minunet.ops.block import fold, pooled
from minunet.ops.norm import update_running
from minunet.recompute import once


def _bias(channels: int, wanted: bool) -> Parameter | None:
    return Parameter(np.zeros(channels, np.float32)) if wanted else None


class Conv2d(Module):
    """y = A x + b: (N, H, W, in) -> (N, OH, OW, out). weight (KH, KW, in, out), bias (out,). With relu, max(·, 0).

    Several images may be given, with `in` channels together.
    """

    precision = "float32"

    def __init__(self, channels_in: int, channels_out: int, kernel: IntOrPair, stride: IntOrPair = 1,
                 padding: IntOrPair = 0, dilation: IntOrPair = 1, bias: bool = True, gain: float = GAINS["relu"],
                 rng: np.random.Generator | None = None, relu: bool = False):
        self.geometry, self.relu = Geometry(kernel, stride, padding, dilation), relu
        kh, kw = self.geometry.kernel
        self.weight = Parameter(he_normal((kh, kw, channels_in, channels_out), kh * kw * channels_in, gain, rng))
        self.bias = _bias(channels_out, bias)

    @property
    def kept(self) -> Kept:         # type: ignore[override]
        """The input, and with the ReLU its output."""
        return Kept(inputs=True, output=self.relu)

    def forward(self, *xs: Tensor) -> Tensor:
        """A x + b, or the maximum of this and 0."""
        g = self.geometry
        return functional.conv2d(xs, self.weight, self.bias, g.stride, g.padding, g.dilation, self.precision,
                                 self.relu)

    def output_shape(self, x: Shape, *more: Shape) -> Shape:
        """(N, OH, OW, out)."""
        return (x[0], *self.geometry.output_size(x[1:3]), self.weight.shape[3])

    def multiply_adds(self, output_shape: Shape) -> int:
        """One for each weight and output pixel."""
        return int(np.prod(output_shape[:3])) * self.weight.data.size


class ConvTranspose2d(Module):
    """y = Aᵀ x + b: (N, H, W, in) -> (N, OH, OW, out). weight (KH, KW, out, in), as the convolution it transposes."""

    kept = Kept(inputs=True)
    precision = "float32"

    def __init__(self, channels_in: int, channels_out: int, kernel: IntOrPair, stride: IntOrPair = 1,
                 padding: IntOrPair = 0, output_padding: IntOrPair = 0, dilation: IntOrPair = 1, bias: bool = True,
                 gain: float = 1.0, rng: np.random.Generator | None = None):
        self.geometry = Geometry(kernel, stride, padding, dilation)
        self.output_padding = as_pair(output_padding, "output_padding", 0)
        fan_in = transposed_fan_in(self.geometry, channels_in)
        self.weight = Parameter(he_normal((*self.geometry.kernel, channels_out, channels_in), fan_in, gain, rng))
        self.bias = _bias(channels_out, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Aᵀ x + b."""
        g = self.geometry
        return functional.conv_transpose2d(x, self.weight, self.bias, g.stride, g.padding, self.output_padding,
                                           g.dilation, self.precision)

    def output_shape(self, x: Shape) -> Shape:
        """(N, OH, OW, out)."""
        return (x[0], *self.geometry.transposed_size(x[1:3], self.output_padding), self.weight.shape[2])

    def multiply_adds(self, output_shape: Shape) -> int:
        """One for each weight and input pixel; the input is recovered from the windows of the output."""
        return output_shape[0] * int(np.prod(self.geometry.output_size(output_shape[1:3]))) * self.weight.data.size


class Linear(Module):
    """y = x W + b: (N, in) -> (N, out). weight (in, out), bias (out,)."""

    kept = Kept(inputs=True)

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True, gain: float = GAINS["relu"],
                 rng: np.random.Generator | None = None):
        self.weight = Parameter(he_normal((channels_in, channels_out), channels_in, gain, rng))
        self.bias = _bias(channels_out, bias)

    def forward(self, x: Tensor) -> Tensor:
        """x W + b."""
        return functional.linear(x, self.weight, self.bias)

    def output_shape(self, x: Shape) -> Shape:
        """(N, out)."""
        return x[0], self.weight.shape[1]

    def multiply_adds(self, output_shape: Shape) -> int:
        """One for each weight and row."""
        return output_shape[0] * self.weight.data.size


class BatchNorm2d(Module):
    """Batch normalisation of each channel, with running statistics for prediction; with relu, max(·, 0) of the result.

    In training: the batch's mean and biased variance; running = (1 − momentum) · running + momentum · batch, with the
    unbiased variance. Where a channel has one value only, y is β, no gradient reaches x, and the running variance
    stays as it is. In prediction: the running statistics.
    """

    buffer_names = ("running_mean", "running_var")

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, relu: bool = False):
        self.gamma = Parameter(np.ones(channels, np.float32))
        self.beta = Parameter(np.zeros(channels, np.float32))
        self.running_mean: np.ndarray = np.zeros(channels, np.float32)
        self.running_var: np.ndarray = np.ones(channels, np.float32)
        if not 0 < momentum <= 1:
            raise ValueError(f"BatchNorm2d: momentum must be above 0 and at most 1; got {momentum!r}")
        self.eps, self.momentum, self.relu = float(eps), float(momentum), relu

    @property
    def kept(self) -> Kept:         # type: ignore[override]
        """x, and with the ReLU its output."""
        return Kept(inputs=True, output=self.relu)

    def forward(self, x: Tensor) -> Tensor:
        """γ x̂ + β, or the maximum of this and 0."""
        if not self.training:
            return functional.normalize(x, self.gamma, self.beta, self.running_mean, self.running_var, self.eps,
                                        self.relu)
        y, mean, var = functional.batch_norm(x, self.gamma, self.beta, self.eps, self.relu)
        self.update(mean, var, x.data.size // mean.size)
        return y

    def update(self, mean: np.ndarray, var: np.ndarray, count: int) -> None:
        """Move the running statistics towards the mean and biased variance of a batch of count values a channel."""
        once(lambda: update_running(self.running_mean, self.running_var, mean, var, momentum=self.momentum,
                                    count=count))

    def output_shape(self, x: Shape) -> Shape:
        """That of x."""
        return x


def conv_norm_relu(conv: Conv2d, norm: BatchNorm2d, *xs: Tensor, pool: bool = False) -> Any:
    """What the two layers make one after the other, norm with relu, but as one op; with pool also its 2x2 maxima.

    In training `functional.conv_norm_relu`. In prediction batch norm is a part of the convolution's weights, unless
    gradients are wanted.
    """
    padding, precision = conv.geometry.padding, conv.precision
    if norm.training:
        *results, mean, var = functional.conv_norm_relu(xs, conv.weight, norm.gamma, norm.beta, norm.eps, padding, pool,
                                                        precision)
        norm.update(mean, var, results[0].data.size // mean.size)
        return tuple(results) if pool else results[0]
    if is_recording() and any(t.requires_grad for t in (*xs, conv.weight, norm.gamma, norm.beta)):
        y = norm(conv(*xs))
        return (y, functional.max_pool2d(y, 2)) if pool else y
    w, b = fold(conv.weight.data, norm.gamma.data, norm.beta.data, norm.running_mean, norm.running_var, norm.eps)
    y = functional.conv2d(xs, w, b, padding=padding, precision=precision, relu=True)
    return (y, Tensor(pooled(y.data))) if pool else y


class _Pointwise(Module):
    """A layer that keeps the shape."""

    def output_shape(self, x: Shape) -> Shape:
        """That of x."""
        return x


class ReLU(_Pointwise):
    """max(x, 0)."""

    kept = Kept(output=True)

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return functional.relu(x)


class LeakyReLU(_Pointwise):
    """x where x > 0, slope · x elsewhere."""

    kept = Kept(output=True)

    def __init__(self, slope: float = 0.01):
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """x or slope · x."""
        return functional.leaky_relu(x, self.slope)


class ELU(_Pointwise):
    """x where x > 0, alpha · (eˣ − 1) elsewhere."""

    kept = Kept(output=True)

    def __init__(self, alpha: float = 1.0):
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """x or alpha · (eˣ − 1)."""
        return functional.elu(x, self.alpha)


class Sigmoid(_Pointwise):
    """1 / (1 + e⁻ˣ)."""

    kept = Kept(output=True)

    def forward(self, x: Tensor) -> Tensor:
        """1 / (1 + e⁻ˣ)."""
        return functional.sigmoid(x)


class Softmax(_Pointwise):
    """eˣ / Σ eˣ over the channels."""

    kept = Kept(output=True)

    def forward(self, x: Tensor) -> Tensor:
        """eˣ / Σ eˣ."""
        return functional.softmax(x)


class Dropout(_Pointwise):
    """Inverted dropout with probability p in training, nothing in prediction; masks come from the generator."""

    def __init__(self, p: float, rng: np.random.Generator | None = None):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must be at least 0 and below 1; got {p!r}")
        self.p = p
        self.rng = as_generator(rng)

    @property
    def kept(self) -> Kept:         # type: ignore[override]
        """One byte of mask for each number, unless p is 0."""
        return Kept(extra=0.25 if self.p else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """x with a part of its numbers dropped."""
        return functional.dropout(x, self.p, self.rng) if self.training and self.p else x
