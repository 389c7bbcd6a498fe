"""Figures of a segmentation, from integer counts of pixels; over many images the counts are added, never the figures.

Source: Everingham et al., The Pascal visual object classes challenge: a retrospective (2015), for IoU over all pixels
of a class; Dice, Measures of the amount of ecologic association between species (1945).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet.backend import device_of, on_gpu, to_device
from minunet.ops.kernels import counts as kernels

PER_CLASS = ("iou", "dice", "precision", "recall")


class Confusion:
    """Counts [truth, prediction] of pixels, for ids 0 .. ids − 1. Add images with `add`, then ask for the figures.

    The figures of an id that neither truth nor prediction holds are None.

    >>> counts = Confusion(2)
    >>> counts.add(np.array([[0, 1, 1]]), np.array([[0, 1, 0]]))
    >>> counts.iou(1), counts.dice(1), counts.accuracy()
    (0.5, 0.6666666666666666, 0.6666666666666666)
    """

    def __init__(self, ids: int):
        self.counts = np.zeros((ids, ids), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray, ignore: int | None = None) -> None:
        """Count the pixels of one image: two arrays of ids of one shape, on one device.

        ignore: where the truth is this number, the pixel is not counted. Raises ValueError for other shapes or ids,
        TypeError for different devices.
        """
        ids = len(self.counts)
        # on a GPU the kernel leaves out what is no id, and its sum tells: one wait for the GPU, not one for each check
        late = (device_of(truth, prediction) != "cpu" and truth.dtype == prediction.dtype == np.uint8
                and (ignore is None or ignore >= ids))
        for name, array in (("truth", truth), ("prediction", prediction)):
            if array.shape != truth.shape or array.dtype.kind not in "biu":
                raise ValueError(f"Confusion: {name} must hold integer ids in the truth's shape {truth.shape}; got "
                                 f"{array.dtype} {array.shape}")
        if not late:
            truth, prediction = self._checked(truth, prediction, ignore)
        if on_gpu(truth) and ids <= 256:
            truth, prediction = (array.astype(np.uint8, copy=False) for array in (truth, prediction))
            counts = to_device(kernels.confusion(truth, prediction, ids), "cpu").astype(np.int64)
            if counts.sum() != truth.size:
                self._checked(truth, prediction, ignore)
            self.counts += counts
            return
        truth, prediction = (to_device(array, "cpu").astype(np.int64).ravel() for array in (truth, prediction))
        self.counts += np.bincount(truth * ids + prediction, minlength=ids * ids).reshape(ids, ids)

    def _checked(self, truth: np.ndarray, prediction: np.ndarray, ignore: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Both, without the pixels to ignore. Raises ValueError unless they hold ids."""
        if ignore is not None:
            counted = truth != ignore
            truth, prediction = truth[counted], prediction[counted]
        for name, array in (("truth", truth), ("prediction", prediction)):
            if array.size:
                low, high = array.min().item(), array.max().item()
                if not 0 <= low <= high < len(self.counts):
                    raise ValueError(f"Confusion: {name} must hold ids 0 to {len(self.counts) - 1}; got {low} to "
                                     f"{high}")
        return truth, prediction

    def iou(self, k: int) -> float | None:
        """TP / (TP + FP + FN) of the id."""
        hit = self.counts[k, k]
        return _ratio(hit, self.counts[k].sum() + self.counts[:, k].sum() - hit)

    def dice(self, k: int) -> float | None:
        """2 TP / (2 TP + FP + FN) of the id."""
        return _ratio(2 * self.counts[k, k], self.counts[k].sum() + self.counts[:, k].sum())

    def precision(self, k: int) -> float | None:
        """TP / (TP + FP) of the id: the share of what was predicted that is right; 0 for what was missed altogether."""
        return self._share(self.counts[k, k], self.counts[:, k].sum(), k)

    def recall(self, k: int) -> float | None:
        """TP / (TP + FN) of the id: the share of what is there that was found; 0 for what was made up."""
        return self._share(self.counts[k, k], self.counts[k].sum(), k)

    def _share(self, hit: np.int64, whole: np.int64, k: int) -> float | None:
        """hit / whole; None only if nothing holds the id, so that all figures' means are over the same ids."""
        return _ratio(hit, whole) if whole or self.iou(k) is None else 0.0

    def accuracy(self) -> float | None:
        """The share of pixels whose id is right."""
        return _ratio(np.trace(self.counts), self.counts.sum())


def scores(counts: Confusion, classes: int) -> dict[str, Any]:
    """The pixel accuracy, and IoU, Dice, precision and recall: a mean over the classes that have one, and each one's.

    With one class, that is id 1 (the background has no figure of its own); with more, all ids. Keys: "accuracy",
    "iou", ..., "iou_per_class", ...
    """
    ids = [1] if classes == 1 else range(classes)
    per_class = {name: [getattr(counts, name)(k) for k in ids] for name in PER_CLASS}
    return {"accuracy": counts.accuracy(), **{name: mean_of(values) for name, values in per_class.items()},
            **{f"{name}_per_class": values for name, values in per_class.items()}}


def mean_of(values: list[float | None]) -> float | None:
    """The mean of those that are not None; None if there are none."""
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
