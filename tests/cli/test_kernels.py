"""minunet kernels: what there is, its source, and what it costs, without a GPU."""

import re
import shutil

import pytest

from minunet import cuda, nvrtc
from minunet.cli import kernels, main
from minunet.errors import UserError
from tests.cli.helpers import refused, rejected, run_command

FILES = sorted(path.stem for path in cuda.folder().glob("*.cu"))
POINTS = """\
// Points of an image, one thread a point. They come
// in pairs.
//
// A second thought.
// needs sm_89
// variants: SIZE=64; real=double SIZE=32
#include "common.cuh"

// Takes { too.
KERNEL __launch_bounds__(64)
shift(const real* __restrict__ x, INOUT real* y, real** parts, int count)
{
    const int i = thread_index();
    if (i < count) { y[i] += x[i] * SIZE; /* } */ }
}

KERNEL __launch_bounds__(64) relu(real* y) { y[threadIdx.x] = 0; }
"""


MARKS = """\
// Marks, no more.
#include "common.cuh"
KERNEL __launch_bounds__(THREADS) relu(const real* x, real* y) { y[threadIdx.x] = x[threadIdx.x] > 0; }
"""


@pytest.fixture
def compiler():
    try:
        return nvrtc.supported()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    """Kernel files with names that no other test has: the door keeps texts by name."""
    shutil.copy(cuda.folder() / "common.cuh", tmp_path)
    (tmp_path / "marks_of_a_test.cu").write_text(MARKS)
    (tmp_path / "points_of_a_test.cu").write_text(POINTS)
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main(["kernels", *arguments]) == 0
    return capsys.readouterr().out


def test_all_kernels_are_listed(capsys):
    text = printed(capsys)
    assert re.findall(r"^(\w+)\.cu: ", text, re.M) == FILES
    assert re.findall(r"^    (\w+)\(", text, re.M) == [name for file in FILES for name in cuda.kernels_of(file)]
    assert max(map(len, text.splitlines())) <= 120


def test_a_file_is_told_by_its_first_sentence(two_files, capsys):
    text = printed(capsys)
    assert "points_of_a_test.cu: Points of an image, one thread a point. Needs sm_89 or above.\n" in text
    assert "    shift(const real* x, INOUT real* y, real** parts, int count), 64 threads a block\n" in text
    assert text.startswith("marks_of_a_test.cu: Marks, no more.\n"
                           "    relu(const real* x, real* y), 256 threads a block\n")


@pytest.mark.parametrize("name", ["shift", "points_of_a_test.shift"])
def test_a_kernel_is_shown(two_files, capsys, name):
    """The thesis without what is meant for the compile checks, the functions that it calls, and the kernel."""
    shown = printed(capsys, "show", name)
    assert re.sub(r"(?s)common.cuh, line \d+:\n\n__device__[^\n]* thread_index\(\) {[^\n]*}\n\n", "CALLED ", shown) == (
        "Points of an image, one thread a point. They come\nin pairs.\n\nA second thought.\n\nCALLED "
        "points_of_a_test.cu, line 9:\n\n"
        + POINTS[POINTS.index("// Takes"):POINTS.index("\nKERNEL __launch_bounds__(64) relu")])


def test_a_file_is_shown(two_files, capsys):
    shown = printed(capsys, "show", "points_of_a_test")
    assert shown.startswith("Points of an image") and "shift(const real* x, INOUT real* y" in shown
    assert "thread_index" not in shown


def test_every_size_of_block_is_told(capsys):
    shown = " ".join(printed(capsys, "show", "conv_tensorcore").split())
    assert len(re.findall(r"conv_\w+\([^)]*\), 128 or 256 threads a block", shown)) == 3


def test_every_kernel_can_be_shown(capsys):
    """Each function from its own head to the brace that closes it, at the line that is told; the kernel comes last."""
    for file in FILES:
        for name in cuda.kernels_of(file):
            shown = printed(capsys, "show", f"{file}.{name}")
            parts = re.split(r"^(\w+\.cuh?), line (\d+):\n\n", shown, flags=re.M)[1:]
            for source, line, text in zip(parts[::3], parts[1::3], parts[2::3]):
                lines = (cuda.folder() / source).read_text(encoding="utf-8").splitlines()
                shown = text.rstrip().splitlines()
                assert shown == lines[int(line) - 1:][:len(shown)]
                assert re.sub(r" *//.*", "", shown[-1]).endswith("}")
            assert name in text and text.count("__launch_bounds__") == 1


def test_what_a_kernel_calls_is_shown(capsys):
    shown = printed(capsys, "show", "pool.max_pool2d")
    assert "max_pool(const real* x" in shown and "over_window(" in shown and "over_windows_of(" not in shown


def test_what_is_not_there_is_told(two_files, capsys):
    assert refused(["kernels", "show", "shft"], capsys) == \
        "there is no kernel 'shft'; did you mean shift?; minunet kernels lists them"
    assert refused(["kernels", "show", "relu"], capsys) == \
        "several kernels are called relu: marks_of_a_test.relu, points_of_a_test.relu"
    assert refused(["kernels", "compile", "--file", "marks_of_a_test", "more"], capsys) == \
        "--file: must be of marks_of_a_test, points_of_a_test; got 'more'"
    assert "invalid choice: 'sm_91'" in rejected(["kernels", "compile", "--arch", "sm_91"], capsys)


def test_the_table_of_costs(two_files, compiler, capsys):
    text = printed(capsys, "compile")
    assert re.findall(r"^sm_\d+, float, NVRTC \d+\.\d+$", text, re.M) == \
        [f"sm_{arch}, float, NVRTC {'.'.join(map(str, nvrtc.version()))}" for arch in (80, 90)]
    rows = [line.split() for line in text.splitlines() if re.match(r"\w+\.\w+ ", line)]
    assert [row[0] for row in rows] == [
        "marks_of_a_test.relu", "marks_of_a_test.relu", "points_of_a_test.shift", "points_of_a_test.relu"]
    assert "left out: points_of_a_test needs sm_89\n" in text       # from the table of sm_80
    cost = nvrtc.compile("marks_of_a_test", 80).kernels["relu"]
    fits = nvrtc.occupancy(256, cost.registers, 0, 80)
    assert rows[0] == ["marks_of_a_test.relu", "256", f"{cost.registers}", "0", "0", "0", f"{fits.blocks}",
                       f"{fits.share:.0%}"]
    assert rows[2][1] == "SIZE=64"


def test_every_figure_stands_in_its_column(two_files, monkeypatch, capsys):
    cost = nvrtc.CompiledKernel("relu", 256, (), 40, 24, 28, 56, 1088, True, 2)
    monkeypatch.setattr(nvrtc, "compile", lambda *arguments: nvrtc.Compiled("", 80, b"", "", "", {"relu": cost}))
    monkeypatch.setattr(nvrtc, "version", lambda: (12, 9))
    titles, row = printed(capsys, "compile", "--arch", "sm_80", "--file", "marks_of_a_test").splitlines()[1:3]
    assert titles.split("  ")[0] == "kernel" and row.startswith("marks_of_a_test.relu ")
    ends = {title: titles.index(title) + len(title) for title in kernels.TITLES[2:]}
    assert {title: row[:end].split()[-1] for title, end in ends.items()} == {
        "threads": "256", "registers": "40", "spilled B": "52", "stack B": "56", "shared B": "1088+", "blocks": "≤6",
        "occupancy": "≤75%"}


def test_the_table_of_one_architecture_file_and_type(two_files, compiler, capsys):
    text = printed(capsys, "compile", "--arch", "sm_90", "--file", "points_of_a_test", "--real", "double", "--markdown")
    assert re.findall(r"^\|.*$", text, re.M)[:2] == [
        "| kernel | constants | threads | registers | spilled B | stack B | shared B | blocks | occupancy |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |"]
    assert re.findall(r"^\| (\S+) \| (SIZE=\d+) \| 64 \|", text, re.M) == [
        (f"points_of_a_test.{name}", constants) for constants in ("SIZE=64", "SIZE=32") for name in ("shift", "relu")]
    assert text.startswith("### sm_90, double, NVRTC ") and "marks" not in text


def test_a_kernel_that_does_not_compile_is_told(two_files, compiler, tmp_path, capsys):
    (tmp_path / "broken_in_a_test.cu").write_text("// Broken.\n#include \"common.cuh\"\nint = 3;\n")
    capsys.readouterr()
    assert main(["kernels", "compile", "--file", "broken_in_a_test"]) == 2
    assert re.match(r"minunet: kernels/broken_in_a_test.cu does not compile for sm_80: broken_in_a_test.cu\(3\): error",
                    capsys.readouterr().err)


def test_without_nvrtc_the_others_work(two_files, monkeypatch, capsys):
    def missing():
        raise UserError("no NVRTC")
    monkeypatch.setattr(nvrtc, "_library", missing)
    assert refused(["kernels", "compile"], capsys) == "no NVRTC"
    assert printed(capsys) and printed(capsys, "show", "shift")


def test_it_runs_as_a_command():
    done = run_command("kernels", "show", "activation.relu")
    assert done.returncode == 0 and "KERNEL __launch_bounds__(THREADS)\nrelu(" in done.stdout, done.stderr
