"""Where a kernel's windows lie: kernel size, stride, padding, dilation, and the sizes that follow from them.

Everything that slides over an image (convolution, its transpose, pooling) asks here for its sizes, so that there is
one formula and one set of error messages.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass

Pair = tuple[int, int]
IntOrPair = int | Sequence[int]


def as_pair(value: IntOrPair, name: str, minimum: int) -> Pair:
    """An int or (height, width) as a pair of ints; a ValueError names the argument when it is neither."""
    # by far the most often, and called a few hundred times a step
    if type(value) is int and value >= minimum:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and min(value) >= minimum:
        return value
    values = (value, value) if isinstance(value, numbers.Integral) else value
    wanted = f"an int or a (height, width) pair of ints, each at least {minimum}"
    try:
        height, width = values  # type: ignore[misc]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {wanted}; got {value!r}") from None
    for v in (height, width):
        if not isinstance(v, numbers.Integral) or isinstance(v, bool) or v < minimum:
            raise ValueError(f"{name} must be {wanted}; got {value!r}")
    return int(height), int(width)


def size_text(size: Sequence[int]) -> str:
    """(4, 5) as "4x5"."""
    return "x".join(map(str, size))


def pair_text(pair: Pair) -> str:
    """As short as it may be given: (4, 4) as "4", (4, 5) as "4x5"."""
    return str(pair[0]) if pair[0] == pair[1] else size_text(pair)


@dataclass(frozen=True, init=False)
class Geometry:
    """The geometry of a sliding window; each argument is an int or a (height, width) pair.

    Along each axis, output position o covers the input positions o·stride − padding + k·dilation, k = 0 .. kernel−1.
    The window's extent is dilation·(kernel − 1) + 1 px.

    Raises ValueError for a kernel, stride or dilation below 1 and for a negative padding.

    >>> g = Geometry(kernel=3, stride=2, padding=1)
    >>> g.output_size((8, 9))
    (4, 5)
    >>> g.transposed_size((4, 5)), g.transposed_size((4, 5), output_padding=(1, 0))
    ((7, 9), (8, 9))

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), relationships 6 and 14.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def __init__(self, kernel: IntOrPair, stride: IntOrPair = 1, padding: IntOrPair = 0, dilation: IntOrPair = 1):
        object.__setattr__(self, "kernel", as_pair(kernel, "kernel", 1))
        object.__setattr__(self, "stride", as_pair(stride, "stride", 1))
        object.__setattr__(self, "padding", as_pair(padding, "padding", 0))
        object.__setattr__(self, "dilation", as_pair(dilation, "dilation", 1))

    @property
    def extent(self) -> Pair:
        """Pixels that one window spans, (height, width)."""
        kh, kw = self.kernel
        dh, dw = self.dilation
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    @property
    def is_patches(self) -> bool:
        """Whether the windows tile the image side by side (kernel = stride, no padding): 1x1, and 2x2 with stride 2."""
        return self.kernel == self.stride and self.padding == (0, 0) and self.dilation == (1, 1)

    def output_size(self, size: IntOrPair) -> Pair:
        """Number of windows along (height, width) for an image of this size in px.

        The largest n with (n − 1)·stride + extent <= size + 2·padding. Raises ValueError when the window is larger
        than the padded image.
        """
        size = as_pair(size, "size", 1)
        out = []
        for axis, n, extent, s, p in zip(("height", "width"), size, self.extent, self.stride, self.padding):
            if extent > n + 2 * p:
                raise ValueError(
                    f"kernel: its window spans {extent} px in {axis} (kernel {pair_text(self.kernel)}, dilation "
                    f"{pair_text(self.dilation)}), the padded image has only {n + 2 * p} px ({n} + 2·{p} padding); use "
                    "a smaller kernel or dilation, more padding or a larger image"
                )
            out.append((n + 2 * p - extent) // s + 1)
        return out[0], out[1]

    def transposed_size(self, size: IntOrPair, output_padding: IntOrPair = 0) -> Pair:
        """The image size, (height, width) in px, that the transposed convolution makes of this many windows.

        (size − 1)·stride + extent − 2·padding + output_padding. With a stride, several image sizes share one number
        of windows; output_padding (0 .. stride − 1) chooses among them. Raises ValueError when output_padding is not
        below the stride, or when nothing remains of the image.
        """
        size = as_pair(size, "size", 1)
        extra = as_pair(output_padding, "output_padding", 0)
        out = []
        axes = zip(("height", "width"), size, self.extent, self.stride, self.padding, extra)
        for axis, n, extent, s, p, op in axes:
            if op >= s:
                raise ValueError(
                    f"output_padding must be below the stride, 0 to {s - 1} in {axis}; got {op}. (Some libraries also "
                    "take values below the dilation; such extra rows belong to no convolution matrix with this number "
                    "of windows)"
                )
            full = (n - 1) * s + extent - 2 * p + op
            if full < 1:
                raise ValueError(
                    f"padding: the transposed size in {axis} would be ({n} - 1)·{s} + {extent} - 2·{p} + {op} = {full} "
                    "px, and must be at least 1; use less padding or a larger input"
                )
            out.append(full)
        return out[0], out[1]
