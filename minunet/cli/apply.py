"""Using a trained net: `minunet predict` for images, `minunet evaluate` where the truth is known."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minunet.checkpoint import Checkpoint, load_checkpoint
from minunet.cli.tables import evaluation_text, print_reading
from minunet.cli.values import (
    Commands,
    add_device,
    add_mask_options,
    counted,
    device_options,
    look_at,
    make_folder,
    mask_options,
    number,
)
from minunet.data import MaskOptions, dataset_of, image_files, name_below, read_image, unit
from minunet.data.files import SUFFIXES
from minunet.errors import UserError
from minunet.inference import FORMS, class_ids, mask_picture, probabilities, save_overlay
from minunet.training import evaluate


def add_commands(commands: Commands) -> None:
    """predict, evaluate."""
    threshold = number(0, 1, "a number above 0 and below 1")
    predict = commands.add_parser("predict", help="masks and overlays for images")
    predict.set_defaults(run=_predict)
    predict.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.safetensors of a run")
    predict.add_argument("files", type=Path, nargs="+", metavar="FILE|DIR")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR",
                         help="gets the folders masks, overlays and, if asked for, probabilities")
    predict.add_argument("--masks", choices=FORMS, help="binary: 0 and 255; ids: class ids as grey values; colors: "
                         "a palette of colours whose indices are the ids (binary for one class, else colors)")
    predict.add_argument("--threshold", type=threshold, metavar="P",
                         help="probability from which a pixel is of the class (0.5)")
    predict.add_argument("--only", metavar="CLASS", help="a single class, by name or id: masks of 0 and 255")
    predict.add_argument("--probabilities", action="store_true", help="also write them: .npy, float32 (H, W, classes)")
    add_device(predict)

    evaluate_ = commands.add_parser("evaluate", help="a net's figures on images whose masks are known")
    evaluate_.set_defaults(run=_evaluate)
    evaluate_.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.safetensors of a run")
    evaluate_.add_argument("--images", type=Path, required=True, metavar="DIR")
    evaluate_.add_argument("--masks", type=Path, required=True, metavar="DIR",
                           help="read as the training's were; options given here take the place of those")
    evaluate_.add_argument("--threshold", type=threshold, metavar="P",
                           help="probability from which a pixel is of the class, for one class (0.5)")
    evaluate_.add_argument("--json", action="store_true", help="print everything as JSON instead of tables")
    add_device(evaluate_)
    add_mask_options(evaluate_, names_too=False)


def _predict(arguments: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(arguments.checkpoint)
    channels, classes = checkpoint.model.config["in_channels"], checkpoint.model.config["classes"]
    only = None if arguments.only is None else _class_id(checkpoint, arguments.only)
    if arguments.threshold is not None and classes > 1 and only is None:
        raise UserError(f"--threshold is for one class, and this net has {classes}, of which the likeliest is taken; "
                        "choose one by --only")
    if only is not None and arguments.masks not in (None, "binary"):
        raise UserError(f"--only gives masks of 0 and 255; leave --masks {arguments.masks} out")
    files = _sources(arguments.files, arguments.out)
    kinds = {"masks": ".png", "overlays": ".png"} | ({"probabilities": ".npy"} if arguments.probabilities else {})
    form = arguments.masks or ("binary" if classes == 1 or only is not None else "colors")
    # in overlays a single class keeps its colour; the first of several has none of its own
    colour = max(only or 1, 1)
    names = dict(enumerate(checkpoint.class_names))
    legend = {} if classes == 1 else ({k: names[k] for k in list(names)[1:]} if only is None else {colour: names[only]})
    make_folder(arguments.out)
    checkpoint.model.to(**device_options(arguments))
    nothing = 0             # images in which the net found nothing
    for name, path in tqdm(files.items(), unit="image", dynamic_ncols=True):
        image = unit(read_image(path, channels))
        answer = probabilities(checkpoint, image)
        if classes > 1 and only is not None and arguments.threshold is not None:
            ids = (answer[..., only] >= arguments.threshold).astype(np.uint8)
        else:
            ids = class_ids(answer, arguments.threshold or 0.5)
            if classes > 1 and only is not None:
                ids = (ids == only).astype(np.uint8)
        nothing += not ids.any()
        targets = {kind: arguments.out / kind / (name + suffix) for kind, suffix in kinds.items()}
        for target in targets.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        # the overlay first: a mask without one is taken for somebody's own work
        save_overlay(targets["overlays"], image, ids * np.uint8(colour), legend)
        mask_picture(ids, form).save(targets["masks"])
        if arguments.probabilities:
            np.save(targets["probabilities"], answer if only is None or classes == 1 else answer[..., only:only + 1])
    print(f"{counted(len(files), 'mask')} in {arguments.out / 'masks'}, overlays in {arguments.out / 'overlays'}")
    if nothing:
        print(f"note: nothing was found in {nothing} of them, whose masks are black; if that is wrong, see \"When the "
              "prediction is all black\" in the README")


def _sources(paths: list[Path], out: Path) -> dict[str, Path]:
    """The images to predict, each under the name that its results get: its path below the folder that was named."""
    files: dict[str, Path] = {}
    results = [(out / kind).resolve() for kind in ("masks", "overlays")]
    for path in paths:
        if path.is_dir():
            found = [(name_below(file, path), file) for file in image_files(path)
                     if not any(file.resolve().is_relative_to(r) and not path.resolve().is_relative_to(r)
                                for r in results)]
        elif path.is_file():
            found = [(path.stem, path)]
        else:
            raise UserError(f"{path}: there is no such file")
        for name, file in found:
            if name in files:
                raise UserError(f"{file}: its result would have the name of that of {files[name]}, {name}; predict "
                                "them into different folders")
            files[name] = file
    sources = {file.resolve() for file in files.values()}
    for name, file in files.items():
        for kind in ("masks", "overlays"):
            target = out / kind / f"{name}.png"
            if target.resolve() in sources:
                raise UserError(f"{file}: its result would overwrite the image {target}; choose another --out")
        if (out / "masks" / f"{name}.png").exists() and not (out / "overlays" / f"{name}.png").exists():
            raise UserError(f"{file}: its result would overwrite {out / 'masks' / name}.png, which has no overlay and "
                            "so is not an earlier result; choose another --out")
    if not files:
        raise UserError(f"{', '.join(map(str, paths))}: no image files ({', '.join(SUFFIXES)}) there")
    return files


def _class_id(checkpoint: Checkpoint, text: str) -> int:
    """A class's id, from its name or its id."""
    names = checkpoint.class_names
    first = 1 if len(names) == 1 else 0             # the one class has the id 1
    if text in names:
        return names.index(text) + first
    if text.isdecimal() and first <= int(text) < first + len(names):
        return int(text)
    known = ", ".join(f"{i} {name}" for i, name in enumerate(names, first))
    raise UserError(f"--only: there is no class {text!r}; the net knows {known}")


def _evaluate(arguments: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(arguments.checkpoint)
    classes = checkpoint.model.config["classes"]
    if arguments.threshold is not None and classes > 1:
        raise UserError(f"--threshold is for one class, and this net has {classes}, of which the likeliest is taken")
    checkpoint.model.to(**device_options(arguments))
    options = mask_options(arguments, MaskOptions.of(checkpoint.notes.get("masks", {})))
    found = look_at(arguments.images, arguments.masks, options, classes)
    found.stop()
    aside = sys.stderr if arguments.json else sys.stdout
    print_reading([found], aside)
    dataset = dataset_of(found, options, cache_bytes=0, channels=checkpoint.model.config["in_channels"])
    with tqdm(total=len(dataset.samples), unit="image", dynamic_ncols=True, leave=False) as bar:
        evaluation = evaluate(checkpoint, dataset.samples, arguments.threshold or 0.5, lambda sample, ids: bar.update())
    learned = _learned_from(arguments.checkpoint) & {sample.name for sample in dataset.samples}
    if arguments.json:
        print(json.dumps(evaluation.as_dict() | {"learned_from": sorted(learned)}, indent=1))
        return
    print(evaluation_text(evaluation))
    if learned:
        print(f"note: {len(learned)} of these {counted(len(dataset.samples), 'image')} have names of images that the "
              f"net learned from or was chosen by ({arguments.checkpoint.parent / 'split.json'}), so it may know them")


def _learned_from(checkpoint: Path) -> set[str]:
    """Names of the images that the run of a checkpoint learned from or chose by, if its folder tells."""
    try:
        parts = json.loads((checkpoint.parent / "split.json").read_text())
        return {*parts["train"], *parts["validation"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
