"""On the simulated GPU, which has no clock: what is launched, and that it is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from minunet import nvrtc, simulator
from minunet.backend import sim, to_device
from minunet.cuda import Launch, record_launches
from minunet.errors import UserError
from minunet.geometry import Pair

from .harness import timer_for
from .layers import Layer, images
from .memory import draw, memory_ops, moved, op_errors, runs_of
from .products import PRODUCTS, TOLERANCE, compute, matrices_of, to_host, truth
from .show import table
from .tables import heading


class Described(NamedTuple):
    """Work as the simulated GPU would launch it: kernels, and products of the array library (M, K, N)."""

    what: str
    algorithm: str                  # of an op: what it moves
    precision: str
    launches: tuple[Launch, ...]
    gemms: tuple[tuple[int, int, int], ...]
    error: float                    # of the same work on small images, computed
    tolerance: float

    @property
    def correct(self) -> bool:
        """Whether it was verified; NaN is not."""
        return self.error <= self.tolerance


def describe_layer(layer: Layer, batch: int, precisions: Sequence[str]) -> list[Described]:
    """What each product launches, none of which runs; and its error on two images of 8x8 px with up to 16 channels."""
    few = replace(layer, channels=min(layer.channels, 16), filters=min(layer.filters, 16), size=(8, 8))
    errors = _errors(few, tuple(precisions))
    weight, x, y = (sim.empty(shape, np.float32) for shape in layer.shapes(batch))
    found = []
    for precision in precisions:
        for algorithm, A, _ in matrices_of(layer, "sim", precision, weight):
            for product in PRODUCTS:
                with _launches_only() as (launches, gemms):
                    compute(product, A, x, y)
                found.append(Described(product, algorithm, precision, tuple(launches), tuple(gemms),
                                       errors.get((product, algorithm, precision), float("nan")), TOLERANCE[precision]))
    return sorted(found, key=lambda row: PRODUCTS.index(row.what))


def describe_ops(size: Pair, batch: int, base: int) -> Iterator[tuple[str, int, Described]]:
    """Name, bytes moved, and the same of the kernels that move memory."""
    for op in memory_ops(size, batch, base):
        errors, _ = op_errors(op.name, "sim", timer_for("cpu"))
        with _launches_only():
            runs, nbytes = runs_of(op, draw(op), "sim")
        for what, moves in (("forward", op.moves), ("backward", op.moves_backward)):
            if moves:
                with _launches_only() as (launches, gemms):
                    runs[what]()
                yield op.title, moved(moves, nbytes), Described(what, moves, "float32", tuple(launches), tuple(gemms),
                                                                errors[what], TOLERANCE["float32"])


@lru_cache(maxsize=None)
def _errors(layer: Layer, precisions: tuple[str, ...]) -> dict[tuple[str, str, str], float]:
    """By product, algorithm and precision."""
    *host, rng = images(layer, 2)
    truths = {product: truth(layer, product, host[0], host[1], host[2], rng) for product in PRODUCTS}
    weight, x, y = (to_device(array, "sim") for array in host)
    return {(product, algorithm, precision): truths[product].error(to_host(compute(product, A, x, y)))
            for precision in precisions for algorithm, A, _ in matrices_of(layer, "sim", precision, weight)
            for product in PRODUCTS}


@contextmanager
def _launches_only() -> Iterator[tuple[list[Launch], list[tuple[int, int, int]]]]:
    """Within it, what is launched on sim is written down and not run."""
    gemms: list[tuple[int, int, int]] = []

    def matmul(a: Any, b: Any, out: Any = None) -> Any:
        gemms.append((*a.shape, b.shape[1]))
        return sim.empty((a.shape[0], b.shape[1]), a.dtype) if out is None else out

    with patch.object(simulator, "launch", lambda *_: None), patch.object(sim, "matmul", matmul, create=True), \
            record_launches() as launches:
        yield launches, gemms


@lru_cache(maxsize=None)
def costs(file: str, name: str, defines: tuple[tuple[str, Any], ...], arch: int = 90) -> tuple[int, int] | None:
    """Registers of a thread and bytes of static shared memory of a block, by the compiler; None without it."""
    try:
        kernel = nvrtc.compile(file, arch, dict(defines)).kernels[name]
    except UserError:
        return None
    return kernel.registers, kernel.shared


LAUNCHED = ("kernel", "launches", "blocks", "threads a block", "threads in all", "shared B", "registers", "error")


def described_lines(row: Described) -> list[tuple[str, ...]]:
    """A line of LAUNCHED for each different launch."""
    lines = []
    same = Counter((run.kernel, run.defines, run.grid, run.threads, run.shared) for run in row.launches)
    for (kernel, defines, grid, threads, dynamic), count in same.items():
        found = costs(*kernel.split("."), defines)
        registers, shared = (str(found[0]), f"{found[1] + dynamic:,}") if found else ("", "")
        lines.append((kernel, f"{count}", "x".join(str(n) for n in grid if n > 1) or "1", f"{threads}",
                      f"{count * threads * int(np.prod(grid)):,}", shared, registers))
    for (m, k, n), count in Counter(row.gemms).items():
        lines.append((f"array library, {m}x{k} @ {k}x{n}", f"{count}", "", "", "", "", ""))
    error = f"{row.error:.0e}" + " WRONG" * (not row.correct)
    return [(*line, error if i == 0 else "") for i, line in enumerate(lines or [("array library",) + ("",) * 6])]


def described_layer(layer: Layer, batch: int, rows: Sequence[Described]) -> str:
    """The table of a layer on the simulated GPU."""
    lines = []
    for product in PRODUCTS:
        of_product = [(row, line) for row in rows if row.what == product for line in enumerate(described_lines(row))]
        for i, (row, (j, line)) in enumerate(of_product):
            lines.append((product if i == 0 else "", *((row.algorithm, row.precision) if j == 0 else ("", "")), *line))
    return f"{heading(layer, batch)}\n{table(('product', 'algorithm', 'precision', *LAUNCHED), lines, words=4)}"


def described_ops(rows: Sequence[tuple[str, int, Described]]) -> str:
    """The table of the kernels that move memory on the simulated GPU."""
    lines = []
    for name, nbytes, row in rows:
        for i, line in enumerate(described_lines(row)):
            lines.append((*((name, row.what, row.algorithm, f"{nbytes / 1e6:,.1f}") if i == 0 else ("",) * 4), *line))
    # the figure of the bytes stands between words
    return table(("kernel", "", "moves", "MB", *("launched", *LAUNCHED[1:])), lines, words=5)
