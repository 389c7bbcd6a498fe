"""`Replayed`: a function of a module that a GPU records and replays, as long as the module stays what it is."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from minunet import tape
from minunet.autograd import Tensor
from minunet.backend import device_of, to_device
from minunet.nn.module import Module
from minunet.replay import Recording


class Snapshot:
    """The very objects that a module and all modules within it consist of, and the arrays of their Tensors.

    Watched are their attributes, what is in lists, tuples and dicts among these, and of each Tensor the array and
    whether it requires a gradient; not what lies within other objects, nor what changes in place.

    without: names of attributes that may change.
    """

    def __init__(self, module: Module, without: Collection[str] = ()):
        self.module, self._without = module, without
        self._lengths: list[tuple[Any, int]] = []
        self._held: list[tuple[Any, Any, Any]] = []         # a container, a key or index, and what it held there
        self._tensors: list[tuple[Tensor, Any, bool]] = []
        for _, part in module.named_modules():
            self._add(vars(part))

    def holds(self) -> bool:
        """Whether all is as it was."""
        try:
            return (all(self._length(place) == length for place, length in self._lengths)
                    and all(place[key] is value for place, key, value in self._held)
                    and all(t.data is data and t.requires_grad is learns for t, data, learns in self._tensors))
        except (KeyError, IndexError):
            return False

    def _add(self, place: Any) -> None:
        self._lengths.append((place, self._length(place)))
        for key, value in place.items() if isinstance(place, dict) else enumerate(place):
            if key not in self._without:
                self._held.append((place, key, value))
                if isinstance(value, (dict, list, tuple)):
                    self._add(value)
                elif isinstance(value, Tensor):
                    self._tensors.append((value, value.data, value.requires_grad))

    def _length(self, place: Any) -> int:
        return len(place) - (sum(name in place for name in self._without) if isinstance(place, dict) else 0)


class Replayed:
    """function(module, *arrays); on a GPU, what function launches is recorded and replayed (`minunet.replay`).

    A call whose arrays have the shapes and dtypes of the call before is recorded, and the following ones replay it,
    until one has other shapes, or the module is not what it was (`Snapshot`). What is recorded has memory of its own on
    the GPU. On the CPU, function is called each time; also, with a warning, where there is too little memory, or where
    it does what cannot be recorded. Threads wait for each other.

    Args:
        function: takes a module and arrays on its device, and returns arrays, as `Recording` has it. Its launches may
            depend on what the module consists of, on the arrays' shapes, and on no other number that can change.
        without: names of modules' attributes that make no difference to function.
    """

    def __init__(self, function: Callable[..., Any], without: Collection[str] = ()):
        self._function, self._without = function, without
        self._lock = threading.RLock()
        self._last: tuple[Any, Snapshot] | None = None      # shapes and module of the last call
        self._recording: Recording | None = None
        self._recordable = True                             # as far as is known, with these shapes
        _all.add(self)

    def __call__(self, module: Module, *arrays: Any, take: Callable[[Any], Any]) -> Any:
        """take(function(module, *arrays)); the next call writes into the same results, so take what is to stay."""
        device = _device(module)
        if device == "cpu" or tape.is_recording():
            return take(self._function(module, *(to_device(array, device) for array in arrays)))
        with self._lock:
            return take(self._results(module, arrays, device))

    def _results(self, module: Module, arrays: tuple[Any, ...], device: str) -> Any:
        shapes = [(array.shape, array.dtype) for array in arrays]
        if self._last and self._last[0] == shapes and self._last[1].module is module and self._last[1].holds():
            if self._recording:
                return self._recording.replay(*arrays)
            if self._recordable:
                try:
                    self._recording = Recording(partial(self._function, module), arrays, device)
                    return self._recording.results
                except (MemoryError, tape.NotRecordable) as error:
                    self._recordable = False
                    # the same words each time: Python says them once
                    why = "there is too little memory" if isinstance(error, MemoryError) else error
                    warnings.warn(f"what is computed on the device {device} is launched kernel by kernel, not as one "
                                  f"graph: {why}", stacklevel=4)
        else:
            self._recording, self._recordable = None, True
        results = self._function(module, *(to_device(array, device) for array in arrays))
        self._last = shapes, Snapshot(module, self._without)
        return results

    def release(self) -> None:
        """End the recording and give up its memory."""
        with self._lock:
            self._recording = self._last = None

    @property
    def nbytes(self) -> int:
        """The memory of a GPU that belongs to the recording."""
        recording = self._recording
        return recording.nbytes if recording else 0

    def __reduce__(self) -> Any:
        """Without the recording: a copy makes its own."""
        return Replayed, (self._function, self._without)


def _device(module: Module) -> str:
    """Of the first parameter: to look at all of them takes longer than to launch a graph."""
    first = next((p for _, p in module.named_parameters()), None)
    return "cpu" if first is None else device_of(first.data)


_all: weakref.WeakSet[Replayed] = weakref.WeakSet()


def release_recordings() -> None:
    """End all recordings and give up their memory on the GPU."""
    for replayed in list(_all):
        replayed.release()


def recorded_bytes() -> int:
    """The memory of a GPU that belongs to all recordings."""
    return sum(replayed.nbytes for replayed in list(_all))
