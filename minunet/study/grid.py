"""A matrix as cells with its numbers in them, zeros dimmed: the `Grid` that every picture of numbers is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb

from minunet.study.sheet import EMPTY, GREY, INK, LINE, PLAY, Box, Sheet, Tiles, text_width

LEVELS = 12             # shades of a colour: few, so that an animation's palette holds them all
SMALLEST = 8            # px of type that can be read
WIDTHS = 7, 6, 5        # characters of a number in a cell, without its sign: the first that there is room for


def figure_text(value: float, width: int = WIDTHS[0]) -> str:
    """A number in so many characters, its sign not counted: all its digits if they fit, else as many as that takes.

    A rounded fraction never looks like a whole number, and only one that has no shorter text is longer than the width.

    >>> [figure_text(v) for v in (29.0, -1.5, 999.6, 1234.5, 2 / 3, 0.999999, 12345678.9)]
    ['29', '-1.5', '999.6', '1234.5', '0.667', '1.000', '1.235e7']
    >>> [figure_text(v, 5) for v in (999.6, 1234.5, 12345.0, 123456.0)]
    ['999.6', '1.2e3', '12345', '1.2e5']
    """
    texts = _texts(abs(value))
    fitting = next((text for text in texts if len(text) <= width), texts[-1])
    return f"-{fitting}" if value < 0 else fitting


def _texts(size: float) -> list[str]:
    """A number that is not negative, from its exact to its shortest text: rounded to two digits at least."""
    def scientific(decimals: int) -> str:
        mantissa, exponent = f"{size:.{decimals}e}".split("e")
        return f"{mantissa}e{int(exponent)}"

    exact = [f"{size:.0f}" if size == round(size) else f"{size:.12g}"]
    exact = [text for text in exact if "e" not in text] + [s for s in map(scientific, (0, 1)) if float(s) == size]
    tenths = [f"{size:.{decimals}f}" for decimals in (3, 2, 1)]
    fixed = [next((text for text in tenths if len(text) <= 5), tenths[-1])] if size >= 0.1 else (
        [f"{size:#.{digits}g}" for digits in (3, 2)] if size >= 1e-3 else [])
    return exact + fixed + [scientific(decimals) for decimals in (3, 2, 1)]


class Font(NamedTuple):
    """How a grid's numbers are written: the size of type in px, 0 for not at all, and the width of `figure_text`."""

    size: int
    width: int = WIDTHS[0]


def number_font(numbers: np.ndarray, cell: tuple[int, int]) -> Font:
    """The widest texts, and with them the largest type, at which every number fits into a cell (height, width)."""
    if cell[0] < SMALLEST + 3 or cell[1] < SMALLEST + 1:
        return Font(0)
    values = np.unique(numbers[np.isfinite(numbers)]).tolist()
    for width in WIDTHS:
        texts = {figure_text(v, width) for v in values}
        for size in range(min(14, cell[0] * 5 // 9 + 2), SMALLEST - 1, -1):
            if max((text_width(t, size) for t in texts), default=0) <= cell[1] - 3:
                return Font(size, width)
    return Font(0)


def number_size(numbers: np.ndarray, cell: tuple[int, int]) -> int:
    """The size of type (px) of `number_font`; 0 where the numbers can't be read."""
    return number_font(numbers, cell).size


def part(total: int, cell: int, room: int, at: int = 0) -> slice:
    """The cells of an axis that are shown: all, or as many of `cell` px as fit into room px, with cell `at` among them.

    >>> part(16, 30, 600), part(512, 3, 300), part(512, 3, 300, at=200)
    (slice(0, 16, None), slice(0, 100, None), slice(150, 250, None))
    """
    count = min(total, max(1, room // cell))
    first = min(max(0, at - count // 2), total - count)
    return slice(first, first + count)


@dataclass
class Grid:
    """A matrix as cells, each with its number while they can be read, else its shade alone: darker is larger.

    Args:
        title: what it is, written above; note: a smaller second line.
        numbers: (R, C); NaN is a cell that holds nothing yet.
        cell: (height, width) in px.
        rows, columns: the part that is shown; by default all.
        zeros: (R, C) bool, structural zeros: only a dim dot. outside: bool, padding: dim and dashed.
        lit: bool, cells in play.
        blocks: for rows and for columns, how many make a block, and the colour of its bracket ("" for none).
        font: how the numbers are written; by default as they fit.
        top: the number that has the darkest shade; by default the largest.
        name: its key in `Sheet.grids`; by default the title.

    Once drawn, x and y are where its first cell lies (px), and texts holds what stands in the shown cells.
    """

    title: str
    numbers: np.ndarray
    colour: str
    cell: tuple[int, int]
    note: str = ""
    rows: slice = field(default_factory=lambda: slice(None))
    columns: slice = field(default_factory=lambda: slice(None))
    zeros: np.ndarray | None = None
    outside: np.ndarray | None = None
    lit: np.ndarray | None = None
    blocks: tuple[tuple[int, str], tuple[int, str]] | None = None
    font: Font | None = None
    top: float | None = None
    name: str = ""
    x: int = field(default=0, init=False)
    y: int = field(default=0, init=False)
    texts: np.ndarray = field(default_factory=lambda: np.empty((0, 0), object), init=False)

    def __post_init__(self) -> None:
        self._part = self.rows, self.columns = tuple(
            slice(*s.indices(n)[:2]) for s, n in zip((self.rows, self.columns), self.numbers.shape))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px of its cells."""
        return ((self.rows.stop - self.rows.start) * self.cell[0],
                (self.columns.stop - self.columns.start) * self.cell[1])

    @property
    def heading(self) -> tuple[int, int]:
        """(height, width) in px of its title, note and the brackets above."""
        width = max(text_width(self.title, 13, True), text_width(self.note, 11))
        return (18 if self.title else 0) + (15 if self.note else 0) + self._brackets[1] + 4, int(width + 1)

    @property
    def indent(self) -> int:
        """Room in px for the brackets to the left."""
        return self._brackets[0]

    @property
    def _brackets(self) -> tuple[int, int]:
        (_, left), (_, above) = self.blocks or ((0, ""), (0, ""))
        return 42 if left else 0, 18 if above else 0

    def box(self, row: int, column: int, rows: int = 1, columns: int = 1) -> Box | None:
        """Where these cells lie on the sheet, as far as they are shown."""
        (top, bottom), (left, right) = (
            (max(first, s.start) - s.start, min(first + n, s.stop) - s.start)
            for first, n, s in ((row, rows, self.rows), (column, columns, self.columns)))
        if bottom <= top or right <= left:
            return None
        height, width = self.cell
        return (self.x + left * width, self.y + top * height,
                self.x + right * width, self.y + bottom * height)

    def draw(self, sheet: Sheet, x: float, y: float) -> None:
        """Draws it with its first cell at (x, y) px and the title above that."""
        self.x, self.y = int(x), int(y)
        numbers = self.numbers[self._part]
        zeros, outside, lit = (np.zeros(numbers.shape, bool) if mask is None else mask[self._part]
                               for mask in (self.zeros, self.outside, self.lit))
        dim = zeros | outside
        font = self.font = number_font(numbers, self.cell) if self.font is None else self.font
        sheet.marks.append(Tiles(self.x, self.y, self._colours(numbers, dim, lit), self.cell, min(self.cell) >= 5,
                                 zeros & bool(font.size)))
        texts = np.full(numbers.shape, "", dtype=object)
        for (row, column), value in np.ndenumerate(numbers) if font.size else ():
            if zeros[row, column]:
                texts[row, column] = "·"
            elif np.isfinite(value):
                text = texts[row, column] = figure_text(value, font.width)
                sheet.text(self.x + (column + 0.5) * self.cell[1], self.y + (row + 0.5) * self.cell[0], text,
                           font.size, LINE if dim[row, column] and not lit[row, column] else INK, "mm")
        if min(self.cell) >= 8:
            for row, column in np.argwhere(outside):
                sheet.frame(self.box(row + self.rows.start, column + self.columns.start), LINE, 1, dashed=True)
        self.texts, sheet.grids[self.name or self.title] = texts, self
        for axis, (length, colour) in enumerate(self.blocks or ()):
            self._draw_blocks(sheet, axis, length, colour)
        baseline = self.y - 7 - self._brackets[1]
        sheet.text(self.x, baseline - (15 if self.note else 0), self.title, 13, anchor="ls", bold=True)
        sheet.text(self.x, baseline, self.note, 11, GREY, "ls")

    def _draw_blocks(self, sheet: Sheet, axis: int, length: int, colour: str) -> None:
        """Lines between the blocks of an axis, and a bracket with its name beside each."""
        shown = (self.rows, self.columns)[axis]
        size, limit = length * self.cell[axis], (self.y, self.x)[axis]
        named_until = -np.inf
        for block in range(shown.start // length, -(-shown.stop // length)):
            first, last = max(block * length, shown.start), min((block + 1) * length, shown.stop)
            begin, end = (limit + (n - shown.start) * self.cell[axis] for n in (first, last))
            if first > shown.start and size >= 6:
                edge = (self.x, begin - 1, self.x + self.size[1], begin)
                sheet.frame(edge if axis == 0 else (begin - 1, self.y, begin, self.y + self.size[0]),
                            GREY if min(self.cell) >= 8 else LINE, 0)
            if not colour:
                continue
            if size >= 4:
                line = self.x - 6, begin + 1, self.x - 3, end - 1
                sheet.frame(line if axis == 0 else (begin + 1, self.y - 6, end - 1, self.y - 3), colour, 0)
            name = f"row {block}"
            needed = 12 if axis == 0 else text_width(name, 10) + 6
            middle = (begin + end) / 2
            if middle - needed / 2 >= named_until:
                named_until = middle + needed / 2
                x, y = (self.x - 9, middle) if axis == 0 else (middle, self.y - 13)
                sheet.text(x, y, name, 10, colour, "rm" if axis == 0 else "mm")

    def _colours(self, numbers: np.ndarray, dim: np.ndarray, lit: np.ndarray) -> np.ndarray:
        """(R, C, 3) uint8."""
        finite = np.nan_to_num(np.abs(numbers))
        top = (float(finite.max()) if self.top is None else self.top) or 1.0
        strength = 0.08 + 0.52 * np.round(np.minimum(finite / top, 1) * LEVELS)[..., None] / LEVELS
        own, play = (np.array(to_rgb(colour)) for colour in (self.colour, PLAY))
        colours = 1 - strength * (1 - own)
        colours = np.where((dim | np.isnan(numbers))[..., None], np.array(to_rgb(EMPTY)), colours)
        return np.round(255 * np.where(lit[..., None], 1 - 0.45 * (1 - play), colours)).astype(np.uint8)


def beside(sheet: Sheet, x: float, y: float, items: Iterable[str | Sequence[Grid]], gap: int = 14
           ) -> tuple[float, float]:
    """Draws grids from left to right, each item a sign between them or a stack of grids, all centred on one line.

    Returns the right and the lower end (px).
    """
    items = list(items)
    stacks = [item for item in items if not isinstance(item, str)]
    heights = [sum(g.heading[0] + g.size[0] for g in stack) + 8 * (len(stack) - 1) for stack in stacks]
    tallest, first = max(heights), max(stack[0].heading[0] for stack in stacks)
    middle = y + first + (tallest - first) / 2
    for item in items:
        if isinstance(item, str):
            x = sheet.text(x, middle, item, 20, GREY, "lm")[2] + gap
            continue
        height = sum(g.heading[0] + g.size[0] for g in item) + 8 * (len(item) - 1)
        lower = middle - (height + item[0].heading[0]) / 2
        x += max(g.indent for g in item)
        for grid in item:
            grid.draw(sheet, x, lower + grid.heading[0])
            lower += grid.heading[0] + grid.size[0] + 8
        x += max(max(g.size[1], g.heading[1]) for g in item) + gap
    return x - gap, y + tallest
