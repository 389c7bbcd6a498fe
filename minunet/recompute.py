"""Recomputation instead of storage: a part of the graph is dropped, and made again when backward comes to it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import numpy as np

from minunet.autograd import Tensor, attach, recording
from minunet.backend import array_module
from minunet.graph import Node, walk

_once: ContextVar[Callable[[Callable[[], Any]], Any]] = ContextVar("once", default=lambda f: f())


def recompute(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """function(*inputs), of which only the inputs are kept: backward computes the rest again when it comes to it.

    function returns a Tensor or a tuple of Tensors. It is called a second time, with the same values, so what it
    changes or draws has to go through `once`. Parameters that it uses get their gradients as always; Tensors that are
    no leaves must be among the inputs. The gradients are the same, bit for bit.

    Source: Chen, Xu, Zhang, Guestrin, Training deep nets with sublinear memory cost (2016).

    >>> x = Tensor([3.0], requires_grad=True)
    >>> recompute(lambda x: x * x * x, x).backward()
    >>> x.grad
    array([27.], dtype=float32)
    """
    name, before, first = getattr(function, "__name__", type(function).__name__), _once.get(), []

    def record(f: Callable[[], Any]) -> Any:
        first.append(before(f))
        return first[-1]

    def call(once: Callable[..., Any]) -> tuple[list[Tensor], Any]:
        """function's results on leaves of its own, which cut its graph off from the rest."""
        leaves = [Tensor(array, requires_grad) for array, requires_grad in given]
        token = _once.set(once)
        try:
            return leaves, function(*leaves)
        finally:
            _once.reset(token)

    def backward(dys: tuple[np.ndarray | None, ...], _: None) -> list[np.ndarray | None]:
        replay = iter(first)
        with recording(True):
            leaves, results = call(lambda f: next(replay))
        walk([result.origin for result in (results if several else (results,))], dys, lean=True)
        return [_gradient(leaf) for leaf in leaves]

    given = [(t.data, t.requires_grad) for t in inputs]
    results = call(record)[1]
    several = isinstance(results, tuple)
    results = results if several else (results,)
    outs = tuple(Tensor(result.data) for result in results)
    if any(result.requires_grad for result in results):
        attach(outs, Node(name, tuple(out.data for out in outs), backward, None,
                          [t.origin for t in inputs], lean=True))
    return outs if several else outs[0]


def _gradient(leaf: Tensor) -> np.ndarray | None:
    """What backward has left in a leaf that is an op's input; zeros if nothing came."""
    if leaf.grad is None and leaf.requires_grad:
        return array_module(leaf.data).zeros_like(leaf.data)
    return leaf.grad


def once(f: Callable[[], Any]) -> Any:
    """f(); but where `recompute` computes something a second time, what f returned the first time.

    For what may happen once only: a random number drawn, running statistics updated.
    """
    return _once.get()(f)
