"""Prediction with a trained net: probabilities and class ids for whole images, and pictures of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from minunet.backend import array_module, on_gpu, to_device
from minunet.checkpoint import Checkpoint
from minunet.data import IGNORE
from minunet.data.files import resize_image
from minunet.errors import UserError
from minunet.ops.kernels import counts

# Okabe and Ito's palette, told apart by colour-blind eyes too, less its black; then lighter and darker
_OKABE_ITO = np.array([[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0],
                       [204, 121, 167]], np.float32) / 255
COLOURS = np.concatenate([_OKABE_ITO, 0.5 + 0.5 * _OKABE_ITO, 0.5 * _OKABE_ITO])
FORMS = ("binary", "ids", "colors")


def probabilities(checkpoint: Checkpoint, image: np.ndarray, device: str = "cpu") -> np.ndarray:
    """(H, W, K) float32 for an image (H, W, C) in 0..1: what the net's output makes of its logits, at every pixel.

    A net that learned from resized images gets the image resized, and its answer is interpolated back. For a net with
    valid convolutions the image is extended by its mirror image, as in the paper (section 2, figure 2). device: where
    the answer is wanted. Raises UserError when the net answers with something that is no number.
    """
    model, size = checkpoint.model, image.shape[:2]
    x = checkpoint.normalise(image if checkpoint.size is None else resize_image(image, checkpoint.size))
    h, w = x.shape[:2]
    height, width = model.input_size((h, w))
    answered = model.output_size((height, width))
    top, left = (height - answered[0]) // 2, (width - answered[1]) // 2
    if (height, width) != (h, w):
        x = np.pad(x, [(top, height - h - top), (left, width - w - left), (0, 0)], mode="reflect")
    answer = model.predict(x[None], device if checkpoint.size is None else "cpu")[0, :h, :w]
    if not array_module(answer).isfinite(answer).all():
        raise UserError("the net's output is no longer finite, its weights grew too large in training; train again "
                        "with a smaller learning rate")
    return answer if checkpoint.size is None else to_device(resize_image(answer, (size[0], size[1])), device)


def class_ids(answer: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """(H, W) uint8 of probabilities (H, W, K): 0 or 1 for one class (by threshold), else the likeliest id."""
    if on_gpu(answer):
        return counts.class_ids(answer, threshold)
    if answer.shape[2] == 1:
        return (answer[..., 0] >= threshold).astype(np.uint8)
    return answer.argmax(-1).astype(np.uint8)


def mask_picture(ids: np.ndarray, form: str) -> Image.Image:
    """Class ids (H, W) as a picture.

    "binary": 255 where the id is above 0. "ids": grey values. "colors": a palette picture; its indices are the ids,
    its colours those of the overlays, black for 0.
    """
    if form == "binary":
        return Image.fromarray((ids > 0) * np.uint8(255))
    picture = Image.fromarray(ids)
    if form == "colors":
        picture.putpalette([0, 0, 0, *np.rint(colour_of(np.arange(1, 256)) * 255).astype(int).ravel().tolist()])
    return picture


def colour_of(ids: np.ndarray) -> np.ndarray:
    """(..., 3) in 0..1 for ids above 0: one of 21 colours, again from the first after the last."""
    return COLOURS[(ids.astype(int) - 1) % len(COLOURS)]


def overlay(image: np.ndarray, prediction: np.ndarray | None = None, truth: np.ndarray | None = None) -> Image.Image:
    """An image (H, W, C) in 0..1 as RGB, with predicted ids (H, W) as a tint and the truth's outlines.

    Id 0 is not tinted. The outlines have the colours of their classes; on a tint they are white or, in a bright
    image, black. Pixels that the truth ignores are hatched.
    """
    picture = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
    if prediction is not None:
        tinted = prediction > 0
        picture[tinted] = 0.6 * picture[tinted] + 0.4 * colour_of(prediction[tinted])
    if truth is not None:
        ignored = truth == IGNORE
        known = np.where(ignored, 0, truth)
        grown = ndimage.grey_dilation(known, 3)                 # the pixels just outside each region
        outside = (grown != known) & ~ignored
        contrast = 0.0 if image.mean() > 0.5 else 1.0
        picture[outside] = colour_of(grown[outside]) if prediction is None else contrast
        diagonal = np.add.outer(np.arange(truth.shape[0]), np.arange(truth.shape[1]))
        picture[ignored & (diagonal % 6 == 0)] = contrast
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


def caption(text: str, width: int) -> Image.Image:
    """A line of text, as wide as the picture that it stands above."""
    picture = Image.new("RGB", (width, 22), "white")
    ImageDraw.Draw(picture).text((4, 11), text, fill="black", font=ImageFont.load_default(14), anchor="lm")
    return picture


def legend(names: Mapping[int, str], width: int) -> Image.Image:
    """The colours of some ids above 0 with their names, in as many lines as the width in px needs."""
    font = ImageFont.load_default(14)
    square, line, places, x, y = 14, 22, [], 4, 4
    for k, name in names.items():
        length = square + 6 + int(font.getlength(name)) + 16
        if x > 4 and x + length > width:
            x, y = 4, y + line
        places.append((x, y, k, name))
        x += length
    picture = Image.new("RGB", (width, y + line), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, k, name in places:
        colour = tuple(int(c) for c in np.rint(colour_of(np.array(k)) * 255))
        draw.rectangle([x, y, x + square, y + square], fill=colour, outline="black")
        draw.text((x + square + 6, y + square // 2), name, fill="black", font=font, anchor="lm")
    return picture


def save_overlay(path: Path, image: np.ndarray, ids: np.ndarray, names: Mapping[int, str]) -> None:
    """The tinted image as PNG, with a legend below if there are names of ids."""
    picture = overlay(image, ids)
    if names:
        picture = side_by_side([[picture], [legend(names, max(picture.width, 200))]])
    picture.save(path)
