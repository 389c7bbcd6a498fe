"""The command, as a clumsy user meets it: what it writes, and one sentence with exit code 2 for what can be mended."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet import UNet, cli
from minunet.checkpoint import Checkpoint, load_checkpoint
from minunet.cli import main
from minunet.data import load_folder
from minunet.data.scenes import cell_scenes
from minunet.training import Run

FILES = ["best.safetensors", "history.csv", "last.safetensors", "metrics.json", "validation.png"]
TINY = ["--base", "2", "--crop", "16x16", "--batch", "4", "--epochs", "2"]
SIZE = (24, 32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with images and masks of six made-up scenes, a net, a text and an empty folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "masks", "empty"):
        Path(folder).mkdir()
    images, masks = cell_scenes(np.random.default_rng(0), 6, SIZE)
    for i, (image, mask) in enumerate(zip(images, masks)):
        Image.fromarray((image[..., 0] * 255).astype(np.uint8)).save(f"images/s{i}.png")
        Image.fromarray(mask * np.uint8(255)).save(f"masks/s{i}.png")
    save_net("net.safetensors")
    Path("notes.txt").write_text("not an image")
    return tmp_path


def save_net(path, channels=1, classes=1):
    """A net that nobody trained, but one that finds something somewhere."""
    model = UNet(channels, classes, base=2, depth=2, output="sigmoid" if classes == 1 else "softmax",
                 rng=np.random.default_rng(8))
    Checkpoint(model, np.full(channels, 0.5, np.float32), np.full(channels, 0.2, np.float32), {}).save(path)


def train(*options, images="images", masks="masks", out="run"):
    return ["train", "--images", images, "--masks", masks, "--out", out, *TINY, *options]


def predict(*files, net="net.safetensors", out="out"):
    return ["predict", net, *files, "--out", out]


def complaint(stderr):
    """The one sentence on stderr: the last line, beside nothing but the progress bar."""
    assert "Traceback" not in stderr and "Warning" not in stderr
    lines = [line for line in re.split("[\r\n]", stderr) if line.strip() and not re.search(r"\d/\d+ \[", line)]
    assert len(lines) == 1 and lines[0].startswith("minunet: ") and stderr.endswith(f"\n{lines[0]}\n"[-len(stderr):])
    return lines[0].removeprefix("minunet: ")


def refused(arguments, capsys):
    """The sentence with which the command refuses."""
    assert main(arguments) == 2
    return complaint(capsys.readouterr().err)


# Training


def test_train_leaves_its_files_and_says_where(here, capsys):
    assert main(train(out="runs/cells/first")) == 0
    run = Path("runs/cells/first")
    assert sorted(path.name for path in run.iterdir()) == FILES
    shown = capsys.readouterr()
    assert "4 images to learn from, 1 to validate, 1 to test" in shown.out
    figures = json.loads((run / "metrics.json").read_text())["test"]
    assert f"test, over all pixels of 1 image: IoU {figures['iou']:.4f}, Dice {figures['dice']:.4f}" in shown.out
    for name in ("validation.png", "best.safetensors"):
        assert str(run / name) in shown.out
    assert shown.out.count("validation IoU") == 2 and "epoch 2/2" in shown.err


def test_options_reach_the_run(here):
    assert main(train("--lr", "0.5", "--seed", "3", "--crop", "8x16", "--epochs", "1", "--base", "3")) == 0
    config = json.loads(Path("run/metrics.json").read_text())["config"]
    expected = {"lr": 0.5, "seed": 3, "crop": [8, 16], "epochs": 1, "base": 3, "batch": 4}
    assert expected.items() <= config.items()
    assert load_checkpoint("run/best.safetensors").model.config["base"] == 3


def test_defaults_are_the_documented_ones(monkeypatch, here):
    seen = []
    monkeypatch.setattr(cli, "_run", lambda run: seen.append(run.config))
    assert main(["train", "--images", "images", "--masks", "masks", "--out", "run"]) == 0
    config = seen[0]
    assert (config.base, config.crop, config.batch, config.lr, config.seed) == (16, (128, 128), 8, 1e-3, 0)


def test_invert_exchanges_class_and_background(monkeypatch, here):
    seen = []
    monkeypatch.setattr(cli, "_run", lambda run: seen.append(run.dataset.samples))
    assert main(train()) == main(train("--invert")) == 0
    for sample, inverted in zip(*seen, strict=True):
        np.testing.assert_array_equal(inverted.mask, 1 - sample.mask)


def test_more_classes_are_told_one_by_one(here, capsys):
    for path in Path("masks").iterdir():
        Image.fromarray(np.indices(SIZE).sum(0).astype(np.uint8) // 20).save(path)
    assert main(train("--epochs", "1")) == 0
    assert re.findall("class ([0-9]): IoU", capsys.readouterr().out) == ["0", "1", "2"]


def test_a_trained_net_predicts(here):
    """The whole way: folders, train, predict, and the masks are read as masks again."""
    assert main(train()) == 0
    assert main(predict("images", net="run/best.safetensors", out="found")) == 0
    for overlay in Path("found").glob("*_overlay.png"):
        overlay.unlink()
    dataset = load_folder("images", "found")
    assert dataset.classes == 1 and len(dataset.samples) == 6


def test_the_same_command_twice_gives_the_same_bytes(here):
    assert main(train(out="a")) == main(train(out="b")) == 0
    for name in FILES:
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_the_demo_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs" / "demo").iterdir()) == FILES
    assert "IoU" in capsys.readouterr().out


# Prediction


@pytest.mark.parametrize("channels, classes", [(1, 1), (3, 1), (1, 5), (3, 5)])
@pytest.mark.parametrize("mode, name", [
    ("1", "a.png"), ("L", "a.tif"), ("LA", "a.png"), ("P", "a.gif"), ("RGB", "a.jpg"), ("RGBA", "a.PNG"),
    ("I;16", "a.png"), ("CMYK", "a.jpeg"),
])
def test_predicted_masks_have_the_size_of_the_source(here, mode, name, channels, classes):
    save_net("net.safetensors", channels, classes)
    pixels = np.random.default_rng(0).integers(0, 256, (19, 37, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 if mode == "I;16" else pixels)
    picture = picture if mode == "I;16" else picture.convert(mode)
    picture.save(f"empty/{name}")
    assert main(predict(f"empty/{name}")) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "a_overlay.png"]
    with Image.open("out/a.png") as mask, Image.open("out/a_overlay.png") as overlay:
        assert mask.size == overlay.size == (37, 19)
        assert (mask.format, mask.mode, overlay.format, overlay.mode) == ("PNG", "L", "PNG", "RGB")
        values = set(np.unique(np.asarray(mask)).tolist())
    assert values == {0, 255} if classes == 1 else values <= {0, 1, 2, 3, 4} and len(values) > 1


def test_a_run_is_not_overwritten(here, capsys):
    assert main(train()) == 0
    before = Path("run/best.safetensors").read_bytes()
    capsys.readouterr()
    assert main(train("--seed", "1")) == 2
    assert complaint(capsys.readouterr().err).startswith("run: holds a run already, which would be overwritten")
    assert Path("run/best.safetensors").read_bytes() == before


def test_folders_and_files_may_be_mixed(here, capsys):
    Path("images/notes.txt").write_text("left alone")
    Image.new("L", (1, 1)).save("single.bmp")
    assert main(predict("single.bmp", "images")) == 0
    assert len(list(Path("out").iterdir())) == 2 * 7
    assert "7 masks with overlay in out" in capsys.readouterr().out


def test_an_upright_photograph_gets_an_upright_mask(here):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 12)).save("phone.jpg", exif=exif)
    assert main(predict("phone.jpg")) == 0
    with Image.open("out/phone.png") as mask:
        assert mask.size == (12, 20)


# What a user can get wrong


def write(path, content=b"hello"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def halve(path):
    write(path, Path(path).read_bytes()[:Path(path).stat().st_size // 2])


def unlink(*paths):
    for path in paths:
        Path(path).unlink()


MISTAKES = {    # what the user did -> (how, the arguments, how the sentence begins, further words)
    "no image folder": (None, train(images="imgs"), "imgs: ", "no such folder"),
    "no mask folder": (None, train(masks="mask"), "mask: ", "no such folder"),
    "a file as folder": (None, train(images="images/s0.png"), "images/s0.png: ", "folder"),
    "an empty folder": (None, train(images="empty"), "empty: ", "no image files"),
    "no mask for an image": (lambda: unlink("masks/s3.png"), train(), "images/s3.png: ", "no mask"),
    "no image for a mask": (lambda: unlink("images/s2.png"), train(), "masks/s2.png: ", "no image"),
    "two files of a stem": (lambda: write("images/s1.tif"), train(), "images/s1.tif: ", "s1.png"),
    "another size": (lambda: Image.new("L", (3, 4)).save("masks/s1.png"), train(), "masks/s1.png: ",
                     "3x4 px.*32x24 px"),
    "text among the images": (lambda: write("images/s1.png"), train(), "images/s1.png: ", "not an image"),
    "no bytes": (lambda: write("masks/s1.png", b""), train(), "masks/s1.png: ", "not an image, or is damaged"),
    "half a file": (lambda: halve("images/s4.png"), train(), "images/s4.png: ", "damaged"),
    "a colour mask": (lambda: Image.new("RGB", SIZE[::-1], "red").save("masks/s0.png"), train(), "masks/s0.png: ",
                      "grey"),
    "images as masks": (None, train(masks="images"), "images/s0.png: ", "class ids"),
    "inverted class ids": (lambda: Image.new("L", SIZE[::-1], 7).save("masks/s0.png"), train("--invert"),
                           "masks: ", "two"),
    "two pairs": (lambda: unlink(*(f"{d}/s{i}.png" for d in ("images", "masks") for i in range(4))), train(),
                  "training", "at least 3 pairs .*; got 2"),
    "a rate too high": (None, train("--lr", "1e30"), "the loss became nan in epoch 1, step 2", "smaller learning rate"),
    "a file as output": (None, train(out="notes.txt"), "notes.txt: ", "--out must be a folder"),
    "an output in a file": (None, train(out="notes.txt/run"), "notes.txt/run: ", "--out must be a folder"),
    "a folder in the way": (lambda: Path("run/best.safetensors.tmp").mkdir(parents=True), train(),
                            "run/best.safetensors.tmp: ", "Is a directory"),

    "no checkpoint": (None, predict("images", net="best.safetensors"), "best.safetensors: ", "no such checkpoint"),
    "a folder as checkpoint": (None, predict("images", net="images"), "images: ", "is a folder"),
    "an image as checkpoint": (None, predict("images", net="images/s0.png"), "images/s0.png: ", "not a checkpoint"),
    "half a checkpoint": (lambda: halve("net.safetensors"), predict("images"), "net.safetensors: ", "damaged"),
    "checkpoint and image exchanged": (None, predict("net.safetensors", net="images/s0.png"), "images/s0.png: ",
                                       "not a checkpoint"),
    "no such image": (None, predict("images/s9.png"), "images/s9.png: ", "there is no such file"),
    "text as image": (None, predict("images", "notes.txt"), "notes.txt: ", "not an image"),
    "a damaged image": (lambda: halve("images/s4.png"), predict("images"), "images/s4.png: ", "damaged"),
    "nothing to predict": (None, predict("empty"), "empty: ", "no image files"),
    "an image of 32 bits": (lambda: Image.new("F", (3, 3)).save("f.tif"), predict("f.tif"), "f.tif: ", "8 or 16 bits"),
    "the same name twice": (lambda: write("more/s0.jpg"), predict("images", "more"), "more/s0.jpg: ", "images/s0.png"),
    "predicting the overlays": (lambda: write("images/s0_overlay.png"), predict("images"), "images/s0_overlay.png: ",
                                "overwrite"),
    "predicting into the images": (None, predict("images", out="images"), "images/s0.png: ", "overwrite the image"),
    "a file as output of predict": (None, predict("images", out="notes.txt"), "notes.txt: ", "--out must be a folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_code_2(here, capsys, mistake):
    prepare, arguments, start, words = MISTAKES[mistake]
    if prepare:
        prepare()
    assert re.match(f"{re.escape(start)}.*{words}", refused(arguments, capsys))


def test_predicting_into_the_images_leaves_them_alone(here, capsys):
    before = {path: path.read_bytes() for path in Path("images").iterdir()}
    refused(predict("images", out="empty/../images/"), capsys)
    assert {path: path.read_bytes() for path in Path("images").iterdir()} == before


def test_data_is_read_before_a_folder_is_made(here, capsys):
    refused(train(masks="empty"), capsys)
    refused(predict("notes.txt", net="notes.txt"), capsys)
    assert not Path("run").exists() and not Path("out").exists()


@pytest.mark.parametrize("arguments", [train(), predict("images")])
def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(here, capsys, monkeypatch, arguments):
    monkeypatch.setattr(os, "access", lambda path, mode: False)         # no file mode stops the superuser
    assert re.match("(run|out): cannot be written to", refused(arguments, capsys))


@pytest.mark.parametrize("error, words", [
    (MemoryError("allocate 9 TiB"), r"there is not enough memory \(allocate 9 TiB\); use .* --base"),
    (OSError(28, "No space left on device", "run/last.safetensors.tmp"), "run/last.safetensors.tmp: No space left"),
    (PermissionError(13, "Permission denied", "run"), "run: Permission denied"),
])
def test_what_the_machine_lacks_is_told_in_a_sentence(here, capsys, monkeypatch, error, words):
    def fail(run, images, masks, epoch):
        raise error

    monkeypatch.setattr(Run, "_step", fail)
    assert re.match(words, refused(train(), capsys))


@pytest.mark.parametrize("option, value", [
    ("--base", "0"), ("--base", "many"), ("--base", "1.5"), ("--batch", "0"), ("--batch", "-1"), ("--epochs", "0"),
    ("--epochs", ""), ("--lr", "0"), ("--lr", "-1e-3"), ("--lr", "nan"), ("--lr", "inf"), ("--lr", "fast"),
    ("--seed", "-1"), ("--seed", "x"), ("--crop", "128"), ("--crop", "0x16"), ("--crop", "16x"), ("--crop", "1x2x3"),
    ("--crop", "16,16"), ("--crop", "-8x8"),
])
def test_a_bad_value_is_refused_by_its_option(here, capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        main(train(f"{option}={value}"))
    assert stop.value.code == 2
    assert re.search(f"error: argument {option}: must be .*; got '{value}'\n$", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [
    [], ["learn"], ["train"], ["train", "--images", "images", "--masks", "masks"], ["predict"],
    ["predict", "net.safetensors"], ["predict", "net.safetensors", "images"], train("--depht", "3"),
])
def test_missing_and_unknown_arguments_are_refused(here, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["predict", "--help"]])
def test_help_is_no_error(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0 and "minunet" in capsys.readouterr().out


# Ctrl-C


@pytest.mark.parametrize("arguments, where", [(train(), "minunet.training.run.Run._step"),
                                              (predict("images"), "minunet.cli.predict_ids")])
def test_ctrl_c_ends_with_130(here, capsys, monkeypatch, arguments, where):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    assert main(arguments) == 130
    assert complaint(capsys.readouterr().err) == "stopped"


# The real command


def command(*arguments):
    return [sys.executable, "-m", "minunet", *arguments]


@pytest.mark.parametrize("mistake", ["no image folder", "a rate too high", "a damaged image", "a folder as checkpoint"])
def test_the_real_command_ends_in_one_sentence(here, mistake):
    prepare, arguments, start, words = MISTAKES[mistake]
    if prepare:
        prepare()
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.match(f"{re.escape(start)}.*{words}", complaint(done.stderr))


def test_the_real_command_trains_and_predicts(here):
    for arguments in (train(), predict("images/s0.png", net="run/best.safetensors")):
        done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in Path("out").iterdir()) == ["s0.png", "s0_overlay.png"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_a_real_ctrl_c_leaves_the_last_epoch_behind(here):
    # a shell may start background jobs with Ctrl-C ignored, and children inherit that
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from minunet.cli import main; sys.exit(main(sys.argv[1:]))")
    with subprocess.Popen([sys.executable, "-c", code, *train("--epochs", "1000000")], text=True,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not Path("run/history.csv").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and complaint(stderr) == "stopped"
    assert load_checkpoint("run/last.safetensors").model.config["base"] == 2
    assert not list(Path("run").glob("*.tmp"))


# Real images


@pytest.mark.skipif("MINUNET_DATA" not in os.environ, reason="MINUNET_DATA does not name the folder of real images")
def test_a_short_training_on_nuclei(here):
    real = Path(os.environ["MINUNET_DATA"], "dsb2018_nuclei")
    names = [path.name for path in sorted((real / "images").iterdir())]
    for folder in ("images", "masks"):
        for path in [*Path(folder).iterdir()]:
            path.unlink()
        for name in names[:5]:
            Path(folder, name).symlink_to(real / folder / name)
    assert main(train("--base", "4", "--crop", "64x64", "--batch", "8", "--epochs", "1")) == 0
    assert 0 < json.loads(Path("run/metrics.json").read_text())["test"]["accuracy"] <= 1
    assert main(predict("images", net="run/best.safetensors")) == 0
    for name in names[:5]:
        with Image.open(f"out/{name}") as mask, Image.open(f"images/{name}") as image:
            assert mask.size == image.size and set(np.unique(np.asarray(mask))) <= {0, 255}
