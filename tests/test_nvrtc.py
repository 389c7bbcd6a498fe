"""Every kernel compiles for every architecture, without a GPU: no warning, no spills, and the signature that the door
reads off the source. Skipped where NVRTC is missing.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minunet import cuda, nvrtc
from minunet.errors import UserError

FILES = sorted(path.stem for path in cuda.folder().glob("*.cu"))
LATE = 90       # the architecture of every further compilation: one GPU of today
# By file and compiler: bytes that a thread may write to memory for want of registers, and as many that it may read.
# NVRTC 13.5 keeps up to 8 of the numbers there that a 256 x 64 tile of rung 3 decodes once, and reads them once in 512
# multiply-adds.
SPILLED = {("conv_implicit", 13): 32}
PTX = {"f4": ".f32", "f8": ".f64", "i4": ".u32", "u4": ".u32", "i8": ".u64", "u8": ".u64", "u1": ".u8", "i1": ".u8",
       "b1": ".u8"}


@pytest.fixture(scope="session")
def compiler():
    """The architectures of the compiler, or a skip that says what to install."""
    try:
        return nvrtc.supported()
    except UserError as error:
        pytest.skip(str(error))


def has_real(file):
    """Whether a file's own text, beside what it says, uses the type that the door sets."""
    text = (cuda.folder() / f"{file}.cu").read_text(encoding="utf-8")
    return re.search(r"\breal\b", re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)) is not None


def compilations():
    """Each file in float for each architecture that it needs; its further constants, and its first in double, for one.

    A further set of constants is compiled in double where it says real=double.
    """
    for file in FILES:
        sets = list(nvrtc.variants(file))
        if has_real(file) and "real" not in sets[0]:
            sets.insert(1, {**sets[0], "real": "double"})
        for i, constants in enumerate(sets):
            defines = {"real": "float", **constants}
            words = "".join(f"-{name}={value}" for name, value in defines.items() if name != "real")
            for arch in nvrtc.ARCHITECTURES:
                if arch >= cuda.needs(file) and (i == 0 or arch == LATE):
                    yield pytest.param(file, arch, defines, id=f"{file}-sm_{arch}-{defines['real']}{words}")


def faults(compiled, constants):
    """A sentence for everything about a file, compiled with these constants, that is not as it should be."""
    stated = {name: kernel.compiled_with(constants) for name, kernel in cuda.kernels_of(compiled.file).items()}
    real = constants["real"]
    found = [f"the compiler warns: {compiled.warnings}"] if compiled.warnings else []
    found += [f"{name}: the door does not see this kernel" for name in compiled.kernels.keys() - stated.keys()]
    found += [f"{name}: compiled to nothing" for name in stated.keys() - compiled.kernels.keys()]
    for name in stated.keys() & compiled.kernels.keys():
        kernel, parameters = compiled.kernels[name], tuple(map(in_ptx(compiled.file, real), stated[name].parameters))
        if kernel.parameters != parameters:
            found.append(f"{name}: takes {kernel.parameters} in PTX, the door passes {parameters}")
        if kernel.threads != stated[name].threads:
            found.append(f"{name}: compiled for {kernel.threads} threads, launched with {stated[name].threads}")
        if kernel.registers * stated[name].threads > nvrtc.REGISTERS:
            found.append(f"{name}: {kernel.registers} registers x {stated[name].threads} threads do not fit")
        if kernel.shared > cuda.STATIC_SHARED:
            found.append(f"{name}: {kernel.shared} bytes of static shared memory")
        elif nvrtc.occupancy(stated[name].threads, kernel.registers, kernel.shared, compiled.arch).blocks == 0:
            found.append(f"{name}: no block fits into a multiprocessor")
        allowed = SPILLED.get((compiled.file, nvrtc.version()[0]), 0)
        if real == "float" and max(kernel.spill_stores, kernel.spill_loads) > allowed:
            found.append(f"{name}: spills {kernel.spill_stores} bytes, reloads {kernel.spill_loads}")
    return found


def in_ptx(file, real):
    """How a parameter that the door reads off the source must look in PTX."""
    def kind(p):
        if p.pointer:
            return ".u64"
        struct, number = cuda.structs_of(file).get(p.type), cuda.TYPES.get(real if p.type == "real" else p.type)
        if struct is not None:
            return f".b8[{struct.itemsize}]"
        return f"no {p.type}" if number is None else PTX[np.dtype(number).str.lstrip("<|")]
    return kind


@pytest.fixture(scope="module")
def compiling():
    """compile(file, arch, defines) on all cores: each gets the next ones under way while a test looks at the last."""
    under_way = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        def compiled(file, arch, defines):
            waiting = [case.values for case in COMPILATIONS]
            first = waiting.index((file, arch, defines))
            for case in waiting[first:first + 2 * os.cpu_count()]:
                if repr(case) not in under_way:
                    under_way[repr(case)] = pool.submit(nvrtc.compile, *case)
            return under_way.pop(repr((file, arch, defines))).result()

        yield compiled


COMPILATIONS = list(compilations())


@pytest.mark.parametrize("file, arch, defines", COMPILATIONS)
def test_compiles(compiler, compiling, file, arch, defines):
    if arch not in compiler:
        pytest.skip(f"NVRTC {'.'.join(map(str, nvrtc.version()))} does not know sm_{arch}")
    compiled = compiling(file, arch, defines)
    assert compiled.kernels and compiled.cubin.startswith(b"\x7fELF")
    assert f".target sm_{arch}" in compiled.ptx
    assert faults(compiled, defines) == []


def launches_with_constants():
    """Where in minunet/ a launch passes defines: (file:line, the kernel file)."""
    package = Path(cuda.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "launch"
                    and any(keyword.arg == "defines" for keyword in node.keywords)
                    and not ast.unparse(node.func).startswith("simulator")):
                text = ast.unparse(node.args[0]).lstrip("f").strip("'\"")
                yield f"{path.relative_to(package.parent)}:{node.lineno}", text.partition(".")[0]


def test_constants_of_launches_are_stated():
    """A file that is launched with constants lists them, or this would compile what nobody runs."""
    silent = [f"{where}: kernels/{file}.cu needs a line // variants: NAME=VALUE ...; ..."
              for where, file in launches_with_constants() if file not in FILES or nvrtc.variants(file) == ({},)]
    assert silent == []


# The checks themselves

SOUND = """\
#include "common.cuh"
struct Two { int a, b; };
#ifndef SIZE
#define SIZE 64
#endif

KERNEL __launch_bounds__(SIZE)
good(const real* __restrict__ x, real* y, real f, Two two, int n, bool b, unsigned char c, long long l, unsigned u,
     real** tables)
{
    __shared__ real tile[SIZE];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (b && threadIdx.x < n) y[threadIdx.x] = tile[SIZE - 1 - threadIdx.x] * f * two.b * c * l * u * tables[1][2];
}
"""
PLAIN = SOUND[SOUND.index("KERNEL"):].replace("good", "other").replace("SIZE", "64")
CROWDED = """
KERNEL __launch_bounds__(1024)
crowded(float* y)
{
    float a[128];
    for (int i = 0; i < 128; ++i) a[i] = y[i * 1024 + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 128; ++i) y[i * 1024 + threadIdx.x] = a[127 - i] + a[i] * a[(i * 37) % 128];
}
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Makes a kernel file of a text, with a name of its own (the door keeps texts by name), and gives the name."""
    shutil.copy(cuda.folder() / "common.cuh", tmp_path)
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)

    def plant(text):
        name = f"{tmp_path.name}_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.cu").write_text(text)
        return name
    return plant


@pytest.mark.parametrize("real", ["float", "double"])
def test_a_sound_file(compiler, planted, real):
    compiled = nvrtc.compile(planted(SOUND), LATE, {"real": real})
    assert faults(compiled, {"real": real}) == []
    kernel, size = compiled.kernels["good"], {"float": 4, "double": 8}[real]
    assert (kernel.threads, kernel.shared, kernel.barriers) == (64, 64 * size, 1)
    assert kernel.spill_stores == kernel.spill_loads == kernel.stack == 0 and not kernel.dynamic
    assert 8 <= kernel.registers <= 64
    number = {"float": ".f32", "double": ".f64"}[real]
    assert kernel.parameters == (".u64", ".u64", number, ".b8[8]", ".u32", ".u8", ".u8", ".u64", ".u32", ".u64")


def test_the_figures_of_a_kernel_are_its_own():
    """Of two kernels in one log, the first with a function that is not inlined; a figure that is missing is 0."""
    ptx = """
.extern .shared .align 16 .b8 tiles[];
.visible .entry first(
\t.param .u64 .ptr .global .align 16 first_param_0,
\t.param .align 4 .b8 first_param_1[60],
\t.param .f64 first_param_2
)
.maxntid 32, 4, 2
.minnctapersm 2
{
\tmov.u32 \t%r3, tiles;
}
.visible .entry second()
{
}
"""
    log = """
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for helper
ptxas         .     1 bytes stack frame, 2 bytes spill stores, 3 bytes spill loads
ptxas info    : Function properties for first
ptxas         .     40 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 31 registers, used 2 barriers, 40 bytes cumulative stack size, 1088 bytes smem, 8 bytes cmem[2]
"""
    assert dict(nvrtc._kernels(ptx, log)) == {
        "first": nvrtc.CompiledKernel("first", 256, (".u64", ".b8[60]", ".f64"), 31, 24, 28, 40, 1088, True, 2),
        "second": nvrtc.CompiledKernel("second", 0, (), 8, 0, 0, 0, 0, False, 0)}
    with pytest.raises(cuda.KernelError, match="says nothing of the kernel second"):
        dict(nvrtc._kernels(ptx, log.replace("'second'", "'third'")))


def test_shared_memory_that_a_launch_adds_is_seen(compiler, planted):
    text = SOUND.replace("__shared__ real tile[SIZE]", "extern __shared__ real tile[]") + PLAIN
    kernels = nvrtc.compile(planted(text), LATE).kernels
    assert [(kernels[name].dynamic, kernels[name].shared) for name in ("good", "other")] == [(True, 0), (False, 256)]


def test_it_compiles_with_the_options_of_cupy(compiler, planted):
    """Denormals are flushed, functions are the GPU's without saying so, the language is C++17."""
    ptx = nvrtc.compile(planted("int twice(int i) { if constexpr (true) return 2 * i; }\n"
                                + SOUND.replace("two.b", "twice(two.b)")), LATE).ptx
    assert "mul.ftz.f32" in ptx and "mul.f32" not in ptx


@pytest.mark.parametrize("old, new, defines, complaint", [
    ("__syncthreads();", "__syncthreads(); int idle;", {}, r"the compiler warns: \w+\.cu\(13\): warning .*idle"),
    ("int a, b;", "int a; double b;", {}, r"good: takes .*'\.b8\[16\]'.* in PTX, the door passes .*'no Two'"),
    ("KERNEL", "#define bool int\nKERNEL", {}, r"good: takes .*'.u32', '.u32', .* in PTX, .*'.u32', '.u8', "),
    ("KERNEL", "KERNEL seen(int*) { }\nKERNEL", {}, "seen: the door does not see this kernel"),
    ("#ifndef SIZE", "#if 0\n" + PLAIN + "#endif\n#ifndef SIZE", {}, "other: compiled to nothing"),
    ("", "", {"SIZE": 128}, "good: compiled for 128 threads, launched with 64"),
])
def test_a_planted_fault_is_found(compiler, planted, old, new, defines, complaint):
    compiled = nvrtc.compile(planted(SOUND.replace(old, new, 1)), LATE, {"real": "float", **defines})
    assert any(re.search(complaint, fault) for fault in faults(compiled, {"real": "float"}))


def test_spills_are_found(compiler, planted):
    compiled = nvrtc.compile(planted('#include "common.cuh"' + CROWDED), LATE, {"real": "float"})
    kernel = compiled.kernels["crowded"]
    assert kernel.spill_stores > 0 and kernel.spill_loads > 0 and kernel.stack > 0
    assert kernel.registers == nvrtc.REGISTERS // 1024
    assert [fault.split(",")[0] for fault in faults(compiled, {"real": "float"})] == \
        [f"crowded: spills {kernel.spill_stores} bytes"]
    assert faults(compiled, {"real": "double"}) == []         # where speed is not asked for


@pytest.mark.parametrize("old, new, complaint", [
    ("tile[threadIdx.x] = ", "tile[threadIdx.x] = = ", r"does not compile for sm_90: \w+\.cu\(12\): error: .*exp"),
    ("tile[SIZE]", "tile[12289]", "does not compile for sm_90: ptxas error .*too much shared"),
    ("#ifndef", "#include <cuda_fp16.h>\n#ifndef", r"\.cu\(3\): .*cuda_fp16.h"),
    ("y[threadIdx.x] = ", 'asm("membar.x;"); y[0] = ', "does not compile for sm_90: ptxas .*Unknown modifier"),
])
def test_what_does_not_compile_is_told(compiler, planted, old, new, complaint):
    with pytest.raises(cuda.KernelError, match=complaint):
        nvrtc.compile(planted(SOUND.replace(old, new, 1)), 90)


def test_an_unknown_architecture_is_refused(compiler):
    with pytest.raises(UserError, match=r"NVRTC 1\d\.\d+ compiles for .*sm_90, .*; got sm_35"):
        nvrtc.compile("activation", 35)


def test_without_nvrtc_it_is_told_what_to_install(monkeypatch):
    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(nvrtc, "SYSTEM", ("libnvrtc.so.0",))
    try:
        with pytest.raises(UserError, match=r"^compiling .* needs NVRTC.*pip install 'minunet\[nvrtc\]'$"):
            nvrtc.compile("activation", 90)
    finally:
        nvrtc._library.cache_clear()


@pytest.mark.parametrize("folder, library", [("cuda_nvrtc", "libnvrtc.so.12"), ("cu13", "libnvrtc.so.13")])
def test_wheels_are_searched(monkeypatch, tmp_path, folder, library):
    """Where the wheels of CUDA 12 and 13 have it, the older one before the newer, and both before the system's; what it
    needs from beside it comes first.
    """
    builtins, tried = tmp_path / folder / "lib" / "libnvrtc-builtins.so.13.0", []

    def load(path):
        tried.append(path)
        if path != str(builtins):
            raise OSError
    for name, file in {"cu14": "libnvrtc.so.14", folder: library, "cuda_runtime": "libcudart.so.12"}.items():
        (tmp_path / name / "lib").mkdir(parents=True)
        (tmp_path / name / "lib" / file).touch()
    builtins.touch()
    nvrtc._library.cache_clear()
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec",
                        lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", load)
    try:
        with pytest.raises(UserError):
            nvrtc.version()
    finally:
        nvrtc._library.cache_clear()
    assert tried == [str(builtins), str(builtins.with_name(library)), str(tmp_path / "cu14/lib/libnvrtc.so.14"),
                     *nvrtc.SYSTEM]


def test_variants_are_read(planted):
    assert nvrtc.variants(planted(SOUND)) == ({},)
    text = "// Opening.\n// variants: SIZE=64 T=2; SIZE=128\n//\n// variants: default; real=double SIZE=32\n"
    assert nvrtc.variants(planted(text + SOUND)) == (
        {"SIZE": "64", "T": "2"}, {"SIZE": "128"}, {}, {"real": "double", "SIZE": "32"})
    text = "// variants: SIZE=1|2 T=3 S=4|5; default\n"
    assert nvrtc.variants(planted(text + SOUND)) == (
        *({"SIZE": size, "T": "3", "S": s} for size in "12" for s in "45"), {})
    for wrong in ("SIZE", "SIZE=", "default SIZE=3", "SIZE=1, T=2", "SIZE=1;", "SIZE=1|", "SIZE=1|T=2"):
        with pytest.raises(cuda.KernelError, match="a variant must be NAME=VALUE"):
            nvrtc.variants(planted(f"// variants: {wrong}\n{SOUND}"))


# Multiprocessors

@pytest.mark.parametrize("threads, registers, shared, arch, blocks", [
    (256, 32, 0, 80, 8),            # all 64 warps
    (256, 33, 0, 80, 6),            # 40 registers, by the unit of 256 a warp: 48 warps fit
    (256, 64, 0, 80, 4),
    (256, 255, 0, 80, 1),
    (32, 16, 0, 80, 32),            # as many blocks as there may be
    (32, 16, 0, 75, 16),
    (32, 16, 0, 120, 24),
    (1024, 64, 0, 86, 1),           # 48 warps hold one block of 32
    (1024, 65, 0, 90, 0),
    (1024, 16, 0, 90, 2),
    (1024, 16, 0, 86, 1),
    (32, 192, 0, 90, 8),            # a quarter's registers hold 2 warps of 6144, all of them together would hold 10
    (288, 224, 0, 90, 0),           # 9 warps, and 2 fit into each quarter
    (256, 80, 0, 89, 3),            # 3 and 4 blocks: as measured in public tuning notes on sm_89
    (256, 64, 0, 89, 4),
    (256, 32, 24576, 89, 4),        # 100 KiB for 4 blocks, 1 KiB of each for the driver
    (256, 32, 24577, 89, 3),
    (256, 32, 48 << 10, 70, 2),
    (256, 32, 48 << 10, 75, 1),
    (256, 32, 227 << 10, 90, 1),
    (256, 32, 228 << 10, 90, 0),
    (1, 1, 0, 70, 32),
])
def test_occupancy(threads, registers, shared, arch, blocks):
    found = nvrtc.occupancy(threads, registers, shared, arch)
    warps = blocks * -(-threads // 32)
    assert found == nvrtc.Occupancy(blocks, warps, warps / nvrtc.LIMITS[arch].warps)


# The architecture that a file needs

def test_needs_are_read_from_the_file_and_its_headers(planted, tmp_path):
    assert cuda.needs(planted(SOUND)) == 0
    assert cuda.needs(planted("// Opening.\n//\n// needs sm_89\n" + SOUND)) == 89
    (tmp_path / "header.cuh").write_text("#pragma once\n// needs sm_80 for its instructions\n")
    assert cuda.needs(planted('#include "header.cuh"\n' + SOUND)) == 80
    assert cuda.needs(planted('// needs sm_75\n#include "header.cuh"\n' + SOUND)) == 80


@pytest.mark.parametrize("have, runs", [("75", False), ("86", False), ("89", True), ("90", True), ("120", True)])
def test_an_older_device_is_refused(planted, monkeypatch, have, runs):
    """A GPU of that capability, as CuPy shows it."""
    asked = []
    fake = SimpleNamespace(
        cuda=SimpleNamespace(Device=lambda device: SimpleNamespace(compute_capability=have),
                             compiler=SimpleNamespace(CompileException=ValueError)),
        RawModule=lambda code, options: SimpleNamespace(compile=lambda: asked.append(options)))
    monkeypatch.setattr(cuda, "cupy", lambda: fake)
    name = planted("// needs sm_89\n" + SOUND)
    if runs:
        cuda._module(name, (("real", "float"),), 0)
        assert asked == [cuda.options({"real": "float"})]
    else:
        with pytest.raises(UserError, match=rf"{name}.cu needs a GPU of compute capability 8.9 or above; device 0 has "
                                            rf"{have[0]}\.{have[1]}; --device sim"):
            cuda._module(name, (("real", "float"),), 0)
        assert asked == []
