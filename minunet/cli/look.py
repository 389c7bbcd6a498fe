"""Looking before learning: `minunet inspect` at folders, `minunet summary` at a net."""

from __future__ import annotations

import argparse
from pathlib import Path

from minunet.checkpoint import load_checkpoint
from minunet.cli.tables import grid, report
from minunet.cli.values import (
    Commands,
    add_mask_options,
    add_model_options,
    class_words,
    look_at,
    mask_options,
    model_options,
    positive,
    size,
)
from minunet.data import read_image, unit
from minunet.data.files import read_mask
from minunet.errors import UserError
from minunet.models import UNet
from minunet.models.summary import MIB
from minunet.training import RunConfig
from minunet.training.run import ARCHITECTURE

# of a summary without checkpoint
DEFAULTS = {"channels": 3, "classes": 1, **{name: getattr(RunConfig(), name) for name in ARCHITECTURE}}


def add_commands(commands: Commands) -> None:
    """inspect, summary."""
    inspect = commands.add_parser("inspect", help="what folders of images and masks hold, and what is wrong with them")
    inspect.set_defaults(run=_inspect)
    inspect.add_argument("images", type=Path, metavar="IMAGES")
    inspect.add_argument("masks", type=Path, metavar="MASKS")
    inspect.add_argument("--grid", nargs="?", const="", metavar="NAME",
                         help="print the class ids over the shrunken image, of this image or the first")
    add_mask_options(inspect)

    summary = commands.add_parser("summary", help="a net's layers, and the memory that training it takes")
    summary.set_defaults(run=_summary)
    summary.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT",
                         help="a trained net; without it, one of the options below")
    summary.add_argument("--size", type=size, default=(256, 256), metavar="HEIGHTxWIDTH", help="px (256x256)")
    summary.add_argument("--batch", type=positive, default=8, help="images in a step (%(default)s)")
    summary.add_argument("--channels", type=positive, default=DEFAULTS["channels"], help="of the images (%(default)s)")
    summary.add_argument("--classes", type=positive, default=DEFAULTS["classes"], help="(%(default)s)")
    add_model_options(summary)


def _inspect(arguments: argparse.Namespace) -> None:
    options = mask_options(arguments)
    found = look_at(arguments.images, arguments.masks, options)
    print(report(found))
    if arguments.grid is not None and found.code is not None and found.pairs:
        pairs = {pair.name: pair for pair, _, _ in found.pairs}
        name = arguments.grid or next(iter(pairs))
        if name not in pairs:
            raise UserError(f"--grid: no image is called {name}; the first is {next(iter(pairs))}")
        mask, _ = read_mask(pairs[name].mask, options.channel, bool(options.colors))
        print(f"\n{name}: ids as digits, background as brightness" + (", ? ignored" * bool(options.ignore)))
        print(grid(unit(read_image(pairs[name].image, found.channels)), found.code.decode(mask)))
    fatal = sum(problem.fatal for problem in found.problems)
    if fatal:
        raise UserError(f"{fatal} thing{'s' * (fatal > 1)} to mend before training, listed above")


def _summary(arguments: argparse.Namespace) -> None:
    if arguments.checkpoint:
        checkpoint = load_checkpoint(arguments.checkpoint)
        model = checkpoint.model
        if model_options(arguments) | {"channels": arguments.channels, "classes": arguments.classes} != DEFAULTS:
            raise UserError("the options of the net are for a summary without a checkpoint, which has its own; leave "
                            "them out")
        mean, deviation = ([round(float(v), 3) for v in a] for a in (checkpoint.mean, checkpoint.deviation))
        print(f"{arguments.checkpoint}: {class_words(model, checkpoint.class_names)}, images of mean {mean} and "
              f"deviation {deviation}"
              + (f", resized to {checkpoint.size[0]}x{checkpoint.size[1]} px" if checkpoint.size else ""))
        print(", ".join(f"{name} {value}" for name, value in model.config.items()))
    else:
        try:
            model = UNet(arguments.channels, arguments.classes, **model_options(arguments))
        except ValueError as error:
            raise UserError(str(error)) from None
    try:
        print(model.summary(arguments.size, arguments.batch))
    except ValueError as error:
        raise UserError(str(error)) from None
    model.recompute = True
    forecast = model.summary(arguments.size, arguments.batch).training_bytes
    print(f"with --recompute, which trains more slowly: {forecast / MIB:,.0f} MiB")
