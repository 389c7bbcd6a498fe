"""`minunet gradcheck`: every backward against finite differences, as a table; the exit code says whether all are right.

With --plant it checks a backward that is wrong on purpose, to show what that looks like.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from minunet.cli.values import Commands, add_device, counted, whole
from minunet.cuda import resolve
from minunet.errors import UserError
from minunet.study.cases import CASES
from minunet.study.gradients import KINDS, PLANTS, Row, check, check_plant, op_of, plant_of, select

TITLES = ("comparisons", "by direction", "by element", "tolerance", "rounding", "verdict", "  time")
LEGEND = """\
by direction, by element: the worst error, relative to the norm of the gradient, or to its largest element
rounding: what the op's own rounding may add to it at most, and is allowed beside the tolerance"""


def add_commands(commands: Commands) -> None:
    """gradcheck."""
    ops = ", ".join(dict.fromkeys(map(op_of, CASES)))
    parser = commands.add_parser(
        "gradcheck", help="every op's gradient, and a whole net's, against finite differences",
        description="Compare hand-written gradients with finite differences, along random directions and element by "
        "element. The exit code is 1 if one is wrong.", epilog=f"ops: {ops}")
    parser.set_defaults(run=_gradcheck)
    parser.add_argument("what", nargs="?", metavar="OP|loss|unet|all", help="an op, one of its cases as the table "
                        "calls it, the losses, a small U-Net with its loss, or everything (all)")
    add_device(parser, precision=False)
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64",
                        help="to compute in; float32 shows large errors only (%(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of inputs and directions (%(default)s)")
    parser.add_argument("--plant", metavar="NAME", help="check a backward with a well-known fault in it; list: name "
                        "them all")


def _gradcheck(arguments: argparse.Namespace) -> int:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")        # a terminal without ᵀ shows ?
    if arguments.plant is None:
        return _check(arguments, select(arguments.what or "all"))
    if arguments.plant == "list":
        width = max(map(len, PLANTS))
        print("\n".join(f"{name:{width}}  {plant.op}: {plant.words}" for name, plant in PLANTS.items()))
        return 0
    if arguments.what is not None:
        raise UserError(f"--plant brings the op that it spoils; leave {arguments.what} out")
    return _check_plant(arguments, arguments.plant)


def _check(arguments: argparse.Namespace, names: Sequence[str]) -> int:
    begin = time.perf_counter()
    rows = _table(arguments, names, check)
    wrong = [row for row in rows if row.faults]
    for row in wrong:
        print(f"\n{_words(row)}")
    comparisons = counted(sum(row.found.report.comparisons for row in rows), "comparison")
    print(f"\n{LEGEND}\n\n{len(rows) - len(wrong)} of {len(rows)} right; {comparisons} in "
          f"{time.perf_counter() - begin:.1f} s")
    return 1 if wrong else 0


def _check_plant(arguments: argparse.Namespace, name: str) -> int:
    plant = plant_of(name)
    print(f"planted in {plant.op}, in the gradient of {plant.tensor}: {plant.words}")
    row, = _table(arguments, [plant.op], lambda _, *where: check_plant(name, *where))
    if not row.faults:
        raise UserError(f"the check has not found the fault {name}, which was planted; so it is the check that is "
                        "wrong")
    print(f"\n{_words(row)}\n\n{LEGEND}")
    return 1


def _table(arguments: argparse.Namespace, names: Sequence[str], run: Callable[..., Row]) -> list[Row]:
    """Print a line for each name as soon as run(name, device, dtype, seed) has it."""
    device, dtype, seed = resolve(arguments.device), np.dtype(arguments.dtype), arguments.seed
    print(f"gradients on {device} in {dtype}, seed {seed}")
    width = max(len(name) for name in ["op", *names])
    print("  ".join((f"{'op':{width}}", *TITLES)))
    rows = []
    for name in names:
        print(f"{name:{width}}", end="", flush=True)        # on the simulated GPU a net takes its time
        row = run(name, device, dtype, seed)
        report = row.found.report
        cells = (f"{report.comparisons:,}", _error(report.by_direction), _error(report.by_element),
                 f"{report.tolerance:g}", _error(report.rounding), "WRONG" if row.faults else "right",
                 f"{row.seconds:.2f} s")
        print("".join(f"  {cell:>{len(title)}}" for title, cell in zip(TITLES, cells)))
        rows.append(row)
    return rows


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _words(row: Row) -> str:
    """What is wrong in a row: each tensor, how much of it, one of its elements, and what all have in common."""
    lines = []
    for fault in row.faults:
        size = int(np.prod(fault.shape))
        kink = ("the step crosses a kink there, which may be the cause" if fault.near_kink
                else "no kink lies within the step")
        lines += [f"{row.name}: the gradient of {fault.tensor} {fault.shape} is wrong, in {fault.wrong} of "
                  f"{counted(size, 'element')}",
                  f"  at {fault.index}: {fault.analytic:.6g} analytic, {fault.numeric:.6g} numeric; {kink}",
                  f"  {KINDS[fault.kind].format(factor=fault.factor)}"]
    return "\n".join(lines)
