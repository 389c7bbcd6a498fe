"""`minunet train` and `minunet demo`: every option reaches the run, and a run leaves the same bytes, stopped or not."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet.backend import device_of
from minunet.checkpoint import load_checkpoint
from minunet.cli import learn, main
from minunet.data.scenes import cell_scenes
from minunet.training import Run
from tests.cli.helpers import (
    RUN_FILES,
    SIZE,
    complaint,
    each_mask,
    files_below,
    look_at_run,
    pixels,
    refused,
    save_net,
    train,
)

ONE_EPOCH = ("--epochs", "1")


def masks_read(run):
    """The masks as the run learns them, by the images' names."""
    return {sample.name: sample.read()[1] for sample in run.dataset.samples}


def names(samples):
    return {sample.name for sample in samples}


# What a run leaves


def test_train_leaves_its_files_and_says_where(here, capsys):
    assert main(train(out="runs/cells/first")) == 0
    run = Path("runs/cells/first")
    assert {path.name for path in run.iterdir()} == RUN_FILES
    shown = capsys.readouterr()
    assert "4 images to learn from, 1 to validate, 1 to test" in shown.out
    assert "masks: 0 is the background, 255 is the class" in shown.out
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["part"] == "test"
    line = re.search(r"over all pixels:\n  class +([\d.]+) +([\d.]+)", shown.out)
    assert line.groups() == tuple(f"{figures['over_all_pixels'][name]:.4f}" for name in ("iou", "dice"))
    for name in ("validation.png", "history.png", "best.safetensors"):
        assert str(run / name) in shown.out
    assert len(re.findall(r"^epoch \d: loss [\d.]+, validation IoU [\d.]+, Dice [\d.]+", shown.out, re.M)) == 2
    assert "epoch 2/2" in shown.err
    assert re.search(r"memory: about [\d,]+ MiB for a step", shown.out)


@pytest.mark.parametrize("share, cache, note", [
    (0.05, "1", None), (0.35, "1", "the net is so small"), (0.35, "0", "a larger --cache holds more of them decoded"),
])
def test_train_says_how_much_of_the_time_it_waited_for_images(here, capsys, monkeypatch, share, cache, note):
    monkeypatch.setattr(Run, "waiting", share)
    assert main(train("--cache", cache)) == 0
    said = capsys.readouterr().out
    assert "trained in " in said and f" s, {share:.1%} of the steps' time waiting for images" in said
    assert ("note: the images came more slowly than the net learns" in said) == (note is not None)
    assert note is None or note in said


def test_history_and_split_tell_of_the_run(after_training):
    with open("run/history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "iou", "dice", "lr", "best"} <= rows[0].keys()
    parts = json.loads(Path("run/split.json").read_text())
    assert {part: len(held) for part, held in parts.items()} == {"train": 4, "validation": 1, "test": 1}
    assert sorted(sum(parts.values(), [])) == [f"s{i}" for i in range(6)]


def test_pictures_show_something(after_training):
    for name in ("run/history.png", "run/validation.png", "run3/validation.png"):
        with Image.open(name) as picture:
            assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 24)) > 3


def test_the_test_figures_are_those_that_evaluate_finds(after_training, capsys):
    """Of the best epoch's net, on the test image alone."""
    test, = json.loads(Path("run/split.json").read_text())["test"]
    for folder in ("images", "masks"):
        Path("only", folder).mkdir(parents=True)
        shutil.copy(f"{folder}/{test}.png", f"only/{folder}")
    capsys.readouterr()
    assert main(["evaluate", "run/best.safetensors", "--images", "only/images", "--masks", "only/masks",
                 "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    figures = json.loads(Path("run/metrics.json").read_text())
    for name in ("over_all_pixels", "mean_over_images", "confusion", "images"):
        assert found[name] == figures[name]


@pytest.mark.parametrize("masks", ["masks", "kinds"])
def test_the_same_command_twice_gives_the_same_bytes(after_training, masks):
    finished = {"masks": "run", "kinds": "run3"}[masks]
    assert main(train(masks=masks, out="again")) == 0
    assert files_below("again") == files_below(finished)


def test_another_seed_gives_another_run(after_training):
    assert main(train("--seed", "1")) == 0
    assert Path("new/best.safetensors").read_bytes() != Path("run/best.safetensors").read_bytes()


def test_the_demo_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--quick"]) == 0
    assert {path.name for path in Path("runs/demo").iterdir()} == RUN_FILES
    said = capsys.readouterr().out
    assert "IoU" in said and "runs/demo/validation.png" in said


def test_the_demo_goes_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(learn, "cell_scenes", lambda rng, count: cell_scenes(rng, count, (32, 32)))     # faster
    assert look_at_run(monkeypatch, "demo", "--out", "here").folder == Path("here")
    assert look_at_run(monkeypatch, "demo").config.epochs > look_at_run(monkeypatch, "demo", "--quick").config.epochs


# Options


def config(name):
    return lambda run: getattr(run.config, name)


def net(name):
    return lambda run: run.checkpoint.model.config[name]


OPTIONS = [     # what the user writes, where to look, what must stand there
    ("--epochs 7", config("epochs"), 7),
    ("--batch 3", lambda run: run.batches.batch, 3), ("--batch 3", config("batch"), 3),
    ("--lr 0.5", lambda run: run.optimizer.lr, 0.5), ("--lr 0.5", config("lr"), 0.5),
    ("--schedule constant", config("schedule"), "constant"), ("--schedule cosine", config("schedule"), "cosine"),
    ("--loss bce", config("loss"), "bce"),
    ("--seed 3", config("seed"), 3),
    ("--crop 8x12", lambda run: run.batches.crop, (8, 12)),
    ("--val-split 0.34", lambda run: len(run.split.validation), 2),
    ("--test-split 0.5", lambda run: len(run.split.test), 3),
    ("--test-split 0", lambda run: run.split.test, []),
    ("--cache 3", lambda run: run.dataset.samples[0].cache.budget, 3 << 20),
    ("--cache 0", lambda run: run.dataset.samples[0].cache.budget, 0),
    ("--recompute", lambda run: run.checkpoint.model.recompute, True),
    ("--epochs 2", lambda run: run.checkpoint.model.recompute, False),
    ("--device cpu", lambda run: run.checkpoint.model.device, "cpu"),
    ("--device auto", lambda run: run.device, "cpu"),
    ("--device sim", lambda run: run.checkpoint.model.device, "sim"),
    ("--device sim", lambda run: device_of(*run.optimizer.state["m"]), "sim"),
    ("--device sim --precision bf16", lambda run: run.checkpoint.model.head.precision, "bf16"),
    ("--base 3", net("base"), 3), ("--depth 1", net("depth"), 1), ("--dropout 0.25", net("dropout"), 0.25),
    ("--padding valid --crop 44x44", net("padding"), "valid"), ("--padding same", net("padding"), "same"),
    ("--norm none", net("norm"), None), ("--norm batch", net("norm"), "batch"),
    ("--pool average", net("pool"), "average"), ("--pool max", net("pool"), "max"),
    *((f"--up {up}", net("up"), up) for up in ("transpose", "nearest", "bilinear", "bicubic", "unpool")),
    *((f"--activation {name}", net("activation"), name) for name in ("relu", "leaky_relu", "elu")),
    ("--out there/it/goes", lambda run: run.folder, Path("there/it/goes")),
    ("--class-names rim", lambda run: run.checkpoint.class_names, ("rim",)),
    ("--class-names ground,rim", lambda run: run.checkpoint.class_names, ("rim",)),
    ("--images images", lambda run: len(run.dataset.samples), 6),
    ("--masks kinds", net("classes"), 3),
]
# these have tests of their own below
ELSEWHERE = {"--help", "--resume", "--init", "--size", "--val-images", "--val-masks", "--mask-suffix", "--image-suffix",
             "--mask-channel", "--mask-colors", "--instances", "--ignore", "--invert"}


@pytest.mark.parametrize("option, where, expected", OPTIONS)
def test_an_option_reaches_the_run(here, monkeypatch, option, where, expected):
    assert where(look_at_run(monkeypatch, *train(*option.split()))) == expected


def help_of(capsys, command="train"):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_no_option_is_without_a_test(capsys):
    told = set(re.findall(r"--[a-z][a-z-]+", help_of(capsys).split("options:")[1]))
    told -= {"--colors", "--no-instances", "--no-invert"}
    assert told == ELSEWHERE | {word for option, _, _ in OPTIONS for word in option.split() if word.startswith("--")}


DEFAULTS = {        # what the help promises -> where to look
    "--epochs": config("epochs"), "--batch": config("batch"), "--lr": config("lr"), "--schedule": config("schedule"),
    "--seed": config("seed"), "--base": net("base"), "--depth": net("depth"), "--up": net("up"),
    "--padding": net("padding"), "--norm": net("norm"), "--dropout": net("dropout"), "--activation": net("activation"),
    "--pool": net("pool"), "--val-split": config("val_split"), "--test-split": config("test_split"),
    "--crop": lambda run: "{}x{}".format(*run.batches.crop),
    "--cache": lambda run: run.dataset.samples[0].cache.budget >> 20,
}


@pytest.mark.parametrize("option", DEFAULTS)
def test_defaults_are_those_that_the_help_tells(here, monkeypatch, capsys, option):
    text = help_of(capsys).split("options:")[1].split(f" {option} ")[1]
    told = re.search(r"\(([^() ]+?)(;[^)]*)?\)", text)[1]
    assert str(DEFAULTS[option](look_at_run(monkeypatch, *train(tiny=())))) == told


def test_defaults_are_the_specified_ones(here, monkeypatch):
    run = look_at_run(monkeypatch, *train(tiny=()))
    expected = {"base": 16, "depth": 4, "batch": 8, "lr": 1e-3, "seed": 0, "val_split": 0.2, "test_split": 0.2,
                "crop": (256, 256), "size": None}
    assert {name: getattr(run.config, name) for name in expected} == expected
    assert (len(run.split.train), len(run.split.validation), len(run.split.test)) == (4, 1, 1)


class Enough(Exception):
    """Stops a run where a test has seen what it wanted."""


def watch(run, steps):
    """Losses of the first steps, each with the learning rate it was followed by."""
    seen = []

    def on_step(epoch, loss):
        seen.append((loss, run.optimizer.lr))
        if len(seen) == steps:
            raise Enough

    with pytest.raises(Enough):
        list(run.epochs(on_step))
    return seen


@pytest.mark.parametrize("masks, default, others", [
    ("masks", "bce+dice", ["bce", "dice"]), ("kinds", "ce+dice", ["ce", "dice"]),
])
def test_the_default_loss_fits_the_number_of_classes(here, monkeypatch, masks, default, others):
    """The loss of the very first step: the same net and batch."""
    first = {}
    for loss in (None, default, *others):
        options = ("--loss", loss) if loss else ()
        run = look_at_run(monkeypatch, *train(*options, masks=masks, out=f"run of {loss}"))
        first[loss] = watch(run, 1)[0][0]
    assert first[None] == first[default] == pytest.approx(sum(first[loss] for loss in others), rel=1e-5)
    assert 0 < first["dice"] < 1


def test_the_schedule_moves_the_learning_rate(here, monkeypatch):
    """Three steps make an epoch; over the six steps of two epochs the cosine falls to 0."""
    for schedule, expected in (("constant", [0.01] * 6),
                               ("cosine", [0.005 * (1 + np.cos(np.pi * step / 6)) for step in range(6)])):
        run = look_at_run(monkeypatch, *train("--schedule", schedule, "--lr", "0.01", out=schedule))
        assert [lr for _, lr in watch(run, 6)] == pytest.approx(expected)


@pytest.mark.parametrize("images, expected", [("cells/images", "runs/cells"), ("images", "runs/work"),
                                              ("cells/../images", "runs/work"), ("../work/images", "runs/work")])
def test_without_out_a_run_is_called_as_the_folder_that_the_images_folder_is_in(
        here, monkeypatch, capsys, images, expected):
    work = here / "work"
    for folder in (work, work / "cells"):
        for name in ("images", "masks"):
            shutil.copytree(here / name, folder / name)
    monkeypatch.chdir(work)
    run = look_at_run(monkeypatch, *train(images=images, out=None))
    assert run.folder == Path(expected)


def test_two_runs_without_out_do_not_meet(here, monkeypatch, capsys):
    Path("runs", here.name).mkdir(parents=True)
    save_net(f"runs/{here.name}/best.safetensors")
    assert refused(train(out=None), capsys).startswith(f"runs/{here.name}: holds a run already")


# Masks of every convention


def channel(mask, name):
    """The ids in one channel, nonsense in the others."""
    planes = [np.full(SIZE, 9, np.uint8) * (np.arange(SIZE[1], dtype=np.uint8) % 7)] * 4
    planes["red green blue alpha".split().index(name)] = mask
    return np.stack(planes, axis=-1)


CODE = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)          # colours of the kinds
CAMVID = "ground 0 0 0\ncell 255 0 0\nspot 0 128 255\n"


@pytest.mark.parametrize("name", ["red", "green", "blue", "alpha"])
def test_mask_channel(here, monkeypatch, name):
    before = {path.stem: pixels(path) for path in Path("kinds").iterdir()}
    each_mask(lambda mask: channel(mask, name), "kinds")
    run = look_at_run(monkeypatch, *train("--mask-channel", name, masks="kinds"))
    assert run.dataset.classes == 3
    for stem, mask in masks_read(run).items():
        np.testing.assert_array_equal(mask, before[stem])


@pytest.mark.parametrize("given, told", [
    ("#000000,#ff0000,#0080ff", ("class 0", "class 1", "class 2")),
    ("ground=#000000,cell=#ff0000,spot=#0080ff", ("ground", "cell", "spot")),
    ("colors.txt", ("ground", "cell", "spot")),
])
def test_mask_colors(here, monkeypatch, given, told):
    Path("colors.txt").write_text(CAMVID)
    before = {path.stem: pixels(path) for path in Path("kinds").iterdir()}
    each_mask(lambda mask: CODE[mask], "kinds")
    run = look_at_run(monkeypatch, *train("--mask-colors", given, masks="kinds"))
    assert run.checkpoint.class_names == told
    for stem, mask in masks_read(run).items():
        np.testing.assert_array_equal(mask, before[stem])


def test_names_given_beside_colours_win(here, monkeypatch):
    each_mask(lambda mask: CODE[mask], "kinds")
    run = look_at_run(monkeypatch, *train("--mask-colors", "a=#000000,b=#ff0000,c=#0080ff", "--class-names", "x,y,z",
                                          masks="kinds"))
    assert run.checkpoint.class_names == ("x", "y", "z")


def test_ignored_values_count_for_nothing(here, monkeypatch):
    before = {path.stem: pixels(path) for path in Path("kinds").iterdir()}
    each_mask(lambda mask: np.where(mask == 2, np.uint8(77), mask), "kinds")
    run = look_at_run(monkeypatch, *train("--ignore", "77", masks="kinds"))
    assert run.dataset.classes == 1
    for stem, mask in masks_read(run).items():
        np.testing.assert_array_equal(mask, np.where(before[stem] == 2, 255, before[stem]))


def test_several_values_may_be_ignored(here, monkeypatch):
    run = look_at_run(monkeypatch, *train("--ignore", "0,2", masks="kinds"))
    for stem, mask in masks_read(run).items():
        np.testing.assert_array_equal(mask, np.where(pixels(f"kinds/{stem}.png") == 1, 1, 255))


def test_the_ids_to_ignore_among_colours_are_positions(here, monkeypatch):
    before = {path.stem: pixels(path) for path in Path("kinds").iterdir()}
    each_mask(lambda mask: CODE[mask], "kinds")
    run = look_at_run(monkeypatch, *train("--mask-colors", "#000000,#ff0000,#0080ff", "--ignore", "2", masks="kinds"))
    for stem, mask in masks_read(run).items():
        np.testing.assert_array_equal(mask, np.where(before[stem] == 2, 255, before[stem]))


def test_ignored_pixels_are_left_out_of_the_figures(here):
    each_mask(lambda mask: np.where(np.arange(SIZE[1]) < 20, mask, np.uint8(7)))
    assert main(train("--ignore", "7", *ONE_EPOCH)) == 0
    confusion = json.loads(Path("new/metrics.json").read_text())["confusion"]
    assert np.sum(confusion) == SIZE[0] * 20


def test_instances_are_one_class(here, monkeypatch):
    before = {path.stem: pixels(path) for path in Path("masks").iterdir()}
    numbers = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) % 900 + 1
    each_mask(lambda mask: np.where(mask > 0, numbers, np.uint16(0)))
    run = look_at_run(monkeypatch, *train("--instances"))
    assert run.dataset.classes == 1
    for stem, mask in masks_read(run).items():
        np.testing.assert_array_equal(mask, before[stem] > 0)


def test_invert_exchanges_class_and_background(here, monkeypatch):
    before = {path.stem: pixels(path) for path in Path("masks").iterdir()}
    for stem, mask in masks_read(look_at_run(monkeypatch, *train("--invert"))).items():
        np.testing.assert_array_equal(mask, before[stem] == 0)


def test_suffixes_of_masks_and_images(here, monkeypatch):
    for path in list(Path("masks").iterdir()):
        shutil.copy(path, path.with_name(f"{path.stem}-old.png"))       # not to be taken
        path.rename(path.with_name(f"{path.stem}.truth.png"))
    for path in list(Path("images").iterdir()):
        path.rename(path.with_name(f"{path.stem}_photo.png"))
    run = look_at_run(monkeypatch, *train("--mask-suffix", ".truth", "--image-suffix", "_photo"))
    assert names(run.dataset.samples) == {f"s{i}_photo" for i in range(6)}


def test_usual_suffixes_are_found_by_themselves(here, monkeypatch):
    for path in list(Path("masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    assert names(look_at_run(monkeypatch, *train()).dataset.samples) == {f"s{i}" for i in range(6)}


def test_the_options_are_noted_for_evaluation(here, monkeypatch):
    run = look_at_run(monkeypatch, *train("--invert", "--class-names", "rim"))
    noted = run.checkpoint.notes["masks"]
    assert noted["invert"] is True and noted["class_names"] == ["rim"]


def test_odd_things_in_the_folders_are_noted_and_do_not_stop(here, monkeypatch, capsys):
    Image.new("L", SIZE[::-1]).save("masks/s2.png")
    look_at_run(monkeypatch, *train())
    assert "note: masks/s2.png: holds nothing but background" in capsys.readouterr().out


# Sizes


def test_size_resizes_whole_images(here, monkeypatch):
    run = look_at_run(monkeypatch, *train("--size", "12x20", tiny=("--base", "2", "--depth", "2", "--batch", "4")))
    assert run.checkpoint.size == (12, 20) and len(run.batches) == 1
    images, masks = next(iter(run.batches.epoch(np.random.default_rng(0))))
    assert images.shape == (4, 12, 20, 1) and masks.shape == (4, 12, 20)
    assert set(np.unique(masks)) == {0, 1}


def test_a_net_that_learned_from_resized_images_predicts_in_the_source_size(here):
    assert main(train("--size", "12x20", tiny=("--base", "2", "--depth", "2", "--epochs", "1"))) == 0
    assert main(["predict", "new/best.safetensors", "images", "--out", "out"]) == 0
    assert pixels("out/masks/s0.png").shape == SIZE


def fits_valid(n, depth):
    """Walk one axis through a U-Net without padding."""
    for _ in range(depth):
        n -= 4
        if n <= 0 or n % 2:
            return False
        n //= 2
    n -= 4
    for _ in range(depth):
        n = 2 * n - 4
    return n > 0


@pytest.mark.parametrize("option, size", [("--crop", (16, 16)), ("--crop", (45, 44)), ("--crop", (52, 61)),
                                          ("--size", (50, 53))])
def test_a_size_that_does_not_fit_valid_convolutions_is_refused_with_those_that_do(
        here, capsys, monkeypatch, option, size):
    tiny = ("--base", "2", "--depth", "2", "--padding", "valid")
    said = refused(train(option, "{}x{}".format(*size), tiny=tiny), capsys)
    assert "{}x{} px".format(*size) in said
    for axis, n in zip(("height", "width"), size):
        told = re.search(rf"{axis} {n}: (\d+)(?: or (\d+))?", said)
        if fits_valid(n, 2):
            assert told is None
            continue
        below = [m for m in range(1, n) if fits_valid(m, 2)][-1:]
        above = next(m for m in range(n, 999) if fits_valid(m, 2))
        assert [int(m) for m in told.groups() if m] == [*below, above]
        assert look_at_run(monkeypatch, *train(option, f"{above}x{above}", tiny=tiny)).config.padding == "valid"


def test_valid_convolutions_learn_from_images_smaller_than_the_crop(here):
    assert main(train("--padding", "valid", "--crop", "44x44", *ONE_EPOCH)) == 0
    assert main(["predict", "new/best.safetensors", "images", "--out", "out"]) == 0
    assert pixels("out/masks/s0.png").shape == SIZE


# Splits


@pytest.fixture
def own_validation(here):
    """Two more pairs, in folders of their own."""
    for folder in ("images", "masks"):
        Path("more", folder).mkdir(parents=True)
        for i in (1, 4):
            shutil.copy(f"{folder}/s{i}.png", f"more/{folder}/v{i}.png")
    return ("--val-images", "more/images", "--val-masks", "more/masks")


def test_own_validation_images_leave_all_others_to_learn_from(own_validation, monkeypatch):
    run = look_at_run(monkeypatch, *train(*own_validation))
    assert names(run.split.validation) == {"v1", "v4"} and run.split.test == []
    assert names(run.split.train) == {f"s{i}" for i in range(6)}


def test_own_validation_images_may_go_with_a_share_to_test(own_validation, monkeypatch):
    run = look_at_run(monkeypatch, *train(*own_validation, "--test-split", "0.34"))
    assert names(run.split.validation) == {"v1", "v4"} and len(run.split.test) == 2
    assert names(run.split.train) | names(run.split.test) == {f"s{i}" for i in range(6)}


def test_own_validation_masks_are_read_with_the_same_options(own_validation, monkeypatch):
    run = look_at_run(monkeypatch, *train(*own_validation, "--invert"))
    for sample in run.split.validation:
        np.testing.assert_array_equal(sample.read()[1], pixels(f"more/masks/{sample.name}.png") == 0)


@pytest.mark.parametrize("options, words", [
    (("--val-images", "more/images"), "--val-images and --val-masks belong together"),
    (("--val-masks", "more/masks"), "--val-images and --val-masks belong together"),
    (("--val-images", "more/images", "--val-masks", "more/masks", "--val-split", "0.1"), "--val-split is a share"),
    (("--val-images", "more/images", "--val-masks", "kinds"), "no mask of the same name|no image of the same name"),
    (("--val-images", "images", "--val-masks", "kinds"), "kinds/s.*values 0, 1, 2"),
    (("--val-images", "nowhere", "--val-masks", "more/masks"), "nowhere: there is no such folder"),
])
def test_validation_folders_that_do_not_fit_are_refused(own_validation, capsys, options, words):
    assert re.search(words, refused(train(*options), capsys))


def test_without_test_images_the_figures_are_those_of_the_validation_images(here, capsys):
    assert main(train("--test-split", "0")) == 0
    said = capsys.readouterr().out
    assert "5 images to learn from, 1 to validate, 0 to test" in said
    assert "the best epoch on the validation images, by which it was chosen" in said
    figures = json.loads(Path("new/metrics.json").read_text())
    assert figures["part"] == "validation"
    with open("new/history.csv") as file:
        best = max(float(row["iou"]) for row in csv.DictReader(file))
    assert figures["over_all_pixels"]["iou"] == best


def test_the_figures_are_those_of_the_best_epoch_and_not_of_the_last(here):
    """A learning rate so high that the net gets worse."""
    assert main(train("--test-split", "0", "--epochs", "3", "--lr", "0.05")) == 0
    with open("new/history.csv") as file:
        ious = [float(row["iou"]) for row in csv.DictReader(file)]
    figures = json.loads(Path("new/metrics.json").read_text())
    assert max(ious) > ious[-1]
    assert figures["over_all_pixels"]["iou"] == max(ious) and figures["best_epoch"] == 1 + ious.index(max(ious))


# Beginning with another net's weights


def test_init_begins_with_the_weights_of_a_trained_net(after_training, monkeypatch):
    run = look_at_run(monkeypatch, *train("--init", "run/best.safetensors", "--seed", "5"))
    other = look_at_run(monkeypatch, *train("--seed", "5"))
    trained = load_checkpoint("run/best.safetensors").model.state_dict()
    mine, fresh = run.checkpoint.model.state_dict(), other.checkpoint.model.state_dict()
    for name, array in trained.items():
        np.testing.assert_array_equal(mine[name], array)
    assert any(not np.array_equal(mine[name], fresh[name]) for name in mine)


def test_init_makes_the_head_anew_for_another_number_of_classes(after_training, monkeypatch):
    run = look_at_run(monkeypatch, *train("--init", "run/best.safetensors", masks="kinds"))
    trained = load_checkpoint("run/best.safetensors").model.state_dict()
    for name, array in run.checkpoint.model.state_dict().items():
        if name.startswith("head."):
            assert array.shape[-1] == 3
        else:
            np.testing.assert_array_equal(array, trained[name])


def test_init_normalises_with_the_new_images(after_training, monkeypatch):
    for path in Path("images").iterdir():
        Image.fromarray(pixels(path) // 2).save(path)
    run = look_at_run(monkeypatch, *train("--init", "run/best.safetensors", "--test-split", "0"))
    held = np.concatenate([pixels(f"images/{sample.name}.png").ravel() for sample in run.split.train]) / 255
    np.testing.assert_allclose([run.checkpoint.mean[0], run.checkpoint.deviation[0]], [held.mean(), held.std()],
                               rtol=1e-5)


@pytest.mark.parametrize("options, word", [(("--base", "3"), "base"), (("--depth", "1"), "depth"),
                                           (("--norm", "none"), "norm"), (("--up", "nearest"), "up"),
                                           (("--padding", "valid", "--crop", "44x44"), "padding")])
def test_init_refuses_another_architecture(after_training, capsys, options, word):
    said = refused(train("--init", "run/best.safetensors", *options), capsys)
    assert re.match(f"--init: .*{word} is .* there and .* here", said) and not Path("new").exists()


# Stopping and going on


def stop_at(monkeypatch, number):
    """Ctrl-C in the middle of this step."""
    original, count = Run._step, 0

    def step(run, *arguments):
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return original(run, *arguments)

    monkeypatch.setattr(Run, "_step", step)


@pytest.mark.parametrize("step, epochs, options", [(1, 0, ()), (3, 0, ()), (4, 1, ()),
                                                   (6, 1, ("--dropout", "0.2", "--masks", "kinds"))])
def test_a_run_that_was_stopped_goes_on_as_if_never_stopped(after_training, capsys, monkeypatch, step, epochs, options):
    """Three steps make an epoch here."""
    if options:
        assert main(train(*options, out="whole")) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        capsys.readouterr()
        assert main(train(*options)) == 130
    said = complaint(capsys.readouterr().err)
    assert re.match(f"stopped after epoch {epochs} of 2; {'what was best is in new; ' * (epochs > 0)}the same command "
                    "with --resume goes on", said)
    assert main(train(*options, "--resume")) == 0
    assert ("going on after epoch 1" in capsys.readouterr().out) == (epochs == 1)
    assert files_below("new") == files_below("whole" if options else "run")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_a_real_ctrl_c_and_the_same_command_with_resume(here):
    # a shell may start background jobs with Ctrl-C ignored, and children inherit that; slow steps leave time to stop
    code = """if True:
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from minunet.cli import main
        from minunet.training import Run
        step = Run._step
        Run._step = lambda *arguments: (time.sleep(0.2), step(*arguments))[1]
        sys.exit(main(sys.argv[1:]))"""
    options = ("--epochs", "3")
    with subprocess.Popen([sys.executable, "-c", code, *train(*options)], text=True, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE) as process:
        while not Path("new/history.png").exists() and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert re.match("stopped after epoch [12] of 3; ", complaint(stderr))
    assert load_checkpoint("new/last.safetensors").model.config["base"] == 2
    assert not list(Path("new").glob("*.tmp"))
    assert main(train(*options, "--resume")) == 0
    assert main(train(*options, out="whole")) == 0
    assert files_below("new") == files_below("whole")


def test_a_finished_run_that_is_resumed_stays_as_it_is(after_training, capsys):
    before = files_below("run")
    assert main(train("--resume", out="run")) == 0
    assert files_below("run") == before
    assert "going on after epoch 2" in capsys.readouterr().out


def test_more_epochs_may_be_asked_for(after_training):
    assert main(train("--epochs", "3", "--resume", out="run")) == 0
    with open("run/history.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]


@pytest.mark.parametrize("option, words", [
    ("--lr 0.1", "lr 0.001, now it is 0.1"), ("--seed 1", "seed 0, now it is 1"), ("--base 3", "base 2, now it is 3"),
    ("--batch 5", "batch 4, now it is 5"), ("--epochs 1", "epochs 2, now it is 1"),
    ("--crop 16x8", r"crop \[16, 16\], now it is \[16, 8\]"), ("--schedule constant", "schedule 'cosine'"),
    ("--loss bce", "loss None, now it is 'bce'"), ("--dropout 0.1", "dropout 0.0"), ("--norm none", "norm 'batch'"),
    ("--val-split 0.34", "val_split 0.2"), ("--test-split 0", "test_split 0.2"), ("--invert", "invert False"),
    ("--class-names rim", "class_names"), ("--epochs 3 --lr 0.1", "lr 0.001"),
])
def test_changed_options_are_refused_on_resuming(after_training, capsys, option, words):
    before = files_below("run")
    said = refused(train(*option.split(), "--resume", out="run"), capsys)
    assert said.startswith("run: was trained with ") and re.search(words, said)
    assert files_below("run") == before


@pytest.mark.parametrize("change", [
    lambda: Path("images/s0.png").rename("images/t0.png") and Path("masks/s0.png").rename("masks/t0.png"),
    lambda: Path("images/s0.png").unlink() or Path("masks/s0.png").unlink(),
    lambda: each_mask(lambda image: 255 - image, "images"),
])
def test_other_images_are_refused_on_resuming(after_training, capsys, change):
    change()
    assert refused(train("--resume", out="run"), capsys).startswith("run: was trained on other images")


def test_masks_of_another_number_of_classes_are_refused_on_resuming(after_training, capsys):
    assert refused(train("--resume", masks="kinds", out="run"), capsys).startswith("run: ")


def test_there_must_be_something_to_resume(here, capsys):
    assert re.match("new: holds no run to resume", refused(train("--resume"), capsys))
    assert not Path("new").exists()


def test_a_run_is_not_overwritten(after_training, capsys):
    before = files_below("run")
    assert refused(train("--seed", "1", out="run"), capsys).startswith("run: holds a run already")
    assert files_below("run") == before


def test_ctrl_c_before_training_is_told_too(here, capsys, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn, "look_at", stop)
    assert main(train()) == 130
    assert complaint(capsys.readouterr().err) == "stopped"


# A loss that is no longer a number


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_weights(after_training, capsys):
    """The epoch and the step are named; nothing of the checkpoint that is pointed to has grown beyond numbers."""
    said = refused(train("--lr", "1e30"), capsys)
    assert re.match("the loss became (nan|inf) in epoch [12], step [2-6]; ", said)
    assert "new/last.safetensors" in said and "1e+30" in said
    for array in load_checkpoint("new/last.safetensors").model.state_dict().values():
        assert np.isfinite(array).all()


@pytest.mark.skipif("MINUNET_DATA" not in os.environ, reason="MINUNET_DATA does not name the folder of real images")
def test_a_short_training_on_nuclei(here):
    real = Path(os.environ["MINUNET_DATA"], "dsb2018_nuclei")
    found = [path.name for path in sorted((real / "images").iterdir())][:5]
    for folder in ("images", "masks"):
        Path("nuclei", folder).mkdir(parents=True)
        for name in found:
            Path("nuclei", folder, name).symlink_to(real / folder / name)
    assert main(train("--crop", "64x64", *ONE_EPOCH, images="nuclei/images", masks="nuclei/masks")) == 0
    assert 0 < json.loads(Path("new/metrics.json").read_text())["over_all_pixels"]["accuracy"] <= 1
    assert main(["predict", "new/best.safetensors", "nuclei/images", "--out", "out"]) == 0
    for name in found:
        mask = pixels(Path("out/masks", name).with_suffix(".png"))
        assert mask.shape == pixels(f"nuclei/images/{name}").shape[:2] and set(np.unique(mask)) <= {0, 255}


def test_the_demo_overwrites_no_run_but_its_own(here, capsys):
    Path("net").mkdir()
    save_net("net/best.safetensors")
    assert refused(["demo", "--quick", "--out", "net"], capsys).startswith("net: holds a run already")
    for _ in range(2):
        assert main(["demo", "--quick"]) == 0
