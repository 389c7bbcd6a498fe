"""Compile kernels/*.cu for any architecture, without a GPU and its driver, and read off what each kernel costs there.

    compiled = compile("pool", 90)
    compiled.kernels["max_pool2d"].registers
    occupancy(256, registers=40, shared=0, arch=90)

NVRTC is the CUDA compiler as a library. The source and the options are those that CuPy hands to it on a machine with a
GPU, so what compiles here compiles there. What a kernel costs stands in the log of ptxas, the assembler, and in the
PTX: the registers of a thread, what did not fit into them and is spilled to memory, the block's shared memory.

Two comment lines of a .cu file are instructions to this room: `// needs sm_80`, the lowest architecture it compiles
for (`minunet.cuda.needs`), and `// variants: ...`, the constants that it is launched with (`variants`).
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from minunet import cuda
from minunet.errors import UserError

# What CuPy 14 adds to the options of a RawModule in cupy/cuda/compiler.py, besides -arch and folders of headers.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")

SYSTEM = ("libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so")
OLD = "nvrtc: warning: Architectures prior to "         # the compiler's own notice, of no fault in the source


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor of an architecture holds at a time. Shared memory is in bytes."""

    blocks: int
    warps: int
    shared: int
    reserved: int       # of the shared memory, by the driver, for each block
    unit: int           # shared memory of a block is rounded up to this


# By compute capability: CUDA C++ Programming Guide 13.1, table "Technical Specifications per Compute Capability" (7.0:
# edition 12.9); reserved and unit: cuda_occupancy.h of the toolkit.
LIMITS = {
    70: Limits(32, 64, 96 << 10, 0, 256),
    75: Limits(16, 32, 64 << 10, 0, 256),
    80: Limits(32, 64, 164 << 10, 1024, 128),
    86: Limits(16, 48, 100 << 10, 1024, 128),
    89: Limits(24, 48, 100 << 10, 1024, 128),
    90: Limits(32, 64, 228 << 10, 1024, 128),
    100: Limits(32, 64, 228 << 10, 1024, 128),
    120: Limits(24, 48, 100 << 10, 1024, 128),
}
ARCHITECTURES = tuple(LIMITS)       # those that the kernels are written for

# The same for all of them, from the same sources.
WARP = 32
REGISTERS = 64 << 10                # of a multiprocessor and, at most, of a block, 32 bits each
PARTITIONS = 4                      # of a multiprocessor; each has a quarter of the registers, and a warp stays in one
REGISTER_UNIT = 256                 # registers of a warp are rounded up to this


@dataclass(frozen=True)
class CompiledKernel:
    """What one kernel costs on one architecture, and its signature in PTX. Sizes are in bytes."""

    name: str
    threads: int                    # of a block, from its launch bounds; 0 if it has none
    parameters: tuple[str, ...]     # ".u64" (a pointer too), ".f32", ".b8[60]" (a struct), ...
    registers: int                  # of a thread, 32 bits each
    spill_stores: int               # of a thread; what did not fit into the registers
    spill_loads: int
    stack: int                      # of a thread, in memory: spills, and arrays whose index is not known beforehand
    shared: int                     # of a block, without what the launch adds
    dynamic: bool                   # whether it uses shared memory that the launch adds
    barriers: int


@dataclass(frozen=True)
class Compiled:
    """A kernel file, compiled for one architecture."""

    file: str
    arch: int
    cubin: bytes
    ptx: str
    log: str
    kernels: dict[str, CompiledKernel]

    @property
    def warnings(self) -> str:
        """Whatever the log holds besides the figures of ptxas and the notice that an architecture is old."""
        return _complaints(self.log)


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of a kernel a multiprocessor holds at a time, and what share of its warps they are."""

    blocks: int
    warps: int
    share: float


def version() -> tuple[int, int]:
    """The compiler's version, such as (12, 9). Raises UserError where there is none."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def supported() -> tuple[int, ...]:
    """The architectures that the compiler knows, as numbers: 90 is sm_90. Raises UserError where there is none."""
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", numbers)
    return tuple(numbers)


def variants(file: str) -> tuple[dict[str, str], ...]:
    """The sets of constants that kernels/<file>.cu is launched with, as its comment lines state them:

        // variants: TILE_M=128 TILE_N=16; TILE_M=64 TILE_N=64
        // variants: default; real=float STAGES=3|4

    default is the set without any; a file without such a line has just that. real=float: for this type alone. A|B: a
    set with each of these values, and with each of the others' in turn.
    """
    lines = re.findall(r"^// variants:(.*)$", cuda.source(file), re.MULTILINE)
    found: list[dict[str, str]] = []
    for entry in (entry.strip() for line in lines for entry in line.split(";")):
        pairs = [re.fullmatch(r"([A-Za-z_]\w*)=([\w.+-]+(?:\|[\w.+-]+)*)", word) for word in entry.split()
                 if entry != "default"]
        if not entry or None in pairs:
            raise cuda.KernelError(f"kernels/{file}.cu: a variant must be NAME=VALUE NAME=VALUE ... or default; got "
                                   f"{entry!r}")
        found += map(dict, product(*([(pair[1], value) for value in pair[2].split("|")] for pair in pairs if pair)))
    return tuple(found) or ({},)


def compile(file: str, arch: int, defines: Mapping[str, Any] | None = None) -> Compiled:
    """Compile kernels/<file>.cu for an architecture (90 is sm_90), with the options that CuPy uses.

    Raises KernelError with the compiler's words where the source is at fault, UserError without NVRTC and for an
    architecture that it does not know.
    """
    if arch not in supported():
        raise UserError(f"NVRTC {'.'.join(map(str, version()))} compiles for "
                        f"{', '.join(f'sm_{known}' for known in supported())}; got sm_{arch}")
    options = (*cuda.options({"real": "float", **(defines or {})}), *CUPY_OPTIONS, f"-arch=sm_{arch}",
               "--ptxas-options=-v")
    program = ctypes.c_void_p()
    _call("nvrtcCreateProgram", ctypes.byref(program), cuda.source(file).encode(), f"{file}.cu".encode(), 0, None, None)
    try:
        encoded = [option.encode() for option in options]
        failed = _library().nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        log = _text(_output(program, "ProgramLog"))
        if failed:
            raise cuda.KernelError(f"kernels/{file}.cu does not compile for sm_{arch}: "
                                   f"{_complaints(log) or _words(failed)}")
        ptx = _text(_output(program, "PTX"))
        return Compiled(file, arch, _output(program, "CUBIN"), ptx, log, dict(_kernels(ptx, log)))
    finally:
        _library().nvrtcDestroyProgram(ctypes.byref(program))


def occupancy(threads: int, registers: int, shared: int, arch: int) -> Occupancy:
    """What fits into a multiprocessor: blocks of these threads, registers a thread, bytes of shared memory a block.

    By calculation, as cuda_occupancy.h of the toolkit does it, with as much of the L1 cache given to shared memory as
    can be. No blocks means that the kernel cannot be launched.
    """
    limits = LIMITS[arch]
    warps = _up(threads, WARP) // WARP
    of_warp = _up(max(registers, 1) * WARP, REGISTER_UNIT)
    blocks = min(limits.blocks, limits.warps // warps, REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps)
    if shared + limits.reserved:
        blocks = min(blocks, limits.shared // _up(shared + limits.reserved, limits.unit))
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _complaints(log: str) -> str:
    lines = (line for line in log.splitlines() if not re.match(r"ptxas (info +:|  +\. )", line))
    return "\n".join(line for line in lines if line.strip() and not line.startswith(OLD))


def _kernels(ptx: str, log: str) -> Iterator[tuple[str, CompiledKernel]]:
    """The kernels by name: signatures and launch bounds from the PTX, costs from the log of ptxas."""
    added = re.findall(r"^\.extern \.shared [^;]*?(\w+)\[\];", ptx, re.MULTILINE)
    for entry in re.finditer(r"\.entry (\w+)\s*\(([^)]*)\)([^{]*)\{(.*?)^\}", ptx, re.MULTILINE | re.DOTALL):
        name, listed, bounds, body = entry.groups()
        # .param .u64 relu_param_0,    .param .align 4 .b8 relu_param_1[60]
        found = re.findall(r"\.param (?:\.align \d+ )?(\.\w+)[^,\n]*?\s\w+(\[\d+\])?\s*(?:,|$)", listed, re.MULTILINE)
        limit = re.search(r"\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", bounds)
        x, y, z = (int(side or 1) for side in limit.groups()) if limit else (0, 0, 0)
        costs = log.partition(f"Compiling entry function '{name}' ")[2].partition("Compiling entry function")[0]
        frame = costs.partition(f"Function properties for {name}\n")[2]

        def number(pattern: str, text: str) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        if not frame or "registers" not in costs:
            raise cuda.KernelError(f"the compiler's log says nothing of the kernel {name}: {log}")
        yield name, CompiledKernel(
            name, x * y * z, tuple(kind + count for kind, count in found), number(r"Used (\d+) registers", costs),
            number(r"(\d+) bytes spill stores", frame), number(r"(\d+) bytes spill loads", frame),
            number(r"(\d+) bytes stack frame", frame), number(r"(\d+) bytes smem", costs),
            any(re.search(rf"\b{array}\b", body) for array in added), number(r"used (\d+) barriers", costs))


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """NVRTC from the wheel nvidia-cuda-nvrtc-cu12 or nvidia-cuda-nvrtc, else from an installed toolkit.

    Of several wheels the oldest: NVRTC 13 no longer knows sm_70.
    """
    package = importlib.util.find_spec("nvidia")
    folders = map(Path, package.submodule_search_locations or ()) if package else ()
    # nvidia/cuda_nvrtc/lib/libnvrtc.so.12, nvidia/cu13/lib/libnvrtc.so.13
    wheels = sorted((path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.[0-9][0-9]")),
                    key=lambda path: path.name)
    for path in (*map(str, wheels), *SYSTEM):
        try:
            if path not in SYSTEM:
                for builtins in Path(path).parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins))          # which NVRTC 13.0 does not look for beside itself
            library = ctypes.CDLL(path)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise UserError("compiling kernels without a GPU needs NVRTC, which is not installed: pip install 'minunet[nvrtc]'")


def _call(function: str, *arguments: Any) -> None:
    failed = getattr(_library(), function)(*arguments)
    if failed:
        raise RuntimeError(f"{function}: {_words(failed)}")


def _words(code: int) -> str:
    return _library().nvrtcGetErrorString(code).decode()


def _output(program: ctypes.c_void_p, what: str) -> bytes:
    """ProgramLog, PTX or CUBIN of a program."""
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def _text(output: bytes) -> str:
    """Without the zero bytes that end each part."""
    return output.replace(b"\0", b"").decode()
