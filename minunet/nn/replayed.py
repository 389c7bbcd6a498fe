"""`Replayed`: a function of a module that a GPU records and replays, as long as the module stays what it is."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection
from typing import Any

from minunet import tape
from minunet.backend import to_device
from minunet.nn.module import Module, Parameter
from minunet.replay import Recording


class Snapshot:
    """The very objects that a module and all modules within it consist of, and the arrays of its parameters.

    without: names of attributes that may change.
    """

    def __init__(self, module: Module, without: Collection[str] = ()):
        self.module, self._without = module, without
        self._sizes: list[tuple[Any, int]] = []
        self._held: list[tuple[Any, Any, Any]] = []         # a dict or list, a key or index, what it held there
        self._parameters: list[tuple[Parameter, Any, bool]] = []
        for _, part in module.named_modules():
            self._add(vars(part))

    def holds(self) -> bool:
        """Whether all is as it was; what was changed in place is."""
        try:
            return (all(self._size(place) == size for place, size in self._sizes)
                    and all(place[key] is value for place, key, value in self._held)
                    and all(p.data is data and p.requires_grad is learns for p, data, learns in self._parameters))
        except (KeyError, IndexError):
            return False

    def _add(self, place: Any) -> None:
        self._sizes.append((place, self._size(place)))
        for key, value in place.items() if isinstance(place, dict) else enumerate(place):
            if key not in self._without:
                self._held.append((place, key, value))
                if isinstance(value, (dict, list)):
                    self._add(value)
                elif isinstance(value, Parameter):
                    self._parameters.append((value, value.data, value.requires_grad))

    def _size(self, place: Any) -> int:
        return len(place) - (sum(name in place for name in self._without) if isinstance(place, dict) else 0)


class Replayed:
    """take(function(module, *arrays)); on a GPU, what function launches is recorded and replayed (`minunet.replay`).

    A call with arrays of the shapes and dtypes of the call before is recorded, and the following ones replay it. A call
    with others ends the recording, and so does any attribute of the module or of one within it, and any parameter's
    array, that is not the one it was. What is recorded has memory of its own on the GPU; where there is too little, on
    the CPU, and in a thread that meets another one here, function is called each time.

    Args:
        function: takes a module and arrays on its device, and returns arrays, as `Recording` has it. Its launches may
            depend on what the module consists of, on the arrays' shapes, and on no other number that can change.
        take: what is made of the results at once: the next call writes into the same arrays.
        without: names of modules' attributes that make no difference to function.
    """

    def __init__(self, function: Callable[..., Any], take: Callable[[Any], Any], without: Collection[str] = ()):
        self._function, self._take, self._without = function, take, without
        self._begin()

    def _begin(self) -> None:
        self._lock, self._fits = threading.Lock(), True
        self._last: tuple[Any, Snapshot, str] | None = None     # shapes, module and device of the last call
        self._recording: Recording | None = None
        _all.add(self)

    def __call__(self, module: Module, *arrays: Any) -> Any:
        if tape.is_recording() or not self._lock.acquire(blocking=False):
            return self._take(self._function(module, *(to_device(array, module.device) for array in arrays)))
        try:
            return self._take(self._results(module, arrays))
        finally:
            self._lock.release()

    def _results(self, module: Module, arrays: tuple[Any, ...]) -> Any:
        shapes = [(array.shape, array.dtype) for array in arrays]
        if self._last and self._last[0] == shapes and self._last[1].module is module and self._last[1].holds():
            if self._recording:
                return self._recording.replay(*arrays)
            if self._fits:
                try:
                    self._recording = Recording(lambda *arrays: self._function(module, *arrays), arrays, self._last[2])
                    return self._recording.results
                except MemoryError:
                    self._fits = False
        self._recording = self._last = None
        device = module.device
        results = self._function(module, *(to_device(array, device) for array in arrays))
        if device != "cpu":
            self._last = shapes, Snapshot(module, self._without), device
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

    def __getstate__(self) -> dict[str, Any]:
        """Without the recording: a copy makes its own."""
        return {name: vars(self)[name] for name in ("_function", "_take", "_without")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()


_all: weakref.WeakSet[Replayed] = weakref.WeakSet()


def release_recordings() -> None:
    """End all recordings and give up their memory on the GPU."""
    for replayed in list(_all):
        replayed.release()


def recorded_bytes() -> int:
    """The memory of a GPU that belongs to all recordings."""
    return sum(replayed.nbytes for replayed in list(_all))
