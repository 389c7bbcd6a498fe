"""Evenness against loops: who meets whom, counts far from the border, verdicts, and what a kernel makes of it."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minunet import Geometry
from minunet.study.evenness import (
    answer,
    answer_words,
    comparison,
    far,
    has_gaps,
    inside,
    line,
    met,
    profile,
    remainders,
    telling_length,
    verdict,
)
from minunet.study.explanation import Explanation, is_even, unevenness
from tests import naive
from tests.strategies import cases, geometries

wide = geometries(max_kernel=6, max_stride=5, max_padding=4, max_dilation=4)


def far_inside(weight, geometry, y=1.0):
    """One period of Aᵀ y for a constant y by loops, on an image so large that it lies far from the border."""
    plain = Geometry(geometry.kernel, geometry.stride, 0, geometry.dilation)
    first = [-(-e // s) * s for e, s in zip(plain.extent, plain.stride)]
    size = tuple(f + s + e for f, s, e in zip(first, plain.stride, plain.extent))
    ones = np.full((1, *plain.output_size(size), weight.shape[3]), y)
    whole = naive.conv_transpose2d(ones, weight, plain.stride, plain.padding, plain.dilation, size)[0]
    return whole[first[0]:first[0] + plain.stride[0], first[1]:first[1] + plain.stride[1]]


@given(wide, st.integers(0, 1))
def test_who_meets_whom_along_an_axis(g, axis):
    length = telling_length(g, axis)
    found = met(g, axis, length)
    expected = np.full_like(found, -1)
    for window in range(len(found)):
        for k in range(g.kernel[axis]):
            pixel = window * g.stride[axis] - g.padding[axis] + k * g.dilation[axis]
            if 0 <= pixel < length:
                expected[window, pixel] = k
    np.testing.assert_array_equal(found, expected)
    counts = profile(g, axis, length)
    np.testing.assert_array_equal(counts, (expected >= 0).sum(0))
    stride, first = g.stride[axis], far(g, axis)
    two = counts[first:first + 2 * stride]
    assert len(two) == 2 * stride and (two[:stride] == two[stride:]).all()
    assert is_even(g)[axis] == (len(set(two.tolist())) == 1)
    assert far(g, axis) == 0 or g.extent[axis] - 2 - g.padding[axis] in range(len(counts))


@given(wide)
def test_inside(g):
    period = far_inside(np.ones((*g.kernel, 1, 1)), g)[..., 0]
    found = inside(g)
    assert min(found.shape) >= 8 and all(n % s == 0 for n, s in zip(found.shape, g.stride))
    np.testing.assert_array_equal(found, np.tile(period, [n // s for n, s in zip(found.shape, g.stride)]))
    assert has_gaps(g) == (0 in found)
    assert (len(np.unique(found)) == 1) == all(is_even(g))
    assert found.std() / found.mean() == pytest.approx(unevenness(g))


@given(wide)
def test_the_comparison_is_of_the_other_kind_and_near(g):
    other = comparison(g)
    assert all(is_even(other)) != all(is_even(g)) and other.padding == g.padding
    if max(g.stride) > 1:
        assert other.stride == g.stride
    for axis in (0, 1):
        if max(g.stride) > 1 == g.stride[axis] or is_even(g)[axis] and not all(is_even(g)):
            assert (other.kernel[axis], other.dilation[axis]) == (g.kernel[axis], g.dilation[axis])
        elif not is_even(g)[axis]:
            assert is_even(other)[axis] and abs(other.kernel[axis] - g.kernel[axis]) < g.stride[axis]


@given(wide)
def test_remainders(g):
    for axis in (0, 1):
        stacks = remainders(g, axis)
        for k in range(g.kernel[axis]):
            (_, remainder), = np.argwhere(stacks == k)
            assert remainder == k * g.dilation[axis] % g.stride[axis]
        assert np.isfinite(stacks).sum() == g.kernel[axis] and np.isfinite(stacks[-1]).any()


@given(wide)
def test_the_verdict_says_what_is(g):
    said, even, counts = verdict(g), is_even(g), inside(g)
    rows, columns = (profile(g, axis, telling_length(g, axis))[far(g, axis):] for axis in (0, 1))
    names = {"The overlap is even.", "The overlap has gaps", "horizontal stripes", "vertical stripes", "a checkerboard"}
    told = {name for name in names if name in said}
    if all(even):
        assert told == {"The overlap is even."} and len(np.unique(counts)) == 1
    elif not counts.all():
        assert told == {"The overlap has gaps"}
    elif any(even):
        stripes = "vertical" if np.ptp(counts, axis=0).max() == 0 else "horizontal"
        assert told == {f"{stripes} stripes"}
    else:
        assert told == {"a checkerboard"} and np.ptp(counts, axis=0).max() and np.ptp(counts, axis=1).max()
    sentences = re.split(r"\. (?=In |On |The )", said)[:1 if "In height and in width" in said else 2]
    for axis, (sentence, along) in enumerate(zip(sentences, (rows, columns))):
        k, s, d = g.kernel[axis], g.stride[axis], g.dilation[axis]
        shares = np.gcd(s, d) > 1
        reason = ("the stride is 1" if s == 1 else f"stride {s} divides kernel {k}" if even[axis] else
                  f"kernel {k} is shorter than stride {s}" if k < s else
                  f"share the factor {np.gcd(s, d)}" if shares else f"stride {s} does not divide kernel {k}")
        assert reason in sentence and even[axis] == (k % s == 0 and not shares)
        if even[axis]:
            assert set(along[:s].tolist()) == {int(re.search(r"met by (\d+) windows? each", sentence)[1])}
        else:
            listed = re.search(r"met by ([\d, ]+), \.\.\. windows in turn", sentence)[1].split(", ")
            period = far_inside(np.ones((k, 1, 1, 1)), line(g, axis))[:, 0, 0].astype(int).tolist()
            assert [*map(int, listed)] == period * (1 + (s == 2))
    if multiplied := re.search(r"multiplies to ([\d, or]+) windows", said):
        assert {int(n) for n in re.findall(r"\d+", multiplied[1])} == set(counts.ravel().tolist())
    assert "remainder" not in said and "·" not in said


def test_verdicts():
    assert verdict(Geometry(3)).startswith("In height and in width the stride is 1: far from the border")
    assert verdict(Geometry(3, stride=2)) == (
        "In height and in width stride 2 does not divide kernel 3: far from the border pixels are met by 2, 1, 2, 1, "
        "... windows in turn. On the image this multiplies to 4, 2 or 1 windows. The overlap is uneven in both: a "
        "checkerboard.")
    assert verdict(Geometry((2, 3), stride=2)).endswith("uneven in width alone: vertical stripes.")
    assert verdict(Geometry((3, 2), stride=2)).endswith("uneven in height alone: horizontal stripes.")
    assert "share the factor 2, so the kernel passes over some pixels" in verdict(Geometry(2, stride=2, dilation=2))
    assert "are not met by equally many windows. The overlap has gaps" in verdict(Geometry(3, stride=10**6))


@given(cases())
def test_the_answer_is_that_of_the_loops(case):
    _, w, _ = case.arrays()
    e = Explanation(case.geometry, case.size, w)
    found = answer(e)
    assert found.shape == (*case.geometry.stride, case.channels)
    np.testing.assert_allclose(found, far_inside(w, case.geometry), atol=1e-12)


@given(wide)
def test_what_is_promised_of_kernels(g):
    """Equal elements are flat exactly where the overlap is even, and random kernels have its pattern on average."""
    size = [e + s for e, s in zip(g.extent, g.stride)]
    equal = answer(Explanation(g, size, np.full((*g.kernel, 1, 1), 0.1)))
    assert (np.ptp(equal) < 1e-12) == all(is_even(g))
    rng = np.random.default_rng(0)
    mean = answer(Explanation(g, size, rng.uniform(0.5, 1.5, (*g.kernel, 24, 1)))).mean(2)     # 24 kernels of mean 1
    np.testing.assert_allclose(mean, inside(g)[:g.stride[0], :g.stride[1]], rtol=0.3)


@given(cases())
@settings(max_examples=50)
def test_words_and_numbers_of_an_answer_agree(case):
    _, w, _ = case.arrays()
    e = Explanation(case.geometry, case.size, w)
    said, found = answer_words(e), far_inside(w, case.geometry)
    if has_gaps(case.geometry):
        assert "0 in the gaps" in said and (inside(case.geometry) == 0).any()
        return
    down, across = (np.ptp(found, axis=axis).max() > 1e-9 for axis in (0, 1))
    assert ("flat far from the border" in said) == (not down and not across)
    assert ("this kernel's Aᵀ y shows a checkerboard" in said) == (down and across)
    assert ("shows horizontal stripes" in said) == (down and not across)
    assert ("shows vertical stripes" in said) == (across and not down)
    assert ("kernel's own pattern" in said) == (all(is_even(case.geometry)) and bool(down or across))


@pytest.mark.parametrize("geometry, weight, words", [
    (Geometry(2, 2), [[8, 6], [5, 3]], "a checkerboard, far from the border: numbers that repeat every 2x2 px. That is "
     "the kernel's own pattern: the even overlap makes Aᵀ y flat for a kernel of equal elements, and on average"),
    (Geometry(2, 2), [[7, 7], [7, 7]], "flat far from the border. The even overlap does so for every kernel of equal"),
    (Geometry(3, 2), [[1, 2, 1], [2, 4, 2], [1, 2, 1]], "flat far from the border. It balances the uneven overlap."),
    (Geometry(3, 2), [[.1, .2, .1], [.2, .4, .2], [.1, .2, .1]], "flat far from the border. It balances"),
    (Geometry((1, 4), (1, 2)), [[.1, .3, .2, 0]], "flat far from the border. The even overlap"),
    (Geometry(3, 2), np.ones((3, 3)), "shows a checkerboard, far from the border"),
    (Geometry(1, 2), [[5]], "0 in the gaps. So no kernel makes it flat, unless at 0: gaps cannot be balanced."),
    (Geometry(3, 1), np.arange(9).reshape(3, 3), "whatever the kernel"),
])
def test_what_a_kernel_makes_of_it(geometry, weight, words):
    assert words in answer_words(Explanation(geometry, 5, weight))


def test_large_settings_are_cheap_or_refused():
    """A period is no larger than the stride, whatever the dilation; what has gaps may be refused."""
    e = Explanation(Geometry((32, 1), (31, 1), dilation=(1001, 1)), ((31 * 1001 + 1), 1))
    assert answer(e).shape == (31, 1, 1) and verdict(e.geometry)
    e = Explanation(Geometry(3, 10**6), 4)
    with pytest.raises(ValueError, match="period of 1000000x1000000 px is too large"):
        answer(e)
    assert "gaps cannot be balanced" in answer_words(e) and "gaps" in verdict(e.geometry)
    assert comparison(e.geometry).kernel == (10**6, 10**6)


def test_a_faint_pattern_is_one():
    said = answer_words(Explanation(Geometry(2, 2), 4, [[1, 1], [1, 1 + 1e-9]]))
    assert "this kernel's Aᵀ y shows a checkerboard, far from the border" in said


def test_of_two_channels_one_may_have_the_pattern():
    weight = np.ones((2, 2, 2, 1))
    weight[0, 0, 0] = 2
    assert "shows a checkerboard in some channel, far" in answer_words(Explanation(Geometry(2, 2), 4, weight))


def test_counts_of_strides_to_6_are_listed():
    said = verdict(Geometry(7, stride=6))
    assert "met by 2, 1, 1, 1, 1, 1, ... windows in turn" in said and "multiplies to 4, 2 or 1 windows" in said
    said = verdict(Geometry(8, stride=7))
    assert "are not met by equally many windows" in said and "multiplies" not in said


def test_the_comparison_keeps_a_dilation_that_may_stay():
    assert comparison(Geometry(3, stride=2, dilation=3)).dilation == (3, 3)
    assert comparison(Geometry(3, stride=2, dilation=2)).dilation == (1, 1)


def test_an_answer_of_too_many_channels_is_refused():
    with pytest.raises(ValueError, match="period of 100x100 px is too large"):
        answer(Explanation(Geometry(1, stride=100), 1, channels=(1000, 1)))
