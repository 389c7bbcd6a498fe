"""Pictures of one layer of a trained net: its kernels, the feature maps on the way through it, what its skip adds.

Maps on the side of the windows (OH, OW) have a green frame, those on the larger side of the image (H, W) an orange one.
"""

from __future__ import annotations

import numpy as np

from minunet.inference import class_ids, overlay
from minunet.models import UNet
from minunet.models.unet import Down, Up
from minunet.nn import ConvTranspose2d, MaxUnpool2d
from minunet.study.captions import WIDTH, head
from minunet.study.evenness import inside, verdict
from minunet.study.explanation import is_even, unevenness
from minunet.study.grid import Grid, figure_text
from minunet.study.net import (
    Ablation,
    Seen,
    checkerboard,
    constant_answer,
    constant_input,
    kernels,
    layer_of,
    strongest,
    words,
)
from minunet.study.net_pictures import BRIGHT, Picture, classes, coloured, fitted, framed, shape_text, signed
from minunet.study.sheet import GREY, IMAGE, INK, WINDOWS, Sheet, Tiles, text_width

COLUMNS = 6             # channels shown of each stage of a layer
KERNELS = 16            # inputs and outputs shown of a layer's kernels
TILE, ACROSS = 33, 8    # px for a kernel and the space beside it; an image's kernels in a row, each twice as large
LEFT = KERNELS * TILE   # px: the table of kernels
INSIDE = 192            # px of a map of the overlap
GAP = 20                # px between predictions


def draw_kernels(model: UNet, name: str, seen: Seen | None = None) -> Sheet:
    """A layer's kernels; beside those of a way up, why it does or does not make a checkerboard.

    Many kernels are reduced to those of the inputs and outputs with the largest ones. `seen` chooses the constant that
    the way up answers to (`constant_input`).
    """
    sheet, module = Sheet(), layer_of(model, name)
    what, weight = kernels(module)
    kh, kw, inputs, outputs = weight.shape
    top = float(np.abs(weight).max())
    norms = np.sqrt((weight.astype(np.float64) ** 2).sum((0, 1)))           # (inputs, outputs)
    rows, columns = (np.argsort(-np.hypot.reduce(norms, axis=axis), kind="stable") for axis in (0, 1))
    of_image = name == "first" and inputs in (1, 3)
    if of_image:                # a tile for each output, with three inputs in colour
        rows, across = rows[:4 * ACROSS], min(ACROSS, outputs)
        tiles = [(*divmod(i, across), weight[..., o]) for i, o in enumerate(rows)]
        text = f"{len(rows)} of {outputs}, the largest first" + "; a colour stands for three inputs, grey is 0" * (
            inputs == 3)
    else:
        rows, columns = rows[:KERNELS], columns[:KERNELS]
        across = max(len(rows), len(columns))
        tiles = [(r, c, weight[:, :, i, o, None]) for r, o in enumerate(rows) for c, i in enumerate(columns)]
        text = (f"{len(rows)} of {outputs} outputs (rows), {len(columns)} of {inputs} inputs (columns), those with the "
                "largest kernels first")
    y = head(sheet, f"{name}: kernels", f"{words(model, name)}. Shown: {what}, {kh}x{kw}; {text}.")
    in_colour = of_image and inputs == 3
    place = min(2 * TILE, LEFT // across)
    cell = (place - 5) // kh, (place - 5) // kw
    for r, c, kernel in tiles:
        pixels = (np.round(255 * (0.5 + 0.5 * kernel / (top or 1))).astype(np.uint8) if in_colour
                  else signed(kernel[..., 0], top))
        sheet.marks.append(Tiles(c * place, int(y) + r * place, pixels, cell, False))
    if not in_colour:
        scale(sheet, 0, sheet.box[3] + 14, -top, top)
    if isinstance(module, Up):
        _checkerboard(sheet, module, seen, LEFT + 40, y)
    return sheet


def _checkerboard(sheet: Sheet, up: Up, seen: Seen | None, x: float, y: float) -> None:
    """The overlap of a way up's windows, and its answer to a constant image."""
    width = WIDTH - x
    if isinstance(up.up, ConvTranspose2d):
        counts = inside(up.up.geometry).astype(float)
        px = max(2, min(24, INSIDE // max(counts.shape)))
        grid = Grid("overlap far from the border", counts, IMAGE, (px, px), "how many windows meet each pixel")
        grid.draw(sheet, x, y + 36)
        y = sheet.paragraph(x, y + 36 + grid.size[0] + 8, f"{verdict(up.up.geometry)} Unevenness "
                            f"{unevenness(up.up.geometry):.3f}.", width)
    else:
        sheet.text(x, y, "no overlap", 13, bold=True)
        y = sheet.paragraph(x, y + 22, "Each number goes to one pixel, where its maximum came from; the others are 0."
                            if isinstance(up.up, MaxUnpool2d) else "Each pixel is interpolated with the same fixed "
                            "weights; nothing is added up.", width)
    answer = constant_answer(up, constant_input(up, seen))
    channel = strongest(answer, 1)[0]
    corner = answer[:4, :4, channel].astype(float)
    sheet.text(x, y + 22, "answer to a constant image", 13, bold=True)
    y = sheet.paragraph(x, y + 41, f"every input {'1' if seen is None else 'at its mean over the image'}; output "
                        f"{channel}, which varies most", width, 11, GREY)
    tiles = Tiles(int(x), int(y) + 4, signed(corner, 1.7 * float(np.abs(corner).max())), (36, 58), True)
    sheet.marks.append(tiles)
    for (row, column), value in np.ndenumerate(corner):
        sheet.text(tiles.left + 58 * column + 29, tiles.top + 36 * row + 18, figure_text(value), 12, INK, "mm")
    score = checkerboard(answer)
    sheet.paragraph(x, tiles.box[3] + 8, f"Checkerboard {score:.3f}: the standard deviation over pixels by the mean, "
                    f"over all outputs together; 0 is flat. {cause(up, score)}".rstrip(), width)


def cause(up: Up, score: float) -> str:
    """Where the pattern in a way up's answer to a constant image comes from: the overlap, or the kernels."""
    if not isinstance(up.up, ConvTranspose2d) or round(score, 3) == 0:
        return ""
    if all(is_even(up.up.geometry)):
        return "The overlap is even, so it comes from the kernels' elements, which differ."
    return "It comes from the uneven overlap and from the kernels' elements."


def scale(sheet: Sheet, x: float, y: float, least: float, top: float) -> None:
    """The colours of `signed` with their numbers."""
    sheet.marks.append(Picture((x, y, x + 160, y + 12), signed(np.linspace(least, top, 120)[None], top)))
    for value, anchor in {least: "la", 0: "ma" if least else "la", top: "ra"}.items():
        sheet.text(x + 160 * (value - least) / ((top - least) or 1), y + 17, figure_text(value), 11, GREY, anchor)


def draw_maps(seen: Seen, name: str) -> Sheet:
    """The feature maps on the way through a layer, a row for each stage, the strongest channels first."""
    sheet, model = Sheet(), seen.checkpoint.model
    module, stages = layer_of(model, name), seen.stages(name)
    y = head(sheet, f"{name}: feature maps", f"{words(model, name)}. The {COLUMNS} channels with the largest standard "
             f"deviation, each dark at its least number and bright from its {BRIGHT}th percentile on.")
    side = (WIDTH - (COLUMNS - 1) * 10) / COLUMNS
    for row, (what, maps) in enumerate(stages.items()):
        small = row == 0 if isinstance(module, Up) else row > 0
        frame = (WINDOWS if small else IMAGE) if isinstance(module, (Up, Down)) else INK
        sheet.text(0, y + 14, what, 13, INK, "ls", bold=True)
        sheet.text(text_width(what, 13, True) + 12, y + 14, shape_text(maps), 12, GREY, "ls")
        w, h = fitted(maps.shape, side, side, whole=True)
        for column, channel in enumerate(strongest(maps, COLUMNS)):
            left = column * (side + 10)
            box = left, y + 26, left + w, y + 26 + h
            sheet.marks.append(Picture(box, coloured(maps[..., channel])))
            framed(sheet, box, frame)
        y += 26 + h + 18
    return sheet


def draw_skip(seen: Seen, name: str, ablations: dict[str, Ablation]) -> Sheet:
    """What a skip connection adds: the prediction with it, and with something else in its place, by what that is."""
    sheet, several = Sheet(), seen.answer.shape[2] > 1
    differences = {what: seen.answer - ablation.answer for what, ablation in ablations.items()}
    added = {what: np.abs(d).sum(2) / 2 if several else d[..., 0] for what, d in differences.items()}
    top = max(float(np.abs(d).max()) for d in added.values())
    y = head(sheet, f"{name}: what its skip connection adds",
             "The net's prediction, and the same net with something else in place of this one skip connection.") + 24
    side = (WIDTH - GAP * len(ablations)) / (1 + len(ablations))
    size = fitted(seen.image.shape, side, side)
    below = y + size[1] + 54
    _prediction(sheet, seen, seen.answer, "with the skip connection", (0, y), size)
    for column, (what, found) in enumerate(ablations.items(), 1):
        x = column * (side + GAP)
        _prediction(sheet, seen, found.answer, f"{what} in its place", (x, y), size)
        sheet.text(x, below - 32, f"{found.classes:.1%} of the pixels change class", anchor="ls")
        sheet.text(x, below - 16, f"the answer changes by {found.change:.4f} on average", 12, GREY, "ls")
        box = x, below, x + size[0], below + size[1]
        sheet.marks.append(Picture(box, signed(added[what], top)))
        framed(sheet, box, GREY)
    sheet.text(0, below + 12, "what it adds", 13, anchor="ls", bold=True)
    end = sheet.paragraph(0, below + 22, "Half the sum over the classes of the absolute change: what moves from "
                          "class to class." if several else "With it minus without it: blue "
                          "where the skip connection raises the answer, vermilion where it lowers it.", side - 10, 12,
                          GREY)
    scale(sheet, 0, end + 8, 0 if several else -top, top)
    answers = [seen.answer, *(ablation.answer for ablation in ablations.values())]
    classes(sheet, seen, np.stack([class_ids(answer) for answer in answers]), sheet.box[3] + 14)
    return sheet


def _prediction(sheet: Sheet, seen: Seen, answer: np.ndarray, title: str, place: tuple[float, float],
                size: tuple[float, float]) -> None:
    """The image tinted with an answer (H, W, K), under a title."""
    (x, y), (w, h) = place, size
    sheet.text(x, y - 10, title, 13, anchor="ls", bold=True)
    sheet.marks.append(Picture((x, y, x + w, y + h), np.asarray(overlay(seen.image, class_ids(answer)))))
    framed(sheet, (x, y, x + w, y + h), INK)
