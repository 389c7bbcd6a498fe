"""Two animations: a convolution gathers many pixels into one number, its transpose stamps one number onto many pixels.

Under both lies the same matrix A. Along a row it is the convolution: the row's products with x are summed. The other
way round, each row times its number of y, all rows added up, it is the transposed convolution. With several channels,
one filter of the convolution and one channel of the transpose are followed; each number is a sum over all it meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from minunet.convolution import ConvMatrix
from minunet.geometry import Geometry
from minunet.study.captions import WIDTH, head, settings
from minunet.study.explanation import Explanation
from minunet.study.frames import (
    CELL,
    ROOM,
    Table,
    draw_elements,
    draw_line,
    draw_sum,
    filling_grid,
    follows,
    frames_of,
    kernel_grid,
    line_text,
    name,
    only,
    position,
    save,
    shown,
    step,
)
from minunet.study.grid import Grid, beside, number_font, number_size
from minunet.study.pictures import CHANNELS_SHOWN, padded, under
from minunet.study.sheet import IMAGE, KERNEL, PLAY, WINDOWS, Sheet, text_width

# under the title where this is the other one of the two
WAY_BACK = "The gradient of the {} ({}) with respect to what it reads is computed like this."


def convolution(explanation: Explanation, path: Any, transposed: bool = False) -> None:
    """An animation (GIF): the window slides over the image, and its products, a row of A, are summed."""
    save(convolution_sheets(explanation, transposed), path)


def convolution_sheets(explanation: Explanation, transposed: bool = False) -> Iterator[Sheet]:
    """The frames of `convolution`: one for each window that is shown, and the result."""
    e, g = explanation, explanation.geometry
    count = e.out_size[0] * e.out_size[1]
    channels = range(min(e.channels, CHANNELS_SHOWN))
    images = [padded(e, c) for c in channels]
    height, width = images[0][0].shape
    px = max(CELL, min(40, (WIDTH - 190) // (width + g.kernel[1] + e.out_size[1]),
                       ROOM // (len(channels) * max(height, g.kernel[0]))))
    table = Table(e, is_transposed=False)
    steps = min(count, frames_of(e) - 1)
    for window in [*range(steps), None]:
        row, column = position(count - 1 if window is None else window, e.out_size)
        first = row * g.stride[0], column * g.stride[1]
        sheet = Sheet()
        y = head(sheet, "Convolution: many pixels become one number", settings(e),
                 WAY_BACK.format("transposed convolution", "windows → image") if transposed else "",
                 follows("filter", e.filters, "channels", e.channels),
                 step(window, "window", count, steps, e.out_size))
        stack = [Grid(name("x", c, e.channels), numbers, IMAGE, (px, px), outside=outside,
                      rows=shown(height, px, first[0] + g.extent[0] // 2, len(channels)),
                      columns=shown(width, px, first[1] + g.extent[1] // 2),
                      lit=None if window is None else under(e, window), font=number_font(e.x, (px, px)),
                      top=float(abs(e.x).max()))
                 for c, (numbers, outside) in zip(channels, images)]
        kernels = [kernel_grid(name("kernel", c, e.channels), e.weight, e.weight[..., c, 0], px, len(channels))
                   for c in channels]
        result = filling_grid(name("A x", 0, e.filters), e.Ax[..., 0], WINDOWS, px, window)
        y = beside(sheet, 0, y, [stack, "∗", kernels, "=", [result]], gap=16)[1] + 16
        if window is not None:
            for c, grid in zip(channels, stack):
                sheet.frame(grid.box(*first, *g.extent), PLAY)
                draw_elements(sheet, grid, first, e.weight[..., c, 0], g)
            sheet.frame(result.box(row, column), PLAY)
        y = draw_line(sheet, y, "All windows are done: A x.") if window is None else draw_sum(
            sheet, y, f"A x at ({row}, {column})", e.columns[window], e.weight[..., 0].ravel(), e.Ax[row, column, 0])
        done = e.Ax.reshape(-1, e.filters).copy()
        done[count if window is None else window + 1:] = np.nan
        table.draw(sheet, y, range(0) if window is None else range(window * e.filters, window * e.filters + 1), None,
                   done.ravel())
        yield sheet


def transposed(explanation: Explanation, path: Any, transposed: bool = False) -> None:
    """An animation (GIF): each y stamps the kernel, and beside it the same by zeros between and a turned kernel."""
    save(transposed_sheets(explanation, transposed), path)


def transposed_sheets(explanation: Explanation, transposed: bool = False) -> Iterator[Sheet]:
    """The frames of `transposed`: one for each window that is shown, one for each pixel, and the result."""
    e = explanation
    windows, pixels = e.out_size[0] * e.out_size[1], e.size[0] * e.size[1]
    most = frames_of(e) - 1
    first = min(windows, max(most // 2, most - pixels))
    second = min(pixels, most - first)
    stamped, stuffed = _Stamped(e), _Stuffed(e)
    table = Table(e, is_transposed=True)
    px, is_beside = _faces(e)
    for window, pixel in chain(((w, None) for w in range(first)), ((None, p) for p in range(second)), [(None, None)]):
        sheet = Sheet()
        y = head(sheet, "Transposed convolution: one number is stamped onto many pixels", settings(e, transposed=True),
                 "" if transposed else WAY_BACK.format("convolution", "image → windows"),
                 follows("channel", e.channels, "filters", e.filters),
                 step(window, "window", windows, first, e.out_size) if window is not None else
                 step(pixel, "pixel", pixels, second, e.size))
        right, lower = stamped.draw(sheet, 0, y, px, window)
        x, top = (right + 34, y) if is_beside else (0, lower + 14)
        y = max(lower, stuffed.draw(sheet, x, top, px, -1 if window is not None else pixel)[1]) + 16
        y = _draw_transposed_sum(sheet, y, e, stuffed, window, pixel)
        table.draw(sheet, y, range(0) if window is None else range(window * e.filters, (window + 1) * e.filters),
                   None if pixel is None else pixel * e.channels, stamped.flat(window))
        yield sheet


def _faces(e: Explanation) -> tuple[int, bool]:
    """px of a cell, and whether the two faces stand side by side, or one below for larger cells or their numbers."""
    g, filters = e.geometry, min(e.filters, CHANNELS_SHOWN)
    padded_height, padded_width = (n + 2 * p for n, p in zip(e.size, g.padding))
    height, width, _ = e.stuffed.shape
    left, right = e.out_size[1] + 2 * g.kernel[1] + padded_width, width + g.kernel[1] + e.size[1]
    tallest = max(padded_height, filters * max(height, g.kernel[0]))
    both = min(34, (WIDTH - 260) // (left + right), ROOM // tallest)
    each = min(34, (WIDTH - 180) // max(left, right), 260 // tallest)
    has_numbers = [all(number_size(numbers, (px, px)) for numbers in (e.weight, e.y, e.ATy)) for px in (both, each)]
    is_beside = both > CELL and both >= min(22, each) and has_numbers[0] >= has_numbers[1]
    return max(CELL, both if is_beside else each), is_beside


class _Stamped:
    """The first face: y, the kernel, and the image that the stamps add up on, with the border that is cut off."""

    def __init__(self, e: Explanation):
        self.e, g = e, e.geometry
        whole = tuple(n + 2 * p for n, p in zip(e.size, g.padding))
        self.A = ConvMatrix(e.weight, Geometry(g.kernel, g.stride, 0, g.dilation), whole)   # the border kept
        self.whole = (self.A.T @ e.y[None])[0, ..., 0]
        self.outside = np.ones(whole, bool)
        self.inside = np.s_[g.padding[0]:g.padding[0] + e.size[0], g.padding[1]:g.padding[1] + e.size[1]]
        self.outside[self.inside] = False

    def until(self, window: int | None) -> np.ndarray:
        """y with the later windows' numbers set to 0."""
        y = self.e.y.reshape(-1, self.e.filters).copy()
        if window is not None:
            y[window + 1:] = 0
        return y.reshape(1, *self.e.y.shape)

    def stamp(self, window: int | None) -> np.ndarray:
        """What one window adds, (KH, KW): Aᵀ y for y with the other windows' numbers set to 0."""
        g = self.e.geometry
        if window is None:
            return np.full(g.kernel, np.nan)
        row, column = (i * s for i, s in zip(position(window, self.e.out_size), g.stride))
        y = self.until(window) - (self.until(window - 1) if window else 0)
        return (self.A.T @ y)[0, row:row + g.extent[0]:g.dilation[0], column:column + g.extent[1]:g.dilation[1], 0]

    def met(self, window: int) -> np.ndarray:
        """Which pixels of the padded image have been stamped, this window's stamp included: bool."""
        ones = ConvMatrix(np.ones((*self.e.geometry.kernel, 1, 1)), self.A.geometry, self.A.size)
        shown = (np.arange(self.e.out_size[0] * self.e.out_size[1]) <= window).astype(float)
        return (ones.T @ shown.reshape(1, *self.e.out_size, 1))[0, ..., 0] > 0.5

    def flat(self, window: int | None) -> np.ndarray:
        """The partial Aᵀ y as a vector; NaN where no stamp has been."""
        numbers = (self.e.A.T @ self.until(window))[0]
        if window is not None:
            numbers[~self.met(window)[self.inside]] = np.nan
        return numbers.ravel()

    def draw(self, sheet: Sheet, x: float, y: float, px: int, window: int | None) -> tuple[float, float]:
        """Returns the right and the lower end."""
        e, g = self.e, self.e.geometry
        filters = range(min(e.filters, CHANNELS_SHOWN))
        at = position(e.y[..., 0].size - 1 if window is None else window, e.out_size)
        first = at[0] * g.stride[0], at[1] * g.stride[1]
        ys = [Grid(name("y", f, e.filters), e.y[..., f], WINDOWS, (px, px), lit=only(e.out_size, window),
                   rows=shown(e.out_size[0], px, at[0], len(filters)), columns=shown(e.out_size[1], px, at[1]),
                   font=number_font(e.y, (px, px)), top=float(abs(e.y).max())) for f in filters]
        kernels = [kernel_grid(name("kernel", f, e.filters), e.weight, e.weight[..., 0, f], px, len(filters))
                   for f in filters]
        numbers = (self.A.T @ self.until(window))[0, ..., 0]
        if window is not None:
            numbers[~self.met(window)] = np.nan
        stamped = self.stamp(window)
        font = number_font(np.concatenate([self.whole.ravel(), numbers.ravel(), stamped.ravel()]), (px, px))
        target = Grid(name("Aᵀ y", 0, e.channels), numbers, IMAGE, (px, px),
                      "dashed: cut off" if max(g.padding) else "", outside=self.outside,
                      rows=shown(numbers.shape[0], px, first[0] + g.extent[0] // 2, 1),
                      columns=shown(numbers.shape[1], px, first[1] + g.extent[1] // 2),
                      lit=None if window is None else under(e, window),
                      font=font, top=float(abs(self.whole).max()), name="stamped")
        stamp = Grid("stamp", stamped, IMAGE, (px, px), rows=shown(g.kernel[0], px, 0, 1),
                     columns=shown(g.kernel[1], px, 0), font=font, top=target.top)
        sheet.text(x, y, "Each y stamps the kernel; stamps add up", 12, KERNEL, bold=True)
        end = beside(sheet, x, y + 24, [ys, "·", kernels, "=", [stamp], "→", [target]], gap=12)
        if window is not None:
            for grid in ys:
                sheet.frame(grid.box(*at), PLAY)
            sheet.frame(target.box(*first, *g.extent), PLAY)
        return max(end[0], x + text_width("Each y stamps the kernel; stamps add up", 12, True)), end[1]


class _Stuffed:
    """The second face: y with zeros between, the turned kernel, and the same numbers, pixel by pixel."""

    def __init__(self, e: Explanation):
        self.e = e
        self.result = (e.flipped @ e.stuffed[None])[0, ..., 0]
        ones = Explanation(e.geometry, e.size, e.weight, x=e.x, y=np.ones_like(e.y))
        self.zeros = ones.stuffed[..., 0] == 0

    def window(self, pixel: int) -> tuple[slice, slice]:
        """The part of `stuffed` that the turned kernel covers there."""
        row, column = position(pixel, self.e.size)
        (eh, ew), (dh, dw) = self.e.geometry.extent, self.e.geometry.dilation
        return slice(row, row + eh, dh), slice(column, column + ew, dw)

    def draw(self, sheet: Sheet, x: float, y: float, px: int, pixel: int | None) -> tuple[float, float]:
        """pixel −1: before the first, None: after the last. Returns the right and the lower end."""
        e, g = self.e, self.e.geometry
        filters = range(min(e.filters, CHANNELS_SHOWN))
        is_on = pixel is not None and pixel >= 0
        at = position(pixel if pixel is not None and is_on else 0, e.size)
        lit = np.zeros(self.zeros.shape, bool)
        if pixel is not None and is_on:
            lit[self.window(pixel)] = True
        stuffed = [Grid(name("y", f, e.filters), e.stuffed[..., f], WINDOWS, (px, px), "zeros between and around",
                        zeros=self.zeros, lit=lit, name=name("stuffed", f, e.filters),
                        rows=shown(lit.shape[0], px, at[0] + g.extent[0] // 2, len(filters)),
                        columns=shown(lit.shape[1], px, at[1] + g.extent[1] // 2),
                        font=number_font(e.y, (px, px)), top=float(abs(e.y).max())) for f in filters]
        kernels = [kernel_grid(name("turned", f, e.filters), e.weight, e.flipped.weight[:, :, f, 0], px, len(filters))
                   for f in filters]
        result = filling_grid(name("Aᵀ y", 0, e.channels), self.result, IMAGE, px, pixel, "turned result")
        sheet.text(x, y, "The same: zeros between, the kernel turned by 180°", 12, KERNEL, bold=True)
        end = beside(sheet, x, y + 24, [stuffed, "∗", kernels, "=", [result]], gap=12)
        if is_on:
            for grid in stuffed:
                sheet.frame(grid.box(*at, *g.extent), PLAY)
            sheet.frame(result.box(*at), PLAY)
        return end


def _draw_transposed_sum(sheet: Sheet, y: float, e: Explanation, stuffed: _Stuffed, window: int | None,
                         pixel: int | None) -> float:
    if window is not None:
        at = position(window, e.out_size)
        numbers = ", ".join(line_text(v) for v in e.y[at][:CHANNELS_SHOWN]) + (
            ", ..." if e.filters > CHANNELS_SHOWN else "")
        return draw_line(sheet, y, f"y at {at} is {numbers}: the stamp is so many times the kernel"
                         + (", summed over the filters" if e.filters > 1 else "")
                         + ", and is added to what lies there.")
    if pixel is None:
        return draw_line(sheet, y, "Both ways arrive at the same numbers, Aᵀ y.")
    at, covered = position(pixel, e.size), stuffed.window(pixel)
    kept = ~stuffed.zeros[covered]
    return draw_sum(sheet, y, f"Aᵀ y at {at}", e.stuffed[covered][kept].ravel(),
                    e.flipped.weight[..., 0][kept].ravel(), stuffed.result[at])


ANIMATIONS = {
    "convolution.gif": (convolution, "the window slides over the image, and a row of A is summed at each step"),
    "transposed.gif": (transposed, "each y stamps the kernel; beside it the same by zeros between and a turned kernel"),
}
