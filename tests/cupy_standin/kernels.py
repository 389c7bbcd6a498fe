"""CUDA's driver on the computer: minunet's kernels by the simulated GPU, CuPy's by g++, matrix products by NumPy."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
import tempfile
import types
import zlib
from contextvars import Context
from pathlib import Path

import cupy_backends
import cupy_backends.cuda.api.driver as driver
import numpy as np

from minunet import cuda, simulator
from tests.cupy_standin.runtime import allocations, captured, do, exchange, new, nothing, to_the_end

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
    defines = tuple(tuple(option[2:].split("=")) for option in options if option.startswith("-D"))
    kernel, structs = cuda.kernels_of(file)[name].compiled_with(dict(defines)), cuda.structs_of(file)
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
        raise AttributeError(f"tests/cupy_standin has no {name} of cuBLAS")

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
