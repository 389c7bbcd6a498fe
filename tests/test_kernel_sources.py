"""What holds for every kernel file: a thesis, no CUDA header, PTX in one place, and one door that launches."""

import re
from pathlib import Path

import pytest

from minunet import cuda

SOURCES = sorted(path for path in cuda.folder().iterdir() if path.suffix in (".cu", ".cuh"))
PACKAGE = Path(cuda.__file__).parent


def code(path):
    """A file without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_conventions(path):
    opening = re.match(r"(?://[^\n]*\n)+", path.read_text(encoding="utf-8"))
    assert opening and len(opening[0].split()) >= (20 if path.suffix == ".cu" else 5), "opens with its thesis"
    included = set(re.findall(r"#[ \t]*include[ \t]+(\S+)", code(path)))
    assert included <= {f'"{source.name}"' for source in SOURCES}, "includes no header of CUDA or C++"
    assert "asm" not in re.findall(r"\w+", code(path)) or path.name == "ptx.cuh", "inline PTX lives in ptx.cuh"
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120


def test_atomics_add_integers_only():
    """Float sums in an order of chance would not repeat bit for bit."""
    for path in SOURCES:
        for call in re.findall(r"\batomic\w+\s*\(([^;]*)\)\s*;", code(path)):
            assert path.name == "counts.cu" and "real" not in call and "float" not in call, f"{path.name}: {call}"


def test_nothing_launches_but_the_door():
    """CuPy's own kernels and the simulator's launch are named in cuda.py alone."""
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "cuda.py" and path.parent.name != "simulator"]
    assert len(others) > 50
    for path in others:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"Raw(Module|Kernel)\(|ElementwiseKernel|ReductionKernel|simulator\.launch\(", text), path
