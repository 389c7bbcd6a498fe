"""A trained net, looked at: `minunet explain CHECKPOINT IMAGE` draws its U, `--layer NAME` one of its layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minunet.checkpoint import load_checkpoint
from minunet.cli.values import make_folder
from minunet.data import read_image, unit
from minunet.errors import UserError
from minunet.models import UNet
from minunet.models.unet import Up
from minunet.nn import ConvTranspose2d
from minunet.study.captions import SCALE
from minunet.study.evenness import verdict
from minunet.study.explanation import unevenness
from minunet.study.layer_pictures import cause, draw_kernels, draw_maps, draw_skip
from minunet.study.net import (
    Ablation,
    Seen,
    checkerboard,
    constant_answer,
    constant_input,
    layer_of,
    layers,
    look,
    without_skip,
    words,
)
from minunet.study.net_pictures import draw_u
from minunet.study.sheet import Sheet

CHECKERBOARD = "the standard\n  deviation over pixels by the mean, over all outputs together; 0 is flat"


def explain_net(checkpoint: Path, image: Path | None, layer: str | None, out: Path) -> None:
    """Draw a net into a folder and print its figures: one layer if it is named, else the U with an image's maps.

    Raises UserError for a file that is no checkpoint or no image, an unknown layer, and a folder that can't be written.
    """
    found = load_checkpoint(checkpoint)
    model = found.model
    if layer is not None:
        try:
            layer_of(model, layer)
        except ValueError as error:
            raise UserError(f"--layer: {error}") from None
    elif image is None:
        raise UserError(f"{checkpoint}: give an image as well, to see the U with its feature maps, or --layer, to see "
                        f"the kernels of {', '.join(layers(model))}")
    pixels = None if image is None else _read(image, model)
    names = ["unet"] if layer is None else [f"{layer}_{what}" for what in _pictures(model, layer, image is not None)]
    for name in names:
        if image is not None and (out / f"{name}.png").resolve() == image.resolve():
            raise UserError(f"{image}: a picture would overwrite the image; choose another --out")
    make_folder(out)
    seen = None if pixels is None else look(found, pixels)
    if layer is None:
        assert seen is not None
        sheets = [_u(seen)]
    else:
        sheets = _layer(model, layer, seen)
    for name, sheet in zip(names, sheets, strict=True):
        sheet.image(scale=SCALE).save(out / f"{name}.png")
    print(f"look at {', '.join(str(out / f'{name}.png') for name in names)}")
    if seen is None:
        print("with an image behind the checkpoint there are feature maps as well" + (
            ", and what the skip connection adds" if layer and isinstance(layer_of(model, layer), Up) else ""))


def _read(path: Path, model: UNet) -> np.ndarray:
    """An image file (H, W, C) in 0..1 with the channels of the net."""
    channels = model.config["in_channels"]
    if channels not in (1, 3):
        raise UserError(f"{path}: an image file has 1 or 3 channels, and this net reads {channels}; leave the image "
                        "out and name a --layer, or call minunet.study.net.look with an array")
    if not path.is_file():
        raise UserError(f"{path}: is a folder; give one image" if path.is_dir() else f"{path}: there is no such image")
    return unit(read_image(path, channels))


def _pictures(model: UNet, name: str, with_image: bool) -> list[str]:
    """What is drawn of a layer."""
    return ["kernels"] + ["maps"] * with_image + ["skip"] * (with_image and isinstance(layer_of(model, name), Up))


def _u(seen: Seen) -> Sheet:
    model = seen.checkpoint.model
    rows = {"image": (seen.image.shape, "")}
    rows |= {name: (seen.output(name).shape, words(model, name)) for name in layers(model)}
    for name, (shape, what) in rows.items():
        print(f"{name:8}{'x'.join(map(str, shape)):16}{what}".rstrip())
    return draw_u(seen)


def _layer(model: UNet, name: str, seen: Seen | None) -> list[Sheet]:
    """The pictures of `_pictures`, in that order; prints the figures of a way up."""
    print(f"{name}: {words(model, name)}")
    sheets = [draw_kernels(model, name, seen)]
    if seen is not None:
        sheets.append(draw_maps(seen, name))
    module = layer_of(model, name)
    if isinstance(module, Up):
        if isinstance(module.up, ConvTranspose2d):
            print(f"overlap: {verdict(module.up.geometry)} Unevenness {unevenness(module.up.geometry):.3f}.")
        else:
            print("no overlap: it adds no windows up")
        score = checkerboard(constant_answer(module, constant_input(module, seen)))
        print(f"checkerboard {score:.3f} in its answer to a constant image, with every input "
              f"{'1' if seen is None else 'at its mean over this image'}: {CHECKERBOARD}")
        if why := cause(module, score):
            print(f"  {why}")
        if seen is not None:
            ablations = {"zeros": without_skip(seen, module), "its mean": without_skip(seen, module, mean=True)}
            for what, found in ablations.items():
                print(f"{what} in place of its skip connection: {_figures(found)}")
            sheets.append(draw_skip(seen, name, ablations))
    return sheets


def _figures(found: Ablation) -> str:
    return f"{found.classes:.2%} of the pixels change class, the answer changes by {found.change:.4f} on average"
