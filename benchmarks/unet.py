"""A U-Net's training step and prediction, minunet's beside PyTorch's: verified, then timed in turns, each in a process.

The net has batch norm, depth 4, 3 channels in and 1 class; a step is forward, binary cross-entropy, backward and Adam.
Work is counted for every side as the direct convolutions', whatever the algorithm; a step's is that of the forward
pass, of all weight gradients and of all data gradients but the images':

    FLOP(step) = 3 · FLOP(prediction) − FLOP(first convolution).

Memory is the most that the process of its own held, less what it held before the net was made: weights, gradients,
moments, activations and work space. On a GPU it is what the side's allocator held there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from minunet import functional
from minunet.autograd import Tensor
from minunet.backend import cupy, to_device
from minunet.convolution import ConvMatrix
from minunet.geometry import Pair
from minunet.interop import from_torch, to_torch
from minunet.models import UNet

from .harness import Timing
from .layers import CHANNELS
from .peer import FORMAT_WORDS, torch_for
from .processes import Load, Side, available_bytes
from .products import Budget
from .unet_sides import CLASSES, DEPTH, Case, Contestant, TorchNet

WORKS = ("step", "prediction")
GRADIENTS = 1e-10       # ‖ours − reference‖ / ‖reference‖ in float64 that is still rounding, all parameters together
PREDICTION = {"float32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}      # the same of a prediction and the float64 one
LOSSES = {"float32": 5e-3, "tf32": 1e-2, "bf16": 5e-2}  # relative difference of two sides' losses, first steps

CASES = {"cpu": ((64, 2, (256, 256)), (16, 8, (128, 128)), (16, 2, (256, 256))),
         "cuda": ((64, 8, (256, 256)), (64, 1, (256, 256)), (64, 8, (512, 512)))}
VERIFIED = Case(16, 2, (64, 64))        # the net whose gradients are compared in float64


SCALING = (64, 128, 256, 512, 1024), (1, 2, 4, 8, 16), 256      # sizes of one image; images, of which size; px
CONTIGUOUS = f"PyTorch, {FORMAT_WORDS['contiguous_format']}"


def scaling_cases(base: int, sizes: Sequence[int], batches: Sequence[int], at: int) -> list[tuple[int, int, Pair]]:
    """One image of each of these heights and widths, then that many images of one size."""
    return list(dict.fromkeys([*((base, 1, (n, n)) for n in sizes), *((base, n, (at, at)) for n in batches)]))


# ---- verified

class Check(NamedTuple):
    """The gradients of a small net in float64, beside a reference."""

    reference: str
    error: float                    # ‖ours − reference‖ / ‖reference‖ over all parameters

    @property
    def correct(self) -> bool:
        """NaN is not."""
        return self.error <= GRADIENTS


def verify_gradients(device: str, against_torch: bool) -> Check:
    """minunet's gradients in float64 on a device, by the algorithms that it takes in float32, beside another's."""
    with Side() as side:
        ours = side.call(our_gradients, VERIFIED._replace(device=device), True)
        theirs = side.call(torch_gradients if against_torch else our_gradients, VERIFIED)
    return Check("PyTorch in float64" if against_torch else "im2col in float64", relative(ours, theirs))


def relative(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    """‖ours − theirs‖ / ‖theirs‖ of all arrays together."""
    assert ours.keys() == theirs.keys()
    a, b = (np.concatenate([np.ravel(arrays[name]) for name in ours]) for arrays in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def our_gradients(case: Case, of_float32: bool = False) -> dict[str, np.ndarray]:
    """By parameter, of the first step's loss in float64; if so, by the algorithms that float32 would take.

    (A GPU's in float32 compute in float64 as well.)
    """
    x, y = case.images()
    net = UNet(CHANNELS, CLASSES, case.base, DEPTH).astype(np.float64).to(case.device)
    with algorithms_of_float32() if of_float32 and case.device == "cpu" else ExitStack():
        functional.bce_with_logits(net(Tensor(x.astype(np.float64))), y.astype(np.float64)).backward()
    return {name: to_device(p.grad, "cpu") for name, p in net.named_parameters()}


@contextmanager
def algorithms_of_float32() -> Iterator[None]:
    """Within it a float64 `ConvMatrix` takes the algorithm that float32 would, so that its algebra can be verified."""
    init = ConvMatrix.__init__

    def chosen(self: ConvMatrix, weight: Any, geometry: Any, size: Any, algorithm: str = "auto",
               precision: str = "float32") -> None:
        if algorithm == "auto" and weight.dtype == np.float64:
            algorithm = ConvMatrix(weight.astype(np.float32), geometry, size).algorithm
        init(self, weight, geometry, size, algorithm, precision)

    with patch.object(ConvMatrix, "__init__", chosen):
        yield


def torch_gradients(case: Case) -> dict[str, np.ndarray]:
    """The same by PyTorch, in minunet's names and order."""
    torch = torch_for("cpu")
    from .torch_unet import UNet as TorchUNet

    state = UNet(CHANNELS, CLASSES, case.base, DEPTH).astype(np.float64).state_dict()
    net = TorchUNet(CHANNELS, CLASSES, case.base, DEPTH).double()
    net.load_state_dict({name: torch.tensor(array) for name, array in to_torch(state).items()})
    x, y = (torch.tensor(array).double().permute(0, 3, 1, 2) for array in case.images())
    torch.nn.functional.binary_cross_entropy_with_logits(net(x), y).backward()
    for p in net.parameters():
        p.data = p.grad                                     # so the gradients pass as a state dict
    names = {name for name, _ in UNet(CHANNELS, CLASSES, case.base, DEPTH).named_parameters()}
    return {name: array for name, array in from_torch(net.state_dict()).items() if name in names}


def exact_prediction(case: Case, state: Mapping[str, np.ndarray]) -> np.ndarray:
    """In float64, by im2col."""
    net = UNet(CHANNELS, CLASSES, case.base, DEPTH)
    net.load_state_dict(state)
    return net.astype(np.float64).predict(case.images()[0].astype(np.float64))


# ---- timed

@dataclass(frozen=True)
class Row:
    """One side's step or prediction in one case; without times if it was wrong."""

    case: Case
    work: str
    side: str
    error: float | None             # of a prediction, from float64; of the first losses, from PyTorch's; None: unknown
    tolerance: float
    turns: tuple[tuple[float, ...], ...] = ()       # seconds
    peak: int | None = None         # bytes
    others: float | None = None     # the most that other programs took of the machine in a turn, 0 to 1

    @property
    def correct(self) -> bool:
        """Whether nothing speaks against it; NaN does."""
        return self.error is None or self.error <= self.tolerance

    @property
    def timing(self) -> Timing | None:
        """Of all turns together."""
        return Timing(tuple(t for turn in self.turns for t in turn)) if self.turns else None

    def as_dict(self, gemm: Mapping[str, float]) -> dict[str, Any]:
        """For JSON; gemm is the device's peak in FLOP/s by precision."""
        flop = self.case.flop(self.work)
        found = {**self.case._asdict(), "work": self.work, "side": self.side, "error": self.error,
                 "correct": self.correct, "flop": flop, "megapixels": self.case.megapixels, "peak_bytes": self.peak,
                 "forecast_bytes": self.case.forecast() if self.work == "step" else None, "others": self.others}
        if self.timing:
            rate = flop / self.timing.median
            found |= {**self.timing.as_dict(), "turns_s": self.turns, "flop_per_s": rate,
                      "share_of_gemm": rate / gemm[self.case.precision]}
        return found


class Ratio(NamedTuple):
    """PyTorch's time over minunet's: of the medians, and the least and the most of a single turn."""

    value: float
    low: float
    high: float


def ratio(rows: Sequence[Row], row: Row) -> Ratio | None:
    """Of a row of minunet's, to PyTorch's faster memory format; None without one."""
    theirs = [r for r in rows if (r.case, r.work) == (row.case, row.work) and r.timing and r.side.startswith("PyTorch")]
    if not theirs or not row.timing or row in theirs:
        return None
    best = min(theirs, key=lambda r: r.timing.median)           # type: ignore[union-attr]
    single = [np.median(a) / np.median(b) for a, b in zip(best.turns, row.turns)]
    return Ratio(best.timing.median / row.timing.median, min(single), max(single))      # type: ignore[union-attr]


def lacking(case: Case, sides: int) -> str | None:
    """Why a case is left out: what its sides together would need of memory, if that is more than there is."""
    needed = sides * case.forecast()
    there = cupy().cuda.runtime.memGetInfo()[0] if case.device == "cuda" else available_bytes()
    if there is None or needed <= there:
        return None
    return (f"{case}: left out, it needs about {needed / 2**30:.1f} GiB{f' for {sides} sides' if sides > 1 else ''}, "
            f"and {there / 2**30:.1f} GiB are free")


def bench_case(case: Case, sides: Sequence[Contestant], budget: Budget, exact: bool,
               done: Callable[[str], None]) -> list[Row]:
    """Steps and predictions by each side in turn, each in a fresh process, from the same weights and images.

    Predictions are compared with one in float64 if exact is set, the losses of the first steps with PyTorch's. done is
    called with the name of what is next.
    """
    state = UNet(CHANNELS, CLASSES, case.base, DEPTH).state_dict()
    rows = []
    for work in WORKS:
        done(f"{case}: {work}")
        with ExitStack() as stack:
            processes = [stack.enter_context(Side()) for _ in sides]
            nets = []
            for process, side in zip(processes, sides):
                nets.append(process.make(side.factory, case, *side.arguments))
                nets[-1].load(state)
            errors = _errors(work, case, sides, nets, state if exact else None)
            load = Load(process.pid for process in processes)
            turns: dict[str, list[tuple[float, ...]]] = {side.name: [] for side in sides}
            others: dict[str, list[float | None]] = {side.name: [] for side in sides}
            tolerance = (LOSSES if work == "step" else PREDICTION)[case.precision]
            for _ in range(budget.turns):
                for side, net, error in zip(sides, nets, errors):
                    if error is None or error <= tolerance:
                        load.others()
                        turns[side.name].append(net.times(work, budget.turn))
                        others[side.name].append(load.others())
            rows += [Row(case, work, side.name, error, tolerance, tuple(turns[side.name]), net.growth(),
                         max((share for share in others[side.name] if share is not None), default=None))
                     for side, net, error in zip(sides, nets, errors)]
    return rows


def _errors(work: str, case: Case, sides: Sequence[Contestant], nets: Sequence[Any],
            state: Mapping[str, np.ndarray] | None) -> list[float | None]:
    """Of each side's first work."""
    if work == "step":
        losses = [np.array(net.first_losses()) for net in nets]
        known = [found for side, found in zip(sides, losses) if side.factory is TorchNet]
        return [float(np.abs(found / known[-1] - 1).max()) if known else None for found in losses]
    answers = [net.prediction() for net in nets]
    if state is None:
        return [None] * len(nets)
    with Side() as side:
        expected = side.call(exact_prediction, case, state)
    return [relative({"": answer}, {"": expected}) for answer in answers]
