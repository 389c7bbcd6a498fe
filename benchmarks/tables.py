"""The figures as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .harness import Ceilings
from .kernels import Case, all_results
from .layers import Layer
from .products import MEANS, PRODUCTS, Result
from .show import share_bar, significant, table


def heading(layer: Layer, batch: int, number: int = 0) -> str:
    """A layer with its work in one line."""
    flop, nbytes = layer.flop(batch), layer.nbytes(batch)
    places = "" if len(layer.names) == 1 else f", {len(layer.names)} in the net"
    return (f"{f'[{number}] ' * bool(number)}{layer}, batch {batch} ({layer.names[0]}{places}): "
            f"{significant(flop / 1e9)} GFLOP, {significant(nbytes / 1e6)} MB, {significant(flop / nbytes)} FLOP/byte")


TITLES = ("device", "algorithm", "precision", "ms", "±", "GFLOP/s", "GB/s", "share of the limit", "error", "worst",
          "vs PyTorch", "vs CPU")
LEGEND = """\
A x is the forward pass of a convolution and the input gradient of an up-convolution, Aᵀ y the other way round, dw
the weight gradient. ms: median; ±: half of the runs lie within. share: the least time by the measured limits over
the time, and which limit it is; above 1 an algorithm does with fewer operations. error: ‖result − float64‖ /
‖float64‖. vs: the other's time over this one's; above 1 this one is faster. (auto): what minunet takes by itself."""
WORST = f"""
worst: max |result − float64| / max of the product of |weight|, |x| and |y|, of the elements verified, the worst of
x and y whose means are {', '.join(f'{mean:g}' for mean in MEANS)} standard deviations."""


def product_table(case: Case, ceilings: Mapping[str, Ceilings]) -> str:
    """One table of all layers, each under its heading."""
    lines: list[Sequence[str] | str] = []
    several = _several(case)
    for number, (layer, results) in enumerate(case.layers, 1):
        lines += ["", heading(layer, case.batch, number)]
        for product in PRODUCTS:
            rows = [r for r in results if r.what == product]
            lines += [(product if i == 0 else "", *_cells(r, rows, ceilings, several)) for i, r in enumerate(rows)]
    return table(("product", *TITLES), lines, words=4)


def op_table(case: Case, ceilings: Mapping[str, Ceilings]) -> str:
    """The kernels that move memory; their algorithm is what they move, and precision and FLOP are left out."""
    lines = []
    several, beside = _several(case), len({r.side for r in all_results([case])}) > 1
    for name, results in case.ops:
        for what in dict.fromkeys(r.what for r in results):
            same = [r for r in results if r.what == what]
            for i, r in enumerate(same):
                device, _, _, ms, spread, _, rate, *others = _cells(r, same, ceilings, several)
                first = (name, what, r.algorithm, f"{r.nbytes / 1e6:,.1f}") if i == 0 else ("",) * 4
                lines.append((*first, device, r.side * beside, ms, spread, rate, *others))
                name = ""
    titles = ("kernel", "", "moves", "MB", "device", "by", "ms", "±", *TITLES[6:])
    return table(titles, lines, words=3)


def _several(case: Case) -> bool:
    """Whether there are several devices or precisions, so that a line must name its own."""
    return len({(r.device, r.precision) for r in all_results([case])}) > 1


def _cells(r: Result, rivals: Sequence[Result], ceilings: Mapping[str, Ceilings], several: bool) -> tuple[str, ...]:
    """A line of TITLES; the rivals are the results of the same work."""
    name = r.algorithm if r.side == "minunet" else f"{r.side} ({r.algorithm})"
    others = [o for o in rivals if _way(o)[:2] == _way(r)[:2] and o.precision == r.precision and o != r]
    start = (r.device * several, name + " (auto)" * (r.chosen and bool(others)), r.precision * several)
    error, worst = f"{r.error:.0e}", "" if r.bound_error is None else f"{r.bound_error:.0e}"
    if not r.timing:
        return (*start, "WRONG", "", "", "", "", error, worst, "", "")

    def ratio(found: Sequence[Result]) -> str:
        """To the fastest of them; none to itself."""
        best = min((o for o in found if o.timing and o != r), key=lambda o: o.seconds, default=None)
        return f"{significant(best.seconds / r.seconds)}x" if best else ""

    peer = [o for o in rivals if o.side == "PyTorch" and (o.device, o.precision) == (r.device, r.precision)]
    cpu = [o for o in rivals if o.side == "minunet" and o.device == "cpu"]
    share = ""
    if r.device in ceilings:
        limit = ceilings[r.device].bound(r.flop, r.nbytes, r.precision)
        share = f"{share_bar(r.share(ceilings[r.device]))} of {'GEMM' if limit == 'arithmetic' else 'copy'}"
    return (*start, significant(1e3 * r.seconds), f"{r.timing.spread:.0%}",
            significant(r.flop / r.seconds / 1e9), significant(r.nbytes / r.seconds / 1e9), share, error, worst,
            ratio(peer) if r.side == "minunet" else "", ratio(cpu) if r.device != "cpu" else "")


def versus_table(case: Case) -> str:
    """A line for each layer: what "auto" takes for each product, its time, and PyTorch's faster format's over it."""
    lines = []
    for number, (layer, results) in enumerate(case.layers, 1):
        line = [f"[{number}]", str(layer)]
        for product in PRODUCTS:
            timed = [r for r in results if r.what == product and r.timing]
            chosen = next((r for r in timed if r.chosen), None)
            theirs = min((r.seconds for r in timed if r.side == "PyTorch"), default=None)
            line += ([chosen.algorithm, significant(1e3 * chosen.seconds),
                      f"{significant(theirs / chosen.seconds)}x" if theirs else ""] if chosen else ["WRONG", "", ""])
        lines.append(line)
    titles = [title for product in PRODUCTS for title in (product, "ms", "vs PyTorch")]
    return table(("", "layer", *titles), lines, words=2)


def totals_table(case: Case, ceilings: Mapping[str, Ceilings]) -> str:
    """The ladder: each way of computing summed over all convolutions of the net.

    Where one cannot take a layer (tensor cores on 3 channels), the fastest float32 of the same side and device counts.
    Ways with a wrong result are left out, and "auto" where it is one of the others for every layer.
    """
    ways: dict[tuple[str, str, str, str], None] = {}
    for _, results in case.layers:
        ways.update(dict.fromkeys(way for r in results if r.timing for way in _ways(r)))
    lines: list[tuple[str, ...]] = []
    sums: dict[tuple[str, str, str, str], list[Result]] = {}
    for way in sorted(ways, key=lambda way: way[2] == AUTO):
        picked = [_picked(way, product, results) for _, results in case.layers for product in PRODUCTS]
        if None not in picked and not (way[2] == AUTO and picked in sums.values()):
            sums[way] = [r for r in picked if r is not None]
    counts = [len(layer.names) for layer, _ in case.layers for _ in PRODUCTS]

    def seconds(way: tuple[str, str, str, str], product: str = "") -> float:
        return sum(n * r.seconds for n, r in zip(counts, sums[way]) if product in ("", r.what))

    for way, rows in sums.items():
        side, device, algorithm, precision = way
        total, flop = seconds(way), sum(n * r.flop for n, r in zip(counts, rows))
        share = ""
        if device in ceilings:
            least = sum(n * r.seconds * r.share(ceilings[device]) for n, r in zip(counts, rows))
            share = share_bar(least / total)
        peer = [w for w in sums if w[:2] == ("PyTorch", device) and w[3] == precision]
        cpu = [w for w in sums if w[:2] == ("minunet", "cpu")]
        versus = [f"{significant(min(map(seconds, found)) / total)}x" if found and wanted else ""
                  for found, wanted in ((peer, side == "minunet"), (cpu, device != "cpu"))]
        lines.append((device, algorithm if side == "minunet" else f"{side} ({algorithm})", precision,
                      *(significant(1e3 * seconds(way, product)) for product in (*PRODUCTS, "")),
                      significant(flop / total / 1e9), share, *versus))
    titles = ("device", "algorithm", "precision", *(f"{product} ms" for product in PRODUCTS), "all ms", "GFLOP/s",
              "share of the limit", "vs PyTorch", "vs CPU")
    return table(titles, lines, words=3)


AUTO = "auto"


def _way(r: Result) -> tuple[str, str, str, str]:
    return r.side, r.device, r.algorithm, r.precision


def _ways(r: Result) -> list[tuple[str, str, str, str]]:
    """Its own, and that of "auto" if auto chose it."""
    side, device, _, precision = own = _way(r)
    return [own, (side, device, AUTO, precision)] if r.chosen else [own]


def _picked(way: tuple[str, str, str, str], product: str, results: Sequence[Result]) -> Result | None:
    """A way's result; or the fastest that stands in for it where it has none, unless it was wrong."""
    of_product = [r for r in results if r.what == product]
    own = [r for r in of_product if way in _ways(r)]
    if own:
        return own[0] if own[0].timing else None
    others = [r for r in of_product if _way(r)[:2] == way[:2] and r.precision == "float32" and r.timing]
    return min(others, key=lambda r: r.seconds, default=None)
