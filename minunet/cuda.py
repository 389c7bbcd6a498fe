"""The one door to the kernels in kernels/*.cu: find, compile, keep, check the arguments, launch.

    launch("pool.max_pool2d", x, y, winners, shape, threads=y.size)

runs the kernel max_pool2d of kernels/pool.cu on the device of its arrays: on a GPU through CuPy, or on the simulated
GPU (`minunet.simulator`), the very same source. What a kernel takes is read off its own signature: for each parameter
the type, and whether it is const (read), INOUT (read and written) or neither (written, undefined before). Every kernel
states its block with __launch_bounds__(threads) and is launched with just that many threads in a row; the grid is
`threads` rounded up to whole blocks, or given as `blocks`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minunet import simulator, tape
from minunet.backend import FLOATS, cupy, device_of, module_of
from minunet.errors import IncompleteError, UserError

TYPES = {"float": "f4", "double": "f8", "int": "i4", "unsigned": "u4", "unsigned int": "u4", "unsigned char": "u1",
         "signed char": "i1", "long long": "i8", "unsigned long long": "u8", "bool": "?"}
RANGES = {np.dtype(t): (int(np.iinfo(t).min), int(np.iinfo(t).max)) for t in TYPES.values() if t[0] in "iu"}
INT_LIMIT = 2**31 - 2**10               # elements that an int can count, with threads to spare in the last block
STATIC_SHARED = 48 << 10                # bytes of shared memory that a block may use without asking

_KERNEL = re.compile(r'(?:extern\s+"C"\s+__global__\s+void|\bKERNEL)\s+'
                     r"__launch_bounds__\s*\(\s*(\w+)\s*(?:,[^)]*)?\)\s*(\w+)\s*\(([^)]*)\)")
_STRUCT = re.compile(r"\bstruct\s+(\w+)\s*\{((?:\s*int\s[\w\s,]+;)+)\s*\}")        # of nothing but ints
_CONSTANT = re.compile(r"(?:#define\s+|constexpr\s+int\s+)(\w+)\s*=?\s*(\d+)\b")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)".*$', re.MULTILINE)


class KernelError(RuntimeError):
    """A kernel that does not compile, or is launched with arguments that are not its own."""


def resolve(device: str) -> str:
    """The device of `backend.DEVICES` that a name means: "auto" is cuda where there is a GPU, else cpu.

    Raises UserError, with what to install, where the device cannot be used; for "auto", warns of what is incomplete.
    """
    if device == "auto":
        try:
            cupy()
            return "cuda"
        except IncompleteError as error:
            warnings.warn(f"computing on cpu: {error}", stacklevel=2)
        except UserError:
            pass
        return "cpu"
    module_of(device)
    if device == "sim":
        simulator.require_compiler()
    return device


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: its dtype ("real" until compiled), and what the kernel does with it."""

    name: str
    type: str
    pointer: bool = False       # to an array
    many: bool = False          # to a table of arrays, real**
    const: bool = False
    inout: bool = False


@dataclass(frozen=True)
class Kernel:
    """A kernel as its source states it. bounds: its threads, by the name of their constant if they have one."""

    file: str
    name: str
    bounds: str
    threads: int
    parameters: tuple[Parameter, ...]

    def compiled_with(self, constants: Mapping[str, Any]) -> Kernel:
        """What it is with these constants, of which one may say how many threads a block has."""
        return replace(self, threads=int(constants[self.bounds])) if self.bounds in constants else self


@dataclass(frozen=True)
class Launch:
    """One launch as it happened: "file.name", what it was compiled with, its grid, bytes of dynamic shared memory, and
    the shape and dtype of each array by its parameter's name (in tables theta[0], theta[1], ...)."""

    kernel: str
    defines: tuple[tuple[str, Any], ...]
    grid: tuple[int, ...]
    threads: int
    shared: int
    arrays: dict[str, tuple[tuple[int, ...], np.dtype]]


_launches: ContextVar[list[Launch] | None] = ContextVar("launches", default=None)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Within it, every launch is appended to the list."""
    launches: list[Launch] = []
    token = _launches.set(launches)
    try:
        yield launches
    finally:
        _launches.reset(token)


@lru_cache(maxsize=1)
def folder() -> Path:
    """Where the .cu files are: minunet/kernels in an installed copy, kernels/ beside minunet/ in a checkout."""
    package = Path(__file__).parent
    for place in (package / "kernels", package.parent / "kernels"):
        if (place / "common.cuh").is_file():
            return place
    raise UserError(f"the CUDA kernels are missing: there is no kernels folder in {package} or beside it; install "
                    "minunet anew")


@lru_cache(maxsize=None)
def source(file: str) -> str:
    """The text of kernels/<file>.cu with its headers pasted in, once each: CuPy's disk cache does not see includes."""
    return _paste(f"{file}.cu", set())


def _paste(name: str, seen: set[str]) -> str:
    path = folder() / name
    if not path.is_file():
        raise KernelError(f"there is no kernel file {name} in {folder()}")
    text = path.read_text(encoding="utf-8").replace("#pragma once", "")

    def header(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        line = text[:match.start()].count("\n") + 2
        return f'{_paste(match[1], seen)}\n#line {line} "{name}"'

    return f'#line 1 "{name}"\n' + _INCLUDE.sub(header, text)


@lru_cache(maxsize=None)
def kernels_of(file: str) -> dict[str, Kernel]:
    """The kernels of a file by their names, in the order of the file."""
    return parse(file, source(file))


def parse(file: str, text: str) -> dict[str, Kernel]:
    """The kernels that a text states, by their names."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    constants = {name: int(value) for name, value in _CONSTANT.findall(text)}
    found = {}
    for bounds, name, parameters in _KERNEL.findall(text):
        threads = int(bounds) if bounds.isdecimal() else constants[bounds]
        listed = tuple(_parameter(" ".join(p.split())) for p in parameters.split(",") if p.strip())
        found[name] = Kernel(file, name, bounds, threads, listed)
    return found


def _parameter(text: str) -> Parameter:
    """`const real* __restrict__ x` and the like."""
    match = re.fullmatch(r"(INOUT )?(const )?([\w ]+?) ?(\*{0,2}) ?(?:__restrict__ )?(\w+)", text)
    if match is None:
        raise KernelError(f"cannot read the parameter {text!r}; write [INOUT] [const] TYPE[*|**] [__restrict__] NAME")
    inout, const, kind, pointer, name = match.groups()
    return Parameter(name, kind, bool(pointer), pointer == "**", bool(const), bool(inout))


@lru_cache(maxsize=None)
def structs_of(file: str) -> dict[str, np.dtype]:
    """The structs of ints that a file's kernels take by value, as NumPy dtypes."""
    text = re.sub(r"//[^\n]*", "", source(file))
    return {name: np.dtype([(field, np.int32) for field in re.findall(r"(\w+)\s*[,;]", fields)])
            for name, fields in _STRUCT.findall(text)}


def shared_memory(device: str) -> int:
    """Bytes of shared memory that a block may have, on cuda or sim."""
    return simulator.MAX_SHARED if device == "sim" else _shared_memory(cupy().cuda.Device().id)


@lru_cache(maxsize=None)
def _shared_memory(device: int) -> int:
    return int(cupy().cuda.runtime.getDeviceProperties(device)["sharedMemPerBlockOptin"])


@lru_cache(maxsize=None)
def needs(file: str) -> int:
    """The lowest architecture that a file or one of its headers says it needs, 80 for `// needs sm_80`; 0 for any."""
    return max(map(int, re.findall(r"^// needs sm_(\d+)\b", source(file), re.MULTILINE)), default=0)


def launch(kernel: str, *arguments: Any, threads: int | None = None, blocks: tuple[int, ...] = (),
           real: Any = None, shared: int = 0, defines: Mapping[str, Any] | None = None) -> None:
    """Run a kernel, "file.name", on the device of its arrays.

    Args:
        arguments: one for each parameter: an array for a pointer (`real*`), a list of arrays for a table of pointers
            (`real**`), Python numbers for numbers, a NamedTuple of ints for a struct. All arrays on one device.
        threads: how many threads are wanted; the last block may have more, which the kernel guards against.
        blocks: instead, the grid.
        real: float32 or float64; by default the dtype of the first array whose parameter is of type real.
        shared: bytes of dynamic shared memory.
        defines: constants to compile with, such as tile sizes; every set of them is compiled once.

    Raises KernelError for arguments that do not fit the signature, a failed compilation or a failed launch; on the
    simulated GPU in checked mode also for any wrong access. UserError where the device cannot be used.
    """
    file, _, name = kernel.partition(".")
    if name not in kernels_of(file):
        raise KernelError(f"kernels/{file}.cu has no kernel {name!r}; it has {', '.join(kernels_of(file))}")
    stated = kernels_of(file)[name].compiled_with(defines or {})
    if len(arguments) != len(stated.parameters):
        raise KernelError(f"{kernel}: takes {len(stated.parameters)} arguments "
                          f"({', '.join(p.name for p in stated.parameters)}); got {len(arguments)}")
    arrays = [(p, array) for p, a in zip(stated.parameters, arguments) if p.pointer for array in (a if p.many else [a])]
    if real is None:
        real = next((getattr(a, "dtype", None) for p, a in arrays if p.type == "real"), np.float32)
    if real not in FLOATS:
        raise KernelError(f"{kernel}: computes in float32 or float64; got arrays of {real}")
    try:
        device = device_of(*(a for _, a in arrays))
    except TypeError as error:
        raise KernelError(f"{kernel}: {error}") from None
    if device == "cpu":
        raise KernelError(f"{kernel}: kernels run on the devices cuda and sim; these arrays are on cpu")
    wide = any(p.type in ("long long", "unsigned long long") and not p.pointer for p in stated.parameters)
    for parameter, array in arrays:
        if array.size > INT_LIMIT and not wide:
            raise KernelError(f"{kernel}: {parameter.name} has {array.size} elements, and the kernel counts them with "
                              f"an int, up to {INT_LIMIT}; use a smaller batch or image")
    checked = [_checked(kernel, p, a, structs_of(file), np.dtype(real)) for p, a in zip(stated.parameters, arguments)]
    grid = blocks if threads is None else (-(-threads // stated.threads),)
    if (threads is None) != bool(blocks) or not 1 <= len(grid) <= 3 or min(grid) < 0:
        raise KernelError(f"{kernel}: give threads, or blocks of one to three dimensions; got {threads!r}, {blocks!r}")
    if 0 in grid:
        return                              # nothing to do
    constants = {"real": "double" if np.dtype(real) == np.float64 else "float", **(defines or {})}
    compiled_with, blocks = tuple(constants.items()), (*grid, 1, 1)[:3]
    if (launches := _launches.get()) is not None:
        named = {f"{p.name}[{i}]" if p.many else p.name: (a.shape, a.dtype)
                 for p, value in zip(stated.parameters, checked) if p.pointer
                 for i, a in enumerate(value if p.many else [value])}
        launches.append(Launch(kernel, compiled_with, blocks, stated.threads, shared, named))
    if device == "sim":
        tape.done(lambda: _simulated(stated, compiled_with, blocks, checked, shared))
    else:
        _on_gpu(stated, compiled_with, blocks, checked, shared)


def _checked(kernel: str, p: Parameter, value: Any, structs: Mapping[str, np.dtype], real: np.dtype) -> Any:
    """The argument as the kernel's own type, or an error that names it."""
    wanted = real if p.type == "real" else structs.get(p.type) or np.dtype(TYPES[p.type])
    if p.many:
        return [_checked(kernel, replace(p, name=f"{p.name}[{i}]", many=False), array, structs, real)
                for i, array in enumerate(value)]
    if p.pointer:
        if value.dtype != wanted:
            raise KernelError(f"{kernel}: {p.name} must be {wanted}; got {value.dtype} {value.shape}")
        if not value.flags.c_contiguous:
            raise KernelError(f"{kernel}: {p.name} must be contiguous; its shape is {value.shape}, its strides "
                              f"{value.strides} bytes")
        return value
    if p.type in structs:
        if getattr(value, "_fields", None) != wanted.names:
            raise KernelError(f"{kernel}: {p.name} must be a NamedTuple of {', '.join(wanted.names or ())}; got "
                              f"{value!r}")
        for name, number in zip(value._fields, value):
            _number(f"{kernel}: {p.name}.{name}", number, np.dtype(np.int32))
        return np.array(tuple(value), wanted)       # without axes: CuPy passes it by value
    return _number(f"{kernel}: {p.name}", value, wanted)


def _number(what: str, value: Any, wanted: np.dtype) -> Any:
    """value as a NumPy number: CuPy would pass a Python int as 64 bits and a Python float as double, unchecked."""
    integral = isinstance(value, (int, np.integer))
    if not integral and not (wanted.kind == "f" and isinstance(value, (float, np.floating))):
        raise KernelError(f"{what} must be a number of type {wanted}; got {value!r}")
    if wanted in RANGES and not RANGES[wanted][0] <= value <= RANGES[wanted][1]:
        raise KernelError(f"{what} must fit {wanted}; got {value!r}")
    return wanted.type(value)


def _simulated(kernel: Kernel, defines: tuple[tuple[str, Any], ...], grid: tuple[int, ...], arguments: list[Any],
               shared: int) -> None:
    try:
        simulator.launch(source(kernel.file), kernel, defines, grid, arguments, shared)
    except simulator.SimulatorError as error:
        raise KernelError(f"{kernel.file}.{kernel.name}: {error}") from None


def _on_gpu(kernel: Kernel, defines: tuple[tuple[str, Any], ...], grid: tuple[int, ...], arguments: list[Any],
            shared: int) -> None:
    function = _compiled(kernel.file, kernel.name, defines, cupy().cuda.Device().id)
    passed = tuple(tape.keep(_table(tuple(a.data.ptr for a in value), cupy().cuda.Device().id)) if p.many else value
                   for p, value in zip(kernel.parameters, arguments))
    try:
        if shared > STATIC_SHARED:
            function.max_dynamic_shared_size_bytes = shared
        function(grid, (kernel.threads,), passed, shared_mem=shared)
    except cupy().cuda.driver.CUDADriverError as error:
        raise KernelError(f"{kernel.file}.{kernel.name}: the launch of {grid} blocks of {kernel.threads} threads "
                          f"failed: {error}") from None


@lru_cache(maxsize=64)
def _table(addresses: tuple[int, ...], device: int) -> Any:
    """A table of pointers: an array of addresses, which are the same in every step once memory comes from a pool."""
    tape.refuse("brought to")
    return cupy().array(np.array(addresses, np.uint64))


@lru_cache(maxsize=None)
def _compiled(file: str, name: str, defines: tuple[tuple[str, Any], ...], device: int) -> Any:
    """The CuPy function, for one device: a module belongs to the device on which it was loaded."""
    return _module(file, defines, device).get_function(name)


@lru_cache(maxsize=None)
def _module(file: str, defines: tuple[tuple[str, Any], ...], device: int) -> Any:
    have = int(cupy().cuda.Device(device).compute_capability)
    if have < needs(file):
        raise UserError(f"kernels/{file}.cu needs a GPU of compute capability {_capability(needs(file))} or above; "
                        f"device {device} has {_capability(have)}; --device sim runs the same kernels")
    # CuPy writes the code to a file in the locale's encoding, which may lack a letter of a comment
    code = source(file).encode("ascii", "replace").decode("ascii")
    module = cupy().RawModule(code=code, options=options(dict(defines)))
    try:
        module.compile()
    except cupy().cuda.compiler.CompileException as error:
        raise KernelError(f"kernels/{file}.cu does not compile: {error}") from None
    return module


def _capability(arch: int) -> str:
    """8.9 for 89, 12.0 for 120."""
    return f"{arch // 10}.{arch % 10}"


def options(defines: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that a file is compiled with, by CuPy and in the checks without a GPU alike."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in defines.items()))
