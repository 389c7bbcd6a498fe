"""Replay: what a function launches on a GPU, recorded once and launched again as a whole, on other numbers.

A U-Net's training step is hundreds of short launches, each of which Python prepares. A CUDA graph holds them all, and
one call launches it. It repeats the very same launches: at the same addresses, with the same numbers as arguments. So
what differs from one time to the next must be in an array whose address stays:

- the inputs: they are copied into arrays of the recording; from the computer's memory through pinned memory, on a
  stream of its own, while the GPU still computes what was launched before;
- numbers that the computer draws for each time: `fresh` brings them to the device;
- what the function changes, such as running statistics: it changes them in place.

The memory that the recorded work uses is its own, also between the times, and goes when the recording and the arrays
that it has made are gone. While a recording is made, nothing can be read back. On the simulated GPU a tape
(minunet/tape.py) does the same, so that a number which was baked in by mistake shows without a GPU.

Source: NVIDIA, CUDA C++ programming guide, CUDA graphs, "Creating a graph using stream capture".
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np

from minunet import tape
from minunet.backend import cupy, device_of, module_of, to_device

SLOTS = 2       # of pinned memory: while one is copied to the GPU, the computer writes the next


class _Fresh:
    """An array on the device that gets another value before each replay."""

    def __init__(self, make: Callable[[], np.ndarray], device: str):
        self._make, self._device, self._first = make, device, make()
        # not in the recording's memory, where earlier work of the recording would write over it in each replay
        with cupy().cuda.using_allocator(_allocate) if device == "cuda" else nullcontext():
            self.array = module_of(device).empty(self._first.shape, self._first.dtype)

    def write(self, anew: bool) -> None:
        """The value that was made first, or a new one."""
        self.array[...] = to_device(self._make() if anew else self._first, self._device)


_fresh: ContextVar[list[_Fresh]] = ContextVar("fresh")


def fresh(make: Callable[[], np.ndarray], device: str) -> Any:
    """make() of the computer, on the device; if a recording runs, an array that gets make() before each replay, too."""
    if not tape.is_recording():
        return to_device(make(), device)
    found = _Fresh(make, device)
    _fresh.get().append(found)
    if device == "sim":                 # where what is recorded is computed, too
        tape.apart(lambda: found.write(anew=False))
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

    Raises tape.NotRecordable when function does what cannot be recorded, such as reading numbers back, MemoryError when
    the GPU has not the memory. Then nothing that function launched on a GPU was done (on the simulated one it was).
    """

    def __init__(self, function: Callable[..., Any], arrays: Sequence[Any], device: str):
        self._function, self._device = function, device     # whose arrays the launches use
        if device == "cuda":
            cupy().get_default_memory_pool().free_all_blocks()      # the first call's memory would be needed twice
        self._inputs = [module_of(device).empty(array.shape, array.dtype) for array in arrays]
        self._copy = _Pinned(self._inputs) if device == "cuda" and arrays else _copy
        self._copy(arrays, self._inputs)
        self._fresh: list[_Fresh] = []
        self._memory: _Memory | None = None
        token = _fresh.set(self._fresh)
        try:
            with tape.recording() as self._tape:
                if device == "cuda":
                    self._memory = _Memory()
                    self._launch, self.results = _capture(function, self._inputs, self._memory)
                else:
                    self._launch, self.results = self._tape.play, function(*self._inputs)
        finally:
            _fresh.reset(token)
        if device == "cuda":
            self._play(anew=False)

    def replay(self, *arrays: Any) -> Any:
        """The results for these inputs. Raises ValueError for other shapes or dtypes than the recorded ones."""
        given, recorded = ([(a.shape, a.dtype) for a in some] for some in (arrays, self._inputs))
        if given != recorded:
            raise ValueError(f"replay: the inputs must be as they were recorded, {recorded}; got {given}")
        self._copy(arrays, self._inputs)
        self._play(anew=True)
        return self.results

    @property
    def nbytes(self) -> int:
        """The memory of a GPU that belongs to what is recorded."""
        return self._memory.pool.total_bytes() if self._memory else 0

    def _play(self, anew: bool) -> None:
        for value in self._fresh:
            value.write(anew)
        self._launch()


def _copy(arrays: Sequence[Any], inputs: Sequence[Any]) -> None:
    for array, its in zip(arrays, inputs, strict=True):
        its[...] = to_device(array, device_of(its))


# ---- what only CuPy can do

def _capture(function: Callable[..., Any], inputs: Sequence[Any], memory: _Memory) -> tuple[Callable[[], None], Any]:
    """What launches the graph of function(*inputs), and its results; nothing has run yet."""
    cuda = cupy().cuda
    gc.collect()                                    # what is freed within a capture could break it off
    stream = cuda.Stream(non_blocking=True)         # CUDA captures no default stream
    try:
        with stream, cuda.using_allocator(memory):
            stream.begin_capture()
            try:
                results = function(*inputs)
            except BaseException:
                with suppress(RuntimeError):        # which says that the capture was broken off
                    stream.end_capture()
                raise
            return stream.end_capture().launch, results
    except RuntimeError as error:                   # CUDA's, CuPy's, ours; also NotImplementedError, as of cuBLAS
        raise error if isinstance(error, tape.NotRecordable) else tape.NotRecordable(f"CuPy: {error}") from error


class _Memory:
    """Allocates from a pool that lives as long as one of its arrays, and then gives its memory back.

    CuPy (14) frees nothing when a pool is dropped. And to a lack of memory it answers by giving free blocks back, which
    are the graph's here; so no limit is set, and the error is another one than CUDA's.
    """

    def __init__(self) -> None:
        self.pool = cupy().cuda.MemoryPool(_allocate)
        self.pool.set_limit(size=0)

    def __call__(self, size: int) -> Any:
        cuda = cupy().cuda
        block = self.pool.malloc(size)
        # of the owners, a tuple lets go of the last one first
        return cuda.MemoryPointer(cuda.UnownedMemory(block.ptr, size, (self, block), cuda.Device().id), 0)

    def __del__(self) -> None:
        with suppress(RuntimeError):            # at the end of the program CUDA may be gone
            self.pool.free_all_blocks()


def _allocate(size: int) -> Any:
    cuda = cupy().cuda
    try:
        return cuda.MemoryPointer(cuda.Memory(size), 0)
    except cuda.runtime.CUDARuntimeError as error:
        raise MemoryError(f"the GPU has no {size} bytes for what is recorded ({error})") from None


class _Pinned:
    """Copies arrays of the computer to inputs of a recording, while the current stream still computes."""

    def __init__(self, inputs: Sequence[Any]):
        self._stream = cupy().cuda.Stream(non_blocking=True)
        self._slots = [_Slot(inputs) for _ in range(SLOTS)]

    def __call__(self, arrays: Sequence[Any], inputs: Sequence[Any]) -> None:
        if any(device_of(array) != "cpu" for array in arrays):
            _copy(arrays, inputs)
            return
        self._slots.append(self._slots.pop(0))
        self._slots[-1].copy(arrays, inputs, self._stream)


class _Slot:
    """Pinned memory, arrays on the GPU, and the events after which each may be written again."""

    def __init__(self, inputs: Sequence[Any]):
        from cupyx import empty_pinned

        self._pinned = [empty_pinned(its.shape, its.dtype) for its in inputs]
        self._arrived = [cupy().empty_like(its) for its in inputs]
        self._copied, self._taken = (cupy().cuda.Event(disable_timing=True) for _ in range(2))
        cupy().cuda.get_current_stream().record(self._taken)    # by whoever had this memory before

    def copy(self, arrays: Sequence[np.ndarray], inputs: Sequence[Any], stream: Any) -> None:
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

    def __del__(self) -> None:
        with suppress(RuntimeError):
            self._copied.synchronize()          # before the pinned memory is another's
