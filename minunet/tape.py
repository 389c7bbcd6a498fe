"""What is done on the simulated GPU, written down so that it can be done again: its stand-in for a CUDA graph.

A recording belongs to the thread that makes it (`recording`). On the simulated GPU every launch and every operation of
the array library goes through `done`, which puts it on the tape; doing all of them again, in order and on the same
arrays, is what a GPU does when a graph is launched. A real GPU has its own tape; of this it uses the flag, and `keep`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")


class NotRecordable(RuntimeError):
    """What a function does that cannot be recorded."""


class Tape:
    """What was done, in order; and what that needs, though nobody else may keep it."""

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[[], Any], Any]] = []
        self.kept: list[Any] = []

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


def keep(value: Result) -> Result:
    """value, which lives as long as the recording, if one runs: for arrays that a cache might forget."""
    if (tape := _tape.get()) is not None:
        tape.kept.append(value)
    return value


def refuse(moved: str) -> None:
    """Raise NotRecordable if a recording runs: numbers cannot be `moved` the device then."""
    if is_recording():
        raise NotRecordable(f"numbers cannot be {moved} the device while its work is recorded (minunet.replay): give "
                            "them to what is recorded as arrays, and read its results afterwards")


def done(call: Callable[[], Result]) -> Result:
    """call(), put on the tape if a recording runs; as one thing, whatever it calls in turn."""
    tape = _tape.get()
    result = apart(call)
    if tape is not None:
        tape.add(call, result)
    return result


def apart(call: Callable[[], Result]) -> Result:
    """call(), as if no recording ran: it is not put on the tape."""
    token = _tape.set(None)
    try:
        return call()
    finally:
        _tape.reset(token)


def _arrays(value: Any) -> list[np.ndarray]:
    """The arrays in a result."""
    if isinstance(value, (list, tuple)):
        return [array for part in value for array in _arrays(part)]
    return [value.view(np.ndarray)] if isinstance(value, np.ndarray) else []
