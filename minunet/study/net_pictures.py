"""The U of a trained net, drawn with its real feature maps, and the marks and colours of all pictures of nets.

The colours are those of `minunet.study.sheet`: a skip connection is orange, as the maps that it leads to, a way up
blue, as the kernel that makes it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap, to_hex
from PIL import Image, ImageDraw

from minunet.inference import class_ids, colour_of, overlay
from minunet.study.captions import SCALE, WIDTH
from minunet.study.net import Seen, layers, strongest, way_up
from minunet.study.sheet import GREY, IMAGE, INK, KERNEL, PLAY, Box, Sheet, text_width

MAPS = colormaps["magma"]
SIGNED = LinearSegmentedColormap.from_list("signed", [PLAY, "white", KERNEL])
BRIGHT = 99             # percentile of a map from which on it is bright: single pixels would leave all others dark
CHANNELS = 4            # shown of each level of the U
PICTURE, GAP = (120, 120), 54           # px: the largest image and prediction, between them and the U
COLOUR = {"up": KERNEL, "skip": IMAGE, "down": GREY, "head": GREY}     # of an arrow


class Picture(NamedTuple):
    """An image (H, W, 3) uint8, drawn into a box: its pixels as squares where it grows, smooth where it shrinks.

    Without the smoothing, a checkerboard that shrinks would show as one of another size.
    """

    box: Box
    pixels: np.ndarray

    def paint(self, image: Image.Image, x: float, y: float, scale: int) -> None:
        left, top, right, bottom = self.box
        size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        height, width = (max(1, -(-n // m)) for n, m in zip(size[::-1], self.pixels.shape))
        picture = Image.fromarray(self.pixels.repeat(height, 0).repeat(width, 1))
        shrinks = height == width == 1
        image.paste(picture.resize(size, Image.Resampling.LANCZOS if shrinks else Image.Resampling.BOX),
                    (round((left + x) * scale), round((top + y) * scale)))


class Arrow(NamedTuple):
    """A straight arrow, upright or level, from a point (x, y) to another."""

    start: tuple[float, float]
    end: tuple[float, float]
    colour: str

    @property
    def box(self) -> Box:
        (x, y), (u, v) = self.start, self.end
        return min(x, u) - 5, min(y, v) - 5, max(x, u) + 5, max(y, v) + 5

    def paint(self, image: Image.Image, x: float, y: float, scale: int) -> None:
        start, end = (np.array(point) + (x, y) for point in (self.start, self.end))
        along = (end - start) / np.hypot(*(end - start))
        across, neck = along[::-1] * (1, -1), end - 9 * along
        shaft = [start + across, neck + across, neck - across, start - across]
        for corners in (shaft, [end, neck + 5 * across, neck - 5 * across]):
            ImageDraw.Draw(image).polygon([tuple(corner * scale) for corner in corners], fill=self.colour)


def coloured(values: np.ndarray) -> np.ndarray:
    """A map (H, W) in colours (H, W, 3) uint8, dark at its least number, bright from its 99th percentile on."""
    above = values - values.min()
    top = np.percentile(above, BRIGHT) or above.max() or 1
    return MAPS(above / top, bytes=True)[..., :3]


def signed(values: np.ndarray, top: float) -> np.ndarray:
    """Numbers in colours (..., 3) uint8: vermilion at -top, white at 0, blue at top."""
    return SIGNED(0.5 + 0.5 * values / (top or 1), bytes=True)[..., :3]


def shape_text(maps: np.ndarray) -> str:
    """128×128×16, height first."""
    return "×".join(map(str, maps.shape))


def fitted(shape: tuple[int, ...], width: float, height: float, whole: bool = False) -> tuple[float, float]:
    """Width and height in px of an image (H, W, ...) drawn as large as it fits, but never as a mere line.

    With whole, each pixel of an image that grows becomes a whole number of the file's.
    """
    scale = min(width / shape[1], height / shape[0])
    if whole and scale * SCALE >= 1:
        scale = scale * SCALE // 1 / SCALE
    return max(6, shape[1] * scale), max(6, shape[0] * scale)


def framed(sheet: Sheet, box: Box, colour: str) -> None:
    """A frame just around a box."""
    left, top, right, bottom = box
    sheet.frame((left - 3, top - 3, right + 3, bottom + 3), colour, 2)


def mosaic(sheet: Sheet, maps: np.ndarray, box: Box, across: int) -> None:
    """The strongest channels of (H, W, C), so many in a row, in a frame."""
    (left, top, right, bottom), gap, shown = box, 2, strongest(maps, CHANNELS)
    across = min(across, len(shown))
    down = -(-len(shown) // across)
    w, h = (right - left + gap) / across, (bottom - top + gap) / down
    for place, channel in enumerate(shown):
        x, y = left + place % across * w, top + place // across * h
        sheet.marks.append(Picture((x, y, x + w - gap, y + h - gap), coloured(maps[..., channel])))
    framed(sheet, box, IMAGE)


def label(sheet: Sheet, x: float, y: float, name: str, maps: np.ndarray, side: str) -> None:
    """A name and, below it, the size of what has it; x is the left (l), right (r) or middle (m) of both."""
    sheet.text(x, y - 1, name, 14, INK, side + "s", bold=True)
    sheet.text(x, y + 4, shape_text(maps), 12, GREY, side + "a")


# The U

def draw_u(seen: Seen) -> Sheet:
    """The U, drawn of what the net made of the image: encoder on the left, bridge below, decoder on the right.

    Each level is a tile of the channels with the largest standard deviation. The tiles of a level show its maps at one
    scale: with valid convolutions the decoder's are smaller.
    """
    sheet, names = Sheet(), list(layers(seen.checkpoint.model))[:-1]
    maps = [seen.output(name) for name in names]
    boxes = _boxes(maps)
    for name, values, box in zip(names, maps, boxes):
        mosaic(sheet, values, box, across=CHANNELS if name == "bridge" else 2)
    _levels(sheet, names, maps, boxes)
    _ends(sheet, seen, boxes[0], boxes[-1])
    _legend(sheet, seen)
    return sheet


def _levels(sheet: Sheet, names: list[str], maps: list[np.ndarray], boxes: list[Box]) -> None:
    """The arrows between the levels, and beside each its name and size."""
    depth = len(boxes) // 2
    for level in range(depth):
        encoder, decoder = boxes[level], boxes[-1 - level]
        y = (encoder[1] + encoder[3]) / 2
        _arrow(sheet, (encoder[2] + 8, y), (decoder[0] - 8, y), "skip")
        for kind, upper, lower in (("down", encoder, boxes[level + 1]), ("up", decoder, boxes[-2 - level])):
            x = (max(upper[0], lower[0]) + min(upper[2], lower[2])) / 2
            ends = (x, upper[3] + 8), (x, lower[1] - 8)
            _arrow(sheet, *(ends if kind == "down" else ends[::-1]), kind)
        for place, outside, side in ((level, encoder[0] - 12, "r"), (-1 - level, decoder[2] + 12, "l")):
            if level:
                label(sheet, outside, y, names[place], maps[place], side)
            else:
                label(sheet, (boxes[place][0] + boxes[place][2]) / 2, encoder[1] - 30, names[place], maps[place], "m")
    label(sheet, WIDTH / 2, boxes[depth][3] + 24, names[depth], maps[depth], "m")


def _ends(sheet: Sheet, seen: Seen, first: Box, last: Box) -> None:
    """The image before the first tile, the prediction behind the last, and the way to them."""
    (left, top, right, bottom), (w, h) = first, fitted(seen.image.shape, *PICTURE)
    middle, gap = (top + bottom) / 2, max(GAP, 110 - (w + right - left) / 2)        # room for the labels above
    for name, maps, picture, x in (
            ("image", seen.image, overlay(seen.image), left - gap - w),
            ("prediction", seen.answer, overlay(seen.image, class_ids(seen.answer)), last[2] + gap)):
        box = x, middle - h / 2, x + w, middle + h / 2
        sheet.marks.append(Picture(box, np.asarray(picture)))
        framed(sheet, box, INK)
        label(sheet, x + w / 2, top - 30, name, maps, "m")
    _arrow(sheet, (left - gap + 8, middle), (left - 8, middle), "head")
    _arrow(sheet, (last[2] + 8, middle), (last[2] + gap - 8, middle), "head")
    sheet.text(last[2] + gap / 2, middle - 9, "head", 12, INK, "ms", bold=True)


def _legend(sheet: Sheet, seen: Seen) -> None:
    """What arrows, colours and tiles are."""
    model, x, y = seen.checkpoint.model, 0.0, sheet.box[3] + 28
    for kind, what in (("skip", "skip connection"), ("down", f"2x2 {model.config['pool']}-pooling"),
                       ("up", way_up(model, model.up[0]))):
        _arrow(sheet, (x, y), (x + 28, y), kind)
        x = sheet.text(x + 36, y, what, 12, INK, "lm")[2] + 28
    y = classes(sheet, seen, class_ids(seen.answer), y + 22)
    height, width = seen.stages("first")["before: the normalised image"].shape[:2]
    sheet.paragraph(0, y, f"Tiles: the {CHANNELS} channels with the largest standard deviation, each dark at its least "
                    f"number and bright from its {BRIGHT}th percentile on. Sizes: height × width × channels."
                    + f" The net reads the image at {height}×{width} px." * ((height, width) != seen.image.shape[:2]),
                    WIDTH, 12, GREY)


def classes(sheet: Sheet, seen: Seen, ids: np.ndarray, y: float) -> float:
    """The colours and names of the classes of which there are pixels, if there are several; where to go on (px)."""
    names, x = seen.checkpoint.class_names, 0.0
    found = [k for k in np.unique(ids) if k > 0] if len(names) > 1 else []
    for k in found:
        width = 20 + text_width(names[k], 12) + 20
        if x and x + width > WIDTH:
            x, y = 0.0, y + 20
        red, green, blue = colour_of(k).tolist()
        sheet.frame((x, y, x + 13, y + 13), to_hex((red, green, blue)), 0)
        sheet.text(x + 20, y + 7, names[k], 12, INK, "lm")
        x += width
    return y + 24 if found else y


def _boxes(maps: list[np.ndarray]) -> list[Box]:
    """Where the levels' tiles lie, from the first down to the bridge and up again, the middle at WIDTH / 2."""
    depth = len(maps) // 2
    side = {1: 230, 2: 200, 3: 180, 4: 165}.get(depth, 150)
    w, h = fitted(maps[0].shape, 1.2 * side, side)
    scales = [0.83**level for level in range(depth + 1)]
    # the way in from level to level: the innermost skip connection keeps room for its arrow
    inner = w * scales[depth - 1] / 2 + 32
    room = WIDTH / 2 - inner - (PICTURE[0] + GAP + w / 2)
    steps = [min(room / (depth - 1), 0.45 * w * (a + b)) for a, b in zip(scales, scales[1:depth])] + [inner]
    encoder: list[Box] = []
    decoder: list[Box] = []
    top = 0.0
    for level, scale in enumerate(scales):
        away = sum(steps[level:])
        bottom = top + h * scale
        if level == depth:
            wide, high = 2 * w * scale, h * scale / 2
            encoder.append((WIDTH / 2 - wide / 2, top, WIDTH / 2 + wide / 2, top + high))
            continue
        # the decoder's maps at the scale of the encoder's
        share = np.divide(maps[-1 - level].shape[:2], maps[level].shape[:2])
        x, y, half, tall = WIDTH / 2 + away, (top + bottom) / 2, share[1] * w * scale / 2, share[0] * h * scale / 2
        encoder.append((WIDTH / 2 - away - w * scale / 2, top, WIDTH / 2 - away + w * scale / 2, bottom))
        decoder.insert(0, (x - half, y - tall, x + half, y + tall))
        top = bottom + 44
    return encoder + decoder


def _arrow(sheet: Sheet, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
    sheet.marks.append(Arrow(start, end, COLOUR[kind]))
