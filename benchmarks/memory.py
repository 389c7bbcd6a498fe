"""The kernels between the convolutions: they compute little, so what they move through memory is their limit.

What must be moved is stated for each: "2 x, y" reads x twice and writes y. The ops are verified at a small size, every
number of them, against float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minunet import optim
from minunet.autograd import Tensor
from minunet.backend import to_device
from minunet.geometry import Pair
from minunet.ops import activation, dropout, loss, norm, pool, resample
from minunet.ops import shape as joining

from .harness import Timer, first_call
from .layers import Layer
from .products import TOLERANCE, Budget, Result, to_host


class Op(NamedTuple):
    """A pair of minunet.ops. moves and moves_backward: how often each array must pass through memory, "2 x, y"."""

    name: str
    inputs: tuple[Any, ...]         # shapes of float32 arrays, or arrays
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Any, ...]]
    moves: str
    moves_backward: str = ""        # without it the backward is not timed: it is one product


def memory_ops(size: Pair, batch: int, base: int) -> list[Op]:
    """What stands between the convolutions of the net's first level, and its losses."""
    (h, w), rng = size, np.random.default_rng(1)
    full, half = (batch, h, w, base), (batch, h // 2, w // 2, base)
    mask = rng.integers(0, 2, (batch, h, w, 1), np.uint8)
    ids = rng.integers(0, 8, (batch, h, w), np.uint8)

    def of(loss_function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda logits, target: loss_function(logits, target=target)

    return [
        Op("ReLU", (full,), activation.relu, activation.relu_backward, "x, y", "dy, y, dx"),
        # the mean and the variance need all of x before the first number of y; dx needs the sums over dy and x first
        Op("batch norm", (full, (base,), (base,)), norm.batch_norm, norm.batch_norm_backward, "2 x, y",
           "2 dy, 2 x, dx"),
        Op("max pool 2x2", (full,), partial(pool.max_pool2d, kernel=2), pool.max_pool2d_backward, "x, y, winners",
           "dy, winners, dx"),
        Op("average pool 2x2", (full,), partial(pool.avg_pool2d, kernel=2), pool.avg_pool2d_backward, "x, y", "dy, dx"),
        Op("concat", (full, full), joining.concat, joining.concat_backward, "x, y", "dy, dx"),
        Op("bilinear, twice the size", (half,), partial(resample.resample, factor=2, method="bilinear"),
           resample.resample_backward, "x, y", "dy, dx"),
        # the mask is a function of a key and the element's index
        Op("dropout", (full,), partial(dropout.dropout, p=0.5, key=1), dropout.dropout_backward, "x, y", "dy, dx"),
        Op("binary cross-entropy", ((batch, h, w, 1), mask), of(loss.bce_with_logits), loss.loss_backward,
           "x, target, dx"),
        Op("Dice", ((batch, h, w, 1), mask), of(loss.dice), loss.loss_backward, "2 x, 2 target, dx"),
        Op("cross-entropy, 8 classes", ((batch, h, w, 8), ids), of(loss.cross_entropy), loss.loss_backward,
           "x, target, dx"),
    ]


def moved(moves: str, nbytes: Mapping[str, int]) -> int:
    """Bytes of "2 x, y" with these sizes of x and y."""
    terms = [term.split() for term in moves.split(", ")]
    return sum(int(count[0] if count else 1) * nbytes[name] for *count, name in terms)


SMALL = (16, 24), 2, 4              # size, batch and base at which the ops are verified, every number of them


def bench_op(op: Op, small: Op, device: str, timer: Timer, budget: Budget) -> Iterator[Result]:
    """Forward and backward; verified in full at the small size, against the CPU's op in float64."""
    errors, host = op_errors(small, device), draw(op)
    started = [runs_of(op, host, device) for _ in range(budget.sets_of(sum(array.nbytes for array in host), timer))]
    for what, moves in (("forward", op.moves), ("backward", op.moves_backward)):
        if moves:
            runs = [pair[what] for pair, _ in started]
            _, first = first_call(runs[0], timer)
            result = Result(what, "minunet", device, moves, "float32", 0, moved(moves, started[0][1]), errors[what],
                            TOLERANCE["float32"], first)
            yield replace(result, timing=budget.time(runs, timer)) if result.correct else result


def op_errors(op: Op, device: str) -> dict[str, float]:
    """Of the float32 forward and backward on a device, against float64 on the CPU."""
    exact, ours = runs_of(op, draw(op, np.float64), "cpu")[0], runs_of(op, draw(op), device)[0]
    return {what: difference(ours[what](), exact[what]()) for what in ours}


def draw(op: Op, dtype: Any = np.float32) -> list[np.ndarray]:
    """The inputs, on the CPU."""
    rng = np.random.default_rng(2)
    return [given if isinstance(given, np.ndarray) else rng.standard_normal(given, np.float32).astype(dtype)
            for given in op.inputs]


def runs_of(op: Op, host: Sequence[np.ndarray], device: str
            ) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """The two runs on copies of these arrays, and the bytes of all that they read and write."""
    arrays = [to_device(array.copy(), device) for array in host]
    y, cache = op.forward(*arrays)
    dy = to_device(cotangent(y.shape).astype(y.dtype), device) if y.ndim else 1.0          # 1 of a loss
    x = sum(array.nbytes for array in host if array.dtype.kind == "f" and array.ndim > 1)
    target = sum(array.nbytes for array in host if array.dtype.kind == "u")
    return ({"forward": lambda: op.forward(*arrays)[0], "backward": lambda: op.backward(dy, cache)},
            {"x": x, "dx": x, "target": target, "y": y.nbytes, "dy": y.nbytes, "winners": y.size})


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """The dy of an output of this shape."""
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def difference(ours: Any, exact: Any) -> float:
    """‖ours − exact‖ / ‖exact‖ of an array, or of all arrays of a tuple together."""
    pairs = [(to_host(a), np.asarray(b)) for a, b in zip(listed(ours), listed(exact), strict=True)]
    size = sum(float((b**2).sum()) for _, b in pairs) ** 0.5
    return sum(float(((a - b)**2).sum()) for a, b in pairs) ** 0.5 / max(size, np.finfo(np.float64).tiny)


def listed(value: Any) -> tuple[Any, ...]:
    """A tuple as it is, anything else in a tuple of its own."""
    return value if isinstance(value, tuple) else (value,)


def bench_adam(layers: Sequence[Layer], device: str, timer: Timer, budget: Budget) -> Result:
    """One step for all weights of the net: the parameters and two moments read and written, the gradients read."""
    def optimizer(shapes: Sequence[tuple[int, ...]], dtype: Any, device: str, lr: float) -> optim.Adam:
        rng = np.random.default_rng(4)
        parameters = []
        for shape in shapes:
            theta, gradient = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
            parameters.append(Tensor(to_device(theta, device), requires_grad=True))
            parameters[-1].grad = to_device(gradient, device)
        return optim.Adam(parameters, lr)

    few = [(3, 5), (7,)]
    exact, ours = optimizer(few, np.float64, "cpu", lr=1.0), optimizer(few, np.float32, device, lr=1.0)
    for _ in range(2):
        exact.step()
        ours.step()
    error = difference(*(tuple(p.data for p in o.parameters) for o in (ours, exact)))
    every = [shape for layer in layers for shape in [layer.shapes(1)[0]] * len(layer.names)]
    steps = optimizer(every, np.float32, device, lr=1e-3)
    _, first = first_call(steps.step, timer)
    nbytes = 7 * sum(p.data.nbytes for p in steps.parameters)
    result = Result("step", "minunet", device, "4 read, 3 written", "float32", 0, nbytes, error, TOLERANCE["float32"],
                    first)
    return replace(result, timing=budget.time([steps.step], timer)) if result.correct else result
