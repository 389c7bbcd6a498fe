"""Sizes, by their defining inequality, and every size error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import Geometry
from tests.strategies import geometries, pairs


@given(geometries(), pairs(1, 40))
def test_output_size_is_the_largest_number_of_windows_that_fit(geometry, size):
    padded = [n + 2 * p for n, p in zip(size, geometry.padding)]
    if any(e > n for e, n in zip(geometry.extent, padded)):
        with pytest.raises(ValueError, match="kernel: its window spans"):
            geometry.output_size(size)
        return
    for o, n, e, s in zip(geometry.output_size(size), padded, geometry.extent, geometry.stride):
        assert (o - 1) * s + e <= n < o * s + e


@given(geometries(), pairs(1, 12), st.data())
def test_transposed_size_is_undone_by_output_size(geometry, size, data):
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in geometry.stride)
    full = [(n - 1) * s + e - 2 * p + op for n, s, e, p, op in
            zip(size, geometry.stride, geometry.extent, geometry.padding, extra)]
    if min(full) < 1:
        with pytest.raises(ValueError, match="transposed size .* must be at least 1"):
            geometry.transposed_size(size, extra)
        return
    assert geometry.transposed_size(size, extra) == tuple(full)
    assert geometry.output_size(tuple(full)) == size


@given(geometries(), pairs(1, 40))
def test_some_output_padding_returns_every_size(geometry, size):
    """The sizes that share one number of windows are exactly those that 0 <= output_padding < stride make."""
    if all(e <= n + 2 * p for e, n, p in zip(geometry.extent, size, geometry.padding)):
        out = geometry.output_size(size)
        extra = [n + 2 * p - e - (o - 1) * s for n, p, e, o, s in
                 zip(size, geometry.padding, geometry.extent, out, geometry.stride)]
        assert geometry.transposed_size(out, extra) == size


@pytest.mark.parametrize("arguments, message", [
    (dict(kernel=0), r"kernel must be an int or a \(height, width\) pair of ints, each at least 1; got 0"),
    (dict(kernel=(3, 3, 3)), "kernel must be"),
    (dict(kernel=2.5), "kernel must be"),
    (dict(kernel="33"), "kernel must be"),
    (dict(kernel=(3, True)), "kernel must be"),
    (dict(kernel=3, stride=0), "stride must be .* at least 1; got 0"),
    (dict(kernel=3, stride=(1, 0)), r"stride must be .* at least 1; got \(1, 0\)"),
    (dict(kernel=3, padding=-1), "padding must be .* at least 0; got -1"),
    (dict(kernel=3, dilation=0), "dilation must be .* at least 1; got 0"),
])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Geometry(**arguments)


@pytest.mark.parametrize("axis, size", [("height", (4, 9)), ("width", (9, 4))])
def test_a_window_larger_than_the_padded_image_is_refused_with_its_axis(axis, size):
    with pytest.raises(ValueError, match=rf"spans 7 px in {axis} .* only 6 px \(4 \+ 2·1 padding\)"):
        Geometry(4, padding=1, dilation=2).output_size(size)


@pytest.mark.parametrize("axis, extra", [("height", (2, 0)), ("width", (0, 2))])
def test_output_padding_stays_below_the_stride_whatever_the_dilation(axis, extra):
    with pytest.raises(ValueError, match=rf"below the stride, 0 to 1 in {axis}; got 2.*below the dilation"):
        Geometry(3, stride=2, dilation=3).transposed_size(4, extra)


def test_a_pair_gives_each_axis_its_own_geometry():
    geometry = Geometry((3, 2), (2, 1), (1, 0), (1, 3))
    assert geometry.extent == (3, 4)
    assert geometry.output_size((8, 9)) == (4, 6)
    assert geometry.transposed_size((4, 6), (1, 0)) == (8, 9)
