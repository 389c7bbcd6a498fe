"""The programs in examples/ run and leave what they promise."""

import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from minunet import UNet
from minunet.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_overview_draws_the_picture_on_top_of_readme(tmp_path):
    """With an untrained net, which is enough to draw; the committed picture has the same size."""
    Checkpoint(UNet(1, 1, base=2, depth=2), np.zeros(1, np.float32), np.ones(1, np.float32), {}).save(
        tmp_path / "best.safetensors")
    runpy.run_path(str(EXAMPLES / "overview.py"))["main"](tmp_path, tmp_path / "overview.png")
    with Image.open(tmp_path / "overview.png") as drawn, Image.open(EXAMPLES / "overview.png") as committed:
        assert drawn.size == committed.size
        left = (0, 0, drawn.width * 6 // 10, drawn.height)      # the matrices; the right side depends on the net
        difference = np.abs(np.asarray(drawn.crop(left), int) - np.asarray(committed.crop(left), int))
    assert (difference > 64).mean() < 0.02, "examples/overview.png is stale: see the program's first lines"
