"""The programs in examples/ run and leave what they promise."""

import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet import UNet
from minunet.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_overview_draws_the_picture_on_top_of_readme(tmp_path):
    """With an untrained net, which is enough to draw; the committed picture has the same size."""
    Checkpoint(UNet(1, 1, base=2, depth=2), np.zeros(1, np.float32), np.ones(1, np.float32), ("cell",)).save(
        tmp_path / "best.safetensors")
    runpy.run_path(str(EXAMPLES / "overview.py"))["main"](tmp_path, tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as drawn, Image.open(EXAMPLES / "overview.png") as committed:
        assert drawn.size == committed.size
        left = (0, 0, drawn.width * 6 // 10, drawn.height)      # the matrices; the right side depends on the net
        difference = np.abs(np.asarray(drawn.crop(left), int) - np.asarray(committed.crop(left), int))
    assert (difference > 64).mean() < 0.02, "examples/overview.png is stale: see the program's first lines"


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
