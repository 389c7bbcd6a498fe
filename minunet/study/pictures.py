"""Three pictures of one convolution: its matrix and the transpose, the column matrix of im2col, the overlap counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from minunet.geometry import Pair
from minunet.study.captions import SCALE, WIDTH, head, omitted, settings
from minunet.study.explanation import Explanation
from minunet.study.grid import Grid, beside, number_font, number_size, part
from minunet.study.overlap import overlap
from minunet.study.sheet import GREY, IMAGE, KERNEL, PLAY, WINDOWS, Sheet, text_width

WINDOWS_SHOWN = 6       # rows of the column matrix
PATCH = 120             # px of a patch's image
LONG = 720              # px of a matrix along its longer side
CHANNELS_SHOWN = 3      # panels, one for each channel or filter
BACKWARDS = ("The transposed convolution goes this way from right to left: a window's numbers of y times the kernel, "
             "transposed, are its row of columns, and each row is added to its patch of the image (col2im).")


# ---- A and Aᵀ

def dense_part(explanation: Explanation, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """A with its elements in these rows and columns, the rest left 0, and which are zeros of its structure: (R, C)."""
    values, zeros = np.zeros(explanation.A.shape), np.ones(explanation.A.shape, bool)
    found = explanation.A.sparse()[rows, columns].tocoo()
    at = found.row + rows.start, found.col + columns.start
    values[at], zeros[at] = found.data, False
    return values, zeros


def blocks(explanation: Explanation) -> tuple[tuple[int, str], tuple[int, str]]:
    """How A's rows and columns group: a row of windows, a row of the image."""
    return ((explanation.out_size[1] * explanation.filters, WINDOWS),
            (explanation.size[1] * explanation.channels, IMAGE))


def matrix(explanation: Explanation, path: Any, transposed: bool = False) -> None:
    """A picture (PNG) of A x and Aᵀ y as products of matrices whose blocks, zeros and values are seen."""
    matrix_sheet(explanation, transposed).image(scale=SCALE).save(path)


def matrix_sheet(explanation: Explanation, transposed: bool = False) -> Sheet:
    """The sheet of `matrix`: A x and then Aᵀ y, or with transposed the other way round."""
    e, total = explanation, explanation.A.shape
    is_side_by_side, px = _matrix_layout(e)
    rows, columns = (part(n, cell, LONG) for n, cell in zip(total, px))
    values, zeros = dense_part(e, rows, columns)
    by_row, by_column = blocks(e)

    def vector(title: str, numbers: np.ndarray, is_image: bool) -> list[Grid]:
        column, shown, height = numbers.reshape(-1, 1), columns if is_image else rows, px[is_image]
        width = next((w for w in (40, 60) if number_size(column[shown], (height, w))), 16)
        return [Grid(title, column, IMAGE if is_image else WINDOWS, (height, width), rows=shown,
                     blocks=(((by_column if is_image else by_row)[0], ""), (1, "")))]

    A = Grid("A", values, KERNEL, px, f"{total[0]:,} x {total[1]:,}", rows, columns, zeros,
             blocks=(by_row, by_column))
    AT = Grid("Aᵀ", values.T, KERNEL, px[::-1], f"{total[1]:,} x {total[0]:,}", columns, rows, zeros.T,
              blocks=(by_column, by_row))
    forward: list[str | list[Grid]] = [[A], "×", vector("x", e.x, True), "=", vector("A x", e.Ax, False)]
    back: list[str | list[Grid]] = [[AT], "×", vector("y", e.y, False), "=", vector("Aᵀ y", e.ATy, True)]
    first, second = (back, forward) if transposed else (forward, back)
    title = ("The transposed convolution's matrix Aᵀ, and the convolution's, A" if transposed else
             "The convolution matrix A and its transpose Aᵀ")
    sheet = Sheet()
    y = head(sheet, title, settings(e, transposed), _matrix_caption(e, px),
             omitted(A, alike=("the columns of Aᵀ, y and A x", "the rows of Aᵀ, x and Aᵀ y")))
    if is_side_by_side:
        beside(sheet, 0, y, [*first, "  ", *second], gap=8)
    else:
        beside(sheet, 0, beside(sheet, 0, y, first)[1] + 24, second)
    return sheet


def _matrix_caption(e: Explanation, px: Pair) -> str:
    """What rows, columns, brackets, blocks and dots are, for cells of px (height, width) in A."""
    of_filter, of_channel = (f" and one {what}" * (count > 1) for what, count in
                             (("filter", e.filters), ("channel", e.channels)))
    is_one = e.channels == e.filters == 1
    inside = ("one row of the kernel again and again, moved by the stride" if is_one else
              "one row of all the kernels again and again, moved by the stride: filter by filter downwards, channel by "
              "channel to the right")
    has_numbers = number_size(e.weight, px) and number_size(e.weight, px[::-1])
    return (f"One row of A is one window{of_filter}, one column one pixel{of_channel}. Orange brackets are rows of the "
            f"image, laid end to end as x; green ones rows of windows, laid end to end as y. Each block is empty or "
            f"holds {inside}. Dots are zeros of the structure"
            + ("." if has_numbers else "; there is no room for the numbers: darker is larger in size."))


def _matrix_layout(explanation: Explanation) -> tuple[bool, Pair]:
    """Whether A and Aᵀ stand side by side, and px of a window and of a pixel along them: with numbers if they fit."""
    rows, columns = explanation.A.shape
    both = max(1, min(30, (WIDTH - 400) // (rows + columns)))
    each = max(1, min(30, LONG // rows)), max(1, min(30, LONG // columns))
    has_numbers = number_size(explanation.weight, each) and number_size(explanation.weight, each[::-1])
    if number_size(explanation.weight, (both, both)) or not has_numbers and both >= 4:
        return True, (both, both)
    return False, each


# ---- im2col

def padded(explanation: Explanation, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """A channel of x with its border of zeros, (H + 2·PH, W + 2·PW), and where the border is."""
    (ph, pw), (h, w) = explanation.geometry.padding, explanation.size
    numbers, outside = np.zeros((h + 2 * ph, w + 2 * pw)), np.ones((h + 2 * ph, w + 2 * pw), bool)
    inside = np.s_[ph:ph + h, pw:pw + w]
    numbers[inside], outside[inside] = explanation.x[..., channel], False
    return numbers, outside


def under(explanation: Explanation, window: int) -> np.ndarray:
    """Which pixels of the padded image a window meets, counted through the windows row by row: bool."""
    g = explanation.geometry
    found = np.zeros([n + 2 * p for n, p in zip(explanation.size, g.padding)], bool)
    row, column = (o * s for o, s in zip(np.unravel_index(window, explanation.out_size), g.stride))
    found[row:row + g.extent[0]:g.dilation[0], column:column + g.extent[1]:g.dilation[1]] = True
    return found


def columns(explanation: Explanation, path: Any, transposed: bool = False) -> None:
    """A picture (PNG) of the column matrix, each row beside its patch of the image, and of its product."""
    columns_sheet(explanation, transposed).image(scale=SCALE).save(path)


def columns_sheet(explanation: Explanation, transposed: bool = False) -> Sheet:
    """The sheet of `columns`: from left to right the patches, their rows, the kernel as columns, and A x."""
    e, g = explanation, explanation.geometry
    count, length = e.columns.shape
    windows, channels = min(count, WINDOWS_SHOWN), min(e.channels, CHANNELS_SHOWN)
    images, filters = [padded(e, c) for c in range(channels)], part(e.filters, 40, 160)
    height, width = images[0][0].shape
    rooms = PATCH, 2 * PATCH // channels
    px = max(3, min(20, rooms[0] // height, rooms[1] // width))
    hints = ("with padding; outlined: the patch" if max(g.padding) else "outlined: the patch",
             f"{count:,} x {length:,}, blue brackets: rows of the kernel", f"{count:,} x {e.filters:,}")
    left = max(channels * (min(width * px, rooms[1]) + 10), int(text_width(hints[0], 11))) + 26
    room = WIDTH - 130 - left - 80 * (filters.stop - filters.start)
    cell = 24, max(2, min(32, room // length))
    elements = part(length, cell[1], room)
    pitch = max(min(height * px, rooms[0]), cell[0]) + 24
    tall = windows * pitch - 24
    column = Grid("kernel", e.weight.reshape(length, e.filters), KERNEL,
                  (max(1, min(24, max(tall, 400) // length)), 40), f"{length:,} x {e.filters:,}", columns=filters)
    times = max(left + (elements.stop - elements.start) * cell[1] + 40,
                left + int(text_width(hints[1], 11)) - column.size[1] - 28)
    equals = times + column.size[1] + 40

    sheet = Sheet()
    y = head(sheet, "The column matrix of im2col", settings(e, transposed), _columns_caption(e, windows, channels),
             BACKWARDS if transposed else "")
    for x, title, hint in zip((0, left, equals), ("x", "column matrix", "A x"), hints):
        sheet.text(x, y + 13, title, 13, anchor="ls", bold=True)
        sheet.text(x, y + 28, hint, 11, GREY, "ls")
    middle = y + 52 + max(tall / 2, column.size[0] / 2 + column.heading[0] - 16)
    font, top = number_font(e.columns[:windows], cell), float(abs(e.columns).max())
    for window in range(windows):
        centre = middle - tall / 2 + window * pitch + (pitch - 24) / 2
        _draw_patches(sheet, e, images, window, px, rooms, centre)
        blocks = (1, ""), (g.kernel[1] * e.channels, "" if window else KERNEL)
        Grid("", e.columns, IMAGE, cell, "", slice(window, window + 1), elements, blocks=blocks, font=font, top=top,
             name=f"row {window}").draw(sheet, left, centre - cell[0] / 2)
        Grid("", e.Ax.reshape(count, e.filters), WINDOWS, (cell[0], 40), "", slice(window, window + 1), filters,
             top=float(abs(e.Ax).max()), name=f"A x {window}").draw(sheet, equals, centre - cell[0] / 2)
    column.draw(sheet, times, middle - column.size[0] / 2)
    sheet.text(times - 20, middle, "×", 20, GREY, "mm")
    sheet.text(equals - 20, middle, "=", 20, GREY, "mm")
    left_out = omitted(Grid("the column matrix", e.columns, IMAGE, cell, columns=elements), column)
    sheet.paragraph(0, sheet.box[3] + 14, left_out, WIDTH, 12, GREY)
    return sheet


def _columns_caption(e: Explanation, windows: int, channels: int) -> str:
    """What the picture of this many windows and channels shows."""
    order = ", pixel by pixel and there channel by channel" if e.channels > 1 else ""
    border = ", with zeros where it reaches into the padding" if max(e.geometry.padding) else ""
    each = " for each filter" if e.filters > 1 else ""
    text = (f"Each window's pixels are laid out as a row{order}{border}. Times the kernel as a column{each}, every row "
            "gives what A\N{NO-BREAK SPACE}x holds for its window: the convolution has become one product of matrices.")
    for what, count, total in (("windows", windows, len(e.columns)), ("channels of the patches", channels, e.channels)):
        if count < total:
            text += f" The first {count} of {total:,} {what} are shown."
    height, width = (n + 2 * p for n, p in zip(e.size, e.geometry.padding))
    return text + (" Of the image, what lies around each window is shown."
                   if height > PATCH // 3 or channels * width > 2 * PATCH // 3 else "")


def _draw_patches(sheet: Sheet, e: Explanation, image: list[tuple[np.ndarray, np.ndarray]], window: int, px: int,
                  rooms: Pair, middle: float) -> None:
    """The padded channels side by side around `middle`, the pixels under the window lit and framed."""
    g = e.geometry
    row, column = (int(o) * s for o, s in zip(np.unravel_index(window, e.out_size), g.stride))
    lit = under(e, window)
    x = 0
    for channel, (numbers, outside) in enumerate(image):
        rows, columns = (part(n, px, room, at + extent // 2)
                         for n, room, at, extent in zip(lit.shape, rooms, (row, column), g.extent))
        grid = Grid("", numbers, IMAGE, (px, px), "", rows, columns, outside=outside, lit=lit,
                    name=f"patch {window} {channel}")
        grid.draw(sheet, x, middle - grid.size[0] / 2)
        sheet.frame(grid.box(row, column, *g.extent), PLAY, 2)
        x += grid.size[1] + 10


PICTURES = {
    "matrix.png": (matrix, "A and Aᵀ as heat maps with their blocks, and the products A x and Aᵀ y"),
    "columns.png": (columns, "the column matrix of im2col: each window's patch as a row, times the kernel as a column"),
    "overlap.png": (overlap, "how many windows meet each pixel, and why that is even or a checkerboard"),
}
