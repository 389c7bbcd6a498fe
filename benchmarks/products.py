"""The three products of each of a U-Net's convolutions: verified against float64, then timed.

The elements verified are computed from the definition by NumPy. Work is counted in one way for every algorithm: a
product of A (OH·OW·F, H·W·C) with N images takes

    2 · N · OH · OW · KH · KW · C · F  FLOP   (windows that reach into the padding count in full)

and moves x (N, H, W, C), y (N, OH, OW, F) and the weight (KH, KW, C, F) once each, two of them read and the third
written, whichever of the three products it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minunet.backend import to_device
from minunet.convolution import ConvMatrix
from minunet.convolution.matrix import ALGORITHMS
from minunet.errors import UserError
from minunet.geometry import Geometry, Pair

from .harness import Ceilings, Timer, Timing, first_call, measure, rotations

PRODUCTS = ("A x", "Aᵀ y", "dw")
CHANNELS, CLASSES = 3, 2            # of the net's images and logits
# ‖result − float64‖ / ‖float64‖ that is still rounding. TF32 keeps 11 significant bits of each operand, BF16 8: about
# 3e-4 and 2e-3. So float32 products that a library silently rounds to TF32 are found.
TOLERANCE = {"float32": 1e-4, "tf32": 2e-3, "bf16": 2e-2}
SAMPLES = 32                        # pixels whose every channel is verified; all of them where there are few


# ---- what is measured

@dataclass(frozen=True)
class Layer:
    """A convolution matrix of the net, and the places where it occurs. An up-convolution's is that of its transpose."""

    names: tuple[str, ...]
    channels: int
    filters: int
    geometry: Geometry
    size: Pair                      # (H, W) of x, px

    @property
    def out_size(self) -> Pair:
        """(OH, OW) of y, px."""
        return self.geometry.output_size(self.size)

    @property
    def is_up(self) -> bool:
        """Whether it is an up-convolution: its forward pass is Aᵀ y."""
        return self.geometry.stride != (1, 1)

    def shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Of the weight, x and y."""
        return ((*self.geometry.kernel, self.channels, self.filters), (batch, *self.size, self.channels),
                (batch, *self.out_size, self.filters))

    def flop(self, batch: int) -> int:
        """Of one product."""
        return 2 * batch * int(np.prod((*self.out_size, *self.geometry.kernel, self.channels, self.filters)))

    def nbytes(self, batch: int, itemsize: int = 4) -> int:
        """That one product moves at the least."""
        return itemsize * sum(int(np.prod(shape)) for shape in self.shapes(batch))

    def __str__(self) -> str:
        (kh, kw), (h, w) = self.geometry.kernel, self.size
        if self.is_up:
            return f"up {self.filters} -> {self.channels}, {kh}x{kw}, to {h}x{w} px"
        return f"{self.channels} -> {self.filters}, {kh}x{kw}, {h}x{w} px"


def unet_layers(size: Pair, base: int, depth: int = 4) -> list[Layer]:
    """The different convolutions of a U-Net in the order of their first places, for images of this size in px."""
    if size[0] % 2**depth or size[1] % 2**depth:
        raise UserError(f"--size: height and width must be multiples of {2**depth}, because the net halves them "
                        f"{depth} times; got {size[0]}x{size[1]}")
    places: dict[tuple[Any, ...], list[str]] = {}

    def add(name: str, channels: int, filters: int, geometry: Geometry, level: int) -> None:
        level_size = size[0] >> level, size[1] >> level
        places.setdefault((channels, filters, geometry, level_size), []).append(name)

    widths = [base * 2**level for level in range(depth + 1)]
    three, two, one = Geometry(3, padding=1), Geometry(2, stride=2), Geometry(1)
    for level, width in enumerate(widths):
        above, prefix = (widths[level - 1], f"down.{level - 1}.convs") if level else (CHANNELS, "first")
        add(f"{prefix}.conv1", above, width, three, level)
        add(f"{prefix}.conv2", width, width, three, level)
    for place, level in enumerate(reversed(range(depth))):
        add(f"up.{place}.up", widths[level], widths[level + 1], two, level)
        add(f"up.{place}.convs.conv1", 2 * widths[level], widths[level], three, level)
        add(f"up.{place}.convs.conv2", widths[level], widths[level], three, level)
    add("head", base, CLASSES, one, 0)
    return [Layer(tuple(names), *key) for key, names in places.items()]


class Budget(NamedTuple):
    """How long and how often at least to repeat each measurement, on how many sets of inputs at most."""

    seconds: float = 0.3
    least: int = 5
    sets: int = 256

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

    @property
    def correct(self) -> bool:
        """Whether it was verified; NaN is not."""
        return self.error <= self.tolerance

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
                                                        "nbytes", "error", "tolerance", "correct")}
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

    def error(self, result: np.ndarray) -> float:
        """‖result − truth‖ / ‖truth‖ over these elements; NaN if any number of the whole result is not finite."""
        if not np.isfinite(result).all():
            return float("nan")
        difference = np.linalg.norm(result[self.where] - self.values)
        return float(difference / max(np.linalg.norm(self.values), np.finfo(np.float64).tiny))


def truth(layer: Layer, product: str, weight: np.ndarray, x: np.ndarray, y: np.ndarray,
          rng: np.random.Generator) -> Truth:
    """Some of a product's elements from its definition,

        y[n, oh, ow, f] = Σ weight[kh, kw, c, f] · x[n, oh·SH − PH + kh·DH, ow·SW − PW + kw·DW, c],

    read as a sum over the window (A x), over the windows that hold a pixel (Aᵀ y), or over all pixels (dw).
    """
    g = layer.geometry
    stride, padding, dilation = np.array(g.stride), np.array(g.padding), np.array(g.dilation)
    if product == "dw":
        kh, kw, c = _sampled(weight.shape[:3], 8, rng)
        (f,) = _sampled(weight.shape[3:], 8, rng)
        values = np.zeros((len(c), len(f)))
        for image in range(len(x)):
            for i, (tap, channel) in enumerate(zip(np.stack([kh, kw], 1), c)):
                rows, columns = (_windows_inside(*axis) for axis in zip(
                    layer.out_size, g.stride, g.padding, tap * dilation, layer.size))
                at_x = np.ix_(rows * g.stride[0] - g.padding[0] + tap[0] * g.dilation[0],
                              columns * g.stride[1] - g.padding[1] + tap[1] * g.dilation[1])
                values[i] += np.tensordot(x[image, ..., channel][at_x].astype(np.float64),
                                          y[image][np.ix_(rows, columns, f)].astype(np.float64), 2)
        return Truth((kh[:, None], kw[:, None], c[:, None], f), values)
    source, target, matrix = (x, y, weight) if product == "A x" else (y, x, weight.swapaxes(2, 3))
    n, h, w = _sampled(target.shape[:3], SAMPLES, rng)
    values = np.zeros((len(n), target.shape[3]))
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
    return Truth((n, h, w), values)


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


def images(layer: Layer, batch: int) -> tuple[Any, Any, Any, np.random.Generator]:
    """weight, x and y of random numbers, the same in every process, and the generator that drew them."""
    rng = np.random.default_rng([layer.channels, layer.filters, *layer.geometry.kernel, *layer.size, batch])
    weight, x, y = (rng.standard_normal(shape, np.float32) for shape in layer.shapes(batch))
    return weight, x, y, rng


# ---- the three products

def algorithms(device: str, precision: str) -> tuple[str, ...]:
    """Those of ConvMatrix on this device that compute in this precision, in the order of the ladder."""
    every = ALGORITHMS["cpu" if device == "cpu" else "gpu"][1:]             # without "auto"
    return tuple(a for a in every if (a == "tensorcore") == (precision != "float32"))


def bench_layer(layer: Layer, batch: int, device: str, precisions: Sequence[str], timer: Timer, budget: Budget
                ) -> Iterator[Result]:
    """Each product by each algorithm that takes this layer."""
    weight, x, y, rng = images(layer, batch)
    truths = {product: truth(layer, product, weight, x, y, rng) for product in PRODUCTS}
    sets = [tuple(to_device(array.copy(), device) for array in (weight, x, y))
            for _ in range(budget.sets_of(layer.nbytes(batch), timer))]
    for precision in precisions:
        for algorithm, matrices in matrices_of(layer, device, precision, [w for w, _, _ in sets]):
            for product in PRODUCTS:
                runs = [partial(compute, product, A, x, y) for A, (_, x, y) in zip(matrices, sets)]
                result = Result(product, "minunet", device, algorithm, precision, layer.flop(batch),
                                layer.nbytes(batch), float("nan"), TOLERANCE[precision], 0.0)
                yield verified(result, runs, to_host, truths[product], timer, budget)


def matrices_of(layer: Layer, device: str, precision: str, weights: Sequence[Any]
                ) -> Iterator[tuple[str, list[ConvMatrix]]]:
    """The matrices of these weights by each algorithm that takes the layer; tensor cores copy 4 channels at a time."""
    for algorithm in algorithms(device, precision):
        try:
            yield algorithm, [ConvMatrix(w, layer.geometry, layer.size, algorithm, precision) for w in weights]
        except ValueError:
            continue


def to_host(array: Any) -> np.ndarray:
    """As a NumPy array."""
    return np.asarray(to_device(array, "cpu"))


def compute(product: str, A: ConvMatrix, x: Any, y: Any) -> Any:
    """One of PRODUCTS."""
    return A @ x if product == "A x" else A.T @ y if product == "Aᵀ y" else A.weight_grad(x, y)


def verified(result: Result, runs: Sequence[Callable[[], Any]], to_host: Callable[[Any], np.ndarray], expected: Truth,
             timer: Timer, budget: Budget) -> Result:
    """The result with its error, and with its times if that is small."""
    computed, first = first_call(runs[0], timer)
    result = replace(result, error=expected.error(to_host(computed)), first=first)
    del computed
    return replace(result, timing=budget.time(runs, timer)) if result.correct else result
