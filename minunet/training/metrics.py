"""Figures of a segmentation, from integer counts over all pixels of all images; never a mean of means.

Source: Everingham et al., The Pascal visual object classes challenge: a retrospective (2015), for IoU over all pixels
of a class; Dice, Measures of the amount of ecologic association between species (1945).
"""

from __future__ import annotations

import numpy as np


class Confusion:
    """Counts [truth, prediction] of pixels, for ids 0 .. ids − 1. Add images with `add`, then ask for the figures.

    >>> counts = Confusion(2)
    >>> counts.add(np.array([[0, 1, 1]]), np.array([[0, 1, 0]]))
    >>> counts.iou(1), counts.dice(1), counts.accuracy()
    (0.5, 0.6666666666666666, 0.6666666666666666)
    """

    def __init__(self, ids: int):
        self.counts = np.zeros((ids, ids), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count the pixels of one image: two arrays of ids of one shape. Raises ValueError for other shapes or ids."""
        ids = len(self.counts)
        for name, array in (("truth", truth), ("prediction", prediction)):
            if array.shape != truth.shape or array.dtype.kind not in "biu":
                raise ValueError(f"Confusion: {name} must hold integer ids in the truth's shape {truth.shape}; got "
                                 f"{array.dtype} {array.shape}")
            if array.size and not 0 <= array.min() <= array.max() < ids:
                raise ValueError(f"Confusion: {name} must hold ids 0 to {ids - 1}; got {array.min()} to {array.max()}")
        pairs = truth.astype(np.int64).ravel() * ids + prediction.astype(np.int64).ravel()
        self.counts += np.bincount(pairs, minlength=ids * ids).reshape(ids, ids)

    def iou(self, k: int) -> float | None:
        """TP / (TP + FP + FN) of the id; None when neither truth nor prediction holds it."""
        hit, union = self.counts[k, k], self.counts[k].sum() + self.counts[:, k].sum() - self.counts[k, k]
        return float(hit / union) if union else None

    def dice(self, k: int) -> float | None:
        """2 TP / (2 TP + FP + FN) of the id; None when neither truth nor prediction holds it."""
        total = self.counts[k].sum() + self.counts[:, k].sum()
        return float(2 * self.counts[k, k] / total) if total else None

    def accuracy(self) -> float:
        """The share of pixels whose id is right."""
        return float(np.trace(self.counts) / max(self.counts.sum(), 1))


def scores(counts: Confusion, classes: int) -> dict[str, float | None | list[float | None]]:
    """IoU and Dice of every class and their means over the classes that occur, and the pixel accuracy.

    With one class, that is id 1 (the background has no figure of its own); with more, all ids.
    """
    ids = [1] if classes == 1 else range(classes)
    iou, dice = [counts.iou(k) for k in ids], [counts.dice(k) for k in ids]
    return {"iou": _mean(iou), "dice": _mean(dice), "accuracy": counts.accuracy(), "iou_per_class": iou,
            "dice_per_class": dice}


def _mean(values: list[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None
