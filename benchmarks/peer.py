"""PyTorch beside minunet: the same products and ops of the same numbers, in a process of its own."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from minunet import parallel
from minunet.errors import UserError
from minunet.geometry import Pair

from .harness import Ceilings, first_call, measure, timer_for
from .layers import Layer
from .memory import Op, cotangent, difference, draw, listed, memory_ops, moved, runs_of, small_op
from .processes import Remote, Side
from .products import PRODUCTS, TOLERANCE, Budget, Products, Result, Way


def require_torch() -> None:
    """Raises UserError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("--against torch needs PyTorch, which is not installed: pip install 'minunet[peers]'")


FORMAT_WORDS = {"channels_last": "channels last", "contiguous_format": "contiguous"}
MEMORY_FORMATS = {"cpu": ("channels_last", "contiguous_format"), "cuda": ("channels_last",)}


class TorchProducts(Products):
    """By PyTorch: of bfloat16 tensors for bf16, of float32 ones for the others, in each memory format.

    On a GPU cuDNN chooses its algorithm by trying, in the first call.
    """

    def __init__(self, layer: Layer, batch: int, device: str, precisions: Sequence[str], budget: Budget,
                 means: Sequence[float] = ()):
        self._torch, self._device, self._precisions = torch_for(device), device, precisions
        super().__init__(layer, batch, timer_for(device), budget, 2 if "bf16" in precisions else 4, means)

    def ways(self, weight: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[Way]:
        """The three products in each precision and memory format."""
        torch, g = self._torch, self.layer.geometry
        settings = (list(g.stride), list(g.padding), list(g.dilation), False, [0, 0], 1)

        def forward(w: Any, x: Any, y: Any) -> Any:
            with torch.no_grad():
                return torch.nn.functional.conv2d(x, w, None, *settings[:3])

        def gradients(w: Any, x: Any, y: Any, of_x: bool) -> Any:
            found = torch.ops.aten.convolution_backward(y, x, w, None, *settings, [of_x, not of_x, False])
            return found[0] if of_x else found[1]

        def run(product: str, precision: str, *tensors: Any) -> Any:
            set_tf32(torch, precision == "tf32")
            return forward(*tensors) if product == "A x" else gradients(*tensors, of_x=product == "Aᵀ y")

        found = []
        library = "cuDNN" if self._device == "cuda" else "oneDNN"
        for precision, memory_format in itertools.product(self._precisions, MEMORY_FORMATS[self._device]):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            tensors = [torch.tensor(array).permute(axes).to(self._device, dtype, copy=True,
                                                            memory_format=getattr(torch, memory_format))
                       for array, axes in ((weight, (3, 2, 0, 1)), (x, (0, 3, 1, 2)), (y, (0, 3, 1, 2)))]
            name = f"{library}, {FORMAT_WORDS[memory_format]}"
            found += [Way(self.result(product, "PyTorch", self._device, name, precision, dtype.itemsize),
                          partial(run, product, precision, *tensors)) for product in PRODUCTS]
        return found

    def to_host(self, computed: Any, result: Result) -> np.ndarray:
        """(N, C, H, W) to (N, H, W, C); of a weight (F, C, KH, KW) to (KH, KW, C, F)."""
        axes = (2, 3, 1, 0) if result.what == "dw" else (0, 2, 3, 1)
        return computed.float().cpu().permute(axes).numpy()


def torch_gemm(device: str, precision: str, quick: bool) -> float:
    """FLOP/s of PyTorch's large matrix product: where it is faster than the array library's, it is the ceiling."""
    torch = torch_for(device)
    set_tf32(torch, precision == "tf32")
    n = 8192 if device == "cuda" else 512 if quick else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / measure([lambda: a @ b], timer_for(device), 0.1 if quick else 0.5).best


def torch_ops(size: Pair, batch: int, base: int, device: str, budget: Budget) -> dict[str, list[Result]]:
    """PyTorch's forward and backward of those of `memory_ops` that it has with the same meaning, by their names."""
    torch, timer = torch_for(device), timer_for(device)
    set_tf32(torch, False)
    f = torch.nn.functional
    theirs: dict[str, Callable[..., Any]] = {
        "ReLU": f.relu, "leaky ReLU": f.leaky_relu, "ELU": f.elu, "sigmoid": torch.sigmoid,
        "softmax, 8 classes": partial(torch.softmax, dim=1), "max pool 2x2": partial(f.max_pool2d, kernel_size=2),
        "average pool 2x2": partial(f.avg_pool2d, kernel_size=2), "concat": lambda a, b: torch.cat((a, b), 1),
        "batch norm and ReLU": lambda x, gamma, beta: f.relu(f.batch_norm(x, None, None, gamma, beta, True)),
        "bilinear, twice the size": partial(f.interpolate, scale_factor=2, mode="bilinear"),
        "nearest, twice the size": partial(f.interpolate, scale_factor=2, mode="nearest-exact"),
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
    for op in memory_ops(size, batch, base):
        if op.name not in theirs:
            continue
        nbytes, small = runs_of(op, draw(op), "cpu")[1], small_op(op.name)
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
            found.setdefault(op.title, []).append(
                replace(result, timing=budget.time(runs, timer)) if result.correct else result)
    return found


class Peer(Side):
    """PyTorch on a device, in a process of its own, which works while this one waits."""

    def __init__(self, device: str, precisions: Sequence[str], budget: Budget, quick: bool):
        super().__init__()
        self._device, self._precisions, self._budget, self._quick = device, precisions, budget, quick

    def ceilings(self) -> Ceilings:
        """PyTorch's large matrix products, which may be faster than the array library's."""
        return Ceilings(0.0, {p: self.call(torch_gemm, self._device, p, self._quick) for p in self._precisions})

    def products(self, layer: Layer, batch: int, means: Sequence[float]) -> Remote:
        """The `TorchProducts` of a layer, until the next one's are made."""
        return self.make(TorchProducts, layer, batch, self._device, self._precisions, self._budget, means)

    def ops(self, size: Pair, batch: int, base: int) -> dict[str, list[Result]]:
        """The kernels that move memory."""
        return self.call(torch_ops, size, batch, base, self._device, self._budget)


def torch_for(device: str) -> Any:
    """PyTorch, set to as many threads as minunet takes."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--against torch: this PyTorch cannot use the GPU (is it the build for the CPU?)")
    torch.set_num_threads(parallel.threads())
    torch.backends.cudnn.benchmark = True
    return torch


def set_tf32(torch: Any, allowed: bool) -> None:
    """Whether products of float32 tensors on a GPU may round their operands to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
