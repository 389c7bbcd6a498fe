"""Learning: `minunet train` on folders, `minunet demo` on made-up cells."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minunet.checkpoint import load_checkpoint
from minunet.cli.tables import evaluation_text, print_reading
from minunet.cli.values import (
    Commands,
    add_device,
    add_mask_options,
    add_model_options,
    class_words,
    counted,
    device_options,
    figure,
    look_at,
    make_folder,
    mask_options,
    model_options,
    positive,
    rate,
    share,
    size,
    whole,
)
from minunet.data import Dataset, Sample, Survey, dataset_of
from minunet.data.folder import CACHE_BYTES
from minunet.data.scenes import cell_scenes
from minunet.errors import UserError
from minunet.functional import LOSSES
from minunet.models.summary import MIB
from minunet.training import Run, RunConfig
from minunet.training.run import SCHEDULES

DEMO = Path("runs/demo")
STARVED = 0.1           # of the steps' time: waiting for images beyond it is worth a note


def add_commands(commands: Commands) -> None:
    """train, demo."""
    defaults = RunConfig()
    train = commands.add_parser("train", help="train on a folder of images and a folder of masks")
    train.set_defaults(run=_train)
    train.add_argument("--images", type=Path, required=True, metavar="DIR")
    train.add_argument("--masks", type=Path, required=True, metavar="DIR", help="paired with the images by name")
    train.add_argument("--out", type=Path, metavar="DIR",
                       help="where the run's files go (of the images in data/cells/images: runs/cells)")
    train.add_argument("--resume", action="store_true", help="go on after the last finished epoch of the run in --out")
    train.add_argument("--init", type=Path, metavar="CHECKPOINT", help="begin with the weights of a trained net")
    train.add_argument("--epochs", type=positive, default=defaults.epochs, help="(%(default)s)")
    train.add_argument("--batch", type=positive, default=defaults.batch, help="crops in a step (%(default)s)")
    train.add_argument("--lr", type=rate, default=defaults.lr, help="Adam's learning rate (%(default)s)")
    train.add_argument("--schedule", choices=SCHEDULES, default=defaults.schedule,
                       help="cosine lets the learning rate fall to 0 (%(default)s)")
    train.add_argument("--loss", metavar="NAME", help=f"{', '.join(LOSSES)} or a sum of them (bce+dice for one class, "
                       "ce+dice for more)")
    train.add_argument("--seed", type=whole(0), default=defaults.seed,
                       help="of split, weights and crops (%(default)s)")
    cut = train.add_mutually_exclusive_group()
    cut.add_argument("--crop", type=size, default=defaults.crop, metavar="HEIGHTxWIDTH",
                     help="size of the random crops in px, flipped and turned by quarters at random (256x256); smaller "
                     "images are extended by their edge")
    cut.add_argument("--size", type=size, metavar="HEIGHTxWIDTH", help="resize whole images to this instead")
    train.add_argument("--val-split", type=share, metavar="SHARE",
                       help=f"of the images, to choose the best epoch by ({defaults.val_split})")
    train.add_argument("--test-split", type=share, metavar="SHARE",
                       help=f"of the images, for the final figures ({defaults.test_split}; 0 with --val-images)")
    train.add_argument("--val-images", type=Path, metavar="DIR", help="images to validate on, instead of a share")
    train.add_argument("--val-masks", type=Path, metavar="DIR", help="their masks")
    train.add_argument("--cache", type=whole(0), default=CACHE_BYTES >> 20, metavar="MIB",
                       help="memory for decoded images; those beyond are read again for every crop (%(default)s)")
    add_device(train)
    _add_recompute(train)
    add_mask_options(train)
    add_model_options(train)

    demo = commands.add_parser("demo", help="train on made-up cells: no data, about two minutes on two cores")
    demo.set_defaults(run=_demo)
    demo.add_argument("--out", type=Path, default=DEMO, metavar="DIR", help="(%(default)s, made anew each time)")
    demo.add_argument("--quick", action="store_true", help="a few steps only, to see that everything works")
    add_device(demo)
    _add_recompute(demo)


def _add_recompute(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recompute", action="store_true", help="compute activations again instead of keeping them: "
                        "the same results with less memory, in more time")


def _train(arguments: argparse.Namespace) -> None:
    folder = arguments.out or Path("runs") / (arguments.images.resolve().parent.name or "run")
    if not arguments.resume:
        _refuse_run(folder, "choose another --out, or go on with --resume")
    if (arguments.val_images is None) != (arguments.val_masks is None):
        raise UserError("--val-images and --val-masks belong together; give both or none")
    own_validation = arguments.val_images is not None
    if own_validation and arguments.val_split is not None:
        raise UserError("--val-split is a share of --images, but --val-images are given to validate on; give one of "
                        "the two")
    defaults = RunConfig()
    test_split = (0.0 if own_validation else defaults.test_split) if arguments.test_split is None \
        else arguments.test_split
    config = RunConfig(
        crop=arguments.crop, size=arguments.size, batch=arguments.batch, epochs=arguments.epochs, lr=arguments.lr,
        schedule=arguments.schedule, loss=arguments.loss, seed=arguments.seed, test_split=test_split,
        val_split=defaults.val_split if arguments.val_split is None else arguments.val_split,
        **model_options(arguments))
    options, cache, where = mask_options(arguments), arguments.cache << 20, device_options(arguments)
    init = load_checkpoint(arguments.init) if arguments.init and not arguments.resume else None
    found = look_at(arguments.images, arguments.masks, options)
    found.stop()
    surveys, validation = [found], None
    if own_validation:
        classes = found.code.classes if found.code else None
        surveys.append(look_at(arguments.val_images, arguments.val_masks, options, classes))
        surveys[1].stop()
        # each folder's part of the memory is as its part of the pixels
        cache = cache * found.nbytes // (found.nbytes + surveys[1].nbytes)
        validation = dataset_of(surveys[1], options, (arguments.cache << 20) - cache, found.channels)
    run = Run(dataset_of(found, options, cache), folder, config, validation, options, init, arguments.resume,
              recompute=arguments.recompute, **where)
    print_reading(surveys, sys.stdout)
    if own_validation:
        _note_shared(*surveys)
    _run(run, arguments.cache << 20, "; the same command with --resume goes on from there")


def _refuse_run(folder: Path, advice: str) -> None:
    """Nothing that an epoch has taken is overwritten; a run without a finished epoch is begun anew."""
    if (folder / "best.safetensors").exists():
        raise UserError(f"{folder}: holds a run already, which would be overwritten; {advice}")


def _note_shared(learned: Survey, validation: Survey) -> None:
    """Say so when pictures are both learned from and validated on."""
    digests = {image.digest for _, image, _ in learned.pairs}
    shared = [image.path for _, image, _ in validation.pairs if image.digest in digests]
    if shared:
        print(f"note: {counted(len(shared), 'picture')} of {validation.images} are in {learned.images} too, the first "
              f"{shared[0].name}; the validation figures are too good")


def _demo(arguments: argparse.Namespace) -> None:
    if arguments.out != DEMO or (DEMO / "metrics.json").exists() and "scene 0" not in (
            DEMO / "metrics.json").read_text() + (DEMO / "split.json").read_text():
        _refuse_run(arguments.out, "choose another --out")
    scenes, epochs = (8, 1) if arguments.quick else (80, 15)
    images, masks = cell_scenes(np.random.default_rng(0), scenes)
    samples = [Sample.of(f"scene {i}", image, mask) for i, (image, mask) in enumerate(zip(images, masks))]
    config = RunConfig(base=8, depth=3, crop=(128, 128), epochs=epochs, lr=1e-2)
    dataset = Dataset.of(samples, channels=1, classes=1)
    run = Run(dataset, arguments.out, config, recompute=arguments.recompute, **device_options(arguments))
    _run(run, images.nbytes + masks.nbytes)


def _run(run: Run, cache_bytes: int, advice: str = "") -> None:
    """Train with a progress bar, then print the test figures and where everything is. advice: after Ctrl-C."""
    make_folder(run.folder)
    parts, config = run.split, run.config
    print(f"{counted(len(parts.train), 'image')} to learn from, {len(parts.validation)} to validate, "
          f"{len(parts.test)} to test; {counted(run.dataset.channels, 'channel')}, "
          f"{class_words(run.checkpoint.model, run.dataset.class_names)}")
    if run.device != "cpu":
        print(f"on the device {run.device}, products in {run.precision}")
    print(f"{counted(config.epochs, 'epoch')} of {counted(len(run.batches), 'step')}; memory: about "
          f"{run.training_bytes / MIB:,.0f} MiB for a step, {run.prediction_bytes / MIB:,.0f} MiB to predict the "
          f"largest image, {min(run.image_bytes, cache_bytes) / MIB:,.0f} MiB of images held")
    if run.image_bytes > cache_bytes:
        print(f"note: all images take {run.image_bytes / MIB:,.0f} MiB; those beyond --cache are read again for every "
              "crop, which is slow")
    start, done = time.perf_counter(), len(run.history)
    if done:
        print(f"going on after epoch {done}")
    try:
        with tqdm(total=config.epochs * len(run.batches), initial=done * len(run.batches), unit="step",
                  dynamic_ncols=True) as bar:
            figures = {"loss": "-", "IoU": "-", "Dice": "-"}

            def on_step(epoch: int, loss: float) -> None:
                bar.set_description(f"epoch {epoch}/{config.epochs}", refresh=False)
                figures["loss"] = f"{loss:.3f}"
                bar.set_postfix(figures, refresh=False)
                bar.update()

            for result in run.epochs(on_step):
                figures |= {"IoU": figure(result.iou), "Dice": figure(result.dice)}
                bar.write(f"epoch {result.epoch}: loss {result.loss:.4f}, validation IoU {figure(result.iou)}, Dice "
                          f"{figure(result.dice)}" + (" (best so far)" if result.best else ""))
    except KeyboardInterrupt:
        best = f"; what was best is in {run.folder}" if run.history else ""
        raise KeyboardInterrupt(f"stopped after epoch {len(run.history)} of {config.epochs}{best}{advice}") from None
    evaluation = run.finish()
    print(f"trained in {time.perf_counter() - start:.0f} s, {run.waiting:.1%} of the steps' time waiting for images; "
          "the best epoch on the "
          + ("test images:" if parts.test else "validation images, by which it was chosen:"))
    print(evaluation_text(evaluation))
    if run.waiting > STARVED:
        print("note: the images came more slowly than the net learns; "
              + ("a larger --cache holds more of them decoded" if run.image_bytes > cache_bytes else
                 "the net is so small that cutting its crops takes longer"))
    print(f"look at {run.folder / 'validation.png'} (image, truth, prediction) and {run.folder / 'history.png'}; "
          f"predict with {run.folder / 'best.safetensors'}")
