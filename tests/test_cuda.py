"""The door to the kernels: what it reads off a source, what it refuses, how it pastes headers, what it keeps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from minunet import cuda, simulator
from minunet.backend import to_device
from minunet.cuda import KernelError, launch
from minunet.errors import IncompleteError, UserError

SOURCE = """// Test kernels.
#include "common.cuh"
#include "shape.cuh"
#include "shape.cuh"
constexpr int SMALL = 32;   // KERNEL __launch_bounds__(1) ghost(int no)

KERNEL __launch_bounds__(SMALL)
scale(const real* __restrict__ x, INOUT real* sum, real* __restrict__ y, real factor, int count, Shape s)
{
    const int i = thread_index();
    if (i >= count) return;
    y[i] = factor * x[i] + s.height + 10 * s.width;
    if (i == 0) sum[0] += 1;
}
extern "C" __global__ void __launch_bounds__(64) many(INOUT real** __restrict__ tables, const unsigned char* ids,
                                                      unsigned long long key, int count)
{
    const int i = thread_index();
    if (i < count) tables[blockIdx.y][i] += ids[i] + (real)key;
}
KERNEL __launch_bounds__(32) wide(const real* x, real* y, long long count) { y[0] = x[0] + (real)count; }
"""


class Shape(NamedTuple):
    height: int
    width: int


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of kernels with common.cuh and the file above, and nothing kept of any other."""
    for name, text in {"common.cuh": (cuda.folder() / "common.cuh").read_text(), "test.cu": SOURCE,
                       "shape.cuh": "#pragma once\nstruct Shape { int height, width; };\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)
    kept = (cuda.source, cuda.kernels_of, cuda.structs_of)
    for function in kept:
        function.cache_clear()
    yield tmp_path
    for function in kept:
        function.cache_clear()


def sim(*values, dtype=np.float32):
    return to_device(np.array(values, dtype), "sim")


def scale(**changed):
    """A launch of `scale` with some arguments replaced; y."""
    arguments = dict(x=sim(1, 2, 3), sum=sim(0), y=sim(0, 0, 0), factor=2.0, count=3, s=Shape(1, 2)) | changed
    launch("test.scale", *arguments.values(), threads=3)
    return arguments["y"]


def test_the_signature_is_read_off_the_source(folder):
    found = cuda.kernels_of("test")
    assert list(found) == ["scale", "many", "wide"]
    assert (found["scale"].threads, found["many"].threads) == (32, 64)
    x, total, y, factor, _, s = found["scale"].parameters
    assert (x.name, x.type, x.pointer, x.const, x.inout) == ("x", "real", True, True, False)
    assert (total.const, total.inout) == (False, True) and (y.const, y.inout) == (False, False)
    assert (factor.pointer, factor.type, s.type) == (False, "real", "Shape")
    tables, ids, key, _ = found["many"].parameters
    assert tables.many and tables.inout and (ids.type, key.type) == ("unsigned char", "unsigned long long")
    assert cuda.structs_of("test")["Shape"] == np.dtype([("height", "i4"), ("width", "i4")])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_launch_computes_in_the_dtype_of_its_arrays(folder, dtype):
    x, total = sim(0.1, 2, 3, dtype=dtype), sim(5, dtype=dtype)
    y = scale(x=x, sum=total, y=sim(0, 0, 0, dtype=dtype))
    np.testing.assert_array_equal(to_device(y, "cpu"), dtype(2) * to_device(x, "cpu") + dtype(21))
    assert total[0] == 6


def test_tables_of_arrays(folder):
    a, b = sim(1, 2), sim(10, 20)
    with simulator.checking():
        launch("test.many", [a, b], sim(0, 1, dtype=np.uint8), 2**40, 2, blocks=(1, 2))
    np.testing.assert_array_equal(to_device(b, "cpu"), np.float32([10, 21]) + np.float32(2**40))
    np.testing.assert_array_equal(to_device(a, "cpu"), np.float32([1, 3]) + np.float32(2**40))


@pytest.mark.parametrize("changed, words", [
    ({"x": sim(1, 2, 3, dtype=np.float64), "sum": sim(0)}, "sum must be float64; got float32"),
    ({"y": sim(1, 2, 3, dtype=np.int32)}, "y must be float32; got int32 (3,)"),
    ({"x": sim(1, 2, 3, dtype=np.uint8)}, "computes in float32 or float64; got arrays of uint8"),
    ({"x": sim(1, 2, 3, dtype=np.float16)}, "computes in float32 or float64; got arrays of float16"),
    ({"x": sim(1, 0, 2, 0, 3, 0)[::2]}, "x must be contiguous; its shape is (3,), its strides (8,) bytes"),
    ({"x": np.ones(3, np.float32)}, "arrays are on different devices: (3,) on cpu, (3,) on sim"),
    ({"x": 1.0}, "expected an array, got builtins.float"),
    ({"count": 3.0}, "count must be a number of type int32; got 3.0"),
    ({"count": 2**31}, "count must fit int32; got 2147483648"),
    ({"factor": "2"}, "factor must be a number of type float32; got '2'"),
    ({"s": (1, 2)}, "s must be a NamedTuple of height, width; got (1, 2)"),
    ({"s": Shape(1, 2.5)}, "s.width must be a number of type int32; got 2.5"),
])
def test_arguments_that_do_not_fit_are_named(folder, changed, words):
    with pytest.raises(KernelError) as caught:
        scale(**changed)
    assert "test.scale: " in str(caught.value) and words in str(caught.value)


def test_counts_names_and_grids_are_checked(folder):
    with pytest.raises(KernelError, match=r"test.scale: takes 6 arguments \(x, sum, y, factor, count, s\); got 1"):
        launch("test.scale", sim(1), threads=1)
    with pytest.raises(KernelError, match="has no kernel 'ghost'; it has scale, many, wide"):
        launch("test.ghost", sim(1), threads=1)
    with pytest.raises(KernelError, match="there is no kernel file nowhere.cu"):
        launch("nowhere.x", threads=1)
    with pytest.raises(KernelError, match="give threads, or blocks"):
        launch("test.wide", sim(1), sim(1), 1)
    with pytest.raises(KernelError, match=r"give threads, or blocks of .* got 32, \(1,\)"):
        launch("test.wide", sim(1), sim(1), 1, threads=32, blocks=(1,))
    with pytest.raises(KernelError, match="give threads, or blocks of .* got -1000"):
        launch("test.wide", sim(1), sim(1), 1, threads=-1000)
    with pytest.raises(KernelError, match="kernels run on the devices cuda and sim; these arrays are on cpu"):
        launch("test.wide", np.ones(1, np.float32), np.ones(1, np.float32), 1, threads=1)


def test_no_threads_is_no_launch(folder):
    y = sim(7, 7, 7)
    launch("test.scale", sim(1, 2, 3), sim(0), y, 2.0, 0, Shape(0, 0), threads=0)
    assert list(y) == [7, 7, 7]


def test_too_many_elements_for_an_int_are_refused(folder, monkeypatch):
    monkeypatch.setattr(cuda, "INT_LIMIT", 2)
    with pytest.raises(KernelError, match="x has 3 elements, and the kernel counts them with an int, up to 2"):
        scale(count=2**31)                  # as where it is the number of elements
    with pytest.raises(KernelError, match="x has 3 elements, and the kernel counts them with an int, up to 2"):
        scale()
    y = sim(0, 0, 0)
    launch("test.wide", sim(1, 2, 3), y, 3, threads=1)                  # counts with long long
    assert y[0] == 4


def test_headers_are_pasted_once_and_lines_stay(folder):
    text = cuda.source("test")
    assert text.count("struct Shape") == 1 and "#include" not in text and "#pragma once" not in text
    with pytest.raises(KernelError, match="cannot read the parameter"):
        (folder / "odd.cu").write_text('#include "common.cuh"\nKERNEL __launch_bounds__(32) odd(real& x) {}\n')
        cuda.kernels_of("odd")


def test_a_compile_error_shows_file_line_and_words(folder):
    (folder / "broken.cu").write_text('#include "common.cuh"\n\nKERNEL __launch_bounds__(32) broken(real* x)\n{\n'
                                      "    x[0] = undefined_name;\n}\n")
    with pytest.raises(KernelError) as caught:
        launch("broken.broken", sim(1), threads=1)
    assert "broken.cu:5" in str(caught.value) and "undefined_name" in str(caught.value)


def test_a_failed_check_names_kernel_parameter_and_line(folder):
    with pytest.raises(KernelError) as caught, simulator.checking():
        scale(count=4)
    assert "test.scale: " in str(caught.value) and "past the end of x" in str(caught.value)
    assert "test.cu:12" in str(caught.value)


def test_missing_kernels_are_one_sentence(monkeypatch, tmp_path):
    cuda.folder.cache_clear()
    monkeypatch.setattr(cuda, "__file__", str(tmp_path / "minunet" / "cuda.py"))
    with pytest.raises(UserError, match="the CUDA kernels are missing"):
        cuda.folder()
    monkeypatch.undo()
    cuda.folder.cache_clear()
    assert (cuda.folder() / "common.cuh").exists()


def test_resolve_chooses_what_there_is(monkeypatch):
    def missing():
        raise UserError("no GPU here")
    monkeypatch.setattr(cuda, "cupy", missing)
    assert cuda.resolve("auto") == "cpu" and cuda.resolve("cpu") == "cpu" and cuda.resolve("sim") == "sim"
    monkeypatch.setattr(cuda, "cupy", lambda: None)
    assert cuda.resolve("auto") == "cuda"


def test_a_gpu_that_lacks_software_is_not_passed_over_in_silence(monkeypatch):
    def incomplete():
        raise IncompleteError("cuda needs NVRTC")
    monkeypatch.setattr(cuda, "cupy", incomplete)
    with pytest.warns(UserWarning, match="^computing on cpu: cuda needs NVRTC$"):
        assert cuda.resolve("auto") == "cpu"


class FakeCuPy:
    """What the door asks of CuPy, written down: sources compiled, and launches with what they were given."""

    def __init__(self):
        self.compiled, self.launches = [], []
        fake = self

        class CompileException(Exception):
            pass

        class Function:
            max_dynamic_shared_size_bytes = 0

            def __call__(self, grid, block, arguments, shared_mem):
                if grid[1] > 65535:
                    raise fake.cuda.driver.CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
                fake.launches.append((grid, block, arguments, shared_mem, self.max_dynamic_shared_size_bytes))

        class RawModule:
            def __init__(self, code, options):
                fake.compiled.append((code, options))

            def compile(self):
                if "undefined_name" in fake.compiled[-1][0]:
                    raise CompileException('broken.cu(5): error: identifier "undefined_name" is undefined')

            def get_function(self, name):
                return Function()

        class Device:
            compute_capability = "90"

            def __init__(self, number=0):
                self.id = number

        class compiler:
            pass

        class driver:
            class CUDADriverError(RuntimeError):
                pass

        compiler.CompileException = CompileException
        self.RawModule, self.array = RawModule, np.array
        self.cuda = type("cuda", (), {"Device": Device, "compiler": compiler, "driver": driver})


@pytest.fixture
def fake_gpu(folder, monkeypatch):
    """Launches on arrays of any kind go to a CuPy that only writes them down."""
    fake = FakeCuPy()
    monkeypatch.setattr(cuda, "cupy", lambda: fake)
    monkeypatch.setattr(cuda, "device_of", lambda *arrays: "cuda")
    for kept in (cuda._compiled, cuda._module):
        kept.cache_clear()
    yield fake
    for kept in (cuda._compiled, cuda._module):
        kept.cache_clear()


def test_what_a_real_gpu_is_given(fake_gpu):
    """NumPy numbers of the signature's types (CuPy takes a Python int for 64 bits), the struct, one compilation."""
    for x in (1, 2):
        scale(x=sim(x, 2, 3))
    (grid, block, arguments, shared, _), _ = fake_gpu.launches
    assert (grid, block, shared) == ((1, 1, 1), (32,), 0)
    *arrays, factor, count, s = arguments
    assert [a.shape for a in arrays] == [(3,), (1,), (3,)]
    assert (type(factor), type(count), s.dtype.names) == (np.float32, np.int32, ("height", "width"))
    assert type(s) is np.ndarray and s.shape == ()          # which CuPy passes by value
    (code, options), = fake_gpu.compiled
    assert code == cuda.source("test") and options == ("-std=c++17", "-Dreal=float")
    scale(**{name: sim(0, 0, 0, dtype=np.float64) for name in ("x", "sum", "y")})
    assert fake_gpu.compiled[1][1] == ("-std=c++17", "-Dreal=double")


def test_a_real_gpu_is_asked_for_large_shared_memory(fake_gpu):
    launch("test.wide", sim(1), sim(1), 1, threads=1, shared=100_000, defines={"TILE": 8})
    assert fake_gpu.launches[0][3:] == (100_000, 100_000)
    assert fake_gpu.compiled[0][1] == ("-std=c++17", "-Dreal=float", "-DTILE=8")


def test_a_launch_that_the_driver_refuses_names_the_kernel(fake_gpu):
    with pytest.raises(KernelError, match=r"test.wide: the launch of \(1, 65536, 1\) blocks of 32 threads failed: CU"):
        launch("test.wide", sim(1), sim(1), 1, blocks=(1, 65536))


def test_cupy_is_given_ascii(fake_gpu, folder):
    """It writes the code to a file in the locale's encoding."""
    (folder / "letters.cu").write_text('#include "common.cuh"\n// y = Σ x²\n'
                                       "KERNEL __launch_bounds__(32) one(real* x) {}\n", encoding="utf-8")
    launch("letters.one", sim(1), threads=1)
    code = fake_gpu.compiled[0][0]
    assert code.isascii() and "// y = ? x?\n" in code


def test_nvrtc_errors_are_shown(fake_gpu, folder):
    (folder / "broken.cu").write_text('#include "common.cuh"\n\nKERNEL __launch_bounds__(32) broken(real* x)\n{\n'
                                      "    x[0] = undefined_name;\n}\n")
    with pytest.raises(KernelError, match=r"kernels/broken.cu does not compile: broken.cu\(5\): error"):
        launch("broken.broken", sim(1), threads=1)


def test_an_older_gpu_than_a_kernel_needs_is_one_sentence(fake_gpu, folder):
    (folder / "new.cu").write_text('// needs sm_100\n#include "common.cuh"\n'
                                   "KERNEL __launch_bounds__(32) new_(real* x) {}\n")
    with pytest.raises(UserError, match="needs a GPU of compute capability 10.0 or above; device 0 has 9.0"):
        launch("new.new_", sim(1), threads=1)
