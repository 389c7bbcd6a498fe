"""The command `minunet`: the only place that parses arguments and prints.

What a user can get wrong ends in one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minunet import __version__
from minunet.checkpoint import load_checkpoint
from minunet.data import Dataset, Sample, load_folder, read_image
from minunet.data.folder import image_files
from minunet.data.scenes import cell_scenes
from minunet.errors import UserError
from minunet.geometry import Pair
from minunet.inference import predict_ids, prediction_files, save_prediction
from minunet.training import Run, RunConfig


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):     # an overflow ends in a UserError
            arguments.run(arguments)
        return 0
    except UserError as error:
        complaint = str(error)
    except MemoryError as error:
        complaint = f"there is not enough memory ({error}); use smaller images, or a smaller --crop, --batch or --base"
    except OSError as error:        # no permission, disk full
        complaint = f"{error.filename or 'file system'}: {error.strerror or error}"
    except KeyboardInterrupt:
        print("\nminunet: stopped", file=sys.stderr)
        return 130
    print(f"minunet: {complaint}", file=sys.stderr)
    return 2


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(prog="minunet", description="A U-Net for semantic segmentation, from scratch.")
    parser.add_argument("--version", action="version", version=f"minunet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    defaults = RunConfig()

    train = commands.add_parser("train", help="train on a folder of images and a folder of masks")
    train.set_defaults(run=_train)
    train.add_argument("--images", type=Path, required=True, metavar="DIR")
    train.add_argument("--masks", type=Path, required=True, metavar="DIR", help="paired with the images by stem")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the run's files go")
    train.add_argument("--invert", action="store_true", help="the masks' value 0 is the class")
    train.add_argument("--base", type=_positive, default=defaults.base,
                       help="channels of the first level (%(default)s)")
    train.add_argument("--crop", type=_size, default=defaults.crop, metavar="HEIGHTxWIDTH",
                       help="size of the random crops in px (128x128)")
    train.add_argument("--batch", type=_positive, default=defaults.batch, help="crops in a step (%(default)s)")
    train.add_argument("--epochs", type=_positive, default=defaults.epochs, help="(%(default)s)")
    train.add_argument("--lr", type=_rate, default=defaults.lr, help="Adam's learning rate (%(default)s)")
    train.add_argument("--seed", type=_seed, default=defaults.seed, help="of split, weights and crops (%(default)s)")

    predict = commands.add_parser("predict", help="masks and overlays for images")
    predict.set_defaults(run=_predict)
    predict.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.safetensors of a run")
    predict.add_argument("files", type=Path, nargs="+", metavar="FILE|DIR")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR")

    demo = commands.add_parser("demo", help="train on made-up cells: no data, at most two minutes on two cores")
    demo.set_defaults(run=_demo)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="(%(default)s)")
    demo.add_argument("--quick", action="store_true", help="a few steps only, to see that everything works")
    return parser


def _train(arguments: argparse.Namespace) -> None:
    if (arguments.out / "best.safetensors").exists():
        raise UserError(f"{arguments.out}: holds a run already, which would be overwritten; choose another --out")
    dataset = load_folder(arguments.images, arguments.masks, arguments.invert)
    config = RunConfig(base=arguments.base, crop=arguments.crop, batch=arguments.batch, epochs=arguments.epochs,
                       lr=arguments.lr, seed=arguments.seed)
    _run(Run(dataset, arguments.out, config))


def _demo(arguments: argparse.Namespace) -> None:
    scenes, epochs = (8, 1) if arguments.quick else (80, 24)
    images, masks = cell_scenes(np.random.default_rng(0), scenes)
    samples = [Sample(f"scene {i}", image, mask) for i, (image, mask) in enumerate(zip(images, masks))]
    config = RunConfig(base=8, depth=3, epochs=epochs, lr=3e-3)
    _run(Run(Dataset(samples, channels=1, classes=1), arguments.out, config))


def _run(run: Run) -> None:
    """Train with progress bars, then print the test figures and where everything is."""
    _make_folder(run.folder)
    parts, config = run.split, run.config
    print(f"{_count(len(parts.train), 'image')} to learn from, {len(parts.validation)} to validate, "
          f"{len(parts.test)} to test; {_count(run.dataset.channels, 'channel')}, "
          f"{_count(run.dataset.classes, 'class', 'classes')}")
    print(f"{_count(config.epochs, 'epoch')} of {_count(len(run.batches), 'step')}; "
          f"about {run.training_bytes / 2**20:,.0f} MiB of memory")
    start = time.perf_counter()
    with tqdm(total=config.epochs * len(run.batches), unit="step", dynamic_ncols=True) as bar:
        def on_step(epoch: int, loss: float) -> None:
            bar.set_description(f"epoch {epoch}/{config.epochs}", refresh=False)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        for result in run.epochs(on_step):
            bar.write(f"epoch {result.epoch}: loss {result.loss:.4f}, validation IoU "
                      f"{_figure(result.iou)}, Dice {_figure(result.dice)}" + (" (best so far)" if result.best else ""))
    figures = run.finish()
    print(f"trained in {time.perf_counter() - start:.0f} s")
    print(f"test, over all pixels of {_count(len(parts.test), 'image')}: IoU {_figure(figures['iou'])}, "
          f"Dice {_figure(figures['dice'])}, accuracy {figures['accuracy']:.4f}")
    if run.dataset.classes > 1:
        for k, iou in enumerate(figures["iou_per_class"]):
            print(f"  class {k}: IoU {_figure(iou)}")
    print(f"look at {run.folder / 'validation.png'} (image, truth, prediction); "
          f"predict with {run.folder / 'best.safetensors'}")


def _predict(arguments: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(arguments.checkpoint)
    config = checkpoint.model.config
    files = [file for path in arguments.files for file in (image_files(path) if path.is_dir() else [path])]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
    if not files:
        raise UserError(f"{', '.join(map(str, arguments.files))}: no image files there")
    sources = {path.resolve() for path in files}
    results: dict[Path, Path] = {}
    for path in files:
        for target in prediction_files(arguments.out, path.stem):
            if target.resolve() in sources:
                raise UserError(f"{path}: its result would overwrite the image {target}; choose another --out")
            if target in results:
                raise UserError(f"{path}: its result {target} would overwrite that of {results[target]}; predict them "
                                "into different folders")
            results[target] = path
    _make_folder(arguments.out)
    for path in tqdm(files, unit="image"):
        image = read_image(path, config["in_channels"])
        save_prediction(predict_ids(checkpoint, image), image, config["classes"], arguments.out, path.stem)
    print(f"{_count(len(files), 'mask')} with overlay in {arguments.out}")


def _make_folder(path: Path) -> None:
    """Make the folder for the results before the work begins, so that none is lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: --out must be a folder, and there is a file of this name in the way") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot be written to; choose another --out")


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def _figure(value: float | None) -> str:
    return "none (no pixel of the class in truth or prediction)" if value is None else f"{value:.4f}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0; got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0; got {text!r}")
    return value


def _size(text: str) -> Pair:
    """HEIGHTxWIDTH in px."""
    numbers = text.lower().split("x")
    if len(numbers) != 2 or not all(n.isdecimal() and int(n) >= 1 for n in numbers):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH in px, such as 128x128; got {text!r}")
    return int(numbers[0]), int(numbers[1])
