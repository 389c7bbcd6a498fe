"""Pictures of the matrix and of im2col: every number in them by loops, every text in its place."""

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from minunet import Geometry
from minunet.study.explanation import Explanation
from minunet.study.pictures import PICTURES, columns_sheet, matrix_sheet
from tests import naive
from tests.strategies import cases
from tests.study.sheets import assert_margin, assert_readable, assert_shows, prose

# non-square, padding larger than the window, channels, too large for numbers, too large for cells, one window alone
GEOMETRIES = [
    Explanation(Geometry(3), 4),
    Explanation(Geometry((3, 2), (3, 2), (1, 0), (1, 2)), (7, 9)),
    Explanation(Geometry(2, stride=3, padding=3), 2),
    Explanation(Geometry(3, padding=1), 4, channels=(8, 5)),
    Explanation(Geometry(3, stride=2, padding=1), 5, weight=np.random.default_rng(0).standard_normal((3, 3)) * 1e4),
    Explanation(Geometry(1), 1),
    Explanation(Geometry(3, padding=1), 28),
    Explanation(Geometry(24), 32),
    Explanation(Geometry(1, stride=1024), (500, 1000)),
]


def products(e):
    """A x and Aᵀ y by loops."""
    g = e.geometry
    arguments = e.weight, g.stride, g.padding, g.dilation
    return (naive.conv2d(e.x[None], *arguments)[0], naive.conv_transpose2d(e.y[None], *arguments, e.size)[0])


def matrix_of(e):
    """A by loops, and where it has zeros of its structure."""
    g, shape = e.geometry, (*e.out_size, e.filters, *e.size, e.channels)
    values, zeros = np.zeros(shape), np.ones(shape, bool)
    for row, column, i, j in np.ndindex(*e.out_size, *g.kernel):
        h, w = (o * s - p + k * d for o, k, s, p, d in zip((row, column), (i, j), g.stride, g.padding, g.dilation))
        if 0 <= h < e.size[0] and 0 <= w < e.size[1]:
            values[row, column, :, h, w], zeros[row, column, :, h, w] = e.weight[i, j].T, False
    return values.reshape(e.A.shape), zeros.reshape(e.A.shape)


def assert_matrix_shows(e):
    sheet = matrix_sheet(e)
    assert_readable(sheet)
    assert_readable(matrix_sheet(e, True))
    (forward, back), (A, zeros) = products(e), matrix_of(e)
    rows, columns = sheet.grids["A"].rows, sheet.grids["A"].columns
    np.testing.assert_allclose(sheet.grids["A"].numbers[rows, columns], A[rows, columns], atol=1e-12)
    for title, expected in (("x", e.x), ("A x", forward), ("y", e.y), ("Aᵀ y", back)):
        assert_shows(sheet.grids[title], expected.reshape(-1, 1))
    texts = sheet.grids["A"].texts
    if (texts != "").any():
        assert_shows(sheet.grids["A"], A)
        assert_shows(sheet.grids["Aᵀ"], A.T)
        assert ((texts == "·") == zeros[rows, columns]).all()
    return sheet


@given(cases())
@settings(max_examples=12)
def test_the_matrices_and_vectors(case):
    assert_matrix_shows(Explanation(case.geometry, case.size, channels=(case.channels, case.filters)))


def test_the_slides_matrix_is_written_out():
    sheet = assert_matrix_shows(Explanation(Geometry(3), 4))
    assert sheet.grids["A"].texts.shape == (4, 16) and sheet.grids["A"].texts[0].tolist() == list("141·143·331·····")
    assert sheet.grids["A x"].texts.ravel().tolist() == ["122", "148", "126", "134"]


def test_structural_zeros_are_not_zeros_of_the_kernel():
    texts = matrix_sheet(Explanation(Geometry(2), (2, 3), weight=[[0, 1], [2, 0]])).grids["A"].texts
    assert texts.tolist() == [list("01·20·"), list("·01·20")]


def test_blocks_are_rows_of_windows_by_rows_of_the_image():
    e = Explanation(Geometry(2, stride=2), 4, channels=(2, 3))
    (rows, _), (columns, _) = matrix_sheet(e).grids["A"].blocks
    assert (rows, columns) == (2 * 3, 4 * 2)
    A = e.A.dense()
    for i in range(2):
        for h in range(4):
            assert A[i * rows:(i + 1) * rows, h * columns:(h + 1) * columns].any() == (h // 2 == i)


def assert_columns_show(e):
    g = e.geometry
    sheet = columns_sheet(e)
    assert_readable(sheet)
    assert_readable(columns_sheet(e, True))
    forward = e.columns @ e.weight.reshape(-1, e.filters)
    windows = [grid for name, grid in sheet.grids.items() if name.startswith("row ")]
    assert 1 <= len(windows) <= len(e.columns)
    padded = np.pad(e.x, [(p, p) for p in g.padding] + [(0, 0)])
    for window, grid in enumerate(windows):
        row, column = window // e.out_size[1] * g.stride[0], window % e.out_size[1] * g.stride[1]
        patch = padded[row:row + g.extent[0]:g.dilation[0], column:column + g.extent[1]:g.dilation[1]]
        assert grid.rows == slice(window, window + 1)
        np.testing.assert_array_equal(grid.numbers[window], patch.ravel())
        assert_shows(grid, e.columns)
        assert_shows(sheet.grids[f"A x {window}"], forward)
    for channel in range(min(3, e.channels)):
        grid = sheet.grids[f"patch {len(windows) - 1} {channel}"]
        assert_shows(grid, padded[..., channel])
        np.testing.assert_array_equal(np.sort(grid.numbers[grid.lit]), np.sort(patch[..., channel].ravel()))
    assert_shows(sheet.grids["kernel"], e.weight.reshape(-1, e.filters))


@given(cases())
@settings(max_examples=12)
def test_the_column_matrix(case):
    assert_columns_show(Explanation(case.geometry, case.size, channels=(case.channels, case.filters)))


@pytest.mark.parametrize("e", GEOMETRIES[1:], ids=lambda e: repr(e.geometry))
def test_every_size_can_be_drawn(e):
    assert_columns_show(e)
    if e.columns.size * e.filters < 1e4:
        assert_matrix_shows(e)
    else:
        assert_readable(matrix_sheet(e))


def test_what_is_left_out_is_said():
    assert "Only a part" not in prose(matrix_sheet(GEOMETRIES[0])) + prose(columns_sheet(GEOMETRIES[0]))
    assert ("rows 0 to 719 of 784 of A (the columns of Aᵀ, y and A x alike); columns 0 to 719 of 784 of A (the rows of "
            "Aᵀ, x and Aᵀ y alike).") in prose(matrix_sheet(GEOMETRIES[6]))
    assert "no room for the numbers" in prose(matrix_sheet(GEOMETRIES[6]))
    assert "The first 6 of 784 windows are shown." in prose(columns_sheet(GEOMETRIES[6]))
    assert "The first 3 of 8 channels of the patches are shown." in prose(columns_sheet(GEOMETRIES[3]))
    assert "columns 0 to 3 of 5 of kernel" in prose(columns_sheet(GEOMETRIES[3]))
    assert "of 576 of the column matrix" in prose(columns_sheet(GEOMETRIES[7]))


def test_of_a_matrix_all_that_is_cut_is_named():
    sheet = matrix_sheet(Explanation(Geometry(7, stride=3), 40))
    text = " ".join(prose(sheet).split())
    assert "Only a part is shown: columns 0 to 719 of 1,600 of A (the rows of Aᵀ, x and Aᵀ y alike)." in text
    shown = {name: (grid.rows, grid.columns) for name, grid in sheet.grids.items()}
    part, windows, one = slice(0, 720), slice(0, 144), slice(0, 1)
    assert shown == {"A": (windows, part), "Aᵀ": (part, windows), "x": (part, one), "Aᵀ y": (part, one),
                     "y": (windows, one), "A x": (windows, one)}


def test_a_block_of_several_kernels_holds_a_row_of_each():
    """As the caption says: filter by filter downwards, channel by channel to the right."""
    e = Explanation(Geometry(2, stride=2), 4, channels=(2, 3))
    sheet = matrix_sheet(e)
    text = prose(sheet)
    assert "One row of A is one window and one filter, one column one pixel and one channel." in text
    assert "one row of all the kernels again and again" in text
    block = sheet.grids["A"].numbers[:3, 8:16]      # the first window with the image's second row
    for f, k, c in np.ndindex(3, 2, 2):
        assert block[f, 2 * k + c] == e.weight[1, k, c, f]
    text = prose(matrix_sheet(GEOMETRIES[0]))
    assert "One row of A is one window, one column one pixel." in text
    assert "one row of the kernel again and again, moved by the stride. Dots" in text


def test_the_transposed_convolution_comes_first_where_it_is_asked_for():
    e = GEOMETRIES[1]
    image, windows = "image 7x9", "windows 3x4"
    for sheet_of in (matrix_sheet, columns_sheet):
        assert f": {image} → {windows}" in prose(sheet_of(e)) and f": {windows} → {image}" in prose(sheet_of(e, True))
    for is_transposed in (False, True):
        sheet = matrix_sheet(e, is_transposed)
        A, AT = sheet.grids["A"], sheet.grids["Aᵀ"]
        assert ((AT.y, AT.x) < (A.y, A.x)) == is_transposed
        assert ("the transposed convolution goes this way from right to left" in
                prose(columns_sheet(e, is_transposed)).lower()) == is_transposed


def test_the_way_back_through_the_column_matrix():
    """As the caption says: y times the kernel, transposed, are the rows, and these are added to their patches."""
    e = Explanation(Geometry(3, stride=2, padding=1), 5, channels=(2, 3))
    rows = e.y.reshape(-1, 3) @ e.weight.reshape(-1, 3).T
    image = np.zeros((7, 7, 2))
    for window, row in enumerate(rows):
        h, w = (2 * i for i in divmod(window, 3))
        image[h:h + 3, w:w + 3] += row.reshape(3, 3, 2)
    np.testing.assert_allclose(image[1:6, 1:6], e.ATy)


@pytest.mark.parametrize("name", PICTURES)
def test_the_file(name, tmp_path):
    draw, sentence = PICTURES[name]
    assert sentence and "\n" not in sentence
    for path, *options in (("first.png",), ("second.png",), ("third.png", True)):
        draw(Explanation(Geometry(3, stride=2, padding=1), 4), tmp_path / path, *options)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert name == "overlap.png" or (tmp_path / "first.png").read_bytes() != (tmp_path / "third.png").read_bytes()
    assert (tmp_path / "first.png").stat().st_size < 200_000
    with Image.open(tmp_path / "first.png") as picture:
        assert picture.format == "PNG" and 1400 < picture.width < 2000 and picture.height > 400
        assert_margin(picture, 2)
