"""Prediction with a trained net: class ids for whole images, and pictures of them laid over the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from minunet.checkpoint import Checkpoint
from minunet.errors import UserError

# Okabe and Ito's palette, told apart by colour-blind eyes too, less its black
COLOURS = np.array([[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0],
                    [204, 121, 167]], np.float32) / 255


def predict_ids(checkpoint: Checkpoint, image: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Class ids (H, W) uint8 of an image (H, W, C) in 0..1: 0 or 1 for one class (by threshold), else the likeliest.

    Raises UserError when the net answers with something that is no number.
    """
    if checkpoint.model.config["padding"] != "same":
        raise UserError("the net's convolutions have padding='valid', so it answers for the middle of an image only; "
                        "whole images need a net with padding='same'")
    probabilities = checkpoint.model.predict(checkpoint.normalise(image)[None])[0]      # (H, W, K)
    if not np.isfinite(probabilities).all():
        raise UserError("the net's output is no longer finite, its weights grew too large in training; train again "
                        "with a smaller learning rate")
    if probabilities.shape[2] == 1:
        return (probabilities[..., 0] >= threshold).astype(np.uint8)
    return probabilities.argmax(-1).astype(np.uint8)


def mask_picture(ids: np.ndarray, classes: int) -> Image.Image:
    """Class ids as a picture of grey values: 0 and 255 for one class, the ids themselves for more."""
    return Image.fromarray(ids * np.uint8(255) if classes == 1 else ids)


def overlay(image: np.ndarray, prediction: np.ndarray | None = None, truth: np.ndarray | None = None) -> Image.Image:
    """An image (H, W, C) in 0..1 as RGB, with predicted ids (H, W) as a tint and the truth's outlines: orange alone,
    on a tint white or, in a bright image, black.

    Id 0 is not tinted; id k has the colour (k − 1) mod 7.
    """
    picture = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    if prediction is not None:
        tinted = prediction > 0
        picture[tinted] = 0.6 * picture[tinted] + 0.4 * COLOURS[(prediction[tinted] - 1) % len(COLOURS)]
    if truth is not None:
        changes = ndimage.grey_dilation(truth, 3) != truth      # the pixels just outside each region
        contrast = 0.0 if image.mean() > 0.5 else 1.0
        picture[changes] = COLOURS[0] if prediction is None else contrast
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def side_by_side(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Pictures in rows, top left aligned, white between them; each row is as high as its highest picture."""
    size = (max(sum(p.width + gap for p in row) for row in rows), sum(max(p.height for p in row) + gap for row in rows))
    sheet = Image.new("RGB", (size[0] - gap, size[1] - gap), "white")
    top = 0
    for row in rows:
        left = 0
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + gap
        top += max(p.height for p in row) + gap
    return sheet


def prediction_files(folder: Path, stem: str) -> tuple[Path, Path]:
    """What `save_prediction` writes: STEM.png (the mask) and STEM_overlay.png."""
    return folder / f"{stem}.png", folder / f"{stem}_overlay.png"


def save_prediction(ids: np.ndarray, image: np.ndarray, classes: int, folder: Path, stem: str) -> None:
    """Write the mask and the overlay."""
    mask, tinted = prediction_files(folder, stem)
    mask_picture(ids, classes).save(mask)
    overlay(image, ids).save(tinted)
