"""PyTorch beside minunet: the same products and ops of the same numbers, in a process of its own, channels last."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from minunet import parallel
from minunet.errors import UserError
from minunet.geometry import Pair

from .harness import Ceilings, Side, first_call, measure, timer_for
from .memory import SMALL, Op, cotangent, difference, draw, listed, memory_ops, moved, runs_of
from .products import PRODUCTS, TOLERANCE, Budget, Layer, Result, images, truth, verified


def require_torch() -> None:
    """Raises UserError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("--against torch needs PyTorch, which is not installed: pip install 'minunet[peers]'")


def torch_layer(layer: Layer, batch: int, device: str, precision: str, budget: Budget) -> list[Result]:
    """PyTorch's three products, channels last: of bfloat16 tensors for bf16, of float32 ones for the others.

    Runs in a process of its own (`harness.Side`). On a GPU cuDNN chooses its algorithm by trying, in the first call.
    """
    torch = _torch(device, precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    weight, x, y, rng = images(layer, batch)
    timer, g = timer_for(device), layer.geometry
    itemsize = dtype.itemsize

    def tensor(array: np.ndarray, axes: tuple[int, ...]) -> Any:
        return torch.tensor(array).permute(axes).to(device, dtype, copy=True, memory_format=torch.channels_last)

    sets = [(tensor(weight, (3, 2, 0, 1)), tensor(x, (0, 3, 1, 2)), tensor(y, (0, 3, 1, 2)))
            for _ in range(budget.sets_of(layer.nbytes(batch, itemsize), timer))]
    settings = (list(g.stride), list(g.padding), list(g.dilation), False, [0, 0], 1)

    def gradients(w: Any, x: Any, y: Any, of_x: bool) -> Any:
        found = torch.ops.aten.convolution_backward(y, x, w, None, *settings, [of_x, not of_x, False])
        return found[0] if of_x else found[1]

    run: dict[str, Callable[..., Any]] = {
        "A x": lambda w, x, y: torch.nn.functional.conv2d(x, w, None, *settings[:3]),
        "Aᵀ y": partial(gradients, of_x=True), "dw": partial(gradients, of_x=False)}
    results = []
    with torch.no_grad():
        for product in PRODUCTS:
            axes = (2, 3, 1, 0) if product == "dw" else (0, 2, 3, 1)
            result = Result(product, "PyTorch", device, "cuDNN" if device == "cuda" else "oneDNN", precision,
                            layer.flop(batch), layer.nbytes(batch, itemsize), float("nan"), TOLERANCE[precision], 0.0)
            results.append(verified(result, [partial(run[product], *tensors) for tensors in sets],
                                    lambda t: t.float().cpu().permute(axes).numpy(),
                                    truth(layer, product, weight, x, y, rng), timer, budget))
    return results


def torch_gemm(device: str, precision: str, quick: bool) -> float:
    """FLOP/s of PyTorch's large matrix product: where it is faster than the array library's, it is the ceiling."""
    torch = _torch(device, precision)
    n = 8192 if device == "cuda" else 512 if quick else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / measure([lambda: a @ b], timer_for(device), 0.1 if quick else 0.5).best


def torch_ops(size: Pair, batch: int, base: int, device: str, budget: Budget) -> dict[str, list[Result]]:
    """PyTorch's forward and backward of those of `memory_ops` that it has with the same meaning, by their names."""
    torch, timer = _torch(device, "float32"), timer_for(device)
    f = torch.nn.functional
    theirs: dict[str, Callable[..., Any]] = {
        "ReLU": f.relu, "max pool 2x2": partial(f.max_pool2d, kernel_size=2),
        "average pool 2x2": partial(f.avg_pool2d, kernel_size=2), "concat": lambda a, b: torch.cat((a, b), 1),
        "batch norm": lambda x, gamma, beta: f.batch_norm(x, None, None, gamma, beta, True),
        "bilinear, twice the size": partial(f.interpolate, scale_factor=2, mode="bilinear"),
    }

    def pair(op: Op) -> dict[str, Callable[[], Any]]:
        def tensor(array: np.ndarray) -> Any:
            t = torch.tensor(array)
            t = t.permute(0, 3, 1, 2) if t.ndim == 4 else t
            return t.to(device)

        xs = [tensor(array).requires_grad_() for array in draw(op)]
        y = theirs[op.name](*xs)
        dy = tensor(cotangent(tuple(y.permute(0, 2, 3, 1).shape)))
        return {"forward": lambda: theirs[op.name](*xs),
                "backward": lambda: torch.autograd.grad(y, xs, dy, retain_graph=True)}

    def host(t: Any) -> np.ndarray:
        return (t.permute(0, 2, 3, 1) if t.ndim == 4 else t).detach().cpu().numpy()

    found: dict[str, list[Result]] = {}
    for op, small in zip(memory_ops(size, batch, base), memory_ops(*SMALL)):
        if op.name not in theirs:
            continue
        nbytes = runs_of(op, draw(op), "cpu")[1]
        exact, theirs_small = runs_of(small, draw(small, np.float64), "cpu")[0], pair(small)
        pairs = [pair(op) for _ in range(budget.sets_of(nbytes["x"], timer))]
        for what, moves in (("forward", op.moves), ("backward", op.moves_backward)):
            if (op.name, what) == ("concat", "backward"):
                continue                    # of views of dy, which move nothing
            error = difference(tuple(map(host, listed(theirs_small[what]()))), exact[what]())
            runs = [runs[what] for runs in pairs]
            _, first = first_call(runs[0], timer)
            result = Result(what, "PyTorch", device, moves, "float32", 0, moved(moves, nbytes), error,
                            TOLERANCE["float32"], first)
            found.setdefault(op.name, []).append(
                replace(result, timing=budget.time(runs, timer)) if result.correct else result)
    return found


class Peer:
    """PyTorch on a device, in a process of its own, which works while this one waits."""

    def __init__(self, device: str, precisions: Sequence[str], budget: Budget, quick: bool):
        self._side = Side()
        self._device, self._precisions, self._budget, self._quick = device, precisions, budget, quick

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._side.close()

    def ceilings(self) -> Ceilings:
        """PyTorch's large matrix products, which may be faster than the array library's."""
        return Ceilings(0.0, {p: self._side.call(torch_gemm, self._device, p, self._quick) for p in self._precisions})

    def layer(self, layer: Layer, batch: int) -> list[Result]:
        """The products of a layer."""
        return [r for p in self._precisions
                for r in self._side.call(torch_layer, layer, batch, self._device, p, self._budget)]

    def ops(self, size: Pair, batch: int, base: int) -> dict[str, list[Result]]:
        """The kernels that move memory."""
        return self._side.call(torch_ops, size, batch, base, self._device, self._budget)


def _torch(device: str, precision: str) -> Any:
    """PyTorch, set to this precision and to as many threads as minunet takes."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--against torch: this PyTorch cannot use the GPU (is it the build for the CPU?)")
    torch.set_num_threads(parallel.threads())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
    return torch
