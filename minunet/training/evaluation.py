"""What a net is worth on images whose truth is known: figures over all pixels, and image by image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minunet.backend import to_device
from minunet.checkpoint import Checkpoint
from minunet.data import IGNORE, Sample, unit
from minunet.inference import class_ids, probabilities
from minunet.training.metrics import PER_CLASS, Confusion, mean_of, scores


@dataclass
class Evaluation:
    """Counts over all pixels of all images, and the scores of each image by itself."""

    class_names: tuple[str, ...]
    counts: Confusion
    images: list[dict[str, Any]] = field(default_factory=list)

    @property
    def over_pixels(self) -> dict[str, Any]:
        """The scores of all pixels of all images together."""
        return scores(self.counts, len(self.class_names))

    @property
    def over_images(self) -> dict[str, float | None]:
        """The mean over images of each image's score; images without that figure are left out."""
        return {name: mean_of([image[name] for image in self.images]) for name in ("accuracy", *PER_CLASS)}

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file; confusion is [truth][prediction] in pixels."""
        return {"classes": list(self.class_names), "over_all_pixels": self.over_pixels,
                "mean_over_images": self.over_images, "confusion": self.counts.counts.tolist(), "images": self.images}


def evaluate(checkpoint: Checkpoint, samples: Iterable[Sample], threshold: float = 0.5,
             on_image: Callable[[Sample, np.ndarray], None] = lambda sample, ids: None) -> Evaluation:
    """Predict every sample whole and count, on the model's device. on_image gets each sample with its ids (H, W)."""
    classes, device = checkpoint.model.config["classes"], checkpoint.model.device
    found = Evaluation(checkpoint.class_names, Confusion(max(2, classes)))
    for sample in samples:
        image, mask = sample.read()
        ids = class_ids(probabilities(checkpoint, unit(image), device), threshold)
        own = Confusion(max(2, classes))
        own.add(to_device(mask, device), ids, IGNORE)
        found.counts.counts += own.counts
        found.images.append({"name": sample.name, **scores(own, classes)})
        on_image(sample, to_device(ids, "cpu"))
    return found
