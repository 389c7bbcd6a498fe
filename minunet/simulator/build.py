"""Compile a kernel file with g++ to a library that runs it on the CPU, and keep the library.

Two things are compiled: the machine (scheduler.h and what it includes), once for each mode, and every kernel file with
its constants, which sees cuda.h only. Both are kept in the user's cache folder under a hash of all that they were made
of. What is made appears there in one step, whole, so that any number of processes may build and use the same.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from minunet.errors import UserError

HEADERS = Path(__file__).parent
FLAGS = ("-std=c++17", "-w", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno")
FAST = ("-O2",)
# -O1 and no vectorisation, so that the accesses are the kernel's own; a float4 is moved whole only if its struct is not
# taken apart first. Line numbers for messages.
CHECKED = ("-O1", "-DSIM_CHECK", "-g1", "-fno-tree-vectorize", "-fno-tree-sra")
SANITIZE = ("-fsanitize=thread,bounds-strict,alignment,signed-integer-overflow,integer-divide-by-zero,shift-exponent",)
TRACED = ("-fsanitize-coverage=trace-pc",)           # a call at every basic block
DYNAMIC_SHARED = re.compile(r"\bextern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s+)?(\w[\w ]*?)\s+"
                            r"(?:__align__\s*\(\s*\d+\s*\)\s+)?(\w+)\s*\[\s*\]\s*;")
_KERNEL = re.compile(r"(?:__global__\s+void|\bKERNEL)\s+__launch_bounds__\s*\([^)]*\)\s*(\w+)\s*\(")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


class SimulatorError(RuntimeError):
    """A kernel that does not compile, or that did what a GPU forbids."""


def require_compiler() -> None:
    """Raise UserError, with what to install, where kernels cannot be compiled."""
    if not sys.platform.startswith("linux"):
        raise UserError("the device sim, the simulated GPU, runs on Linux only; use --device cpu")
    if shutil.which(_compiler()[0]) is None:
        raise UserError(f"the device sim, the simulated GPU, compiles kernels with {_compiler()[0]}, which is not "
                        "installed; install g++ (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name "
                        "it in CXX")


def _compiler() -> list[str]:
    named = os.environ.get("CXX") or "g++"
    try:
        return shlex.split(named) or ["g++"]
    except ValueError as error:
        raise UserError(f"CXX must be a C++ compiler and its options; got {named!r} ({error})") from None


def build(source: str, file: str, defines: Iterable[tuple[str, Any]], checked: bool, traced: bool = False) -> Path:
    """The library of a kernel file's text, from the cache or compiled now; traced: what is checked can be traced too.

    Raises SimulatorError with file, line and the compiler's words if it does not compile, UserError without a compiler.
    """
    machine = _machine(checked)
    kernels = _KERNEL.findall(_COMMENT.sub(" ", source))
    # In an unnamed namespace nothing is shared with other libraries. Kernels have C's names on a GPU, to be found by.
    body = DYNAMIC_SHARED.sub(r"SIM_DYNAMIC_SHARED(\1, \2)", source).replace('extern "C" __global__', "__global__")
    # behind the header, which has names of its own
    constants = [f"#define {name} {value}" for name, value in defines]
    stubs = [f"SIM_KERNEL({name})" for name in kernels]
    text = "\n".join(['#include "cuda.h"', *constants, "namespace {", f'#line 1 "{file}.cu"', body, "}",
                      '#line 1 "kernels"', *stubs, ""])
    instruments = [*(SANITIZE if checked else ()), *(TRACED if traced else ())]
    return _made(file, ".so", text, [*_flags(checked), *instruments], machine)


def _machine(checked: bool) -> Path:
    """The object file of the machine. It is not itself instrumented: it is what the instruments call."""
    text = f'#define SIM_MACHINE 1\n#include "{"check.h" if checked else "scheduler.h"}"\n#include "tensor_cores.h"\n'
    return _made("machine", ".o", text, [*_flags(checked), "-O2"])


@lru_cache(maxsize=None)
def _flags(checked: bool) -> tuple[str, ...]:
    fma = ("-mfma",) if _has_fma() else ()      # fused multiply-add, as on a GPU; else a slow function of libm
    return (*FLAGS, *fma, *(CHECKED if checked else FAST))


def _has_fma() -> bool:
    try:
        return platform.machine() == "x86_64" and " fma " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@lru_cache(maxsize=1)
def _headers() -> bytes:
    return b"".join(path.read_bytes() for path in sorted(HEADERS.glob("*.h")))


@lru_cache(maxsize=1)
def _private() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="minunet-")


def cache_folder() -> Path:
    """$MINUNET_CACHE, else $XDG_CACHE_HOME/minunet, else ~/.cache/minunet; a private one if that cannot be written."""
    chosen = os.environ.get("MINUNET_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(chosen) if chosen else Path(user).expanduser() / "minunet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):         # RuntimeError: there is no home
        pass
    return Path(_private().name)


def _made(name: str, suffix: str, text: str, flags: Sequence[str], machine: Path | None = None) -> Path:
    """The object file of a C++ text, or with the machine a library, from the cache or compiled now."""
    compiler = _compiler()
    recipe = repr((compiler, platform.machine(), text, list(flags), machine and machine.name)).encode()
    target = cache_folder() / f"{name}.{hashlib.sha256(recipe + _headers()).hexdigest()[:20]}{suffix}"
    if target.exists():
        return target
    require_compiler()
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as folder:
        code, made = Path(folder) / f"{name}.cpp", Path(folder) / f"{name}.o"
        code.write_text(text, encoding="utf-8")
        run([*compiler, f"-I{HEADERS}", *flags, "-c", str(code), "-o", str(made)])
        if machine is not None:             # not in one command: with -fsanitize it would link GCC's own checks
            library = made.with_suffix(suffix)
            run([*compiler, "-shared", "-Wl,-z,defs", str(made), str(machine), "-o", str(library)])
            made = library
        os.replace(made, target)
    return target


def run(command: Sequence[str]) -> str:
    """What a tool of the compiler says. Raises SimulatorError with its words if it fails, UserError without it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise UserError(f"the device sim, the simulated GPU, needs {command[0]}, which comes with g++ and binutils, "
                        "and is not installed") from None
    if done.returncode:
        raise SimulatorError(f"{command[0]} failed:\n{done.stderr.strip()}")
    return done.stdout
