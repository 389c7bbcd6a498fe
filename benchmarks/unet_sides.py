"""The sides of the U-Net's benchmark: minunet's net and PyTorch's, on one device, each in the process that makes it.

On a GPU minunet's step and prediction are replayed as one graph each (`nn.Replayed`), or launched one by one, as
PyTorch's are; all sides take their images from the computer's memory, and predictions back to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from minunet import functional, nn, optim
from minunet.autograd import Tensor, no_grad
from minunet.backend import cupy, to_device
from minunet.geometry import Pair
from minunet.interop import to_torch
from minunet.models import UNet

from .harness import CpuTimer, Timer, WallTimer, measure
from .layers import CHANNELS, unet_layers
from .peer import FORMAT_WORDS, MEMORY_FORMATS, set_tf32, torch_for
from .processes import forget_peak, resident_bytes
from .products import Budget

CLASSES, DEPTH = 1, 4
FIRST_STEPS = 3
PIPELINED = 10          # steps that a GPU is given before it is waited for: it computes while Python prepares the next


class Case(NamedTuple):
    """A net and its images: channels of the first level, images at a time, (height, width) in px; where and how."""

    base: int
    batch: int
    size: Pair
    device: str = "cpu"
    precision: str = "float32"

    @property
    def megapixels(self) -> float:
        """Of one batch."""
        return self.batch * self.size[0] * self.size[1] / 1e6

    def flop(self, work: str) -> int:
        """Of one step or prediction."""
        layers = unet_layers(self.size, self.base, DEPTH, CLASSES)
        forward = sum(len(layer.names) * layer.flop(self.batch) for layer in layers)
        return forward if work == "prediction" else 3 * forward - layers[0].flop(self.batch)

    def forecast(self) -> int:
        """Bytes of a training step, by `UNet.summary`."""
        return UNet(CHANNELS, CLASSES, self.base, DEPTH).summary(self.size, self.batch).training_bytes

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """x (N, H, W, 3) and masks (N, H, W, 1) of 0 and 1, float32, the same in every process."""
        rng = np.random.default_rng([self.base, self.batch, *self.size])
        x = rng.standard_normal((self.batch, *self.size, CHANNELS), np.float32)
        return x, (rng.random((self.batch, *self.size, CLASSES)) < 0.3).astype(np.float32)

    def __str__(self) -> str:
        return (f"base {self.base}, {self.batch}x{self.size[0]}x{self.size[1]} px"
                + ("" if self.device == "cpu" else f" on {self.device} in {self.precision}"))


class Net(ABC):
    """One side's U-Net and optimizer with the batch of a case."""

    def __init__(self, case: Case):
        self.case, (self.x, self.y) = case, case.images()
        self._before, self._most = resident_bytes(), 0

    @abstractmethod
    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take these weights, in minunet's names and order; the peak of memory counts from here."""

    @abstractmethod
    def step(self) -> Any:
        """One training step; its loss, where it was computed."""

    @abstractmethod
    def prediction(self) -> np.ndarray:
        """Probabilities (N, H, W, 1)."""

    @abstractmethod
    def wait(self) -> None:
        """Until the GPU has done all that it was given."""

    @abstractmethod
    def gpu_bytes(self) -> int:
        """Of the GPU's memory, what the side holds now or held at most."""

    def settle(self) -> None:
        """Give back memory that only the first calls needed."""

    def first_losses(self) -> list[float]:
        """Of the first steps."""
        return [float(self.step()) for _ in range(FIRST_STEPS)]

    def times(self, work: str, budget: Budget) -> tuple[float, ...]:
        """Seconds of the repeated work, after one that warms up."""
        run, count = getattr(self, work), 1
        timer: Timer = CpuTimer()
        if self.case.device != "cpu":
            timer, count = WallTimer(self.wait), PIPELINED if work == "step" else 1
            for _ in range(2):              # a recording begins with the second call
                run()
            self.settle()
        times = measure([lambda: [run() for _ in range(count)]], timer, budget.seconds, budget.least).times
        self._most = max(self._most, self.gpu_bytes())
        return tuple(t / count for t in times)

    def growth(self) -> int | None:
        """Bytes by which the process has at most grown since before the net; on a GPU, what it held there."""
        if self.case.device != "cpu":
            return self._most
        peak = resident_bytes(peak=True)
        return None if peak is None or self._before is None else max(0, peak - self._before)


class OurNet(Net):
    """minunet's; with recompute, activations are computed again instead of stored; on a GPU replayed, or not."""

    def __init__(self, case: Case, recompute: bool = False, replayed: bool = True):
        super().__init__(case)
        self._net = UNet(CHANNELS, CLASSES, case.base, DEPTH, recompute=recompute).to(case.device, case.precision)
        self._adam = optim.Adam(self._net.parameters(), lr=1e-3)
        self._gradients = nn.Replayed(_gradients)
        self._replayed = replayed

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Net`."""
        self._net.load_state_dict(state)
        forget_peak()

    def step(self) -> Any:
        """See `Net`."""
        arrays = self._net, self.x, self.y
        loss = self._gradients(*arrays, take=self._take) if self._replayed else self._take(_gradients(*arrays))
        self._adam.step()
        return loss

    def _take(self, results: tuple[Any, list[Any]]) -> Any:
        for parameter, gradient in zip(self._adam.parameters, results[1]):
            parameter.grad = gradient
        return results[0].copy()

    def prediction(self) -> np.ndarray:
        """See `Net`."""
        if self._replayed:
            return self._net.predict(self.x)
        self._net.eval()
        with no_grad():
            answer = functional.sigmoid(self._net(Tensor(self.x))).data
        self._net.train()
        return to_device(answer, "cpu")

    def wait(self) -> None:
        """See `Net`."""
        if self.case.device == "cuda":
            cupy().cuda.Device().synchronize()

    def gpu_bytes(self) -> int:
        """Of CuPy's pool, which gives nothing back while steps are timed, and the recordings'."""
        pool = cupy().get_default_memory_pool().total_bytes() if self.case.device == "cuda" else 0
        return pool + nn.recorded_bytes()


def _gradients(net: UNet, x: Any, y: Any) -> tuple[Any, list[Any]]:
    """The loss of a batch, and the gradients of all parameters."""
    parameters = net.parameters()
    for parameter in parameters:
        parameter.grad = None
    loss = functional.bce_with_logits(net(Tensor(x)), y)
    loss.backward()
    return loss.data, [parameter.grad for parameter in parameters]


class TorchNet(Net):
    """PyTorch's, eager, in a memory format; on a CPU its images are in that format already, on a GPU in pinned memory.

    tf32: of float32 numbers, rounded in the products. bf16: by its automatic casts.
    """

    def __init__(self, case: Case, memory_format: str):
        self._torch = torch = torch_for(case.device)
        set_tf32(torch, case.precision == "tf32")
        from .torch_unet import UNet as TorchUNet

        super().__init__(case)
        self._format = getattr(torch, memory_format)
        self._net = TorchUNet(CHANNELS, CLASSES, case.base, DEPTH).to(case.device, memory_format=self._format)
        self._x, self._y = (torch.tensor(array).permute(0, 3, 1, 2).contiguous(memory_format=self._format)
                            for array in (self.x, self.y))
        if case.device == "cuda":
            self._x, self._y = self._x.pin_memory(), self._y.pin_memory()
        self._adam = torch.optim.Adam(self._net.parameters(), lr=1e-3)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """See `Net`."""
        self._net.load_state_dict({name: self._torch.tensor(array) for name, array in to_torch(state).items()})
        forget_peak()

    def _logits(self) -> Any:
        x = self._x.to(self.case.device, non_blocking=True)
        rounded = self.case.precision == "bf16"
        with self._torch.autocast(self.case.device, self._torch.bfloat16) if rounded else nullcontext():
            return self._net(x).float()

    def step(self) -> Any:
        """See `Net`."""
        self._net.train()
        self._adam.zero_grad()
        y = self._y.to(self.case.device, non_blocking=True)
        loss = self._torch.nn.functional.binary_cross_entropy_with_logits(self._logits(), y)
        loss.backward()
        self._adam.step()
        return loss.detach()

    def prediction(self) -> np.ndarray:
        """See `Net`."""
        self._net.eval()
        with self._torch.inference_mode():
            return self._torch.sigmoid(self._logits()).permute(0, 2, 3, 1).cpu().numpy()

    def wait(self) -> None:
        """See `Net`."""
        if self.case.device == "cuda":
            self._torch.cuda.synchronize()

    def settle(self) -> None:
        """That of the algorithms that cuDNN has tried."""
        if self.case.device == "cuda":
            self.wait()
            self._torch.cuda.empty_cache()
            self._torch.cuda.reset_peak_memory_stats()

    def gpu_bytes(self) -> int:
        """The most that PyTorch's allocator has held since then."""
        return self._torch.cuda.max_memory_reserved() if self.case.device == "cuda" else 0


class Contestant(NamedTuple):
    """A side of the comparison, and how its net is made in its process: factory(case, *arguments)."""

    name: str
    factory: Callable[..., Net]
    arguments: tuple[Any, ...] = ()


def contestants(device: str, against_torch: bool, recompute: bool = False) -> list[Contestant]:
    """minunet; on a GPU without a graph too; with recomputation too; PyTorch in each memory format."""
    found = [Contestant("minunet", OurNet)]
    found += [Contestant("minunet, launch by launch", OurNet, (False, False))] * (device != "cpu")
    found += [Contestant("minunet, recompute", OurNet, (True,))] * recompute
    formats = MEMORY_FORMATS[device] if against_torch else ()
    return found + [Contestant(f"PyTorch, {FORMAT_WORDS[name]}", TorchNet, (name,)) for name in formats]
