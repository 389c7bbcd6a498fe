"""Matrices, columns and images as text: numbers in columns of equal width, beside each other, cut to the terminal.

A block is a heading with lines below it. What does not fit is marked with … and named, so that a page can say where
more of it can be seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import NamedTuple

import numpy as np

ROWS, SOME = 36, 12     # lines of numbers: up to so many a block shows all of them, else some
PROSE = 100             # characters of a line of words that is easily read
DOT, MORE = "·", "…"    # a structural zero, and what was cut


class Block(NamedTuple):
    """Lines of text, the first a heading, and in words what was left out of them ("" for nothing)."""

    lines: list[str]
    cut: str = ""

    @property
    def width(self) -> int:
        """Characters of the longest line."""
        return max(map(len, self.lines))


def number(value: float) -> str:
    """Whole numbers in full, others to 4 significant digits, or one behind the point: a fraction never looks whole.

    A terminal has the room that a picture's cell (`study.grid.figure_text`) has not, and who adds up a row by hand
    wants all digits.

    >>> [number(v) for v in (29.0, 0.25, 2 / 3, 1234567.0, 1234.5, 999.96, 29.0004, -1e-9, -0.0)]
    ['29', '0.25', '0.6667', '1234567', '1234.5', '1000.0', '29.00', '-1e-09', '0']
    """
    if value.is_integer() and abs(value) < 1e12:
        return f"{value:.0f}".replace("-0", "0")
    if 999.95 <= abs(value) < 1e12:
        return f"{value:.1f}"
    text = f"{value:.4g}"
    return f"{value:#.4g}" if text.lstrip("-").isdigit() else text


def in_full(value: float) -> str:
    """A number in a line of words: with all the digits that a sum of float64 keeps.

    >>> [in_full(v) for v in (29.0, 4.25 * 250.5, 0.1 + 0.2, 1 / 3)]
    ['29', '1064.625', '0.3', '0.333333333333']
    """
    return number(value) if value.is_integer() else f"{value:.12g}"


def matrix(heading: str, numbers: np.ndarray, width: int, stored: np.ndarray | None = None, group: int = 0,
           names: Sequence[str] = ()) -> Block:
    """A block with numbers (rows, columns), at most `width` characters wide; where not stored (bool), only a dot.

    A group makes it a matrix, in brackets and with a | after so many columns; without one it is an image. names stand
    before the rows.

    >>> print("\\n".join(matrix("A", np.eye(2), 80, np.eye(2) > 0, group=1).lines))
    A
    [1 | ·]
    [· | 1]
    """
    rows, columns = numbers.shape
    above = rows if rows <= ROWS else SOME
    few = numbers[:above, :width].astype(float)         # no more fit in any case
    # what rounding has left of a difference of larger numbers is nothing to be looked at
    few = np.where(np.abs(few) < 1e-14 * np.abs(numbers).max(), 0, few)
    cells = [[number(value) for value in row] for row in few.tolist()]
    if stored is not None:
        cells = [[cell if here else DOT for cell, here in zip(line, row)] for line, row in zip(cells, stored)]
    cell = max(len(text) for line in cells for text in line)
    before = max(map(len, names), default=-2) + 2
    bars = [" |" * (group > 0 and 0 < i and i % group == 0) for i in range(len(few[0]))]
    # the width up to and with each column
    ends = np.cumsum([len(bar) + 1 + cell for bar in bars]) + before - 1 + 2 * (group > 0)
    shown = columns
    if columns > len(ends) or ends[-1] > width:
        shown = max(1, int((ends + 1 + len(MORE) <= width).sum()))
    lines = []
    for name, line in zip(names or [""] * above, cells):
        inside = "".join(f"{bar} {text:>{cell}}" for bar, text in zip(bars[:shown], line))[1:]
        inside += f" {MORE}" * (shown < columns)
        lines.append(f"{name:<{before}}" + (f"[{inside}]" if group else inside))
    if above < rows:
        lines.append(" " * (before + (group > 0)) + f"{MORE:>{cell}}")
    cut = " and ".join(filter(None, (_span("row", above, rows), _span("column", shown, columns))))
    title = heading if len(heading) <= width else heading[:width - len(MORE)] + MORE
    return Block([title, *lines], f"{cut} of {heading.lstrip('= ')}" if cut else "")


def _span(what: str, first: int, end: int) -> str:
    """Row 4, rows 4 to 9, or nothing."""
    return "" if first == end else f"{what} {first}" if first == end - 1 else f"{what}s {first} to {end - 1}"


def figure(blocks: Sequence[Block], width: int, picture: str = "", more: str = "") -> str:
    """Blocks beside each other, and what was left out of them (or beside them: more), of which a picture shows more."""
    left_out = [*([more] if more else []), *(block.cut for block in blocks if block.cut)]
    lines = _beside(blocks, width)
    if left_out:
        shown = f"; {picture} shows more (option --out)" if picture else ""
        lines.append(prose(f"Left out: {', '.join(left_out)}{shown}.", width))
    return "\n".join(lines)


def _beside(blocks: Iterable[Block], width: int, gap: int = 3) -> list[str]:
    """The lines of blocks beside each other, in as many storeys as the width makes necessary."""
    storeys: list[list[Block]] = [[]]
    used = -gap
    for block in blocks:
        last = storeys[-1][-1] if storeys[-1] else Block([""])
        wider = used + max(0, block.width - last.width)
        if used + gap + block.width <= width or not storeys[-1]:
            storeys[-1].append(block)
            used += gap + block.width
        elif len(last.lines + block.lines) < max(len(b.lines) for b in storeys[-1]) and wider <= width:
            storeys[-1][-1] = Block([*last.lines, "", *block.lines])        # there is room below the last
            used = wider
        else:
            storeys.append([block])
            used = block.width
    lines: list[str] = []
    for storey in storeys:
        lines += [""] * bool(lines)
        for i in range(max(len(block.lines) for block in storey)):
            lines.append((" " * gap).join(f"{block.lines[i] if i < len(block.lines) else '':<{block.width}}"
                                          for block in storey).rstrip())
    return lines


def prose(text: str, width: int) -> str:
    """Words in lines that are no longer than the width, nor than is easily read."""
    return fill(text, min(width, PROSE), break_on_hyphens=False)


def title(text: str) -> str:
    """The heading of a section."""
    return f"{text}\n{'=' * len(text)}"


def dimmed(text: str) -> str:
    """The same with its structural zeros dimmed, for a terminal."""
    return re.sub(rf"{DOT}(?: +{DOT})*", "\x1b[2m\\g<0>\x1b[22m", text)
