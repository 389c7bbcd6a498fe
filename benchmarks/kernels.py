"""Every kernel of a U-Net by itself: all measurements at one size of image, as data and as points in the roofline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from minunet.geometry import Pair

from .harness import Ceilings, Timer
from .layers import Layer
from .memory import RULES, bench_op, bench_rule, memory_ops
from .peer import Peer
from .products import Budget, OurProducts, Result, bench_layer
from .show import Point


class Case(NamedTuple):
    """All measurements at one size of image and batch."""

    size: Pair
    batch: int
    layers: list[tuple[Layer, list[Result]]]
    ops: list[tuple[str, list[Result]]]


def bench_case(layers: Sequence[Layer], size: Pair, batch: int, timers: Mapping[str, Timer], precisions: Sequence[str],
               budget: Budget, peer: Peer | None, base: int | None, done: Callable[[str], None],
               means: Sequence[float] = ()) -> Case:
    """All layers, and for a base of the net its other kernels too: on each device with its timer, by each side in turn.

    The first device computes in each precision, the others in float32. done is called with the name of what is next.
    With means of x and y, the products' error beside their largest element of magnitudes is asked for there, too.
    """
    case = Case(size, batch, [], [])
    first = next(iter(timers))
    for layer in layers:
        done(f"{layer}")
        sides: list[Any] = [OurProducts(layer, batch, device, precisions if device == first else ("float32",), timer,
                                        budget, means) for device, timer in timers.items()]
        sides += [peer.products(layer, batch, means)] if peer else []
        case.layers.append((layer, bench_layer(sides, budget.turns)))
    if base:
        theirs = peer.ops(size, batch, base) if peer else {}
        for op in memory_ops(size, batch, base):
            done(op.title)
            results = [r for device, timer in timers.items() for r in bench_op(op, device, timer, budget)]
            case.ops.append((op.title, results + theirs.get(op.title, [])))
        for rule in RULES:
            done(rule)
            case.ops.append((rule, [bench_rule(rule, layers, device, timer, budget)
                                    for device, timer in timers.items()]))
    return case


def all_results(cases: Sequence[Case]) -> list[Result]:
    """Of all layers and other kernels."""
    return [r for case in cases for _, results in (*case.layers, *case.ops) for r in results]


def figures(cases: Sequence[Case], ceilings: Mapping[str, Ceilings]) -> dict[str, Any]:
    """All of it for JSON, in FLOP, bytes and seconds."""
    rows = []
    for case in cases:
        common = {"image_size": case.size, "batch": case.batch}
        for layer, results in case.layers:
            about = {"places": layer.names, "channels": layer.channels, "filters": layer.filters, "size": layer.size,
                     "kernel": layer.geometry.kernel, "stride": layer.geometry.stride}
            rows += [{**common, "layer": str(layer), **about, **r.as_dict(ceilings)} for r in results]
        rows += [{**common, "kernel": name, **r.as_dict(ceilings)} for name, results in case.ops for r in results]
    return {"rows": rows}


def points(case: Case) -> list[Point]:
    """All timed products for the roofline; the fastest of each layer bears its number in the table."""
    found = []
    for number, (_, results) in enumerate(case.layers, 1):
        timed = [r for r in results if r.timing]
        best = max(timed, key=lambda r: r.flop / r.seconds, default=None)
        found += [Point(r.flop, r.nbytes, r.seconds, r.name, r.what, str(number) if r is best else "") for r in timed]
    return found
