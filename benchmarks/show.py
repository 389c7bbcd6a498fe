"""How figures are shown: as tables, in a JSON file, under the roofline of the machine.

Source of the roofline: Williams, Waterman, Patterson, Roofline (2009).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .harness import Ceilings


def significant(value: float, digits: int = 3) -> str:
    """A positive number with this many digits: 1,235, 12.3, 0.0123."""
    if not value > 0 or math.isinf(value):
        return "-"
    rounded = float(f"{value:.{digits - 1}e}")                      # 99.96 to 100, before its digits are counted
    return f"{rounded:,.{max(0, digits - 1 - math.floor(math.log10(rounded)))}f}"


def share_bar(share: float, width: int = 10) -> str:
    """#####.....  50%, and what is above 1 as a full bar."""
    full = min(width, max(0, round(share * width)))
    return f"{'#' * full}{'.' * (width - full)} {share:>4.0%}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str] | str], words: int) -> str:
    """Lines of equal columns, the first `words` of them left-justified; a row that is one text stands as it is.

    A column that is empty in every row is left out.
    """
    cells = [tuple(row) for row in rows if not isinstance(row, str)]
    kept = [i for i in range(len(titles)) if any(row[i] for row in cells)]
    widths = {i: max(len(line[i]) for line in (tuple(titles), *cells)) for i in kept}

    def text(line: Sequence[str]) -> str:
        return "  ".join(f"{line[i]:{'<' if i < words else '>'}{widths[i]}}" for i in kept).rstrip()

    return "\n".join([text(titles), *(row if isinstance(row, str) else text(row) for row in rows)])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """With the date of now."""
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    path.write_text(json.dumps({"date": date, **content}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def limits(ceilings: Mapping[str, Ceilings]) -> dict[str, Any]:
    """For JSON, in bytes/s and FLOP/s."""
    return {"ceilings": {device: {"copy_bytes_per_s": c.copy, "gemm_flop_per_s": dict(c.gemm)}
                         for device, c in ceilings.items()}}


@dataclass(frozen=True)
class Point:
    """A measured piece of work in the picture; points of one series share a colour, of one kind a marker."""

    flop: int
    nbytes: int
    seconds: float
    series: str
    kind: str
    label: str = ""


# Okabe and Ito, Color universal design (2008): told apart by colour-blind people too
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8A8A00")
MARKERS = "o^sDvPX*"


def plot_roofline(path: Path, points: Sequence[Point], ceilings: Mapping[str, Ceilings], title: str) -> None:
    """Measured points under their roofs, one roof for each device and precision; both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", title=title, xlabel="arithmetic intensity, FLOP/byte",
                              ylabel="GFLOP/s")
    intensities = [p.flop / p.nbytes for p in points]
    corners = [peak / c.copy for c in ceilings.values() for peak in c.gemm.values()]
    low, high = min([*intensities, *corners]) / 2, max([*intensities, *corners]) * 2
    for (device, c), style in zip(ceilings.items(), ("-", "--")):
        x = np.geomspace(low, high, 200)
        for precision, peak in c.gemm.items():
            axes.plot(x, np.minimum(peak, x * c.copy) / 1e9, style, color="0.35", linewidth=1.2, zorder=1)
            axes.annotate(f"{device}: matrix product in {precision}, {significant(peak / 1e9)} GFLOP/s",
                          (high, peak / 1e9), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8)
        axes.annotate(f"{device}: copy, {significant(c.copy / 1e9)} GB/s", (low, low * c.copy / 1e9), xytext=(6, 0),
                      textcoords="offset points", va="top", fontsize=8)
    series = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(dict.fromkeys(p.series for p in points))}
    kinds = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(dict.fromkeys(p.kind for p in points))}
    for p in points:
        axes.plot(p.flop / p.nbytes, p.flop / p.seconds / 1e9, kinds[p.kind], color=series[p.series], markersize=6,
                  alpha=0.85, markeredgewidth=0, zorder=2)
    columns = sorted({(p.flop / p.nbytes, p.label) for p in points if p.label})
    last, step = 0.0, 0
    for at, label in columns:               # a label at the head of each column, side by side ones at different heights
        step = (step + 1) % 4 if at < last * (high / low) ** 0.02 else 0
        last = at
        axes.axvline(at, color="0.9", linewidth=0.8, zorder=0)
        axes.annotate(label, (at, 1), xycoords=("data", "axes fraction"), xytext=(0, -10 - 9 * step),
                      textcoords="offset points", ha="center", fontsize=8)
    axes.set_ylim(top=axes.get_ylim()[1] * 4)
    entries = [Line2D([], [], color=colour, linewidth=5, label=name) for name, colour in series.items()]
    entries += [Line2D([], [], marker=marker, color="0.35", linestyle="", label=name) for name, marker in kinds.items()]
    axes.legend(handles=entries, loc="lower right", fontsize=8)
    axes.grid(True, which="major", alpha=0.25)
    axes.set_xlim(low, high)
    figure.savefig(path, dpi=150)
