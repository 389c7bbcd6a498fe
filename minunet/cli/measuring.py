"""What the benchmarks' commands share: where the benchmarks are, options, limits before and after, what is written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from minunet.cli.values import PRECISIONS, counted, positive
from minunet.errors import UserError


def room(name: str) -> Any:
    """The module benchmarks/<name>.py: inside the package where it is installed, beside it in a checkout."""
    package = sys.modules.setdefault("minunet.benchmarks", ModuleType("minunet.benchmarks"))
    package.__path__ = [str(place / "benchmarks") for place in Path(__file__).parents[1:3]]
    return import_module(f"minunet.benchmarks.{name}")


def add_common(parser: argparse.ArgumentParser, picture: str, quick: str) -> None:
    """Options of every benchmark; picture and quick: what --plot draws and --quick measures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with machine and versions")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"{picture}: FILE.png, FILE.svg or FILE.pdf")
    parser.add_argument("--quick", action="store_true", help=f"{quick} and few repeats: a look in seconds, and no "
                        "figure to rely on")
    parser.add_argument("--threads", type=positive, metavar="N", help="of every side on the CPU "
                        "(MINUNET_NUM_THREADS, or all cores)")


def begin(arguments: argparse.Namespace, device: str, against: Sequence[str]) -> None:
    """What cannot be is said before the minutes of measuring, not after them."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")        # a terminal without ᵀ shows ?
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path is None:
            continue
        if device == "sim":
            raise UserError(f"{option} is for measured figures, and the simulated GPU has none; leave it out, or "
                            "choose --device cpu or cuda")
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(f"{option}: {path} must be a file in a folder that exists")
    if arguments.plot and arguments.plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot: must end in .png, .svg or .pdf; got {arguments.plot}")
    if "torch" in against:
        room("peer").require_torch()
    if arguments.threads:
        os.environ["MINUNET_NUM_THREADS"] = str(arguments.threads)      # the processes that are started inherit it


def between_limits(arguments: argparse.Namespace, device: str, precisions: Sequence[str], against: Sequence[str],
                   timers: Mapping[str, Any], unit: str, bench: Callable[[Callable[[str], None]], Any]
                   ) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """The machine, its limits, and what `bench` measures, which is told whom to tell what is next.

    The limits are measured before and after all else: on a machine that others use too, the higher are nearer.
    """
    harness = room("harness")
    machine = harness.machine(device, ["torch"] if "torch" in against else [])
    print(harness.machine_words(machine), flush=True)

    def limits() -> dict[str, Any]:
        return {d: harness.measure_ceilings(d, precisions if d == device else PRECISIONS[:1], arguments.quick, timer)
                for d, timer in timers.items()}
    before = limits()
    with tqdm(unit=unit, leave=False, dynamic_ncols=True, disable=None) as bar:
        def done(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()
        measured = bench(done)
    return machine, {d: c.raised(before[d]) for d, c in limits().items()}, measured


def print_limits(ceilings: Mapping[str, Any], others: float | None = None) -> None:
    """The measured limits of each device, and the share of the cores that other programs took, 0 to 1."""
    significant = room("show").significant
    for d, c in ceilings.items():
        gemm = (f"{significant(rate / 1e9)} GFLOP/s in {precision}" for precision, rate in c.gemm.items())
        print(f"limits measured on {d}: copy {significant(c.copy / 1e9)} GB/s (read and written), matrix product "
              f"{', '.join(gemm)}")
        if "bf16" in c.gemm:
            print("  (in bf16 of float32 operands, which the library rounds, or PyTorch's of bf16 operands, if it "
                  "was measured)")
    if others is not None:
        print(f"other programs took {others:.0%} of the cores meanwhile")


def say_disturbed(timings: Sequence[Any]) -> None:
    """How many of the timings say themselves that something else ran beside them."""
    disturbed = sum(timing is not None and timing.disturbed for timing in timings)
    if disturbed:
        print(f"\n{counted(disturbed, 'median')} of {len(timings)} above are more than twice the shortest time of "
              "their runs: something else ran beside them; measure again when nothing does.")


def write(arguments: argparse.Namespace, command: str, content: Mapping[str, Any]) -> None:
    """The file of --json, if it was asked for."""
    if arguments.json:
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
                   if name != "run"}
        room("show").write_json(arguments.json, {"command": f"minunet bench {command}", "options": options, **content})


def refuse(wrong: int) -> None:
    """Raises UserError for wrong results."""
    if wrong:
        raise UserError(f"{counted(wrong, 'result')} marked WRONG above: too far from what they must be, and not timed")
