"""`minunet bench kernels` as a user runs it: what it prints and writes, and the sentence for what cannot be."""

import importlib.util
import json
import sys

import pytest

from minunet import backend
from minunet.cli import bench, main
from tests.cli.helpers import refused, rejected

products = bench.room("products")
TINY = ["bench", "kernels", "--quick", "--base", "2", "--size", "16x32"]


def test_on_the_cpu(tmp_path, capsys):
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    assert main([*TINY, "--device", "cpu", *files]) == 0
    said = capsys.readouterr().out
    assert "limits measured on cpu: copy" in said and "GFLOP/s in float32" in said
    assert "[1] 3 -> 2, 3x3, 16x32 px, batch 1 (first.conv1)" in said and "[19] 2 -> 2, 1x1" in said
    assert "the 23 convolutions of the net together, 16x32 px, batch 1" in said
    assert all(word in said for word in ("batch norm", "max pool 2x2", "Adam, all weights", "2 dy, 2 x, dx"))
    assert "WRONG" not in said
    found = json.loads((tmp_path / "b.json").read_text())
    assert len([row for row in found["rows"] if "layer" in row]) == (19 + 14) * 3       # 3x3 windows by two algorithms
    assert all(row["correct"] and row["median_s"] > 0 and row["runs"] >= 3 and "share_of_limit" in row
               for row in found["rows"])
    assert found["options"]["size"] == [[16, 32]] and found["options"]["base"] == 2
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_some_layers_at_several_sizes(capsys):
    assert main([*TINY, "32x32", "--device", "cpu", "--layers", "up.3.*", "head", "--batch", "1", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("up 4 -> 2, 2x2, to 32x32 px") == 2 and said.count("(head)") == 4
    assert "kernels that move memory" not in said
    # up.3.convs.conv2 is the same as first.conv2
    assert said.count("the 5 convolutions of the net together") == 4


def test_beside_pytorch(capsys, torch):
    assert main([*TINY, "--device", "cpu", "--layers", "first.conv2", "--against", "torch"]) == 0
    said = capsys.readouterr().out
    assert said.count("PyTorch (oneDNN, contiguous)") == 4 == said.count("PyTorch (oneDNN, channels last)")
    assert "vs PyTorch" in said and f"PyTorch {torch.__version__}" in said


def test_on_the_simulated_gpu(capsys):
    assert main([*TINY, "--device", "sim", "--layers", "first.conv1", "--precision", "float32"]) == 0
    said = capsys.readouterr().out
    assert "its times say nothing of a GPU's" in said and " ms" not in said
    rows = [line.split() for line in said.splitlines()]
    direct = next(row for row in rows if "conv_direct.forward" in row)
    # 16 x 32 px of 2 filters, a thread each
    assert direct[:9] == ["A", "x", "direct", "float32", "conv_direct.forward", "1", "4", "256", "1,024"]
    assert "array library, 512x27 @ 27x2 " in said and "conv_implicit.weight_grad" in said
    assert float(direct[-1]) < 1e-5


def test_a_wrong_product_is_an_error(capsys, monkeypatch):
    right = products.compute
    monkeypatch.setattr(products, "compute", lambda what, *rest: right(what, *rest) * (2 if what == "dw" else 1))
    assert main([*TINY, "--device", "cpu", "--layers", "head"]) == 2
    said = capsys.readouterr()
    assert "1 result marked WRONG above" in said.err and said.out.count("WRONG") == 1
    dw = next(line for line in said.out.splitlines() if line.startswith("dw"))
    assert dw.split() == ["dw", "im2col", "WRONG", "1e+00"]


@pytest.mark.parametrize("options, words", [
    (["--device", "cpu", "--precision", "tf32"], "tensor cores of a GPU"),
    (["--size", "30x32"], "multiples of 16"),
    (["--layers", "nothing"], "no convolution is called nothing; there are first.conv1"),
    (["--json", "no/such/folder/b.json"], "in a folder that exists"),
    (["--plot", "roof.txt"], "must end in .png, .svg or .pdf"),
    (["--device", "sim", "--json", "b.json"], "the simulated GPU has none"),
])
def test_mistakes(options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(["bench", "kernels", *(["--device", "cpu"] if "--device" not in options else []), *options],
                            capsys)


def test_what_this_computer_lacks(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'minunet[peers]'" in refused([*TINY, "--device", "cpu", "--against", "torch"], capsys)
    monkeypatch.undo()
    backend.cupy.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install 'minunet[gpu]'" in refused([*TINY, "--device", "cuda"], capsys)


def test_options_that_cannot_be(capsys):
    assert "must be HEIGHTxWIDTH" in rejected(["bench", "kernels", "--size", "12"], capsys)
    assert "invalid choice: 'jax'" in rejected(["bench", "kernels", "--against", "jax"], capsys)
    assert "COMMAND" in rejected(["bench"], capsys)
