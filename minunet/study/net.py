"""What a trained U-Net holds: its layers by name, what each of them makes of an image, what a skip connection adds.

The net stays as it is. For as long as a `with` lasts, `replaced` puts a function in front of a module's forward: one
that listens, or one that changes what comes in. Everything else is the net's own prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minunet import nn
from minunet.autograd import Tensor, no_grad
from minunet.backend import device_of, to_device
from minunet.checkpoint import Checkpoint
from minunet.errors import UserError
from minunet.geometry import Pair, pair_text, size_text
from minunet.inference import class_ids, probabilities
from minunet.models import UNet
from minunet.models.unet import DoubleConv, Down, Up
from minunet.nn.module import Module

INTERPOLATIONS = {"nearest": "nearest neighbour", "bilinear": "bilinear interpolation",
                  "bicubic": "bicubic interpolation", "unpool": "unpooling"}
MOST = 4 << 30          # bytes of feature maps that are kept of an image
CONSTANT = 4            # height and width in px of the constant image that `constant_answer` gives to a way up


def layers(model: UNet) -> dict[str, Module]:
    """The layers that can be looked at, by name, in the order of the data: up1 is the first way up after the bridge.

    >>> list(layers(UNet(1, 1, base=2, depth=2)))
    ['first', 'down1', 'bridge', 'up1', 'up2', 'head']
    """
    *downs, bridge = model.down
    return {"first": model.first, **{f"down{i}": down for i, down in enumerate(downs, 1)}, "bridge": bridge,
            **{f"up{i}": up for i, up in enumerate(model.up, 1)}, "head": model.head}


def layer_of(model: UNet, name: str) -> Module:
    """The layer of this name; ValueError, which lists those that there are, for an unknown one."""
    known = layers(model)
    if name not in known:
        raise ValueError(f"there is no layer {name!r}; this net has, from the image to the classes, "
                         f"{', '.join(known)} (up1 is the first way up after the bridge)")
    return known[name]


def words(model: UNet, name: str) -> str:
    """What a layer does, in a few words."""
    module = layer_of(model, name)
    if isinstance(module, Up):
        return f"{way_up(model, module)}; the skip connection beside it; two 3x3 convolutions"
    if isinstance(module, Down):
        return f"2x2 {model.config['pool']}-pooling; two 3x3 convolutions"
    return "Two 3x3 convolutions of the image" if isinstance(module, DoubleConv) else "1x1 convolution to the classes"


def way_up(model: UNet, up: Up) -> str:
    """How a way up enlarges its image, in a few words."""
    if isinstance(up.up, nn.ConvTranspose2d):
        g = up.up.geometry
        return f"{size_text(g.kernel)} transposed convolution, stride {pair_text(g.stride)}"
    return f"1x1 convolution, {INTERPOLATIONS[model.config['up']]}"


def kernels(module: Module) -> tuple[str, np.ndarray]:
    """Whose kernels are the first of a layer, and they themselves as (KH, KW, inputs, outputs).

    Of a transposed convolution each kernel is the stamp that one number of the input leaves in the output.
    """
    if isinstance(module, Up) and isinstance(module.up, nn.ConvTranspose2d):
        return "the transposed convolution", _host(module.up.weight).transpose(0, 1, 3, 2)
    if isinstance(module, Up):
        assert isinstance(module.reduce, nn.Conv2d)
        return "the 1x1 convolution before it", _host(module.reduce.weight)
    if isinstance(module, nn.Conv2d):
        return "the convolution", _host(module.weight)
    convs = module.convs if isinstance(module, Down) else module
    assert isinstance(convs, DoubleConv)
    return "the first convolution", _host(convs.conv1.weight)


# Looking while the net predicts


class Call(NamedTuple):
    """One call of a module: the images that it was given, and what it made of them, (H, W, C) each."""

    inputs: tuple[np.ndarray, ...]
    output: np.ndarray


@contextmanager
def replaced(module: Module, instead: Callable[..., Any]) -> Iterator[None]:
    """Within it, the module computes instead(forward, *inputs, **options), where forward is its own."""
    own = vars(module)
    outer = own.get("forward")
    own["forward"] = partial(instead, module.forward)       # found before the forward of the class
    try:
        yield
    finally:
        if outer is None:
            del own["forward"]
        else:
            own["forward"] = outer


@contextmanager
def recorded(modules: Iterable[Module]) -> Iterator[dict[Module, Call]]:
    """Within it, the last call of each of these modules with one image is kept."""
    calls: dict[Module, Call] = {}

    def listen(module: Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        result = forward(*inputs, **options)
        # a level may come with its maxima beside it, a way up gets winners that are no Tensor, or None
        calls[module] = Call(tuple(_image(x) for x in inputs if isinstance(x, Tensor)),
                             _image(result[0] if isinstance(result, tuple) else result))
        return result

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(replaced(module, partial(listen, module)))
        yield calls


@dataclass(frozen=True)
class Seen:
    """A net that has looked at an image: image (H, W, C) in 0..1, answer (H, W, K), and the calls of its parts.

    The answer is that of `inference.probabilities`, bit for bit.
    """

    checkpoint: Checkpoint
    image: np.ndarray
    answer: np.ndarray
    calls: dict[Module, Call]

    def output(self, name: str) -> np.ndarray:
        """The feature maps (H, W, C) that a layer hands on; of the head, the logits."""
        module = layer_of(self.checkpoint.model, name)
        return self.calls[module.convs if isinstance(module, Down) else module].output

    def stages(self, name: str) -> dict[str, np.ndarray]:
        """The feature maps (H, W, C) on the way through a layer, by what they are, from its input to its output."""
        module = layer_of(self.checkpoint.model, name)
        if isinstance(module, Up):
            up, convs = self.calls[module], self.calls[module.convs]
            return {"before: from below": up.inputs[0], "after the way up": self.calls[module.up].output,
                    "the skip connection beside it": convs.inputs[0], "after the two convolutions": up.output}
        if isinstance(module, Down):
            names = list(layers(self.checkpoint.model))
            convs = self.calls[module.convs]
            return {"before: from above": self.output(names[names.index(name) - 1]), "after pooling": convs.inputs[0],
                    "after the two convolutions": convs.output}
        call = self.calls[module]
        after = "after: logits" if isinstance(module, nn.Conv2d) else "after the two convolutions"
        return {"before: the normalised image" if name == "first" else "before": call.inputs[0], after: call.output}


def look(checkpoint: Checkpoint, image: np.ndarray) -> Seen:
    """Predict an image (H, W, C) in 0..1 and keep what every layer was given and has made.

    Raises ValueError for an image of another number of channels, UserError for one whose feature maps would take more
    than 4 GiB, and for an answer that is no number.
    """
    model = checkpoint.model
    channels = model.config["in_channels"]
    if image.ndim != 3 or image.shape[2] != channels:
        raise ValueError(f"image must be (H, W, {channels}), with as many channels as the net reads; its shape is "
                         f"{image.shape}")
    size = model.input_size(checkpoint.size or image.shape[:2])
    needed = kept_bytes(model, size)
    if needed > MOST:
        raise UserError(f"the net reads this image at {size_text(size)} px, where its feature maps take "
                        f"{needed / 2**30:.1f} GiB, and to look at them all are kept, at most {MOST >> 30} GiB; give a "
                        "part of the image, or scale it down")
    parts = [model.first, *(down.convs for down in model.down), model.head]
    for up in model.up:
        parts += [up, up.up, up.convs]
    with recorded(parts) as calls:
        answer = probabilities(checkpoint, image)
    return Seen(checkpoint, image, answer, calls)


def kept_bytes(model: UNet, size: Pair) -> int:
    """Bytes of the feature maps that `look` keeps of an image that the net reads at this size, from shapes alone."""
    convs = [model.first, *(down.convs for down in model.down), *(up.convs for up in model.up)]
    kept = {model.head, *(down.pool for down in model.down),
            *(part for up in model.up for part in (up.reduce, up.up, up.crop)),
            *(c.activation2 or c.norm2 or c.conv2 for c in convs)}
    with nn.record_layers() as calls:
        model(nn.Placeholder((1, *size, model.config["in_channels"])))
    shapes = [call.output.shape for call in calls if call.layer in kept]
    first = next(call.inputs[0].shape for call in calls if call.layer is model.first.conv1)
    return sum(map(prod, [first, *shapes])) * model.head.weight.dtype.itemsize


def strongest(maps: np.ndarray, count: int) -> np.ndarray:
    """Which of the channels of (H, W, C) have the largest standard deviation, the largest first: at most count."""
    return np.argsort(-maps.std((0, 1), dtype=np.float64), kind="stable")[:count]


# The way up


def constant_input(up: Up, seen: Seen | None = None) -> np.ndarray:
    """(F,): what comes from below, each channel at its mean over the image that was seen, or 1 if none was."""
    if seen is not None:
        return seen.calls[up].inputs[0].mean((0, 1))
    return np.ones(kernels(up)[1].shape[2], np.float32)


def constant_answer(up: Up, constant: np.ndarray) -> np.ndarray:
    """(8, 8, C): what the way up alone makes of an image whose F channels are constant, each one of (F,) numbers."""
    x = Tensor(np.broadcast_to(constant, (1, CONSTANT, CONSTANT, len(constant))).astype(np.float32))
    x.data = to_device(x.data, device_of(*(p.data for p in up.parameters())))
    with no_grad():
        x = up.reduce(x) if up.reduce else x
        if isinstance(up.up, nn.MaxUnpool2d):       # the maxima of a constant: in each window the first pixel wins
            return _image(up.up(x, to_device(np.zeros(x.shape, np.uint8), device_of(x.data))))
        return _image(up.up(x))


def checkerboard(answer: np.ndarray) -> float:
    """How far the answer (H, W, C) to a constant is from being constant itself.

    √(mean over channels of the variance over pixels) / √(mean over channels of the squared mean over pixels): 0
    where it is flat, 1 where the pattern is as strong as what it lies on.
    """
    answer = answer.astype(np.float64)
    pattern, level = np.sqrt(answer.var((0, 1)).mean()), np.sqrt((answer.mean((0, 1)) ** 2).mean())
    return float(pattern / level) if level else 0.0 if pattern == 0 else float("inf")


class Ablation(NamedTuple):
    """A prediction in which a skip connection carried something else."""

    answer: np.ndarray      # (H, W, K)
    classes: float          # share of the pixels whose class is another one
    change: float           # mean over pixels and classes of the absolute change of the answer


def without_skip(seen: Seen, up: Up, mean: bool = False) -> Ablation:
    """Predict again, with zeros in place of a way up's skip connection, or with each channel's mean over the image.

    Zeros are something that the convolutions behind have never met; the mean takes away only what is where.
    """
    def replace(forward: Callable[..., Any], skip: Tensor, x: Tensor) -> Any:
        data = np.zeros_like(skip.data)
        if mean:
            data += skip.data.mean((1, 2), keepdims=True)
        return forward(Tensor(data), x)

    with replaced(up.convs, replace):
        answer = probabilities(seen.checkpoint, seen.image)
    return Ablation(answer, float((class_ids(answer) != class_ids(seen.answer)).mean()),
                    float(np.abs(answer - seen.answer).mean(dtype=np.float64)))


def _host(tensor: Tensor) -> np.ndarray:
    return to_device(tensor.data, "cpu")


def _image(x: Tensor) -> np.ndarray:
    """The one image of a batch of one, in the memory of the host."""
    return _host(x)[0]
