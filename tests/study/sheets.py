"""What every sheet must satisfy: no text lies on another, nothing is cut off, and grids show the right numbers."""

import numpy as np

from minunet.study.grid import figure_text
from minunet.study.sheet import MARGIN, Text


def assert_readable(sheet, width=960):
    """No text covers another, all type can be read, the sheet is not wider than a README shows it."""
    texts = [mark for mark in sheet.marks if isinstance(mark, Text)]
    boxes = np.array([mark.box for mark in texts]) + (0.5, 0.5, -0.5, -0.5)
    left, top, right, bottom = boxes.T[:, :, None]
    meet = (left < right.T) & (left.T < right) & (top < bottom.T) & (top.T < bottom)
    np.fill_diagonal(meet, False)
    assert not meet.any(), [(texts[i], texts[j]) for i, j in np.argwhere(meet)[:3]]
    assert min(mark.size for mark in texts) >= 8
    assert sheet.box[2] - sheet.box[0] <= width


def assert_margin(image, scale):
    """The border of the painted sheet is white: no mark reaches over its edge."""
    pixels, edge = np.asarray(image.convert("RGB")), MARGIN * scale - 2 * scale
    inside = pixels[edge:-edge, edge:-edge]
    assert pixels.astype(int).sum() - inside.astype(int).sum() == 3 * 255 * (pixels.size - inside.size) // 3
    assert inside.min() < 100


def assert_shows(grid, expected):
    """The numbers in a grid's cells, where it has any, are the expected ones; NaN is an empty cell."""
    part = np.asarray(expected, float).reshape(grid.numbers.shape)[grid.rows, grid.columns]
    assert grid.texts.shape == part.shape
    np.testing.assert_allclose(grid.numbers[grid.rows, grid.columns], part, atol=1e-9)
    if (grid.texts != "").any():
        wanted = [["" if np.isnan(v) else figure_text(v, grid.font.width) for v in row] for row in part]
        assert np.where(grid.texts == "·", "0", grid.texts).tolist() == wanted


def prose(sheet):
    """All lines of text on a sheet, one after the other."""
    return " ".join(mark.text for mark in sheet.marks if isinstance(mark, Text))
