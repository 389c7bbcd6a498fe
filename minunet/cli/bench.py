"""Measuring: `minunet bench kernels`, each kernel against float64, the machine's limits, the CPU and PyTorch."""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from minunet.backend import DEVICES, cupy
from minunet.cli.values import PRECISIONS, Commands, counted, positive, size
from minunet.cuda import resolve
from minunet.errors import UserError


def room(name: str) -> Any:
    """The module benchmarks/<name>.py: inside the package where it is installed, beside it in a checkout."""
    package = sys.modules.setdefault("minunet.benchmarks", ModuleType("minunet.benchmarks"))
    package.__path__ = [str(place / "benchmarks") for place in Path(__file__).parents[1:3]]
    return import_module(f"minunet.benchmarks.{name}")


def add_commands(commands: Commands) -> None:
    """bench, with its own command kernels."""
    bench = commands.add_parser("bench", help="measure, beside the machine's limits and others")
    inner = bench.add_subparsers(metavar="COMMAND", required=True)
    kernels = inner.add_parser(
        "kernels", help="each kernel of a U-Net on the CPU or a GPU",
        description="Verify and time the three products of each of a U-Net's convolutions, by every algorithm, and the "
        "kernels that move memory; on the simulated GPU, which has no clock, say what would be launched.")
    kernels.set_defaults(run=_kernels)
    kernels.add_argument("--device", choices=(*DEVICES, "auto"), default="auto", help="(%(default)s: cuda where there "
                         "is a GPU, else cpu)")
    kernels.add_argument("--size", type=size, nargs="+", metavar="HEIGHTxWIDTH", help="of the images, px (256x256)")
    kernels.add_argument("--batch", type=positive, nargs="+", metavar="N", help="images at a time (1)")
    kernels.add_argument("--base", type=positive, help="channels of the net's first level (64)")
    kernels.add_argument("--layers", nargs="+", metavar="NAME", help="of the net's convolutions these alone, "
                         "without the other kernels: first.conv2, 'up.*', ...")
    kernels.add_argument("--precision", nargs="+", choices=PRECISIONS, help="of the products (cpu: float32; "
                         "otherwise all that the GPU has)")
    kernels.add_argument("--against", nargs="*", choices=("cpu", "torch"), help="measure these too: minunet on the "
                         "CPU, PyTorch on the same device (cuda: cpu; otherwise none)")
    kernels.add_argument("--json", type=Path, metavar="FILE", help="write every figure, with machine and versions")
    kernels.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline: FILE.png, FILE.svg or FILE.pdf")
    kernels.add_argument("--quick", action="store_true", help="a small net (base 16, 64x64) and few repeats: a look in "
                         "seconds, and no figure to rely on")


def _kernels(arguments: argparse.Namespace) -> None:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")        # a terminal without ᵀ shows ?
    device = resolve(arguments.device)
    precisions = _precisions(arguments.precision, device)
    against = ["cpu"] * (device == "cuda") if arguments.against is None else arguments.against
    _check_files(arguments, device)
    if "torch" in against:
        room("peer").require_torch()
    base = arguments.base or (16 if arguments.quick else 64)
    cases = [(_chosen(room("products").unet_layers(image, base), arguments.layers), image, batch)
             for image in arguments.size or [(64, 64) if arguments.quick else (256, 256)]
             for batch in arguments.batch or [1]]
    others = None if arguments.layers else base         # of the net whose other kernels are wanted too
    if device == "sim":
        _describe(cases, precisions, others)
    else:
        _measure(arguments, device, precisions, against, cases, others)


def _precisions(wanted: Sequence[str] | None, device: str) -> list[str]:
    if wanted is None:
        few = device == "cpu" or device == "cuda" and int(cupy().cuda.Device().compute_capability) < 80
        return list(PRECISIONS[:1] if few else PRECISIONS)
    if device == "cpu" and set(wanted) != {"float32"}:
        raise UserError("--precision tf32 and bf16 are for the tensor cores of a GPU, and this computes on cpu; leave "
                        "them out, or choose --device cuda or sim")
    return list(dict.fromkeys(wanted))


def _check_files(arguments: argparse.Namespace, device: str) -> None:
    """What cannot be written is said before the minutes of measuring, not after them."""
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


def _chosen(layers: list[Any], wanted: Sequence[str] | None) -> list[Any]:
    """The layers of which a place has a wanted name."""
    if wanted is None:
        return layers
    names = [name for layer in layers for name in layer.names]
    for pattern in wanted:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"--layers: no convolution is called {pattern}; there are {', '.join(names)}")
    return [layer for layer in layers if any(fnmatch.filter(layer.names, pattern) for pattern in wanted)]


def _describe(cases: Sequence[Any], precisions: Sequence[str], base: int | None) -> None:
    launches = room("launches")
    print("The simulated GPU computes what a GPU computes, but its times say nothing of a GPU's, so none are given:\n"
          "what is launched for these shapes, and the error of the same kernels on small images, computed here.\n"
          "blocks: AxB are A tiles of the result, each cut into B slices of its sum. error: ‖result − float64‖ / "
          "‖float64‖.")
    wrong = 0
    for layers, image, batch in cases:
        for layer in layers:
            rows = launches.describe_layer(layer, batch, precisions)
            wrong += sum(not row.correct for row in rows)
            print(f"\n{launches.described_layer(layer, batch, rows)}", flush=True)
        if base:
            ops = list(launches.describe_ops(image, batch, base))
            wrong += sum(not row.correct for _, _, row in ops)
            print(f"\nkernels that move memory, {image[0]}x{image[1]} px, batch {batch}\n{launches.described_ops(ops)}")
    if launches.costs("activation", "relu", (("real", "float"),)) is None:
        print("\nwhat shared memory and registers each takes is the compiler's to say: pip install 'minunet[nvrtc]'")
    _refuse(wrong)


def _measure(arguments: argparse.Namespace, device: str, precisions: Sequence[str], against: Sequence[str],
             cases: Sequence[Any], base: int | None) -> None:
    """The limits are measured before and after all else: on a machine that others use too, the higher are nearer."""
    harness, kernels, show, tables = (room(name) for name in ("harness", "kernels", "show", "tables"))
    budget = room("products").Budget(*((0.02, 3, 4) if arguments.quick else ()))
    timers = {d: harness.timer_for(d) for d in dict.fromkeys([device, *(["cpu"] if "cpu" in against else [])])}
    machine = harness.machine(device, ["torch"] if "torch" in against else [])
    print(harness.machine_words(machine), flush=True)
    peer_of = room("peer").Peer if "torch" in against else lambda *_: nullcontext()
    with peer_of(device, precisions, budget, arguments.quick) as peer:
        def limits() -> dict[str, Any]:
            return {d: harness.measure_ceilings(d, precisions if d == device else PRECISIONS[:1], arguments.quick,
                                                timer) for d, timer in timers.items()}
        before = limits()
        with tqdm(unit="kernel", leave=False, dynamic_ncols=True, disable=None) as bar:
            def done(name: str) -> None:
                bar.set_postfix_str(name)
                bar.update()
            measured = [kernels.bench_case(layers, image, batch, timers, precisions, budget, peer, base, done)
                        for layers, image, batch in cases]
        ceilings = {d: c.raised(before[d]) for d, c in limits().items()}
        if peer:
            ceilings[device] = ceilings[device].raised(peer.ceilings())
    for d, c in ceilings.items():
        gemm = (f"{show.significant(rate / 1e9)} GFLOP/s in {precision}" for precision, rate in c.gemm.items())
        print(f"limits measured on {d}: copy {show.significant(c.copy / 1e9)} GB/s (read and written), matrix "
              f"product {', '.join(gemm)}")
    print(f"\n{tables.LEGEND}")
    for case in measured:
        where = f"{case.size[0]}x{case.size[1]} px, batch {case.batch}"
        print(f"\n{tables.product_table(case, ceilings)}")
        if case.ops:
            print(f"\nkernels that move memory, {where}\n{tables.op_table(case, ceilings)}")
        count = counted(sum(len(layer.names) for layer, _ in case.layers), "convolution")
        print(f"\nthe {count} of the net together, {where}\n{tables.totals_table(case, ceilings)}")
    results = kernels.all_results(measured)
    if device == "cuda":
        first = sum(r.first for r in results if (r.side, r.device) == ("minunet", device))
        print(f"\nThe first calls, which compile the kernels, took {first:.1f} s together and count nowhere above.")
    disturbed = sum(r.timing is not None and r.timing.disturbed for r in results)
    if disturbed:
        print(f"\n{counted(disturbed, 'median')} of {len(results)} above are more than twice the shortest time of "
              "their runs: something else ran beside them; measure again when nothing does.")
    if arguments.json:
        options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
                   if name != "run"}
        show.write_json(arguments.json, {"command": "minunet bench kernels", "options": options, "machine": machine,
                                         **kernels.figures(measured, ceilings)})
    if arguments.plot:
        show.plot_roofline(arguments.plot, kernels.points(measured[0]), ceilings,
                           f"Convolutions of a U-Net, {measured[0].size[0]}x{measured[0].size[1]} px, batch "
                           f"{measured[0].batch}: each number is the table's")
    _refuse(sum(not r.correct for r in results))


def _refuse(wrong: int) -> None:
    if wrong:
        raise UserError(f"{counted(wrong, 'result')} marked WRONG above: too far from float64, and not timed")
