"""What a model is made of, layer by layer, and what training it will take, from shapes alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from minunet import memory, parallel
from minunet.convolution import ConvMatrix
from minunet.convolution.work_space import WorkSpace, work_space
from minunet.nn import BatchNorm2d, Conv2d, ConvTranspose2d, Kept, LayerCall, Module, Placeholder, record_layers

BYTES = 4           # float32
MIB = 1 << 20
LOSS = 11           # arrays as large as the logits within ce+dice and bce+dice, measured; of ce and bce alone 8
PROCESS = 6 * MIB   # interpreter, allocator, threads' stacks, small arrays; measured: 3 to 10


@dataclass(frozen=True)
class Row:
    """One layer: its dotted name, kind, output shape, and what it has, costs and makes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The table of a model's layers for one input shape. `str()` prints it.

    activation_bytes is the size of each layer's output in float32, also where it is the input itself (no padding, no
    dropout). training_bytes forecasts by how much a process grows at most in training steps with Adam, on the CPU.
    """

    rows: tuple[Row, ...]
    parameters: int
    training_bytes: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """All outputs together, in float32."""
        return sum(row.activation_bytes for row in self.rows)

    def totals(self) -> str:
        """One line of sums."""
        return (f"{len(self.rows)} layers, {self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds, "
                f"{self.activation_bytes / MIB:.2f} MiB of activations")

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'layer':<{width}}  {'kind':<15} {'output (N, H, W, C)':<22} {'parameters':>12} "
                 f"{'multiply-adds':>16} {'activation MiB':>15}"]
        lines += [f"{row.name:<{width}}  {row.kind:<15} {str(row.shape):<22} {row.parameters:>12,} "
                  f"{row.multiply_adds:>16,} {row.activation_bytes / MIB:>15.2f}" for row in self.rows]
        lines += [self.totals(), f"forecast for training with Adam: {self.training_bytes / MIB:,.0f} MiB "
                                 "(parameters, gradients, Adam's two moments, what the backward needs, work space)"]
        return "\n".join(lines)


def summarize(model: Module, input_shape: tuple[int, ...]) -> Summary:
    """Walk the model with the input's shape (N, H, W, C)."""
    names = {id(module): name for name, module in model.named_modules()}
    with record_layers() as calls:
        model(Placeholder(input_shape))
    rows = [Row(names[id(call.layer)], type(call.layer).__name__, call.output.shape, _parameters(call.layer),
                call.layer.multiply_adds(call.output.shape), _bytes(call.output)) for call in calls]
    parameters = sum(p.data.size for p in model.parameters())
    # what backward computes again is gone until then
    blocks = {id(layer): name for name, block in model.named_modules() if name and getattr(block, "recompute", False)
              for _, layer in block.named_modules()}
    steps = _steps(calls, blocks)
    scratch = [max(sizes) for sizes in zip(*(step.work.scratch for step in steps))]
    arena = _most(steps) + parallel.threads() * sum(scratch)
    # weights and Adam's two moments; the loss; the rest in the arena, with the free memory that it holds
    training = (3 * BYTES * parameters + LOSS * _bytes(calls[-1].output) + arena + arena // memory.SLACK
                + memory.CHUNK + PROCESS)
    return Summary(tuple(rows), parameters, training)


class _Step(NamedTuple):
    """One op of the graph."""

    inputs: tuple[Placeholder, ...]
    output: Placeholder
    kept: dict[int, int]        # bytes of the arrays that its cache refers to, by identity
    parameters: int             # bytes
    inner: int                  # bytes of a gradient within the op, as that behind a ReLU
    work: WorkSpace
    block: str | None           # of what is computed again together, which


def _steps(calls: list[LayerCall], blocks: dict[int, str]) -> list[_Step]:
    """The ops that layers become: a convolution and the batch norm with ReLU behind it are one."""
    steps: list[_Step] = []
    same: dict[int, Placeholder] = {}           # what a layer hands on as it is, without padding or dropout to do
    for layer, given, output in calls:
        inputs = tuple(same.get(id(x), x) for x in given if isinstance(x, Placeholder))
        if layer.kept == Kept() and output.shape == inputs[0].shape:
            same[id(output)] = inputs[0]
            continue
        held = (inputs if layer.kept.inputs else ()) + ((output,) if layer.kept.output else ())
        kept = {id(array): _bytes(array) for array in held}
        if layer.kept.extra:
            kept[id(layer)] = int(layer.kept.extra * _bytes(output))
        step = _Step(inputs, output, kept, BYTES * _parameters(layer),
                     _bytes(output) if getattr(layer, "relu", False) else 0, _work(layer, inputs, output),
                     blocks.get(id(layer)))
        if isinstance(layer, BatchNorm2d) and layer.relu and inputs[0] is steps[-1].output:
            conv = steps.pop()
            step = conv._replace(output=output, kept=conv.kept | kept, inner=step.inner,
                                 parameters=conv.parameters + step.parameters)
        steps.append(step)
    return steps


def _most(steps: list[_Step]) -> int:
    """The most that is alive at one time in a backward: what ops keep, gradients on their way, work space."""
    images = set(map(id, steps[0].inputs))
    made: dict[int, str | None] = dict.fromkeys(images)         # the block in which each array is
    users: dict[int, list[tuple[int, str | None]]] = {}         # of kept arrays: step, and block in which it is kept
    sizes: dict[int, int] = {}
    results = {step.block: step.output for step in steps}       # of each block
    for number, step in enumerate(steps):
        made[id(step.output)] = step.block
        for array, size in step.kept.items():
            # what comes into a block is kept, what is made in it only while it is computed again
            inside = made.get(array, step.block) == step.block
            users.setdefault(array, []).append((number, step.block if inside else None))
            sizes[array] = size
    most, gradients, passed = 0, 0, {id(steps[-1].output): _bytes(steps[-1].output)}
    for number, step in reversed(list(enumerate(steps))):
        kept = sum(size for array, size in sizes.items()
                   if any(user <= number and block in (None, step.block) for user, block in users[array]))
        if step.block and step.output is not results[step.block]:
            kept += 2 * _bytes(results[step.block])             # and its gradient, until all of the block is passed
        dxs = {id(x): _bytes(x) for x in step.inputs if id(x) not in images}
        gradients += step.parameters
        # the weights' gradient may be made by other threads meanwhile
        together = sum if parallel.threads() > 1 else max
        work = together((step.work.weight_grad, sum(dxs.values()) + step.work.transposed))
        most = max(most, kept + gradients + sum(passed.values()) + step.inner + work)
        passed.pop(id(step.output), None)
        passed |= dxs
    return most


def _work(layer: Module, inputs: tuple[Placeholder, ...], output: Placeholder) -> WorkSpace:
    """A convolution's; that of a transposed one has the matrix's products exchanged."""
    if isinstance(layer, Conv2d):
        return work_space(ConvMatrix(layer.weight.data, layer.geometry, inputs[0].shape[1:3]), output.shape[0])
    if isinstance(layer, ConvTranspose2d):
        found = work_space(ConvMatrix(layer.weight.data, layer.geometry, output.shape[1:3]), output.shape[0])
        return found._replace(forward=found.transposed, transposed=found.forward)
    return WorkSpace()


def _parameters(layer: Module) -> int:
    return sum(p.data.size for _, p in layer.named_parameters())


def _bytes(array: Placeholder) -> int:
    return BYTES * math.prod(array.shape)
