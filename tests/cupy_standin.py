"""CuPy itself without a GPU: `python -m pytest -m gpu -p tests.cupy_standin` runs the tests of the device cuda.

Arrays, the memory pool, streams, graphs, pinned memory and whatever else is CuPy's own are the real ones. What they
call underneath, CUDA's runtime and driver, is exchanged for the functions below. Their device is the computer: its
memory is malloc's, and work is done as soon as it is launched, or when the graph is that was captured. minunet's
kernels, with the arguments that CuPy has packed, go to the simulated GPU; CuPy's own are compiled by g++ and computed
by one thread, its matrix products by NumPy.

So this shows where minunet asks of CuPy what it cannot do, and where a graph writes into what is another array's memory
by now, since it repeats its addresses. It does not show what a stream's lateness does (tests/asynchronous.py), nor what
a GPU computes.

CuPy's modules call one another by C functions, which stand in `__pyx_capi__` with their signatures: of CuPy 14, written
for 14.2 (the extra `cupy-standin`). They are exchanged before cupy is imported.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import types
import zlib
from contextvars import Context
from functools import partial
from pathlib import Path

import cupy_backends.cuda.api.driver as driver
import cupy_backends.cuda.api.runtime as runtime
import cupy_backends.cuda.libs
import numpy as np
import pytest

os.environ["CUPY_CACHE_IN_MEMORY"] = "1"        # nothing that was compiled here is for a GPU
os.environ["CUPY_ACCELERATORS"] = ""            # reductions by CuPy's own kernels
os.environ.pop("CUPY_GPU_MEMORY_LIMIT", None)

PROPERTIES = {"name": b"the computer", "warpSize": 32, "major": 9, "minor": 0, "multiProcessorCount": 132}
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

assert "cupy" not in sys.modules, "tests/cupy_standin.py comes before cupy: python -m pytest -p tests.cupy_standin"


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


# ---- kernels

sources, modules, functions = {}, {}, {}        # text by its hash, the hash by module, what runs it by function


@exchange(driver)
def moduleLoadData(image):
    module = new()
    modules[module] = bytes(image)
    return module


@exchange(driver)
def moduleGetFunction(module, name):
    function = new()
    functions[function] = runs(sources[modules[module]], name)
    return function


exchange(driver, "moduleUnload")(nothing)
exchange(driver, "ctxGetCurrent")(lambda: 1)
exchange(driver, "funcGetAttribute")(lambda attribute, function: 1024)
exchange(driver, "funcSetAttribute")(nothing)


@exchange(driver)
def launchKernel(function, x, y, z, block_x, block_y, block_z, shared, stream, parameters, extra):
    do(stream, functions[function]((x, y, z), shared, parameters))


def compiled(source, options=(), *_, **__):
    """In place of NVRTC: the image of a module is the hash of its source and options."""
    image = hashlib.sha256(repr((source, options)).encode()).hexdigest().encode()
    sources[image] = source, options
    return image, {}


def runs(source_and_options, name):
    """What makes work of a grid, the bytes of shared memory and the address of the parameters' addresses."""
    source, options = source_and_options
    for file in cuda.folder().glob("*.cu"):
        if source == cuda.source(file.stem).encode("ascii", "replace").decode():
            return of_ours(file.stem, options, name)
    return of_cupys(source, name)


def of_ours(file, options, name):
    """On the simulated GPU, with the arguments that CuPy has packed."""
    kernel, structs = cuda.kernels_of(file)[name], cuda.structs_of(file)
    defines = tuple(tuple(option[2:].split("=")) for option in options if option.startswith("-D"))
    real = np.dtype("f8" if ("real", "double") in defines else "f4")

    def array(address, dtype):
        found = to_the_end(address)
        return np.frombuffer(found, dtype, len(found) // dtype.itemsize)

    def dtype_of(parameter):
        kind = parameter.type
        return real if kind == "real" else structs[kind] if kind in structs else np.dtype(cuda.TYPES[kind])

    def value_of(parameter, address):
        """What lies there: a number, a struct or a pointer."""
        dtype = np.dtype("u8") if parameter.pointer else dtype_of(parameter)
        return np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype).reshape(()).copy()[()]

    def argument(parameter, value):
        if not parameter.pointer:
            return value
        if not parameter.many:
            return array(int(value), dtype_of(parameter))
        table = map(int, array(int(value), np.dtype("u8")))     # to the end of its allocation, too
        return [array(entry, dtype_of(parameter)) for entry in table
                if any(first <= entry < first + size for first, size in allocations.items())]

    def work(grid, shared, parameters):         # which are gone when a graph runs
        addresses = (ctypes.c_size_t * len(kernel.parameters)).from_address(parameters)
        values = [value_of(*given) for given in zip(kernel.parameters, addresses)]

        def launch():       # unchecked, whatever the test says: an array seems to go on to the end of its allocation
            arguments = [argument(*given) for given in zip(kernel.parameters, values)]
            Context().run(simulator.launch, cuda.source(file), kernel, defines, grid, arguments, shared)

        return launch

    return work


PRELUDE = """
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads()
struct Index { unsigned x, y, z; };
static Index threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0}, blockDim = {1, 1, 1}, gridDim = {1, 1, 1};
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
typedef unsigned short Half;
static Half __float2half_rn(float x) { _Float16 h = x; Half bits; __builtin_memcpy(&bits, &h, 2); return bits; }
static float __half2float(Half bits) { _Float16 h; __builtin_memcpy(&h, &bits, 2); return h; }
static Half __half_as_ushort(Half bits) { return bits; }
static Half __ushort_as_half(Half bits) { return bits; }
using std::isfinite; using std::isinf; using std::isnan; using std::signbit;
template <class A, class B> static auto max(A a, B b) { return a < b ? b : a; }
template <class A, class B> static auto min(A a, B b) { return b < a ? b : a; }
"""
SCAN = "O sum = 0; for (ptrdiff_t i = 0; i < a.size(); i++) out[i] = sum += a[i]; }"
INCLUDED = Path(cupy_backends.__file__).parents[1] / "cupy" / "_core" / "include"
folder = tempfile.TemporaryDirectory()          # of what g++ makes
STATUS = pytest.StashKey[int]()


def of_cupys(source, name):
    """A grid of one thread. Elementwise kernels loop over what there is. Reductions are written for blocks of 512
    threads that make _block_stride results at a time: here 1 and 1. The scan of a mask gets another body."""
    signature = re.search(rf'extern "C" __global__ void {re.escape(name)}\((.*?)\)\s*\{{', source, re.DOTALL)[1]
    parameters = re.split(r",(?![^<]*>)", signature)
    types = [re.sub(r"^const ", "", parameter.strip()).rpartition(" ")[0] for parameter in parameters]
    body = re.sub(r"#include <cupy/(?!carray).*", "", source)
    given = [f"*({kind}*)given[{i}]" for i, kind in enumerate(types)]
    if "_type_reduce" in source:
        body = re.sub(r"\b512\b", "1", body).replace("if (_block_stride < 1)", "if (false)")
        given[[parameter.split()[-1] for parameter in parameters].index("_block_stride")] = "1"
    if name == "cupy_scan_naive":
        body = body[:body.index("__shared__ O smem1")] + SCAN
    stem = Path(folder.name) / hashlib.sha256(source.encode()).hexdigest()
    sizes = ", ".join(f"sizeof({kind})" for kind in types)
    stem.with_suffix(".cc").write_text(f'''{PRELUDE}{body}
        extern "C" size_t sizes[] = {{{sizes}}};
        extern "C" void run(void** given) {{ {name}({", ".join(given)}); }}''')
    subprocess.run(["g++", "-std=c++17", "-O1", "-w", "-fpermissive", "-shared", "-fPIC", f"-I{INCLUDED}", "-o",
                    stem.with_suffix(".so"), stem.with_suffix(".cc")], check=True)
    library = ctypes.CDLL(str(stem.with_suffix(".so")))
    bytes_of = list((ctypes.c_size_t * len(types)).in_dll(library, "sizes"))

    def work(grid, shared, parameters):         # which are gone when a graph runs
        addresses = (ctypes.c_size_t * len(types)).from_address(parameters)
        values = [ctypes.create_string_buffer(ctypes.string_at(*value), value[1]) for value in zip(addresses, bytes_of)]
        return lambda: library.run((ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)))

    return work


class Cublas(types.ModuleType):
    """The array module's GEMM, by NumPy."""

    def __getattr__(self, name):
        if name.startswith("CUBLAS_"):
            return {"CUBLAS_OP_N": 0, "CUBLAS_OP_T": 1}.get(name, zlib.crc32(name.encode()) >> 1)   # others: any
        raise AttributeError(f"tests/cupy_standin.py has no {name} of cuBLAS")

    create, destroy, setStream = lambda self: 1, nothing, nothing
    getMathMode, setMathMode, getPointerMode, setPointerMode = (lambda *_: 0, nothing, lambda *_: 0, nothing)

    def gemmEx(self, handle, left_transposed, right_transposed, m, n, k, alpha, left, left_type, left_stride, right,
               right_type, right_stride, beta, out, out_type, out_stride, *_):
        assert not captured, "cuBLAS within a capture"
        dtype = np.dtype({0: "f4", 1: "f8"}[out_type])      # CUDA_R_32F, CUDA_R_64F

        def matrix(address, rows, columns, stride, transposed=False):
            """Column by column."""
            shape = (columns, rows) if transposed else (rows, columns)
            found = np.ndarray(shape, dtype, to_the_end(address), 0, (dtype.itemsize, stride * dtype.itemsize))
            return found.T if transposed else found

        alpha, beta = (np.frombuffer(ctypes.string_at(scalar, dtype.itemsize), dtype)[0] for scalar in (alpha, beta))
        a, b = matrix(left, m, k, left_stride, left_transposed), matrix(right, k, n, right_stride, right_transposed)
        result = matrix(out, m, n, out_stride)
        result[...] = alpha * (a @ b) + beta * result if beta else alpha * (a @ b)


cupy_backends.cuda.libs.cublas = Cublas("cupy_backends.cuda.libs.cublas")

from cupy.cuda import compiler  # noqa: E402    now that all is exchanged

from minunet import backend, cuda, simulator  # noqa: E402

compiler._compile_using_nvrtc_no_warning, compiler._get_nvrtc_version = compiled, lambda: (12, 9)
backend.cupy()                                  # or an error: the tests would be skipped


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    finally:
        found = failures[:1]                    # also of its fixtures; it led to whatever else failed
        failures.clear()
        if found:
            raise found[0]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    session.config.stash[STATUS] = int(exitstatus)


def pytest_unconfigure(config):
    """Ends without CuPy's clearing up, which would call functions of an interpreter that is gone."""
    folder.cleanup()
    sys.stdout.flush()
    os._exit(config.stash.get(STATUS, 1))
