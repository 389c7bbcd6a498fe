"""The overlap picture: counts by loops, the verdict, another case that shows the other side, the kernel's answer."""

import numpy as np
import pytest
from hypothesis import given, settings

from minunet import Geometry
from minunet.study.evenness import answer, answer_words, comparison, inside, profile, remainders, verdict
from minunet.study.explanation import Explanation
from minunet.study.overlap import overlap_sheet
from minunet.study.sheet import Text
from tests import naive
from tests.strategies import cases
from tests.study.sheets import assert_readable, assert_shows


def counts(geometry, size):
    """How many windows meet each pixel, by loops."""
    ones = np.ones((1, *geometry.output_size(size), 1)), np.ones((*geometry.kernel, 1, 1))
    return naive.conv_transpose2d(*ones, geometry.stride, geometry.padding, geometry.dilation, size)[0, ..., 0]


@given(cases())
@settings(max_examples=20)
def test_the_map(case):
    sheet = overlap_sheet(Explanation(case.geometry, case.size))
    assert_readable(sheet)
    expected = counts(case.geometry, case.size)
    assert_shows(sheet.grids["overlap"], expected)
    lines = [profile(case.geometry, axis, case.size[axis]) for axis in (0, 1)]
    assert (np.outer(*lines) == expected).all()


@given(cases())
@settings(max_examples=20)
def test_far_from_the_border(case):
    """The maps of this geometry and of another, and what the kernel makes of it, are those of `evenness`."""
    e = Explanation(case.geometry, case.size, channels=(case.channels, case.filters))
    sheet = overlap_sheet(e)
    for name, geometry in (("this", e.geometry), ("other", comparison(e.geometry))):
        assert_shows(sheet.grids[f"inside {name}"], inside(geometry))
        assert_shows(sheet.grids[f"remainders {name} 0"], remainders(geometry, 0))
    for channel in range(e.channels):
        grid = sheet.grids["Aᵀ 1, this kernel" if e.channels == 1 else f"Aᵀ 1, channel {channel}"]
        assert min(grid.numbers.shape) >= 4
        shown = answer(e)[:, :, channel]
        repeats = [n // s for n, s in zip(grid.numbers.shape, e.geometry.stride)]
        np.testing.assert_array_equal(grid.numbers, np.tile(shown, repeats))
    written = " ".join(mark.text for mark in sheet.marks if isinstance(mark, Text))
    assert verdict(e.geometry) in written and answer_words(e) in written


def test_three_and_two_at_stride_two():
    sheet = overlap_sheet(Explanation(Geometry(3, stride=2, padding=1), 8))
    assert set(sheet.grids["inside this"].texts.ravel()) == {"1", "2", "4"}
    assert set(sheet.grids["inside other"].texts.ravel()) == {"1"}
    assert sheet.grids["remainders this 0"].texts.tolist() == [["2", ""], ["0", "1"]]
    assert sheet.grids["Aᵀ 1, this kernel"].texts[:2, :2].tolist() == [["6", "7"], ["4", "4"]]


def test_beside_stride_1_stands_another_stride():
    sheet = overlap_sheet(Explanation(Geometry(3), 4))
    written = {mark.text for mark in sheet.marks if isinstance(mark, Text)}
    assert {"kernel 3x3, stride 1x1", "kernel 3x3, stride 2x2"} <= written


def test_the_caption_is_seen_from_either_side():
    e = Explanation(Geometry(3, stride=2), 5)
    for transposed, words in ((False, "image 5x5 → windows 2x2"), (True, "windows 2x2 → image 5x5")):
        assert any(words in mark.text for mark in overlap_sheet(e, transposed).marks if isinstance(mark, Text))


def test_channels_that_are_not_shown_are_said():
    sheet = overlap_sheet(Explanation(Geometry(2, 2), 4, channels=(5, 1)))
    assert_readable(sheet)
    assert "Aᵀ 1, channel 2" in sheet.grids and "Aᵀ 1, channel 3" not in sheet.grids
    assert any(mark.text == "Only channels 0 to 2 of 5 are shown." for mark in sheet.marks if isinstance(mark, Text))


def test_a_stride_whose_pattern_is_too_large_to_be_drawn():
    sheet = overlap_sheet(Explanation(Geometry(3, stride=10**6), 4))
    assert_readable(sheet)
    assert set(sheet.grids) == {"overlap"}
    assert any("1000000x1000000 px large and not drawn" in mark.text for mark in sheet.marks if hasattr(mark, "text"))


@pytest.mark.parametrize("e", [
    Explanation(Geometry(1, stride=1024), (500, 1000)), Explanation(Geometry(5, 4, 2), 60),
    Explanation(Geometry((1, 3), (1, 7), (0, 9)), (1, 90)), Explanation(Geometry(2, stride=3, padding=3), 2),
    Explanation(Geometry((9, 2), (3, 5), 2, (2, 3)), (20, 14)),
])
def test_every_size_can_be_drawn(e):
    assert_readable(overlap_sheet(e), width=1010)
