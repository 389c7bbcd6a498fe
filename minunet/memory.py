"""Large arrays from recycled memory: a training step gets the memory of the step before, without page faults.

The operating system hands out memory page by page, at the first touch of each, which makes the first write to an array
about three times as slow as the next. So large arrays lie side by side in one region of addresses, whose pages stay
when an array goes: the range that it took is joined with the free ones beside it, and the next array, of whatever size,
lies where it fits best.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from operator import index
from typing import Any, NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")

LARGE = 1 << 16     # bytes from which an array comes from the arena: below that, NumPy's own memory is as fast
ALIGNMENT = 64      # bytes: a line of the cache, and the widest vector
CHUNK = 1 << 21     # bytes, a large page: what memory is taken from the system and given back by
VIEWS = 4096        # sets of views that a thread keeps at most
SLACK = 32          # free memory is held up to 1 / SLACK of the most that arrays used at one time


class Statistics(NamedTuple):
    """Bytes: what arrays use now, the most that they used at one time, and what the arena holds, used or not."""

    used: int
    most: int
    held: int


class _Lease:
    """The base of an array and so of all its views: when the last of them is gone, its range goes back.

    That can happen in any thread, and in the middle of an allocation. So it takes no lock: it appends to a deque, which
    is one step of the interpreter. And it needs no name of this module, which may be gone as the interpreter exits.
    """

    __slots__ = ("taken", "__array_interface__")

    def __init__(self, taken: tuple[_Region, int, int], shape: tuple[int, ...], dtype: np.dtype):
        region, start, _ = self.taken = taken
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str,
                                    "data": (region.address + start, False)}

    def __del__(self) -> None:
        self.taken[0].returned.append(self.taken[1:])


class Arena:
    """A region, and what keeps its calls apart from each other."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._busy = False
        self._region = _Region()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """See the function `empty`."""
        shape, dtype = tuple(map(index, shape)), np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        taken = self._alone(_Region.take, size) if size >= LARGE and dtype.kind in "biufc" else None
        return np.empty(shape, dtype) if taken is None else np.asarray(_Lease(taken, shape, dtype))

    def release(self) -> int:
        """See the function `release`."""
        return self._alone(_Region.release) or 0

    def statistics(self) -> Statistics:
        """See the function `statistics`."""
        self._alone(_Region.free_returned)
        return Statistics(self._region.used, self._region.most, self._region.chunks * CHUNK)

    def _alone(self, change: Callable[..., Any], *arguments: Any) -> Any:
        """change(region, *arguments), which finds the ranges in order; amid another change, None.

        Other threads wait. But a finalizer, or a signal's handler, may run in the thread that is amid a change, and
        Ctrl-C may end one: arrays then keep their region for as long as they need it, and others get a new one.
        """
        with self.lock:
            if self._busy:
                return None
            self._busy = True
            try:
                return change(self._region, *arguments)
            except BaseException:
                self._region = _Region()
                raise
            finally:
                self._busy = False


class _Region:
    """Addresses for as many bytes as the computer has; it holds memory where arrays are or were.

    Where the system has none to give, or when all is taken, no array finds a range.
    """

    def __init__(self) -> None:
        self.returned: deque[tuple[int, int]] = deque()     # by leases; not among the free ranges yet
        self.used = self.most = self.chunks = 0
        # the free ranges, from start to end in bytes after the address, three ways; no two of them touch
        self._sizes: list[tuple[int, int]] = []             # (size, start), sorted
        self._start_of: dict[int, int] = {}                 # by end
        self._end_of: dict[int, int] = {}                   # by start
        try:
            size = _memory_size() // CHUNK * CHUNK
            self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (ImportError, AttributeError, OSError):      # a system without, or that promises no more than it has
            return
        with suppress(AttributeError, OSError):             # a system without large pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        address = np.frombuffer(self._map, np.uint8).ctypes.data
        self._offset = -address % CHUNK                     # of the first whole chunk
        self.address = address + self._offset
        self._held = bytearray(size // CHUNK - 1)           # for each chunk whether it is
        self._add(0, len(self._held) * CHUNK)

    def take(self, size: int) -> tuple[_Region, int, int] | None:
        """Start and end of a range for so many bytes: in the smallest free one that fits, of equal ones the first."""
        self.free_returned()
        size += -size % ALIGNMENT
        fitting = bisect_left(self._sizes, (size,))
        if fitting == len(self._sizes):
            return None
        free, start = self._sizes[fitting]
        self._remove(start, start + free)
        if free > size:
            self._add(start + size, start + free)
        self.used += size
        self.most = max(self.most, self.used)
        self._hold(start, start + size)
        return self, start, start + size

    def free_returned(self) -> None:
        """Join what leases have given back with the free ranges that end or begin there."""
        while self.returned:
            start, end = self.returned.popleft()
            self.used -= end - start
            if start in self._start_of:
                before = self._start_of[start]
                self._remove(before, start)
                start = before
            if end in self._end_of:
                after = self._end_of[end]
                self._remove(end, after)
                end = after
            self._add(start, end)

    def release(self) -> int:
        """Drop all free chunks; the bytes."""
        self.free_returned()
        before, self.most = self.chunks, self.used
        self._drop(before)
        return (before - self.chunks) * CHUNK

    def _add(self, start: int, end: int) -> None:
        self._start_of[end], self._end_of[start] = start, end
        insort(self._sizes, (end - start, start))

    def _remove(self, start: int, end: int) -> None:
        del self._start_of[end], self._end_of[start], self._sizes[bisect_left(self._sizes, (end - start, start))]

    def _hold(self, start: int, end: int) -> None:
        """Count the chunks of a range that is used from now on, and keep to the bound."""
        first, stop = start // CHUNK, -(-end // CHUNK)
        fresh = self._held.count(0, first, stop)
        if fresh:
            self._held[first:stop] = b"\1" * (stop - first)
            self.chunks += fresh
            self._drop(self.chunks - (self.most + self.most // SLACK) // CHUNK - 1)

    def _drop(self, count: int) -> None:
        """Give so many chunks of free ranges back to the system, or all that are held; the last in the region first."""
        for start in sorted(self._end_of, reverse=True) if count > 0 else ():
            first, stop = -(-start // CHUNK), self._end_of[start] // CHUNK
            while count > 0 and (stop := self._held.rfind(1, first, stop) + 1) > 0:     # the end of a run of held ones
                begin = max(first, stop - count, self._held.rfind(0, first, stop) + 1)
                self._map.madvise(mmap.MADV_DONTNEED, self._offset + begin * CHUNK, (stop - begin) * CHUNK)
                self._held[begin:stop] = bytes(stop - begin)
                self.chunks -= stop - begin
                count -= stop - begin


def _memory_size() -> int:
    """Bytes of the computer's memory, but at most half of the addresses that this process may have."""
    import resource  # which Windows has not

    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return size if limit == resource.RLIM_INFINITY else min(size, limit // 2)


_arena = Arena()
if hasattr(os, "register_at_fork"):     # nobody is amid an allocation when the process is copied
    os.register_at_fork(before=_arena.lock.acquire, after_in_parent=_arena.lock.release,
                        after_in_child=_arena.lock.release)


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array, as np.empty makes it; a large one in recycled memory, aligned to 64 bytes.

    >>> empty((2, 3), "float32").shape
    (2, 3)
    """
    return _arena.empty(shape, dtype)


class _Scratch(threading.local):
    """Each thread's arrays by name and dtype. They go with this object, those of all threads."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, str], np.ndarray] = {}
        self.views: dict[Any, Any] = {}


_scratch = _Scratch()


def scratch(shape: tuple[int, ...], dtype: Any, name: str = "") -> np.ndarray:
    """An uninitialised array that this thread uses again at its next call with that name and dtype: valid until then.

    It takes as much memory as the largest that was asked for, until `release`.
    """
    size, arrays, key = math.prod(shape), _scratch.arrays, (name, np.dtype(dtype).char)
    if key not in arrays or arrays[key].size < size:
        arrays[key] = empty((size,), dtype)
        _scratch.views.clear()                  # those of the array before, which would keep it
    return arrays[key][:size].reshape(shape)


def views(key: Any, make: Callable[[], Result]) -> Result:
    """What make() returns, views of this thread's scratch, made once for each key: many take longer than their use."""
    kept = _scratch.views
    if key not in kept:
        if len(kept) >= VIEWS:                  # images of ever other sizes
            kept.clear()
        made = make()
        kept[key] = made                        # after make: it may clear the others
    return kept[key]


def is_whole(array: np.ndarray) -> bool:
    """Whether the array has memory to itself, NumPy's own or a range: it is no view of another, nor of foreign memory.

    >>> [is_whole(a) for a in (empty((5,), "int8"), empty((99, 999), "int8"), np.zeros(5)[1:])]
    [True, True, False]
    """
    return array.flags.owndata or isinstance(array.base, _Lease)


def release() -> int:
    """Give the memory that no array uses, and all threads' scratch, back to the operating system; returns the bytes."""
    global _scratch
    _scratch = _Scratch()
    return _arena.release()


def statistics() -> Statistics:
    """What the arena holds, in bytes."""
    return _arena.statistics()
