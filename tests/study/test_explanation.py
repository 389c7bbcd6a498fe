"""Everything that an explanation shows, against loops that use none of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import ConvMatrix, Geometry
from minunet.study.explanation import (
    LIMIT,
    SLIDES_IMAGE,
    SLIDES_KERNEL,
    SLIDES_WINDOWS,
    Explanation,
    is_even,
    sizes,
    unevenness,
)
from tests import naive
from tests.checks import assert_close
from tests.strategies import cases, geometries


def explanation(case):
    return Explanation(case.geometry, case.size, channels=(case.channels, case.filters))


def meetings(geometry, size):
    """(window, pixel, element) of every window and kernel element that lies in the image, by loops."""
    oh, ow = geometry.output_size(size)
    found = []
    for row in range(oh):
        for column in range(ow):
            for i in range(geometry.kernel[0]):
                for j in range(geometry.kernel[1]):
                    h = row * geometry.stride[0] - geometry.padding[0] + i * geometry.dilation[0]
                    w = column * geometry.stride[1] - geometry.padding[1] + j * geometry.dilation[1]
                    if 0 <= h < size[0] and 0 <= w < size[1]:
                        found.append((row * ow + column, h * size[1] + w, i * geometry.kernel[1] + j))
    return found


def test_the_slides_example():
    e = Explanation(Geometry(3), 4)
    assert e.A.shape == (4, 16)
    for shown, slides in ((e.weight[..., 0], SLIDES_KERNEL), (e.x, SLIDES_IMAGE), (e.y, SLIDES_WINDOWS)):
        assert (shown[..., 0] == slides).all()
    assert e.Ax[..., 0].tolist() == [[122, 148], [126, 134]]
    assert e.ATy[..., 0].tolist() == [[2, 9, 6, 1], [6, 29, 30, 7], [10, 29, 33, 13], [12, 24, 16, 4]]
    assert e.overlap.tolist() == [[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]


@given(cases())
def test_products_are_those_of_the_loops(case):
    e, g = explanation(case), case.geometry
    assert_close(e.Ax, naive.conv2d(e.x[None], e.weight, g.stride, g.padding, g.dilation)[0], 1e-12)
    assert_close(e.ATy, naive.conv_transpose2d(e.y[None], e.weight, g.stride, g.padding, g.dilation, e.size)[0], 1e-12)
    first, second = e.identity
    assert first == pytest.approx(second, rel=1e-12)
    assert_close(e.ATAx.ravel(), e.A.dense().T @ (e.A.dense() @ e.x.ravel()), 1e-12)


def test_an_orthogonal_matrix_returns_x():
    haar = np.array([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2   # (F, KH, KW)
    orthogonal = Explanation(Geometry(2, stride=2), 4, haar.transpose(1, 2, 0)[:, :, None])
    assert orthogonal.returns_x and orthogonal.A.shape == (16, 16)
    tiny = Explanation(Geometry(3), 4, x=np.full((4, 4), 1e-11))
    assert not tiny.returns_x


@given(cases())
def test_taps_and_overlap(case):
    e = explanation(case)
    expected = meetings(case.geometry, case.size)
    assert list(zip(*(t.tolist() for t in e.taps))) == expected
    counts = np.zeros(e.size, int)
    for _, pixel, _ in expected:
        counts.flat[pixel] += 1
    assert (e.overlap == counts).all()


@given(cases())
def test_the_column_matrix_holds_each_window_as_a_row(case):
    e = explanation(case)
    columns = np.zeros((np.prod(e.out_size), np.prod(case.geometry.kernel), case.channels))
    for window, pixel, element in meetings(case.geometry, case.size):
        columns[window, element] = e.x.reshape(-1, case.channels)[pixel]
    assert (e.columns == columns.reshape(len(columns), -1)).all()
    assert_close(e.columns @ e.weight.reshape(-1, case.filters), e.Ax.reshape(-1, case.filters), 1e-12)


@given(cases())
def test_zeros_between_and_a_turned_kernel_give_the_transposed_convolution(case):
    """Also where padding is larger than the window, so that a window may lie in the padding alone."""
    e = explanation(case)
    assert_close((e.flipped @ e.stuffed[None])[0], e.ATy, 1e-12)
    assert np.count_nonzero(e.stuffed) <= e.y.size


def test_a_window_in_the_padding_alone():
    e = Explanation(Geometry(2, stride=3, padding=3), 2)
    assert e.out_size == (3, 3) and np.count_nonzero(e.stuffed) < e.y.size
    assert_close((e.flipped @ e.stuffed[None])[0], e.ATy, 1e-12)


@given(geometries(), st.integers(1, 6), st.data())
def test_named_from_the_other_end(geometry, windows, data):
    extra = data.draw(st.tuples(*(st.integers(0, s - 1) for s in geometry.stride)))
    try:
        size = geometry.transposed_size(windows, extra)
    except ValueError as error:
        with pytest.raises(ValueError, match=r"^padding: the transposed size"):
            Explanation.transposed(geometry, windows, extra)
        assert "at least 1" in str(error)
        return
    e = Explanation.transposed(geometry, windows, extra)
    assert e.size == size and e.out_size == (windows, windows) and e.output_padding == extra


@given(geometries())
def test_overlap_is_even_inside_exactly_where_it_is_said(geometry):
    far = tuple(3 * (e + s + p) + 5 * s for e, s, p in zip(geometry.extent, geometry.stride, geometry.padding))
    ones = ConvMatrix(np.ones((*geometry.kernel, 1, 1)), geometry, far)
    overlap = (ones.T @ np.ones((1, *ones.out_size, 1)))[0, :, :, 0]
    # from the reach of one window off either end, a whole number of strides
    inside = overlap[tuple(slice(e, e + s * ((n - e - s + 1 - e) // s)) for n, e, s in
                           zip(far, geometry.extent, geometry.stride))]
    assert inside.size
    assert all(is_even(geometry)) == (inside.std() < 1e-9)
    assert unevenness(geometry) == pytest.approx(inside.std() / inside.mean(), abs=1e-9)
    if geometry.dilation == (1, 1):
        assert is_even(geometry) == tuple(k % s == 0 for k, s in zip(geometry.kernel, geometry.stride))


def test_evenness_of_a_stride_that_no_memory_holds():
    geometry = Geometry(3, stride=10**9)
    assert is_even(geometry) == (False, False)
    assert unevenness(geometry) == pytest.approx(10**9 / 3)


@given(geometries(), st.integers(1, 12))
def test_sizes_that_share_a_number_of_windows(geometry, around):
    around = max(around, geometry.extent[0] - 2 * geometry.padding[0])
    found = sizes(geometry, 0, around)
    assert any(around in row.images for row in found)
    for row in found:
        for image in row.images:
            width = max(1, geometry.extent[1])
            assert geometry.output_size((image, width))[0] == row.windows
        before, after = row.images[0] - 1, row.images[-1] + 1
        assert geometry.output_size((after, width))[0] != row.windows
        assert before < 1 or before + 2 * geometry.padding[0] < geometry.extent[0] or (
            geometry.output_size((before, width))[0] != row.windows)


@pytest.mark.parametrize("arguments, words", [
    (dict(size=(2, 4)), "kernel: its window spans 3 px in height"),
    (dict(weight=[[1, 2], [3, 4]]), r"weight must be \(3, 3, C, F\), .*; its shape is \(2, 2\)"),
    (dict(weight=[[1, 2], [3]]), "weight must be numbers"),
    (dict(weight=[["a"] * 3] * 3), "weight must be numbers"),
    (dict(weight=np.full((3, 3), np.nan)), "weight must be finite numbers; got nan"),
    (dict(x=np.ones((4, 5))), r"x must be \(4, 4, 1\), .*; its shape is \(4, 5\)"),
    (dict(y=np.ones((2, 2, 2))), r"y must be \(2, 2, 1\)"),
    (dict(channels=(0, 1)), "channels must be"),
    (dict(size=200), r"would have 39,204 x 40,000 elements, at most 1,048,576"),
    (dict(size=10**6), "can be looked at"),
    (dict(channels=(10**6, 10**6)), "can be looked at"),
])
def test_what_does_not_fit_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Explanation(Geometry(3), **{"size": 4} | arguments)


@pytest.mark.parametrize("geometry, size", [
    (Geometry(10**5, padding=10**5), 1), (Geometry(1, padding=10**6), 1),
    (Geometry(2, dilation=10**6, padding=10**6), 2),
])
def test_what_would_fill_the_memory_is_refused(geometry, size):
    with pytest.raises(ValueError, match=f"at most {LIMIT:,} can be looked at"):
        Explanation(geometry, size)


def test_nearly_x_is_not_x():
    assert Explanation(Geometry(1), 3, [[-1]]).returns_x
    assert not Explanation(Geometry(1), 3, [[1 + 1e-10]]).returns_x
