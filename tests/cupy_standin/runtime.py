"""CUDA's runtime on the computer: memory, streams and graphs, and how CuPy's modules are made to call it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from functools import partial

import cupy_backends.cuda.api.runtime as runtime

os.environ["CUPY_CACHE_IN_MEMORY"] = "1"        # nothing that was compiled here is for a GPU
os.environ["CUPY_ACCELERATORS"] = ""            # reductions by CuPy's own kernels
os.environ.pop("CUPY_GPU_MEMORY_LIMIT", None)

PROPERTIES = {"name": b"the computer", "warpSize": 32, "major": 9, "minor": 0, "multiProcessorCount": 132,
              "sharedMemPerBlockOptin": 227 << 10}
ATTRIBUTES = {75: 9, 76: 0}                     # cudaDevAttrComputeCapabilityMajor and Minor
MEMORY = 100 << 30                              # bytes that it says to have

C_TYPES = {"PyObject *": ctypes.py_object, "intptr_t": ctypes.c_ssize_t, "size_t": ctypes.c_size_t, "int": ctypes.c_int,
           "unsigned int": ctypes.c_uint, "float": ctypes.c_float}
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype, libc.aligned_alloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
python = ctypes.pythonapi
python.PyCapsule_GetName.restype, python.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
python.PyCapsule_SetPointer.argtypes = [ctypes.py_object, ctypes.c_void_p]
kept = []                                       # C functions, which nobody else holds
failures = []                                   # of them: C cannot pass an exception on, so the test gets it at its end

assert "cupy" not in sys.modules, "tests/cupy_standin comes before cupy: python -m pytest -p tests.cupy_standin"


def exchange(module, name=None):
    """Makes a decorator for a Python function that takes the place of the module's C function of its name."""
    def decorate(function):
        called = name or function.__name__
        capsule = module.__pyx_capi__[called]
        result, arguments = re.fullmatch(r"(.*?) ?\((.*)\)", python.PyCapsule_GetName(capsule).decode()).groups()
        arguments = [] if arguments == "void" else arguments.split(", ")
        count = sum("__pyx_" not in argument for argument in arguments)     # Cython adds some at the end
        kinds = [C_TYPES[argument] for argument in arguments[:count]]
        kinds += [ctypes.c_void_p if "*" in argument else ctypes.c_int for argument in arguments[count:]]

        def exchanged(*given):
            try:
                return function(*given[:count])
            except BaseException as error:
                failures.append(error)
                return None if result == "PyObject *" else 0

        kept.append(ctypes.PYFUNCTYPE(C_TYPES[result], *kinds)(exchanged))
        python.PyCapsule_SetPointer(capsule, ctypes.cast(kept[-1], ctypes.c_void_p))
        setattr(module, called, function)
        return function
    return decorate


# ---- memory

allocations, pinned = {}, {}            # bytes by address


def allocate(where, size):
    size = max(512, -(-size // 512) * 512)
    address = libc.aligned_alloc(512, size)
    ctypes.memset(address, 0x55, size)
    where[address] = size
    return address


def release(where, address):
    del where[address]
    libc.free(address)


exchange(runtime, "malloc")(partial(allocate, allocations))
exchange(runtime, "free")(partial(release, allocations))
exchange(runtime, "hostAlloc")(lambda size, flags: allocate(pinned, size))
exchange(runtime, "freeHost")(partial(release, pinned))


@exchange(runtime)
def pointerGetMemoryType(address):
    return int(any(first <= address < first + size for first, size in pinned.items()))


@exchange(runtime)
def memGetInfo():
    return MEMORY - sum(allocations.values()), MEMORY


def to_the_end(address):
    """The bytes from an address on to the end of its allocation; none at 0, where arrays without elements lie."""
    if not address:
        return b""
    first = max((first for first in allocations if first <= address), default=0)
    size = allocations.get(first, 0) - (address - first)
    if size <= 0:
        raise RuntimeError(f"a kernel was given {address:#x}, where the device has no memory")
    return (ctypes.c_char * size).from_address(address)


# ---- work, streams and graphs: a stream that is captured keeps its work in a list

captured, graphs = {}, {}
_numbers = iter(range(1000, sys.maxsize))


def new(*_):
    return next(_numbers)


def nothing(*_):
    return None


def do(stream, work):
    if stream in captured:
        captured[stream].append(work)
    else:
        work()


@exchange(runtime)
def memcpyAsync(target, source, size, kind, stream):
    do(stream, lambda: ctypes.memmove(target, source, size))


@exchange(runtime)
def memsetAsync(target, value, size, stream):
    do(stream, lambda: ctypes.memset(target, value, size))


@exchange(runtime)
def memcpy(target, source, size, kind):
    assert not captured, "cudaMemcpy within a capture"
    ctypes.memmove(target, source, size)


@exchange(runtime)
def streamSynchronize(stream):
    assert not captured, "a synchronization within a capture"


@exchange(runtime)
def deviceSynchronize():
    assert not captured, "a synchronization within a capture"


@exchange(runtime)
def streamIsCapturing(stream):
    return int(stream in captured)


@exchange(runtime)
def streamBeginCapture(stream):
    assert stream, "CUDA captures no default stream"
    captured[stream] = []


@exchange(runtime)
def streamEndCapture(stream):
    graph = new()
    graphs[graph] = captured.pop(stream)
    return graph


@exchange(runtime)
def graphInstantiate(graph):            # what can be launched is the graph itself, so graphDestroy does nothing
    return graph


@exchange(runtime)
def graphExecDestroy(graph):
    del graphs[graph]


@exchange(runtime)
def graphLaunch(graph, stream):
    for work in graphs[graph]:
        do(stream, work)


# ---- the device, and what is nothing to do here

for _name, _function in {
    "getDevice": lambda: 0, "getDeviceCount": lambda: 1, "setDevice": nothing, "_ensure_context": nothing,
    "getDeviceProperties": lambda device: dict(PROPERTIES),
    "deviceGetAttribute": lambda attribute, device: ATTRIBUTES.get(attribute, 1024),        # of any limit enough
    "streamCreate": new, "streamCreateWithFlags": new, "streamCreateWithPriority": new, "streamDestroy": nothing,
    "streamGetPriority": lambda stream: 0, "streamGetFlags": lambda stream: 1, "streamWaitEvent": nothing,
    "eventCreate": new, "eventCreateWithFlags": new, "eventDestroy": nothing, "eventRecord": nothing,
    "eventQuery": lambda event: 0, "eventSynchronize": nothing, "eventElapsedTime": lambda first, second: 1.0,
    "graphDestroy": nothing,
}.items():
    exchange(runtime, _name)(_function)
