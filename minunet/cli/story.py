"""A convolution and its transpose told in text, number by number: what `minunet explain` prints.

Every number is of an `Explanation`, and so of the operator; here they are only put in words and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from minunet.cli.matrices import Block, figure, in_full, matrix, prose, title
from minunet.cli.overlaps import overlap, size_tables
from minunet.cli.values import counted
from minunet.geometry import pair_text, size_text
from minunet.study.explanation import Explanation

TERMS = 16              # of a sum that is written out
IMAGES, BLOCKS = 6, 4   # of several channels: images (or kernels), and blocks of the matrix, that are shown
UNTURNED = "As everywhere in deep learning the kernel is not turned; mathematicians call this cross-correlation."

Images = tuple[str, np.ndarray, str]        # a symbol, an array (rows, columns, n), and what n counts


def tell(e: Explanation, transposed: bool, width: int) -> str:
    """The whole page, no line longer than width (characters, at least 40); transposed: which of the two leads."""
    return "\n\n".join(_parts(e, transposed, width))


def _parts(e: Explanation, transposed: bool, width: int) -> Iterator[str]:
    yield from _settings(e, transposed, width)
    for part in (_transposed, _convolution) if transposed else (_convolution, _transposed):
        yield from part(e, transposed, width)
    yield from _no_inverse(e, width)
    yield from overlap(e, width)
    yield from size_tables(e, width)


def _settings(e: Explanation, transposed: bool, width: int) -> Iterator[str]:
    g = e.geometry
    many = "" if _is_single(e) else f"; {counted(e.channels, 'channel')}, {counted(e.filters, 'filter')}"
    yield prose(f"{size_text(g.kernel)} kernel, stride {pair_text(g.stride)}, padding {pair_text(g.padding)}, dilation "
                f"{pair_text(g.dilation)}; {size_text(e.size)} image, {size_text(e.out_size)} windows{many}", width)
    pairs = [(f, c) for f in range(e.filters) for c in range(e.channels)]
    kernels = [matrix("kernel" if _is_single(e) else f"kernel, filter {f} channel {c}", e.weight[:, :, c, f], width)
               for f, c in pairs[:IMAGES]]
    read = ("y", e.y, "filter") if transposed else ("x", e.x, "channel")
    if _is_single(e):
        yield figure([*kernels, *_blocks(read, width)], width)
    else:
        yield figure(kernels, width, more=_rest(len(pairs), IMAGES, "kernels"))
        yield _several(read, width)
    yield prose("Where they are not given (--values, --x, --y), the numbers of the kernel, of the image x and of the "
                "windows y are made up, small and whole. y is not A x: it has numbers of its own.", width)


def _convolution(e: Explanation, transposed: bool, width: int) -> Iterator[str]:
    yield title("The convolution: A x")
    if transposed:
        yield prose('A is Aᵀ with rows and columns exchanged, and that is all that "transposed" says: the pixels that '
                    "a window writes to in Aᵀ y are those that it reads from in A x. There the kernel's numbers are "
                    "multiplied by the pixels that they lie on, and added up: one number for each window. "
                    f"{UNTURNED} A x takes {counted(e.x.size, 'number')} to {e.y.size}.", width)
    else:
        windows, g = prod(e.out_size), e.geometry
        yield prose(f"The kernel is laid on the image in {counted(windows, 'window')}"
                    + f", {pair_text(g.stride)} px apart (stride)" * (windows > 1)
                    + ". In each, its numbers are multiplied by the pixels that they lie on, and added up: one number"
                    + ("." if _is_single(e) else " for each filter, over all channels.")
                    + " Around the image, the padding is zero." * any(g.padding)
                    + f" The kernel's elements lie {pair_text(g.dilation)} px apart (dilation)."
                    * (max(g.dilation) > 1) + f" {UNTURNED}", width)
        yield prose("As a matrix: A has a row for each window and a column for each pixel, both counted row by row. A "
                    "row holds the kernel's numbers at the pixels that they lie on, and · elsewhere, which is zero "
                    f"whatever the kernel. A x takes {counted(e.x.size, 'number')} to {e.y.size}.", width)
    yield from _product("A", e, ("x", e.x, "channel"), ("A x", e.Ax, "filter"), not transposed, width)
    window = int(np.bincount(e.taps.window, minlength=1).argmax())
    here = e.taps.window == window
    if _is_single(e):
        yield from _sum(f"Window {divmod(window, e.out_size[1])} in full, kernel times pixel", e.Ax.flat[window],
                        e.weight.flat[e.taps.element[here]], e.x.flat[e.taps.pixel[here]], width)


def _transposed(e: Explanation, transposed: bool, width: int) -> Iterator[str]:
    yield title("The transposed convolution: Aᵀ y")
    kernel = "the kernel" if _is_single(e) else "the kernels of its filter"
    stamps = (f"stamps {kernel}, times itself, on the pixels of its window, and where stamps overlap they add up."
              + " What falls on the padding is cut off." * any(e.geometry.padding))
    takes = f"Aᵀ y takes {counted(e.y.size, 'number')} to {e.x.size}."
    if transposed:
        yield prose(f"y has a number for each window of the image that is to be made. Each {stamps}", width)
        yield prose("As a matrix: Aᵀ has a row for each pixel and a column for each window, both counted row by row. A "
                    "column holds the kernel's numbers at the pixels that they lie on, and · elsewhere, which is zero "
                    f"whatever the kernel. {takes}", width)
    else:
        yield prose('Aᵀ is A with rows and columns exchanged, and that is all that "transposed" says: the pixels that '
                    f"a window reads from in A x are those that it writes to in Aᵀ y. Each number of y {stamps} "
                    f"{takes}", width)
    yield from _product("Aᵀ", e, ("y", e.y, "filter"), ("Aᵀ y", e.ATy, "channel"), transposed, width)
    pixel = int(e.overlap.argmax())
    here = e.taps.pixel == pixel
    if _is_single(e):
        yield from _sum(f"Pixel {divmod(pixel, e.size[1])} in full, {counted(int(here.sum()), 'stamp')}, kernel times "
                        "y", e.ATy.flat[pixel], e.weight.flat[e.taps.element[here]], e.y.flat[e.taps.window[here]],
                        width)


def _product(name: str, e: Explanation, of: Images, result: Images, leads: bool, width: int) -> Iterator[str]:
    """The matrix, what it is applied to (of several channels already shown if this leads), and what comes out."""
    shape = e.A.shape if name == "A" else e.A.T.shape
    blocks = e.A.dense().reshape(prod(e.out_size), e.filters, prod(e.size), e.channels).transpose(1, 3, 0, 2)
    meets = np.zeros(blocks.shape[2:], bool)        # (OH·OW, H·W): where a window meets no pixel, A is always zero
    meets[e.taps.window, e.taps.pixel] = True
    if name != "A":
        blocks, meets = blocks.transpose(1, 0, 3, 2), meets.T
    line = of[1].shape[1]                           # numbers of a line of what is read
    if _is_single(e):
        yield figure([matrix(f"{name} {shape}", blocks[0, 0], width, meets, line),
                      matrix(f"{of[0]} ({of[1].size})", of[1].reshape(-1, 1), width, group=1),
                      matrix(f"= {result[0]} ({result[1].size})", result[1].reshape(-1, 1), width, group=1),
                      matrix(f"{result[0]} as {size_text(result[1].shape[:2])}", result[1][:, :, 0], width)],
                     width, "matrix.png")
        return
    yield prose(f"{name} {shape} has a block {blocks.shape[2:]} for each {result[2]} that it makes and each {of[2]} "
                "that it reads. The operator keeps channels side by side, and so the blocks are woven into each "
                f"other: element (i, j) of the block of {result[2]} r and {of[2]} s is element "
                f"(i*{blocks.shape[0]} + r, j*{blocks.shape[1]} + s) of {name}.", width)
    pairs = [(r, s) for r in range(blocks.shape[0]) for s in range(blocks.shape[1])]
    yield figure([matrix(f"{name}, {result[2]} {r} from {of[2]} {s}", blocks[r, s], width, meets, line)
                  for r, s in pairs[:BLOCKS]], width, "matrix.png", _rest(len(pairs), BLOCKS, f"blocks of {name}"))
    yield prose(f"Each {result[2]} of {result[0]} is a sum: every {of[2]} of {of[0]}, times its block.", width)
    if not leads:
        yield _several(of, width)
    yield _several(result, width)


def _no_inverse(e: Explanation, width: int) -> Iterator[str]:
    yield title("Transposed is not inverse")
    if e.returns_x:
        yield prose("Aᵀ(A x) has the shape of x, and for these numbers it happens to be x; with most kernels it is "
                    "not.", width)
    else:
        yield prose("Aᵀ(A x) has the shape of x but not its numbers: Aᵀ leads back to the image's size, not to the "
                    "image." + f" (Nothing could: {e.x.size} numbers went through {e.y.size}.)" * (
                        e.y.size < e.x.size), width)
    both: list[Images] = [("x", e.x, "channel"), ("Aᵀ(A x)", e.ATAx, "channel")]
    if _is_single(e):
        yield figure([block for images in both for block in _blocks(images, width)], width)
    else:
        yield from (_several(images, width) for images in both)
    yield prose("What makes it the transpose is that <y, A x> = <Aᵀ y, x> for all x and y, where <a, b> is the sum of "
                "the products of a's numbers with b's. This is also why each is the backward pass of the other: the "
                "gradient of a convolution with respect to what it reads is a transposed convolution, and the other "
                "way round. Here", width)
    first, second = e.identity
    yield f"    <y, A x>  = {in_full(first)}\n    <Aᵀ y, x> = {in_full(second)}"


def _sum(what: str, total: float, weights: np.ndarray, values: np.ndarray, width: int) -> Iterator[str]:
    """One number, written out as the sum that it is, unless that is too long."""
    if 0 < len(weights) <= TERMS:
        terms = " + ".join(f"{in_full(a)}*{in_full(b)}" for a, b in zip(weights.tolist(), values.tolist()))
        yield prose(f"{what}: {terms} = {in_full(float(total))}", width)


def _several(images: Images, width: int) -> str:
    """The channels of an array beside each other."""
    symbol, array, what = images
    return figure(_blocks(images, width), width, more=_rest(array.shape[2], IMAGES, f"{what}s of {symbol}"))


def _blocks(images: Images, width: int) -> list[Block]:
    symbol, array, what = images
    *shape, n = array.shape
    return [matrix(f"{symbol} ({size_text(shape)})" if n == 1 else f"{symbol}, {what} {i}", array[:, :, i], width)
            for i in range(min(n, IMAGES))]


def _rest(count: int, shown: int, what: str) -> str:
    return f"{count - shown} more {what}" if count > shown else ""


def _is_single(e: Explanation) -> bool:
    return e.channels == e.filters == 1
