"""A tiny autograd: a `Tensor` remembers the op that made it, and `backward` walks from op to op by the chain rule.

Every op is a pair of array functions, y, cache = forward(*arrays) and gradients = backward(dy, cache); `lift` makes a
function of Tensors out of a pair. The graph consists of `Node`s, one for each op that ran: its backward, its cache,
and the nodes (or leaf Tensors) that its inputs came from. A node does not hold its output, so an activation lives only
as long as some cache needs it; and nothing refers back, so memory returns by reference count.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from minunet.backend import array_module, as_float
from minunet.ops import arithmetic

_recording: ContextVar[bool] = ContextVar("recording", default=True)
_kinks: ContextVar[list[Any] | None] = ContextVar("kinks", default=None)


class Node:
    """One op that ran: how to pass a gradient on to its inputs."""

    __slots__ = ("name", "shape", "dtype", "backward", "cache", "parents")

    def __init__(self, name: str, y: np.ndarray, backward: Callable[..., Any], cache: Any,
                 parents: tuple[Node | Tensor | None, ...]):
        self.name, self.shape, self.dtype = name, y.shape, y.dtype
        self.backward: Callable[..., Any] | None = backward
        self.cache = cache
        self.parents = parents


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

    __slots__ = ("data", "grad", "requires_grad", "_node", "__weakref__")
    __array_ufunc__ = None          # so that array + Tensor asks the Tensor

    def __init__(self, data: Any, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor: data is a Tensor already; pass its .data to start a new graph from its values")
        self.data = as_float(data)
        self.grad: np.ndarray | None = None
        self.requires_grad = requires_grad
        self._node: Node | None = None

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
        tail = f", from {self._node.name}" if self._node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data!r}{tail})"

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
        Raises ValueError for a gradient of another shape or a
        missing one, RuntimeError when this Tensor depends on no Tensor that requires a gradient, or when an earlier
        backward has freed a part of its graph.
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
        if self._node is None:
            _accumulate(self, dy)
        else:
            _walk(self._node, dy)

    def _operand(self, other: Any) -> Tensor:
        """The other operand; constants take this Tensor's dtype, numbers and lists its device too."""
        if not isinstance(other, Tensor):
            return Tensor(as_float(other, self.dtype, like=self.data))
        if other.dtype != self.dtype:
            raise TypeError(f"Tensors of {self.dtype} and {other.dtype} do not mix; convert one with .data.astype")
        return other


def _walk(root: Node, dy: np.ndarray) -> None:
    """Pass dy through the graph: a node is passed when all that use its output have been (iterative: any depth)."""
    users = _count_users(root)
    gradients = {root: dy}
    del dy
    ready = [root]
    while ready:
        node = ready.pop()
        # NumPy makes scalars of arrays without axes; a backward is always given an array
        for parent, gradient in _pass(node, as_float(gradients.pop(node), node.dtype)):
            # not in place: an op may have returned one array for two inputs
            gradients[parent] = gradients[parent] + gradient if parent in gradients else gradient
            del gradient
            users[parent] -= 1
            if users[parent] == 0:
                ready.append(parent)


def _pass(node: Node, dy: np.ndarray) -> list[tuple[Node, np.ndarray]]:
    """Run one node's backward and free it; leaves get their gradient here, other parents' gradients are returned."""
    backward, cache, parents = node.backward, node.cache, node.parents
    node.backward, node.cache, node.parents = None, None, ()
    assert backward is not None
    gradients = backward(dy, cache)
    if not isinstance(gradients, (tuple, list)) or len(gradients) != len(parents):
        got = len(gradients) if isinstance(gradients, (tuple, list)) else f"a {type(gradients).__name__}"
        raise ValueError(f"backward of {node.name}: must return a tuple of {len(parents)} gradients, one for each "
                         f"input; got {got}")
    onward = []
    for position, (parent, gradient) in enumerate(zip(parents, gradients)):
        if parent is not None:
            _check_gradient(node.name, position, parent, gradient)
            if isinstance(parent, Tensor):
                _accumulate(parent, gradient)
            else:
                onward.append((parent, gradient))
    return onward


def _count_users(root: Node) -> dict[Node, int]:
    """For every node that root depends on, how many inputs of other such nodes it is."""
    users: dict[Node, int] = {root: 0}
    found = [root]
    while found:
        node = found.pop()
        if node.backward is None:
            raise RuntimeError(f"backward: an earlier backward has passed the op {node.name} and freed its cache; run "
                               "the forward pass again, or add the losses up and call backward once")
        for parent in node.parents:
            if isinstance(parent, Node):
                if parent not in users:
                    users[parent] = 0
                    found.append(parent)
                users[parent] += 1
    return users


def _check_gradient(name: str, position: int, parent: Node | Tensor, gradient: Any) -> None:
    shape, dtype = getattr(gradient, "shape", None), getattr(gradient, "dtype", None)
    if shape != parent.shape or dtype != parent.dtype:
        got = "None" if gradient is None else f"a {type(gradient).__name__}" if shape is None else f"{dtype} {shape}"
        raise ValueError(f"backward of {name}: the gradient of input {position} must be {parent.dtype} {parent.shape}, "
                         f"as the input; got {got}")


def _accumulate(leaf: Tensor, gradient: np.ndarray) -> None:
    # a copy: the array may also be another leaf's, and the owner of a .grad may change it in place
    xp = array_module(leaf.data)
    leaf.grad = xp.array(gradient) if leaf.grad is None else xp.asarray(leaf.grad + gradient)


def lift(forward: Callable[..., Any], backward: Callable[..., Any], *, also: Callable[[Any], tuple] | None = None,
         kink: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """A function of Tensors from a pair of array functions.

    Args:
        forward: y, cache = forward(*arrays, **options). Positional arguments are differentiable inputs (or None),
            keyword arguments constants.
        backward: gradients = backward(dy, cache), one for each positional argument. If it takes `needs`, it gets a
            bool for each and may return None where it is False.
        also: further results from the cache, returned behind y as they are.
        kink: the discrete decisions in the cache (signs, winners) on which the slope depends; `gradcheck` compares
            them on both sides of a step.

    >>> def square(x): return x * x, x
    >>> def square_backward(dy, x): return (2 * x * dy,)
    >>> x = Tensor([3.0], requires_grad=True)
    >>> lift(square, square_backward)(x).backward()
    >>> x.grad
    array([6.], dtype=float32)
    """
    selective = "needs" in inspect.signature(backward).parameters

    def op(*inputs: Any, **options: Any) -> Any:
        tensors = [i if i is None or isinstance(i, Tensor) else Tensor(i) for i in inputs]
        result = forward(*(None if t is None else t.data for t in tensors), **options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(f"{forward.__name__}: a forward must return y and its cache; got a "
                             f"{type(result).__name__}")
        y, cache = result
        out = Tensor(y)
        needs = tuple(t is not None and t.requires_grad for t in tensors)
        if _recording.get() and any(needs):
            parents = tuple(t._node or t if t is not None and t.requires_grad else None for t in tensors)
            passed = _with_needs(backward, needs) if selective else backward
            out.requires_grad, out._node = True, Node(forward.__name__, out.data, passed, cache, parents)
        kinks = _kinks.get()
        if kink is not None and kinks is not None:
            kinks.append(kink(cache))
        return out if also is None else (out, *also(cache))

    op.__name__, op.__doc__ = forward.__name__, forward.__doc__
    return op


def _with_needs(backward: Callable[..., Any], needs: tuple[bool, ...]) -> Callable[..., Any]:
    return lambda dy, cache: backward(dy, cache, needs)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within it (or a function that it decorates) ops keep nothing for a backward.

    >>> x = Tensor([1.0], requires_grad=True)
    >>> with no_grad():
    ...     (x * 2).requires_grad
    False
    """
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


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
