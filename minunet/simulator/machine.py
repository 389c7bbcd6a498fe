"""Launch kernels on the simulated GPU, with NumPy arrays as its memory.

A launch is plain, or within `checking()` checked: then each array is copied to a place of its own with empty space
around it, and every access of every thread is followed. `trace()` also records the accesses of one block.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minunet.simulator.build import DYNAMIC_SHARED, HEADERS, SimulatorError, build, run
from minunet.simulator.tracing import PASSED, RECORD, Place, Trace

MAX_THREADS = 1024                      # of a block
MAX_BLOCKS = (2**31 - 1, 65535, 65535)
MAX_SHARED = 227 << 10                  # bytes of dynamic shared memory of a block, on the largest GPUs
GUARD = 64 << 10                        # bytes around an array, which an index that has gone astray meets
CONSTANT, DEFINED, SHARED = 1, 2, 4     # the flags of a region in check.h

# Bytes of types. Shared arrays of these are followed four bytes at a time, all others byte by byte.
_WORDS = {"float": 4, "int": 4, "unsigned": 4, "double": 8, "float2": 8, "float4": 16, "int2": 8, "int4": 16}
_ALIGN = r"(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s*)?"
_SHARED_ARRAY = re.compile(rf"__shared__\s+{_ALIGN}(\w[\w ]*?)\s+{_ALIGN}(\w+)\s*[\[;]")
_OWN = re.compile(r"_Z(Z?)N12_GLOBAL__N_1")        # a C++ name in the unnamed namespace; Z: of a function's variable
_PLACE = re.compile(r"\[pc ([0-9a-f]+)\]")


class Parameter(Protocol):
    """What a launch asks of a parameter (see minunet.cuda.Parameter)."""

    @property
    def name(self) -> str: ...
    @property
    def pointer(self) -> bool: ...
    @property
    def many(self) -> bool: ...
    @property
    def const(self) -> bool: ...
    @property
    def inout(self) -> bool: ...


class Kernel(Protocol):
    """What a launch asks of a kernel (see minunet.cuda.Kernel)."""

    @property
    def file(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def parameters(self) -> Sequence[Parameter]: ...


_checking: ContextVar[tuple[int, int] | None] = ContextVar("checking", default=None)
_tracing: ContextVar[Trace | None] = ContextVar("tracing", default=None)


@contextmanager
def checking(order: int = 0, seed: int = 1) -> Iterator[None]:
    """Within it, launches of this Python thread are checked: about 100 times slower, and every fault is an error.

    Args:
        order: threads and blocks run 0 forwards, 1 backwards, 2 shuffled.
        seed: of the shuffling.
    """
    token = _checking.set((order, seed))
    try:
        yield
    finally:
        _checking.reset(token)


@contextmanager
def trace(block: int = 0, kernel: str | None = None, limit: int = 4_000_000) -> Iterator[Trace]:
    """Within it, launches are checked, and the Trace that it gives records what one block did to memory.

    Args:
        block: the block's number, x fastest. A launch with fewer blocks adds nothing.
        kernel: "file.name": record its launches alone; others are as without the trace.
        limit: how many records of 24 bytes to keep, of all launches together: of accesses, and of the basic blocks of
            code that threads pass, one to twenty for each access. `Trace.truncated` says if there were more.

    Example:
        with simulator.trace(kernel="activation.relu") as trace:
            cuda.launch("activation.relu", x, y, y.size, threads=y.size)
        for step in trace.steps(warp=0):
            print(step.place, step.array, step.offsets)
    """
    recorded = Trace(block, limit, kernel)
    token = _tracing.set(recorded)
    try:
        yield recorded
    finally:
        _tracing.reset(token)


def launch(source: str, kernel: Kernel, defines: Sequence[tuple[str, Any]], grid: Sequence[int],
           arguments: Sequence[Any], shared: int) -> None:
    """Run one kernel of a file's text.

    Args:
        source: the file, with its headers pasted in.
        kernel: has file, name, threads and parameters; arguments belong to the parameters one by one: C-contiguous
            arrays, lists of arrays for tables, NumPy scalars. They fit, which minunet.cuda sees to.
        defines: constants to compile with.
        grid: blocks in x, y, z.
        shared: bytes of dynamic shared memory.

    Checked, an array that is neither const nor INOUT is undefined before; what the kernel leaves of it unwritten is NaN
    (all bits set) after. Raises SimulatorError for a kernel that does not compile, for a launch that no GPU would take
    and for what the checks find; barriers that not all threads reach are found without the checks too. UserError
    without a compiler.
    """
    if not 1 <= kernel.threads <= MAX_THREADS:
        raise SimulatorError(f"a block of {kernel.threads} threads; a GPU takes 1 to {MAX_THREADS}")
    if any(not 1 <= n <= most for n, most in zip(grid, MAX_BLOCKS)):
        raise SimulatorError(f"a grid of {tuple(grid)} blocks; a GPU takes up to {MAX_BLOCKS}")
    if not 0 <= shared <= MAX_SHARED:
        raise SimulatorError(f"{shared} bytes of dynamic shared memory; a block has at most {MAX_SHARED}")
    recorded = _tracing.get()
    if recorded is not None and recorded.kernel not in (None, f"{kernel.file}.{kernel.name}"):
        recorded = None
    checked = _checking.get() or ((0, 1) if recorded is not None else None)
    module = _module(source, kernel.file, tuple(defines), checked is not None, recorded is not None)
    with module.lock:                   # the library is one machine: one launch at a time
        module.run(kernel, grid, arguments, shared, checked, recorded)


_modules: dict[tuple[Any, ...], _Module] = {}
_modules_lock = threading.Lock()


def _module(source: str, file: str, defines: tuple[tuple[str, Any], ...], checked: bool, traced: bool) -> _Module:
    key = (source, file, defines, checked, traced)
    module = _modules.get(key)
    if module is None:
        with _modules_lock:
            module = _modules.setdefault(key, _Module(*key))
    return module


_stacks: list[int] = []                 # of launches that have ended; each is enough for a block


@dataclass
class _Region:
    """An array that a kernel may touch, as the checks know it."""

    name: str
    start: int
    bytes: int
    item: int           # bytes of an element
    grain: int          # bytes that are followed as one
    flags: int


@dataclass
class _Arguments:
    """The arguments of one launch, where the machine finds them."""

    regions: list[_Region] = field(default_factory=list)
    pointers: list[int] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)                   # alive until the launch ends
    results: list[tuple[Any, Any]] = field(default_factory=list)    # (array, checked copy)


class _Module:
    """A compiled file. It is built at its first launch, under its lock."""

    def __init__(self, source: str, file: str, defines: tuple[tuple[str, Any], ...], checked: bool,
                 traced: bool) -> None:
        self.source, self.file, self.defines, self.checked, self.traced = source, file, defines, checked, traced
        self.lock = threading.Lock()
        self.path = Path()
        self.library: Any = None
        self.variables: list[_Region] = []      # the file's own: shared arrays, constant tables, __device__ variables
        self.places: dict[int, Place] = {}

    def load(self) -> None:
        self.path = build(self.source, self.file, self.defines, self.checked, self.traced)
        library = ctypes.CDLL(str(self.path))
        library.sim_error.restype = ctypes.c_char_p
        library.sim_new_stacks.restype = ctypes.c_void_p
        library.sim_launch.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_size_t, ctypes.c_int, ctypes.c_uint,
                                                               ctypes.c_void_p]
        if self.checked:
            library.sim_region.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                                           ctypes.c_char_p]
            library.sim_trace.argtypes = [ctypes.c_void_p, ctypes.c_longlong, ctypes.c_uint]
            library.sim_traced.restype = ctypes.c_longlong
            self.variables = self.find_variables(library)
        self.library = library

    def find_variables(self, library: Any) -> list[_Region]:
        """The static variables of the kernels, from the library's symbol table."""
        # address, bytes, kind (d, b: data, r: read-only), name
        symbols = [line.split() for line in run(["nm", "-S", str(self.path)]).splitlines()]
        base = ctypes.cast(library.sim_error, ctypes.c_void_p).value or 0
        base -= next(int(symbol[0], 16) for symbol in symbols if symbol[-1] == "sim_error")
        items: dict[str, int] = {}              # the least, where two arrays share a name
        for kind, name in _SHARED_ARRAY.findall(self.source):
            items[name] = min(self.bytes_of(kind), items.get(name, 16))
        found = []
        for address, size, kind, mangled in (symbol for symbol in symbols if len(symbol) == 4):
            own = _OWN.match(mangled)
            if kind not in "bdr" or not (own or kind == "r"):
                continue
            name = _plain_name(mangled[own.end():]) if own else mangled
            # a static variable of a function that can be written is a __shared__ array
            flags = DEFINED | CONSTANT if kind == "r" else SHARED if own and own[1] else DEFINED
            item = items.get(name, 1) if flags == SHARED else 1
            found.append(_Region(name, base + int(address, 16), int(size, 16), item, min(item, 4), flags))
        return found

    def bytes_of(self, kind: str) -> int:
        """Of a type of _WORDS, else 1."""
        return _WORDS.get(str(dict(self.defines).get("real", "float")) if kind == "real" else kind, 1)

    def run(self, kernel: Kernel, grid: Sequence[int], arguments: Sequence[Any], shared: int,
            checked: tuple[int, int] | None, recorded: Trace | None) -> None:
        if self.library is None:
            self.load()
        body = getattr(self.library, f"sim_kernel_{kernel.name}")
        try:
            stacks = _stacks.pop()
        except IndexError:
            stacks = self.new_stacks()
        placed = self.place_checked(kernel, arguments) if checked else _placed(kernel, arguments)
        dynamic = _aligned(shared)
        if checked and shared:
            placed.regions.append(self.dynamic_region(dynamic.ctypes.data, shared))
        for region in placed.regions:
            name = region.name.encode()
            placed.kept.append(name)
            self.library.sim_region(region.start, region.bytes, region.item, region.grain, region.flags, name)
        records = None
        if recorded is not None:
            records = np.empty(recorded.room, RECORD)       # only what is written to becomes memory
            self.library.sim_trace(records.ctypes.data, len(records), recorded.block)
        pointers = (ctypes.c_void_p * len(placed.pointers))(*placed.pointers)
        order, seed = checked or (0, 1)
        failed = self.library.sim_launch(body, pointers, (ctypes.c_uint * 3)(*grid),
                                         (ctypes.c_uint * 3)(kernel.threads, 1, 1), dynamic.ctypes.data, shared,
                                         order, seed, stacks)
        _stacks.append(stacks)
        if recorded is not None and records is not None:
            count = self.library.sim_traced()
            records = records[:count].copy()
            self.find_places(np.unique(records["pc"][records["access"] != PASSED]).tolist())
            recorded.add(f"{kernel.file}.{kernel.name}", records, count, placed.regions, self.places)
        if failed:
            raise SimulatorError(self.explained(self.library.sim_error().decode(errors="replace")))
        for array, copy in placed.results:
            array[:] = copy

    def new_stacks(self) -> int:
        stacks = self.library.sim_new_stacks()
        if not stacks:
            raise SimulatorError("there is no address space for the stacks of a block, 68 MiB")
        return stacks

    def dynamic_region(self, start: int, size: int) -> _Region:
        arrays = DYNAMIC_SHARED.findall(self.source)
        item = min((self.bytes_of(kind) for kind, _ in arrays), default=1)
        names = {name for _, name in arrays}
        name = names.pop() if len(names) == 1 else "dynamic shared memory"
        return _Region(name, start, size, item, min(item, 4), SHARED)

    def place_checked(self, kernel: Kernel, arguments: Sequence[Any]) -> _Arguments:
        """Copies of all arrays, far from each other."""
        placed = _Arguments(regions=list(self.variables))
        arrays = [a for p, v in zip(kernel.parameters, arguments) if p.pointer for a in (v if p.many else [v])]
        # only what is touched of this becomes memory
        arena = np.empty(sum(a.nbytes + GUARD + 256 for a in arrays) + GUARD, np.uint8)
        placed.kept.append(arena)
        begin = arena.ctypes.data
        end = begin

        def place(array: Any, parameter: Parameter, name: str) -> int:
            nonlocal end
            start = end + GUARD
            start += -start % 256
            end = start + array.nbytes
            copy = arena[start - begin:end - begin]
            data = np.asarray(array).reshape(-1).view(np.uint8)
            defined = parameter.const or parameter.inout
            copy[:] = data if defined else 0xff
            flags = (CONSTANT if parameter.const else 0) | (DEFINED if defined else 0)
            placed.regions.append(_Region(name, start, array.nbytes, array.itemsize, min(array.itemsize, 4), flags))
            if not parameter.const:
                placed.results.append((data, copy))
            return start

        for parameter, value in zip(kernel.parameters, arguments):
            if not parameter.pointer:
                placed.pointers.append(_address_of_number(value, placed.kept))
            elif not parameter.many:
                start = place(value, parameter, parameter.name)
                placed.pointers.append(_address_of_number(np.uint64(start), placed.kept))
            else:
                starts = [place(array, parameter, f"{parameter.name}[{i}]") for i, array in enumerate(value)]
                table = np.array(starts, np.uint64)
                placed.regions.append(_Region(f"the table {parameter.name}", table.ctypes.data, table.nbytes, 8, 8,
                                              CONSTANT | DEFINED))
                placed.kept.append(table)
                placed.pointers.append(_address_of_number(np.uint64(table.ctypes.data), placed.kept))
        return placed

    def find_places(self, addresses: Sequence[int]) -> None:
        """Files and lines of instructions, into `places`."""
        new = [address for address in addresses if address not in self.places]
        for first in range(0, len(new), 1000):
            part = new[first:first + 1000]
            lines = run(["addr2line", "-sai", "-e", str(self.path), *map(hex, part)]).splitlines()
            calls: dict[int, list[tuple[str, int]]] = {}
            for line in lines:              # an address, then its places, from the innermost function outwards
                if line.startswith("0x"):
                    chain = calls[int(line, 16)] = []
                else:
                    name, _, number = line.split(" ")[0].rpartition(":")
                    chain.append((name, int(number) if number.isdecimal() else 0))
            for address, chain in calls.items():
                # the simulator's own headers are instructions of a GPU, not helpers
                written = [place for place in chain if not (HEADERS / place[0]).is_file()] or chain
                own = next((place for place in written if place[0] == f"{self.file}.cu"), written[0])
                self.places[address] = Place(*own, "{}:{}".format(*written[0]))

    def explained(self, message: str) -> str:
        """A message of check.h with the places in the source."""
        self.find_places([int(address, 16) for address in _PLACE.findall(message)])
        return _PLACE.sub(lambda match: self.places[int(match[1], 16)].words, message)


def _plain_name(mangled: str) -> str:
    """As of 4gemmEPKfE2As: a name has its length before it; the last one may have a number behind it."""
    for match in re.finditer(r"(?:^|[A-Za-z_])(\d+)", mangled):
        end = match.end() + int(match[1])
        if end <= len(mangled) and re.fullmatch(r"E?(_\d+_?)?", mangled[end:]):
            return mangled[match.end():end]
    return mangled


def _placed(kernel: Kernel, arguments: Sequence[Any]) -> _Arguments:
    """The arrays themselves."""
    placed = _Arguments()
    for parameter, value in zip(kernel.parameters, arguments):
        if parameter.pointer:
            if parameter.many:
                value = np.array([array.ctypes.data for array in value], np.uint64)
                placed.kept.append(value)
            value = np.uint64(value.ctypes.data)
        placed.pointers.append(_address_of_number(value, placed.kept))
    return placed


def _address_of_number(value: Any, kept: list[Any]) -> int:
    array = np.array(value)
    kept.append(array)
    return array.ctypes.data


def _aligned(size: int) -> np.ndarray:
    """size bytes that begin at a multiple of 256, as shared memory does."""
    memory = np.empty(size + 256, np.uint8)
    first = -memory.ctypes.data % 256
    return memory[first:first + size]
