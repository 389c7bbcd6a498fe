"""Replay: what a function launches on a GPU, recorded once and launched again as a whole, on other numbers.

A U-Net's training step is hundreds of short launches, each of which Python prepares. A CUDA graph holds them all, and
one call launches it. It repeats the very same launches: at the same addresses, with the same numbers as arguments. So
what differs from one time to the next must be in an array whose address stays:

- the inputs: they are copied into arrays of the recording; from the computer's memory through pinned memory, on a
  stream of its own, while the GPU still computes what was launched before;
- numbers that the computer draws for each time: `fresh` brings them to the device;
- what the function changes, such as running statistics: it changes them in place.

The memory that the recorded work uses is its own, also between the times, as long as the recording lives. While it is
made, nothing can be read back. On the simulated GPU a tape (minunet/tape.py) does the same, so that a number which was
baked in by mistake shows without a GPU.

Source: NVIDIA, CUDA C++ programming guide, CUDA graphs, "Creating a graph using stream capture".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import numpy as np

from minunet import tape
from minunet.backend import cupy, device_of, module_of, to_device

SLOTS = 2       # of pinned memory: while one is copied to the GPU, the computer writes the next


class _Fresh:
    """An array on the device that gets another value before each replay."""

    def __init__(self, make: Callable[[], np.ndarray], device: str):
        self._make, self._device, self._value = make, device, make()
        self.array = module_of(device).empty(self._value.shape, self._value.dtype)

    def bring(self, again: bool) -> None:
        """The value that was made first, or a new one."""
        if again:
            self._value = self._make()
        _write(self._value, self.array, self._device)


_fresh: ContextVar[list[_Fresh]] = ContextVar("fresh")


def fresh(make: Callable[[], np.ndarray], device: str) -> Any:
    """make() of the computer, on the device; if a recording runs, an array that gets make() before each replay, too."""
    if not tape.is_recording():
        return to_device(make(), device)
    found = _Fresh(make, device)
    _fresh.get().append(found)
    if device == "sim":                 # where what is recorded is computed, too
        tape.apart(lambda: found.bring(again=False))
    return found.array


class Recording:
    """function(*arrays), recorded as it is called the first time; inputs of the same shapes and dtypes replay it.

    function returns arrays and may change arrays in place; of what it does, its work on the device alone is repeated.
    It must have been called before, with arrays of these shapes: what it keeps of its first call, such as compiled
    kernels and tables on the device, has to be there.

    Args:
        arrays: the first inputs, on the device or in the computer's memory.
        device: "cuda" or "sim".

    Attributes:
        results: of the last time; the next one writes into the same arrays.

    Raises RuntimeError when function moves numbers between the device and the computer, MemoryError when the GPU has
    not the memory; function has then done nothing on the GPU.
    """

    def __init__(self, function: Callable[..., Any], arrays: Sequence[Any], device: str):
        xp = module_of(device)
        self._inputs = [xp.empty(array.shape, array.dtype) for array in arrays]
        self._bring = _Pinned(self._inputs) if device == "cuda" else _bring
        self._bring(arrays, self._inputs)
        self._fresh: list[_Fresh] = []
        token = _fresh.set(self._fresh)
        try:
            with tape.recording() as found:
                if device == "cuda":
                    self._play, self.results, self._pool = _capture(function, self._inputs)
                else:
                    self._play, self.results, self._pool = found.play, function(*self._inputs), None
        finally:
            _fresh.reset(token)
        if device == "cuda":
            self._play_with(again=False)

    def replay(self, *arrays: Any) -> Any:
        """The results for these inputs."""
        self._bring(arrays, self._inputs)
        self._play_with(again=True)
        return self.results

    @property
    def nbytes(self) -> int:
        """The memory of a GPU that belongs to what is recorded."""
        return self._pool.total_bytes() if self._pool else 0

    def _play_with(self, again: bool) -> None:
        for value in self._fresh:
            value.bring(again)
        self._play()


def _write(value: np.ndarray, array: Any, device: str) -> None:
    array[...] = to_device(value, device)


def _bring(arrays: Sequence[Any], inputs: Sequence[Any]) -> None:
    for array, its in zip(arrays, inputs, strict=True):
        _write(array, its, device_of(its))


# ---- what only CuPy can do

def _capture(function: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Callable[[], None], Any, Any]:
    """What launches the graph of function(*inputs), its results, and the pool of its memory; nothing has run yet."""
    cuda = cupy().cuda
    pool = cuda.MemoryPool(_allocate)
    cupy().get_default_memory_pool().free_all_blocks()      # what the call before has left would be needed twice
    stream = cuda.Stream(non_blocking=True)                 # CUDA captures no default stream
    with stream, cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        try:
            results = function(*inputs)
        except BaseException:
            with suppress(cuda.runtime.CUDARuntimeError):   # which says that the capture was broken off
                stream.end_capture()
            raise
        return stream.end_capture().launch, results, pool


def _allocate(size: int) -> Any:
    """Memory for a graph's pool. To an error of CUDA's own a pool answers by giving back free blocks; the graph's!"""
    cuda = cupy().cuda
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"the GPU has no {size} bytes for what is recorded ({error})") from None


class _Pinned:
    """Brings arrays of the computer to inputs of a recording, while the current stream still computes."""

    def __init__(self, inputs: Sequence[Any]):
        self._stream = cupy().cuda.Stream(non_blocking=True)
        self._slots = [_Slot(inputs) for _ in range(SLOTS)]

    def __call__(self, arrays: Sequence[Any], inputs: Sequence[Any]) -> None:
        if any(device_of(array) != "cpu" for array in arrays):
            _bring(arrays, inputs)
            return
        self._slots.append(self._slots.pop(0))
        self._slots[-1].bring(arrays, inputs, self._stream)


class _Slot:
    """Pinned memory, arrays on the GPU, and the events after which each may be written again."""

    def __init__(self, inputs: Sequence[Any]):
        from cupyx import empty_pinned

        self._pinned = [empty_pinned(its.shape, its.dtype) for its in inputs]
        self._arrived = [cupy().empty_like(its) for its in inputs]
        self._copied, self._taken = (cupy().cuda.Event(disable_timing=True) for _ in range(2))

    def bring(self, arrays: Sequence[np.ndarray], inputs: Sequence[Any], stream: Any) -> None:
        """To the GPU on that stream; from there to the inputs on the current one, in its order."""
        current = cupy().cuda.get_current_stream()
        self._copied.synchronize()
        for pinned, array in zip(self._pinned, arrays, strict=True):
            np.copyto(pinned, array)
        stream.wait_event(self._taken)
        for arrived, pinned in zip(self._arrived, self._pinned):
            arrived.set(pinned, stream)
        stream.record(self._copied)
        current.wait_event(self._copied)
        for its, arrived in zip(inputs, self._arrived):
            its[...] = arrived
        current.record(self._taken)
