"""What stands above the pictures of a convolution: its settings in a line, and which part of it is shown."""

from __future__ import annotations

from minunet.geometry import pair_text, size_text
from minunet.study.explanation import Explanation
from minunet.study.grid import Grid
from minunet.study.sheet import GREY, Sheet

WIDTH = 880             # px of a sheet between its margins
SCALE = 2               # px of a picture's file for one of the sheet: sharp also on a fine screen


def settings(explanation: Explanation, transposed: bool = False) -> str:
    """Kernel, stride, padding, dilation and sizes in a line, seen from the convolution or from its transpose."""
    g = explanation.geometry

    def count(n: int, what: str) -> str:
        return f" of {n} {what}s" if n > 1 else ""

    image = f"image {size_text(explanation.size)}" + count(explanation.channels, "channel")
    windows = f"windows {size_text(explanation.out_size)}" + count(explanation.filters, "filter")
    return (f"kernel {size_text(g.kernel)}, stride {pair_text(g.stride)}, padding {pair_text(g.padding)}, dilation "
            f"{pair_text(g.dilation)}, output padding {pair_text(explanation.output_padding)}: "
            + (f"{windows} → {image}" if transposed else f"{image} → {windows}"))


def head(sheet: Sheet, title: str, *lines: str) -> float:
    """The title and the lines under it; returns where the rest begins (px)."""
    sheet.text(0, 0, title, 17, bold=True)
    y = 26.0
    for line in lines:
        y = sheet.paragraph(0, y, line, WIDTH, 12, GREY)
    return y + 8


def omitted(*grids: Grid, alike: tuple[str, str] = ("", "")) -> str:
    """A sentence on what lies outside the shown parts, "" if nothing does.

    alike: what is cut just as the rows and as the columns of the first grid.
    """
    found = [f"{what} {shown.start} to {shown.stop - 1} of {total:,} of {grid.title or grid.name}"
             + (f" ({other} alike)" if grid is grids[0] and other else "")
             for grid in grids
             for shown, total, what, other in zip((grid.rows, grid.columns), grid.numbers.shape, ("rows", "columns"),
                                                  alike)
             if shown.stop - shown.start < total]
    return f"Only a part is shown: {'; '.join(found)}." if found else ""
