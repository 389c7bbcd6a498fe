"""A page to draw on: it keeps what is drawn, and is painted at the end, with Pillow, just as large as that needs.

So nothing is ever cut off. Wherever convolution is shown a colour stands for a space, whichever way the numbers go: the
image's side (H, W) is orange, the windows' side (OH, OW) green, kernel and matrix blue, what is in play at the moment
vermilion. All are of Okabe and Ito's palette, which colour-blind eyes tell apart.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

IMAGE, WINDOWS, KERNEL, PLAY = "#e69f00", "#009e73", "#0072b2", "#d55e00"
INK, GREY, LINE, EMPTY = "#222222", "#666666", "#a0a0a0", "#f4f4f4"
MARGIN = 14             # px around a sheet
Box = tuple[float, float, float, float]         # left, top, right, bottom, in px


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Matplotlib brings this font along, so that every machine draws the same; it has Aᵀ, · and ∗
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(1 << 14)
def text_box(text: str, size: int, bold: bool = False, anchor: str = "la") -> Box:
    """Where a text at (0, 0) lies, in px, at scale 1 and 2 (where it is not just twice as wide); anchor as Pillow's."""
    boxes = np.array([np.array(_font(size * scale, bold).getbbox(text, anchor=anchor)) / scale for scale in (1, 2)])
    (left, top), (right, bottom) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    return float(left), float(top), float(right), float(bottom)


def text_width(text: str, size: int, bold: bool = False) -> float:
    """Its width in px."""
    return text_box(text, size, bold)[2]


class Mark(Protocol):
    """Something on a sheet: it knows where it lies, and paints itself, moved by (x, y) and then scaled."""

    @property
    def box(self) -> Box: ...

    def paint(self, image: Image.Image, x: float, y: float, scale: int) -> None: ...


class Text(NamedTuple):
    """A line of text; anchor as in Pillow."""

    x: float
    y: float
    text: str
    size: int
    colour: str
    anchor: str
    bold: bool

    @property
    def box(self) -> Box:
        left, top, right, bottom = text_box(self.text, self.size, self.bold, self.anchor)
        return self.x + left, self.y + top, self.x + right, self.y + bottom

    def paint(self, image: Image.Image, x: float, y: float, scale: int) -> None:
        ImageDraw.Draw(image).text(((self.x + x) * scale, (self.y + y) * scale), self.text, fill=self.colour,
                                   font=_font(self.size * scale, self.bold), anchor=self.anchor)


class Frame(NamedTuple):
    """A rectangle's outline (dashed if so), a line where two sides meet, or a filled rectangle (thickness 0)."""

    box: Box
    colour: str
    thickness: int
    dashed: bool = False

    def paint(self, image: Image.Image, x: float, y: float, scale: int) -> None:
        left, top, right, bottom = (round(v + move) * scale for v, move in zip(self.box, (x, y, x, y)))
        draw, thick = ImageDraw.Draw(image), self.thickness * scale
        if right <= left or bottom <= top:
            return
        if not thick:
            draw.rectangle((left, top, right - 1, bottom - 1), fill=self.colour)
            return
        step = 4 * scale if self.dashed else max(right - left, bottom - top, 1)
        for a in range(left, right, 2 * step):
            for edge in {top, bottom - thick}:
                draw.rectangle((a, edge, min(a + step, right) - 1, edge + thick - 1), fill=self.colour)
        for a in range(top, bottom, 2 * step):
            for edge in {left, right - thick}:
                draw.rectangle((edge, a, edge + thick - 1, min(a + step, bottom) - 1), fill=self.colour)


class Tiles(NamedTuple):
    """Coloured cells: colours (R, C, 3) uint8, cell (height, width) in px, lines between, dots in some (R, C) bool."""

    left: int
    top: int
    colours: np.ndarray
    cell: tuple[int, int]
    lines: bool
    dots: np.ndarray | None = None

    @property
    def box(self) -> Box:
        rows, columns = self.colours.shape[:2]
        return self.left, self.top, self.left + columns * self.cell[1], self.top + rows * self.cell[0]

    def paint(self, image: Image.Image, x: float, y: float, scale: int) -> None:
        height, width = (n * scale for n in self.cell)
        pixels = self.colours.repeat(height, 0).repeat(width, 1)
        if self.lines:
            for i in range(scale):
                pixels[i::height], pixels[:, i::width] = 255, 255
        if self.dots is not None and self.dots.any():
            cells = pixels.reshape(len(self.dots), height, -1, width, 3).transpose(0, 2, 1, 3, 4)   # a view
            middle = tuple(slice(n // 2 - scale + scale // 2, n // 2 + scale - scale // 2) for n in (height, width))
            centres = cells[:, :, middle[0], middle[1]]
            centres[self.dots] = [round(255 * v) for v in to_rgb(LINE)]
        image.paste(Image.fromarray(pixels), (round(self.left + x) * scale, round(self.top + y) * scale))


class Sheet:
    """A page in px from its top left corner, with its grids by their names."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.grids: dict[str, Any] = {}          # `Grid`s

    def text(self, x: float, y: float, text: str, size: int = 12, colour: str = INK, anchor: str = "la",
             bold: bool = False) -> Box:
        """One line of text, and where it came to lie."""
        mark = Text(x, y, text, size, colour, anchor, bold)
        if text:
            self.marks.append(mark)
        return mark.box

    def paragraph(self, x: float, y: float, text: str, width: float, size: int = 12, colour: str = INK) -> float:
        """A text broken into lines of at most this width (px); returns where the next one may begin."""
        line = ""
        for word in [*text.split(" "), ""]:
            longer = f"{line} {word}".strip()
            if line and (not word or text_width(longer, size) > width):
                self.text(x, y, line, size, colour)
                y, longer = y + size * 1.45, word
            line = longer
        return y

    def frame(self, box: Box | None, colour: str, thickness: int = 3, dashed: bool = False) -> None:
        """An outline, or with thickness 0 a filled rectangle; nothing for None."""
        if box is not None:
            self.marks.append(Frame(box, colour, thickness, dashed))

    @property
    def box(self) -> Box:
        """Everything on the sheet lies in it."""
        boxes = np.array([mark.box for mark in self.marks])
        (left, top), (right, bottom) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        return float(left), float(top), float(right), float(bottom)

    def image(self, box: Box | None = None, scale: int = 1) -> Image.Image:
        """The painted sheet with a margin, or this part of it, at `scale` px for one."""
        left, top, right, bottom = self.box if box is None else box
        size = (int(np.ceil(right - left)) + 2 * MARGIN) * scale, (int(np.ceil(bottom - top)) + 2 * MARGIN) * scale
        image = Image.new("RGB", size, "white")
        for mark in self.marks:
            mark.paint(image, MARGIN - left, MARGIN - top, scale)
        return image
