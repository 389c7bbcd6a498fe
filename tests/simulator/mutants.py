"""Faults planted in the tests' kernels: what people forget and mistake when they write CUDA.

Each says what has to be found: a part of the message, or that the result is wrong. They test the checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minunet import simulator
from tests.simulator.cases import CASES, source

BARRIER = "__syncthreads();"
WARP_BARRIER = "__syncwarp();"
WRONG = "wrong result"


@dataclass(frozen=True)
class Mutant:
    """A kernel's text with `old` replaced by `new`, at its n-th place or at all; or options of the case."""

    case: str
    name: str
    found: str              # regular expression
    old: str = ""
    new: str = ""
    nth: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def text(self):
        text = source(self.case)
        if not self.old:
            return text
        parts = text.split(self.old)
        assert len(parts) > (self.nth or 0) + 1, f"{self.name}: the kernel has no {self.old!r} to change"
        if self.nth is None:
            return self.new.join(parts)
        return self.old.join(parts[:self.nth + 1]) + self.new + self.old.join(parts[self.nth + 1:])


MUTANTS = [
    Mutant("gemm", "no barrier after loading", "race on [AB]s|uninitialised [AB]s", BARRIER, "", 0),
    Mutant("gemm", "no barrier after computing", "race on [AB]s", BARRIER, "", 1),
    Mutant("gemm", "no row guard in the load of A", "past the end of A", "m0 + m < M && ", ""),
    Mutant("gemm", "no depth guard in the load of B", "past the end of B", "k0 + kb < K && ", ""),
    Mutant("gemm", "no row guard in the store", "past the end of C", "m < M && n < N", "n < N"),
    Mutant("gemm", "no column guard in the store", "race on C|past the end of C", "m < M && n < N", "m < M"),
    Mutant("gemm", "rows of a shared array too short", "out-of-bounds index", "[TILE + 4]", "[TILE - 4]"),
    Mutant("gemm", "a shared array of too few rows", "out-of-bounds index", "Bs[DEPTH][TILE]", "Bs[DEPTH - 1][TILE]"),
    Mutant("gemm", "early return before a barrier", "barrier divergence: .* have exited", "float sum[4][4] = {};",
           "float sum[4][4] = {}; if (n0 + column >= N) return;"),
    Mutant("gemm", "different barriers in two branches", "barrier divergence: thread .* at that of", BARRIER,
           "if (thread % 16 < 8) __syncthreads();\n        else __syncthreads();", 0),
    Mutant("gemm", "reads its undefined output", "uninitialised C", "if (beta != 0.f) value =",
           "if (C[m * N + n] > 1e30f) value += 1e-9f; if (beta != 0.f) value ="),
    Mutant("gemm", "misaligned float4", "misaligned", "[TILE + 4]", "[TILE + 1]"),
    Mutant("statistics", "no first barrier of a block's sum", "race on partial", BARRIER, "", 0),
    Mutant("statistics", "no middle barrier", "race on partial|uninitialised partial", BARRIER, "", 1),
    Mutant("statistics", "no last barrier", "race on partial", BARRIER, "", 2),
    Mutant("statistics", "shuffle in a divergent branch", "deadlock",
           "value = lane < warps ? partial[lane] : 0.f;\n        value = warp_sum(value);",
           "if (lane < warps) { value = partial[lane]; value = warp_sum(value); }"),
    Mutant("statistics", "reads beyond what was written", "uninitialised partial", "lane < warps ? partial[lane] : 0.f",
           "partial[lane]"),
    Mutant("statistics", "a block that is no multiple of a warp", WRONG, options={"threads": 250}),
    Mutant("statistics", "all threads store", "race on mean", "if (threadIdx.x == 0) { mean", "{ mean"),
    Mutant("total", "too little dynamic shared memory", "past the end of partial", options={"shared": 256}),
    Mutant("total", "no barrier in the loop", "race on partial", BARRIER, "", 4),
    Mutant("total", "barrier above a warp's size only", "race on partial", BARRIER,
           "if (half >= 32) __syncthreads();", 4),
    Mutant("total", "+= for atomicAdd", "race on out", "atomicAdd(out, partial[0])", "out[0] += partial[0]"),
    Mutant("convolution", "no guard of pixels in the load", "out-of-bounds", "kk < K && p < pixels", "kk < K"),
    Mutant("convolution", "no check of the padding", "out-of-bounds|wrong result",
           "if ((unsigned)h < (unsigned)height && (unsigned)v < (unsigned)width)", ""),
    Mutant("convolution", "zeros of a tile not stored", "uninitialised Xs", "Xs[k][mine] = value;",
           "if (kk < K && p < pixels) Xs[k][mine] = value;"),
    Mutant("convolution", "no guard of the filters", "past the end of bias", "if (f >= filters) break;", ""),
    Mutant("im2col", "<= for <", "past the end of columns|out-of-bounds", "i < count", "i <= count"),
    Mutant("im2col", "writes its input", "write to const x", "columns[i] = inside",
           "if (i == 5) ((float*)x)[0] = 3.f;\n        columns[i] = inside"),
    Mutant("im2col", "step of a block for that of the grid", "race on columns", "i += gridDim.x * blockDim.x",
           "i += blockDim.x"),
    Mutant("gemm_tf32", "waits for too few copies", "uninitialised [AB]s", "cp_async_wait<1>", "cp_async_wait<2>"),
    Mutant("gemm_tf32", "no wait in the end", "never waited for|uninitialised", "else cp_async_wait<0>();", ""),
    Mutant("gemm_tf32", "no commit", "uninitialised [AB]s|never waited", "cp_async_commit();", ""),
    Mutant("gemm_tf32", "no barrier after the wait", "race on [AB]s|uninitialised [AB]s", BARRIER, "", 0),
    Mutant("gemm_tf32", "no barrier after the products", "race on [AB]s", BARRIER, "", 1),
    Mutant("gemm_tf32", "operand not rounded", "not rounded to TF32", "b[j][0] = to_tf32(Bs[stage][k + t][c])",
           "b[j][0] = __float_as_uint(Bs[stage][k + t][c])"),
    Mutant("gemm_tf32", "wrong fragment", WRONG, "a[i][1] = to_tf32(As[stage][r + 8][k + t]);",
           "a[i][1] = to_tf32(As[stage][r][k + t + 4]);"),
    Mutant("gemm_tf32", "rows of no multiple of 16 bytes", "misaligned", "As[2][64][20]", "As[2][64][18]"),
    Mutant("gemm_bf16", "half a warp", "with 16 of the 32 lanes|past the end", options={"threads": 16}),
    Mutant("staging", "no first __syncwarp", "race on buffer|uninitialised buffer", WARP_BARRIER, "", 0),
    Mutant("staging", "no second __syncwarp", "race on buffer", WARP_BARRIER, "", 1),
    Mutant("staging", "one buffer for all warps", "race on buffer", "buffer[warp]", "buffer[0]"),
    Mutant("staging", "half of a warp synchronised", "deadlock|race on buffer|uninitialised", WARP_BARRIER,
           "if (lane < 16) __syncwarp();", 0),
    Mutant("staging", "index past a constant table", "out-of-bounds index", "scale[r & 3]", "scale[r]"),
]


def found(mutant: Mutant) -> str:
    """What the checks say of a mutant; empty if nothing."""
    case: Callable[..., None] = CASES[mutant.case]
    for order in (0, 1, 2):
        try:
            with simulator.checking(order, seed=3):
                case(mutant.text(), **mutant.options)
        except simulator.SimulatorError as error:
            return str(error)
        except AssertionError:
            return WRONG
    return ""
