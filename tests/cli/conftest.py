"""Folders of images and masks for the command, and runs that were trained once for all tests."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet.cli import main
from minunet.data.scenes import cell_scenes
from tests.cli.helpers import SIZE, save_net, train


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """images, masks of 0 and 255, kinds with the class ids 0 to 2; untrained nets; a text; an empty folder."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("images", "masks", "kinds", "empty"):
        (folder / name).mkdir()
    images, masks = cell_scenes(np.random.default_rng(0), 6, SIZE)
    for i, (image, mask) in enumerate(zip(images, masks)):
        Image.fromarray((image[..., 0] * 255).astype(np.uint8)).save(folder / f"images/s{i}.png")
        Image.fromarray(mask * np.uint8(255)).save(folder / f"masks/s{i}.png")
        Image.fromarray(mask + mask * (image[..., 0] > image.mean())).save(folder / f"kinds/s{i}.png")
    save_net(folder / "net.safetensors")
    save_net(folder / "net3.safetensors", classes=3, seed=30)
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A working folder of one's own with all that was made."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="session")
def learned(made, tmp_path_factory):
    """What was made, with a finished run of one class in `run` and one of three classes in `run3`."""
    folder = tmp_path_factory.mktemp("learned")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(train(out="run")) == main(train(out="run3", masks="kinds")) == 0
    assert Path(folder, "run", "metrics.json").exists()
    return folder


@pytest.fixture
def after_training(learned, tmp_path, monkeypatch):
    """A working folder of one's own with all that was made and the two finished runs."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(learned, tmp_path, dirs_exist_ok=True)
    return tmp_path
