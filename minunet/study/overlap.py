"""How many windows meet each pixel, and what a kernel makes of it, as a picture: see `evenness` for the why."""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet.geometry import Geometry, size_text
from minunet.study.captions import SCALE, WIDTH, head, omitted, settings
from minunet.study.evenness import answer, answer_words, comparison, inside, profile, remainders, verdict
from minunet.study.explanation import Explanation, is_even
from minunet.study.grid import Grid, figure_text, number_size, part
from minunet.study.sheet import GREY, IMAGE, INK, KERNEL, WINDOWS, Sheet

MAP, BARS = 380, 60     # px of the map, and of the longest bar beside it
INSIDE, STACKS = 160, (140, 170)        # px of a map far from the border, and of the elements' stacks
PATTERN = INSIDE // 2                   # px of an image: the largest stride whose pattern is drawn
SEEN, CHANNELS = 4, 3   # px of an answer that are seen at least, and channels of it


def overlap(explanation: Explanation, path: Any, transposed: bool = False) -> None:
    """A picture (PNG) of how many windows meet each pixel, why that is even or not, and what this kernel makes of it.

    transposed: whether its caption is seen from the transposed convolution.
    """
    overlap_sheet(explanation, transposed).image(scale=SCALE).save(path)


def overlap_sheet(explanation: Explanation, transposed: bool = False) -> Sheet:
    """The sheet of `overlap`: the map of this image, and far from the border that of this and of another kernel."""
    e, g = explanation, explanation.geometry
    px = max(2, min(34, MAP // max(e.size)))
    rows, columns = (part(n, px, MAP) for n in e.size)
    is_drawn = max(g.stride) <= PATTERN
    cases = {"this": g, "other": comparison(g)} if is_drawn else {}
    maps = {name: inside(geometry) for name, geometry in cases.items()}
    top = float(max(e.overlap.max(), *(numbers.max() for numbers in maps.values()), 1))     # one shade for one count
    counts = Grid("overlap", e.overlap.astype(float), IMAGE, (px, px), f"image {size_text(e.size)}", rows, columns,
                  top=top)
    sheet = Sheet()
    undrawn = f"The pattern far from the border is {size_text(g.stride)} px large and not drawn."
    y = head(sheet, "How many windows meet each pixel: Aᵀ 1 for a kernel of ones", settings(e, transposed),
             verdict(g), " ".join(filter(None, (omitted(counts), undrawn * (not is_drawn)))))
    x, _ = _draw_profiled(sheet, e, counts, y)
    for name, geometry in cases.items():
        x = _draw_inside(sheet, name, geometry, maps[name], top, x, y)
    _draw_answer(sheet, e, sheet.box[3] + 34, is_drawn)
    return sheet


def _draw_profiled(sheet: Sheet, e: Explanation, grid: Grid, y: float) -> tuple[float, float]:
    """The map, a bar for each row at its right and for each column below it; its right and lower end."""
    grid.draw(sheet, 0, y + grid.heading[0])
    for axis, shown in enumerate((grid.rows, grid.columns)):
        counts = profile(e.geometry, axis, e.size[axis])
        cell = grid.cell[axis]
        font, near = number_size(counts[shown], (cell, cell)), (grid.x, grid.y)[axis] + grid.size[1 - axis] + 6
        for i in range(shown.start, shown.stop):
            begin = (grid.y, grid.x)[axis] + (i - shown.start) * cell
            end, far = begin + cell - (cell >= 5), near + round(BARS * counts[i] / max(1, counts.max()))
            sheet.frame((near, begin, far, end) if axis == 0 else (begin, near, end, far), WINDOWS, 0)
            if font:
                at = (far + 4, (begin + end) / 2) if axis == 0 else ((begin + end) / 2, far + 4)
                sheet.text(*at, figure_text(counts[i]), font, INK, "lm" if axis == 0 else "ma")
    under = grid.y + grid.size[0] + BARS + 26
    sheet.text(0, under, "bars: rows and columns of windows that meet each row and", 11, GREY)
    bottom = sheet.text(0, under + 14, "column of pixels; a pixel's count is their product", 11, GREY)[3]
    return grid.x + max(grid.size[1] + BARS + 36, 372), bottom


def _draw_inside(sheet: Sheet, name: str, geometry: Geometry, counts: np.ndarray, top: float, x: float, y: float
                 ) -> float:
    """The overlap far from the border and, under it, the kernel's elements by remainder; returns the right end."""
    g, px = geometry, max(2, min(20, INSIDE // max(counts.shape)))
    rows, columns = (part(n, px, INSIDE) for n in counts.shape)
    grid = Grid(f"kernel {size_text(g.kernel)}, stride {size_text(g.stride)}", counts, IMAGE, (px, px),
                ("" if g.dilation == (1, 1) else f"dilation {size_text(g.dilation)}, ") + "far from the border", rows,
                columns, top=top, name=f"inside {name}")
    grid.draw(sheet, x, y + grid.heading[0])
    bottom, right = float(grid.y + grid.size[0]), x + max(grid.heading[1], grid.size[1])
    is_same = len({(g.kernel[a], g.stride[a], g.dilation[a]) for a in (0, 1)}) == 1
    for axis, title in ((0, "height and width"),) if is_same else ((0, "height"), (1, "width")):
        stacks = remainders(g, axis)
        cell = max(2, min(24, STACKS[0] // stacks.shape[0])), max(3, min(24, STACKS[1] // stacks.shape[1]))
        bins = Grid(f"{title}: {'even' if is_even(g)[axis] else 'uneven'}", stacks, KERNEL, cell,
                    "elements that meet each px of a stride", part(stacks.shape[0], cell[0], STACKS[0]),
                    part(stacks.shape[1], cell[1], STACKS[1]), top=4.0 * max(g.kernel),
                    name=f"remainders {name} {axis}")
        bins.draw(sheet, x, bottom + 18 + bins.heading[0])
        bottom = bins.y + bins.size[0]
        font = number_size(np.arange(stacks.shape[1]), (20, cell[1]))
        for remainder in range(bins.columns.stop if font else 0):
            bottom = sheet.text(x + (remainder + 0.5) * cell[1], bins.y + bins.size[0] + 4, str(remainder), font, GREY,
                                "ma")[3]
        right = max(right, x + bins.size[1], x + bins.heading[1])
    return right + 30


def _draw_answer(sheet: Sheet, e: Explanation, y: float, is_drawn: bool) -> None:
    """Aᵀ y for y of ones far from the border, for the kernel that there is, and in words."""
    x = 0.0
    if is_drawn:
        seen = np.tile(answer(e), [*(-(-SEEN // s) for s in e.geometry.stride), 1])
        px = max(2, min(40, INSIDE // max(seen.shape[:2])))
        for channel in range(min(e.channels, CHANNELS)):
            grid = Grid("Aᵀ 1, this kernel" if e.channels == 1 else f"Aᵀ 1, channel {channel}", seen[:, :, channel],
                        IMAGE, (px, px), "far from the border", part(seen.shape[0], px, INSIDE),
                        part(seen.shape[1], px, INSIDE), top=float(abs(seen).max()) or 1.0)
            grid.draw(sheet, x, y + grid.heading[0])
            x += max(grid.size[1], grid.heading[1]) + 30
    sheet.text(x, y + 15, "What the kernel makes of it", 13, anchor="ls", bold=True)
    y = sheet.paragraph(x, y + 22, answer_words(e), min(440, WIDTH - x), 12, GREY)
    if is_drawn and e.channels > CHANNELS:
        sheet.paragraph(x, y + 6, f"Only channels 0 to {CHANNELS - 1} of {e.channels} are shown.", WIDTH - x, 12, GREY)
