"""Is a gradient right? `gradcheck` compares it with finite differences, along random directions or element by element.

For a random direction v and a random cotangent c, the derivative of <c, f(x)> along v is <gradient, v>; numerically it
is (<c, f(x + hv)> − <c, f(x − hv)>) / 2h, up to h² and the rounding of f divided by h. One direction tests all
elements of an input at once. A wrong one is then found by halving: the half of v with the larger discrepancy holds it.

Source: the directional check follows Maclaurin, Duvenaud, Adams (HIPS autograd) and Tokui et al. (Chainer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minunet.autograd import Tensor, no_grad, record_kinks

SHRINKS = 3         # how often a step that crosses a kink is made ten times smaller


class GradientError(AssertionError):
    """A gradient differs from the finite difference; the message says where and by how much."""


@dataclass(frozen=True)
class GradientReport:
    """What a successful check saw: comparisons made, and the worst error beyond what the rounding of f explains,
    relative to the gradient's norm (for elements, to its largest element)."""

    comparisons: int
    worst_error: float
    tolerance: float


def gradcheck(f: Callable[..., Tensor], inputs: Sequence[Any], *, directions: int = 3, elementwise: bool = False,
              step: float | None = None, tolerance: float | None = None,
              rng: np.random.Generator | None = None) -> GradientReport:
    """Check the backward of f at inputs against central differences; raise GradientError where they differ.

    Args:
        f: takes one Tensor for each input, returns a Tensor of any shape; must give the same result each time.
        inputs: arrays, all float64 (recommended) or all float32.
        directions: random directions for each input.
        elementwise: also compare every single element of every input.
        step: h; by default the cube root of the dtype's epsilon (6e-6 for float64, 5e-3 for float32) times the
            input's root mean square, if that is above 1.
        tolerance: allowed error relative to the gradient's norm (for elements, to its largest element); by default
            1e-6 for float64, 1e-2 for float32. The rounding of f, divided by the step, is allowed on top.
        rng: draws cotangent and directions; by default a generator with the seed 0.

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
    if isinstance(inputs, (np.ndarray, Tensor)):
        raise TypeError("gradcheck: inputs must be a list of arrays; got a single one, write [array]")
    if directions < 1 and not elementwise:
        raise ValueError(f"gradcheck: directions must be at least 1, or elementwise True; got {directions}")
    arrays = [np.asarray(a.data if isinstance(a, Tensor) else a) for a in inputs]
    if len({a.dtype for a in arrays}) != 1 or arrays[0].dtype not in (np.float32, np.float64):
        raise ValueError("gradcheck: inputs must be arrays of one dtype, float64 (recommended) or float32; got "
                         + ", ".join(str(a.dtype) for a in arrays))
    rng = np.random.default_rng(0) if rng is None else rng
    check = _Check(f, arrays, step, tolerance, rng)
    for position in range(len(arrays)):
        for _ in range(directions):
            check.along(position, rng.standard_normal(arrays[position].shape))
        if elementwise:
            for index in np.ndindex(arrays[position].shape):
                check.element(position, index)
    return GradientReport(check.comparisons, check.worst, check.tolerance)


class _Check:
    """f at one point with one cotangent: its analytic gradients, and numeric derivatives along any direction."""

    def __init__(self, f: Callable[..., Tensor], arrays: list[np.ndarray], step: float | None,
                 tolerance: float | None, rng: np.random.Generator):
        self.f, self.arrays = f, arrays
        dtype = arrays[0].dtype
        self.epsilon = float(np.finfo(dtype).eps)
        self.step = step
        self.tolerance = tolerance if tolerance is not None else 1e-6 if dtype == np.float64 else 1e-2
        self.comparisons, self.worst = 0, 0.0

        tensors = [Tensor(a.copy(), requires_grad=True) for a in arrays]
        y = f(*tensors)
        if not isinstance(y, Tensor):
            raise TypeError(f"gradcheck: f must return one Tensor; got {type(y).__name__}; of several results pick "
                            "one, as in lambda x: f(x)[0]")
        with no_grad():
            again = f(*(Tensor(a.copy()) for a in arrays))
        if not np.array_equal(y.data, again.data, equal_nan=True):
            raise ValueError("gradcheck: f gives two different results for the same input; if it draws random numbers "
                             "(dropout), make the generator inside f")
        self.cotangent = rng.standard_normal(y.shape).astype(dtype)
        if y.requires_grad:
            y.backward(self.cotangent)
        self.gradients = [np.zeros(a.shape) if t.grad is None else t.grad.astype(np.float64)
                          for t, a in zip(tensors, arrays)]
        # what rounding alone may change in <c, f>: c has random signs, so the errors of f's elements add up as a norm
        self.noise = 10 * self.epsilon * float(np.linalg.norm(self.cotangent.astype(np.float64) * y.data))

    def along(self, position: int, direction: np.ndarray) -> None:
        """Compare along a direction; on a difference, look for the element that makes it."""
        gradient = self.gradients[position]
        analytic, numeric, h, _ = self._derivatives(position, direction)
        if not self._agree(analytic, numeric, h, float(np.linalg.norm(gradient))):
            self._fail(position, self._culprit(position, direction), analytic, numeric)

    def element(self, position: int, index: tuple[int, ...]) -> None:
        """Compare the derivative with respect to one element."""
        analytic, numeric, h, _ = self._derivatives(position, self._unit(position, index))
        if not self._agree(analytic, numeric, h, float(np.abs(self.gradients[position]).max(initial=0))):
            self._fail(position, index, analytic, numeric)

    def _agree(self, analytic: float, numeric: float, h: float, scale: float) -> bool:
        scale = max(scale, abs(numeric))
        error = float(np.maximum(abs(analytic - numeric) - self.noise / h, 0.0))     # unlike max, carries a NaN on
        relative = error / scale if scale > 0 else error
        self.comparisons += 1
        self.worst = max(self.worst, relative)
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
            crossed = any(not np.array_equal(a, b) for a, b in zip(kinks_above, kinks_below))
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
        arrays[position] = x.astype(self.arrays[position].dtype)
        with no_grad(), record_kinks() as kinks:
            y = self.f(*(Tensor(a) for a in arrays)).data
        return float((self.cotangent.astype(np.float64) * y).sum()), kinks

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

    def _fail(self, position: int, index: tuple[int, ...], analytic: float, numeric: float) -> None:
        at, at_numeric, _, crossed = self._derivatives(position, self._unit(position, index))
        cause = ("The step crosses a kink there (the sign of a ReLU or the winner of a max differs between x + h and "
                 "x − h), which may be the cause" if crossed else "No kink lies within the step")
        raise GradientError(
            f"gradcheck: the gradient of input {position} {self.arrays[position].shape} is wrong. At index {index} it "
            f"is {at:.9g} (analytic), the finite difference {at_numeric:.9g} (numeric). The comparison that failed: "
            f"{analytic:.9g} analytic, {numeric:.9g} numeric, tolerance {self.tolerance:g}. {cause}."
        )

    def _unit(self, position: int, index: tuple[int, ...]) -> np.ndarray:
        unit = np.zeros(self.arrays[position].shape)
        unit[index] = 1
        return unit
