"""What the commands print: a survey of folders, class ids over an image, the tables of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TextIO

import numpy as np

from minunet.cli.values import counted, figure
from minunet.data import IGNORE, MaskCode, Survey
from minunet.data.masks import MaskFacts, shown
from minunet.geometry import size_text
from minunet.training import Evaluation

LINES = 10              # of one kind of problem in a report
VALUES = 24             # in the table of mask values, the most frequent ones
MATRIX_CLASSES = 12     # a confusion matrix of more is wider than a screen; --json has it
WORST = 5               # images listed


def report(found: Survey) -> str:
    """The survey as a page of text for a person."""
    lines = [f"{len(found.pairs)} sound pairs of image and mask in {found.images} and {found.masks}"]
    if found.pairs:
        images, masks = [image for _, image, _ in found.pairs], [mask for _, _, mask in found.pairs]
        lines += ["", "images  " + _counted(image.mode for image in images) + " (Pillow's modes), read as "
                  + ("grey" if found.channels == 1 else "colour"),
                  "sizes   " + _counted((size_text(image.size) for image in images), 8) + " px (height x width); "
                  f"{found.nbytes / 2**20:,.0f} MiB decoded",
                  "masks   " + _counted(("colour" if m.colour else "grey or ids") + (", JPEG" if m.lossy else "")
                                        for m in masks)]
        lines += _value_table(masks, found.code)
    if found.code:
        lines += ["", f"read as {'one class' if found.code.classes == 1 else f'{found.code.classes} classes'}: "
                  f"{found.code.words}"]
    for fatal, title in ((True, "wrong, to be mended before training"), (False, "worth a look")):
        problems = [problem for problem in found.problems if problem.fatal == fatal]
        if problems:
            lines += ["", f"{title}:"]
            of_kind = Counter(problem.kind for problem in problems)
            seen: Counter[str] = Counter()
            for problem in problems:
                seen[problem.kind] += 1
                if seen[problem.kind] <= LINES:
                    lines.append(f"  {problem.text}")
                elif seen[problem.kind] == LINES + 1:
                    lines.append(f"  ... and {of_kind[problem.kind] - LINES} more of this kind")
    if not any(problem.fatal for problem in found.problems):
        lines += ["", "nothing in the way of training"]
    return "\n".join(lines)


def print_reading(found: list[Survey], file: TextIO) -> None:
    """How the masks of some surveys are read, and the first few of what is odd about them."""
    assert found[0].code is not None
    print(f"masks: {found[0].code.words}", file=file)
    odd = [problem.text for survey in found for problem in survey.problems]
    for text in odd[:3]:
        print(f"note: {text}", file=file)
    if len(odd) > 3:
        print(f"note: {len(odd) - 3} more; minunet inspect lists them", file=file)


def _value_table(masks: list[MaskFacts], code: MaskCode | None) -> list[str]:
    """Values with their share of all pixels, the masks that hold them, and what they are read as."""
    colour = any(m.colour for m in masks) or (code is not None and code.colour)
    pixels: Counter[int] = Counter()
    holders: Counter[int] = Counter()
    for m in masks:
        for value, count in zip(m.held(colour).tolist(), m.counts.tolist()):
            pixels[value] += count
            holders[value] += 1
    total = sum(pixels.values())
    listed = sorted(k for k, _ in pixels.most_common(VALUES))
    lines = [f"{'value':>15}  {'share':>8}  {'masks':>7}  read as"]
    for value in listed:
        meaning = ""
        if code is not None:
            k = int(code.read(np.array([value]))[0])
            meaning = "ignored" if k == IGNORE else (("background", code.names[0])[k] if code.classes == 1
                                                     else f"{k} {code.names[k]}")
        lines.append(f"{shown([value], colour):>15}  {pixels[value] / total:>8.3%}  {holders[value]:>7,}  {meaning}")
    if len(pixels) > len(listed):
        lines.append(f"{'...':>15}  and {len(pixels) - len(listed)} rarer values")
    return lines


def _counted(texts: Iterable[str], limit: int = 6) -> str:
    counts = Counter(texts).most_common()
    return ", ".join(f"{count} {text}" for text, count in counts[:limit]) + (
        f" and {len(counts) - limit} other kinds" if len(counts) > limit else "")


RAMP = " .:-=+*#%@"
MARKS = "123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def grid(image: np.ndarray, ids: np.ndarray, columns: int = 78) -> str:
    """Class ids printed over a shrunken image: image (H, W, C) in 0..1, ids (H, W).

    Background shows the image's brightness from blank to @, an id above 0 its digit (then letters), what is ignored
    a question mark. A character stands for the pixel in its middle and is twice as high as wide.
    """
    h, w = ids.shape
    columns = min(columns, w)
    rows = max(1, round(h * columns / w / 2))
    y, x = ((np.arange(rows) + 0.5) * h / rows).astype(int), ((np.arange(columns) + 0.5) * w / columns).astype(int)
    grey = image[np.ix_(y, x)].mean(-1)
    low, high = float(grey.min()), float(grey.max())
    level = ((grey - low) / max(high - low, 1e-6) * (len(RAMP) - 1) + 0.5).astype(int)
    small = ids[np.ix_(y, x)]

    def mark(k: int, brightness: int) -> str:
        if k == IGNORE:
            return "?"
        return RAMP[brightness] if k == 0 else MARKS[(k - 1) % len(MARKS)]
    return "\n".join("".join(mark(int(k), int(b)) for k, b in zip(*row)) for row in zip(small, level))


def evaluation_text(evaluation: Evaluation) -> str:
    """Tables for a person: each class over all pixels, means, the confusion matrix, and the worst images."""
    names, pixels, images = evaluation.class_names, evaluation.over_pixels, evaluation.over_images
    one, counts = len(names) == 1, evaluation.counts.counts
    width = max(26, *(len(name) + 2 for name in names))
    titles = {"iou": "IoU", "dice": "Dice", "precision": "precision", "recall": "recall"}
    lines = [f"{counted(len(evaluation.images), 'image')}, {int(counts.sum()):,} pixels",
             f"{'':{width}}" + "".join(f"{title:>11}" for title in titles.values()) + f"{'share':>9}",
             "over all pixels:"]
    present = sum(value is not None for value in pixels["iou_per_class"])
    for i, name in enumerate(names):
        k = 1 if one else i
        lines.append(f"{'  ' + name:{width}}" + "".join(f"{figure(pixels[f'{t}_per_class'][i]):>11}" for t in titles)
                     + f"{counts[k].sum() / max(counts.sum(), 1):>9.2%}")
    if not one:
        title = f"  mean of {present} classes" + (f" ({len(names) - present} absent)" if present < len(names) else "")
        lines.append(f"{title:{width}}" + "".join(f"{figure(pixels[t]):>11}" for t in titles))
    with_iou = sum(image["iou"] is not None for image in evaluation.images)
    title = "mean over images:" if with_iou == len(evaluation.images) else \
        f"mean over {with_iou} of {len(evaluation.images)} images:"
    lines += [f"{title:{width}}" + "".join(f"{figure(images[t]):>11}" for t in titles),
              f"pixel accuracy: {figure(pixels['accuracy'])} over all pixels, {figure(images['accuracy'])} mean over "
              "images"]
    ids = ["background", names[0]] if one else [f"{i} {name}" for i, name in enumerate(names)]
    if len(ids) <= MATRIX_CLASSES:
        labels = [str(i) for i in range(len(ids))]
        lines += ["confusion, % of the truth's pixels (rows: truth, columns: predicted id):",
                  f"{'':{width}}" + "".join(f"{label:>7}" for label in labels)]
        for i, row in enumerate(counts):
            cells = "".join(f"{100 * n / row.sum():>7.1f}" if row.sum() else f"{'-':>7}" for n in row)
            lines.append(f"{'  ' + ids[i]:{width}}" + cells)
    graded = sorted((image for image in evaluation.images if image["iou"] is not None), key=lambda image: image["iou"])
    if len(graded) > 1:
        lines.append("worst images by IoU: " + ", ".join(f"{image['name']} {image['iou']:.3f}"
                                                         for image in graded[:WORST]))
    return "\n".join(lines)
