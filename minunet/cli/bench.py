"""Measuring: `minunet bench kernels`, `conv` and `unet`, verified, beside the machine's limits, the CPU and PyTorch."""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from minunet.backend import DEVICES, cupy
from minunet.cli.measuring import (
    add_common,
    begin,
    between_limits,
    print_limits,
    refuse,
    room,
    say_disturbed,
    write,
)
from minunet.cli.values import PRECISIONS, Commands, counted, positive, size
from minunet.cuda import resolve
from minunet.errors import UserError


def case(text: str) -> tuple[int, int, tuple[int, int]]:
    """BASE:BATCHxHEIGHTxWIDTH: channels of the net's first level, images at a time, their size in px."""
    match = re.fullmatch(r"(\d+):(\d+)x(\d+)x(\d+)", text.lower())
    numbers = [int(n) for n in match.groups()] if match else [0]
    if 0 in numbers:
        raise argparse.ArgumentTypeError(f"must be BASE:BATCHxHEIGHTxWIDTH, such as 64:2x256x256; got {text!r}")
    base, batch, height, width = numbers
    if height % 16 or width % 16:
        raise argparse.ArgumentTypeError(f"height and width must be multiples of 16, because the net halves them 4 "
                                         f"times; got {text!r}")
    return base, batch, (height, width)


QUICK_CASES = ((16, 1, (64, 64)), (4, 2, (32, 32)))


def add_commands(commands: Commands) -> None:
    """bench, with its own commands kernels, conv and unet."""
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
    _add_layers(kernels, "without the other kernels")
    kernels.add_argument("--precision", nargs="+", choices=PRECISIONS, help="of the products (cpu: float32; "
                         "otherwise all that the GPU has)")
    kernels.add_argument("--against", nargs="*", choices=("cpu", "torch"), help="measure these too: minunet on the "
                         "CPU, PyTorch on the same device (cuda: cpu; otherwise none)")
    add_common(kernels, "draw the roofline", "a small net (base 16, 64x64)")

    conv = inner.add_parser(
        "conv", help="the products of each convolution on the CPU, by every algorithm",
        description="Verify and time the forward pass, data gradient and weight gradient of each of a U-Net's "
        "convolutions on the CPU, by every algorithm that takes it, and say which one is taken by itself: the "
        "crossovers, measured.")
    conv.set_defaults(run=_conv)
    _add_cases(conv)
    _add_layers(conv, "")
    conv.add_argument("--against", nargs="*", choices=("torch",), default=[], help="measure PyTorch too, in both "
                      "memory formats")
    add_common(conv, "draw the first case's roofline", "small nets")

    unet = inner.add_parser(
        "unet", help="a training step and a prediction on the CPU or a GPU",
        description="Verify and time a training step and a prediction of a U-Net (batch norm, depth 4, 3 channels in, "
        "1 class, binary cross-entropy, Adam), with the memory that they take; on a GPU as one graph of launches each, "
        "and launch by launch.")
    unet.set_defaults(run=_unet)
    unet.add_argument("--device", choices=("cpu", "cuda", "auto"), default="auto", help="(%(default)s: cuda where "
                      "there is a GPU, else cpu)")
    _add_cases(unet, "; cuda: 64:8x256x256 64:1x256x256 64:8x512x512")
    unet.add_argument("--precision", nargs="+", choices=PRECISIONS, help="of the products (cpu: float32; cuda: all "
                      "that the GPU has)")
    unet.add_argument("--scaling", type=positive, nargs="?", const=16, metavar="BASE", help="instead of the cases, the "
                      "cost of a net of this base (16) against pixels, 64x64 to 1024x1024, and images, 1 to 16")
    unet.add_argument("--recompute", action="store_true", help="measure UNet(recompute=True) too")
    unet.add_argument("--against", nargs="*", choices=("torch",), default=[], help="measure PyTorch too, in both "
                      "memory formats, of which the faster counts")
    add_common(unet, "draw the times, or with --scaling seconds against megapixels", "small nets and sizes")


def _add_cases(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument("--case", type=case, nargs="+", metavar="BASE:BATCHxHEIGHTxWIDTH", help="channels of the net's "
                        f"first level and its images, px (64:2x256x256 16:8x128x128 16:2x256x256{more})")


def _add_layers(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--layers", nargs="+", metavar="NAME", help="of the net's convolutions these alone"
                        f"{', ' * bool(words)}{words}: first.conv2, 'up.*', ...")


def _kernels(arguments: argparse.Namespace) -> None:
    device = resolve(arguments.device)
    precisions = _precisions(arguments.precision, device)
    against = ["cpu"] * (device == "cuda") if arguments.against is None else arguments.against
    begin(arguments, device, against)
    base = arguments.base or (16 if arguments.quick else 64)
    cases = [(_chosen(room("layers").unet_layers(image, base), arguments.layers), image, batch)
             for image in arguments.size or [(64, 64) if arguments.quick else (256, 256)]
             for batch in arguments.batch or [1]]
    others = None if arguments.layers else base         # of the net whose other kernels are wanted too
    if device == "sim":
        _describe(cases, precisions, others)
    else:
        _measure(arguments, "kernels", device, precisions, against, cases, others)


def _conv(arguments: argparse.Namespace) -> None:
    begin(arguments, "cpu", arguments.against)
    layers, unet = room("layers"), room("unet")
    cases = [(_chosen(layers.unet_layers(image, base, unet.DEPTH, unet.CLASSES), arguments.layers), image, batch)
             for base, batch, image in _cases(arguments, "cpu")]
    _measure(arguments, "conv", "cpu", PRECISIONS[:1], arguments.against, cases, None, room("products").MEANS)


def _cases(arguments: argparse.Namespace, device: str) -> list[tuple[int, int, tuple[int, int]]]:
    return list(dict.fromkeys(arguments.case or (QUICK_CASES if arguments.quick else room("unet").CASES[device])))


def _precisions(wanted: Sequence[str] | None, device: str) -> list[str]:
    if wanted is None:
        few = device == "cpu" or device == "cuda" and int(cupy().cuda.Device().compute_capability) < 80
        return list(PRECISIONS[:1] if few else PRECISIONS)
    if device == "cpu" and set(wanted) != {"float32"}:
        raise UserError("--precision tf32 and bf16 are for the tensor cores of a GPU, and this computes on cpu; leave "
                        "them out, or choose --device cuda or sim")
    return list(dict.fromkeys(wanted))


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
    refuse(wrong)


def _measure(arguments: argparse.Namespace, command: str, device: str, precisions: Sequence[str],
             against: Sequence[str], cases: Sequence[Any], base: int | None, means: Sequence[float] = ()) -> None:
    harness, kernels, processes, show, tables = map(room, ("harness", "kernels", "processes", "show", "tables"))
    seconds = 0.15 if command == "conv" else 0.3        # of more nets and in more ways, so for each in less time
    budget = room("products").Budget(*((0.02, 3, 4, 1) if arguments.quick else (seconds,)))
    timers = {d: harness.timer_for(d) for d in dict.fromkeys([device, *(["cpu"] if "cpu" in against else [])])}
    peer_of = room("peer").Peer if "torch" in against else lambda *_: nullcontext()
    with peer_of(device, precisions, budget, arguments.quick) as peer:
        load = processes.Load([peer.pid] if peer else [])

        def bench(done: Callable[[str], None]) -> list[Any]:
            return [kernels.bench_case(layers, image, batch, timers, precisions, budget, peer, base, done, means)
                    for layers, image, batch in cases]
        machine, ceilings, measured = between_limits(arguments, device, precisions, against, timers, "kernel", bench)
        others = load.others()
        if peer:
            ceilings[device] = ceilings[device].raised(peer.ceilings())
    print_limits(ceilings, others)
    print(f"\n{tables.LEGEND}{tables.WORST * bool(means)}")
    for case in measured:
        where = f"{case.size[0]}x{case.size[1]} px, batch {case.batch}"
        print(f"\n{tables.product_table(case, ceilings)}")
        if case.ops:
            print(f"\nkernels that move memory, {where}\n{tables.op_table(case, ceilings)}")
        if command == "conv":
            print(f"\nwhat is taken by itself, {where}\n{tables.versus_table(case)}")
        count = counted(sum(len(layer.names) for layer, _ in case.layers), "convolution")
        print(f"\nthe {count} of the net together, {where}\n{tables.totals_table(case, ceilings)}")
    results = kernels.all_results(measured)
    if device == "cuda":
        first = sum(r.first for r in results if (r.side, r.device) == ("minunet", device))
        print(f"\nThe first calls, which compile the kernels, took {first:.1f} s together and count nowhere above.")
    say_disturbed([r.timing for r in results])
    if arguments.plot:
        show.plot_roofline(arguments.plot, kernels.points(measured[0]), ceilings,
                           f"Convolutions of a U-Net, {measured[0].size[0]}x{measured[0].size[1]} px, batch "
                           f"{measured[0].batch}: each number is the table's")
    write(arguments, command, {"machine": machine, "others": others, **show.limits(ceilings),
                               **kernels.figures(measured, ceilings)})
    refuse(sum(not r.correct for r in results))


def _unet(arguments: argparse.Namespace) -> None:
    device = resolve(arguments.device)
    precisions = _precisions(arguments.precision, device)
    begin(arguments, device, arguments.against)
    harness, products, report, show, unet, sides_of = map(
        room, ("harness", "products", "unet_report", "show", "unet", "unet_sides"))
    against = bool(arguments.against)
    sides, scaling = sides_of.contestants(device, against, arguments.recompute), arguments.scaling is not None
    if scaling and arguments.case:
        raise UserError("--scaling has cases of its own; leave out --case")
    if scaling:
        sizes, batches, at = ((32, 64), (1, 2), 32) if arguments.quick else unet.SCALING
        found = unet.scaling_cases(arguments.scaling, sizes, batches, at)
        sides = [side for side in sides if side.name != unet.CONTIGUOUS]
        budget = products.Budget(1.0, 2, turns=1)
    else:
        found, budget = _cases(arguments, device), products.Budget(3.0, 6, turns=3)
    cases = [sides_of.Case(*case, device, precision) for case in found for precision in precisions]
    budget = products.Budget(0.02, 2, turns=2) if arguments.quick else budget
    left_out: list[str] = []

    def bench(done: Callable[[str], None]) -> tuple[Any, list[Any]]:
        done("gradients in float64")
        check = unet.verify_gradients(device, against)
        if not check.correct:
            raise UserError(f"minunet's gradients in float64 are {check.error:.0e} away from those by "
                            f"{check.reference}, more than {unet.GRADIENTS:.0e}: they are wrong, and nothing was timed")
        found: list[Any] = []
        for case in cases:
            why = unet.lacking(case, len(sides))
            left_out.extend([why] if why else [])
            found += [] if why else unet.bench_case(case, sides, budget, not scaling, done)
        return check, found

    machine, ceilings, (check, rows) = between_limits(arguments, device, precisions, arguments.against,
                                                      {device: harness.timer_for(device)}, "work", bench)
    gemm = ceilings[device].gemm
    print_limits(ceilings)
    print(f"verified: the gradients in float64, by the algorithms that float32 takes, equal those by {check.reference} "
          f"to {check.error:.0e}")
    for sentence in left_out:
        print(sentence)
    print(f"\n{report.LEGEND}")
    if scaling:
        print(f"\n{report.scaling_table(rows)}\n\n{report.growth_words(rows)}")
    else:
        print(report.case_table(rows, gemm))
    say_disturbed([row.timing for row in rows])
    if arguments.plot and rows:
        plot = report.plot_scaling if scaling else report.plot_cases
        plot(arguments.plot, rows, f"U-Net on {machine['gpu']}" if device == "cuda" else
             f"U-Net on {machine['threads']} threads of {machine['processor']}")
    write(arguments, "unet", {"machine": machine, **show.limits(ceilings), "left_out": left_out,
                              "gradients": check._asdict(), "rows": [row.as_dict(gemm) for row in rows]})
    refuse(sum(not row.correct for row in rows))
