"""How evenly windows overlap, which is where checkerboards of transposed convolutions come from, in numbers and words.

Window o meets pixel o·stride − padding + k·dilation with element k of its kernel. So a pixel far from the border is met
once by each element whose k·dilation has the pixel's own remainder modulo the stride. Where the elements spread over
the remainders unequally, the overlap is uneven, in a pattern that repeats with the stride. Where no element falls on a
remainder it has gaps: pixels that no window meets.

What Aᵀ y then looks like is another question, which the kernel's numbers answer too: see `answer`.

Source: Odena, Dumoulin, Olah, Deconvolution and checkerboard artifacts, Distill (2016).
"""

from __future__ import annotations

from math import gcd, prod

import numpy as np

from minunet.convolution import ConvMatrix
from minunet.geometry import Geometry, size_text
from minunet.study.explanation import Explanation, is_even

LISTED = 6              # px of a stride whose counts are listed in words
LIMIT = 1 << 23         # numbers of the padded image that a period is computed on: 64 MiB, never reached without gaps


# ---- along one axis

def line(geometry: Geometry, axis: int) -> Geometry:
    """The geometry along the height (axis 0) or width (1) alone: of a column of pixels."""
    return Geometry((geometry.kernel[axis], 1), (geometry.stride[axis], 1), (geometry.padding[axis], 0),
                    (geometry.dilation[axis], 1))


def met(geometry: Geometry, axis: int, length: int) -> np.ndarray:
    """Which element of the kernel each window meets each px of a line with: (windows, length) ints, −1 for none.

    Raises ValueError like `Explanation`.

    >>> met(Geometry(3, stride=2), 0, 5).tolist()
    [[0, 1, 2, -1, -1], [-1, -1, 0, 1, 2]]
    """
    e = Explanation(line(geometry, axis), (length, 1))
    found = np.full((e.out_size[0], length), -1)
    found[e.taps.window, e.taps.pixel] = e.taps.element
    return found


def profile(geometry: Geometry, axis: int, length: int) -> np.ndarray:
    """How many rows (axis 0) or columns (axis 1) of windows meet each px of a line: (length,) ints.

    >>> profile(Geometry(3, stride=2), 0, 9).tolist()
    [1, 1, 2, 1, 2, 1, 2, 1, 1]
    """
    return Explanation(line(geometry, axis), (length, 1)).overlap[:, 0]


def far(geometry: Geometry, axis: int) -> int:
    """The first px far from the border: no window is missing there because the image begins."""
    return max(0, geometry.extent[axis] - 1 - geometry.padding[axis])


def telling_length(geometry: Geometry, axis: int) -> int:
    """The px of the shortest line on which two strides of pixels lie far from both borders."""
    s, p, extent = geometry.stride[axis], geometry.padding[axis], geometry.extent[axis]
    end = far(geometry, axis) + 2 * s
    windows = max(-(-(end + p) // s),                       # as many as meet those pixels
                  -(-(end + 2 * p - extent) // s) + 1)      # and so many that there are those pixels
    return (windows - 1) * s + extent - 2 * p


def remainders(geometry: Geometry, axis: int) -> np.ndarray:
    """The kernel's elements k stacked by the remainder of k·dilation modulo the stride: (height, stride), else NaN."""
    found = np.arange(geometry.kernel[axis]) * geometry.dilation[axis] % geometry.stride[axis]
    stacks = [np.flatnonzero(found == r) for r in range(geometry.stride[axis])]
    height = max(map(len, stacks))
    numbers = np.full((height, len(stacks)), np.nan)
    for remainder, elements in enumerate(stacks):
        numbers[height - len(elements):, remainder] = elements[::-1]
    return numbers


# ---- on the image

def comparison(geometry: Geometry) -> Geometry:
    """A case of the other kind beside this: even if this is not, uneven if this is even, and as near to it as can be.

    What is uneven gets a kernel that the stride divides. What is even gets a kernel one element larger or, if it is
    even because the stride is 1, a stride that does not divide the kernel.

    >>> [(g.kernel, g.stride) for g in map(comparison, (Geometry(3, 2), Geometry(2, 2), Geometry(3)))]
    [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 3), (2, 2))]
    """
    even = is_even(geometry)
    sides = []
    for axis, axes in enumerate(zip(geometry.kernel, geometry.stride, geometry.dilation)):
        k, s, d = axes
        if not even[axis]:
            sides.append((max(s, k // s * s), s, d if gcd(s, d) == 1 else 1))
        elif not all(even):
            sides.append(axes)
        elif max(geometry.stride) == 1:
            sides.append((k, next(n for n in range(2, k + 2) if k % n), d))
        else:
            sides.append((k + (s > 1), s, d))
    kernel, stride, dilation = zip(*sides)
    return Geometry(kernel, stride, geometry.padding, dilation)


def inside(geometry: Geometry) -> np.ndarray:
    """How many windows meet each pixel far from the border: ints, whole strides and at least 8 px each way.

    >>> inside(Geometry(3, stride=2))[:2, :4].tolist()
    [[4, 2, 4, 2], [2, 1, 2, 1]]
    """
    return np.tile(_counts(geometry), [-(-8 // s) for s in geometry.stride])


def has_gaps(geometry: Geometry) -> bool:
    """Whether some pixels far from the border are met by no window.

    >>> has_gaps(Geometry(1, stride=2)), has_gaps(Geometry(3, stride=2)), has_gaps(Geometry(3, stride=2, dilation=2))
    (True, False, True)
    """
    return any(k < s or gcd(s, d) > 1 for k, s, d in zip(geometry.kernel, geometry.stride, geometry.dilation))


def verdict(geometry: Geometry) -> str:
    """Whether the overlap is even, why, and what its pattern is called, in a few sentences.

    >>> verdict(Geometry(2, stride=2)).split(". ")      # doctest: +NORMALIZE_WHITESPACE
    ['In height and in width stride 2 divides kernel 2: far from the border pixels are met by 1 window each',
     'The overlap is even.']
    """
    even, g = is_even(geometry), geometry
    if len({(g.kernel[axis], g.stride[axis], g.dilation[axis]) for axis in (0, 1)}) == 1:
        reasons = f"In height and in width {_reason(g, 0)}."
    else:
        reasons = f"In height {_reason(g, 0)}. In width {_reason(g, 1)}."
    if max(g.stride) <= LISTED and (counts := np.unique(_counts(g))).max() > 1:
        *most, least = map(str, counts[::-1])
        reasons += f" On the image this multiplies to {', '.join(most)}{' or ' * bool(most)}{least} windows."
    if all(even):
        return f"{reasons} The overlap is even."
    if has_gaps(g):
        return f"{reasons} The overlap has gaps: pixels that no window meets, which stay 0 in Aᵀ y whatever the kernel."
    if any(even):
        return f"{reasons} The overlap is uneven in {'width' if even[0] else 'height'} alone: {_stripes(even[0])}."
    return f"{reasons} The overlap is uneven in both: a checkerboard."


# ---- what a kernel makes of it

def answer(explanation: Explanation) -> np.ndarray:
    """One period, far from the border, of Aᵀ y for y of ones: (SH, SW, C), SH and SW the stride.

    A window begins on pixel (0, 0). Each number is the sum, over all filters, of the kernel's elements that meet the
    pixel. Raises ValueError for a period too large to be looked at; then the overlap has gaps.

    >>> weight = np.array([[1., 2, 1], [2, 4, 2], [1, 2, 1]])
    >>> answer(Explanation(Geometry(3, stride=2), 5, weight))[..., 0].tolist()
    [[4.0, 4.0], [4.0, 4.0]]
    """
    return _period(explanation.weight, explanation.geometry)


def answer_words(explanation: Explanation) -> str:
    """Whether this kernel's answer to y of ones is flat or has a pattern, and what of that the overlap decides."""
    g = explanation.geometry
    if max(g.stride) == 1:
        return "Where y is 1 everywhere and the stride is 1, Aᵀ y is flat far from the border, whatever the kernel."
    if has_gaps(g):
        return ("Where y is 1 everywhere, Aᵀ y is 0 in the gaps. So no kernel makes it flat, unless at 0: gaps cannot "
                "be balanced.")
    found, rounding = answer(explanation), 1e-12 * np.abs(explanation.weight).sum()
    down, across = (bool((np.ptp(found, axis=axis) > rounding).any()) for axis in (0, 1))
    if not down and not across:
        return "Where y is 1 everywhere, this kernel makes Aᵀ y flat far from the border. " + (
            "The even overlap does so for every kernel of equal elements, and on average over random kernels, but "
            "other kernels have a pattern of their own." if all(is_even(g)) else
            "It balances the uneven overlap. Few kernels do: with equal elements, and on average over random kernels, "
            "the overlap's pattern is seen.")
    name = "a checkerboard" if down and across else _stripes(across)
    several = " in some channel" if found.shape[2] > 1 else ""
    shows = f"Where y is 1 everywhere, this kernel's Aᵀ y shows {name}{several}, far from the border: numbers that "
    return shows + f"repeat every {size_text(g.stride)} px. " + (
        "That is the kernel's own pattern: the even overlap makes Aᵀ y flat for a kernel of equal elements, and on "
        "average over random kernels, but not for each kernel." if all(is_even(g)) else
        "An uneven overlap shows its pattern for a kernel of equal elements, and on average over random kernels. Some "
        "kernels balance it, such as 1 2 1; 2 4 2; 1 2 1 at stride 2.")


def _period(weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Aᵀ 1 on one period of the inside: on an image of that size, with so much padding that no window is missing."""
    stride = geometry.stride
    # which elements share a remainder depends on the dilation's own remainder alone
    dilation = [(d - 1) % s + 1 for d, s in zip(geometry.dilation, stride)]
    extent = Geometry(geometry.kernel, dilation=dilation).extent
    padding = [-(-(e - 1) // s) * s for e, s in zip(extent, stride)]
    if prod(s + 2 * p for s, p in zip(stride, padding)) * weight.shape[2] > LIMIT:
        raise ValueError(f"stride: a period of {size_text(stride)} px is too large to be looked at; use a smaller "
                         "stride")
    A = ConvMatrix(weight, Geometry(geometry.kernel, stride, padding, dilation), stride)
    return (A.T @ np.ones((1, *A.out_size, weight.shape[3])))[0]


def _counts(geometry: Geometry) -> np.ndarray:
    """One period of how many windows meet each pixel far from the border: ints."""
    return np.rint(_period(np.ones((*geometry.kernel, 1, 1)), geometry))[:, :, 0].astype(int)


def _reason(geometry: Geometry, axis: int) -> str:
    """Why the overlap is even or uneven along an axis, and by how many windows pixels are met."""
    k, s, d = geometry.kernel[axis], geometry.stride[axis], geometry.dilation[axis]
    even = is_even(geometry)[axis]
    if s == 1:
        reason = "the stride is 1"
    elif even:
        reason = f"stride {s} divides kernel {k}" + f" and shares no factor with dilation {d}" * (d > 1)
    elif k < s:
        reason = f"kernel {k} is shorter than stride {s}"
    elif gcd(s, d) > 1:
        reason = f"stride {s} and dilation {d} share the factor {gcd(s, d)}, so the kernel passes over some pixels"
    else:
        reason = f"stride {s} does not divide kernel {k}"
    if s > LISTED and not even:
        return f"{reason}: far from the border pixels are not met by equally many windows"
    counts = [str(n) for n in _counts(line(geometry, axis)).ravel()]
    if even:
        return f"{reason}: far from the border pixels are met by {counts[0]} window{'s' * (counts[0] != '1')} each"
    listed = ", ".join(counts * 2 if s == 2 else counts)
    return f"{reason}: far from the border pixels are met by {listed}, ... windows in turn"


def _stripes(vertical: bool) -> str:
    return "vertical stripes" if vertical else "horizontal stripes"
