"""The three products of each of a U-Net's convolutions: verified against float64, then timed.

The elements verified are computed from the definition by NumPy. Two errors are told: as vectors,

    ‖result − float64‖ / ‖float64‖,

and the largest beside the largest element of the same product of |weight|, |x| and |y|, which is what a sum of rounded
terms can be off by, also where means that are many standard deviations from 0 cancel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minunet.backend import to_device
from minunet.convolution import ConvMatrix
from minunet.convolution.matrix import ALGORITHMS

from .harness import Ceilings, Timer, Timing, first_call, measure, rotations
from .layers import Layer, images

PRODUCTS = ("A x", "Aᵀ y", "dw")
# ‖result − float64‖ / ‖float64‖ that is still rounding. TF32 keeps 11 significant bits of each operand, BF16 8: about
# 3e-4 and 2e-3. So float32 products that a library silently rounds to TF32 are found.
TOLERANCE = {"float32": 1e-4, "tf32": 2e-3, "bf16": 2e-2}
# of the other measure of error, the most that a fast algorithm for float32 may have
BOUNDS = {"A x": 2e-5, "Aᵀ y": 2e-5, "dw": 1e-4}
MEANS = (0.0, 10.0, 100.0)          # of x and y, in standard deviations, at which it is asked for
SAMPLES = 32                        # pixels whose every channel is verified; all of them where there are few


# ---- what is measured

class Budget(NamedTuple):
    """How long and how often at least to repeat each measurement, in how many turns, on how many sets of inputs."""

    seconds: float = 0.3
    least: int = 5
    sets: int = 256                 # at most
    turns: int = 3

    @property
    def turn(self) -> Budget:
        """Of a single turn."""
        return self._replace(seconds=self.seconds / self.turns, least=-(-self.least // self.turns), turns=1)

    def sets_of(self, nbytes: int, timer: Timer) -> int:
        """Sets of inputs of this size."""
        return rotations(nbytes, timer.cache_bytes, self.sets)

    def time(self, runs: Sequence[Callable[[], Any]], timer: Timer) -> Timing:
        """The runs in turn."""
        return measure(runs, timer, self.seconds, self.least)


@dataclass(frozen=True)
class Result:
    """One measurement; without timing if the result was wrong."""

    what: str                       # "A x", "Aᵀ y", "dw"; of a kernel that moves memory "forward", "backward", "step"
    side: str                       # "minunet" or "PyTorch"
    device: str
    algorithm: str
    precision: str
    flop: int
    nbytes: int
    error: float                    # ‖result − float64‖ / ‖float64‖
    tolerance: float
    first: float                    # seconds of the first call, with compilation
    timing: Timing | None = None
    chosen: bool = False            # whether "auto" takes this algorithm for this layer
    bound_error: float | None = None        # max |result − float64| / max of the product of magnitudes

    @property
    def correct(self) -> bool:
        """Whether it was verified; NaN is not."""
        return self.error <= self.tolerance and (self.bound_error is None or self.bound_error <= BOUNDS[self.what])

    @property
    def seconds(self) -> float:
        """The median, infinite without one."""
        return self.timing.median if self.timing else float("inf")

    @property
    def name(self) -> str:
        """Who computed it, and how."""
        algorithm = self.algorithm if self.side == "minunet" else self.side
        return f"{algorithm}, {self.precision}, {self.device}"

    def as_dict(self, ceilings: Mapping[str, Ceilings]) -> dict[str, Any]:
        """For JSON; the share of the limit too."""
        found = {name: getattr(self, name) for name in ("what", "side", "device", "algorithm", "precision", "flop",
                                                        "nbytes", "error", "tolerance", "correct", "chosen")}
        if self.bound_error is not None:
            found["bound_error"] = self.bound_error
        found["first_call_s"] = self.first
        if self.timing:
            found |= {**self.timing.as_dict(), "flop_per_s": self.flop / self.seconds,
                      "bytes_per_s": self.nbytes / self.seconds}
            if self.device in ceilings:
                found["share_of_limit"] = self.share(ceilings[self.device])
        return found

    def share(self, ceilings: Ceilings) -> float:
        """The least time that the work can take over the time that it took."""
        return ceilings.seconds(self.flop, self.nbytes, self.precision) / self.seconds


# ---- verified

class Truth(NamedTuple):
    """Elements of a product in float64, and where they are in the result (an index for fancy indexing)."""

    where: tuple[Any, ...]
    values: np.ndarray
    largest: float                  # of these elements, in the product of magnitudes

    def error(self, result: np.ndarray) -> float:
        """‖result − truth‖ / ‖truth‖ over these elements; NaN if any number of the whole result is not finite."""
        if not np.isfinite(result).all():
            return float("nan")
        difference = np.linalg.norm(result[self.where] - self.values)
        return float(difference / max(np.linalg.norm(self.values), np.finfo(np.float64).tiny))

    def bound_error(self, result: np.ndarray) -> float:
        """max |result − truth| over these elements, beside the largest of the product of magnitudes."""
        return float(np.abs(result[self.where] - self.values).max() / self.largest)


def truth(layer: Layer, product: str, weight: np.ndarray, x: np.ndarray, y: np.ndarray,
          rng: np.random.Generator) -> Truth:
    """Some of a product's elements from its definition,

        y[n, oh, ow, f] = Σ weight[kh, kw, c, f] · x[n, oh·SH − PH + kh·DH, ow·SW − PW + kw·DW, c],

    read as a sum over the window (A x), over the windows that hold a pixel (Aᵀ y), or over all pixels (dw).
    """
    if product == "dw":
        *taps, f = *_sampled(weight.shape[:3], 8, rng), *_sampled(weight.shape[3:], 8, rng)
        where = (*(axis[:, None] for axis in taps), f)
    else:
        where = _sampled((x if product == "Aᵀ y" else y).shape[:3], SAMPLES, rng)
    values, sums = (_elements(layer, product, where, *arrays)
                    for arrays in ((weight, x, y), map(np.abs, (weight, x, y))))
    return Truth(where, values, float(sums.max()))


def _elements(layer: Layer, product: str, where: tuple[np.ndarray, ...], weight: np.ndarray, x: np.ndarray,
              y: np.ndarray) -> np.ndarray:
    """The product's elements there, in float64."""
    g = layer.geometry
    stride, padding, dilation = np.array(g.stride), np.array(g.padding), np.array(g.dilation)
    if product == "dw":
        (kh, kw, c), f = (axis[:, 0] for axis in where[:3]), where[3]
        values = np.zeros((len(c), len(f)))
        for image in range(len(x)):
            for i, (tap, channel) in enumerate(zip(np.stack([kh, kw], 1), c)):
                rows, columns = (_windows_inside(*axis) for axis in zip(
                    layer.out_size, g.stride, g.padding, tap * dilation, layer.size))
                at_x = np.ix_(rows * g.stride[0] - g.padding[0] + tap[0] * g.dilation[0],
                              columns * g.stride[1] - g.padding[1] + tap[1] * g.dilation[1])
                values[i] += np.tensordot(x[image, ..., channel][at_x].astype(np.float64),
                                          y[image][np.ix_(rows, columns, f)].astype(np.float64), 2)
        return values
    source, matrix = (x, weight) if product == "A x" else (y, weight.swapaxes(2, 3))
    n, h, w = where
    values = np.zeros((len(n), matrix.shape[3]))
    for kernel_pixel in np.ndindex(g.kernel):
        tap = np.array(kernel_pixel)
        if product == "A x":
            at = np.stack([h, w], 1) * stride - padding + tap * dilation
            inside = np.full(len(n), True)
        else:
            at = np.stack([h, w], 1) + padding - tap * dilation
            inside = (at % stride == 0).all(1)
            at = at // stride
        inside &= ((at >= 0) & (at < source.shape[1:3])).all(1)
        found = source[n[inside], at[inside, 0], at[inside, 1]].astype(np.float64)
        values[inside] += found @ matrix[kernel_pixel].astype(np.float64)
    return values


def _sampled(shape: Sequence[int], count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Different indices into an array of this shape: all if there are no more than count, else random ones, the first
    and the last among them."""
    size = int(np.prod(shape))
    flat = np.arange(size) if size <= count else np.unique([0, size - 1, *rng.integers(size, size=count - 2)])
    return np.unravel_index(flat, shape)


def _windows_inside(windows: int, stride: int, padding: int, offset: int, size: int) -> np.ndarray:
    """Along one axis, the windows whose pixel at this offset lies inside the image."""
    at = np.arange(windows) * stride - padding + offset
    return np.flatnonzero((at >= 0) & (at < size))


# ---- the three products

class Way(NamedTuple):
    """One product by one algorithm: a result that nothing is known of yet, and the run that makes it."""

    result: Result
    run: Callable[[], Any]


class Products(ABC):
    """A layer's products by one side: verified when made, then timed turn by turn.

    A side says how to compute them: `ways`, of weight, x and y, and `to_host`.
    """

    def __init__(self, layer: Layer, batch: int, timer: Timer, budget: Budget, itemsize: int = 4,
                 means: Sequence[float] = ()):
        self.layer, self.batch, self._timer, self._budget = layer, batch, timer, budget
        *host, rng = images(layer, batch)
        sets = [self.ways(*host) for _ in range(budget.sets_of(layer.nbytes(batch, itemsize), timer))]
        self._runs = [[way.run for way in same] for same in zip(*sets)]
        truths = {product: truth(layer, product, *host, rng) for product in PRODUCTS}
        self._results = []
        for way in sets[0]:
            computed, first = first_call(way.run, timer)
            self._results.append(replace(way.result, first=first,
                                         error=truths[way.result.what].error(self.to_host(computed, way.result))))
        for number, worst in enumerate(np.max([self._bound_errors(mean) for mean in means], 0) if means else ()):
            self._results[number] = replace(self._results[number], bound_error=float(worst))

    def _bound_errors(self, mean: float) -> list[float]:
        """Of each result, at this mean of x and y."""
        *host, rng = images(self.layer, self.batch, mean)
        truths = {product: truth(self.layer, product, *host, rng) for product in PRODUCTS}
        return [truths[result.what].bound_error(self.to_host(way.run(), result))
                for way, result in zip(self.ways(*host), self._results)]

    @abstractmethod
    def ways(self, weight: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[Way]:
        """Each product by each algorithm, on copies of these arrays."""

    @abstractmethod
    def to_host(self, computed: Any, result: Result) -> np.ndarray:
        """What a run made, in minunet's order of axes."""

    def result(self, product: str, side: str, device: str, algorithm: str, precision: str, itemsize: int = 4,
               chosen: bool = False) -> Result:
        """Of this layer's product, with its work and nothing else."""
        return Result(product, side, device, algorithm, precision, self.layer.flop(self.batch),
                      self.layer.nbytes(self.batch, itemsize), float("nan"), TOLERANCE[precision], 0.0, chosen=chosen)

    def results(self) -> list[Result]:
        """Verified, without times."""
        return self._results

    def times(self, number: int) -> tuple[float, ...]:
        """The times of one turn of a result, by its number."""
        return self._budget.turn.time(self._runs[number], self._timer).times


def bench_layer(sides: Sequence[Any], turns: int) -> list[Result]:
    """The results of each side's `Products`, here or in another process; what is right is timed, in turns."""
    results = [(side, number, result) for side in sides for number, result in enumerate(side.results())]
    times: dict[int, list[float]] = {}
    for product in PRODUCTS:
        rivals = [(i, side, number) for i, (side, number, result) in enumerate(results)
                  if result.what == product and result.correct]
        for _ in range(turns):
            for i, side, number in rivals:
                times.setdefault(i, []).extend(side.times(number))
    return [replace(result, timing=Timing(tuple(times[i]))) if i in times else result
            for i, (_, _, result) in enumerate(results)]


def algorithms(device: str, precision: str) -> tuple[str, ...]:
    """Those of ConvMatrix on this device that compute in this precision, in the order of the ladder."""
    every = ALGORITHMS["cpu" if device == "cpu" else "gpu"][1:]             # without "auto"
    return tuple(a for a in every if (a == "tensorcore") == (precision != "float32"))


class OurProducts(Products):
    """By minunet on a device, in each precision by each algorithm that takes the layer."""

    def __init__(self, layer: Layer, batch: int, device: str, precisions: Sequence[str], timer: Timer, budget: Budget,
                 means: Sequence[float] = ()):
        self._device, self._precisions = device, precisions
        super().__init__(layer, batch, timer, budget, means=means)

    def ways(self, weight: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[Way]:
        """Each product by each algorithm, on copies of these arrays."""
        weight, x, y = (to_device(array.copy(), self._device) for array in (weight, x, y))
        return [Way(self.result(product, "minunet", self._device, algorithm, precision, chosen=chosen),
                    partial(compute, product, A, x, y))
                for precision in self._precisions
                for algorithm, A, chosen in matrices_of(self.layer, self._device, precision, weight)
                for product in PRODUCTS]

    def to_host(self, computed: Any, result: Result) -> np.ndarray:
        """It has minunet's order."""
        return to_host(computed)


def matrices_of(layer: Layer, device: str, precision: str, weight: Any) -> Iterator[tuple[str, ConvMatrix, bool]]:
    """The matrix of a weight by each algorithm that takes the layer, and whether "auto" chooses that.

    Tensor cores copy 4 or 8 channels at a time; Winograd's is for 3x3 windows of stride 1.
    """
    auto = ConvMatrix(weight, layer.geometry, layer.size, precision=precision).algorithm
    for algorithm in algorithms(device, precision):
        try:
            yield algorithm, ConvMatrix(weight, layer.geometry, layer.size, algorithm, precision), algorithm == auto
        except ValueError:
            continue


def to_host(array: Any) -> np.ndarray:
    """As a NumPy array."""
    return np.asarray(to_device(array, "cpu"))


def compute(product: str, A: ConvMatrix, x: Any, y: Any) -> Any:
    """One of PRODUCTS."""
    return A @ x if product == "A x" else A.T @ y if product == "Aᵀ y" else A.weight_grad(x, y)
