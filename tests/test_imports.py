"""Imports only go down: every room of the package has a level, and imports from its own level or from a lower one.

Imports inside functions count as well. Inside a level a room may import another, but neither rooms nor modules may
import each other in a circle. `minunet/__init__.py`, the front door, is exempt; rooms do not import from it.
"""

from __future__ import annotations

import ast
import graphlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEVELS = {
    "geometry": 0, "tape": 0, "sim_array": 0, "backend": 0, "memory": 0, "parallel": 0, "errors": 0,
    "cuda": 1, "replay": 1, "simulator": 1, "nvrtc": 1,
    "convolution": 2,
    "ops": 3,
    "graph": 4, "autograd": 4, "recompute": 4,
    "functional": 5, "gradient_check": 5,
    "nn": 6, "optim": 6,
    "models": 7, "data": 7, "checkpoint": 7, "interop": 7,
    "training": 8, "inference": 8, "study": 8,
    "cli": 9, "__main__": 9,
}


def module_name(path: Path, root: Path) -> str:
    """minunet/ops/conv.py -> minunet.ops.conv; the __init__.py of a package has the package's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, name: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and module of each import from minunet in a file, however deep in it, relative ones resolved.

    `from a.b import c` is an import of a.b.c if that is a module, otherwise of a.b. `minunet` itself is the front door.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "minunet")
        elif isinstance(node, ast.ImportFrom):
            ancestors = package.split(".")
            base = ".".join(ancestors[:len(ancestors) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            if base.split(".")[0] != "minunet":
                continue
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner != "minunet.__version__":      # a constant: it leads to no room
                    yield node.lineno, inner if inner in known else base


def violations(root: Path) -> list[str]:
    """A sentence for each import that goes up, each room without a level and each circle, in root/minunet."""
    files = {module_name(path, root): path for path in sorted((root / "minunet").rglob("*.py"))}
    known = set(files) | {f"minunet.{room}" for room in LEVELS}
    found = []
    modules: dict[str, set[str]] = {}
    rooms: dict[str, set[str]] = {}
    for name, path in files.items():
        if name == "minunet":
            continue
        room = name.split(".")[1]
        if room not in LEVELS:
            found.append(f"{path.relative_to(root)}: the room {room} has no level; add it to tests/test_imports.py")
            continue
        for line, target in imports(path, name, known):
            where = f"{path.relative_to(root)}:{line}"
            if target == "minunet":
                found.append(f"{where}: imports from minunet/__init__.py, the front door; import the room itself")
                continue
            other = target.split(".")[1]
            if other not in LEVELS:
                found.append(f"{where}: imports {target}, a room without a level")
                continue
            if LEVELS[other] > LEVELS[room]:
                found.append(f"{where}: {room} (level {LEVELS[room]}) imports {target} (level {LEVELS[other]})")
            modules.setdefault(name, set()).add(target)
            if other != room:
                rooms.setdefault(room, set()).add(other)
    for graph in (rooms, modules):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            found.append("imports in a circle: " + " <- ".join(error.args[1]))
    return found


def test_imports_only_go_down():
    assert violations(ROOT) == []


def test_every_folder_of_the_package_is_a_package():
    """Without an __init__.py, setuptools leaves a folder out of the wheel, and an editable install does not show it."""
    folders = {path.parent for path in (ROOT / "minunet").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("file, text, complaint", [
    ("ops/conv.py", "import minunet.autograd", "ops (level 3) imports minunet.autograd (level 4)"),
    ("ops/conv.py", "from minunet import nn", "ops (level 3) imports minunet.nn (level 6)"),
    ("ops/conv.py", "from ..training import loop", "ops (level 3) imports minunet.training (level 8)"),
    ("geometry.py", "def f():\n    from minunet.convolution.matrix import ConvMatrix", "geometry (level 0) imports"),
    ("geometry.py", "from minunet import ConvMatrix", "the front door"),
    ("backend.py", "from minunet import Geometry as G, __version__", "the front door"),
    ("convolution/windows.py", "from . import matrix", "in a circle: minunet.convolution."),
    ("geometry.py", "import minunet.backend\n", "in a circle: "),
    ("attic.py", "x = 1", "the room attic has no level"),
    ("nn/module.py", "from minunet.attic import x", "imports minunet.attic, a room without a level"),
])
def test_a_planted_fault_is_found(tmp_path, file, text, complaint):
    shutil.copytree(ROOT / "minunet", tmp_path / "minunet", ignore=shutil.ignore_patterns("__pycache__"))

    def append(file, text):
        with (tmp_path / "minunet" / file).open("a", encoding="utf-8") as target:
            target.write(f"\n\n{text}\n")

    append("backend.py", "def planted():\n    import minunet.geometry")     # stays in its level, and in no circle
    assert violations(tmp_path) == []
    append(file, text)
    found = violations(tmp_path)
    assert len(found) >= 1 and complaint in found[0], found


def test_import_is_light():
    """In a fresh interpreter, `import minunet` loads no plotting, no pictures, no progress bars and no GPU."""
    heavy = ["matplotlib", "cupy", "PIL", "torch", "tqdm"]
    code = f"import sys, minunet; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
