"""The simulated GPU from outside: its messages, what it refuses, its cache, its compiler, several Python threads."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from minunet import simulator
from minunet.errors import UserError
from minunet.simulator import SimulatorError, build
from tests.simulator.cases import CASES, launch, numbers, source

HEAD = 'extern "C" __global__ void __launch_bounds__(64)\n'
COPY = HEAD + """copy(const float* x, float* y, int n)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
"""


def refused(text, name, grid, *arguments, **options):
    with pytest.raises(SimulatorError) as caught, simulator.checking():
        launch("test", name, text, grid, *arguments, **options)
    return str(caught.value)


def kernel(body, parameters="float* y", before=""):
    return f"{before}\n{HEAD}test({parameters})\n{{\n    const int i = threadIdx.x;\n    {body}\n}}\n"


def message(body, *arguments, parameters="float* y", before="", **options):
    """What the checks say of a kernel of 64 threads; its body is on line 6."""
    return refused(kernel(body, parameters, before), "test", (1,), *(arguments or [numbers(64)]), **options)


def test_a_read_past_the_end_names_all_there_is_to_know():
    assert refused(COPY, "copy", (2,), numbers(100), numbers(128), 128) == (
        "block (1,0,0) thread (36,0,0): out-of-bounds 4-byte read past the end of x: element 100 (byte 400) of 100 "
        "(400 bytes), at test.cu:5")


@pytest.mark.parametrize("body, words", [
    ("y[i - 1] = 0;", "out-of-bounds 4-byte write before the beginning of y: element -1 (byte -4) of 64"),
    ("y[i] += 1;", "thread (0,0,0): read of uninitialised y, element 0 (byte 0), at test.cu:6"),
    ("y[i / 2] = 0;", "thread (1,0,0): race on y, element 0 (byte 0): written at test.cu:6, written by block 0 "
     "thread 0 at test.cu:6, with no barrier between"),
    ("*(float*)(size_t)(i + 8) = 0;", "in no array"),
    ("((int4*)(y + 1))->x = 1;", "misaligned address: 4 bytes past a multiple of 16, for a 'struct int4', at test.cu"),
    ("int one = i + 2147483647; y[one & 63] = 0;", "overflow of a signed integer in + at test.cu:6"),
    ("y[5 / i] = 0;", "division of an integer by zero"),
    ("y[i] = 1 << (i + 32);", "shift by more bits than there are at test.cu:6"),
    ("if (i) __syncthreads();", "barrier divergence: 63 threads wait at __syncthreads (test.cu:6), 1 have exited"),
    ("if (i < 16) __shfl_sync(~0u, i, 0); else __syncthreads();",
     "deadlock: thread 15 waits in a warp operation (test.cu:6, mask ffffffff) for thread 31, which waits at "
     "__syncthreads (test.cu:6); 16 threads wait in warp operations, 48 at __syncthreads, 0 have exited"),
    ("__shfl_sync(2, i, 0);", "lane 0 is not in the mask 00000002 that it gives (test.cu:6)"),
    ("__shared__ int s[64]; s[i] = 1; y[i] = s[63 - i];", "uninitialised s, element 63 (byte 252)"),
    ("__shared__ double s[64]; s[i] = 1; __syncthreads(); s[0] += s[i];", "race on s, element 0 (byte 0)"),
    ("__shared__ int s[13000]; s[i] = 1; __syncthreads(); y[i] = s[63 - i];",
     "the kernel uses 52000 bytes in __shared__ arrays; a block has 49152, and more only as dynamic shared memory"),
])
def test_messages(body, words):
    assert words in message(body)


def test_what_a_header_does_is_reported_where_it_is_used():
    assert message("y[i] = __ldg(&x[i]);", numbers(9), numbers(64), parameters="const float* x, float* y").endswith(
        "past the end of x: element 9 (byte 36) of 9 (36 bytes), at test.cu:6")
    assert message("cp_async16(&y[4 * i], x);", numbers(2), numbers(64),
                   parameters="const float* x, float* y").endswith("at test.cu:6")
    assert message("atomicAdd(&y[i], 1);", np.zeros(3, np.int32), parameters="INOUT int* y").endswith("at test.cu:6")


@pytest.mark.parametrize("kind", ["", "_transposed"])
@pytest.mark.parametrize("before, row, words", [
    ("__syncthreads();", "4 * i + 256", "read of uninitialised s, element 256 (byte 1024), at test.cu:6"),
    ("__syncthreads(); s[4 * (63 - i)] = 1;", "4 * i", "race on s"),
    ("__syncthreads();", "4 * i + 1", "ldmatrix with a row 4 bytes past a multiple of 16"),
    ("if (i % 2) return;", "4 * i", "ldmatrix with 16 of the 32 lanes of a warp")])
def test_what_ldmatrix_reads_is_checked(kind, before, row, words):
    fill = "__shared__ __align__(16) unsigned s[512]; for (int k = 0; k < 4; k++) s[4 * i + k] = i;"
    assert words in message(f"{fill} {before} unsigned d[4]; ldmatrix{kind}(d, &s[{row}]); y[i] = d[0];")


def test_const_tables_and_globals_are_followed():
    assert "write to const x, element 3 (byte 12), at test.cu:6" in message(
        "if (i == 3) ((float*)x)[i] = 0;", numbers(64), parameters="const float* x")
    assert "past the end of t[1]: element 5" in message(
        "t[i % 2][i / 2] = 0;", [numbers(32), numbers(5)], parameters="float** t")
    assert "write to const the table t" in message("t[0] = nullptr;", [numbers(3)], parameters="float** t")
    assert "race on count" in message("count++;", before="__device__ int count;")


def test_bytes_of_a_shared_array_are_told_apart():
    text = kernel("__shared__ unsigned char s[64]; s[i] = i; __syncthreads(); y[i] = s[63 - i];")
    y = numbers(64)
    with simulator.checking():
        launch("test", "test", text, (1,), y)
    np.testing.assert_array_equal(y, np.arange(64)[::-1])


def test_waiting_in_part_of_a_warp_orders_those_lanes_alone():
    start = "__shared__ int s[64]; s[i] = 0; __syncthreads(); "
    body = start + "s[i] = i; __syncwarp(i % 32 < 16 ? 0xffff : 0xffff0000); y[i] = s[i ^ {other}];"
    for order in (0, 1, 2):
        with simulator.checking(order):
            launch("test", "test", kernel(body.format(other=1)), (1,), numbers(64))
    assert "race on s" in message(body.format(other=16))
    # they write before others read; then they wait with lanes other than those, or have waited before
    assert "race on s" in message(body.replace("y[i] =", "if (i % 32 >= 16) y[i] =").format(other=16))
    assert "race on s" in message(start + "__syncwarp(); if (i == 31) s[i] = i; if (i == 0) y[i] = s[31];")


def test_lanes_that_have_exited_are_not_waited_for():
    y = numbers(64)
    for order in (0, 1, 2):
        with simulator.checking(order):
            launch("test", "test", kernel("y[i] = 0; if (i % 32 >= 8) return; __syncwarp(); y[i] = 1;"), (1,), y)
        np.testing.assert_array_equal(y, np.arange(64) % 32 < 8)


def test_blocks_do_not_wait_for_each_other():
    text = kernel("float v = y[0]; __syncthreads(); if (i == 1 && blockIdx.x == 1) y[0] = v;", "INOUT float* y")
    assert "written at test.cu:6, read by block" in refused(text, "test", (2,), numbers(1))
    with simulator.checking():
        launch("test", "test", text.replace("blockIdx.x == 1", "true"), (1,), numbers(1))


def test_atomics_do_not_race_with_each_other_but_with_the_rest():
    for kind, dtype in (("int", np.int32), ("unsigned", np.uint32), ("unsigned long long", np.uint64)):
        counts = np.zeros(2, dtype)
        with simulator.checking(order=2):
            launch("test", "test", kernel(f"atomicAdd(&y[i % 2], ({kind})i);", f"INOUT {kind}* y"), (3,), counts)
        assert counts.tolist() == [3 * 992, 3 * 1024]
    assert "race on y" in message("atomicAdd(&y[0], 1.f); if (i == 9) y[0] = 1;", parameters="INOUT float* y")
    assert "uninitialised y" in message("atomicAdd(&y[0], 1.f);")


def test_what_is_not_written_is_nan_in_checked_launches():
    y = numbers(64)
    with simulator.checking():
        launch("test", "test", kernel("if (i) y[i] = 1;"), (1,), y)
    assert np.isnan(y[0]) and (y[1:] == 1).all()


def test_a_shuffle_from_a_missing_lane_is_nan():
    y = numbers(64)
    launch("test", "test", kernel("if (i % 32 < 8) y[i] = __shfl_down_sync(0xff, 1.f, 4); else y[i] = 0;"), (1,), y)
    assert np.isfinite(y[:4]).all() and np.isnan(y[4:8]).all()


def test_votes_and_shuffles():
    y = np.zeros(64, np.int32)
    for body, expected in [
        ("y[i] = __ballot_sync(~0u, i % 2);", np.full(64, 0xaaaaaaaa, np.uint32).view(np.int32)),
        ("y[i] = __any_sync(~0u, i == 40);", np.arange(64) >= 32),
        ("y[i] = __all_sync(~0u, i != 40);", np.arange(64) < 32),
        ("y[i] = __syncthreads_count(i % 4 == 0);", np.full(64, 16)),
        ("y[i] = __syncthreads_or(i == 3) + __syncthreads_and(i != 3);", np.ones(64)),
        ("y[i] = __shfl_xor_sync(~0u, i, 5);", np.arange(64) ^ 5),
        ("y[i] = __shfl_up_sync(~0u, i, 3, 8);", np.where(np.arange(64) % 8 < 3, np.arange(64), np.arange(64) - 3)),
        ("y[i] = __shfl_down_sync(~0u, i, 3, 8);", np.where(np.arange(64) % 8 > 4, np.arange(64), np.arange(64) + 3)),
        ("y[i] = __shfl_sync(~0u, i, 9, 8);", np.arange(64) // 8 * 8 + 1),
        ("y[i] = min(3, i) + max(2u, 1) + (int)min(2.5f, __int_as_float(0x7fc00000)) + (int)exp(0.f);",
         np.minimum(np.arange(64), 3) + 5),
    ]:
        for order in (0, 1, 2):
            with simulator.checking(order):
                launch("test", "test", kernel(body, "int* y"), (1,), y)
            np.testing.assert_array_equal(y, expected, err_msg=body)


def test_barriers_are_watched_in_plain_launches_too():
    with pytest.raises(SimulatorError, match="barrier divergence"):
        launch("test", "test", kernel("if (i) __syncthreads();"), (1,), numbers(64))
    launch("test", "test", kernel("y[i] = 0;"), (1,), numbers(64))          # and the machine goes on


@pytest.mark.parametrize("grid, options, words", [
    ((1,), {"threads": 1025}, "a block of 1025 threads; a GPU takes 1 to 1024"),
    ((1, 65536), {}, "a grid of (1, 65536, 1) blocks"),
    ((0,), {}, "a grid of (0, 1, 1) blocks"),
    ((1,), {"shared": 232449}, "232449 bytes of dynamic shared memory; a block has at most 232448"),
])
def test_launches_that_no_gpu_takes(grid, options, words):
    assert words in refused(COPY, "copy", grid, numbers(1), numbers(1), 1, **options)


def test_a_compile_error_has_file_line_and_the_compilers_words():
    text = refused(COPY.replace("x[i];", "z[i];"), "copy", (1,), numbers(1), numbers(1), 1)
    assert "test.cu:5:" in text and "‘z’ was not declared" in text.replace("'", "‘", 1).replace("'", "’", 1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing loaded."""
    monkeypatch.setenv("MINUNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(text, **options):
    return build.build(text, "test", (), options.get("checked", False))


def test_a_text_is_compiled_once(cache, monkeypatch):
    first = made(COPY)
    assert first.parent == cache and {path.suffix for path in cache.iterdir()} == {".so", ".o"}
    monkeypatch.setattr(build, "run", None)                                 # no compiler is called
    assert made(COPY) == first
    monkeypatch.undo()
    monkeypatch.setenv("MINUNET_CACHE", str(cache))
    with_constant = build.build(COPY, "test", (("N", 1),), False)           # N is a name in machine.h too
    others = [made(COPY + "\n"), made(COPY, checked=True), with_constant]
    assert len({first, *others}) == 4
    assert not [path for path in cache.iterdir() if path.is_dir()]          # nothing half-made is left


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.delenv("MINUNET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.cache_folder() == tmp_path / "xdg" / "minunet"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache" / "minunet"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINUNET_CACHE", str(tmp_path / "file" / "cache"))   # cannot be made
    private = build.cache_folder()
    assert private.is_dir() and tmp_path not in private.parents


def test_several_processes_build_the_same(cache):
    code = f"from minunet.simulator import build; print(build.build({COPY!r}, 'test', (), False))"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {run.communicate(timeout=120)[0] for run in runs}
    assert not any(run.returncode for run in runs) and outputs == {f"{made(COPY)}\n"}


def test_without_a_compiler_one_sentence_says_what_to_install(cache, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(UserError, match="no-such-compiler, which is not installed; install g.. .* or name it in CXX"):
        made(COPY)
    with pytest.raises(UserError, match="install"):
        simulator.require_compiler()
    monkeypatch.setenv("CXX", "'g++ -O3")
    with pytest.raises(UserError, match=r"CXX must be a C\+\+ compiler and its options; .*\(No closing quotation\)"):
        simulator.require_compiler()
    with pytest.raises(UserError, match="needs no-such-tool, which comes with g.. and binutils"):
        build.run(["no-such-tool", "-S"])
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="runs on Linux only"):
        simulator.require_compiler()


@pytest.mark.parametrize("checked", [False, True])
def test_fibers_without_assembly(cache, monkeypatch, checked):
    name = "CHECKED" if checked else "FAST"
    monkeypatch.setattr(build, name, (*getattr(build, name), "-DSIM_UCONTEXT"))
    build._flags.cache_clear()
    try:
        text = source("statistics") + "\n// by ucontext"
        if checked:
            with simulator.checking(order=2):
                CASES["statistics"](text)
        else:
            CASES["statistics"](text)
            with pytest.raises(SimulatorError, match="barrier divergence"):
                launch("test", "test", kernel("if (i) __syncthreads();  // by ucontext"), (1,), numbers(64))
    finally:
        build._flags.cache_clear()


def test_python_threads_launch_at_the_same_time():
    errors = []

    def work(order):
        try:
            for case in ("statistics", "staging", "im2col"):
                CASES[case](source(case))
                with simulator.checking(order):
                    CASES[case](source(case))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
