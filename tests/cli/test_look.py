"""`minunet inspect` and `minunet summary`: what stands on stdout, and the exit code that a script can go by."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet import UNet
from minunet.cli import main
from tests.cli.helpers import (
    SIZE,
    complaint,
    each_mask,
    halve,
    look_at_run,
    pixels,
    refused,
    save_net,
    train,
    unlink,
    write,
)


def inspect(capsys, *options, images="images", masks="masks", code=0):
    """The report, and the sentence on stderr if the code is 2."""
    capsys.readouterr()
    assert main(["inspect", images, masks, *options]) == code
    shown = capsys.readouterr()
    assert shown.err == "" if code == 0 else complaint(shown.err)
    return shown.out


def values_told(report):
    """The table of values: value -> (share in %, masks, reading)."""
    rows = re.findall(r"^ +(\S+) +([\d.]+)% +(\d+)  (.*)$", report, re.M)
    return {value: (float(share), int(masks), reading) for value, share, masks, reading in rows}


# inspect


@pytest.mark.parametrize("masks, readings", [("masks", {0: "background", 255: "class"}),
                                             ("kinds", {0: "0 class 0", 1: "1 class 1", 2: "2 class 2"})])
def test_a_sound_folder_is_described(here, capsys, masks, readings):
    report = inspect(capsys, masks=masks)
    assert f"6 sound pairs of image and mask in images and {masks}" in report
    assert "6 L" in report and "6 24x32 px" in report and "nothing in the way of training" in report
    drawn = np.stack([pixels(path) for path in Path(masks).iterdir()])
    table = values_told(report)
    assert table.keys() == {str(value) for value in readings}
    for value, reading in readings.items():
        share, count, told = table[str(value)]
        assert share == pytest.approx(100 * (drawn == value).mean(), abs=6e-4)
        assert (count, told) == (sum((mask == value).any() for mask in drawn), reading)


@pytest.mark.parametrize("options, expected", [
    (("--invert",), {"0": "class", "255": "background"}), (("--class-names", "rim"), {"0": "background", "255": "rim"}),
    (("--ignore", "255"), {"255": "ignored"}), (("--instances",), {"0": "background", "255": "class"}),
    (("--mask-colors", "a=#ffffff,b=#000000"), {"#000000": "class", "#ffffff": "background"}),
])
def test_mask_options_change_the_reading(here, capsys, options, expected):
    each_mask(lambda mask: np.where(np.arange(SIZE[1]) < 3, np.uint8(7), mask)) if "--ignore" in options else None
    table = values_told(inspect(capsys, *options))
    named = {value: reading for value, (_, _, reading) in table.items()}
    if "--mask-colors" in options:          # two names are those of the background and of the class
        expected = {"#000000": "b", "#ffffff": "background"}
    assert expected.items() <= named.items()


FAULTS = {      # what was done to the folders -> (how, what the report says)
    "a missing mask": (lambda: unlink("masks/s3.png"), "images/s3.png: has no mask"),
    "a missing image": (lambda: unlink("images/s3.png"), "masks/s3.png: has no image"),
    "another size": (lambda: Image.new("L", (3, 4)).save("masks/s1.png"), "masks/s1.png: .*4x3 px.*24x32 px"),
    "a mask on its side": (lambda: Image.new("L", SIZE).save("masks/s1.png"), "masks/s1.png: .*lies on its side"),
    "a broken image": (lambda: halve("images/s4.png"), "images/s4.png: cannot be read"),
    "a broken mask": (lambda: halve("masks/s4.png"), "masks/s4.png: cannot be read"),
    "text": (lambda: write("images/s4.png"), "images/s4.png: cannot be read"),
    "nothing drawn": (lambda: each_mask(lambda mask: 0 * mask), "masks: no mask holds anything but background"),
    "no images": (lambda: shutil.rmtree("images") or Path("images").mkdir(), "images: holds no image files"),
    "no folder": (lambda: shutil.rmtree("masks"), "masks: there is no such folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_listed_and_ends_in_code_2(here, capsys, fault):
    """The report goes to stdout whole; training stops with the same words."""
    plant, words = FAULTS[fault]
    plant()
    report = inspect(capsys, code=2)
    wrong = report.split("wrong, to be mended before training:")[1].split("worth a look")[0]
    line = re.search(f"^  ({words}.*)$", wrong, re.M)
    assert line and "nothing in the way" not in report
    assert refused(train(), capsys).startswith(line[1])
    assert not Path("new").exists()


def test_the_number_of_things_to_mend_is_told(here, capsys):
    for i in (1, 2, 3):
        halve(f"images/s{i}.png")
    capsys.readouterr()
    assert main(["inspect", "images", "masks"]) == 2
    shown = capsys.readouterr()
    assert complaint(shown.err).startswith("3 things to mend") and shown.out.count("cannot be read") == 3
    assert re.match("images/s1.png: .* [(]2 more: minunet inspect lists them[)]", refused(train(), capsys))


def test_images_and_masks_exchanged(here, capsys):
    report = inspect(capsys, images="masks", masks="images", code=2)
    assert re.search("exchanged", report)


def test_what_is_odd_does_not_stop(here, capsys):
    Image.new("L", SIZE[::-1]).save("masks/s2.png")
    shutil.copy("images/s0.png", "images/s1.png")
    report = inspect(capsys)
    odd = report.split("worth a look:")[1]
    assert "masks/s2.png: holds nothing but background" in odd
    assert "images/s1.png: is the same picture as images/s0.png" in odd
    assert "nothing in the way of training" in report


def test_inspecting_changes_nothing(here, capsys):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert inspect(capsys, "--grid") == inspect(capsys, "--grid")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


@pytest.mark.parametrize("name", [None, "s0", "s4"])
def test_the_grid_prints_ids_over_the_image(here, capsys, name):
    """A character stands for a pixel of each column, and for two rows."""
    report = inspect(capsys, "--grid", *([name] if name else []), masks="kinds")
    title, *rows = report.split("\n\n")[-1].splitlines()
    assert title.startswith(f"{name or 's0'}: ")
    assert len(rows) == SIZE[0] / 2 and {len(row) for row in rows} == {SIZE[1]}
    mask = pixels(f"kinds/{name or 's0'}.png")
    for row, above, below in zip(rows, mask[::2], mask[1::2]):
        for mark, *ids in zip(row, above, below):
            assert (int(mark) if mark.isdecimal() else 0) in ids
    assert len({mark for row in rows for mark in row if not mark.isdecimal()}) > 3       # brightness


def test_the_grid_marks_what_is_ignored(here, capsys):
    report = inspect(capsys, "--grid", "--ignore", "2", masks="kinds")
    assert "? ignored" in report and "?" in report.split("\n\n")[-1].split("\n", 1)[1]
    assert "2" not in report.split("\n\n")[-1].split("\n", 1)[1]


def test_the_grid_of_an_image_that_is_not_there_is_refused(here, capsys):
    assert refused(["inspect", "images", "masks", "--grid", "s9"], capsys) \
        == "--grid: no image is called s9; the first is s0"


def test_the_grid_is_shown_of_sound_pairs_beside_faults(here, capsys):
    unlink("masks/s3.png")
    assert "s0: ids as digits" in inspect(capsys, "--grid", code=2)


def test_there_is_no_grid_of_masks_that_cannot_be_read(here, capsys):
    each_mask(lambda mask: mask * 100 + np.arange(mask.shape[1], dtype=np.uint8))
    assert "ids as digits" not in inspect(capsys, "--grid", code=2)


# summary


def summary(capsys, *arguments):
    capsys.readouterr()
    assert main(["summary", *arguments]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def parameters_of(model):
    return sum(array.size for name, array in model.state_dict().items() if "running" not in name)


SMALL = ["--base", "2", "--depth", "2", "--size", "24x32"]


@pytest.mark.parametrize("options, model", [
    ([], {}), (["--channels", "1"], {"in_channels": 1}), (["--classes", "4"], {"classes": 4}),
    (["--base", "3"], {"base": 3}), (["--depth", "1"], {"depth": 1}), (["--norm", "none"], {"norm": None}),
    (["--up", "bilinear"], {"up": "bilinear"}), (["--padding", "valid", "--size", "44x44"], {"padding": "valid"}),
    (["--pool", "average"], {"pool": "average"}), (["--activation", "elu"], {"activation": "elu"}),
])
def test_summary_of_a_net_that_the_options_describe(capsys, options, model):
    """The specified defaults: colour images, one class, batches of 8."""
    text = summary(capsys, *SMALL, *options)
    made = UNet(**{"in_channels": 3, "classes": 1, "base": 2, "depth": 2} | model)
    assert re.search(rf"\b{parameters_of(made):,} parameters", text)
    classes = model.get("classes", 1)
    assert (f"(8, 4, 4, {classes})" if "valid" in options else f"(8, 24, 32, {classes})") in text       # 44 px leave 4
    assert ("AvgPool2d" in text) == ("average" in options)
    assert (" ELU " in text) == ("elu" in options)
    assert re.search(r"forecast for training with Adam: [\d,]+ MiB", text)


def test_summary_defaults(capsys):
    text = summary(capsys, "--base", "2")
    assert "(8, 256, 256, 2)" in text and "(8, 16, 16, 32)" in text


def test_a_larger_batch_needs_more_memory(capsys):
    def forecast(*options):
        return int(re.search(r"Adam: ([\d,]+) MiB", summary(capsys, "--base", "2", *options))[1].replace(",", ""))

    assert forecast("--batch", "1") < forecast() == forecast("--batch", "8") < forecast("--batch", "16")
    assert forecast("--size", "128x128") < forecast() < forecast("--size", "256x512")


def test_training_states_the_same_forecast(here, capsys):
    """With recomputation, too, which takes less."""
    options, told = ["--base", "4", "--depth", "2", "--batch", "64"], []
    for out, how in (("kept", []), ("again", ["--recompute"])):
        assert main(train("--crop", "64x64", "--epochs", "1", *how, out=out, tiny=options)) == 0
        told.append(re.search("memory: about ([\\d,]+) MiB for a step", capsys.readouterr().out)[1])
    text = summary(capsys, *options, "--size", "64x64", "--channels", "1")
    assert f"forecast for training with Adam: {told[0]} MiB" in text
    assert f"\nwith --recompute, which trains more slowly: {told[1]} MiB" in text
    assert int(told[0].replace(",", "")) > int(told[1].replace(",", "")) > 0


def test_summary_of_a_checkpoint(after_training, capsys):
    text = summary(capsys, "run3/best.safetensors", "--size", "24x32", "--batch", "5")
    made = UNet(1, 3, base=2, depth=2, output="softmax")
    assert "3 classes (class 0, class 1, class 2)" in text and "(5, 24, 32, 3)" in text
    assert re.search(rf"\b{parameters_of(made):,} parameters", text)
    assert "base 2, depth 2, padding same" in text


def test_summary_of_a_checkpoint_tells_how_images_are_prepared(here, capsys):
    """With as many digits as a person reads."""
    save_net("some.safetensors", size=(20, 12))
    text = summary(capsys, "some.safetensors")
    assert "resized to 20x12 px" in text
    assert "mean [0.5] and deviation [0.2]" in text


def test_summary_twice_is_the_same(here, capsys):
    assert summary(capsys, "net3.safetensors") == summary(capsys, "net3.safetensors")


@pytest.mark.parametrize("arguments, words", [
    (["--padding", "valid"], "256x256 px does not fit.*height 256: 252 or 268, width 256: 252 or 268"),
    (["--padding", "valid", "--size", "572x573"], "572x573 px does not fit.*: width 573: 572 or 588$"),
    (["valid.safetensors", "--size", "45x44"], "45x44 px does not fit.*: height 45: 44 or 48$"),
    (["--up", "unpool", "--pool", "average"], "unpool.*pool='max'"),
    (["nowhere.safetensors"], "nowhere.safetensors: there is no such checkpoint"),
    (["images/s0.png"], "images/s0.png: is not a checkpoint"),
])
def test_summary_refuses_what_does_not_fit(here, capsys, arguments, words):
    save_net("valid.safetensors", padding="valid")
    assert re.search(words, refused(["summary", *arguments], capsys))


def test_the_sizes_that_summary_names_fit(here, capsys, monkeypatch):
    for size in ("252x268", "268x252", "572x588"):
        assert "parameters" in summary(capsys, "--base", "1", "--padding", "valid", "--size", size)
    assert look_at_run(monkeypatch, *train("--padding", "valid", tiny=("--base", "2", "--crop", "252x268")))


@pytest.mark.parametrize("options", [("--base", "64"), ("--classes", "2"), ("--channels", "1"), ("--up", "nearest")])
def test_a_checkpoint_has_a_shape_of_its_own(here, capsys, options):
    assert "leave them out" in refused(["summary", "net.safetensors", *options], capsys)
