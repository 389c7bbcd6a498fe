"""The kernels between the convolutions: they compute little, so what they move through memory is their limit.

What must be moved is stated for each: "2 x, y" reads x twice and writes y. The ops are verified at a small size, every
number of them, against float64 on the CPU. Left out are kernels that move a few numbers a channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minunet import optim
from minunet.autograd import Tensor
from minunet.backend import on_gpu, to_device
from minunet.geometry import Pair, size_text
from minunet.inference import class_ids
from minunet.ops import activation, dropout, loss, norm, pool, resample
from minunet.ops import shape as joining
from minunet.ops.kernels import counts
from minunet.ops.sums import channel_sum
from minunet.replay import Recording
from minunet.training.metrics import Confusion

from .harness import Timer, first_call
from .layers import Layer
from .products import TOLERANCE, Budget, Result, to_host


class Op(NamedTuple):
    """A pair of minunet.ops. moves and moves_backward: how often each array must pass through memory, "2 x, y"."""

    name: str
    inputs: tuple[Any, ...]         # shapes of float32 arrays, or arrays
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., tuple[Any, ...]] | None
    moves: str
    moves_backward: str = ""        # without it the backward is not timed: it is one product, or there is none
    level: int = 0                  # of the net, whose maps it moves

    @property
    def title(self) -> str:
        """Its name, below the first level with the size of its maps."""
        return f"{self.name}, {size_text(self.inputs[0][1:])}" if self.level else self.name


def memory_ops(size: Pair, batch: int, base: int) -> list[Op]:
    """What stands between the net's convolutions, those of the way down and up at each level, and its losses."""
    (h, w), rng = size, np.random.default_rng(1)
    full, half, eight = (batch, h, w, base), (batch, h // 2, w // 2, base), (batch, h, w, 8)
    mask = rng.integers(0, 2, (batch, h, w, 1), np.uint8)
    ids, others = (rng.integers(0, 8, (batch, h, w), np.uint8) for _ in range(2))
    winners = rng.integers(0, 4, half, np.uint8)

    def of(loss_function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda logits, target: loss_function(logits, target=target)

    def unpool(y: Any, winners: Any) -> tuple[Any, Any]:
        return pool.max_unpool2d(y, winners=winners, kernel=2)

    def twice(method: str, shape: tuple[int, ...] = half) -> Op:
        return Op(f"{method}, twice the size", (shape,), partial(resample.resample, factor=2, method=method),
                  resample.resample_backward, "x, y", "dy, dx")

    return [
        *(op for level in range(LEVELS) for op in level_ops(size, batch, base, level)),
        Op("ReLU", (full,), activation.relu, activation.relu_backward, "x, y", "dy, y, dx"),
        Op("leaky ReLU", (full,), activation.leaky_relu, activation.leaky_relu_backward, "x, y", "dy, y, dx"),
        Op("ELU", (full,), activation.elu, activation.elu_backward, "x, y", "dy, y, dx"),
        Op("sigmoid", (full,), activation.sigmoid, activation.sigmoid_backward, "x, y", "dy, y, dx"),
        Op("softmax, 8 classes", (eight,), activation.softmax, activation.softmax_backward, "x, y", "dy, y, dx"),
        Op("sum of a channel", (full,), lambda x: (channel_sum(x), None), None, "x"),
        Op("average pool 2x2", (full,), partial(pool.avg_pool2d, kernel=2), pool.avg_pool2d_backward, "x, y", "dy, dx"),
        Op("max unpool 2x2", (half, winners), unpool, pool.max_unpool2d_backward, "x, winners, y", "dy, winners, dx"),
        *map(twice, resample.METHODS),
        # the mask is a function of a key and the element's index
        Op("dropout", (full, np.array([1], np.uint64)), lambda x, key: dropout.dropout(x, p=0.5, key=key),
           dropout.dropout_backward, "x, y", "dy, dx"),
        Op("binary cross-entropy", ((batch, h, w, 1), mask), of(loss.bce_with_logits), loss.loss_backward,
           "x, target, dx"),
        Op("Dice", ((batch, h, w, 1), mask), of(loss.dice), loss.loss_backward, "2 x, 2 target, dx"),
        Op("cross-entropy, 8 classes", (eight, ids), of(loss.cross_entropy), loss.loss_backward, "x, target, dx"),
        Op("class ids, 8 classes", ((h, w, 8),), lambda answer: (class_ids(answer), None), None, "x, y"),
        Op("confusion, 8 classes", (ids, others), lambda *two: (confusion(*two), None), None, "target"),
    ]


LEVELS = 4                          # whose maps are pooled, and joined on the way up


def level_ops(size: Pair, batch: int, base: int, level: int) -> list[Op]:
    """What the net's way down and up does at a level: 0 has the images' size."""
    full = (batch, max(2, size[0] >> level), max(2, size[1] >> level), base << level)
    channels = full[3:]
    return [
        # the mean and the variance need all of x before the first number of y; dx needs the sums over dy and x first
        Op("batch norm and ReLU", (full, channels, channels), partial(norm.batch_norm, relu=True),
           norm.batch_norm_backward, "2 x, y", "2 dy, 2 x, dx", level),
        Op("max pool 2x2", (full,), partial(pool.max_pool2d, kernel=2), pool.max_pool2d_backward, "x, y, winners",
           "dy, winners, dx", level),
        Op("concat", (full, full), joining.concat, joining.concat_backward, "x, y", "dy, dx", level),
    ]


def confusion(truth: Any, prediction: Any) -> Any:
    """Counts [truth, prediction] of 8 ids, on the device of both."""
    if on_gpu(truth):
        return counts.confusion(truth, prediction, 8)
    found = Confusion(8)
    found.add(truth, prediction)
    return found.counts


def moved(moves: str, nbytes: Mapping[str, int]) -> int:
    """Bytes of "2 x, y" with these sizes of x and y."""
    terms = [term.split() for term in moves.split(", ")]
    return sum(int(count[0] if count else 1) * nbytes[name] for *count, name in terms)


RECORDED = 4                        # sets of inputs on a GPU, at most: its timer empties the cache anyway
SMALL = (16, 24), 2, 4              # size, batch and base at which the ops are verified, every number of them


def bench_op(op: Op, device: str, timer: Timer, budget: Budget) -> Iterator[Result]:
    """Forward and backward; verified in full at the small size, against the CPU's op in float64."""
    errors, firsts = op_errors(op.name, device, timer)
    host = draw(op)
    sets = budget.sets_of(sum(array.nbytes for array in host), timer)
    started = [runs_of(op, host, device) for _ in range(min(sets, RECORDED) if device == "cuda" else sets)]
    for what, moves in (("forward", op.moves), ("backward", op.moves_backward)):
        if moves:
            result = Result(what, "minunet", device, moves, "float32", 0, moved(moves, started[0][1]), errors[what],
                            TOLERANCE["float32"], firsts[what])
            if result.correct:
                runs = [recorded(pair[what], device) for pair, _ in started]
                result = replace(result, timing=budget.time(runs, timer))
            yield result


def recorded(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    """On a GPU what replays the run, as training does: without Python's share, and checks that read numbers back."""
    if device == "cpu":
        return run
    run()                                   # what it keeps of its first call has to be there
    return Recording(run, (), device).replay


def small_op(name: str) -> Op:
    """The op of this name at the small size, of the first level."""
    return next(op for op in memory_ops(*SMALL) if op.name == name)


def op_errors(name: str, device: str, timer: Timer) -> tuple[dict[str, float], dict[str, float]]:
    """Of an op's float32 forward and backward on a device, at the small size: the errors, as they are timed, against
    float64 on the CPU; and the seconds of the first calls.
    """
    op = small_op(name)
    (ours, _), first = first_call(lambda: runs_of(op, draw(op), device), timer)
    firsts = {"forward": first} | {what: first_call(ours[what], timer)[1] for what in ours if what != "forward"}
    exact = runs_of(op, draw(op, np.float64), "cpu")[0]
    return {what: difference(recorded(ours[what], device)(), exact[what]()) for what in ours}, firsts


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
    runs: dict[str, Callable[[], Any]] = {"forward": lambda: op.forward(*arrays)[0]}
    if op.backward is not None:
        dy = to_device(cotangent(y.shape).astype(y.dtype), device) if y.ndim else 1.0      # 1 of a loss
        runs["backward"] = partial(op.backward, dy, cache)
    x = sum(array.nbytes for array in host if array.dtype.kind == "f" and array.ndim > 1)
    target = sum(array.nbytes for array in host if array.dtype.kind == "u")
    # winners are an input of unpooling, and of pooling a byte for each number of y
    return runs, {"x": x, "dx": x, "target": target, "y": y.nbytes, "dy": y.nbytes, "winners": target or y.size}


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """The dy of an output of this shape."""
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def difference(ours: Any, exact: Any) -> float:
    """‖ours − exact‖ / ‖exact‖ of an array, or of all arrays of a tuple together."""
    pairs = [(to_host(a), np.asarray(b, np.float64)) for a, b in zip(listed(ours), listed(exact), strict=True)]
    size = sum(float((b**2).sum()) for _, b in pairs) ** 0.5
    return sum(float(((a - b)**2).sum()) for a, b in pairs) ** 0.5 / max(size, np.finfo(np.float64).tiny)


def listed(value: Any) -> tuple[Any, ...]:
    """A tuple as it is, anything else in a tuple of its own."""
    return value if isinstance(value, tuple) else (value,)


RULES: dict[str, tuple[Callable[..., optim.Optimizer], int, str]] = {
    "Adam, all weights": (optim.Adam, 7, "4 read, 3 written"),
    "SGD with momentum, all weights": (partial(optim.SGD, momentum=0.9), 5, "3 read, 2 written"),
}


def bench_rule(name: str, layers: Sequence[Layer], device: str, timer: Timer, budget: Budget) -> Result:
    """One step for all weights of the net: the gradients read, the parameters and moments read and written."""
    rule, times, moves = RULES[name]

    def optimizer(shapes: Sequence[tuple[int, ...]], dtype: Any, device: str, lr: float) -> optim.Optimizer:
        rng = np.random.default_rng(4)
        parameters = []
        for shape in shapes:
            theta, gradient = (rng.standard_normal(shape, np.float32).astype(dtype) for _ in range(2))
            parameters.append(Tensor(to_device(theta, device), requires_grad=True))
            parameters[-1].grad = to_device(gradient, device)
        return rule(parameters, lr)

    few = [(3, 5), (7,)]
    exact, ours = optimizer(few, np.float64, "cpu", lr=1.0), optimizer(few, np.float32, device, lr=1.0)
    for _ in range(2):
        exact.step()
        ours.step()
    error = difference(*(tuple(p.data for p in o.parameters) for o in (ours, exact)))
    every = [shape for layer in layers for shape in [layer.shapes(1)[0]] * len(layer.names)]
    steps = optimizer(every, np.float32, device, lr=1e-3)
    _, first = first_call(steps.step, timer)
    nbytes = times * sum(p.data.nbytes for p in steps.parameters)
    result = Result("step", "minunet", device, moves, "float32", 0, nbytes, error, TOLERANCE["float32"], first)
    return replace(result, timing=budget.time([steps.step], timer)) if result.correct else result
