"""What the frames of both animations share: the matrix with the row in play, the sum written out, the GIF file."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from minunet.geometry import Geometry, Pair
from minunet.study.captions import WIDTH, omitted
from minunet.study.explanation import Explanation
from minunet.study.grid import SMALLEST, Grid, figure_text, number_font, part
from minunet.study.pictures import blocks, dense_part
from minunet.study.sheet import GREY, IMAGE, INK, KERNEL, PLAY, WINDOWS, Box, Sheet, text_width

FRAMES = 64             # at most, with the result at the end
COLOURS = 128           # of the palette that all frames share
STEP, LAST = (250, 1100), 4000      # ms that a step stays, at least and at most, and the result
ROOM, MATRIX = 300, 250             # px that a stack of grids, and the matrix, may be high
CELL, SHARE = 3, 170    # px of the smallest cell, and of the part that is shown of a grid that is too wide with it
PRODUCTS = 27           # of a sum that is written out


def frames_of(explanation: Explanation) -> int:
    """How many frames an animation may have: half of them where windows are large, and with them the file."""
    return FRAMES if explanation.columns.shape[1] <= 256 else FRAMES // 2


def position(index: int, size: Pair) -> Pair:
    """The row and column of a pixel or window that is counted row by row."""
    return index // size[1], index % size[1]


def shown(total: int, px: int, at: int, stacked: int = 0) -> slice:
    """The part of an axis around `at`: all, but for the smallest cells; stacked: grids of a stack, if it is upright."""
    return part(total, px, (ROOM // stacked if stacked else SHARE) if px == CELL else total * px, at)


def only(size: Pair, index: int | None) -> np.ndarray:
    """bool, (height, width): True there alone, or nowhere for None."""
    found = np.zeros(size, bool)
    if index is not None:
        found.flat[index] = True
    return found


def name(what: str, index: int, count: int) -> str:
    """x, or with several channels x[0], x[1]..."""
    return what if count == 1 else f"{what} [{index}]"


def follows(what: str, count: int, other: str, others: int) -> str:
    """Which of several filters or channels is followed, and how many a number of it is summed over."""
    followed = f"Followed: {what} 0 of {count}. " if count > 1 else ""
    return followed + (f"Each of its numbers is a sum over all {others} {other}." if others > 1 else "")


def step(index: int | None, what: str, count: int, most: int, size: Pair) -> str:
    """Which step this is, and how many are left out."""
    row, column = position(index or 0, size)
    return ("The result." if index is None else f"{what.capitalize()} {index + 1:,} of {count:,}, row {row}, column "
            f"{column}.") + (f" Only the first {most:,} of {count:,} {what}s are gone through." if most < count else "")


def kernel_grid(title: str, weight: np.ndarray, numbers: np.ndarray, px: int, stacked: int) -> Grid:
    """One channel and filter of the kernel (KH, KW), in the shades and the type of the whole."""
    return Grid(title, numbers, KERNEL, (px, px), rows=shown(numbers.shape[0], px, 0, stacked),
                columns=shown(numbers.shape[1], px, 0), font=number_font(weight, (px, px)),
                top=float(abs(weight).max()))


def filling_grid(title: str, numbers: np.ndarray, colour: str, px: int, until: int | None, key: str = "") -> Grid:
    """The numbers up to and with that one, which is lit; None: all."""
    known = numbers.copy()
    row, column = position(0 if until is None else max(until, 0), (numbers.shape[0], numbers.shape[1]))
    if until is not None:
        known.flat[until + 1:] = np.nan
    return Grid(title, known, colour, (px, px), rows=shown(numbers.shape[0], px, row, 1),
                columns=shown(numbers.shape[1], px, column),
                lit=only((numbers.shape[0], numbers.shape[1]), None if until is None or until < 0 else until),
                font=number_font(numbers, (px, px)), top=float(abs(numbers).max()), name=key)


def draw_elements(sheet: Sheet, grid: Grid, first: Pair, weight: np.ndarray, geometry: Geometry) -> None:
    """The kernel's elements (KH, KW), small, in the corners of the cells that they meet, while there is room."""
    font = number_font(weight, (grid.cell[0], grid.cell[1] // 2))
    size = min(9, grid.cell[0] // 4, font.size)
    if size < SMALLEST:
        return
    for (i, j), value in np.ndenumerate(weight):
        box = grid.box(first[0] + i * geometry.dilation[0], first[1] + j * geometry.dilation[1])
        if box is not None:
            sheet.text(box[2] - 3, box[3] - 2, figure_text(value, font.width), size, KERNEL, "rs", bold=True)


def draw_line(sheet: Sheet, y: float, text: str) -> float:
    """A line under the grids, always as high as two."""
    sheet.paragraph(0, y, text, WIDTH, 13, INK)
    return y + 46


def line_text(value: float) -> str:
    """A number in a line of text: all its digits up to 11, or 6 of one that has more, such as 2/3.

    >>> [line_text(v) for v in (1064.625, 2 / 3, 0.1 + 0.2, 123456789012.0)]
    ['1064.625', '0.666667', '0.3', '123456789012']
    """
    if value == round(value):
        return str(round(value))
    text = f"{value:.11g}"
    return text if abs(float(text) - value) <= 1e-14 * abs(value) else f"{value:.6g}"


def draw_sum(sheet: Sheet, y: float, what: str, numbers: np.ndarray, weights: np.ndarray, result: float) -> float:
    """The products that make a number, written out while they are few: with ≈ where what is written is rounded."""
    def factor(text: str) -> str:
        return f"({text})" if text.startswith("-") else text

    pairs = [(line_text(a), line_text(b)) for a, b in zip(numbers[:PRODUCTS], weights[:PRODUCTS])]
    total = line_text(result)
    is_exact = sum(Fraction(a) * Fraction(b) for a, b in pairs) == Fraction(total)
    sign = "=" if is_exact else "≈"
    text = f"{what} {sign} {' + '.join(f'{factor(a)}·{factor(b)}' for a, b in pairs)} {sign} {total}"
    if len(numbers) > PRODUCTS or text_width(text, 13) > 1.9 * WIDTH:
        text = f"{what} is the sum of {len(numbers):,} products, {'' if float(total) == result else 'about '}{total}"
    if not len(numbers):
        text = f"{what} is {total}: no window meets this pixel"
    return draw_line(sheet, y, text)


class Table:
    """The matrix with its vectors at its sides: above x and right A x, or left y and below Aᵀ y."""

    def __init__(self, explanation: Explanation, is_transposed: bool):
        self.e, self.is_transposed, self.sparse = explanation, is_transposed, explanation.A.sparse()
        rows, columns = explanation.A.shape
        self.cell = max(2, min(22, MATRIX // rows)), max(2, min(34, (WIDTH - 160) // columns))

    def draw(self, sheet: Sheet, y: float, lit_rows: range, lit_column: int | None, found: np.ndarray) -> None:
        """found: the vector that is being computed, NaN where it is not known yet."""
        e, (height, width), (by_row, by_column) = self.e, self.cell, blocks(self.e)
        rows, columns = self._parts(lit_rows, lit_column)
        values, zeros = dense_part(e, rows, columns)
        in_play = np.zeros(values.shape, bool)
        in_play[lit_rows.start:lit_rows.stop] = True
        if lit_column is not None:
            in_play[:, lit_column] = True
        met = in_play & ~zeros
        whole_row, whole_column = (e.ATy, e.y) if self.is_transposed else (e.x, e.Ax)
        row, column = (found, e.y.ravel()) if self.is_transposed else (e.x.ravel(), found)
        lit_down = met.any(1)
        lit_down[lit_rows.start:lit_rows.stop] = True
        strip = max(16, height)
        x, top = (96, y + 22) if self.is_transposed else (42, y + 22 + strip + 6)
        bottom = top + (rows.stop - rows.start) * height
        matrix = Grid("", values, KERNEL, self.cell, rows=rows, columns=columns, zeros=zeros, lit=met,
                      blocks=(by_row, (by_column[0], by_column[1] if self.is_transposed else "")),
                      font=number_font(e.weight, self.cell), top=float(abs(e.weight).max()), name="A")
        across = Grid("", row[None], IMAGE, (strip, width), columns=columns, lit=met.any(0)[None],
                      blocks=((1, ""), (by_column[0], "" if self.is_transposed else by_column[1])),
                      font=number_font(whole_row, (strip, width)), top=float(abs(whole_row).max()), name="row")
        down = Grid("", column[:, None], WINDOWS, (height, 44), rows=rows, lit=lit_down[:, None],
                    blocks=((by_row[0], ""), (1, "")), font=number_font(whole_column, (height, 44)),
                    top=float(abs(whole_column).max()), name="column")
        alike = ("y", "Aᵀ y") if self.is_transposed else ("A x", "x")
        note = omitted(matrix, *sheet.grids.values(), alike=alike)
        matrix.draw(sheet, x, top)
        box = (matrix.box(lit_rows.start, 0, len(lit_rows), values.shape[1]) if lit_rows else
               None if lit_column is None else matrix.box(0, lit_column, values.shape[0]))
        if box is not None:
            around = 2 if min(self.cell) < 8 else 0     # px, so that small cells stay in sight
            sheet.frame((box[0] - around, box[1] - around, box[2] + around, box[3] + around), PLAY, 2)
        across.draw(sheet, x, bottom + 6 if self.is_transposed else y + 22)
        down.draw(sheet, 0 if self.is_transposed else x + matrix.size[1] + 8, top)
        sheet.text(x - 8, across.y + strip / 2, "Aᵀ y" if self.is_transposed else "x", 12, INK, "rm", bold=True)
        sheet.text(down.x + 22, top - 6, "y" if self.is_transposed else "A x", 12, INK, "ms", bold=True)
        sheet.text(x, max(bottom, across.y + strip) + 6, f"The matrix A, {e.A.shape[0]:,} x {e.A.shape[1]:,}: "
                   + self._caption(bool(lit_rows), lit_column is not None), 11, GREY)
        sheet.paragraph(0, max(bottom, across.y + strip) + 24, note, WIDTH, 11, GREY)

    def _caption(self, is_row: bool, is_column: bool) -> str:
        """How the matrix is used at this step, in which one of its rows or columns is in play, or none any more."""
        if not self.is_transposed:
            return f"along {'the row in play' if is_row else 'each row'}, its elements times x are summed"
        if is_row:
            return ("the row in play, times its y, is added to Aᵀ y" if self.e.filters == 1 else
                    "the rows in play, one for each filter, each times its y, are added to Aᵀ y")
        if is_column:
            return "down the column in play, its elements times y are summed"
        return "the sum of its rows, each times its y, or down each column the sum of its elements times y: Aᵀ y"

    def _parts(self, lit_rows: range, lit_column: int | None) -> tuple[slice, slice]:
        """The rows and columns that are shown: of a matrix that is too large, those around what is in play."""
        row, column = lit_rows.start if lit_rows else 0, 0
        if lit_column is not None:
            column = lit_column
            row = next(iter(self.sparse[:, [column]].tocoo().row), 0)
        elif lit_rows:
            met = self.sparse.indices[self.sparse.indptr[row]:self.sparse.indptr[row + 1]]
            column = int(met[len(met) // 2]) if len(met) else 0
        (height, width), (rows, columns) = self.cell, self.e.A.shape
        return part(rows, height, MATRIX, row), part(columns, width, WIDTH - 160, column)


def save(sheets: Iterable[Sheet], path: Any) -> None:
    """The frames as a GIF that starts again for ever, all of one size and one palette."""
    kept = []
    for sheet in sheets:
        sheet.grids.clear()         # they hold whole matrices, the marks only what is seen
        kept.append(sheet)
    boxes = np.array([sheet.box for sheet in kept])
    (left, top), (right, bottom) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    painter = _Painter(kept, (left, top, right, bottom))
    first, *others = map(painter.paint, kept)
    each = min(max(STEP[0], 24000 // len(kept)), STEP[1]) // 10 * 10       # a GIF counts hundredths of a second
    first.save(path, format="GIF", save_all=True, append_images=others, loop=0, optimize=True,
               duration=[each] * len(others) + [LAST])


class _Painter:
    """Paints sheets with one palette: the colours that three of them use most, for any other the nearest of these."""

    def __init__(self, sheets: list[Sheet], box: Box):
        self.box = box
        some = [self._packed(sheet) for sheet in (sheets[0], sheets[len(sheets) // 2], sheets[-1])]
        found, counts = np.unique(np.stack(some), return_counts=True)
        most = found[np.argsort(-counts, kind="stable")][:COLOURS]
        self.palette = self._unpacked(most)                         # (COLOURS, 3)
        self.index = np.full(1 << 24, -1, np.int16)                 # in the palette, of every colour met so far
        self.index[most] = np.arange(len(most))

    def paint(self, sheet: Sheet) -> Image.Image:
        """The sheet with the common palette."""
        pixels = self._packed(sheet)
        new = np.unique(pixels[self.index[pixels] < 0])
        self.index[new] = ((self._unpacked(new)[:, None] - self.palette) ** 2).sum(-1).argmin(1)
        image = Image.fromarray(self.index[pixels].astype(np.uint8))
        image.putpalette(self.palette.astype(np.uint8).tobytes())
        return image

    def _packed(self, sheet: Sheet) -> np.ndarray:
        """(height, width): each pixel's red, green and blue as one number."""
        red, green, blue = np.moveaxis(np.asarray(sheet.image(self.box)).astype(np.int32), -1, 0)
        return red << 16 | green << 8 | blue

    @staticmethod
    def _unpacked(colours: np.ndarray) -> np.ndarray:
        return np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1)
