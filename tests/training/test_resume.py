"""A run that was stopped and goes on leaves the same bytes as one that never was; a run that is another is refused."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from minunet.checkpoint import load_checkpoint
from minunet.cli import main
from minunet.data import Dataset, MaskOptions, Sample
from minunet.errors import UserError
from tests.training.test_run import (  # noqa: F401  (quick is a fixture)
    SAME_BITS,
    assert_same_state,
    dataset_of,
    drawn,
    made,
    quick,
    read_history,
    scenes,
    without_pictures,
)

# dropout and batch norm; of 5 images to learn from come 6 crops: batches of 4 and 2
SETTINGS = {"depth": 2, "dropout": 0.3, "epochs": 4, "seed": 2}
KINDS = {
    "one class": ({"count": 9, "size": (17, 20)}, {}),
    "classes and a valid net": ({"count": 9, "size": (17, 20), "ids": 2, "ignored": True},
                                {"depth": 1, "padding": "valid", "crop": (20, 20), "schedule": "constant"}),
    "resized": ({"count": 9, "size": (17, 20)}, {"size": (12, 12), "up": "unpool", "norm": None, "test_split": 0.0}),
}


class Killed(BaseException):
    """What stops a run here; nothing in the package catches it."""


def run_of(kind, folder, resume=False, **settings):
    data, options = KINDS[kind]
    return made(folder, scenes(**data), resume=resume, **(SETTINGS | options | settings))


def stopped(run, epoch, step):
    """Train until this step of this epoch (from 1)."""
    steps = []

    def on_step(now, loss):
        steps.append(now)
        if now == epoch and steps.count(now) == step:
            raise Killed

    with pytest.raises(Killed):
        list(run.epochs(on_step))


def content(folder):
    return {name: (folder / name).read_bytes() for name in SAME_BITS}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The files of a whole run of each kind."""
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        for kind in KINDS:
            run = run_of(kind, tmp_path_factory.mktemp("whole"))
            losses = [result.loss for result in run.epochs()]
            assert len(set(losses)) == 4 and len(run.batches) == 2
            run.finish()
            results[kind] = content(run.folder)
    return results


# The same bytes


@pytest.mark.parametrize("epoch, step", [(1, 1), (1, 2), (2, 1), (3, 2), (4, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_bit_for_bit(tmp_path, uninterrupted, kind, epoch, step):
    stopped(run_of(kind, tmp_path), epoch, step)
    assert len(load_checkpoint(tmp_path / "last.safetensors").notes["history"]) == epoch - 1
    assert (tmp_path / "history.csv").exists() == (epoch > 1)
    run = run_of(kind, tmp_path, resume=True)
    assert [row["epoch"] for row in run.history] == list(range(1, epoch))
    assert [result.epoch for result in run.epochs()] == list(range(epoch, 5))
    run.finish()
    assert content(tmp_path) == uninterrupted[kind]


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_a_run_stopped_between_epochs_goes_on_bit_for_bit(tmp_path, uninterrupted, done):
    epochs = run_of("one class", tmp_path).epochs()
    for _ in range(done):
        next(epochs)
    epochs.close()
    assert len(read_history(tmp_path)) == done
    run = run_of("one class", tmp_path, resume=True)
    assert len(list(run.epochs())) == 4 - done
    run.finish()
    assert content(tmp_path) == uninterrupted["one class"]


def test_a_run_stopped_again_and_again_goes_on_bit_for_bit(tmp_path, uninterrupted):
    for attempt, (epoch, step) in enumerate([(1, 2), (1, 1), (3, 1), (3, 2), (4, 2)]):
        stopped(run_of("one class", tmp_path, resume=attempt > 0), epoch, step)
    run = run_of("one class", tmp_path, resume=True)
    list(run.epochs())
    run.finish()
    assert content(tmp_path) == uninterrupted["one class"]


def test_a_finished_run_may_be_resumed_and_stays(tmp_path, uninterrupted):
    for resume in (False, True):
        run = run_of("one class", tmp_path, resume=resume)
        assert len(list(run.epochs())) == (0 if resume else 4)
        run.finish()
        assert content(tmp_path) == uninterrupted["one class"]


def test_a_run_stopped_at_any_write_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Each renaming of a finished file, and the moment after it, is where the power fails once."""
    replace, renamed = os.replace, []

    def fail(source, target):
        renamed.append(target.name)
        if 2 * len(renamed) - 2 == stop:
            raise Killed
        replace(source, target)
        if 2 * len(renamed) - 1 == stop:
            raise Killed

    monkeypatch.setattr(os, "replace", fail)
    stop = None
    run = run_of("one class", tmp_path / "whole", epochs=2)
    list(run.epochs())
    run.finish()
    whole, writes = content(run.folder), len(renamed)
    assert renamed.count("last.safetensors") == 3 and renamed.count("best.safetensors") > 0
    for stop in range(2 * writes):
        folder = tmp_path / str(stop)
        renamed.clear()
        with pytest.raises(Killed):
            list(run_of("one class", folder, epochs=2).epochs())
        renamed.clear()
        begun, stop = (folder / "last.safetensors").exists(), None
        assert begun == (folder.name != "0")
        run = run_of("one class", folder, epochs=2, resume=begun)
        list(run.epochs())
        run.finish()
        assert content(folder) == whole, folder.name
        assert not list(folder.glob("*.tmp"))


def write_folders(folder):
    """Six pictures of cells with their masks."""
    for name, arrays in zip(("images", "masks"), drawn(6, (40, 48), 1)):
        (folder / name).mkdir()
        for i, array in enumerate(arrays):
            Image.fromarray(np.rint(np.squeeze(array) * 255).astype(np.uint8)).save(folder / name / f"{i}.png")


def wait_for(process, pattern):
    """Read the process's progress bar until the pattern is in it."""
    data = b""
    while not re.search(pattern, data):
        more = os.read(process.stderr.fileno(), 4096)
        assert more, data.decode()
        data += more
    return data


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_process_killed_in_the_middle_of_an_epoch_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path)
    command = ["train", "--images", "images", "--masks", "masks", "--base", "2", "--depth", "1", "--crop", "8x8",
               "--batch", "4", "--dropout", "0.2", "--epochs", "3", "--lr", "0.01"]
    with subprocess.Popen([sys.executable, "-m", "minunet", *command, "--out", "killed"], stderr=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(process, rb"epoch 2/3: ")              # shown after a step of it
            assert len(read_history(tmp_path / "killed")) >= 1
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    last = load_checkpoint("killed/last.safetensors")
    assert 1 <= len(last.notes["history"]) < 3 and not (tmp_path / "killed" / "metrics.json").exists()
    assert main([*command, "--out", "killed", "--resume"]) == 0
    assert "going on after epoch" in capsys.readouterr().out
    assert main([*command, "--out", "whole"]) == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


# More epochs


def test_more_epochs_may_be_asked_for(tmp_path):
    """At a constant rate they are those of the longer run; only the notes of an early best epoch tell them apart."""
    for folder, epochs in (("a", (2, 3, 5)), ("b", (5,))):
        for count in epochs:
            run = run_of("one class", tmp_path / folder, resume=count > epochs[0], epochs=count, schedule="constant")
            list(run.epochs())
            run.finish()
    for name in ("last.safetensors", "history.csv", "metrics.json", "split.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert_same_state(*(load_checkpoint(tmp_path / name / "best.safetensors").model.state_dict() for name in "ab"))
    assert len(read_history(tmp_path / "a")) == 5


def test_with_more_epochs_the_cosine_ends_later(tmp_path):
    list(run_of("one class", tmp_path, epochs=1).epochs())
    run, rates = run_of("one class", tmp_path, resume=True, epochs=3), []
    list(run.epochs(lambda epoch, loss: rates.append(run.optimizer.lr)))
    np.testing.assert_allclose(rates, [0.01 * 0.5 * (1 + np.cos(np.pi * t / 6)) for t in (2, 3, 4, 5)], rtol=1e-12)


def test_resume_goes_on_without_the_checkpoint_that_it_began_with(tmp_path):
    list(run_of("one class", tmp_path / "first", epochs=1).epochs())
    init = load_checkpoint(tmp_path / "first" / "best.safetensors")
    data, _ = KINDS["one class"]
    for folder in ("whole", "stopped"):
        run = made(tmp_path / folder, scenes(**data), init=init, **SETTINGS)
        if folder == "stopped":
            stopped(run, 1, 2)
            assert_same_state(load_checkpoint(tmp_path / folder / "last.safetensors").model.state_dict(),
                              init.model.state_dict())
            run = run_of("one class", tmp_path / folder, resume=True)
        list(run.epochs())
        run.finish()
    assert content(tmp_path / "whole") == content(tmp_path / "stopped")


# What is refused


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run that was stopped in its third epoch; nobody writes into it."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        stopped(run_of("one class", folder), 3, 1)
    return folder


@contextlib.contextmanager
def refused(folder, words):
    """One sentence that names the folder and what differs, and nothing in the folder is touched."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None
    with pytest.raises(UserError, match=f"^{re.escape(str(folder))}: {words}") as error:
        yield
    assert "\n" not in str(error.value)
    assert before == ({path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None)


@pytest.mark.parametrize("setting, value, words", [
    ("base", 3, "base 2, now it is 3"), ("depth", 1, "depth 2, now it is 1"), ("up", "nearest", "up 'transpose', now"),
    ("norm", None, "norm 'batch', now it is None"), ("dropout", 0.2, "dropout 0.3, now it is 0.2"),
    ("activation", "elu", "activation 'relu', now it is 'elu'"), ("pool", "average", "pool 'max', now it is 'average'"),
    ("crop", (16, 8), r"crop \[16, 16\], now it is \[16, 8\]"), ("size", (8, 8), r"size None, now it is \[8, 8\]"),
    ("batch", 3, "batch 4, now it is 3"), ("lr", 0.02, "lr 0.01, now it is 0.02"),
    ("schedule", "constant", "schedule 'cosine', now it is 'constant'"), ("loss", "bce", "loss None, now it is 'bce'"),
    ("val_split", 0.3, "val_split 0.2, now it is 0.3"), ("test_split", 0.0, "test_split 0.2, now it is 0.0"),
    ("padding", "valid", "padding 'same', now it is 'valid'"), ("epochs", 1, "epochs 4, now it is 1"),
])
def test_resume_refuses_changed_settings(begun, setting, value, words):
    others = {"crop": (44, 44)} if setting == "padding" else {}
    with refused(begun, f"was trained with {words}.*; resume with the same options"):
        run_of("one class", begun, resume=True, **{setting: value} | others)


def test_resume_refuses_another_seed(begun):
    with refused(begun, "was trained with seed 2, now it is 3"):
        run_of("one class", begun, resume=True, seed=3)


def test_resume_names_what_is_refused_and_not_the_epochs_which_are_allowed(begun):
    with refused(begun, "was trained with lr 0.01, now it is 0.02"):
        run_of("one class", begun, resume=True, epochs=6, lr=0.02)


def test_resume_refuses_masks_that_are_read_in_another_way(begun):
    data, _ = KINDS["one class"]
    with refused(begun, "was trained with invert False, now it is True"):
        made(begun, scenes(**data), options=MaskOptions(invert=True), resume=True, **SETTINGS)
    with refused(begun, r"was trained with ignore \[\], now it is \[3\]"):
        made(begun, scenes(**data), options=MaskOptions(ignore=(3,)), resume=True, **SETTINGS)


def changed(index=None, name=None, crop=0, count=9, pixel=0.0, order=slice(None)):
    """The run's images, one of them with another name, size or pixel."""
    images, masks = drawn(9, (17, 20), 1)
    samples = []
    for i, (image, mask) in enumerate(zip(images, masks)):
        image, own = image.copy(), f"scene {i}"
        if i == index:
            image, mask, own = image[crop:], mask[crop:], name or own
            image[0, 0] += pixel
        samples.append(Sample.of(own, image, mask))
    return Dataset.of(samples[:count][order], 1, 1)


OTHER = "was trained on other images or masks than these; resume with the same folders"


@pytest.mark.parametrize("options", [
    {"count": 8}, {"index": 0, "name": "scene 0b"}, {"index": 5, "crop": 1}, {"order": slice(None, None, -1)},
], ids=str)
def test_resume_refuses_other_images(begun, options):
    with refused(begun, OTHER):
        made(begun, changed(**options), resume=True, **SETTINGS)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_resume_refuses_changed_pixels(begun, part):
    """Of images to learn from they change the steps, of others the choice of the best epoch and the figures."""
    assert made(begun, changed(), resume=True, **SETTINGS).history          # unchanged, they are the run's
    sample = getattr(run_of("one class", begun).split, part)[0]
    with refused(begun, OTHER):
        made(begun, changed(index=int(sample.name.split()[1]), pixel=0.25), resume=True, **SETTINGS)


def test_resume_refuses_other_validation_images(tmp_path):
    data, _ = KINDS["one class"]
    others = [scenes(3, (16, 16), name=name) for name in ("one", "two")]
    list(made(tmp_path, scenes(**data), others[0], **(SETTINGS | {"epochs": 1})).epochs())
    with refused(tmp_path, OTHER):
        made(tmp_path, scenes(**data), others[1], resume=True, **SETTINGS)
    with refused(tmp_path, OTHER):
        made(tmp_path, scenes(**data), resume=True, **SETTINGS)


@pytest.mark.parametrize("what", ["classes", "channels"])
def test_resume_refuses_other_classes_or_channels(begun, what):
    images, masks = drawn(9, (17, 20), 1)
    dataset = dataset_of(images, masks, 3) if what == "classes" else \
        dataset_of(np.repeat(images, 3, axis=3), masks)
    with refused(begun, "was trained "):
        made(begun, dataset, resume=True, **SETTINGS)


def test_resume_needs_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with refused(folder, "holds no run to resume"):
            run_of("one class", folder, resume=True)


def test_resume_refuses_a_damaged_file(tmp_path, begun):
    shutil.copytree(begun, tmp_path / "run")
    path = tmp_path / "run" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="last.safetensors: is not a checkpoint, or is damaged"):
        run_of("one class", tmp_path / "run", resume=True)


def test_resume_refuses_the_best_epochs_file_in_the_place_of_the_last(tmp_path, begun):
    """It has no state of the optimizer."""
    shutil.copytree(begun, tmp_path / "run")
    shutil.copy(begun / "best.safetensors", tmp_path / "run" / "last.safetensors")
    with pytest.raises(UserError) as error:
        run_of("one class", tmp_path / "run", resume=True)
    assert "\n" not in str(error.value)
