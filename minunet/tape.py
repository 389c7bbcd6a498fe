"""What is done on the simulated GPU, written down so that it can be done again: its stand-in for a CUDA graph.

A recording runs in one thread at a time (`recording`). On the simulated GPU every launch and every operation of the
array library is done by `done`, which keeps it on the tape; doing all of them again, in order and on the same arrays,
is what a GPU does when a graph is launched. A real GPU keeps its own tape and uses of this only the flag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")


class Tape:
    """What was done, in order."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[], Any], Any]] = []

    def add(self, call: Callable[[], Any], result: Any) -> None:
        """What was called, and what it returned."""
        self._calls.append((call, result))

    def play(self) -> None:
        """Do it all again; the arrays that were made get the new values."""
        for call, result in self._calls:
            for array, again in zip(_arrays(result), _arrays(call()), strict=True):
                if not np.may_share_memory(array, again):       # a view, or written in place
                    array[...] = again


_tape: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def recording() -> Iterator[Tape]:
    """Within it, a recording runs, and what is `done` is put on the tape."""
    tape = Tape()
    token = _tape.set(tape)
    try:
        yield tape
    finally:
        _tape.reset(token)


def is_recording() -> bool:
    """Whether a recording runs: nothing can be read back from the device then, and nothing brought there."""
    return _tape.get() is not None


def done(call: Callable[[], Result]) -> Result:
    """call(), put on the tape if a recording runs; the parts of which it consists are not."""
    tape = _tape.get()
    result = apart(call)
    if tape is not None:
        tape.add(call, result)
    return result


def apart(call: Callable[[], Result]) -> Result:
    """call(), as if no recording ran."""
    token = _tape.set(None)
    try:
        return call()
    finally:
        _tape.reset(token)


def _arrays(value: Any) -> list[np.ndarray]:
    """The arrays in a result, as such, numbers of NumPy as arrays."""
    if isinstance(value, (list, tuple)):
        return [array for part in value for array in _arrays(part)]
    return [np.asarray(value).view(np.ndarray)] if isinstance(value, (np.ndarray, np.generic)) else []
