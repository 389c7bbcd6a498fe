"""The U-Net: an encoder that halves the image, a decoder that doubles it again, and skip connections across.

    image ─ DoubleConv ───────────── skip ────────────── Up ─ 1x1 head ─ logits
                 └ Down ─────────── skip ─────────── Up ┘
                      └ Down ────── skip ────── Up ┘
                           └ Down (the bridge) ┘

Source: Ronneberger, Fischer, Brox, U-Net: convolutional networks for biomedical image segmentation (2015), figure 1.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np

from minunet import functional, nn
from minunet.autograd import Tensor, no_grad
from minunet.backend import as_float, device_of, on_gpu, to_device
from minunet.geometry import IntOrPair, Pair, as_pair
from minunet.models.summary import Summary, summarize
from minunet.nn.init import GAINS, as_generator
from minunet.ops.activation import sigmoid, softmax
from minunet.ops.shape import center_crop
from minunet.recompute import recompute

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU}
OUTPUTS = {"sigmoid": sigmoid, "softmax": softmax, "linear": lambda logits: (logits, None)}
CHOICES = {
    "padding": ("same", "valid"), "norm": ("batch", None), "activation": tuple(ACTIVATIONS),
    "pool": ("max", "average"), "up": ("transpose", "nearest", "bilinear", "bicubic", "unpool"),
    "output": tuple(OUTPUTS),
}


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with its batch norm (if any) and activation: (N, H, W, in) -> (N, ·, ·, out)."""

    def __init__(self, channels_in: int, channels_out: int, padding: str, norm: str | None, activation: str,
                 rng: np.random.Generator):
        def conv(c: int) -> nn.Conv2d:
            # a bias before batch norm would be subtracted with the mean
            return nn.Conv2d(c, channels_out, 3, padding=1 if padding == "same" else 0, bias=norm is None,
                             gain=GAINS[activation], rng=rng, relu=fused and norm is None)

        fused = activation == "relu"            # the layer before the ReLU, batch norm or convolution, does it as well
        self.recompute = False
        self.conv1 = conv(channels_in)
        self.norm1 = nn.BatchNorm2d(channels_out, relu=fused) if norm else None
        self.activation1 = None if fused else ACTIVATIONS[activation]()
        self.conv2 = conv(channels_out)
        self.norm2 = nn.BatchNorm2d(channels_out, relu=fused) if norm else None
        self.activation2 = None if fused else ACTIVATIONS[activation]()

    def forward(self, *xs: Any, pool: bool = False) -> Any:
        """Convolution, norm, activation, twice, of images side by side; with pool (y, its 2x2 maxima)."""
        function = partial(self._compute, pool=pool)
        return recompute(function, *xs) if self.recompute and isinstance(xs[0], Tensor) else function(*xs)

    def _compute(self, *xs: Any, pool: bool) -> Any:
        if self.norm1 and self.norm2 and self.norm1.relu and isinstance(xs[0], Tensor):
            x = nn.conv_norm_relu(self.conv1, self.norm1, *xs)
            return nn.conv_norm_relu(self.conv2, self.norm2, x, pool=pool)
        for layer in (self.conv1, self.norm1, self.activation1, self.conv2, self.norm2, self.activation2):
            xs = (layer(*xs),) if layer else xs
        x, = xs
        return (x, functional.max_pool2d(x, 2)) if pool else x


class Down(nn.Module):
    """2x2 pooling, dropout, `DoubleConv`: (N, H, W, in) -> (N, H/2, W/2, out), with the winners of a max-pool."""

    def __init__(self, channels_in: int, channels_out: int, pool: str, dropout: float, rng: np.random.Generator,
                 **options: Any):
        self.pool = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
        self.dropout = nn.Dropout(dropout, rng)
        self.convs = DoubleConv(channels_in, channels_out, rng=rng, **options)

    def forward(self, x: Any, pooled: Any = None, pool: bool = False) -> tuple[Any, Any]:
        """The level below, and the winners (None for an average). pooled: x's maxima, if they have been made already.

        With pool, the level below is (y, its maxima).
        """
        winners = None
        if pooled is None:
            pooled, winners = (self.pool.with_winners(x) if isinstance(self.pool, nn.MaxPool2d)
                               else (self.pool(x), None))
        return self.convs(self.dropout(pooled), pool=pool), winners


class Up(nn.Module):
    """Twice the size, half the channels; the skip beside them; `DoubleConv`; dropout.

    "transpose" doubles with a 2x2 transposed convolution of stride 2. The others first halve the channels with a 1x1
    convolution, then interpolate, or put each number where its maximum came from ("unpool"). To an interpolation,
    whose weights add up to 1, the order makes no difference, and this way the convolution costs a quarter.
    """

    def __init__(self, channels_in: int, up: str, padding: str, dropout: float, rng: np.random.Generator,
                 **options: Any):
        channels = channels_in // 2
        self.reduce: nn.Module | None = None
        if up == "transpose":
            self.up: nn.Module = nn.ConvTranspose2d(channels_in, channels, 2, stride=2, rng=rng)
        else:
            self.reduce = nn.Conv2d(channels_in, channels, 1, gain=1.0, rng=rng)
            self.up = nn.MaxUnpool2d(2) if up == "unpool" else nn.Resample(2, up)
        self.crop = nn.CenterCrop() if padding == "valid" else None
        self.convs = DoubleConv(channels_in, channels, padding, rng=rng, **options)
        self.dropout = nn.Dropout(dropout, rng)

    def forward(self, x: Any, skip: Any, winners: Any = None) -> Any:
        """(N, H, W, in), skip (N, ≥2H, ≥2W, in/2) -> (N, ·, ·, in/2)."""
        if self.reduce:
            x = self.reduce(x)
        if isinstance(self.up, nn.MaxUnpool2d) and winners is not None:
            winners = center_crop(winners, size=x.shape[1:3])[0]    # they are positions inside windows: crops keep them
        x = self.up(x, winners) if isinstance(self.up, nn.MaxUnpool2d) else self.up(x)
        skip = self.crop(skip, x) if self.crop else skip
        return self.dropout(self.convs(skip, x))


class UNet(nn.Module):
    """A U-Net: images (N, H, W, in_channels) -> logits (N, OH, OW, classes).

    Args:
        in_channels, classes: channels of the images and of the logits.
        base: channels of the first level; each level down has twice as many.
        depth: how often the image is halved.
        padding: "same" (OH, OW) = (H, W) for any size from 1x1: the image is extended at the bottom and right by its
            edge to a multiple of 2^depth and the logits are cropped (the extension counts in batch statistics).
            "valid": no padding, as in the paper; only some sizes fit (188, 204, 220, ... at depth 4), and the logits
            belong to the middle of the image.
        norm: "batch", or None (the convolutions then have biases).
        dropout: probability, after each pooling and at the end of each decoder level.
        activation: "relu", "leaky_relu" or "elu".
        pool: "max" or "average".
        up: "transpose", "nearest", "bilinear", "bicubic", or "unpool" (needs pool="max").
        output: what `predict` applies to the logits: "sigmoid", "softmax" or "linear" (nothing).
        rng: draws the initial weights (He) and the dropout masks; None is a generator with the seed 0.
        recompute: in training, of each `DoubleConv` only the inputs are kept, and backward computes it again: the same
            gradients, less memory, more time. An attribute, which can be changed at any time.

    Raises ValueError for arguments outside these, for images of another number of channels, and for a size that does
    not fit "valid" convolutions, with the nearest that do.

    >>> model = UNet(in_channels=1, classes=2, base=64, depth=4, padding="valid", norm=None)
    >>> sum(p.data.size for p in model.parameters())
    31030658
    >>> model.output_size((572, 572))
    (388, 388)
    """

    def __init__(self, in_channels: int, classes: int, base: int = 64, depth: int = 4, padding: str = "same",
                 norm: str | None = "batch", dropout: float = 0.0, activation: str = "relu", pool: str = "max",
                 up: str = "transpose", output: str = "sigmoid", rng: np.random.Generator | None = None,
                 recompute: bool = False):
        self.config: dict[str, Any] = dict(
            in_channels=in_channels, classes=classes, base=base, depth=depth, padding=padding, norm=norm,
            dropout=dropout, activation=activation, pool=pool, up=up, output=output)
        _check_config(self.config)
        rng = np.random.default_rng(0) if rng is None else as_generator(rng)
        options: dict[str, Any] = dict(padding=padding, norm=norm, activation=activation)
        widths = [base * 2**level for level in range(depth + 1)]
        self.pad = nn.Pad(2**depth) if padding == "same" else None
        self.first = DoubleConv(in_channels, base, rng=rng, **options)
        self.down = [Down(c, 2 * c, pool, dropout, rng, **options) for c in widths[:-1]]
        self.up = [Up(c, up, dropout=dropout, rng=rng, **options) for c in widths[:0:-1]]
        self.head = nn.Conv2d(base, classes, 1, gain=GAINS["linear"], rng=rng)
        self.crop = nn.Crop() if padding == "same" else None
        self.recompute = recompute
        self._prediction = nn.Replayed(_predict, without=("training",))

    @property
    def recompute(self) -> bool:
        """Whether backward computes each `DoubleConv` again instead of keeping what was made in it."""
        return self.first.recompute

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        for _, module in self.named_modules():
            if isinstance(module, DoubleConv):
                module.recompute = bool(wanted)

    def forward(self, x: Any) -> Any:
        """Logits (N, OH, OW, classes) of images (N, H, W, in_channels), which are converted to the net's dtype and
        moved to its device."""
        if len(x.shape) != 4 or x.shape[3] != self.config["in_channels"]:
            raise ValueError(f"UNet: x must be (N, H, W, {self.config['in_channels']}), channels last; its shape is "
                             f"{x.shape}")
        self.output_size(x.shape[1:3])
        if isinstance(x, Tensor) and not x.requires_grad:       # images are constants: they come to the net
            x = Tensor(to_device(as_float(x.data, self.head.weight.dtype), device_of(self.head.weight.data)))
        image = x
        # a level makes its maxima in passing, unless the way up wants to know their places
        pool = isinstance(x, Tensor) and self.config["pool"] == "max" and self.config["up"] != "unpool"
        x, pooled = _pair(self.first(self.pad(x) if self.pad else x, pool=pool))
        levels = []
        for down in self.down:
            below, winners = down(x, pooled, pool=pool and down is not self.down[-1])
            levels.append((x, winners))
            x, pooled = _pair(below)
        for up in self.up:
            x = up(x, *levels.pop())
        x = self.head(x)
        return self.crop(x, image) if self.crop else x

    def output_size(self, size: IntOrPair) -> Pair:
        """The logits' (height, width) for an image of this size in px; ValueError for one that does not fit."""
        size = as_pair(size, "size", 1)
        if self.config["padding"] == "same":
            return size
        depth = self.config["depth"]
        out = [_valid_size(n, depth) for n in size]
        if None in out:
            advice = ", ".join(f"{axis} {n}: {_nearest(n, depth)}" for axis, n, o in
                               zip(("height", "width"), size, out) if o is None)
            raise ValueError(f"UNet: with padding='valid' and depth {depth}, an image of {size[0]}x{size[1]} px does "
                             f"not fit the pooling; the nearest sizes that do: {advice}")
        return out[0], out[1]                       # type: ignore[return-value]

    def input_size(self, size: IntOrPair) -> Pair:
        """The smallest image, (height, width) in px, whose logits have at least this size.

        >>> UNet(1, 2, padding="valid").input_size((380, 388))
        (572, 572)
        """
        size = as_pair(size, "size", 1)
        if self.config["padding"] == "same":
            return size
        depth = self.config["depth"]
        h, w = (next(m for m in itertools.count(n) if (_valid_size(m, depth) or 0) >= n) for n in size)
        return h, w

    def predict(self, x: np.ndarray, device: str = "cpu") -> np.ndarray:
        """What `output` makes of the logits, (N, OH, OW, classes) on this device, in prediction mode.

        On a GPU the second of several batches of one size is recorded, and the others replay it (`nn.Replayed`). The
        recording keeps its memory there until a batch of another size comes, or `nn.release_recordings`.
        """
        return self._prediction(self, as_float(x, self.head.weight.dtype), take=partial(_brought, device=device))

    def summary(self, size: IntOrPair, batch: int = 1) -> Summary:
        """The table of layers for images of this size in px, and a forecast of training memory; nothing is computed.

        >>> print(UNet(3, 2, base=4, depth=1).summary((32, 32)).totals())
        19 layers, 1,754 parameters, 962,560 multiply-adds, 0.22 MiB of activations
        """
        return summarize(self, (batch, *as_pair(size, "size", 1), self.config["in_channels"]))


def _predict(model: UNet, x: np.ndarray) -> np.ndarray:
    """`UNet.predict` on the model's device."""
    modes = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        with no_grad():
            logits = model(Tensor(x)).data
    finally:
        for module, training in modes:
            module.training = training
    return OUTPUTS[model.config["output"]](logits)[0]


def _brought(array: np.ndarray, device: str) -> np.ndarray:
    """The array on a device; there a copy of what the next replay overwrites."""
    moved = to_device(array, device)
    return moved.copy() if moved is array and on_gpu(array) else moved


def _pair(y: Any) -> tuple[Any, Any]:
    """A level and its maxima, None where there are none."""
    return y if isinstance(y, tuple) else (y, None)


def _check_config(config: dict[str, Any]) -> None:
    for name in ("in_channels", "classes", "base", "depth"):
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"UNet: {name} must be an int of at least 1; got {value!r}")
    for name, choices in CHOICES.items():
        if config[name] not in choices:
            raise ValueError(f"UNet: {name} must be one of {', '.join(map(repr, choices))}; got {config[name]!r}")
    if config["up"] == "unpool" and config["pool"] != "max":
        raise ValueError("UNet: up='unpool' puts numbers back at the winners of max-pooling; it needs pool='max'")
    if config["output"] == "softmax" and config["classes"] == 1:
        raise ValueError("UNet: output='softmax' over one class is always 1; use output='sigmoid', or 2 classes")


def _valid_size(n: int, depth: int) -> int | None:
    """The logits' length for an axis of n px without padding, or None where a pooling would not divide."""
    for _ in range(depth):
        n -= 4                                      # two 3x3 convolutions
        if n < 2 or n % 2:
            return None
        n //= 2
    n -= 4
    for _ in range(depth):
        n = 2 * n - 4
    return n if n >= 1 else None


def _nearest(n: int, depth: int) -> str:
    """The nearest lengths that fit, below (if any) and above; from the smallest on, one in every 2^depth fits."""
    below = next((m for m in range(n - 1, max(n - 2**depth, 1) - 1, -1) if _valid_size(m, depth)), None)
    above = next(m for m in itertools.count(n + 1) if _valid_size(m, depth))
    return str(above) if below is None else f"{below} or {above}"
