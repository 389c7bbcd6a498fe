"""The story that `minunet explain` tells, number by number, against loops."""

import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minunet import Geometry
from minunet.cli import explain
from minunet.cli.matrices import in_full, matrix, number
from minunet.cli.overlaps import size_tables, table
from minunet.cli.story import tell
from minunet.study.evenness import answer, answer_words, comparison, met, telling_length, verdict
from minunet.study.explanation import Explanation, is_even
from tests import naive
from tests.cli.told import WIDE, blocks, by, numbers, said, shown, whole
from tests.strategies import cases, geometries


def test_the_slides_story(capsys):
    text = said(capsys)
    flat = " ".join(text.split())
    assert "A x takes 16 numbers to 4." in flat and "Aᵀ y takes 4 numbers to 16." in flat
    found = blocks(text)
    assert found["kernel"] == [["1", "4", "1"], ["1", "4", "3"], ["3", "3", "1"]]
    assert found["A (4, 16)"] == [row.split() for row in (
        "1 4 1 · 1 4 3 · 3 3 1 · · · · ·", "· 1 4 1 · 1 4 3 · 3 3 1 · · · ·",
        "· · · · 1 4 1 · 1 4 3 · 3 3 1 ·", "· · · · · 1 4 1 · 1 4 3 · 3 3 1")]
    assert sum(found["x (16)"], []) == "4 5 8 7 1 8 8 8 3 6 6 4 6 5 7 8".split()
    assert sum(found["= A x (4)"], []) == ["122", "148", "126", "134"]
    assert found["A x as 2x2"] == [["122", "148"], ["126", "134"]]
    assert [list(row) for row in zip(*found["Aᵀ (16, 4)"])] == found["A (4, 16)"]
    assert sum(found["y (4)"], []) == ["2", "1", "4", "4"]
    assert found["Aᵀ y as 4x4"] == [row.split() for row in ("2 9 6 1", "6 29 30 7", "10 29 33 13", "12 24 16 4")]
    assert sum(found["= Aᵀ y (16)"], []) == sum(found["Aᵀ y as 4x4"], [])
    assert found["Aᵀ(A x) (4x4)"][0] == ["122", "636", "714", "148"]
    assert "<y, A x>  = 1432\n    <Aᵀ y, x> = 1432\n" in text
    assert "1*4 + 4*5 + 1*8 + 1*1 + 4*8 + 3*8 + 3*3 + 3*6 + 1*6 = 122" in flat
    assert "Pixel (1, 1) in full, 4 stamps, kernel times y: 4*2 + 1*1 + 4*4 + 1*4 = 29" in text
    assert "(Nothing could: 16 numbers went through 4.)" in flat
    assert "\x1b" not in text and max(map(len, text.splitlines())) <= explain.WIDTH
    order = [text.index(f"\n{title}\n=") for title in (
        "The convolution: A x", "The transposed convolution: Aᵀ y", "Transposed is not inverse",
        "Overlap: where a checkerboard comes from", "The size question: which image?")]
    assert order == sorted(order)


def test_transposed_comes_first_if_asked_for(capsys):
    text = said(capsys, "--transposed")
    assert text.index("The transposed convolution: Aᵀ y") < text.index("The convolution: A x")
    plain = blocks(said(capsys))
    for heading in ("A (4, 16)", "Aᵀ (16, 4)", "= A x (4)", "= Aᵀ y (16)", "x (16)", "y (4)", "Aᵀ(A x) (4x4)"):
        assert blocks(text)[heading] == plain[heading]
    assert blocks(text)["y (2x2)"] == [["2", "1"], ["4", "4"]] and "y (2x2)" not in plain


@given(cases(), st.booleans(), st.booleans())
def test_products_are_those_of_the_loops(case, transposed, fractions):
    g, single = case.geometry, case.channels == case.filters == 1
    _, w, y = (array.round(2) for array in case.arrays())
    e = (Explanation(g, case.size, w, y=y[0]) if fractions
         else Explanation(g, case.size, channels=(case.channels, case.filters)))
    text, close = whole(e, transposed), {"rtol": 1e-3 if fractions else 0, "atol": 1e-9}
    Ax = naive.conv2d(e.x[None], e.weight, g.stride, g.padding, g.dilation)[0]
    ATy, ATAx = (naive.conv_transpose2d(v[None], e.weight, g.stride, g.padding, g.dilation, e.size)[0]
                 for v in (e.y, Ax))
    for name, array, what in (("x", e.x, "channel"), ("y", e.y, "filter"), ("A x", Ax, "filter"),
                              ("Aᵀ y", ATy, "channel"), ("Aᵀ(A x)", ATAx, "channel")):
        h, w, n = array.shape
        if single and name != "Aᵀ(A x)":
            column = f"{name} ({h * w})" if name in "xy" else f"= {name} ({h * w})"
            np.testing.assert_allclose(shown(text, column), array.reshape(-1, 1), **close)
            if name not in "xy":
                np.testing.assert_allclose(shown(text, f"{name} as {h}x{w}"), array[:, :, 0], **close)
        else:
            for i in range(n):
                heading = f"{name} ({h}x{w})" if n == 1 else f"{name}, {what} {i}"
                np.testing.assert_allclose(shown(text, heading), array[:, :, i], **close)
    for product in re.search(r"<y, A x>  = (\S+)\n    <Aᵀ y, x> = (\S+)\n", text).groups():
        np.testing.assert_allclose(float(product), np.vdot(e.y, Ax), **close)


@given(cases())
def test_matrices_are_those_of_the_loops(case):
    """A number where a window meets a pixel, a dot elsewhere; a block for each channel and filter."""
    g, e = case.geometry, Explanation(case.geometry, case.size, channels=(case.channels, case.filters))
    text = whole(e)
    units = np.eye(np.prod(e.size)).reshape(-1, *e.size, 1)

    def loops(kernel):
        """(OH·OW, H·W)"""
        return naive.conv2d(units, kernel, g.stride, g.padding, g.dilation).reshape(len(units), -1).T

    meets = loops(np.ones((*g.kernel, 1, 1)))
    for f in range(e.filters):
        for c in range(e.channels):
            titles = (f"A, filter {f} from channel {c}", f"Aᵀ, channel {c} from filter {f}",
                      f"kernel, filter {f} channel {c}")
            if e.channels == e.filters == 1:
                titles = f"A {meets.shape}", f"Aᵀ {meets.shape[::-1]}", "kernel"
            A, AT = (numbers(blocks(text)[title]) for title in titles[:2])
            assert (np.isnan(A) == (meets == 0)).all() and (np.isnan(AT) == (meets.T == 0)).all()
            assert (np.nan_to_num(A) == loops(e.weight[:, :, c:c + 1, f:f + 1])).all()
            assert (np.nan_to_num(AT) == np.nan_to_num(A).T).all()
            assert (shown(text, titles[2]) == e.weight[:, :, c, f]).all()
    assert (shown(text, f"{by(*e.size)} image") == meets.sum(0).reshape(e.size)).all()


@given(cases())
def test_sums_written_out_are_right(case):
    e = Explanation(case.geometry, case.size)
    found = re.findall(r"(Window|Pixel) (\(\d+, \d+\)) in full, [^:]*: ([^=]*) = (\S+)", " ".join(whole(e).split()))
    assert [kind for kind, *_ in found] == ["Window", "Pixel"] * bool(e.overlap.any())
    for kind, place, terms, total in found:
        assert sum(float(a) * float(b) for a, b in (term.split("*") for term in terms.split(" + "))) == float(total)
        row, column = map(int, place.strip("()").split(","))
        assert (e.Ax if kind == "Window" else e.ATy)[row, column, 0] == float(total)


def test_where_the_transpose_is_the_inverse_it_is_not_denied():
    e = Explanation(Geometry(1), 3, weight=[[1.]])
    assert "for these numbers it happens to be x" in tell(e, False, 100)
    assert "but not its numbers" not in tell(e, False, 100)
    assert "Nothing could" not in tell(Explanation(Geometry(3, padding=1), 3), False, 100)


# ---- overlap


@given(geometries(max_kernel=6, max_stride=5, max_padding=4, max_dilation=4), st.integers(0, 1))
def test_along_an_axis(g, axis):
    """A line for each window with the elements that meet the pixels, and the counts."""
    elements = met(g, axis, telling_length(g, axis))
    lines = table(g, axis, WIDE).lines
    assert lines[0].endswith(": even" if is_even(g)[axis] else ": uneven")
    assert len(lines) == len(elements) + 3 and set(lines[-2]) == {"-"}
    for i, line in enumerate(lines[1:-2]):
        words = line.removeprefix(f"window {i} ").split()
        assert words == ["·" if k < 0 else str(k) for k in elements[i]]
    assert [int(n) for n in lines[-1].removeprefix("met by").split()] == (elements >= 0).sum(0).tolist()


@given(cases(max_stride=3))
@settings(max_examples=50)
def test_the_overlap_is_told_as_everywhere(case):
    """The verdict and the answer are those of `evenness`, and beside stands a case of the other kind."""
    e = Explanation(case.geometry, case.size, channels=(case.channels, case.filters))
    text, g, other = whole(e), e.geometry, comparison(e.geometry)
    flat = " ".join(text.split())
    assert verdict(g) in flat and answer_words(e) in flat
    for c in range(e.channels):
        found = shown(text, "Aᵀ 1, far from the border" + f", channel {c}" * (e.channels > 1))
        assert min(found.shape) >= 4
        period = answer(e)[:, :, c]
        np.testing.assert_array_equal(found, np.tile(period, [n // s for n, s in zip(found.shape, g.stride)]))
    for axis in (0, 1):
        dilated = f", dilation {other.dilation[axis]}" * (other.dilation[axis] > 1)
        assert (f"kernel {other.kernel[axis]}, stride {other.stride[axis]}{dilated}: "
                f"{'even' if is_even(other)[axis] else 'uneven'}") in text


@pytest.mark.parametrize("arguments, expected", [
    (["--kernel", "3", "--stride", "2"], ["stride 2 does not divide kernel 3", "by 2, 1, 2, 1, ... windows in turn",
                                          "uneven in both: a checkerboard", "is 0.48 times their mean",
                                          "Height and width:", "kernel 2, stride 2: even", "some kernels balance it"]),
    (["--kernel", "2", "--stride", "2"], ["stride 2 divides kernel 2", "by 1 window each", "The overlap is even",
                                          "That is the kernel's own pattern", "8 6 8 6 5 3 5 3"]),
    (["--kernel", "4", "--stride", "2"], ["stride 2 divides kernel 4", "by 2 windows each", "multiplies to 4 windows"]),
    (["--kernel", "4", "--stride", "3", "--dilation", "2"], ["stride 3 does not divide kernel 4",
                                                             "by 2, 1, 1, ... windows in turn"]),
    (["--kernel", "3", "--stride", "3", "--dilation", "2"], ["shares no factor with dilation 2", "overlap is even"]),
    (["--kernel", "4", "--stride", "2", "--dilation", "2"], ["stride 2 and dilation 2 share the factor 2",
                                                             "A pixel with 0 is met by no window"]),
    (["--kernel", "3x2", "--stride", "2"], ["horizontal stripes", "In height stride 2 does not", "Height: kernel 3, "
                                            "stride 2: uneven kernel 2, stride 2: even",
                                            "Width: kernel 2, stride 2: even window 0"]),
    (["--kernel", "1", "--stride", "2"], ["kernel 1 is shorter than stride 2", "1, 0, 1, 0, ...", "has gaps",
                                          "gaps cannot be balanced"]),
    (["--values", "1 2 1; 2 4 2; 1 2 1", "--stride", "2"], ["It balances the uneven overlap", "4 4 4 4"]),
    (["--stride", "1000000", "--size", "4"], ["There is no room to draw these windows.", "has gaps"]),
    ([], ["the stride is 1", "by 3 windows each", "whatever the kernel", "21 21 21 21", "kernel 3, stride 2: uneven"]),
])
def test_why_there_is_a_checkerboard_or_none(capsys, arguments, expected):
    text = " ".join(said(capsys, *arguments).split()).lower()
    for words in expected:
        assert words.lower() in text


@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_made_up_and_what_is_not_turned_is_said_once(transposed):
    text = " ".join(tell(Explanation(Geometry(3), 4), transposed, 100).split())
    assert text.count("y is not A x: it has numbers of its own") == text.count("mathematicians call this") == 1
    assert "gradient of a convolution with respect to what it reads is a transposed convolution" in text


def test_a_larger_image_shows_the_inside():
    found = blocks(tell(Explanation(Geometry(3), 4), False, 100))
    assert found["4x4 image"][1] == ["2", "4", "4", "2"] and found["6x6 image"][2] == ["3", "6", "9", "9", "6", "3"]
    assert "on a larger one" not in tell(Explanation(Geometry(3), 6), False, 100)


def test_what_is_too_long_to_be_drawn_is_said(capsys):
    text = said(capsys, "--kernel", "40x2", "--size", "45x4")
    assert text.count("There is no room to draw these windows.") == 1 and "by 40 windows each" in text


# ---- sizes


@given(cases(max_padding=4))
def test_the_size_table(case):
    g, e = case.geometry, Explanation(case.geometry, case.size)
    text = "\n\n".join(size_tables(e, WIDE))
    same = e.size[0] == e.size[1] and all(a == b for a, b in (g.kernel, g.stride, g.padding, g.dilation))
    for axis, name in ((0, "height and width"),) if same else ((0, "height"), (1, "width")):
        start = text.index(f"image {name}, px")
        head, *rows = text[start:].split("\n\n")[0].split("\n")[1:]
        assert head.split() == ["output_padding", *map(str, range(g.stride[axis]))]
        seen = set()
        for row in rows:
            windows, lengths = re.fullmatch(r"(\d+) windows? +(.*)", row).groups()
            for extra, length in enumerate(lengths.split()):
                if length == "·":
                    continue
                size = [int(length) if i == axis else e.size[i] for i in range(2)]
                assert g.output_size(size)[axis] == int(windows)
                extras = [extra if i == axis else e.output_padding[i] for i in range(2)]
                assert g.transposed_size(g.output_size(size), extras) == tuple(size)
                seen.add((int(windows), extra, int(length)))
        assert (e.out_size[axis], e.output_padding[axis], e.size[axis]) in seen
    assert f"Here {by(*e.out_size)} windows and output_padding" in text


def test_a_table_for_height_and_one_for_width(capsys):
    assert "image height and width, px" in said(capsys)
    text = said(capsys, "--size", "4x5")
    assert "image height, px" in text and "image width, px" in text


# ---- what fits


@given(geometries(max_kernel=7, max_stride=9, max_padding=5, max_dilation=3), st.integers(1, 24), st.integers(1, 24),
       st.integers(1, 4), st.integers(1, 4), st.integers(40, 130), st.booleans())
def test_no_line_is_longer_than_the_width(g, h, w, c, f, width, transposed):
    try:
        e = Explanation(g, (h, w), channels=(c, f))
    except ValueError:
        assume(False)
    for line in tell(e, transposed, width).splitlines():
        assert len(line) <= width and line == line.rstrip(), line


def test_what_is_left_out_is_said(capsys):
    text = " ".join(said(capsys, "--size", "8x8").split())
    assert "Left out: rows 12 to 63 of Aᵀ (64, 36)" in text and "columns 4" in text
    assert "of A (36, 64)" in text and "matrix.png shows more (option --out)." in text
    text = " ".join(said(capsys, "--size", "60x4").split())
    assert "rows 12 to 59 of 60x4 image; overlap.png shows more (option --out)." in text
    text = " ".join(said(capsys, "--channels", "4x5").split())
    assert "Left out: 14 more kernels." in text and "Left out: 16 more blocks of A; matrix.png shows more" in text
    assert "Left out: 1 more filters" not in text
    assert "Left out" not in said(capsys)


def test_a_matrix_that_is_cut():
    block = matrix("M", np.arange(50).reshape(1, 50), 20, group=2)
    assert block.lines == ["M", "[ 0  1 |  2  3 …]"] and block.cut == "columns 4 to 49 of M"
    assert matrix("M", np.arange(50).reshape(1, 50), 1000).cut == ""
    block = matrix("= v", np.arange(37).reshape(37, 1), 20, group=1)
    assert len(block.lines) == 14 and block.lines[-1].split() == ["…"] and block.cut == "rows 12 to 36 of v"


@pytest.mark.parametrize("value, text", [(0.1 + 0.2, "0.3"), (12345.678, "12345.7"), (1234.5, "1234.5"),
                                         (999.6, "999.6"), (999.96, "1000.0"), (7.00001, "7.000"),
                                         (-1234.96, "-1235.0"), (1e11, "100000000000"),
                                         (float("inf"), "inf"), (-17.0, "-17"), (-0.5, "-0.5")])
def test_numbers(value, text):
    assert number(value) == text


def test_what_rounding_leaves_is_zero():
    assert matrix("v", np.array([[1.0, 5e-17]]), 80).lines[1].split() == ["1", "0"]


# ---- a terminal


def test_a_sum_of_fractions_adds_up(capsys):
    text = " ".join(said(capsys, "--values", "250.5 0.0004", "--x", "4.25 1", "--y", "0.123456789").split())
    assert "kernel times pixel: 250.5*4.25 + 0.0004*1 = 1064.6254 " in text
    assert "kernel times y: 250.5*0.123456789 = 30.9259256445 " in text
    assert in_full(0.1 + 0.2) == "0.3" and in_full(-1e13) == "-1e+13" and in_full(7.0) == "7"


@given(cases())
def test_the_blocks_are_woven_as_the_page_says(case):
    assume(case.channels * case.filters > 1)
    e = Explanation(case.geometry, case.size, channels=(case.channels, case.filters))
    text, A = whole(e), e.A.dense()
    for f in range(e.filters):
        for c in range(e.channels):
            assert (shown(text, f"A, filter {f} from channel {c}") == A[f::e.filters, c::e.channels]).all()
            assert (shown(text, f"Aᵀ, channel {c} from filter {f}") == A.T[c::e.channels, f::e.filters]).all()
    flat = " ".join(text.split())
    assert f"the block of filter r and channel s is element (i*{e.filters} + r, j*{e.channels} + s) of A." in flat
    assert f"the block of channel r and filter s is element (i*{e.channels} + r, j*{e.filters} + s) of Aᵀ." in flat


@pytest.mark.parametrize("padding", [0, (0, 1), 1])
def test_padding_and_stride_are_told_where_they_are(padding):
    told = " ".join(tell(Explanation(Geometry(2, stride=(2, 3), padding=padding, dilation=1), 5), False, 100).split())
    assert ("Around the image, the padding is zero." in told) == (padding != 0)
    assert ("What falls on the padding is cut off." in told) == (padding != 0)
    assert "windows, 2x3 px apart (stride)." in told


@pytest.mark.parametrize("geometry, names", [
    (Geometry(3, stride=2, dilation=3), {"Height and width:", "image height and width, px"}),
    (Geometry(3, stride=2, dilation=(1, 3)), {"Height:", "Width:", "image height, px", "image width, px"}),
    (Geometry(3, stride=2, padding=(0, 1)), {"Height:", "Width:", "image height, px", "image width, px"}),
])
def test_height_and_width_are_told_apart_where_they_differ(geometry, names):
    told = tell(Explanation(geometry, 9), False, 100)
    assert set(re.findall(r"^(?:Height|Width).*:$|^ *image (?:height|width).*, px", told, re.MULTILINE)) == names


def test_stripes_have_an_unevenness_too():
    told = " ".join(tell(Explanation(Geometry((2, 3), stride=2), 5), False, 100).split())
    assert "the standard deviation of the counts is 0.33 times their mean" in told


def test_channels_of_the_answer_that_are_not_shown_are_counted():
    assert "1 more channels" in tell(Explanation(Geometry(2), 3, channels=(7, 1)), False, 100).split("Aᵀ 1, far")[-1]
    assert "more channels" not in tell(Explanation(Geometry(2), 3, channels=(6, 1)), False, 100).split("Aᵀ 1, far")[-1]
