"""What a clumsy user can get wrong: one sentence on stderr that names the file or option, exit code 2, no traceback."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from minunet import cli
from minunet.cli import main
from minunet.training import Run
from tests.cli.helpers import (
    SIZE,
    complaint,
    each_mask,
    evaluate,
    files_below,
    halve,
    look_at_run,
    predict,
    refused,
    rejected,
    run_command,
    train,
    unlink,
    write,
)


def keep(count):
    """This many pairs only."""
    unlink(*(f"{folder}/s{i}.png" for folder in ("images", "masks") for i in range(count, 6)))


RAINBOW = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)


def tiff_without_width(path):
    """Damaged in one byte: the number of a tag."""
    Image.new("L", (3, 3)).save(path)
    data = Path(path).read_bytes()
    assert data.count(b"\x00\x01\x04\x00") == 1       # tag 256, a number of 4 bytes
    write(path, data.replace(b"\x00\x01\x04\x00", b"\xa0\x01\x04\x00"))


def colourful(mask):
    return np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)


MISTAKES = {    # what the user did -> (how, the arguments, how the sentence begins, further words)
    "no image folder": (None, train(images="imgs"), "imgs: ", "no such folder"),
    "no mask folder": (None, train(masks="mask"), "mask: ", "no such folder"),
    "a file as folder": (None, train(images="images/s0.png"), "images/s0.png: ", "folder"),
    "an empty folder": (None, train(images="empty"), "empty: ", "no image files"),
    "no mask for an image": (lambda: unlink("masks/s3.png"), train(), "images/s3.png: ", "no mask"),
    "no image for a mask": (lambda: unlink("images/s2.png"), train(), "masks/s2.png: ", "no image"),
    "two files of a stem": (lambda: shutil.copy("images/s1.png", "images/s1.tif"), train(), "images/s1.tif: ",
                            "s1.png"),
    "a suffix that is not there": (None, train("--mask-suffix", "_x"), "masks: ", "ends in _x.*--mask-suffix"),
    "another size": (lambda: Image.new("L", (3, 4)).save("masks/s1.png"), train(), "masks/s1.png: ",
                     "4x3 px.*24x32 px"),
    "text among the images": (lambda: write("images/s1.png"), train(), "images/s1.png: ", "not an image"),
    "no bytes": (lambda: write("masks/s1.png", b""), train(), "masks/s1.png: ", "not an image, or is damaged"),
    "half a file": (lambda: halve("images/s4.png"), train(), "images/s4.png: ", "damaged"),
    "one colour mask": (lambda: Image.new("RGB", SIZE[::-1], "red").save("masks/s0.png"), train(), "masks/s0.png: ",
                        "--mask-colors"),
    "colour masks": (lambda: each_mask(lambda mask: RAINBOW[mask], "kinds"), train(masks="kinds"), "kinds/s",
                     "--mask-colors '#000000,#0080ff,#ff0000'"),
    "photographs as masks": (lambda: each_mask(colourful), train(), "masks/s", "like a photograph"),
    "ids in a channel": (lambda: each_mask(lambda mask: np.stack([mask, 0 * mask, 0 * mask], -1), "kinds"),
                         train(masks="kinds"), "kinds/s", "--mask-channel red"),
    "a channel that is not there": (None, train("--mask-channel", "red"), "masks/s0.png: ", "has no channel red"),
    "a mark without an option": (lambda: each_mask(lambda mask: np.where(mask == 2, np.uint8(255), mask), "kinds"),
                                 train(masks="kinds"), "kinds/s", "--ignore 255"),
    "a colour too few": (lambda: each_mask(lambda mask: np.eye(3, dtype=np.uint8)[mask], "kinds"),
                         train("--mask-colors", "#010000,#000100", masks="kinds"), "kinds/s", "#000001.*add it there"),
    "images as masks": (None, train(masks="images"), "images: ", "in one folder"),
    "inverted class ids": (None, train("--invert", masks="kinds"), "--invert", "two values.*0, 1, 2"),
    "a name too few": (None, train("--class-names", "a,b", masks="kinds"), "--class-names has 2 names", "3 classes"),
    "everything ignored": (None, train("--ignore", "0,1,2", masks="kinds"), "kinds: ", "nothing but what --ignore"),
    "two pairs": (lambda: keep(2), train(), "training needs at least 3 pairs", "got 2 pairs"),
    "one pair": (lambda: keep(1), train("--test-split", "0"), "training needs at least 2 pairs", "got 1 pairs?"),
    "nothing to validate on": (None, train("--val-split", "0"), "training needs images to validate on", "above 0"),
    "nothing to learn from": (None, train("--val-split", "0.5", "--test-split", "0.5"), "training needs",
                              "shares 0.5 and 0.5"),
    "a rate too high": (None, train("--lr", "1e30"), "the loss became nan in epoch 1, step [2-9]", "smaller learning"),
    "a loss of several classes": (None, train("--loss", "ce+dice"), "the loss ce[+]dice does not fit one class",
                                  "bce[+]dice"),
    "a loss of one class": (None, train("--loss", "bce", masks="kinds"), "the loss bce does not fit 3 classes",
                            "ce[+]dice"),
    "no loss": (None, train("--loss", "iou"), "loss must be one or a sum of", "got 'iou'"),
    "half a sum": (None, train("--loss", "bce+"), "loss must be one or a sum of", r"got 'bce\+'"),
    "unpooling an average": (None, train("--up", "unpool", "--pool", "average"), "UNet: ", "needs pool='max'"),
    "a file as output": (None, train(out="notes.txt"), "notes.txt: ", "--out must be a folder"),
    "an output in a file": (None, train(out="notes.txt/run"), "notes.txt/run: ", "--out must be a folder"),
    "a folder in the way": (lambda: Path("new/best.safetensors.tmp").mkdir(parents=True), train(),
                            "new/best.safetensors.tmp: ", "Is a directory"),
    "an image to begin with": (None, train("--init", "images/s0.png"), "images/s0.png: ", "not a checkpoint"),
    "nothing to begin with": (None, train("--init", "best.safetensors"), "best.safetensors: ", "no such checkpoint"),

    "no checkpoint": (None, predict("images", net="best.safetensors"), "best.safetensors: ", "no such checkpoint"),
    "a folder as checkpoint": (None, predict("images", net="images"), "images: ", "is a folder.*best.safetensors"),
    "an image as checkpoint": (None, predict("images", net="images/s0.png"), "images/s0.png: ", "not a checkpoint"),
    "half a checkpoint": (lambda: halve("net.safetensors"), predict("images"), "net.safetensors: ", "damaged"),
    "a foreign checkpoint": (lambda: save_file({"w": np.zeros(3, np.float32)}, "net.safetensors"), predict("images"),
                             "net.safetensors: ", "not one of minunet's"),
    "checkpoint and image exchanged": (None, predict("net.safetensors", net="images/s0.png"), "images/s0.png: ",
                                       "not a checkpoint"),
    "no such image": (None, predict("images/s9.png"), "images/s9.png: ", "there is no such file"),
    "text as image": (None, predict("images", "notes.txt"), "notes.txt: ", "not an image"),
    "a damaged image": (lambda: halve("images/s4.png"), predict("images"), "images/s4.png: ", "damaged"),
    "nothing to predict": (None, predict("empty"), "empty: ", "no image files"),
    "a TIFF without its width": (lambda: tiff_without_width("f.tif"), predict("f.tif"), "f.tif: ", "damaged"),
    "an image of 32 bits": (lambda: Image.new("F", (3, 3)).save("f.tif"), predict("f.tif"), "f.tif: ", "8 or 16 bits"),
    "a file as output of predict": (None, predict("images", out="notes.txt"), "notes.txt: ", "--out must be a folder"),
    "a file where masks go": (lambda: write("out/masks"), predict("images"), "out/masks", "exists"),

    "no checkpoint to evaluate": (None, evaluate(net="best.safetensors"), "best.safetensors: ", "no such checkpoint"),
    "no images to evaluate": (None, evaluate(images="imgs"), "imgs: ", "no such folder"),
    "no masks to evaluate": (None, evaluate(masks="empty"), "empty: ", "no image files"),
    "a damaged mask to evaluate": (lambda: halve("masks/s2.png"), evaluate(), "masks/s2.png: ", "damaged"),
    "too many classes to evaluate": (None, evaluate(masks="kinds"), "kinds/s", "the net knows a background and one"),
    "the inverse of several classes": (None, evaluate("--invert", net="net3.safetensors", masks="kinds"), "--invert",
                                       "this net has 3 classes"),

    "nothing to inspect": (None, ["inspect", "imgs", "masks"], "1 thing to mend", "listed above"),
    "nothing to sum up": (None, ["summary", "best.safetensors"], "best.safetensors: ", "no such checkpoint"),
    "a net beyond all memory": (None, ["summary", "--base", "1000000"], "there is not enough memory", "--base"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_code_2(here, capsys, mistake):
    prepare, arguments, start, words = MISTAKES[mistake]
    if prepare:
        prepare()
    said = refused(arguments, capsys)
    assert re.match(f"({start}).*({words})", said)


def test_data_is_read_before_a_folder_is_made(here, capsys):
    refused(train(masks="empty"), capsys)
    refused(train("--loss", "iou"), capsys)
    refused(train("--padding", "valid"), capsys)
    refused(predict("notes.txt", net="notes.txt"), capsys)
    refused(predict("empty"), capsys)
    assert not Path("new").exists() and not Path("out").exists()


def test_a_run_that_failed_before_its_first_epoch_may_be_begun_again(here, capsys, monkeypatch):
    """After a rate too high, with a smaller one: no epoch is lost, so the same folder will do."""
    refused(train("--lr", "1e30"), capsys)
    assert look_at_run(monkeypatch, *train()).config.lr == 1e-3


@pytest.mark.parametrize("arguments", [train(), predict("images")])
def test_a_folder_that_may_not_be_written_to_is_told_before_the_work(here, capsys, monkeypatch, arguments):
    monkeypatch.setattr(os, "access", lambda path, mode: False)         # no file mode stops the superuser
    assert re.match("(new|out): cannot be written to", refused(arguments, capsys))


@pytest.mark.parametrize("error, words", [
    (MemoryError("allocate 9 TiB"), r"there is not enough memory \(allocate 9 TiB\); use .* --base"),
    (OSError(28, "No space left on device", "new/last.safetensors.tmp"), "new/last.safetensors.tmp: No space left"),
    (PermissionError(13, "Permission denied", "new"), "new: Permission denied"),
])
def test_what_the_machine_lacks_is_told_in_a_sentence(here, capsys, monkeypatch, error, words):
    def fail(run, images, masks):
        raise error

    monkeypatch.setattr(Run, "_step", fail)
    assert re.match(words, refused(train(), capsys))


@pytest.mark.parametrize("arguments, words", [
    ([], "COMMAND"), (["learn"], "'learn'"), (["train"], "--images, --masks"),
    (["train", "--images", "images"], "--masks"),
    (["predict"], "CHECKPOINT"), (["predict", "net.safetensors", "--out", "out"], "FILE|DIR"),
    (["predict", "net.safetensors", "images"], "--out"), (["evaluate", "net.safetensors"], "--images, --masks"),
    (["inspect", "images"], "MASKS"), (train("--depht", "3"), "--depht"), (train("--size", "16x16"), "--crop"),
    (predict("images", "--masks", "black"), "--masks"), (train("more"), "more"),
])
def test_missing_and_unknown_arguments_are_refused(here, capsys, arguments, words):
    assert words in rejected(arguments, capsys)


@pytest.mark.parametrize("command", [[], ["train"], ["demo"], ["predict"], ["evaluate"], ["inspect"], ["summary"]])
def test_help_is_no_error(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and f"usage: {' '.join(['minunet', *command])}" in said and "None" not in said


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n    {name} " in said for name in ("train", "demo", "predict", "evaluate", "inspect", "summary"))


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and re.fullmatch(r"minunet \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_ctrl_c_ends_with_130(here, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.apply, "probabilities", stop)
    assert main(predict("images")) == 130
    assert complaint(capsys.readouterr().err) == "stopped"


@pytest.mark.parametrize("mistake", ["half a checkpoint"])
def test_the_real_command_ends_in_one_sentence(here, mistake):
    prepare, arguments, start, words = MISTAKES[mistake]
    if prepare:
        prepare()
    done = run_command(*arguments)
    assert done.returncode == 2 and re.match(f"{start}.*{words}", complaint(done.stderr))


def test_the_real_command_predicts_as_the_function_does(here):
    done = run_command(*predict("images"))
    assert done.returncode == 0, done.stderr
    assert main(predict("images", out="other")) == 0
    assert files_below("out") == files_below("other")
