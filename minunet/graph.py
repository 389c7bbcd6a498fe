"""The graph of a computation, and the walk through it by the chain rule.

It consists of `Node`s, one for each op that ran: its backward, its cache, and where its inputs came from, results of
other nodes or leaves, which keep their gradients. A node does not hold its results, so an activation lives only as long
as some cache needs it; and nothing refers back, so memory returns by reference count.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from minunet import memory, parallel
from minunet.backend import array_module, as_float

PROMISED = 2        # gradients of leaves that are not taken yet, at most: each keeps arrays that its op had


class Leaf(Protocol):
    """What keeps a gradient: a Tensor that no op made."""

    data: np.ndarray
    grad: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of data."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of data."""


class Node:
    """One op that ran: how to pass gradients of its results y on to its inputs, which came from its parents.

    lean: before it is passed, all promises are taken, and what they need is gone from memory.
    """

    __slots__ = ("name", "several", "outputs", "backward", "cache", "parents", "lean")

    def __init__(self, name: str, y: Any, backward: Callable[..., Any], cache: Any, parents: Sequence[Origin],
                 lean: bool = False):
        self.name, self.several, self.lean = name, isinstance(y, tuple), lean
        self.outputs = [(a.shape, a.dtype) for a in (y if self.several else (y,))]
        self.backward: Callable[..., Any] | None = backward
        self.cache = cache
        self.parents: tuple[Origin, ...] = tuple(parents)


class Output(NamedTuple):
    """One result of a node: what a Tensor that is no leaf came from."""

    node: Node
    position: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self.node.outputs[self.position][0]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the result."""
        return self.node.outputs[self.position][1]


Origin = Output | Leaf | None       # of a Tensor: where gradients go that come to it; None: it requires no gradient


class Arrival(NamedTuple):
    """A gradient that has come to a leaf: of which op, at which of its inputs, and a list that alone refers to it."""

    op: str
    position: int
    leaf: Leaf
    gradient: list[Any]

    @property
    def promised(self) -> bool:
        """Whether it may still have to be made."""
        return isinstance(self.gradient[0], parallel.Promise)

    def settle(self) -> None:
        """Check it and add it to the leaf's."""
        if self.promised:
            self.gradient[0] = self.gradient[0].take()
        _check_gradient(self.op, self.position, self.leaf, self.gradient[0])
        _accumulate(self.leaf, self.gradient)


def walk(origins: Sequence[Origin], dys: Sequence[np.ndarray | None], lean: bool = False) -> None:
    """Pass gradients on from these origins: a node when all that use its outputs have been (any depth).

    A gradient may be a promise of one (`parallel.later`), taken before the next node if lean. Each leaf gets its own in
    the order of the walk.
    """
    gradients: dict[Node, list[np.ndarray | None]] = {}
    for origin, dy in zip(origins, dys):
        if dy is not None and isinstance(origin, Output):
            _add_to(gradients, origin, dy)
    users = _count_users(list(gradients))
    for origin, dy in zip(origins, dys):
        if dy is not None and origin is not None and not isinstance(origin, Output):
            _accumulate(origin, [dy])
    del dys, dy
    ready = [node for node in gradients if users[node] == 0]
    arrivals: deque[Arrival] = deque()
    with parallel.overlap():
        while ready:
            node = ready.pop()
            if node.lean:
                _settle(arrivals)
            for parent, gradient in _pass(node, gradients.pop(node), arrivals):
                _add_to(gradients, parent, gradient)
                del gradient
                users[parent.node] -= 1
                if users[parent.node] == 0:
                    ready.append(parent.node)
            _settle(arrivals, 0 if lean else PROMISED)
        _settle(arrivals)


def _arrive(arrival: Arrival, arrivals: deque[Arrival]) -> None:
    """Settle it, or let it wait: for it to be made, or for one before it that has come to the same leaf."""
    if arrival.promised or any(other.leaf is arrival.leaf for other in arrivals):
        arrivals.append(arrival)
    else:
        arrival.settle()


def _settle(arrivals: deque[Arrival], most: int = 0) -> None:
    """Settle the first ones, until at most so many promises are left and one of them is the first."""
    while arrivals and (not arrivals[0].promised or sum(arrival.promised for arrival in arrivals) > most):
        arrivals.popleft().settle()


def _add_to(gradients: dict[Node, list[np.ndarray | None]], output: Output, gradient: np.ndarray) -> None:
    parts = gradients.setdefault(output.node, [None] * len(output.node.outputs))
    before = parts[output.position]
    # not in place: an op may have returned one array for two inputs
    parts[output.position] = gradient if before is None else before + gradient


def _pass(node: Node, dys: list[np.ndarray | None], arrivals: deque[Arrival]) -> list[tuple[Output, np.ndarray]]:
    """Run one node's backward and free it; leaves' gradients are put among the arrivals, the others returned."""
    backward, cache, parents = node.backward, node.cache, node.parents
    node.backward, node.cache, node.parents = None, None, ()
    assert backward is not None
    # NumPy makes scalars of arrays without axes; a backward is always given an array
    arrays = tuple(None if dy is None else as_float(dy, dtype) for dy, (_, dtype) in zip(dys, node.outputs))
    del dys[:]
    gradients = backward(arrays if node.several else arrays[0], cache)
    del arrays
    if not isinstance(gradients, (tuple, list)) or len(gradients) != len(parents):
        got = len(gradients) if isinstance(gradients, (tuple, list)) else f"a {type(gradients).__name__}"
        raise ValueError(f"backward of {node.name}: must return a tuple of {len(parents)} gradients, one for each "
                         f"input; got {got}")
    gradients = list(gradients)         # the only place that refers to an array that the backward has made
    onward = []
    for position, parent in enumerate(parents):
        gradient, gradients[position] = [gradients[position]], None
        if isinstance(parent, Output):
            array = gradient[0].take() if isinstance(gradient[0], parallel.Promise) else gradient[0]
            _check_gradient(node.name, position, parent, array)
            onward.append((parent, array))
        elif parent is not None:
            _arrive(Arrival(node.name, position, parent, gradient), arrivals)
    return onward


def _count_users(roots: list[Node]) -> dict[Node, int]:
    """For every node that the roots depend on, and them, how many inputs of other such nodes it is."""
    users = dict.fromkeys(roots, 0)
    found = list(roots)
    while found:
        node = found.pop()
        if node.backward is None:
            raise RuntimeError(f"backward: an earlier backward has passed the op {node.name} and freed its cache; run "
                               "the forward pass again, or add the losses up and call backward once")
        for parent in node.parents:
            if isinstance(parent, Output):
                if parent.node not in users:
                    users[parent.node] = 0
                    found.append(parent.node)
                users[parent.node] += 1
    return users


def _check_gradient(name: str, position: int, parent: Output | Leaf, gradient: Any) -> None:
    shape, dtype = getattr(gradient, "shape", None), getattr(gradient, "dtype", None)
    if shape != parent.shape or dtype != parent.dtype:
        got = "None" if gradient is None else f"a {type(gradient).__name__}" if shape is None else f"{dtype} {shape}"
        raise ValueError(f"backward of {name}: the gradient of input {position} must be {parent.dtype} {parent.shape}, "
                         f"as the input; got {got}")


def _accumulate(leaf: Leaf, gradient: list[np.ndarray]) -> None:
    """Add the list's one gradient to the leaf's, which shares no memory: its owner may change it in place.

    A backward may return dy, an array of its cache, or one array for two inputs: such a gradient is copied. It becomes
    the leaf's as it stands only if it is no view and nothing but the list refers to it; views of it would, too.
    """
    on_cpu = type(gradient[0]) is np.ndarray
    if leaf.grad is not None and on_cpu:
        leaf.grad = np.add(leaf.grad, gradient[0], out=memory.empty(leaf.shape, leaf.dtype))
    elif leaf.grad is not None:
        leaf.grad = array_module(leaf.data).asarray(leaf.grad + gradient[0])
    elif (sys.getrefcount(gradient[0]) == 2         # the list, and the argument of this very call
          and memory.is_whole(gradient[0]) and getattr(gradient[0].flags, "writeable", True)):      # CuPy's have none
        leaf.grad = gradient[0]
    elif on_cpu:
        leaf.grad = memory.empty(leaf.shape, leaf.dtype)
        leaf.grad[...] = gradient[0]
    else:
        leaf.grad = array_module(leaf.data).array(gradient[0])
