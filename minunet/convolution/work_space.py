"""Memory that the products of a `ConvMatrix` take on the CPU, beside what goes in and comes out: from sizes alone."""

from __future__ import annotations

from typing import NamedTuple

from minunet.convolution import im2col
from minunet.convolution.matrix import ConvMatrix
from minunet.convolution.winograd_products import GROUPS, POSITIONS, TRANSPOSED, plan
from minunet.geometry import Pair


class WorkSpace(NamedTuple):
    """Bytes within each product, and of each thread's scratch: it stays, and the next matrix uses it again, by name."""

    forward: int = 0
    transposed: int = 0
    weight_grad: int = 0
    scratch: tuple[int, ...] = (0,) * 5     # V, M, what their transforms hold in between, partial dU, im2col's columns


def work_space(A: ConvMatrix, images: int) -> WorkSpace:
    """For so many images at a time; nothing for a matrix on a GPU."""
    if A.device != "cpu":
        return WorkSpace()
    (_, _, c, f), (ph, pw) = A.weight.shape, A.geometry.padding
    if A.algorithm == "winograd":
        forward, *scratch = _winograd(A, images, A.size, A.out_size, A.geometry.padding, c, f)
        transposed, *back = _winograd(A, images, A.out_size, A.size, (2 - ph, 2 - pw), f, c)
        gradient, *more = _winograd(A, images, A.size, A.out_size, A.geometry.padding, c, f, gradient=True)
        exchanged = A.weight.nbytes if A.weight.size < TRANSPOSED else 0
        return WorkSpace(forward, transposed + exchanged, gradient, (*map(max, scratch, back, more), 0))
    sums = max(1, min(im2col.GROUPS, images * A.out_size[0] * A.out_size[1] // im2col.GROUP_PIXELS))
    return WorkSpace(0, A.weight.nbytes, sums * A.weight.nbytes, (0, 0, 0, 0, im2col.BLOCK_BYTES))


def _winograd(A: ConvMatrix, images: int, size: Pair, out_size: Pair, padding: Pair, c: int, f: int,
              gradient: bool = False) -> tuple[int, ...]:
    """Of the convolution with c channels and f filters, or of its weight gradient: work space, and scratch by name."""
    algorithm, _, blocks, chunk = chosen = plan(images, size, out_size, padding, c, f, A.dtype, gradient)
    byte = A.dtype.itemsize
    U = algorithm.positions * algorithm.taps * c * f * byte
    V, M = (algorithm.positions * channels * byte for channels in (c, f))       # of one tile
    rows = max(map(algorithm.length, blocks))
    between = max(map(algorithm.between, blocks)) * max(c, f) * byte
    if not chunk:                           # a block's V and M are the thread's
        sums, more = min(GROUPS, len(blocks)) if gradient else 1, gradient and len(blocks) > GROUPS
        return sums * U, rows * V, rows * M, between, U * more
    tiles, more = max(sum(block.tiles for block in part) for part in chosen.chunks), gradient and len(blocks) > chunk
    return U + tiles * (V + M), 0, 0, between, POSITIONS * c * f * byte * more
