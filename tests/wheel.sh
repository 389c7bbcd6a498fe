#!/usr/bin/env bash
# The package without its checkout: builds the wheel, looks inside, installs it into an empty environment and runs the
# demo, an explanation and a benchmark from a directory of its own. (A test of pytest would need the network and a
# minute on every run.)
set -euo pipefail
unset PYTHONPATH

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From a copy: setuptools packs whatever an earlier build left in build/, and would leave more there.
mkdir "$work/source" "$work/wheel" "$work/elsewhere"
tar -C "$root" --anchored --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./dist --exclude=./runs \
    -cf - . | tar -C "$work/source" -xf -
python3 -m venv "$work/venv"
python="$work/venv/bin/python"
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheel" "$work/source"

"$python" - "$work/source" "$work"/wheel/*.whl <<'PYTHON'
import pathlib
import sys
import zipfile

source, wheel = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
names = set(zipfile.ZipFile(wheel).namelist())
wanted = {path.relative_to(source).as_posix() for path in (source / "minunet").rglob("*")
          if path.suffix in {".py", ".h", ".html", ".css", ".js"}}
for room in ("kernels", "benchmarks"):      # beside the package in a checkout, inside it when installed
    wanted |= {f"minunet/{room}/{path.name}" for path in (source / room).iterdir() if path.suffix in {".cu", ".cuh", ".py"}}
missing = wanted - names
assert not missing, f"{wheel.name} lacks {sorted(missing)}: does setup.cfg list their folders?"
others = {name for name in names if not name.startswith(("minunet/", "minunet-")) or "/test" in name}
assert not others, f"{wheel.name} should hold the package alone, it also has {sorted(others)}"
assert any(name.endswith("/LICENSE") for name in names), f"{wheel.name} has no LICENSE"
print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1024:.0f} KiB")
PYTHON

"$python" -m pip install --quiet "$work"/wheel/*.whl
"$python" -m pip check
cd "$work/elsewhere"
"$work/venv/bin/minunet" --help >help.txt
"$work/venv/bin/minunet" demo --quick --out demo
compgen -G "demo/*.png" || { echo "minunet demo --out DIR left no picture (*.png) in DIR" >&2; exit 1; }
"$work/venv/bin/minunet" kernels >kernels.txt
"$work/venv/bin/minunet" explain --stride 2 --padding 1 --out explain --html explain/case.html >explain.txt
"$work/venv/bin/minunet" bench unet --quick >bench.txt                  # in processes that find the benchmarks, too
MINUNET_CACHE="$work/cache" "$python" -c "
import sys, numpy, minunet
from minunet.backend import to_device
weight, x = (numpy.ones(shape, numpy.float32) for shape in ((3, 3, 4, 4), (1, 4, 4, 4)))
A = minunet.ConvMatrix(to_device(weight, 'sim'), minunet.Geometry(3), (4, 4))       # compiles the wheel's own kernels
assert ((A @ to_device(x, 'sim')) == 36).all()
print(A)
assert minunet.__file__.startswith(sys.prefix), f'imported from {minunet.__file__}, not from the wheel'
"
