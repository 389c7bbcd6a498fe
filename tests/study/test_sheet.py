"""Sheets that are as large as what lies on them, frames, paragraphs."""


import numpy as np
import pytest

from minunet.study.grid import Grid
from minunet.study.sheet import IMAGE, MARGIN, PLAY, Sheet, text_box, text_width
from tests.study.sheets import assert_margin


@pytest.mark.parametrize("scale", [1, 2])
def test_a_sheet_is_as_large_as_what_lies_on_it(scale):
    sheet = Sheet()
    sheet.text(-40, -7, "Aᵀ y", 20, bold=True)
    sheet.text(300, 90, "gjpq", 13, anchor="rs")
    sheet.frame((10, 10, 400, 60), PLAY, 3, dashed=True)
    Grid("x", np.eye(3), IMAGE, (20, 20), blocks=((1, "#000000"), (2, "#000000"))).draw(sheet, 20, 150)
    left, top, right, bottom = sheet.box
    image = sheet.image(scale=scale)
    assert image.size == tuple((int(np.ceil(n)) + 2 * MARGIN) * scale for n in (right - left, bottom - top))
    assert (left, right, bottom) == (-40 + text_box("Aᵀ y", 20, True)[0], 400, 210)
    assert_margin(image, scale)


def test_frames_lie_inside_their_box():
    for dashed in (False, True):
        sheet = Sheet()
        sheet.frame((0, 0, 30, 20), PLAY, 2, dashed)
        pixels = np.asarray(sheet.image())
        rows, columns = np.nonzero((pixels != 255).any(-1))
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
            MARGIN, MARGIN + 19, MARGIN, MARGIN + 29 if not dashed else columns.max())
        assert (pixels[MARGIN + 5:MARGIN + 15, MARGIN + 5:MARGIN + 25] == 255).all()


def test_an_empty_frame_is_nothing():
    sheet = Sheet()
    sheet.frame(None, PLAY)
    assert sheet.marks == []
    sheet.frame((0, 0, 10, 0), PLAY, 0)
    assert np.asarray(sheet.image()).min() == 255


def test_a_paragraph_is_broken_between_words():
    sheet = Sheet()
    end = sheet.paragraph(0, 0, "one two three four " * 10, 200)
    lines = [mark.text for mark in sheet.marks]
    assert " ".join(lines) == ("one two three four " * 10).strip() and len(lines) > 3
    assert all(text_width(line, 12) <= 200 for line in lines)
    assert end > sheet.box[3] - 12 * 0.5
    assert Sheet().paragraph(0, 7, "", 200) == 7
