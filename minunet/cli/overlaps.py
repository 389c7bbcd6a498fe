"""What follows from a geometry alone, in text: how windows overlap, and which images share a number of windows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minunet.cli.matrices import ROWS, Block, figure, matrix, prose, title
from minunet.cli.values import counted
from minunet.geometry import Geometry, pair_text, size_text
from minunet.study.evenness import answer, answer_words, comparison, line, met, telling_length, verdict
from minunet.study.explanation import Explanation, is_even, sizes, unevenness

AXES = ("height", "width")
CHANNELS = 6            # of the answer that are shown
SEEN = 4                # px of the answer that are shown at least


def is_square(g: Geometry) -> bool:
    """Whether height and width have the same geometry."""
    return all(pair[0] == pair[1] for pair in (g.kernel, g.stride, g.padding, g.dilation))


def table(g: Geometry, axis: int, width: int) -> Block | None:
    """Which element of the kernel meets which pixel along an axis, window by window, on the shortest telling line.

    A line for each window, and one for how many meet the pixel; None without room.
    """
    try:
        elements = met(g, axis, telling_length(g, axis))
    except ValueError:          # more than is looked at
        return None
    counts = (elements >= 0).sum(0)
    names = [*(f"window {i}" for i in range(len(elements))), "met by"]
    dilated = f", dilation {g.dilation[axis]}" if g.dilation[axis] > 1 else ""
    found = matrix(f"kernel {g.kernel[axis]}, stride {g.stride[axis]}{dilated}: "
                   f"{'even' if is_even(g)[axis] else 'uneven'}", np.vstack([elements, counts]), width,
                   np.vstack([elements >= 0, counts >= 0]), names=names)
    found.lines.insert(-1, "-" * max(map(len, found.lines[1:])))
    return None if found.cut else found


def overlap(e: Explanation, width: int) -> Iterator[str]:
    """How many windows meet each pixel, along an axis and on the image, why that is even or not, and what follows."""
    g, other = e.geometry, comparison(e.geometry)
    yield title("Overlap: where a checkerboard comes from")
    yield prose(f"In each pixel of Aᵀ y as many stamps add up as windows meet it. {verdict(g)}", width)
    yield prose("To see why, first along one axis: a line for each window, a column for each pixel, in it which "
                "element of the kernel (0, 1, ...) meets it; below, how many windows do. Beside it, to compare, a case "
                "of the other kind.", width)
    for axis in (0,) if is_square(g) else (0, 1):
        yield "Height and width:" if is_square(g) else f"{AXES[axis].capitalize()}:"
        shown = [g] if line(g, axis) == line(other, axis) else [g, other]
        blocks = [block for block in (table(case, axis, width) for case in shown) if block]
        yield figure(blocks, width) if blocks else prose("There is no room to draw these windows.", width)
    maps = [_map(e, width), *_larger(e, width)]
    yield prose("On the image (these counts are Aᵀ y for a kernel of ones and a y of ones)"
                + ", and on a larger one to see more of the inside" * (len(maps) > 1) + ":", width)
    yield figure(maps, width, "overlap.png")
    if not e.overlap.all():
        yield prose("A pixel with 0 is met by no window: A x does not read it, and Aᵀ y leaves it 0.", width)
    if not all(is_even(g)):
        yield prose("Far from the border, the standard deviation of the counts is "
                    f"{unevenness(g):.2f} times their mean.", width)
    yield prose("The rule, for height and for width: the overlap is even exactly where the stride divides the kernel "
                "and, if there is a dilation, shares no factor with it. So a 2x2 kernel with stride 2 is even, and a "
                "3x3 kernel with stride 2 is not.", width)
    yield from _answer(e, width)


def _answer(e: Explanation, width: int) -> Iterator[str]:
    """What this kernel makes of a y of ones."""
    yield prose(f"The overlap is not all: the kernel's numbers decide too. {answer_words(e)}", width)
    try:
        period = answer(e)
    except ValueError:          # more than is looked at
        return
    seen = np.tile(period, [*(-(-SEEN // s) for s in e.geometry.stride), 1])
    more = e.channels - CHANNELS
    yield figure([matrix("Aᵀ 1, far from the border" + f", channel {c}" * (e.channels > 1), seen[:, :, c], width)
                  for c in range(min(e.channels, CHANNELS))], width, more=f"{more} more channels" * (more > 0))


def _larger(e: Explanation, width: int) -> Iterator[Block]:
    """The map of a larger image that shows two strides of the inside, if this one does not, and there is room."""
    h, w = (max(n, telling_length(e.geometry, axis)) for axis, n in enumerate(e.size))
    if (h, w) != e.size and h <= ROWS and w <= width:
        try:
            found = _map(Explanation(e.geometry, (h, w)), width)
        except ValueError:      # more than is looked at
            return
        if not found.cut:
            yield found


def _map(e: Explanation, width: int) -> Block:
    return matrix(f"{size_text(e.size)} image", e.overlap, width)


def size_tables(e: Explanation, width: int) -> Iterator[str]:
    """Which lengths of images share a number of windows, and which output_padding leads back to each."""
    g = e.geometry
    yield title("The size question: which image?")
    if max(g.stride) == 1:
        yield prose("With stride 1, images of different sizes have different numbers of windows, so the way back has "
                    "nothing to choose.", width)
    else:
        yield prose(f"With stride {pair_text(g.stride)}, images of several sizes have the same number of windows. From "
                    "the windows alone nobody knows which it was, so the way back has to be told: output_padding is "
                    "how many px longer than the shortest of them the image is to be. (Those px are no border that is "
                    "added later: they get the stamps that reach them.)", width)
    same = e.size[0] == e.size[1] and is_square(g)
    for axis in (0,) if same else (0, 1):
        rows = sizes(g, axis, e.size[axis])
        lengths = np.zeros((1 + len(rows), g.stride[axis]), int)
        lengths[0] = np.arange(g.stride[axis])
        for images, row in zip(lengths[1:], rows):
            images[-len(row.images):] = row.images        # the shortest may be missing: they would be below 1 px
        stored = lengths > 0
        stored[0] = True
        names = ["output_padding", *(counted(row.windows, "window") for row in rows)]
        heading = "height and width" if same else AXES[axis]
        yield figure([matrix(f"image {heading}, px", lengths, width, stored, names=names)], width)
    yield prose(f"Here {size_text(e.out_size)} windows and output_padding {pair_text(e.output_padding)} give "
                f"{size_text(e.size)} px.", width)
