"""Numbers as texts, and cells with numbers in them."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet.study.grid import WIDTHS, Font, Grid, beside, figure_text, number_font, number_size, part
from minunet.study.sheet import IMAGE, MARGIN, PLAY, Sheet, text_box, text_width
from tests.study.sheets import assert_shows

VALUES = st.floats(-1e12, 1e12) | st.integers(-999, 999).map(float)
DIGITS = {7: 3, 6: 2, 5: 2}         # that a number keeps at least, by the width of its text


@given(VALUES | VALUES.map(lambda v: round(v, 2)) | VALUES.map(lambda v: v * 1e-9), st.sampled_from(WIDTHS))
def test_a_number_is_short_and_near(value, width):
    text = figure_text(value, width)
    assert text != "-0" and text.startswith("-") == (value < 0)
    if (1e-2 if width == 5 else 1e-9) <= abs(value) < 1e10:
        assert len(text.removeprefix("-")) <= width
        assert float(text) == pytest.approx(value, rel=0.5000001 * 10 ** (1 - DIGITS[width]), abs=0)
    else:
        assert float(text) == pytest.approx(value, rel=0.050001, abs=0)


@given(VALUES | st.floats(-2000, 2000) | st.integers(-10**7, 10**7).map(lambda v: v + 1e-5), st.sampled_from(WIDTHS))
def test_no_fraction_looks_like_a_whole_number(value, width):
    text = figure_text(value, width)
    if value != int(value) and abs(value) < 1e6 and abs(value - round(value)) > 1e-11 * abs(value):
        assert "." in text or "e-" in text
    assert ("." in text or "e" in text) or float(text) == pytest.approx(value, rel=1e-12, abs=0)


@given(st.integers(-10**8, 10**8), st.integers(0, 4), st.sampled_from(WIDTHS))
def test_a_number_that_fits_has_all_its_digits(digits, decimals, width):
    exact = str(abs(Decimal(digits).scaleb(-decimals).normalize().quantize(Decimal(1))
                    if digits % 10**decimals == 0 else Decimal(digits).scaleb(-decimals).normalize()))
    assert "E" not in exact or digits % 10**decimals
    if "E" not in exact and len(exact) <= width:
        assert figure_text(digits / 10**decimals, width).removeprefix("-") == exact


@pytest.mark.parametrize("value, texts", [
    (999.6, ("999.6", "999.6", "999.6")), (9999.6, ("9999.6", "9999.6", "1.0e4")),
    (1234.5, ("1234.5", "1234.5", "1.2e3")), (-2 / 3, ("-0.667", "-0.667", "-0.667")),
    (1e6, ("1000000", "1e6", "1e6")), (1234567.0, ("1234567", "1.23e6", "1.2e6")), (1e-17, ("1e-17",) * 3),
    (0.012345678, ("0.0123", "0.0123", "0.012")), (12.34567, ("12.35",) * 3), (-0.0, ("0",) * 3),
    (-1.2345e-100, ("-1.2e-100",) * 3)])
def test_numbers_by_width(value, texts):
    assert tuple(figure_text(value, width) for width in (7, 6, 5)) == texts


def test_a_wide_cell_holds_more_digits_than_a_narrow_one():
    texts = []
    for width in (60, 34, 30, 12):
        grid = Grid("A", np.array([[1234.5, 1.0]]), IMAGE, (30, width))
        grid.draw(Sheet(), 0, 0)
        texts.append((grid.texts[0, 0], grid.font.size))
    assert texts == [("1234.5", 14), ("1234.5", 8), ("1.2e3", 9), ("", 0)]


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(1, 900), st.data())
def test_the_part_that_is_shown(total, cell, room, data):
    at = data.draw(st.integers(0, total - 1))
    shown = part(total, cell, room, at)
    assert 0 <= shown.start <= at < shown.stop <= total
    count = shown.stop - shown.start
    assert count == total or count * cell <= max(room, cell) < (count + 1) * cell


@given(st.lists(VALUES, min_size=1, max_size=5), st.tuples(st.integers(1, 60), st.integers(1, 60)))
def test_numbers_fit_into_their_cells(values, cell):
    size, width = number_font(np.array(values), cell)
    assert size == number_size(np.array(values), cell) and (size == 0 or size >= 8)
    for value in values if size else ():
        left, top, right, bottom = text_box(figure_text(value, width), size)
        assert right - left < cell[1] and bottom - top < cell[0]
    if size == 0 and min(cell) >= 11:
        assert max(text_width(figure_text(v, 5), 8) for v in values) > cell[1] - 3


def test_what_a_grid_shows():
    numbers = np.array([[1.0, -2.5, np.nan], [0.0, 0.0, 7.0]])
    zeros = np.array([[False] * 3, [True, False, False]])
    grid, sheet = Grid("A", numbers, IMAGE, (20, 30), zeros=zeros), Sheet()
    grid.draw(sheet, 5, 40)
    assert grid.texts.tolist() == [["1", "-2.5", ""], ["·", "0", "7"]]
    assert sheet.grids == {"A": grid}
    assert_shows(grid, numbers)
    assert grid.size == (40, 90) and grid.box(0, 0) == (5, 40, 35, 60) and grid.box(1, 2) == (65, 60, 95, 80)


def test_a_part_of_a_grid():
    numbers, sheet = np.arange(100.0).reshape(10, 10), Sheet()
    grid = Grid("A", numbers, IMAGE, (20, 20), rows=slice(2, 5), columns=slice(4, 6))
    grid.draw(sheet, 0, 0)
    assert grid.texts.tolist() == [["24", "25"], ["34", "35"], ["44", "45"]]
    assert grid.box(2, 4) == (0, 0, 20, 20)
    assert grid.box(0, 0, 4, 5) == (0, 0, 20, 40)           # what of it is shown
    assert grid.box(0, 0) is None and grid.box(5, 4) is None and grid.box(2, 6) is None


def test_cells_have_the_shade_of_their_number():
    lit = np.array([[False, False, True]])
    grid, sheet = Grid("", np.array([[1.0, -9.0, 1.0]]), IMAGE, (10, 10), lit=lit, font=Font(0)), Sheet()
    grid.draw(sheet, 0, 0)
    pixels = np.asarray(sheet.image()).astype(int)
    light, dark, play = (pixels[MARGIN + 5, MARGIN + 10 * i + 5] for i in range(3))
    assert light.sum() > dark.sum() and pixels[0, 0].tolist() == [255] * 3
    towards = [255 - int(PLAY[i:i + 2], 16) for i in (1, 3, 5)]
    np.testing.assert_allclose((255 - play) / towards, 0.45, atol=0.05)


def test_grids_stand_side_by_side():
    sheet = Sheet()
    grids = [Grid(t, np.ones(shape), IMAGE, (20, 20)) for t, shape in zip("abc", [(5, 2), (1, 1), (3, 3)])]
    right, bottom = beside(sheet, 10, 10, [[grids[0]], "∗", grids[1:2], "=", [grids[2]]])
    centres = {grid.y + grid.size[0] / 2 for grid in grids}
    assert len(centres) == 1 and grids[0].x == 10 and right == grids[2].x + 60
    assert bottom == grids[0].y + 100 and sheet.box[1] >= 10
    assert grids[0].x + 40 < grids[1].x and grids[1].x + 20 < grids[2].x


@pytest.mark.parametrize("scale", [1, 2])
def test_structural_zeros_are_dots_in_the_middle(scale):
    grid, sheet = Grid("", np.array([[3.0, 0.0]]), IMAGE, (20, 30), zeros=np.array([[False, True]])), Sheet()
    grid.draw(sheet, 0, 0)
    cell = np.asarray(sheet.image(scale=scale))[:, -(MARGIN + 29) * scale:-MARGIN * scale].astype(int).min(-1)
    rows, columns = np.nonzero(cell < 200)
    assert abs(rows.mean() + 0.5 - (MARGIN + 10) * scale) <= scale and abs(columns.mean() + 0.5 - 14 * scale) <= scale
    assert 0 < len(rows) <= 4 * scale ** 2
