"""ConvMatrix: the triple identity, the explicit matrix, the loop oracle, the slides' example, the errors."""

import numpy as np
import pytest
from hypothesis import given

from minunet import ConvMatrix, Geometry
from minunet.convolution import im2col
from minunet.convolution.windows import windows
from tests import naive
from tests.checks import assert_close, assert_triple_identity
from tests.strategies import cases


@given(cases())
def test_three_products_agree_with_each_other(case):
    x, w, y = case.arrays()
    assert_triple_identity(ConvMatrix(w, case.geometry, case.size), x, y, 1e-10)


@given(cases())
def test_three_products_agree_with_each_other_in_float32(case):
    x, w, y = case.arrays(np.float32)
    A = ConvMatrix(w, case.geometry, case.size)
    assert (A @ x).dtype == (A.T @ y).dtype == A.weight_grad(x, y).dtype == np.float32
    assert_triple_identity(A, x, y, 1e-5)


@given(cases())
def test_products_equal_the_loop_oracle(case):
    x, w, y = case.arrays()
    g = case.geometry
    A = ConvMatrix(w, g, case.size)
    assert_close(A @ x, naive.conv2d(x, w, g.stride, g.padding, g.dilation), 1e-10)
    assert_close(A.T @ y, naive.conv_transpose2d(y, w, g.stride, g.padding, g.dilation, case.size), 1e-10)


@given(cases())
def test_products_equal_the_explicit_matrix(case):
    x, w, y = case.arrays()
    A = ConvMatrix(w, case.geometry, case.size)
    dense, sparse = A.dense(), A.sparse()
    assert dense.shape == A.shape == sparse.shape and A.T.shape == A.shape[::-1]
    rows_x, rows_y = x.reshape(case.batch, -1), y.reshape(case.batch, -1)
    assert_close((A @ x).reshape(rows_y.shape), rows_x @ dense.T, 1e-10)
    assert_close((A.T @ y).reshape(rows_x.shape), rows_y @ dense, 1e-10)
    assert_close((sparse @ rows_x.T).T, rows_x @ dense.T, 1e-10)
    np.testing.assert_array_equal(A.T.dense(), dense.T)
    np.testing.assert_array_equal(A.T.sparse().toarray(), dense.T)
    # column by column: A's columns are its products with unit vectors
    one = np.zeros(A.shape[1])
    one[case.seed % A.shape[1]] = 1
    assert_close(A @ one, dense[:, case.seed % A.shape[1]], 1e-12)


@given(cases())
def test_blocks_of_any_size_give_the_same_products(case):
    """The loop over blocks, on images too small to need one: every pixel its own block, then rows, then images.

    And the weight gradient as one partial sum, and as many.
    """
    x, w, y = case.arrays()
    A = ConvMatrix(w, case.geometry, case.size)
    expected = A @ x, A.T @ y, A.weight_grad(x, y)
    for rows, group in ((1, 1), (1, 1 << 30), (A.out_size[1], 1), (A.out_size[0] * A.out_size[1] * 2, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(im2col, "BLOCK_ROWS", rows)
            patch.setattr(im2col, "BLOCK_BYTES", 1)
            patch.setattr(im2col, "GROUP_PIXELS", group)
            for a, b in zip((A @ x, A.T @ y, A.weight_grad(x, y)), expected):
                assert_close(a, b, 1e-12)


def test_blocks_cover_every_pixel_once_in_contiguous_pieces():
    for images, size, row_bytes in [(5, (7, 9), 4), (5, (7, 9), 4000), (3, (64, 64), 2304), (2, (3, 4096), 40000)]:
        seen = np.zeros((images, *size), int)
        for block in im2col.blocks(images, size, row_bytes):
            assert seen[block].flags.c_contiguous
            assert seen[block].size * row_bytes <= max(im2col.BLOCK_BYTES, im2col.BLOCK_ROWS * row_bytes)
            seen[block] += 1
        assert (seen == 1).all()


@given(cases())
def test_bands_that_are_added_at_the_same_time_share_no_pixel(case):
    """What lets threads add to one image: two of them never add to one pixel. And no block is lost."""
    geometry, out_size = case.geometry, case.geometry.output_size(case.size)
    height, width = (n + 2 * p for n, p in zip(case.size, geometry.padding))
    pixels = np.arange(case.batch * height * width).reshape(case.batch, height, width, 1)
    view = windows(pixels, geometry, out_size)
    for rows in (1, 2 * out_size[1], out_size[0] * out_size[1]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(im2col, "BLOCK_ROWS", rows)
            patch.setattr(im2col, "BLOCK_BYTES", 1)
            cut = im2col.blocks(case.batch, out_size, 4)
        phases = im2col._bands(cut, geometry)
        assert sorted(map(str, cut)) == sorted(str(block) for phase in phases for band in phase for block in band)
        for phase in phases:
            touched = [np.unique(np.concatenate([view[block].ravel() for block in band])) for band in phase]
            together = np.concatenate([*touched, []])
            assert len(np.unique(together)) == len(together)


def test_columns_are_never_whole():
    """A 256x256 image with 16 channels has 36 MiB of columns; the products' memory stays far below that."""
    import tracemalloc

    x = np.zeros((1, 256, 256, 16), np.float32)
    A = ConvMatrix(np.zeros((3, 3, 16, 16), np.float32), Geometry(3, padding=1), (256, 256))
    for product in (lambda: A @ x, lambda: A.T @ x, lambda: A.weight_grad(x, x)):
        tracemalloc.start()
        product()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.5 * x.nbytes + 3 * im2col.BLOCK_BYTES     # a padded image, a result, scratch


def test_the_slides_example():
    """A 3x3 kernel on a 4x4 input: 16 numbers to 4 through A, and 4 back to 16 through its transpose."""
    kernel = np.array([[1, 4, 1], [1, 4, 3], [3, 3, 1]], float)
    A = ConvMatrix(kernel.reshape(3, 3, 1, 1), Geometry(3), 4)
    expected = np.array([
        [1, 4, 1, 0, 1, 4, 3, 0, 3, 3, 1, 0, 0, 0, 0, 0],
        [0, 1, 4, 1, 0, 1, 4, 3, 0, 3, 3, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 4, 1, 0, 1, 4, 3, 0, 3, 3, 1, 0],
        [0, 0, 0, 0, 0, 1, 4, 1, 0, 1, 4, 3, 0, 3, 3, 1]], float)
    np.testing.assert_array_equal(A.dense(), expected)
    x = np.array([4, 5, 8, 7, 1, 8, 8, 8, 3, 6, 6, 4, 6, 5, 7, 8], float)
    np.testing.assert_array_equal(A @ x, expected @ x)
    np.testing.assert_array_equal(A @ x, [122, 148, 126, 134])
    y = np.array([2, 1, 4, 4], float)
    np.testing.assert_array_equal(A.T @ y, [2, 9, 6, 1, 6, 29, 30, 7, 10, 29, 33, 13, 12, 24, 16, 4])


def test_sparse_matrices_are_in_compressed_rows():
    A = ConvMatrix(np.ones((2, 3, 1, 2)), Geometry((2, 3)), 5)
    assert A.sparse().format == A.T.sparse().format == "csr"


def test_dense_stops_above_2_to_the_28_elements():
    one = np.ones((1, 1, 1, 1), np.float32)
    ConvMatrix(one, Geometry(1), (128, 128))._refuse_large()        # exactly 2^28: allowed, but not made here
    with pytest.raises(ValueError, match=r"16512 x 16512 = 272646144 elements are more than 2\^28"):
        ConvMatrix(one, Geometry(1), (128, 129)).dense()


def test_transposing_twice_is_the_same_object():
    A = ConvMatrix(np.ones((3, 3, 1, 1)), Geometry(3), 4)
    assert A.T.T is A


def test_repr_tells_sizes_geometry_algorithm_and_dtype():
    A = ConvMatrix(np.ones((3, 2, 4, 5), np.float32), Geometry((3, 2), stride=2, padding=(1, 0)), (8, 6))
    assert repr(A) == ("ConvMatrix (60, 192): 8x6x4 -> 4x3x5, kernel 3x2, stride 2, padding 1x0, dilation 1, im2col, "
                       "float32")
    assert repr(A.T) == f"transpose (192, 60) of {A!r}"


def test_dtype_follows_weight_and_precision():
    g = Geometry(1)
    for weight, precision, dtype in [
        (np.ones((1, 1, 1, 1), np.float32), "float32", np.float32), (np.ones((1, 1, 1, 1)), "float32", np.float64),
        (np.ones((1, 1, 1, 1), np.float32), "float64", np.float64), ([[[[2]]]], "float32", np.float32),
    ]:
        A = ConvMatrix(weight, g, 2, precision=precision)
        assert A.dtype == A.T.dtype == dtype == (A @ np.ones((1, 2, 2, 1))).dtype == A.dense().dtype


W = np.ones((3, 3, 2, 5))


@pytest.mark.parametrize("make, message", [
    (lambda: ConvMatrix(W, Geometry(2), 4), r"weight must be \(KH, KW, C, F\) with \(KH, KW\) = \(2, 2\)"),
    (lambda: ConvMatrix(W[0], Geometry(3), 4), r"its shape is \(3, 2, 5\)"),
    (lambda: ConvMatrix(W, Geometry(3), 2), "kernel: its window spans 3 px in height"),
    (lambda: ConvMatrix(W, Geometry(3), 0), "size must be"),
    (lambda: ConvMatrix(W, Geometry(3), 4, algorithm="fft"), "auto, im2col, winograd .* got 'fft'"),
    (lambda: ConvMatrix(W, Geometry(3), 4, precision="tf32"), "precision must be one of float32, float64 .* 'tf32'"),
    (lambda: ConvMatrix(W, Geometry(3), 4) @ np.ones((1, 4, 4, 3)), r"x must be \(N, 4, 4, 2\).*\(1, 4, 4, 3\)"),
    (lambda: ConvMatrix(W, Geometry(3), 4) @ np.ones(31), "or a vector of 32 numbers"),
    (lambda: ConvMatrix(W, Geometry(3), 4).T @ np.ones((1, 4, 4, 5)), r"y must be \(N, 2, 2, 5\)"),
    (lambda: ConvMatrix(W, Geometry(3), 4).weight_grad(np.ones((2, 4, 4, 2)), np.ones((1, 2, 2, 5))), "2 images"),
    (lambda: ConvMatrix(W, Geometry(3), 512).dense(), r"more than 2\^28; use sparse"),
    (lambda: ConvMatrix(W, Geometry(3), 512).T.dense(), r"more than 2\^28; use sparse"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
