"""What the threads of a kernel touch in memory: a small example of every kernel, traced on the simulated GPU.

The 32 threads of a warp execute an instruction together. What they touch in global memory is fetched in sectors of 32
bytes: the fewer sectors for the same bytes, the better ("coalesced"). Shared memory has 32 banks of 4 bytes, each of
which answers with one word at a time: if the threads want n different words of one bank, the access takes n turns.
Accesses of 8 bytes are served by half a warp at a time, those of 16 by a quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minunet import cuda
from minunet import functional as F
from minunet import nn, optim, simulator
from minunet.autograd import Tensor
from minunet.backend import array_module, to_device
from minunet.convolution import ConvMatrix
from minunet.errors import UserError
from minunet.geometry import Geometry
from minunet.inference import class_ids
from minunet.ops.block import fold
from minunet.study.cases import CASES, IMAGE, Case
from minunet.training.metrics import Confusion

SECTOR, BANKS, WORD, WARP = 32, 32, 4, 32       # bytes, banks of shared memory, bytes, threads
# of Okabe and Ito's palette
COLOURS = {"read": "#0072b2", "write": "#d55e00", "atomic": "#cc79a7", "shared": "#009e73"}
PANELS, OWNERS, ROWS = 12, 3, 64                # places, written arrays, and rows of each, that a picture shows
NUMBERED = 320                                  # elements of an array whose threads are written out
CHANNELS = 16                                   # of the examples' images: wide enough for 16-byte loads
LADDER = {"conv_direct": "direct", "im2col": "im2col", "conv_implicit": "implicit", "conv_slices": "implicit",
          "conv_tensorcore": "tensorcore", "bf16": "tensorcore"}
ROUNDED = {"conv_tensorcore": ("tf32", "bf16"), "bf16": ("bf16",)}      # precisions; of the other rungs float32


@dataclass(frozen=True)
class Group:
    """All steps of one warp at one place of the source that touched one array in one way."""

    place: str              # file:line, and behind it that of the helper which it calls, if it does
    source: str             # the text of the innermost of the two lines
    array: str
    kind: str               # "read", "write" or "atomic"
    shared: bool
    steps: list[simulator.Step]

    @property
    def first(self) -> simulator.Step:
        """The first step in which the most lanes took part."""
        return max(self.steps, key=lambda step: len(step.accesses))

    def cost(self, step: simulator.Step) -> tuple[int, int]:
        """Sectors of global memory, or turns of shared memory, that a step takes, and the fewest it could."""
        if self.shared:
            turns = least = 0
            for first in range(0, WARP, at_once := WARP * WORD // max(WORD, step.accesses[0].size)):
                words = {byte // WORD for a in step.accesses if first <= a.lane < first + at_once
                         for byte in range(a.offset, a.offset + a.size)}
                if words:
                    turns += int(np.bincount([word % BANKS for word in words]).max())
                    least += -(-len(words) // BANKS)
            return turns, least
        touched = {byte for a in step.accesses for byte in range(a.offset, a.offset + a.size)}
        return len({byte // SECTOR for byte in touched}), -(-len(touched) // SECTOR)

    @property
    def costs(self) -> tuple[float, float]:
        """The means of `cost` over all steps."""
        both = np.mean([self.cost(step) for step in self.steps], axis=0)
        return float(both[0]), float(both[1])


@dataclass(frozen=True)
class Study:
    """One launch of a kernel in its example: how it was cut, and what one warp and one block did."""

    example: str
    launch: cuda.Launch
    block: int
    warp: int
    groups: list[Group]
    writes: dict[str, np.ndarray]       # for each array that the block wrote, in its shape: the thread, −1 for none


def study(kernel: str, block: int = 0, warp: int = 0) -> Study:
    """Run the example of a kernel, "file.name", checked, and look at one of its launches.

    Raises UserError for a block or warp that the launch does not have, KernelError for a fault of the kernel.
    """
    title, run = _example(kernel)
    with cuda.record_launches() as launches, simulator.trace(block=block, kernel=kernel) as trace:
        run()
    launch = next(launch for launch in launches if launch.kernel == kernel)
    blocks, warps = int(np.prod(launch.grid)), -(-launch.threads // WARP)
    for name, value, count in (("block", block, blocks), ("warp", warp, warps)):
        if not 0 <= value < count:
            raise UserError(f"--{name}: must be below {count}, as many as the launch of {kernel} in this example has; "
                            f"got {value}")
    if trace.truncated:
        raise UserError(f"the example of {kernel} makes more than {trace.limit:,} accesses in a block")
    groups: dict[tuple[str, str, str], Group] = {}
    for step in trace.steps(warp):
        access = step.accesses[0]
        place = step.place if access.inner == step.place else f"{step.place} ({access.inner})"
        key = place, step.array, access.kind
        if key not in groups:
            groups[key] = Group(place, _line(access.inner), step.array, access.kind, access.shared, [])
        groups[key].steps.append(step)
    writes: dict[str, np.ndarray] = {}
    for access in trace.records:
        if access.launch == 0 and access.write and access.array in launch.arrays:
            shape, dtype = launch.arrays[access.array]
            owner = writes.setdefault(access.array, np.full(shape, -1))
            first = access.offset // dtype.itemsize
            owner.reshape(-1)[first:first + access.size // dtype.itemsize] = access.thread
    return Study(title, launch, block, warp, list(groups.values()), writes)


def _line(place: str) -> str:
    """The text of file:line."""
    file, _, number = place.rpartition(":")
    path = cuda.folder() / file
    text = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return text[int(number) - 1].strip() if 0 < int(number) <= len(text) else ""


def _example(kernel: str) -> tuple[str, Callable[[], Any]]:
    """The first example of the kernel's file that launches it."""
    file = kernel.partition(".")[0]
    for title, run in examples(file):
        with cuda.record_launches() as launches:
            run()
        if any(launch.kernel == kernel for launch in launches):
            return title, run
    raise UserError(f"there is no example that launches {kernel}; the tests do")


def examples(file: str, device: str = "sim") -> Iterator[tuple[str, Callable[[], Any]]]:
    """A title and a program for each example that may launch the kernels of a file; together they launch all."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return to_device(rng.standard_normal(shape, dtype=np.float32), device)

    if file in LADDER:
        for side, k, geometry in ((8, 3, Geometry(3, padding=1)), (8, 2, Geometry(2, stride=2)),
                                  (24, 3, Geometry(3, padding=1))):
            for precision in ROUNDED.get(file, ("float32",)):
                yield (f"{k}x{k} convolution, stride {geometry.stride[0]}, 2 images of {side}x{side}x{CHANNELS}, "
                       f"{2 * CHANNELS} filters, {LADDER[file]}, {precision}",
                       partial(_products, array, geometry, side, LADDER[file], precision))
    elif file == "optimizer":
        for rule in (optim.Adam, optim.AdamW, optim.SGD):
            yield f"a step of {rule.__name__}, 700 and 16 parameters", partial(_step, array, rule)
    elif file == "counts":
        yield "counts of 3 classes in 8x8 px", lambda: Confusion(3).add(*(
            to_device(rng.integers(0, 3, (8, 8), dtype=np.uint8), device) for _ in range(2)))
        yield "class ids of 8x8 px, 3 classes", lambda: class_ids(array(8, 8, 3))
        yield "class ids of 8x8 px, 1 class", lambda: class_ids(array(8, 8, 1))
    elif file == "ptx_probe":
        yield "a warp's worth of numbers for each instruction", partial(_probe, array)
    else:
        if file == "pool":
            for what, pool in (("pooled", F.max_pool2d), ("pooled and unpooled", _pool_and_unpool)):
                yield f"windows of 17x17 px, more than a byte counts, {what}", partial(
                    _forward_and_backward, Case(partial(pool, kernel=17), ((1, 17, 17, CHANNELS),)), device)
        if file == "norm":
            yield f"running statistics, {CHANNELS} channels", partial(_update_running, array, device)
            yield f"batch norm folded into 3x3 weights, {CHANNELS} filters", partial(_fold, array)
        for name, case in CASES.items():
            if case.shapes[0] == IMAGE and not case.constants and all(shape[-1] in (2, 3) for shape in case.shapes):
                case = case._replace(shapes=tuple((*shape[:-1], CHANNELS) for shape in case.shapes))
            yield name, partial(_forward_and_backward, case, device)


def _products(array: Callable[..., Any], geometry: Geometry, side: int, algorithm: str, precision: str) -> None:
    size, c, f = (side, side), CHANNELS, 2 * CHANNELS
    A = ConvMatrix(array(*geometry.kernel, c, f), geometry, size, algorithm=algorithm, precision=precision)
    x, y = array(2, *size, c), array(2, *geometry.output_size(size), f)
    A.affine(x, array(f))
    A.T.affine(y, array(c))
    A.weight_grad(x, y)


def _pool_and_unpool(x: Tensor, kernel: int) -> Tensor:
    y, winners = F.max_pool2d(x, kernel, return_winners=True)
    return F.max_unpool2d(y, winners, kernel)


def _fold(array: Callable[..., Any]) -> None:
    gamma, beta, mean, var = (abs(array(CHANNELS)) for _ in range(4))
    fold(array(3, 3, CHANNELS, CHANNELS), gamma, beta, mean, var, 1e-5)


def _update_running(array: Callable[..., Any], device: str) -> None:
    layer = nn.BatchNorm2d(CHANNELS)
    layer.to(device)
    layer.update(array(CHANNELS), array(CHANNELS), 8)


def _step(array: Callable[..., Any], rule: type[optim.Optimizer]) -> None:
    parameters = [Tensor(array(700), requires_grad=True), Tensor(array(16), requires_grad=True)]
    for p in parameters:
        p.grad = array(*p.shape)
    rule(parameters, lr=0.1).step()


def _probe(array: Callable[..., Any]) -> None:
    x, y = array(256), array(256)
    bits = array_module(x).empty(256, np.uint32)
    cuda.launch("ptx_probe.probe_tf32", x, bits, 256, blocks=(1,))
    cuda.launch("ptx_probe.probe_bf16", x, y, bits, 256, blocks=(1,))
    for kernel, depth in (("probe_mma_tf32", 8), ("probe_mma_bf16", 16)):
        cuda.launch(f"ptx_probe.{kernel}", array(16, depth), array(depth, 8), array(16, 8), blocks=(1,))
    words = array_module(x).empty((4, 32), np.uint32)
    for kernel in ("probe_ldmatrix", "probe_ldmatrix_transposed"):
        cuda.launch(f"ptx_probe.{kernel}", bits[:128].reshape(4, 32), words, blocks=(1,))
    cuda.launch("ptx_probe.probe_copy", x, array(2, 128), 252, blocks=(1,))


def _forward_and_backward(case: Case, device: str) -> None:
    y = case.on(device, np.float32)(*(Tensor(x, requires_grad=True) for x in case.inputs(device, np.float32)))
    y.backward(array_module(y.data).ones_like(y.data))


def draw(found: Study, path: Any) -> None:
    """A picture (PNG): what the warp touched at each place of the source, lane by lane, and what the block wrote.

    Each mark is what one lane touched in the first step at that place with the most lanes.
    """
    # those that move the most, in the order of the source
    size = {id(g): sum(a.size for step in g.steps for a in step.accesses) for g in found.groups}
    largest = sorted(found.groups, key=lambda g: -size[id(g)])[:PANELS]
    groups, writes = [g for g in found.groups if g in largest], list(found.writes.items())[:OWNERS]
    rows = -(-(len(groups) + len(writes)) // 2)
    figure = Figure(figsize=(13, 1.0 + 3.3 * rows), layout="constrained")
    grid, threads = "x".join(map(str, found.launch.grid)), found.launch.threads
    figure.suptitle(f"{found.launch.kernel}, block {found.block} of {grid}, warp {found.warp} of "
                    f"{-(-threads // WARP)}\n{found.example}"
                    + (f"; the {PANELS} of {len(found.groups)} places that move the most" if len(found.groups) > PANELS
                       else ""), fontsize=12)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis, group in zip(axes, groups):
        _draw_group(axis, group)
    for axis, (name, owner) in zip(axes[len(groups):], writes):
        _draw_owner(axis, name, owner)
    for axis in axes[len(groups) + len(writes):]:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def _draw_group(axis: Any, group: Group) -> None:
    """Lanes from top to bottom, and what each touched: banks of shared memory, or sectors of global memory."""
    step = group.first
    unit, colour = (WORD, COLOURS["shared"]) if group.shared else (SECTOR, COLOURS[group.kind])
    units = sorted({byte // unit for a in step.accesses for byte in range(a.offset, a.offset + a.size)})
    # sectors that lie apart are drawn side by side, with a line between them
    column = {u: u % BANKS if group.shared else i for i, u in enumerate(units)}
    for access in step.accesses:
        for u in range(access.offset // unit, (access.offset + access.size - 1) // unit + 1):
            begin, end = max(access.offset, u * unit), min(access.offset + access.size, (u + 1) * unit)
            axis.barh(access.lane, (end - begin) / unit, left=column[u] + (begin - u * unit) / unit, height=0.8,
                      color=colour, edgecolor="white", linewidth=0.3)
    width = BANKS if group.shared else len(units)
    for i in range(width + 1):
        apart = not group.shared and 0 < i < width and units[i] != units[i - 1] + 1
        axis.axvline(i, color="black" if apart else "0.8", linewidth=1.2 if apart else 0.5, zorder=0)
    every = max(1, width // 8)
    ticks = range(0, width, every)
    axis.set_xticks([t + 0.5 for t in ticks] if group.shared else list(ticks),
                    [str(t) if group.shared else f"{units[t] * SECTOR}" for t in ticks], fontsize=8)
    axis.set_xlim(0, width)
    axis.set_ylim(WARP - 0.5, -0.5)
    axis.set_yticks([0, 8, 16, 24, 31])
    axis.set_ylabel("lane")
    axis.set_xlabel("bank of shared memory" if group.shared else "byte of the array, in sectors of 32")
    cost, least = group.cost(step)
    what, lanes = "turn" if group.shared else "sector", len(step.accesses)
    times = f" ({len(group.steps)} times)" if len(group.steps) > 1 else ""
    source = group.source if len(group.source) <= 72 else group.source[:69] + "..."
    title = (f"{group.kind} {group.array} at {group.place}{times}: {lanes} lane{'s' * (lanes > 1)}, {cost} {what}"
             f"{'s' * (cost > 1)}, {least} at least")
    axis.set_title(f"{fill(title, 80)}\n{source}", fontsize=9, loc="left", parse_math=False)


def _draw_owner(axis: Any, name: str, owner: np.ndarray) -> None:
    """Which thread wrote each element of an array: its last axis from left to right, all others from top to bottom."""
    flat = owner.reshape(-1, owner.shape[-1]) if owner.ndim > 1 else owner.reshape(1, -1)
    touched = np.flatnonzero((flat >= 0).any(1))
    part = flat[touched[0]:touched[-1] + 1][:ROWS]
    for ruler in (axis.xaxis, axis.yaxis):
        ruler.set_major_locator(MaxNLocator(integer=True))
    picture = axis.imshow(np.ma.masked_less(part, 0), aspect="auto", interpolation="nearest", cmap="viridis",
                          extent=(-0.5, part.shape[1] - 0.5, touched[0] + len(part) - 0.5, touched[0] - 0.5))
    axis.set_facecolor("0.9")
    if len(part) == 1:
        axis.set_yticks([touched[0]])
    axis.figure.colorbar(picture, ax=axis, label="thread", ticks=MaxNLocator(integer=True))
    if part.size <= NUMBERED:
        for (row, column), thread in np.ndenumerate(part):
            if thread >= 0:
                axis.text(column, touched[0] + row, thread, ha="center", va="center", fontsize=6,
                          color="white" if thread < part.max() / 2 else "black")
    axis.set_xlabel("index in the last axis")
    axis.set_ylabel("all other axes, as one")
    axis.set_title(f"{name} {owner.shape}: which thread of the block wrote what\n", fontsize=9, loc="left")
