"""Training steps and predictions as tables for people, and as pictures: times side by side, or cost against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .show import COLOURS, MARKERS, significant, table
from .unet import WORKS, Row, ratio

LEGEND = """\
ms: median, and the shortest and longest; ±: half of the runs lie within. GFLOP/s: of the direct convolutions, whatever
the algorithm; of GEMM: that beside the machine's measured peak of a matrix product, and above 1x an algorithm does with
fewer operations. peak MiB: most that the side's process held, less what it held before the net was made, or what it
held of a GPU; forecast: of a step, by UNet.summary. others: most that other programs took of the cores in a turn; above
a few % the times are disturbed. error: of a prediction ‖float32 − float64‖ / ‖float64‖, of a step the largest relative
difference of the first losses from PyTorch's. vs PyTorch: time of its faster memory format over this one's, and the
range over the turns."""
MIB = 1 << 20


def case_table(rows: Sequence[Row], gemm: Mapping[str, float]) -> str:
    """Every side's step and prediction, case by case; gemm is the device's peak in FLOP/s by precision."""
    lines: list[Sequence[str] | str] = []
    for case in dict.fromkeys(row.case for row in rows):
        lines += ["", f"{case}: {significant(case.flop('step') / 1e9)} GFLOP a step, "
                  f"{significant(case.flop('prediction') / 1e9)} a prediction"]
        for row in rows:
            if row.case == case:
                lines.append((row.work, row.side, *_cells(row, rows, gemm)))
    titles = ("", "side", "ms", "min..max", "±", "a second", "GFLOP/s", "of GEMM", "peak MiB", "forecast", "others",
              "error", "vs PyTorch")
    return table(titles, lines, words=2)


def _cells(row: Row, rows: Sequence[Row], gemm: Mapping[str, float]) -> tuple[str, ...]:
    error = "" if row.error is None else f"{row.error:.0e}"
    timing = row.timing
    if not timing:
        return ("WRONG", *[""] * 8, error, "")
    rate, found = row.case.flop(row.work) / timing.median, ratio(rows, row)
    forecast = row.work == "step" and row.side == "minunet"
    median, low, high = (significant(1e3 * t) for t in (timing.median, timing.best, max(timing.times)))
    return (median, f"{low}..{high}", f"{timing.spread:.0%}", significant(1 / timing.median), significant(rate / 1e9),
            f"{significant(rate / gemm[row.case.precision])}x", "" if row.peak is None else f"{row.peak / MIB:,.0f}",
            f"{row.case.forecast() / MIB:,.0f}" if forecast else "",
            "" if row.others is None else f"{row.others:.0%}", error,
            f"{found.value:.2f}x ({found.low:.2f}..{found.high:.2f})" if found else "")


def scaling_table(rows: Sequence[Row]) -> str:
    """A line for each case and side: seconds, seconds for a megapixel, and memory."""
    lines: list[Sequence[str]] = []
    for case in dict.fromkeys(row.case for row in rows):
        for side in dict.fromkeys(row.side for row in rows):
            of_side = {row.work: row for row in rows if (row.case, row.side) == (case, side)}
            line = [str(case), f"{case.megapixels:.3f}", side]
            for work in WORKS:
                timing = of_side[work].timing
                line += ([significant(timing.median), significant(timing.median / case.megapixels)] if timing
                         else ["WRONG", ""])
            peaks = [of_side[work].peak for work in WORKS]
            others = [row.others for row in of_side.values() if row.others is not None]
            lines.append([*line, *("" if peak is None else f"{peak / MIB:,.0f}" for peak in peaks),
                          f"{max(others):.0%}" if others else ""])
    titles = ("case", "Mpx", "side", "step s", "s/Mpx", "prediction s", "s/Mpx", "step MiB", "prediction MiB", "others")
    return table(titles, lines, words=3)


def growth_words(rows: Sequence[Row]) -> str:
    """How much the cost of a megapixel differs from the smallest image to the largest and from one image to many."""
    said = []
    for side in dict.fromkeys(row.side for row in rows):
        for work in WORKS:
            costs = [row.timing.median / row.case.megapixels for row in rows
                     if (row.side, row.work) == (side, work) and row.timing]
            if costs:
                said.append(f"{side}, {work}: {significant(min(costs))} to {significant(max(costs))} s/Mpx")
    return "; ".join(said)


def _figure(title: str, count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * count, 4.5), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def plot_cases(path: Path, rows: Sequence[Row], title: str) -> None:
    """A bar for each side's median, from 0, with a line from the shortest to the longest time; a panel a case."""
    cases, sides = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("case", "side"))
    figure, panels = _figure(title, len(cases))
    for axes, case in zip(panels, cases):
        axes.set(title=str(case), ylabel="ms")
        axes.set_xticks(range(len(WORKS)), WORKS)
        for i, side in enumerate(sides):
            for at, work in enumerate(WORKS):
                timing = next(row.timing for row in rows if (row.case, row.work, row.side) == (case, work, side))
                if timing:
                    x = at + 0.8 * ((i + 0.5) / len(sides) - 0.5)
                    axes.bar(x, 1e3 * timing.median, 0.8 / len(sides), color=COLOURS[i],
                             label=side if at == 0 else None)
                    axes.vlines(x, 1e3 * timing.best, 1e3 * max(timing.times), color="0.2", linewidth=1)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def plot_scaling(path: Path, rows: Sequence[Row], title: str) -> None:
    """Seconds for a megapixel against the megapixels of a batch: a level line is linear growth."""
    figure, panels = _figure(title, len(WORKS))
    for axes, work in zip(panels, WORKS):
        axes.set(title=work, xscale="log", xlabel="megapixels in a batch", ylabel="s/Mpx")
        for colour, side in zip(COLOURS, dict.fromkeys(row.side for row in rows)):
            for marker, words, several in zip(MARKERS, ("one image", "a batch"), (False, True)):
                points = sorted((row.case.megapixels, row.timing.median / row.case.megapixels) for row in rows
                                if (row.side, row.work) == (side, work) and row.timing
                                and (row.case.batch > 1) == several)
                if points:
                    axes.plot(*zip(*points), f"{marker}-", color=colour, label=f"{side}, {words}", markersize=5)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
