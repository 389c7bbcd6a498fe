"""One convolution and its transpose, with every number that the pictures, animations and pages show.

Nothing is drawn by hand: each number is a product of `ConvMatrix`, also where another picture of the same thing is
shown (the column matrix is the product with an identity kernel, the overlap count the transpose's product with ones).

Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), chapters 2 and 4.
"""

from __future__ import annotations

from functools import cached_property
from math import prod, sqrt
from typing import Any, NamedTuple

import numpy as np

from minunet.convolution import ConvMatrix
from minunet.geometry import Geometry, IntOrPair, Pair, as_pair

LIMIT = 1 << 20         # elements of a matrix; one of more is no longer looked at

# The numbers of a well-known example: a 3x3 kernel takes 16 numbers to 4, and its transpose 4 back to 16.
SLIDES_KERNEL = ((1, 4, 1), (1, 4, 3), (3, 3, 1))
SLIDES_IMAGE = ((4, 5, 8, 7), (1, 8, 8, 8), (3, 6, 6, 4), (6, 5, 7, 8))
SLIDES_WINDOWS = ((2, 1), (4, 4))


class Taps(NamedTuple):
    """Which pixel each window meets with which element of the kernel: three flat indices, one entry for each meeting.

    Entry i: window[i] of (OH, OW) meets pixel[i] of (H, W) with element[i] of (KH, KW); sorted by window, then element.
    What lies in the padding is left out.
    """

    window: np.ndarray
    pixel: np.ndarray
    element: np.ndarray


class Sizes(NamedTuple):
    """The image lengths (px) that share one number of windows, the last one with output_padding stride − 1.

    There are as many as the stride, less those which the padding would make shorter than 1 px.
    """

    windows: int
    images: tuple[int, ...]


class Explanation:
    """A convolution A of images (H, W, C), its transpose, an image x and windows y (OH, OW, F) that they act on.

    Args:
        geometry: kernel, stride, padding, dilation.
        size: (H, W) of the image in px: what the convolution reads and the transposed convolution makes.
        weight: (KH, KW, C, F), or (KH, KW) for one channel and one filter; by default small whole numbers.
        channels: (C, F) of the default weight.
        x: (H, W, C) or (H, W); y: (OH, OW, F) or (OH, OW); by default small whole numbers.

    Everything is float64. Raises ValueError for arrays that do not fit or hold what is no number, for a window larger
    than the padded image, and for a matrix of more than 2^20 elements.

    >>> e = Explanation(Geometry(3), (4, 4))
    >>> e.A.shape, e.Ax[..., 0].tolist()
    ((4, 16), [[122.0, 148.0], [126.0, 134.0]])
    >>> e.ATy[..., 0].astype(int).tolist()
    [[2, 9, 6, 1], [6, 29, 30, 7], [10, 29, 33, 13], [12, 24, 16, 4]]
    """

    def __init__(self, geometry: Geometry, size: IntOrPair, weight: Any = None, channels: Pair = (1, 1),
                 x: Any = None, y: Any = None):
        self.geometry, self.size = geometry, as_pair(size, "size", 1)
        self.out_size = geometry.output_size(self.size)
        if weight is not None:
            weight = _array("weight", weight, 2, (*geometry.kernel, "C", "F"))
        self.channels, self.filters = as_pair(channels if weight is None else weight.shape[2:], "channels", 1)
        self._refuse_large()
        shape = *geometry.kernel, self.channels, self.filters
        self.weight = _numbers(shape, SLIDES_KERNEL, 0) if weight is None else weight
        x_shape, y_shape = (*self.size, self.channels), (*self.out_size, self.filters)
        self.x = _array("x", _numbers(x_shape, SLIDES_IMAGE, 1) if x is None else x, 1, x_shape)
        self.y = _array("y", _numbers(y_shape, SLIDES_WINDOWS, 2) if y is None else y, 1, y_shape)
        self.A = ConvMatrix(self.weight, geometry, self.size)

    @classmethod
    def transposed(cls, geometry: Geometry, size: IntOrPair, output_padding: IntOrPair = 0, **arrays: Any
                   ) -> Explanation:
        """The same, named from the other end: size (OH, OW) of what the transposed convolution reads.

        >>> Explanation.transposed(Geometry(3, stride=2, padding=1), 4, output_padding=1).size
        (8, 8)
        """
        found = cls(geometry, geometry.transposed_size(size, output_padding), **arrays)
        assert found.out_size == as_pair(size, "size", 1)
        return found

    @property
    def output_padding(self) -> Pair:
        """What leads the transposed convolution from (OH, OW) back to (H, W), and to no other size."""
        g = self.geometry
        h, w = (n - (o - 1) * s - e + 2 * p
                for n, o, s, e, p in zip(self.size, self.out_size, g.stride, g.extent, g.padding))
        return h, w

    @cached_property
    def Ax(self) -> np.ndarray:
        """The convolution of x: (OH, OW, F)."""
        return (self.A @ self.x[None])[0]

    @cached_property
    def ATy(self) -> np.ndarray:
        """The transposed convolution of y: (H, W, C)."""
        return (self.A.T @ self.y[None])[0]

    @cached_property
    def ATAx(self) -> np.ndarray:
        """There and back: (H, W, C). It has x's shape, and in general other numbers: Aᵀ is not the inverse."""
        return (self.A.T @ self.Ax[None])[0]

    @property
    def returns_x(self) -> bool:
        """Whether Aᵀ(A x) is x, to rounding: so it is where A is orthogonal, and by chance."""
        return bool(np.abs(self.ATAx - self.x).max() <= 1e-12 * max(np.abs(self.ATAx).max(), np.abs(self.x).max()))

    @property
    def identity(self) -> tuple[float, float]:
        """<y, A x> and <Aᵀ y, x>, which are equal: this is what makes Aᵀ the transpose."""
        return float(np.vdot(self.y, self.Ax)), float(np.vdot(self.ATy, self.x))

    @cached_property
    def columns(self) -> np.ndarray:
        """The column matrix of im2col, (OH·OW, KH·KW·C): row by row the pixels under each window, 0 in the padding.

        It is the convolution with the identity as its kernel, whose filter j picks element j of the window.
        """
        kh, kw, c = self.weight.shape[:3]
        pick = np.eye(kh * kw * c).reshape(kh, kw, c, kh * kw * c)
        return (ConvMatrix(pick, self.geometry, self.size) @ self.x[None]).reshape(-1, kh * kw * c)

    @cached_property
    def taps(self) -> Taps:
        """Who meets whom, read off the matrix of a kernel whose elements are their own numbers."""
        kh, kw = self.geometry.kernel
        numbered = np.arange(kh * kw, dtype=float).reshape(kh, kw, 1, 1)
        found = ConvMatrix(numbered, self.geometry, self.size).sparse().tocoo()     # its zero, element 0, is stored
        order = np.lexsort((found.data, found.row))
        return Taps(found.row[order], found.col[order], found.data[order].astype(int))

    @cached_property
    def overlap(self) -> np.ndarray:
        """(H, W) whole numbers: how many windows meet each pixel, Aᵀ 1 for a kernel of ones."""
        ones = ConvMatrix(np.ones((*self.geometry.kernel, 1, 1)), self.geometry, self.size)
        return np.rint(ones.T @ np.ones((1, *self.out_size, 1)))[0, :, :, 0].astype(int)

    @cached_property
    def stuffed(self) -> np.ndarray:
        """(H + EH − 1, W + EW − 1, F): y with stride − 1 zeros between its numbers and a border of zeros, E the extent.

        Its plain convolution with `flipped`, at stride 1, is Aᵀ y: the transposed convolution as it is often drawn.
        (Nothing in minunet computes it like this; most of the products would be with zeros.)
        """
        g = self.geometry
        h, w = (n + e - 1 for n, e in zip(self.size, g.extent))
        stuffed = np.zeros((h, w, self.filters))
        rows, cols = (np.arange(o) * s + e - 1 - p
                      for o, s, e, p in zip(self.out_size, g.stride, g.extent, g.padding))
        # a window that lies in the padding alone meets no pixel
        kept = np.ix_((0 <= rows) & (rows < h), (0 <= cols) & (cols < w))
        stuffed[np.ix_(rows[kept[0].ravel()], cols[kept[1].ravel()])] = self.y[kept]
        return stuffed

    @cached_property
    def flipped(self) -> ConvMatrix:
        """The convolution of `stuffed` at stride 1 with the kernel turned by 180° and its channels exchanged."""
        turned = self.weight[::-1, ::-1].transpose(0, 1, 3, 2)
        h, w = self.stuffed.shape[:2]
        return ConvMatrix(turned, Geometry(self.geometry.kernel, dilation=self.geometry.dilation), (h, w))

    def _refuse_large(self) -> None:
        g, c, f = self.geometry, self.channels, self.filters
        window = prod(g.kernel) * c
        for what, rows, columns in (
                ("convolution matrix", prod(self.out_size) * f, prod(self.size) * c),
                ("column matrix", prod(self.out_size), window),
                ("kernel's matrix", window, max(window, f)),
                ("image with a border of zeros", self.size[0] + 2 * g.padding[0] + 2 * g.extent[0],
                 (self.size[1] + 2 * g.padding[1] + 2 * g.extent[1]) * max(c, f))):
            if rows * columns > LIMIT:
                raise ValueError(f"size: the {what} would have {rows:,} x {columns:,} elements, at most {LIMIT:,} can "
                                 "be looked at; use a smaller image, a smaller kernel or fewer channels")


def is_even(geometry: Geometry) -> tuple[bool, bool]:
    """Per axis, whether every pixel far from the border is met by the same number of windows: no checkerboard.

    The offsets k·dilation of the kernel's elements must fall equally often on each remainder of the stride; at
    dilation 1 they do exactly when the stride divides the kernel.

    >>> is_even(Geometry(3, stride=2)), is_even(Geometry((2, 4), stride=2))
    ((False, False), (True, True))

    Source: Odena, Dumoulin, Olah, Deconvolution and checkerboard artifacts, Distill (2016).
    """
    high, wide = (len(counts) == s and len(set(counts)) == 1
                  for counts, s in zip(_remainders(geometry), geometry.stride))
    return high, wide


def unevenness(geometry: Geometry) -> float:
    """How uneven the overlap is far from the border: its standard deviation over its mean, 0 without a checkerboard.

    >>> unevenness(Geometry(2, stride=2)), round(unevenness(Geometry(3, stride=2)), 3)
    (0.0, 0.484)
    """
    # of the product of both axes' counts: E[(hw)²] / E[hw]², where h and w are independent; most remainders may be 0
    ratio = prod(s * int((counts**2).sum()) / k**2
                 for counts, s, k in zip(_remainders(geometry), geometry.stride, geometry.kernel))
    return sqrt(max(0.0, ratio - 1))


def _remainders(geometry: Geometry) -> list[np.ndarray]:
    """Per axis, how many of the kernel's elements fall on each remainder of the stride that any of them falls on."""
    return [np.unique(np.arange(k) * d % s, return_counts=True)[1]
            for k, s, d in zip(geometry.kernel, geometry.stride, geometry.dilation)]


def sizes(geometry: Geometry, axis: int, around: int, rows: int = 5) -> list[Sizes]:
    """Along one axis (0: height), numbers of windows about that of `around` px and the image lengths that share them.

    >>> sizes(Geometry(3, stride=2, padding=1), 0, around=4, rows=3)
    [Sizes(windows=1, images=(1, 2)), Sizes(windows=2, images=(3, 4)), Sizes(windows=3, images=(5, 6))]
    """
    stride, extent, padding = geometry.stride[axis], geometry.extent[axis], geometry.padding[axis]
    middle = (around + 2 * padding - extent) // stride + 1
    first = max(1, middle - rows // 2)
    found = []
    for windows in range(first, first + rows):
        smallest = (windows - 1) * stride + extent - 2 * padding
        found.append(Sizes(windows, tuple(n for n in range(smallest, smallest + stride) if n >= 1)))
    return [row for row in found if row.images]


def _numbers(shape: tuple[int, ...], known: tuple[tuple[int, ...], ...], seed: int) -> np.ndarray:
    """The known numbers if they have this shape, but for axes of 1, else whole numbers of 1 to 9."""
    if shape == (*np.shape(known), *[1] * (len(shape) - 2)):
        return np.array(known, float).reshape(shape)
    return np.random.default_rng(seed).integers(1, 10, shape).astype(float)


def _array(name: str, values: Any, more: int, shape: tuple[int | str, ...]) -> np.ndarray:
    """values as finite float64 of this shape (a letter stands for any number), whose last axes of 1 may be missing."""
    wanted = f"({', '.join(map(str, shape))})"
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers {wanted}; got something else") from None
    if array.ndim == 2:
        array = array.reshape(*array.shape, *[1] * more)
    fits = array.ndim == len(shape) and 0 not in array.shape and all(
        isinstance(n, str) or n == m for n, m in zip(shape, array.shape))
    if not fits:
        raise ValueError(f"{name} must be {wanted}, (height, width) first; its shape is {np.shape(values)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers; got {array[~np.isfinite(array)][0]}")
    return array
