"""The programs in examples/ run and leave and print what they promise; so does the notebook, whose outputs are fresh.

    python -m tests.test_examples           # runs the notebook and stores its outputs
"""

import ast
import base64
import importlib.util
import io
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from minunet import UNet
from minunet.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "transposed_convolution.ipynb"


def test_overview_draws_the_picture_on_top_of_readme(tmp_path):
    """With an untrained net, which is enough to draw; the committed picture has the same size."""
    Checkpoint(UNet(1, 1, base=2, depth=2), np.zeros(1, np.float32), np.ones(1, np.float32), ("cell",)).save(
        tmp_path / "best.safetensors")
    runpy.run_path(str(EXAMPLES / "overview.py"))["main"](tmp_path, tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as drawn, Image.open(EXAMPLES / "overview.png") as committed:
        assert drawn.size == committed.size
        upper = (0, 0, drawn.width, drawn.height * 3 // 5)      # the matrices; below, it depends on the net
        difference = np.abs(np.asarray(drawn.crop(upper), int) - np.asarray(committed.crop(upper), int))
    assert (difference > 64).mean() < 1e-4, "examples/overview.png is stale: see the program's first lines"


@pytest.fixture
def own_folder():
    spec = importlib.util.spec_from_file_location("own_folder", EXAMPLES / "own_folder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_folder_runs_its_commands_and_draws(own_folder, tmp_path, monkeypatch, capsys):
    """All five commands, with one epoch on few scenes."""
    monkeypatch.setattr(own_folder, "COMMANDS", own_folder.COMMANDS.replace("--epochs 40", "--epochs 1"))
    own_folder.write_folder(tmp_path, scenes=5, new=3)
    own_folder.run(tmp_path, tmp_path / "run")
    own_folder.draw(tmp_path, tmp_path / "run", tmp_path / "drawn.png")
    assert capsys.readouterr().out.count("$ minunet") == 5
    with Image.open(tmp_path / "drawn.png") as drawn, Image.open(EXAMPLES / "own_folder.png") as committed:
        assert drawn.width == committed.width


def test_own_folder_names_the_commands_of_readme(own_folder):
    blocks = re.findall(r"```sh\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert own_folder.COMMANDS.format(data="cells", run="runs/cells").strip() in [block.strip() for block in blocks]


@pytest.fixture
def run(monkeypatch, capsys):
    """A program of examples/ by the beginning of its name, run as __main__ with arguments; what it prints, by lines."""
    def run(number, *arguments):
        monkeypatch.setattr(sys, "argv", [str(path_of(number)), *map(str, arguments)])
        runpy.run_path(sys.argv[0], run_name="__main__")
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    return run


def path_of(number):
    path, = EXAMPLES.glob(f"{number}_*.py")
    return path


def promised(number):
    """What a program's docstring says that it prints: its indented lines, but for the command lines."""
    text = ast.get_docstring(ast.parse(path_of(number).read_text(encoding="utf-8")))
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if not line.startswith("python ")]


def keeps(printed, promises):
    """The promises that are not printed, in their order among other lines; "..." stands for the rest of a line."""
    left, rest = [], iter(printed)
    for promise in promises:
        begin = promise.removesuffix("...")
        if not any(line == promise or promise != begin and line.startswith(begin) for line in rest):
            left.append(promise)
            rest = iter(printed)
    return left


def forms(lines):
    """Lines with # for each number."""
    return [re.sub(r"\d[\d,]*(\.\d+)?", "#", line) for line in lines]


def numbers(line):
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", line)]


def check_picture(path):
    """It shows something, and can be read in a README."""
    with Image.open(path) as picture:
        assert picture.width >= 800
        assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize("number, picture", [("01", True), ("02", False), ("03", True), ("04", True), ("05", False),
                                             ("06", False)])
def test_a_program_prints_what_its_docstring_promises(run, tmp_path, number, picture):
    printed = run(number, *[tmp_path / "picture.png"] * picture)
    assert len(promised(number)) >= 3
    assert keeps(printed, promised(number)) == []
    if picture:
        check_picture(tmp_path / "picture.png")


@pytest.mark.parametrize("number", ["01", "03", "04", "07", "08", "09"])
def test_a_program_that_is_asked_for_help_gives_its_docstring(run, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="python examples"):
        run(number, "--help")
    assert not list(tmp_path.iterdir())


def test_a_broken_promise_is_found():
    assert keeps(["a is 1", "b is 2.5", "end"], ["a is 1", "b is ..."]) == []
    assert keeps(["a is 1", "b is 2.5", "end"], ["a is 2", "b is ..."]) == ["a is 2"]
    assert keeps(["a is 1", "b is 2.5", "end"], ["b is 2.5", "a is 1"]) == ["a is 1"]


def test_a_unet_learns_from_folders_and_reports(run, tmp_path):
    """From made-up scenes, then from the folders that these are in: the same run."""
    printed = run("07", "--quick", tmp_path / "out")
    assert set(forms(promised("07"))) <= set(forms(printed))
    again = run("07", "--quick", tmp_path / "again", tmp_path / "out" / "images", tmp_path / "out" / "masks")
    assert again[:-1] == printed[:-1]
    names = [line.split(":")[1].split(",")[0].strip() for line in printed if line.startswith("among the worst")]
    assert sorted(path.stem for path in (tmp_path / "out" / "found").iterdir()) == sorted(names)
    for path in (tmp_path / "out" / "found").iterdir():
        with Image.open(path) as found, Image.open(tmp_path / "out" / "masks" / path.name) as mask:
            assert found.size == mask.size and set(np.unique(found)) <= {0, 255}
    check_picture(tmp_path / "out" / "report.png")


@pytest.mark.parametrize("arguments", [(), ("out", "images")])
def test_a_unet_on_your_images_explains_its_arguments(run, arguments):
    with pytest.raises(SystemExit, match="OUT IMAGES MASKS"):
        run("07", *arguments)


def test_a_unet_on_your_images_says_what_is_wrong_with_a_folder(run, tmp_path):
    with pytest.raises(SystemExit, match="no_such_folder"):
        run("07", tmp_path / "out", tmp_path / "no_such_folder", tmp_path)


def ways_up(lines):
    """For each way: parameters; checkerboard before and after (mean, lowest, highest); IoU (the same)."""
    found, lines = {}, [line.strip() for line in lines]
    for way in ("3x3 transposed", "2x2 transposed", "bilinear"):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{way}: "))
        before, after = lines[at + 1].split("before training")
        found[way] = numbers(lines[at].removeprefix(way)), numbers(before), numbers(after), numbers(lines[at + 2])
    return found


def test_ways_up_begin_with_a_checkerboard_or_without(run, tmp_path):
    """What the docstring concludes follows from its figures; what is before the training holds in a quick run, too."""
    printed = run("08", "--quick", tmp_path / "picture.png")
    assert set(forms(promised("08"))) <= set(forms(printed))
    measured, quick = ways_up(promised("08")), ways_up(printed)
    for found in (measured, quick):
        for way in ("3x3 transposed", "2x2 transposed"):
            assert found[way][1][1] > 2 * found["bilinear"][1][2], "the lowest of the seeds against the highest"
    assert {way: f[0] for way, f in measured.items()} == {way: f[0] for way, f in quick.items()}
    for _, before, after, _ in measured.values():
        assert after[0] < before[0] / 5
    assert max(f[3][1] for f in measured.values()) < min(f[3][2] for f in measured.values()), "the ranges overlap"
    check_picture(tmp_path / "picture.png")


def steps_to_the_unet(lines):
    """For each net: parameters, IoU, wrong near outlines (%), wrong elsewhere (%)."""
    rows = (line.split(": ", 1) for line in lines if "parameters" in line)
    return {name: numbers(figures) for name, figures in rows}


def test_each_step_to_the_unet_brings_what_the_one_before_lacks(run, tmp_path):
    """What the docstring concludes follows from the figures in it; what a short training shows holds in a quick run."""
    printed = run("09", "--quick", tmp_path / "picture.png")
    assert set(forms(promised("09"))) <= set(forms(printed))
    measured, quick = steps_to_the_unet(promised("09")), steps_to_the_unet(printed)
    assert {name: f[0] for name, f in measured.items()} == {name: f[0] for name, f in quick.items()}
    for lines, found in ((promised("09"), measured), (printed, quick)):
        iou = {name: figures[1] for name, figures in found.items()}
        assert iou["fully connected"] < numbers(lines[0])[0] < iou["convolutional"]
        assert abs(iou["fully connected"] - iou["fully connected, pixels shuffled"]) < 0.04
        assert iou["convolutional, pixels shuffled"] < iou["convolutional"] - 0.1
        assert iou["encoder and decoder"] < iou["U-Net"] - 0.1
    assert measured["convolutional"][1] < measured["encoder and decoder"][1]
    near, elsewhere = ({name: figures[at] for name, figures in measured.items()} for at in (2, 3))
    assert near["encoder and decoder"] > 2 * near["U-Net"] > 4 * elsewhere["U-Net"]
    assert elsewhere["convolutional"] > 3 * elsewhere["encoder and decoder"]
    assert measured["encoder and decoder"][0] == measured["U-Net"][0]
    check_picture(tmp_path / "picture.png")


def executed():
    """The notebook, run from top to bottom by Jupyter in an empty folder; what belongs to the machine stays out."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    metadata = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        own = dict.fromkeys(("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"), folder)
        with patch.dict(os.environ, own | {"MPLBACKEND": ""}):
            NotebookClient(notebook, timeout=120, kernel_name="python3", record_timing=False,
                           resources={"metadata": {"path": folder}}).execute()
    notebook.metadata = metadata
    return notebook


def outputs_of(cell):
    """The texts of a code cell and its pictures (arrays 64x64), in their order."""
    texts, pictures = [], []
    for output in cell.outputs:
        assert output.output_type in ("stream", "display_data", "execute_result"), output
        data = output.get("data", {})
        if "image/png" in data:
            with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
                pictures.append(np.asarray(picture.convert("L").resize((64, 64)), float))
        else:
            assert output.get("name") != "stderr", f"a warning in the notebook: {output.text}"
            texts.append(output.text if output.output_type == "stream" else data["text/plain"])
    return "".join(texts), pictures


STALE = "the notebook's outputs are stale; run python -m tests.test_examples"


def test_the_notebook_runs_and_its_stored_outputs_are_fresh():
    stored, fresh = nbformat.read(NOTEBOOK, as_version=4), executed()
    drawn = 0
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        if new.cell_type == "code":
            (old_text, old_pictures), (text, pictures) = outputs_of(old), outputs_of(new)
            assert old_text == text, STALE
            assert [old.execution_count, len(old_pictures)] == [new.execution_count, len(pictures)], STALE
            assert all(abs(a - b).mean() < 4 for a, b in zip(old_pictures, pictures)), STALE
            drawn += len(pictures)
    assert drawn == 4


def test_the_notebook_tells_nothing_of_the_machine_that_ran_it():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                                 "language_info": {"name": "python"}}
    assert all(not cell.metadata for cell in notebook.cells)
    text = re.sub(r'"image/png": "[^"]*"', "", NOTEBOOK.read_text(encoding="utf-8"))
    assert re.findall(r"/(?:home|root|tmp|work|usr|Users|var)\b", text) == []


if __name__ == "__main__":
    nbformat.write(executed(), NOTEBOOK)
