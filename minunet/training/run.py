"""A training run: split, normalise, learn, keep the best epoch's weights, and measure them on the test images.

A run leaves in its folder: best.safetensors and last.safetensors, history.csv (a row an epoch), metrics.json (the test
figures), validation.png (image, truth and prediction of a few validation images).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minunet import functional, optim
from minunet.autograd import Tensor
from minunet.checkpoint import Checkpoint, load_checkpoint
from minunet.data import Batches, Dataset, Sample, channel_statistics, split
from minunet.errors import UserError
from minunet.geometry import Pair
from minunet.inference import overlay, predict_ids, side_by_side
from minunet.models import UNet
from minunet.training.metrics import Confusion, scores

SHOWN = 4           # validation images in the picture


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run; crop is (height, width) in px, lr Adam's learning rate."""

    base: int = 16
    depth: int = 4
    crop: Pair = (128, 128)
    batch: int = 8
    epochs: int = 20
    lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class EpochResult:
    """A row of history.csv: the mean training loss, and the figures on the validation images (None: no such class)."""

    epoch: int
    loss: float
    iou: float | None
    dice: float | None
    best: bool


class Run:
    """One training run into a folder. Iterate over `epochs()`, then call `finish()`.

    Every random choice comes from the seed: the split, the weights, the crops. Raises UserError for fewer than 3
    pairs, and when the loss is no longer a finite number.
    """

    def __init__(self, dataset: Dataset, folder: Path, config: RunConfig):
        self.folder, self.config, self.dataset = folder, config, dataset
        split_rng, model_rng, data_rng = np.random.default_rng(config.seed).spawn(3)
        self.split = split(dataset.samples, split_rng)
        mean, deviation = channel_statistics(self.split.train)
        one = dataset.classes == 1
        model = UNet(dataset.channels, dataset.classes, base=config.base, depth=config.depth,
                     output="sigmoid" if one else "softmax", rng=model_rng)
        self.checkpoint = Checkpoint(model, mean, deviation, {"run": asdict(config)})
        self.batches = Batches(self.split.train, config.crop, config.batch, data_rng)
        self.loss = functional.loss_function("bce+dice" if one else "ce+dice")
        self.optimizer = optim.Adam(model.parameters(), lr=config.lr)

    @property
    def training_bytes(self) -> int:
        """The forecast of memory for a training step."""
        return self.checkpoint.model.summary(self.config.crop, self.config.batch).training_bytes

    def epochs(self, on_step: Callable[[int, float], None] = lambda epoch, loss: None) -> Iterator[EpochResult]:
        """Train, yielding after every epoch; on_step gets the epoch (from 1) and the loss of every step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        best = -1.0
        history: list[dict[str, Any]] = []
        for epoch in range(1, self.config.epochs + 1):
            losses = []
            for images, masks in self.batches:
                losses.append(self._step(images, masks, epoch))
                on_step(epoch, losses[-1])
            figures = self.measure(self.split.validation)
            score = figures["iou"] or 0.0
            result = EpochResult(epoch, sum(losses) / len(losses), figures["iou"], figures["dice"], score > best)
            history.append(asdict(result))
            if result.best:
                best = score
                self.checkpoint.save(self.folder / "best.safetensors")
            self.checkpoint.save(self.folder / "last.safetensors")
            with open(self.folder / "history.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, list(history[0]))
                writer.writeheader()
                writer.writerows(history)
            yield result

    def finish(self) -> dict[str, Any]:
        """The test figures of the best epoch's weights, also written to metrics.json; and validation.png."""
        self.checkpoint = load_checkpoint(self.folder / "best.safetensors")
        figures = self.measure(self.split.test)
        report = {"test": figures, "config": asdict(self.config)}
        (self.folder / "metrics.json").write_text(json.dumps(report, indent=2) + "\n")
        rows = []
        for sample in self.split.validation[:SHOWN]:
            prediction = predict_ids(self.checkpoint, sample.image)
            rows.append([overlay(sample.image), overlay(sample.image, truth=sample.mask),
                         overlay(sample.image, prediction, sample.mask)])
        side_by_side(rows).save(self.folder / "validation.png")
        return figures

    def measure(self, samples: list[Sample]) -> dict[str, Any]:
        """IoU, Dice and accuracy over all pixels of whole images."""
        counts = Confusion(max(2, self.dataset.classes))
        for sample in samples:
            counts.add(sample.mask, predict_ids(self.checkpoint, sample.image))
        return scores(counts, self.dataset.classes)

    def _step(self, images: np.ndarray, masks: np.ndarray, epoch: int) -> float:
        """One step of the optimizer on one batch; the loss before it."""
        target = masks[..., None] if self.dataset.classes == 1 else masks
        loss = self.loss(self.checkpoint.model(Tensor(self.checkpoint.normalise(images))), target)
        if not math.isfinite(loss.item()):
            kept = f"the last good weights are in {self.folder}" if epoch > 1 else "no weights were saved"
            raise UserError(f"the loss became {loss.item()} in epoch {epoch}, step {self.optimizer.steps + 1}; {kept}; "
                            f"try a smaller learning rate than {self.config.lr}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
