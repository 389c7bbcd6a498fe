"""A CuPy that only does what `minunet.replay` asks of it, on a GPU that is as late as it is allowed to be.

Work waits in its stream's queue until somebody synchronizes with it, or chance lets the GPU go on: then one of the
streams whose next work waits for no event does it. So a copy that nobody waits for is found: its source is read, or its
target written, too late or too soon.
"""

from __future__ import annotations

import random
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np


class Gpu:
    """The queues of all streams, and whose turn it is."""

    def __init__(self, seed):
        self.chance, self.queues, self.current, self.log = random.Random(seed), {}, [], []
        self.hurry = self.chance.choice([0, 0.2, 1])        # a share of the times when something could be done

    def add(self, stream, work):
        """Into the stream's queue, or into the graph that is captured there; and by chance something is done."""
        if stream.captured is not None:
            stream.captured.append(work)
        else:
            self.queues.setdefault(stream, []).append(work)
            for _ in range(self.chance.randrange(3)):
                if self.chance.random() < self.hurry:
                    self.turn()

    def turn(self):
        """Do the next work of some stream; whether there is any."""
        ready = [stream for stream, queue in self.queues.items()
                 if queue and (not isinstance(queue[0], Waiting) or queue[0].ready())]
        if ready:
            self.queues[self.chance.choice(ready)].pop(0)()
        return bool(ready)

    def until(self, done):
        """The computer waits."""
        while not done():
            assert self.turn(), "waits for ever"


class Waiting:
    """Work that begins when an event has come."""

    def __init__(self, event):
        self.event, self.number = event, event.recorded

    def ready(self):
        return self.event.passed >= self.number

    def __call__(self):
        pass


class Array:
    """On the GPU. Its memory is the next one's of the same allocator as soon as nobody refers to it, though work may
    still use it."""

    def __init__(self, cupy, shape, dtype, memory=None):
        self.cupy, self.gpu, self.memory = cupy, cupy.gpu, memory
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.free = cupy.free.setdefault((id(cupy.allocator), self.shape, self.dtype), [])
        self.value = self.free.pop() if self.free else np.full(shape, 99, dtype)

    def __del__(self):
        self.free.append(self.value)

    def made(self, compute, *values):
        """A new array, whose value is computed in the current stream."""
        result = self.cupy.empty(self.shape, self.dtype)
        target = result.value
        self.gpu.add(self.gpu.current[-1], lambda: target.__setitem__(..., compute(*values)))
        return result

    def __add__(self, other):
        if isinstance(other, Array):
            return self.made(lambda a, b: a + b, self.value, other.value)
        return self.made(lambda a: a + other, self.value)

    def __mul__(self, other):
        return self.made(lambda a: a * other, self.value)

    def copy(self):
        return self + 0

    def __setitem__(self, key, other):
        assert key is ...
        target, source = self.value, other.value
        self.gpu.add(self.gpu.current[-1], lambda: target.__setitem__(..., source))

    def set(self, pinned, stream):
        assert (pinned.shape, pinned.dtype) == (self.shape, self.dtype)
        target, source = self.value, pinned.view(np.ndarray)
        self.gpu.add(stream, lambda: target.__setitem__(..., source))       # which is read when its turn comes

    def get(self):
        stream = self.gpu.current[-1]
        assert stream.captured is None, "reads back while it captures"
        self.gpu.until(lambda: not self.gpu.queues.get(stream))
        return self.value.copy()


Array.__module__ = "cupy"


class Pinned(np.ndarray):
    """In the computer's memory."""


class CuPy:
    """The module."""

    def __init__(self, seed=0):
        self.gpu = gpu = Gpu(seed)
        log = gpu.log

        class CUDARuntimeError(RuntimeError):
            __module__ = "cupy_backends.cuda.api.runtime"

        class Event:
            def __init__(self, disable_timing):
                self.recorded = self.passed = 0

            def synchronize(self):
                gpu.until(lambda: self.passed >= self.recorded)

        class Stream:
            def __init__(self, non_blocking=False, null=False):
                assert non_blocking or null, "would wait for the default stream, and that for it"
                self.captured, self.null = None, null

            def __enter__(self):
                gpu.current.append(self)

            def __exit__(self, *_):
                gpu.current.pop()

            def record(self, event):
                event.recorded += 1
                number = event.recorded
                gpu.add(self, lambda: setattr(event, "passed", max(event.passed, number)))

            def wait_event(self, event):
                gpu.add(self, Waiting(event))

            def begin_capture(self):
                assert not self.null and gpu.current[-1] is self and self.captured is None
                log.append("begin")
                self.captured = []

            def end_capture(self):
                works, self.captured = self.captured, None
                log.append("end")
                if works is None or self.broken:
                    raise CUDARuntimeError("the capture was broken off")
                return Graph(works)

            broken = False

        class Graph:
            def __init__(self, works):
                self.works = works

            def launch(self):
                log.append("launch")
                gpu.add(gpu.current[-1], lambda: [work() for work in self.works])

        class Block:
            """Of a pool."""

            def __init__(self, memory):
                self.ptr, self.memory = id(memory), memory
                memory.used = True

            def __del__(self):
                self.memory.used = False

        class MemoryPool:
            """Gives nothing back by itself, as CuPy's since version 14."""

            def __init__(self, allocator):
                self.allocator, self.limit, self.memories = allocator, 500, leaked

            def set_limit(self, size):
                self.limit, self.memories = size, []
                leaked.append(self.memories)

            def malloc(self, size):
                assert self.limit == 0, "would give free blocks back where the limit is reached"
                self.memories.append(self.allocator(size))
                return Block(self.memories[-1])

            def total_bytes(self):
                return sum(memory.size for memory in self.memories)

            def free_all_blocks(self):
                self.memories[:] = [memory for memory in self.memories if memory.used]

        class Memory:
            used = False

            def __init__(self, size):
                if size > 1000:
                    raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
                self.size = size
                live.append(weakref.ref(self))

        class UnownedMemory:
            def __init__(self, ptr, size, owner, device_id):
                self.owner = owner

        leaked, live = [], []
        self.live_bytes = lambda: sum(memory().size for memory in live if memory())

        @contextmanager
        def using_allocator(allocator):
            before, self.allocator = self.allocator, allocator
            try:
                yield
            finally:
                self.allocator = before

        self.allocator, self.ndarray, self.free, self.free_pinned = None, Array, {}, {}
        runtime = type("runtime", (), {"CUDARuntimeError": CUDARuntimeError})
        self.cuda = type("cuda", (), dict(
            Event=Event, Stream=Stream, MemoryPool=MemoryPool, Memory=Memory, runtime=runtime,
            UnownedMemory=UnownedMemory, MemoryPointer=lambda memory, offset: memory,
            Device=lambda: SimpleNamespace(id=0), using_allocator=staticmethod(using_allocator),
            get_current_stream=staticmethod(lambda: gpu.current[-1])))
        gpu.current.append(Stream(null=True))

    def empty(self, shape, dtype):
        memory = self.allocator and self.allocator(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return Array(self, shape, dtype, memory)

    def empty_like(self, array):
        return self.empty(array.shape, array.dtype)

    def array(self, value):
        result, value = self.empty(value.shape, value.dtype), value.copy()
        target = result.value
        self.gpu.add(self.gpu.current[-1], lambda: target.__setitem__(..., value))
        return result

    def empty_pinned(self, shape, dtype):
        """As of `cupyx`: in memory that is the next one's as soon as nobody refers to it."""
        free = self.free_pinned.setdefault((tuple(shape), np.dtype(dtype)), [])
        memory = free.pop() if free else np.empty(shape, dtype)
        pinned = memory.view(Pinned)
        weakref.finalize(pinned, free.append, memory)
        return pinned

    def get_default_memory_pool(self):
        return type("pool", (), {"free_all_blocks": lambda _: self.gpu.log.append("free")})()
