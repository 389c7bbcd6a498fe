"""Is a gradient right? `gradcheck` compares it with finite differences, along random directions or element by element.

For a random direction v and a random cotangent c, the derivative of <c, f(x)> along v is <gradient, v>; numerically it
is (<c, f(x + hv)> − <c, f(x − hv)>) / 2h, up to h² and the rounding of f divided by h. One direction tests all
elements of an input at once. A wrong one is then found by halving: the half of v with the larger discrepancy holds it.

Source: the directional check follows Maclaurin, Duvenaud, Adams (HIPS autograd) and Tokui et al. (Chainer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minunet.autograd import Tensor, no_grad, record_kinks
from minunet.backend import device_of, to_device

# not 0: inputs drawn from default_rng(0) would be drawn again as cotangent, and hide that of a normalisation
SEED = 1874
SHRINKS = 3         # how often a step that crosses a kink is made ten times smaller


class GradientError(AssertionError):
    """A gradient differs from the finite difference; the message says where and by how much.

    At `index` of the input at position `input` the gradient is `analytic`, the finite difference `numeric`; `near_kink`
    says whether the step crosses a kink there.
    """

    input: int
    index: tuple[int, ...]
    analytic: float
    numeric: float
    near_kink: bool


@dataclass(frozen=True)
class GradientReport:
    """What a successful check saw: comparisons made, and the worst error beyond what the rounding of f explains,
    relative to the gradient's norm (for elements, to its largest element).

    by_direction and by_element are the worst errors as measured (None where none was compared so), and rounding the
    largest part of an error that the rounding of f was allowed to explain, all relative in the same way.
    """

    comparisons: int
    worst_error: float
    tolerance: float
    by_direction: float | None = None
    by_element: float | None = None
    rounding: float = 0.0


@dataclass(frozen=True)
class Examination:
    """All that a check saw, right or wrong: the errors are one for each input whose gradient is wrong.

    analytic holds the gradient of every input, numeric its finite differences by element (NaN where none was taken).
    """

    report: GradientReport
    errors: list[GradientError]
    analytic: list[np.ndarray]
    numeric: list[np.ndarray]


def gradcheck(f: Callable[..., Tensor], inputs: Sequence[Any], *, directions: int = 3, elementwise: bool = False,
              step: float | None = None, tolerance: float | None = None,
              rng: np.random.Generator | None = None) -> GradientReport:
    """Check the backward of f at inputs against central differences; raise GradientError where they differ.

    Args:
        f: takes one Tensor for each input, returns a Tensor of any shape; must give the same result each time.
        inputs: arrays, all float64 (recommended) or all float32, all on one device: f is computed there.
        directions: random directions for each input.
        elementwise: also compare every single element of every input.
        step: h; by default the cube root of the dtype's epsilon (6e-6 for float64, 5e-3 for float32) times the
            input's root mean square, if that is above 1.
        tolerance: allowed error relative to the gradient's norm (for elements, to its largest element); by default
            1e-6 for float64, 1e-2 for float32. The rounding of f, divided by the step, is allowed on top.
        rng: draws cotangent and directions; by default a generator with a seed of its own.

    Returns a report with the worst relative error. Raises ValueError when f gives two results for one input, inputs
    are not of one floating-point dtype, or nothing would be compared; TypeError when inputs is no list or f's result
    no Tensor.

    Where f has kinks (the sign of a ReLU, the winner of a max), the step is made smaller until both sides lie on the
    same side of all of them; if that does not help, a failure says that a kink may be the cause.

    >>> from minunet import functional
    >>> report = gradcheck(functional.sigmoid, [np.linspace(-2, 2, 5)])
    >>> report.worst_error < 1e-8
    True
    """
    check = _prepare(f, inputs, directions, elementwise, step, tolerance, rng)
    for difference in check.differences(directions, elementwise):
        raise check.error(difference)
    return check.report()


def examine(f: Callable[..., Tensor], inputs: Sequence[Any], *, directions: int = 3, elementwise: bool = True,
            step: float | None = None, tolerance: float | None = None,
            rng: np.random.Generator | None = None) -> Examination:
    """Compare as `gradcheck` does, but to the end, and tell what was seen instead of raising GradientError."""
    check = _prepare(f, inputs, directions, elementwise, step, tolerance, rng)
    errors: dict[int, GradientError] = {}
    for difference in check.differences(directions, elementwise):
        if difference.input not in errors:
            errors[difference.input] = check.error(difference)
    return Examination(check.report(), list(errors.values()), check.gradients, check.numeric)


class _Difference(NamedTuple):
    """A comparison that failed: along a direction, or at one index."""

    input: int
    analytic: float
    numeric: float
    where: np.ndarray | tuple[int, ...]


def _prepare(f: Callable[..., Tensor], inputs: Sequence[Any], directions: int, elementwise: bool, step: float | None,
             tolerance: float | None, rng: np.random.Generator | None) -> _Check:
    """The border of gradcheck: its arguments looked at, f computed once."""
    if isinstance(inputs, (np.ndarray, Tensor)):
        raise TypeError("gradcheck: inputs must be a list of arrays; got a single one, write [array]")
    if directions < 1 and not elementwise:
        raise ValueError(f"gradcheck: directions must be at least 1, or elementwise True; got {directions}")
    given = [a.data if isinstance(a, Tensor) else a for a in inputs]
    given = [np.asarray(a) if isinstance(a, (list, tuple, int, float, np.generic)) else a for a in given]
    device = device_of(*given)
    arrays = [to_device(a, "cpu") for a in given]
    if len({a.dtype for a in arrays}) != 1 or arrays[0].dtype not in (np.float32, np.float64):
        raise ValueError("gradcheck: inputs must be arrays of one dtype, float64 (recommended) or float32; got "
                         + ", ".join(str(a.dtype) for a in arrays))
    return _Check(f, arrays, device, step, tolerance, np.random.default_rng(SEED) if rng is None else rng)


class _Check:
    """f at one point with one cotangent: its analytic gradients, and numeric derivatives along any direction.

    f is computed on the device; everything here is on the CPU.
    """

    def __init__(self, f: Callable[..., Tensor], arrays: list[np.ndarray], device: str, step: float | None,
                 tolerance: float | None, rng: np.random.Generator):
        self.f, self.arrays, self.device = f, arrays, device
        dtype = arrays[0].dtype
        self.epsilon = float(np.finfo(dtype).eps)
        self.step, self.rng = step, rng
        self.tolerance = tolerance if tolerance is not None else 1e-6 if dtype == np.float64 else 1e-2
        self.comparisons, self.worst, self.rounding = 0, 0.0, 0.0
        self.measured: dict[bool, float | None] = {False: None, True: None}     # worst by direction, by element
        self.numeric = [np.full(a.shape, np.nan) for a in arrays]

        tensors = [self._tensor(a, requires_grad=True) for a in arrays]
        y = f(*tensors)
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: f must return one Tensor; got {type(y).__name__}; of several results pick "
                            "one, as in lambda x: f(x)[0]")
        with no_grad():
            again = f(*map(self._tensor, arrays))
        value = to_device(y.data, "cpu")
        if not np.array_equal(value, to_device(again.data, "cpu"), equal_nan=True):
            raise ValueError("gradcheck: f gives two different results for the same input; if it draws random numbers "
                             "(dropout), make the generator inside f")
        self.cotangent = rng.standard_normal(y.shape).astype(dtype)
        if y.requires_grad:
            y.backward(to_device(self.cotangent, device))
        self.gradients = [np.zeros(a.shape) if t.grad is None else to_device(t.grad, "cpu").astype(np.float64)
                          for t, a in zip(tensors, arrays)]
        # what rounding alone may change in <c, f>: c has random signs, so the errors of f's elements add up as a norm
        self.noise = 10 * self.epsilon * float(np.linalg.norm(self.cotangent.astype(np.float64) * value))

    def differences(self, directions: int, elementwise: bool) -> Iterator[_Difference]:
        """Make all comparisons; those that fail come out."""
        for position, (x, gradient) in enumerate(zip(self.arrays, self.gradients)):
            norm, largest = float(np.linalg.norm(gradient)), float(np.abs(gradient).max(initial=0))
            for _ in range(directions):
                direction = self.rng.standard_normal(x.shape)
                analytic, numeric, h, _ = self._derivatives(position, direction)
                if not self._agree(analytic, numeric, h, norm, by_element=False):
                    yield _Difference(position, analytic, numeric, direction)
            for index in np.ndindex(x.shape) if elementwise else ():
                analytic, numeric, h, _ = self._derivatives(position, self._unit(position, index))
                self.numeric[position][index] = numeric
                if not self._agree(analytic, numeric, h, largest, by_element=True):
                    yield _Difference(position, analytic, numeric, index)

    def report(self) -> GradientReport:
        """What the comparisons so far have shown."""
        return GradientReport(self.comparisons, self.worst, self.tolerance, self.measured[False], self.measured[True],
                              self.rounding)

    def _agree(self, analytic: float, numeric: float, h: float, scale: float, by_element: bool) -> bool:
        scale = max(scale, abs(numeric))
        scale = scale if scale > 0 else 1.0         # also for NaN
        measured, rounding = abs(analytic - numeric) / scale, self.noise / h / scale
        relative = float(np.maximum(measured - rounding, 0.0))      # unlike max, carries a NaN on
        self.comparisons += 1
        self.rounding = max(self.rounding, rounding)
        self.worst = max(self.worst, relative)
        self.measured[by_element] = float(np.maximum(measured, self.measured[by_element] or 0.0))
        return relative <= self.tolerance           # False for NaN

    def _derivatives(self, position: int, direction: np.ndarray) -> tuple[float, float, float, bool]:
        """(analytic, numeric, step, whether the step crosses a kink) along a direction of one input."""
        x = self.arrays[position]
        h = self.step
        if h is None:
            h = self.epsilon ** (1 / 3) * max(1.0, float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))))
        for _ in range(SHRINKS + 1):
            above, kinks_above = self._value(position, x + h * direction)
            below, kinks_below = self._value(position, x - h * direction)
            crossed = any(bool((a != b).any()) for a, b in zip(kinks_above, kinks_below))
            if not crossed:
                break
            h /= 10
        else:
            h *= 10
        moved = direction != 0                      # elsewhere, a NaN of the gradient does not count
        analytic = float(np.vdot(self.gradients[position][moved], direction[moved]))
        return analytic, (above - below) / (2 * h), h, crossed

    def _value(self, position: int, x: np.ndarray) -> tuple[float, list[Any]]:
        """<c, f> with one input replaced, and the decisions that f's ops made."""
        arrays = list(self.arrays)
        arrays[position] = np.asarray(x, self.arrays[position].dtype)
        with no_grad(), record_kinks() as kinks:
            y = to_device(self.f(*map(self._tensor, arrays)).data, "cpu")
        return float((self.cotangent.astype(np.float64) * y).sum()), kinks

    def _tensor(self, array: np.ndarray, requires_grad: bool = False) -> Tensor:
        """A copy on the device."""
        return Tensor(to_device(array.copy(), self.device), requires_grad)

    def _culprit(self, position: int, direction: np.ndarray) -> tuple[int, ...]:
        """The element found by following, half by half, the part of the direction with the larger discrepancy."""
        candidates = np.arange(direction.size)
        while len(candidates) > 1:
            halves = np.array_split(candidates, 2)
            gaps = []
            for half in halves:
                part = np.zeros(direction.size)
                part[half] = direction.ravel()[half]
                analytic, numeric, *_ = self._derivatives(position, part.reshape(direction.shape))
                gaps.append(abs(analytic - numeric))
            candidates = halves[int(np.argmax(gaps))]
        return tuple(int(i) for i in np.unravel_index(candidates[0], direction.shape)) if direction.size else ()

    def error(self, difference: _Difference) -> GradientError:
        """The error that tells of a difference; along a direction, look for the element that makes it."""
        position, analytic, numeric, where = difference
        index = self._culprit(position, where) if isinstance(where, np.ndarray) else where
        at, at_numeric, _, crossed = self._derivatives(position, self._unit(position, index))
        cause = ("The step crosses a kink there (the sign of a ReLU or the winner of a max differs between x + h and "
                 "x − h), which may be the cause" if crossed else "No kink lies within the step")
        error = GradientError(
            f"gradcheck: the gradient of input {position} {self.arrays[position].shape} is wrong. At index {index} it "
            f"is {at:.9g} (analytic), the finite difference {at_numeric:.9g} (numeric). The comparison that failed: "
            f"{analytic:.9g} analytic, {numeric:.9g} numeric, tolerance {self.tolerance:g}. {cause}."
        )
        error.input, error.index, error.analytic, error.numeric = position, index, at, at_numeric
        error.near_kink = crossed
        return error

    def _unit(self, position: int, index: tuple[int, ...]) -> np.ndarray:
        unit = np.zeros(self.arrays[position].shape)
        unit[index] = 1
        return unit
