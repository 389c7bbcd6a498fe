"""Rung 4: the three products on tensor cores, by kernels/conv_tensorcore.cu.

float32 arrays on a GPU or the simulated one, channels last. The operands are rounded to TF32 (10 bits of fraction, ties
away from zero) where they enter the tensor cores, or beforehand to BF16 (7 bits, ties to even), two in a word, so that
half as many bytes are copied. Sums and results are float32.

What is decided here, from the shape and the shared memory that a block may have: the tile that a block owns, and into
how many slices the sum is cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minunet.backend import address, array_module, device_of
from minunet.convolution.shape import Conv
from minunet.cuda import launch, shared_memory
from minunet.geometry import Geometry, Pair

PRECISIONS = ("tf32", "bf16")
COPY = {"tf32": 4, "bf16": 8}       # numbers of one asynchronous copy, 16 bytes: all lie along channels or filters
LINE = 128                  # bytes of K that a block multiplies at a time
MULTIPROCESSORS = 132       # of a large GPU
WARPS = 8                   # that a multiprocessor has registers for, with the larger tiles: in one block or two
RESERVED = 1024             # bytes of shared memory that each block takes beside its own
FILL = 8                    # steps that a beginning and end are taken for; shared by the blocks that run meanwhile
SLICES, IMAGE_SLICES = 264, 8       # at most: of weight gradients; of images, which are as large as their slices


class Tile(NamedTuple):
    """What a block of conv_tensorcore.cu owns: m x n results, by 4 or 8 warps, warps_m of them along m.

    stages: how many of its tiles of the operands lie in shared memory at a time.
    """

    m: int
    n: int
    warps: int
    warps_m: int
    stages: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory: both operands' tiles for each stage, and a table of the rows of the image that a tile
        has, or two of those of a step.
        """
        return self.stages * (self.m + self.n) * LINE + 16 * max(self.m, 2 * depth("bf16"))

    def together(self, shared: int) -> int:
        """How many of its blocks a multiprocessor holds, at most 2, where each may have so much shared memory."""
        return max(1, min(WARPS // self.warps, (shared + RESERVED) // (self.shared + RESERVED)))

    def covered(self, m: int, n: int) -> int:
        """The results that its blocks cover, those beyond m and n, too."""
        return -(-m // self.m) * self.m * -(-n // self.n) * self.n

    def defines(self, precision: str) -> dict[str, int]:
        """The constants that the kernels are compiled with."""
        return {"BLOCK": 32 * self.warps, "TILE_M": self.m, "TILE_N": self.n, "WARPS_M": self.warps_m,
                "STAGES": self.stages, "BF16": int(precision == "bf16")}


TILES = (Tile(256, 128, 8, 4, 3), Tile(128, 128, 8, 4, 3), Tile(128, 128, 4, 2, 2), Tile(256, 64, 4, 4, 2),
         Tile(128, 64, 4, 2, 3), Tile(64, 64, 4, 2, 3))


def depth(precision: str) -> int:
    """The numbers of K that a block multiplies at a time. Raises ValueError for an unknown precision."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)} on tensor cores; got {precision!r}")
    return LINE // 16 * COPY[precision]


class Plan(NamedTuple):
    """How one product (M, K) x (K, N) is cut: a tile a block, and slices of K, each `length` long."""

    tile: Tile
    m: int
    n: int
    slices: int
    length: int

    @property
    def blocks(self) -> Pair:
        """The grid."""
        return self.tile.covered(self.m, self.n) // (self.tile.m * self.tile.n), self.slices

    @classmethod
    def of(cls, m: int, n: int, k: int, most: int, precision: str, device: str) -> Plan:
        """The tile, and at most so many slices of K, with the fewest bytes to copy and to add up, idle blocks counted.

        What a block copies comes out of the second-level cache, by counting the likely limit (benchmarks/RESULTS.md).
        """
        steps = max(1, -(-k // depth(precision)))
        tile, slices, steps = _cheapest(m, n, steps, most, TILES, shared_memory(device))
        return cls(tile, m, n, slices, steps * depth(precision))


@lru_cache(maxsize=1024)
def _cheapest(m: int, n: int, steps: int, most: int, tiles: tuple[Tile, ...], shared: int) -> tuple[Tile, int, int]:
    """The tile, the number of slices, none empty, and how many steps each is long."""
    def cost(cut: tuple[Tile, int, int]) -> int:
        tile, slices, length = cut
        together = tile.together(shared)
        wave = MULTIPROCESSORS * together           # of blocks at a time
        waves = -(-tile.covered(m, n) // (tile.m * tile.n) * slices // wave)
        added = 2 * 4 * slices * m * n if slices > 1 else 0
        return waves * wave * (length + FILL // together) * (tile.m + tile.n) * LINE + added

    tiles = tuple(tile for tile in tiles if tile.shared <= shared) or tiles[-1:]
    lengths = sorted({-(-steps // slices) for slices in range(1, min(most, steps) + 1)}, reverse=True)
    return min(((tile, -(-steps // length), length) for tile in tiles for length in lengths), key=cost)


@dataclass(frozen=True, eq=False)
class Operand:
    """An array of this shape as the kernels copy it: words of 4 bytes, float32 numbers or pairs of BF16."""

    words: Any
    shape: tuple[int, ...]
    precision: str

    @classmethod
    def of(cls, array: Any, precision: str) -> Operand:
        """In BF16 a rounded copy; in TF32 the array itself, or a copy if it does not begin at a multiple of 16 bytes,
        as the asynchronous copies want. An operand stays what it is.
        """
        if isinstance(array, Operand):
            return array
        if precision == "tf32":
            return cls(_aligned(array).view(np.uint32), array.shape, precision)
        words = array_module(array).empty((*array.shape[:-1], array.shape[-1] // 2), np.uint32)
        launch("bf16.pack", _aligned(array), words, array.size // 4, threads=array.size // 4)
        return cls(words, array.shape, precision)


def fits(channels: int, filters: int, precision: str) -> bool:
    """Whether the kernels take a convolution: of any geometry, channels and filters multiples of 4 (bf16: 8)."""
    return channels % COPY[precision] == 0 and filters % COPY[precision] == 0


def forward(weight: np.ndarray, geometry: Geometry, x: Any, bias: np.ndarray | None = None, relu: bool = False,
            precision: str = "tf32") -> np.ndarray:
    """A x [+ bias] [then ReLU]: x (N, H, W, C), weight (KH, KW, C, F), bias (F,) -> (N, OH, OW, F)."""
    n, (kh, kw, c, f) = x.shape[0], weight.shape
    shape = Conv.of(geometry, n, x.shape[1:3], c, f)
    y = array_module(weight).empty((n, shape.out_height, shape.out_width, f), np.float32)
    plan = Plan.of(y.size // f, f, kh * kw * c, IMAGE_SLICES, precision, device_of(weight))
    _run("conv_forward", plan, precision, (x, weight), y, (shape,), bias, relu)
    return y


def transposed(weight: np.ndarray, geometry: Geometry, y: Any, size: Pair, bias: np.ndarray | None = None,
               precision: str = "tf32") -> np.ndarray:
    """Aᵀ y [+ bias]: y (N, OH, OW, F), weight (KH, KW, C, F), bias (C,) -> (N, H, W, C) with (H, W) = size.

    Gathered by the pixels of x. Where windows tile the image without a rest, A is a 1x1 convolution of y with KH·KW·C
    channels, which the kernel stores as patches of the image.
    """
    n, (kh, kw, c, f) = y.shape[0], weight.shape
    shape, patch = Conv.of(geometry, n, size, c, f), (1, 1)
    out_size = shape.out_height, shape.out_width
    if geometry.is_patches and (out_size[0] * kh, out_size[1] * kw) == tuple(size):
        shape, patch = Conv.of(Geometry(1), n, out_size, kh * kw * c, f), (kh, kw)
    x = array_module(weight).empty((n, *size, c), np.float32)
    # slices are added up in the order of the matrix, so patches are not cut; their K is short
    plan = Plan.of(x.size // shape.channels, shape.channels, shape.kernel_h * shape.kernel_w * f,
                   IMAGE_SLICES if patch == (1, 1) else 1, precision, device_of(weight))
    _run("conv_transposed", plan, precision, (y, weight), x, (shape, *patch), bias)
    return x


def weight_grad(geometry: Geometry, x: Any, y: Any, precision: str = "tf32") -> np.ndarray:
    """The gradient of <y, A x> with respect to the weight: x (N, H, W, C), y (N, OH, OW, F) -> (KH, KW, C, F)."""
    x, y = Operand.of(x, precision), Operand.of(y, precision)
    (kh, kw), c, f = geometry.kernel, x.shape[3], y.shape[3]
    shape = Conv.of(geometry, x.shape[0], x.shape[1:3], c, f)
    dw = array_module(x.words).empty((kh, kw, c, f), np.float32)
    plan = Plan.of(kh * kw * c, f, math.prod(y.shape[:3]), SLICES, precision, device_of(x.words))
    _run("conv_weight_grad", plan, precision, (x, y), dw, (shape,), with_epilogue=False)
    return dw


def _run(kernel: str, plan: Plan, precision: str, operands: tuple[Any, Any], out: Any, shape: tuple[Any, ...],
         bias: Any = None, relu: bool = False, with_epilogue: bool = True) -> None:
    """Launch a product into `out`, by way of its slices if there are several."""
    words = [Operand.of(operand, precision).words for operand in operands]
    bias = None if bias is None else _aligned(bias)
    with_bias, with_relu = int(bias is not None), int(relu)
    whole = plan.slices == 1
    target = out if whole else array_module(out).empty((plan.slices, out.size), np.float32)
    bias = target if bias is None else bias             # a pointer must point somewhere
    arguments = [*words, target, *shape, plan.length]
    if with_epilogue:
        flags = [with_bias, with_relu] if kernel == "conv_forward" else [with_bias]
        arguments = [*words, bias, target, *shape, *(f if whole else 0 for f in flags), plan.length]
    launch(f"conv_tensorcore.{kernel}", *arguments, blocks=plan.blocks, shared=plan.tile.shared,
           defines=plan.tile.defines(precision))
    if not whole:
        launch("conv_slices.sum_slices", target, bias, out, out.size, plan.slices, plan.n, with_bias, with_relu,
               blocks=(-(-out.size // 32),))


def _aligned(array: Any) -> Any:
    """The array, or a copy if it does not begin at a multiple of 16 bytes, as the asynchronous copies want."""
    return array if address(array) % 16 == 0 else array.copy()
