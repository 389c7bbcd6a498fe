"""A tiny autograd: a `Tensor` remembers the op that made it, and `backward` walks from op to op by the chain rule.

Every op is a pair of array functions, y, cache = forward(*arrays) and gradients = backward(dy, cache); `lift` makes a
function of Tensors out of a pair. The nodes and the walk are in `graph`.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np

from minunet import parallel
from minunet.backend import array_module, as_float
from minunet.graph import Node, Origin, Output, walk
from minunet.ops import arithmetic

_recording: ContextVar[bool] = ContextVar("recording", default=True)
_kinks: ContextVar[list[Any] | None] = ContextVar("kinks", default=None)


class Tensor:
    """An array in a computation that can be differentiated.

    Args:
        data: float32 and float64 arrays are kept as they are (not copied); any other numbers become float32.
        requires_grad: whether `backward` shall fill `grad`, an array of the same shape.

    Arithmetic (+ − * / **) broadcasts as NumPy does; a number or array beside a Tensor takes its dtype, two Tensors
    must share theirs. Gradients of repeated backward calls add up in `grad`. Between a forward pass and its backward,
    do not write into `.data`, or into an array that was passed in: caches refer to it, and the gradient would be wrong.

    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> loss = (x * x).sum()
    >>> loss.backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)
    """

    __slots__ = ("data", "grad", "requires_grad", "_source", "__weakref__")
    __array_ufunc__ = None          # so that array + Tensor asks the Tensor

    def __init__(self, data: Any, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor: data is a Tensor already; pass its .data to start a new graph from its values")
        self.data = as_float(data)
        self.grad: np.ndarray | None = None
        self.requires_grad = requires_grad
        self._source: Output | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of data."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of data."""
        return self.data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes of data."""
        return self.data.ndim

    @property
    def origin(self) -> Origin:
        """Where gradients go that come to it: to the op that made it, to itself as a leaf, or nowhere."""
        return (self._source or self) if self.requires_grad else None

    def item(self) -> float:
        """The one number of a Tensor that holds one number."""
        return self.data.item()

    __float__ = item

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)          # NumPy's error for more than one number

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        origin = f", from {self._source.node.name}" if self._source else ""
        return f"Tensor({self.data!r}{origin or (', requires_grad=True' if self.requires_grad else '')})"

    def __add__(self, other: Any) -> Tensor:
        return _add(self, self._operand(other))

    def __mul__(self, other: Any) -> Tensor:
        return _multiply(self, self._operand(other))

    def __sub__(self, other: Any) -> Tensor:
        return _add(self, -self._operand(other))

    def __truediv__(self, other: Any) -> Tensor:
        return _divide(self, self._operand(other))

    def __rsub__(self, other: Any) -> Tensor:
        return _add(self._operand(other), -self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _divide(self._operand(other), self)

    def __neg__(self) -> Tensor:
        return self * -1

    def __pow__(self, exponent: float) -> Tensor:
        if not isinstance(exponent, numbers.Real):
            raise TypeError(f"a Tensor can be raised to a constant number only; got {type(exponent).__name__}")
        return _power(self, exponent=exponent)

    __radd__, __rmul__ = __add__, __mul__

    def sum(self, axis: arithmetic.Axis = None, keepdims: bool = False) -> Tensor:
        """Σ over the axes; over all of them by default."""
        return _sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: arithmetic.Axis = None, keepdims: bool = False) -> Tensor:
        """The mean over the axes; over all of them by default."""
        total = _sum(self, axis=axis, keepdims=keepdims)
        return total * (total.data.size / self.data.size)

    def reshape(self, shape: tuple[int, ...]) -> Tensor:
        """The same numbers in another shape."""
        return _reshape(self, shape=shape)

    def backward(self, gradient: Any = None) -> None:
        """Add to the `grad` of every leaf the gradient of <gradient, self>; gradient may be left out for one number.

        Frees each op's cache as soon as it has been passed, so a graph can be passed once: for two losses, add them.
        Raises ValueError for a gradient of another shape or a missing one, RuntimeError when this Tensor depends on no
        Tensor that requires a gradient, or when an earlier backward has freed a part of its graph.
        """
        if gradient is None:
            if self.data.size != 1:
                raise ValueError(f"backward: a Tensor of shape {self.shape} needs a gradient of that shape; only a "
                                 "single number, such as a loss, can do without")
            gradient = array_module(self.data).ones_like(self.data)
        dy = as_float(gradient, self.dtype, like=self.data)
        if dy.shape != self.shape:
            raise ValueError(f"backward: gradient must have the Tensor's shape {self.shape}; got {dy.shape}")
        if not self.requires_grad:
            raise RuntimeError("backward: this Tensor depends on no Tensor with requires_grad=True (or was computed "
                               "under no_grad)")
        walk([self.origin], [dy])

    def _operand(self, other: Any) -> Tensor:
        """The other operand; constants take this Tensor's dtype, numbers and lists its device too."""
        if not isinstance(other, Tensor):
            return Tensor(as_float(other, self.dtype, like=self.data))
        if other.dtype != self.dtype:
            raise TypeError(f"Tensors of {self.dtype} and {other.dtype} do not mix; convert one with .data.astype")
        return other


def lift(forward: Callable[..., Any], backward: Callable[..., Any], *, also: Callable[[Any], tuple] | None = None,
         kink: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """A function of Tensors from a pair of array functions.

    Args:
        forward: y, cache = forward(*arrays, **options). Positional arguments are differentiable inputs (or None),
            keyword arguments constants. y is an array, or a tuple of arrays: the op then returns as many Tensors.
        backward: gradients = backward(dy, cache), one for each positional argument. dy has the form of y: of a tuple
            it is a tuple, with None for each Tensor that no result depends on. If it takes `needs`, it gets a bool for
            each input and may return None where it is False. If it takes `later`, it may return later(function) for
            what function() would return and no other op needs: it is called when a thread has time, before the walk
            ends.
        also: further results from the cache, returned behind y as they are.
        kink: the discrete decisions in the cache (signs, winners) on which the slope depends; `gradcheck` compares
            them on both sides of a step. A tuple of arrays if there are several.

    >>> def square(x): return x * x, x
    >>> def square_backward(dy, x): return (2 * x * dy,)
    >>> x = Tensor([3.0], requires_grad=True)
    >>> lift(square, square_backward)(x).backward()
    >>> x.grad
    array([6.], dtype=float32)
    """
    wanted = inspect.signature(backward).parameters

    def op(*inputs: Any, **options: Any) -> Any:
        tensors = [i if i is None or isinstance(i, Tensor) else Tensor(i) for i in inputs]
        with parallel.sharing():
            result = forward(*(None if t is None else t.data for t in tensors), **options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"{forward.__name__}: a forward must return y and its cache; got a "
                             f"{type(result).__name__}")
        y, cache = result
        outs = [Tensor(a) for a in (y if isinstance(y, tuple) else (y,))]
        needs = tuple(t is not None and t.requires_grad for t in tensors)
        if _recording.get() and any(needs):
            more = {name: value for name, value in (("needs", needs), ("later", parallel.later)) if name in wanted}
            attach(outs, Node(forward.__name__, y, partial(backward, **more), cache,
                              [None if t is None else t.origin for t in tensors]))
        kinks = _kinks.get()
        if kink is not None and kinks is not None:
            decisions = kink(cache)
            kinks.extend(decisions if isinstance(decisions, tuple) else (decisions,))
        results = (*outs, *(also(cache) if also else ()))
        return results if isinstance(y, tuple) or also else outs[0]

    op.__name__, op.__doc__ = forward.__name__, forward.__doc__
    return op


def attach(results: Sequence[Tensor], node: Node) -> None:
    """Make the results an op's: gradients that reach them go on through its node."""
    for position, result in enumerate(results):
        result.requires_grad, result._source = True, Output(node, position)


@contextmanager
def recording(on: bool) -> Iterator[None]:
    """Within it (or a function that it decorates) ops keep what a backward needs, or nothing."""
    token = _recording.set(on)
    try:
        yield
    finally:
        _recording.reset(token)


def no_grad() -> AbstractContextManager[None]:
    """Within it (or a function that it decorates) ops keep nothing for a backward.

    >>> x = Tensor([1.0], requires_grad=True)
    >>> with no_grad():
    ...     (x * 2).requires_grad
    False
    """
    return recording(False)


def is_recording() -> bool:
    """Whether ops keep what a backward needs: not within `no_grad`."""
    return _recording.get()


@contextmanager
def record_kinks() -> Iterator[list[Any]]:
    """Within it, the discrete decisions (signs, winners) of every op that makes some are appended to the list."""
    kinks: list[Any] = []
    token = _kinks.set(kinks)
    try:
        yield kinks
    finally:
        _kinks.reset(token)


_add = lift(arithmetic.add, arithmetic.add_backward)
_multiply = lift(arithmetic.multiply, arithmetic.multiply_backward)
_divide = lift(arithmetic.divide, arithmetic.divide_backward)
_power = lift(arithmetic.power, arithmetic.power_backward)
_sum = lift(arithmetic.sum, arithmetic.sum_backward)
_reshape = lift(arithmetic.reshape, arithmetic.reshape_backward)
