"""The frames of both animations: partial and final numbers by loops, sums that add up, texts in their places."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minunet import Geometry
from minunet.study.animations import ANIMATIONS, convolution_sheets, transposed_sheets
from minunet.study.explanation import Explanation
from minunet.study.frames import FRAMES, line_text
from minunet.study.grid import figure_text
from minunet.study.sheet import Text
from tests import naive
from tests.strategies import cases
from tests.study.sheets import assert_readable, assert_shows, prose

DEFAULT = Explanation(Geometry(3, stride=2, padding=1), 4)
MANY = Explanation(Geometry(3, padding=1), (8, 9), channels=(2, 4))


def explanation(case):
    return Explanation(case.geometry, case.size, channels=(case.channels, case.filters))


def lines(sheet):
    return [mark.text for mark in sheet.marks if isinstance(mark, Text)]


def assert_sum_adds_up(sheet, what, expected):
    """The written sum, if it is written out, is the number it says, and that is the right one."""
    text = " ".join(lines(sheet))
    text = text[text.index(what) + len(what):]
    found = re.match(r"( [=≈] [-0-9.e()· +]*)?( = | ≈ | is the sum of [0-9,]+ products, (?:about )?| is )"
                     r"([-+0-9.e]+)", text)
    assert found, text
    is_rounded = "≈" in found[2] or "about" in found[2]
    assert float(found[3]) == pytest.approx(expected, rel=5e-6 if is_rounded else 1e-12, abs=1e-12), text
    if found[1]:
        assert found[1][1] == found[2][1]
        products = [[Fraction(factor.strip("()")) for factor in product.split("·")]
                    for product in found[1][3:].split(" + ")]
        total = sum(a * b for a, b in products)
        assert (total == Fraction(found[3])) == (not is_rounded), text
        assert float(total) == pytest.approx(expected, abs=2e-5 * sum(abs(a * b) for a, b in products))
    return is_rounded


def assert_convolution_shows(e):
    """The frames, of which all but the last are of one window each."""
    g = e.geometry
    forward = naive.conv2d(e.x[None], e.weight, g.stride, g.padding, g.dilation)[0]
    padded = np.pad(e.x, [(p, p) for p in g.padding] + [(0, 0)])
    followed = "A x [0]" if e.filters > 1 else "A x"
    sheets = list(convolution_sheets(e))
    for window, sheet in enumerate(sheets):
        assert_readable(sheet)
        is_last = sheet is sheets[-1]
        row, column = divmod(min(window, len(e.columns) - 1), e.out_size[1])
        partial = forward.copy().reshape(-1, e.filters)
        if not is_last:
            partial[window + 1:] = np.nan
            assert_sum_adds_up(sheet, f"A x at ({row}, {column})", forward[row, column, 0])
        assert_shows(sheet.grids[followed], partial[:, 0])
        assert_shows(sheet.grids["column"], partial)
        assert_shows(sheet.grids["row"], e.x)
        for channel in range(min(3, e.channels)):
            index = f" [{channel}]" if e.channels > 1 else ""
            grid = sheet.grids["x" + index]
            assert_shows(grid, padded[..., channel])
            assert_shows(sheet.grids["kernel" + index], e.weight[:, :, channel, 0])
            if not is_last:
                first = row * g.stride[0], column * g.stride[1]
                lit = {(first[0] + i * g.dilation[0], first[1] + j * g.dilation[1]) for i, j in np.ndindex(*g.kernel)}
                assert set(map(tuple, np.argwhere(grid.lit).tolist())) == lit
    return sheets


def assert_inputs_show(e, sheet):
    """y, the kernel, and on the other side y with zeros between and around and the turned kernel, filter by filter."""
    g = e.geometry
    stuffed = np.zeros((*(n + extent - 1 for n, extent in zip(e.size, g.extent)), e.filters))
    between = np.ones(stuffed.shape[:2], bool)
    for window in np.ndindex(*e.out_size):
        at = tuple(o * s + extent - 1 - p for o, s, extent, p in zip(window, g.stride, g.extent, g.padding))
        if all(0 <= i < n for i, n in zip(at, stuffed.shape)):
            stuffed[at], between[at] = e.y[window], False
    for f in range(min(3, e.filters)):
        index = f" [{f}]" if e.filters > 1 else ""
        assert_shows(sheet.grids["y" + index], e.y[..., f])
        assert_shows(sheet.grids["kernel" + index], e.weight[:, :, 0, f])
        assert_shows(sheet.grids["turned" + index], e.weight[::-1, ::-1, 0, f])
        grid = sheet.grids["stuffed" + index]
        assert_shows(grid, stuffed[..., f])
        assert (grid.zeros == between).all()


def assert_transposed_shows(e):
    """The frames: windows, then pixels, then the result."""
    g = e.geometry
    whole = tuple(n + 2 * p for n, p in zip(e.size, g.padding))
    arguments = g.stride, (0, 0), g.dilation, whole
    inside = np.s_[g.padding[0]:g.padding[0] + e.size[0], g.padding[1]:g.padding[1] + e.size[1]]
    final = naive.conv_transpose2d(e.y[None], e.weight, *arguments)[0]
    sheets = list(transposed_sheets(e))
    windows = sum(any(line.startswith("Window ") for line in lines(sheet)) for sheet in sheets)
    for frame, sheet in enumerate(sheets):
        assert_readable(sheet)
        partial, turned = final.copy(), final[inside][..., 0].copy()
        if frame < windows:
            y = e.y.reshape(-1, e.filters).copy()
            y[frame + 1:] = 0
            stamp = y.copy()
            stamp[:frame] = 0
            partial = naive.conv_transpose2d(y.reshape(1, *e.y.shape), e.weight, *arguments)[0]
            met = np.zeros((e.y[..., 0].size, 1))
            met[:frame + 1] = 1
            met = naive.conv_transpose2d(met.reshape(1, *e.out_size, 1), np.ones((*g.kernel, 1, 1)), *arguments)[0]
            partial[met[..., 0] == 0] = np.nan
            stamp = naive.conv_transpose2d(stamp.reshape(1, *e.y.shape), e.weight, *arguments)[0, ..., 0]
            row, column = (o * s for o, s in zip(divmod(frame, e.out_size[1]), g.stride))
            assert_shows(sheet.grids["stamp"],
                         stamp[row:row + g.extent[0]:g.dilation[0], column:column + g.extent[1]:g.dilation[1]])
        if sheet is not sheets[-1]:
            pixel = frame - windows
            turned.flat[max(0, pixel + 1):] = np.nan
            if pixel >= 0:
                row, column = divmod(pixel, e.size[1])
                assert_sum_adds_up(sheet, f"Aᵀ y at ({row}, {column})", turned[row, column])
        assert_inputs_show(e, sheet)
        assert_shows(sheet.grids["stamped"], partial[..., 0])
        assert_shows(sheet.grids["row"], partial[inside])
        assert_shows(sheet.grids["turned result"], turned)
        assert_shows(sheet.grids["column"], e.y)
    return sheets


@given(cases(max_kernel=3, max_padding=2))
@settings(max_examples=6)
def test_the_convolution(case):
    assert_convolution_shows(explanation(case))


@given(cases(max_kernel=3, max_padding=2))
@settings(max_examples=5)
def test_the_transposed_convolution(case):
    assert_transposed_shows(explanation(case))


def test_the_default_is_shown_step_by_step():
    assert len(assert_convolution_shows(DEFAULT)) == 4 + 1
    sheets = assert_transposed_shows(DEFAULT)
    assert len(sheets) == 4 + 16 + 1
    assert sheets[0].grids["stamp"].texts.tolist() == [["2", "8", "2"], ["2", "8", "6"], ["6", "6", "2"]]
    assert sheets[-1].grids["turned result"].texts.tolist() == [
        ["8", "7", "4", "3"], ["22", "13", "19", "5"], ["16", "16", "16", "12"], ["12", "16", "12", "4"]]
    assert "Both ways arrive at the same numbers, Aᵀ y." in lines(sheets[-1])


def test_the_row_in_play_is_lit():
    for window, sheet in enumerate(list(convolution_sheets(DEFAULT))[:-1]):
        row = DEFAULT.A.dense()[window] != 0
        lit = sheet.grids["A"].lit
        assert (lit[window] == row).all() and lit.sum() == row.sum()
        assert (sheet.grids["row"].lit[0] == row).all()
    sheets = list(transposed_sheets(DEFAULT))
    for window, sheet in enumerate(sheets[:4]):
        assert (np.argwhere(sheet.grids["A"].lit)[:, 0] == window).all() and sheet.grids["A"].lit.any()
    for pixel, sheet in enumerate(sheets[4:-1]):
        column = DEFAULT.A.dense()[:, pixel] != 0
        assert (sheet.grids["A"].lit[:, pixel] == column).all() and sheet.grids["A"].lit.sum() == column.sum()
        assert (sheet.grids["column"].lit[:, 0] == column).all()
    assert not sheets[-1].grids["A"].lit.any()


def test_many_steps_are_cut_and_that_is_said():
    sheets = list(convolution_sheets(MANY))
    assert len(sheets) == FRAMES
    assert "Window 63 of 72, row 6, column 8. Only the first 63 of 72 windows are gone through." in lines(sheets[-2])
    assert "Followed: filter 0 of 4. Each of its numbers is a sum over all 2 channels." in lines(sheets[0])
    sheets = list(transposed_sheets(MANY))
    assert len(sheets) == FRAMES
    assert "Window 31 of 72, row 3, column 3. Only the first 31 of 72 windows are gone through." in lines(sheets[30])
    assert "Pixel 1 of 72, row 0, column 0. Only the first 32 of 72 pixels are gone through." in lines(sheets[31])
    assert "Followed: channel 0 of 2. Each of its numbers is a sum over all 4 filters." in lines(sheets[0])


def test_written_sums_are_true_to_the_last_digit():
    e = Explanation(Geometry(3, 2, 1), 4, weight=[[250.5, 1, 4], [2, 3.25, 1], [1, 1, 999.6]],
                    x=np.arange(16).reshape(4, 4) + 0.25, y=[[1234.5, 1], [999.6, 0.125]])
    said = lines(next(convolution_sheets(e)))
    assert ("A x at (0, 0) = 0·250.5 + 0·1 + 0·4 + 0·2 + 0.25·3.25 + 1.25·1 + 0·1 + 4.25·1 + 5.25·999.6 = 5254.2125"
            in said)
    sheets = list(transposed_sheets(e))
    assert "y at (0, 0) is 1234.5: the stamp is so many times the kernel, and is added to what lies there." in lines(
        sheets[0])
    assert "Aᵀ y at (0, 0) = 1234.5·3.25 = 4012.125" in lines(sheets[4])


def test_a_rounded_sum_says_so():
    rng = np.random.default_rng(0)
    e = Explanation(Geometry(2), 3, weight=rng.standard_normal((2, 2)), x=rng.standard_normal((3, 3)))
    sheets = list(convolution_sheets(e))
    for window, sheet in enumerate(sheets[:-1]):
        row, column = divmod(window, 2)
        assert assert_sum_adds_up(sheet, f"A x at ({row}, {column})", e.Ax[row, column, 0])
    thirds = Explanation(Geometry(6), 6, weight=np.full((6, 6), 1 / 3))
    assert (f"A x at (0, 0) is the sum of 36 products, about {thirds.Ax[0, 0, 0]:.6g}"
            in lines(next(convolution_sheets(thirds))))


@given(st.floats(-1e9, 1e9) | st.integers(-10**9, 10**9).map(lambda n: n / 1000)
       | st.integers(-2**40, 2**40).map(float))
def test_a_line_of_text_has_all_the_digits_there_are(value):
    text = line_text(value)
    assert float(text) == pytest.approx(value, rel=5.1e-6, abs=0) and text != "-0"
    if value == round(value, 3) and (abs(value) < 1e8 or value == int(value)):
        assert float(text) == value


def test_the_matrix_says_what_is_in_play():
    """A row while a window stamps or is summed, a column while a pixel is; the caption and what is lit agree."""
    row, column = "the row in play", "down the column in play"
    for sheets, of_row, of_column in (
            (list(convolution_sheets(DEFAULT)), 4, 0), (list(transposed_sheets(DEFAULT)), 4, 16)):
        for frame, sheet in enumerate(sheets):
            said = next(line for line in lines(sheet) if line.startswith("The matrix A, 4 x 16: "))
            assert (row in said) == (frame < of_row)
            assert (column in said) == (of_row <= frame < of_row + of_column)
            lit = np.argwhere(sheet.grids["A"].lit)
            assert len(set(lit[:, 0])) == 1 if row in said else len(set(lit[:, 1])) == 1 if column in said else (
                len(lit) == 0)
    said = prose(list(transposed_sheets(MANY))[0])
    assert "the rows in play, one for each filter, each times its y, are added to Aᵀ y" in said


def test_a_cut_matrix_names_its_vectors():
    e = Explanation(Geometry(3, padding=1), 28)
    said = prose(next(convolution_sheets(e)))
    assert "of 784 of A (A x alike); columns" in said and "of 784 of A (x alike)." in said
    said = prose(next(transposed_sheets(e)))
    assert "of 784 of A (y alike); columns" in said and "of 784 of A (Aᵀ y alike)." in said


def test_the_other_one_says_what_it_is_for():
    for sheets_of, own, other in (
            (convolution_sheets, False, "The gradient of the transposed convolution (windows → image) with respect to"),
            (transposed_sheets, True, "The gradient of the convolution (image → windows) with respect to")):
        for is_transposed in (False, True):
            for sheet in list(sheets_of(DEFAULT, is_transposed))[::7]:
                assert ("gradient" in prose(sheet)) == (is_transposed != own) == (other in prose(sheet))
                assert_readable(sheet)


def test_numbers_that_fit_in_larger_cells_get_them():
    """Side by side the faces would have no numbers."""
    e = Explanation(Geometry(3, 2, 1), 4, weight=[[250.5, 1, 4], [2, 3.25, 1], [1, 1, 999.6]])
    assert list(transposed_sheets(e))[-1].grids["turned result"].texts[1, 1] == figure_text(e.ATy[1, 1, 0])


def test_negative_factors_have_brackets():
    e = Explanation(Geometry(1, stride=2), (1, 3), weight=[[-2]], x=[[3, 0, -1]])
    assert "A x at (0, 1) = (-1)·(-2) = 2" in lines(list(convolution_sheets(e))[1])


def test_a_pixel_that_no_window_meets():
    sheets = list(transposed_sheets(Explanation(Geometry(1, stride=2), 3)))
    assert "Aᵀ y at (0, 1) is 0: no window meets this pixel" in lines(sheets[4 + 1])


@pytest.mark.parametrize("e", [
    Explanation(Geometry(24), 32), Explanation(Geometry(1, stride=1024), (100, 200)),
    Explanation(Geometry(3, padding=1), 28), Explanation(Geometry(2, stride=3, padding=3), 2),
    Explanation(Geometry(3, padding=1), 4, channels=(8, 5)), Explanation(Geometry((1, 3), (1, 7), (0, 9)), (1, 90)),
    Explanation(Geometry(3, 2, 1), 5, weight=np.random.default_rng(0).standard_normal((3, 3)) * 1e4),
], ids=lambda e: f"{e.size} {e.geometry.kernel}")
def test_every_size_can_be_drawn(e):
    """The first frame, one in the middle, and the last."""
    for sheets in (list(convolution_sheets(e)), list(transposed_sheets(e))):
        assert 2 <= len(sheets) <= FRAMES
        for sheet in (sheets[0], sheets[len(sheets) // 2], sheets[-1]):
            assert_readable(sheet)


@pytest.mark.parametrize("name", ANIMATIONS)
def test_the_file(name, tmp_path):
    animate, sentence = ANIMATIONS[name]
    assert sentence and "\n" not in sentence
    for path in ("first.gif", "second.gif"):
        animate(DEFAULT, tmp_path / path)
    assert (tmp_path / "first.gif").read_bytes() == (tmp_path / "second.gif").read_bytes()
    assert (tmp_path / "first.gif").stat().st_size < 300_000
    with Image.open(tmp_path / "first.gif") as animation:
        assert animation.format == "GIF" and animation.info["loop"] == 0
        assert 600 < animation.width < 960 and 400 < animation.height < 700
        assert animation.n_frames == {"convolution.gif": 5, "transposed.gif": 21}[name]
        durations = []
        for frame in range(animation.n_frames):
            animation.seek(frame)
            durations.append(animation.info["duration"])
            pixels = np.asarray(animation.convert("RGB"))
            assert (pixels[:10] == 255).all() and (pixels[:, :10] == 255).all()
        assert 500 <= durations[0] == durations[-2] < durations[-1] == 4000


def test_large_files_stay_small(tmp_path):
    for name, (animate, _) in ANIMATIONS.items():
        animate(Explanation(Geometry(20), 26), tmp_path / name)
        assert (tmp_path / name).stat().st_size < 2_000_000
