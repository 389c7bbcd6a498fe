"""A training run: split, normalise, learn, keep the best epoch's weights, and measure them on the test images.

A run leaves in its folder: best.safetensors and last.safetensors (from which it can go on), split.json (which image
had which part), history.csv (a row an epoch) and history.png, validation.png (image, truth and prediction of a few
validation images), and in the end metrics.json.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minunet import functional, nn, optim
from minunet.autograd import Tensor, no_grad
from minunet.backend import on_gpu, to_device
from minunet.checkpoint import Checkpoint, load_checkpoint
from minunet.data import IGNORE, Batches, Dataset, MaskOptions, Split, channel_statistics, prefetch, split
from minunet.data.dataset import Arrays
from minunet.errors import UserError
from minunet.geometry import Pair
from minunet.models import UNet
from minunet.training.evaluation import Evaluation, evaluate
from minunet.training.report import SHOWN, plot_history, validation_sheet

ARCHITECTURE = ("base", "depth", "up", "padding", "norm", "dropout", "activation", "pool")
SCHEDULES = ("cosine", "constant")
PURPOSES = ("crops", "dropout", "calibration")
CALIBRATION = 16        # batches
# Floats alive at once in prediction, for each pixel and each of the first channels, by the way up; and with another
# activation than ReLU. Measured on an image of 512x512 px.
PREDICTION_FLOATS = {"transpose": 6, "unpool": 6, "nearest": 8, "bilinear": 9, "bicubic": 17}
ACTIVATION_FLOATS = 9
READ_SECONDS = 0.2      # between two looks at a GPU's losses, for which it has to finish all that was launched
PLOT_SECONDS = 10       # between two drawings of history.png, of which one takes about half a second


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run; equal settings and data give equal results, bit for bit.

    base to pool are the `UNet`'s. crop: (height, width) in px of the random crops; size: if given, images are resized
    to it instead. lr: Adam's learning rate, which the schedule "cosine" lets fall to 0. loss: None is "bce+dice" for
    one class, "ce+dice" for more. val_split, test_split: shares of the images.
    """

    base: int = 16
    depth: int = 4
    up: str = "transpose"
    padding: str = "same"
    norm: str | None = "batch"
    dropout: float = 0.0
    activation: str = "relu"
    pool: str = "max"
    crop: Pair = (256, 256)
    size: Pair | None = None
    batch: int = 8
    epochs: int = 40
    lr: float = 1e-3
    schedule: str = "cosine"
    loss: str | None = None
    seed: int = 0
    val_split: float = 0.2
    test_split: float = 0.2


@dataclass(frozen=True)
class EpochResult:
    """A row of history.csv: the mean training loss, the last learning rate, and the figures over all pixels of the
    validation images (None: no such class)."""

    epoch: int
    loss: float
    lr: float
    iou: float | None
    dice: float | None
    best: bool


class Run:
    """One training run into a folder. Iterate over `epochs()`, then call `finish()`.

    Every random choice comes from the seed: the split, the weights, and, epoch by epoch, crops and dropout.

    Args:
        dataset, validation: if validation is given, all of dataset but its test share is learned from.
        options: how the masks were read, which the checkpoints note.
        init: a net of the same architecture whose weights to begin with; with another number of classes its head is
            made anew.
        resume: go on after the last finished epoch in the folder; the number of epochs may be another, all else must
            be as it was.
        device, precision: where to compute and how (`Module.to`); a run may go on on another device.
        recompute: less memory, more time, the same bits (`UNet`); a run may go on with and without.

    Raises UserError for settings that do not fit the data or each other, and, from `epochs`, when the loss is no
    longer a finite number.
    """

    def __init__(self, dataset: Dataset, folder: Path, config: RunConfig, validation: Dataset | None = None,
                 options: MaskOptions = MaskOptions(), init: Checkpoint | None = None, resume: bool = False,
                 device: str = "cpu", precision: str = "float32", recompute: bool = False):
        self.folder, self.config, self.dataset = folder, config, dataset
        self.device, self.precision = device, precision
        split_rng, self._model_rng = np.random.default_rng(config.seed).spawn(2)
        self.split = split(dataset.samples, split_rng, config.val_split if validation is None else 0.0,
                           config.test_split)
        if validation is not None:
            self.split = Split(self.split.train, list(validation.samples), self.split.test)
        if not self.split.validation:
            raise UserError("training needs images to validate on, to choose the best epoch by; give a share of them "
                            "above 0")
        one = dataset.classes == 1
        mean, deviation = channel_statistics(self.split.train)
        try:
            model = UNet(dataset.channels, dataset.classes, output="sigmoid" if one else "softmax",
                         rng=self._model_rng, **{name: getattr(config, name) for name in ARCHITECTURE})
            self._input_size = config.size or config.crop
            model.output_size(self._input_size)
            name = config.loss or ("bce+dice" if one else "ce+dice")
            self._loss = functional.loss_function(name)
        except ValueError as error:
            raise UserError(str(error)) from None
        if ("ce" if one else "bce") in name.split("+"):
            raise UserError(f"the loss {name} does not fit {'one class' if one else f'{dataset.classes} classes'}; "
                            f"use {'bce, dice or bce+dice' if one else 'ce, dice or ce+dice'}")
        if init is not None:
            _copy_weights(init.model, model)
        model.to(device, precision)
        model.recompute = recompute
        self.optimizer = optim.Adam(model.parameters(), lr=config.lr)
        self._gradients = nn.Replayed(partial(_gradients, self._loss, self.optimizer.parameters))
        self._plotted = -math.inf
        self._computed = self._waited = 0.0             # s
        self.history: list[dict[str, Any]] = []         # the rows of the finished epochs
        notes = json.loads(json.dumps({"run": asdict(config), "masks": asdict(options), "data": self._data_digest()}))
        self.checkpoint = Checkpoint(model, mean, deviation, dataset.class_names, config.size,
                                     notes | {"history": self.history})
        if resume:
            self._resume()
        learned = self.split.train
        if config.size is not None:
            learned = [sample.resized(config.size) for sample in learned]
        self.batches = Batches(learned, self._input_size, config.batch)

    @property
    def training_bytes(self) -> int:
        """The forecast of memory for a training step."""
        return self.checkpoint.model.summary(self._input_size, self.config.batch).training_bytes

    @property
    def prediction_bytes(self) -> int:
        """About the memory for predicting the largest image whole, as validation and test do; beside the weights."""
        config, sizes = self.config, [sample.size for samples in self.split for sample in samples]
        pixels = max(h * w for h, w in ([config.size] if config.size else sizes))
        floats = max(PREDICTION_FLOATS[config.up], 0 if config.activation == "relu" else ACTIVATION_FLOATS)
        return floats * 4 * config.base * pixels

    @property
    def image_bytes(self) -> int:
        """About the memory of all images and masks, decoded."""
        channels = self.dataset.channels
        learned = sum(h * w for h, w in (sample.size for sample in self.batches.samples))
        others = sum(h * w for part in self.split[1:] for h, w in (sample.size for sample in part))
        return learned * ((4 if self.config.size else 1) * channels + 1) + others * (channels + 1)

    @property
    def waiting(self) -> float:
        """The share of the time for learning, 0 to 1, in which a step waited for its batch; of this process alone.

        A GPU may have computed meanwhile: there it is near 0 as long as batches come faster than the steps, and large
        as soon as they come more slowly.
        """
        return self._waited / (self._waited + self._computed) if self._waited else 0.0

    def epochs(self, on_step: Callable[[int, float], None] = lambda epoch, loss: None) -> Iterator[EpochResult]:
        """Train, yielding after every epoch; on_step gets the epoch (from 1) and the loss of every step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = {part: [sample.name for sample in samples] for part, samples in self.split._asdict().items()}
        (self.folder / "split.json").write_text(json.dumps(parts, indent=1) + "\n")
        if not self.history:
            self._save_last()               # so that a run that is stopped in its first epoch can go on, too
        self._write_history()
        try:
            yield from self._epochs(on_step)
        finally:
            if self.history:
                plot_history(self.history, self.folder / "history.png")

    def _epochs(self, on_step: Callable[[int, float], None]) -> Iterator[EpochResult]:
        for epoch in range(len(self.history) + 1, self.config.epochs + 1):
            loss = self._learn(epoch, on_step)
            self._calibrate(epoch)
            shown: list[np.ndarray] = []
            found = evaluate(self.checkpoint, self.split.validation, on_image=lambda sample, ids: shown.append(ids)
                             if len(shown) < SHOWN else None)
            figures = found.over_pixels
            best = max((row["iou"] or 0.0 for row in self.history), default=-1.0)
            result = EpochResult(epoch, loss, self.optimizer.lr, figures["iou"], figures["dice"],
                                 (figures["iou"] or 0.0) >= best)      # of equals the one that has learned longer
            self.history.append(asdict(result))
            if result.best:
                # before the last one, so that a run stopped between the two finds it again
                self.checkpoint.save(self.folder / "best.safetensors")
                validation_sheet(self.split.validation, shown, self.dataset.class_names).save(
                    self.folder / "validation.png")
            self._save_last()
            self._write_history()
            yield result

    def finish(self) -> Evaluation:
        """The test figures of the best epoch's weights, also written to metrics.json.

        Without test images they are those of the validation images, from which the best epoch was chosen.
        """
        self.checkpoint = load_checkpoint(self.folder / "best.safetensors")
        self.checkpoint.model.to(self.device, self.precision)
        found = evaluate(self.checkpoint, self.split.test or self.split.validation)
        report = {"part": "test" if self.split.test else "validation",
                  "best_epoch": len(self.checkpoint.notes["history"]), **found.as_dict(), "config": asdict(self.config)}
        (self.folder / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
        return found

    def _learn(self, epoch: int, on_step: Callable[[int, float], None]) -> float:
        """One epoch of steps; the mean of their losses."""
        # the generator that the net has drawn its weights from draws its dropout masks, too
        self._model_rng.bit_generator.state = self._generator("dropout", epoch).bit_generator.state
        losses: list[float] = []
        unread: list[Any] = []
        nn.release_recordings()         # those of predictions
        with closing(self._batches("crops", epoch)) as batches:
            asked = read = time.perf_counter()
            for images, masks in batches:
                came = time.perf_counter()
                unread.append(self._step(images, masks))
                if self.device == "cpu" or came - read > READ_SECONDS:
                    losses += self._read(unread, epoch, on_step)
                    read = time.perf_counter()
                self._waited += came - asked
                asked = time.perf_counter()
                self._computed += asked - came
        losses += self._read(unread, epoch, on_step)
        self.optimizer.zero_grad()      # the gradients lie in the recording's memory
        nn.release_recordings()
        return sum(losses) / len(losses)

    def _calibrate(self, epoch: int) -> None:
        """Running statistics of batch norm anew, as plain means over batches that pass through the epoch's weights.

        The moving average that training leaves weighs the last few batches most: with images of unlike kinds, the
        validation IoU of one net on the nuclei moved by 0.05 with the batches that happened to come last. Source: Wu,
        Johnson, Rethinking "batch" in BatchNorm (2021), section 3.
        """
        model = self.checkpoint.model
        norms = [module for _, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        with no_grad(), closing(self._batches("calibration", epoch)) as batches:
            for count, (images, _) in enumerate(itertools.islice(batches, CALIBRATION if norms else 0), 1):
                for norm in norms:
                    norm.momentum = 1 / count
                model(Tensor(images))
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum

    def _batches(self, purpose: str, epoch: int) -> Generator[Arrays]:
        """An epoch of batches, normalised, made ahead of their use."""
        batches = self.batches.epoch(self._generator(purpose, epoch))
        return prefetch((self.checkpoint.normalise(images), masks) for images, masks in batches)

    def _generator(self, purpose: str, epoch: int) -> np.random.Generator:
        """Of seed, purpose and epoch alone, so that a resumed run needs no generator's state."""
        key = (2, PURPOSES.index(purpose), epoch)           # 0 and 1 made the split and the weights
        return np.random.default_rng(np.random.SeedSequence(self.config.seed, spawn_key=key))

    def _step(self, images: np.ndarray, masks: np.ndarray) -> Any:
        """One step of the optimizer on one batch; the loss before it, on the device."""
        if self.config.schedule == "cosine":
            self.optimizer.lr = optim.cosine(self.optimizer.steps, self.config.epochs * len(self.batches),
                                             self.config.lr)
        loss = self._gradients(self.checkpoint.model, images, masks, take=self._take)
        self.optimizer.step()
        return loss

    def _take(self, results: tuple[Any, list[Any]]) -> Any:
        """Give the parameters their gradients; a copy of the loss, which the next step overwrites."""
        loss, gradients = results
        for parameter, gradient in zip(self.optimizer.parameters, gradients):
            parameter.grad = gradient
        return loss.copy()

    def _read(self, unread: list[Any], epoch: int, on_step: Callable[[int, float], None]) -> list[float]:
        """The losses of the last steps, which leave the list; on a GPU this waits for all that was launched."""
        losses = [float(to_device(loss, "cpu")) for loss in unread]
        for step, loss in enumerate(losses, self.optimizer.steps - len(losses) + 1):
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} in epoch {epoch}, step {step}; the weights before epoch "
                                f"{epoch} are in {self.folder / 'last.safetensors'}; try a smaller learning rate than "
                                f"{self.config.lr}")
            on_step(epoch, loss)
        unread.clear()
        return losses

    def _save_last(self) -> None:
        self.checkpoint.optimizer = self.optimizer.state_dict()
        self.checkpoint.save(self.folder / "last.safetensors")
        self.checkpoint.optimizer = {}

    def _write_history(self) -> None:
        if self.history:
            with open(self.folder / "history.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(self.history[0]))
                writer.writeheader()
                writer.writerows(self.history)
            now = time.monotonic()
            if now - self._plotted > PLOT_SECONDS:
                plot_history(self.history, self.folder / "history.png")
                self._plotted = now

    def _data_digest(self) -> str:
        """Changes with the number of classes, and with any sample's name, pixels or part."""
        parts = [[(sample.name, sample.digest.hex()) for sample in samples] for samples in self.split]
        return hashlib.blake2b(json.dumps([self.dataset.classes, parts]).encode(), digest_size=16).hexdigest()

    def _resume(self) -> None:
        path = self.folder / "last.safetensors"
        if not path.exists():
            raise UserError(f"{self.folder}: holds no run to resume (there is no last.safetensors); leave --resume out")
        last, mine = load_checkpoint(path), self.checkpoint
        history = last.notes.get("history", [])
        for group in ("run", "masks"):
            now, before = mine.notes[group], last.notes.get(group, {})
            changed = [name for name in now if now[name] != before.get(name)
                       and not (name == "epochs" and now[name] >= len(history))]
            if changed:
                name = changed[0]
                raise UserError(f"{self.folder}: was trained with {name} {before.get(name)!r}, now it is "
                                f"{now[name]!r}; resume with the same options (only epochs may change, to no fewer "
                                f"than the {len(history)} that are finished)")
        if mine.notes["data"] != last.notes["data"]:
            raise UserError(f"{self.folder}: was trained on other images or masks than these; resume with the same "
                            "folders, or begin a new run with --init")
        try:
            mine.model.load_state_dict(last.model.state_dict())
            self.optimizer.load_state_dict(last.optimizer)
        except ValueError as error:
            raise UserError(f"{path}: is not the last state of this run, so it cannot go on ({error}); begin a new run "
                            "with --init") from None
        self.history.extend(history)


def _gradients(loss_of: Callable[..., Tensor], parameters: list[Tensor], model: UNet, images: Any, masks: Any
               ) -> tuple[Any, list[Any]]:
    """The loss of a batch, and its gradients of the model's parameters: None of a loss that is no finite number."""
    logits = model(Tensor(images))
    # the logits of valid convolutions belong to the middle
    (h, w), (top, left) = logits.shape[1:3], ((n - m) // 2 for n, m in zip(masks.shape[1:], logits.shape[1:3]))
    target = masks[:, top:top + h, left:left + w]
    loss = loss_of(logits, target[..., None] if logits.shape[3] == 1 else target, ignore_index=IGNORE)
    for parameter in parameters:
        parameter.grad = None
    if on_gpu(loss.data) or np.isfinite(loss.data):     # on a GPU it is not read yet
        loss.backward()
    return loss.data, [parameter.grad for parameter in parameters]


def _copy_weights(source: UNet, target: UNet) -> None:
    """All weights of a net of the same architecture; the head too if the classes are as many."""
    free = ("classes", "output", "dropout")
    unequal = [f"{name} is {source.config[name]!r} there and {target.config[name]!r} here" for name in source.config
               if name not in free and source.config[name] != target.config[name]]
    if unequal:
        raise UserError(f"--init: that net has another architecture: {'; '.join(unequal)}")
    state = source.state_dict()
    if source.config["classes"] != target.config["classes"]:
        state.update({name: array for name, array in target.state_dict().items() if name.startswith("head.")})
    target.load_state_dict(state)
