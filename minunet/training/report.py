"""Pictures of a run: its history as curves, and what it predicts for a few validation images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from minunet.data import Sample, unit
from minunet.data.files import resize_image, resize_mask
from minunet.inference import COLOURS, caption, legend, overlay, side_by_side

SHOWN = 4               # images in the sheet
PANEL = 400             # px, the longest side that a panel may have


def plot_history(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Training loss, and validation IoU and Dice with the best epoch marked, as PNG."""
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [row["loss"] for row in rows], "o-", markersize=3, color=COLOURS[4])
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    for name, colour in (("iou", COLOURS[2]), ("dice", COLOURS[0])):
        values = [np.nan if row[name] is None else row[name] for row in rows]
        right.plot(epochs, values, "o-", markersize=3, color=colour, label={"iou": "IoU", "dice": "Dice"}[name])
    best = [row for row in rows if row["best"]][-1]
    right.axvline(best["epoch"], color="grey", linewidth=1, linestyle=":", label=f"best epoch, {best['epoch']}")
    right.set(xlabel="epoch", ylabel="validation", ylim=(0, 1))
    right.legend(loc="lower right", fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path)


def validation_sheet(samples: Sequence[Sample], predictions: Sequence[np.ndarray],
                     class_names: Sequence[str]) -> Image.Image:
    """Image, truth (outlined) and prediction (tinted, with the truth's outlines) side by side, a row an image.

    Large images are shrunken to panels of 400 px, small ones magnified by whole factors. Several classes get a
    legend.
    """
    rows = []
    for sample, ids in zip(samples, predictions):
        image, mask = sample.read()
        scale = PANEL / max(sample.size)
        scale = max(1, int(scale)) if scale >= 1 else scale
        size = (max(1, round(sample.size[0] * scale)), max(1, round(sample.size[1] * scale)))
        picture, truth, found = resize_image(unit(image), size), resize_mask(mask, size), resize_mask(ids, size)
        rows.append([overlay(picture), overlay(picture, truth=truth), overlay(picture, found, truth)])
    titles = [caption(title, picture.width) for title, picture in zip(("image", "truth", "prediction"), rows[0])]
    if len(class_names) > 1:
        rows.append([legend(dict(list(enumerate(class_names))[1:]), max(sum(p.width for p in row) for row in rows))])
    return side_by_side([titles, *rows])
