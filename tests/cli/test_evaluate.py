"""`minunet evaluate`: its figures are those of an independent count over the masks that `minunet predict` writes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet.cli import main
from tests.cli.helpers import SIZE, each_mask, evaluate, pixels, predict, refused, save_net, train

FIGURES = ("iou", "dice", "precision", "recall")


def as_json(capsys, *options, **arguments):
    capsys.readouterr()
    assert main(evaluate("--json", *options, **arguments)) == 0
    return json.loads(capsys.readouterr().out)


def as_text(capsys, *options, **arguments):
    capsys.readouterr()
    assert main(evaluate(*options, **arguments)) == 0
    return capsys.readouterr().out


def counted(truth, found, ids):
    """confusion[truth][found] in pixels, by looking at each pair of ids."""
    return np.array([[int(((truth == t) & (found == f)).sum()) for f in range(ids)] for t in range(ids)])


def figures(confusion, k):
    """IoU, Dice, precision and recall of an id; None where neither truth nor prediction holds it."""
    hit, drawn, predicted = confusion[k, k], confusion[k].sum(), confusion[:, k].sum()
    pairs = {"iou": (hit, drawn + predicted - hit), "dice": (2 * hit, drawn + predicted), "precision": (hit, predicted),
             "recall": (hit, drawn)}
    return {name: a / b if b else 0.0 if drawn or predicted else None for name, (a, b) in pairs.items()}


def mean(values):
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def expected(truths, founds, classes):
    """All figures of the masks by names; 255 in the truth counts for nothing."""
    ids = max(2, classes)
    own = {name: counted(truths[name], founds[name], ids) for name in truths}
    asked = [1] if classes == 1 else range(classes)

    def scores(confusion):
        each = [figures(confusion, k) for k in asked]
        return {"accuracy": np.trace(confusion) / confusion.sum(),
                **{name: mean([one[name] for one in each]) for name in FIGURES},
                **{f"{name}_per_class": [one[name] for one in each] for name in FIGURES}}

    images = {name: scores(confusion) for name, confusion in own.items()}
    total = sum(own.values())
    return {"over_all_pixels": scores(total), "confusion": total, "images": images,
            "mean_over_images": {name: mean([image[name] for image in images.values()])
                                 for name in ("accuracy", *FIGURES)}}


def agree(found, wanted):
    np.testing.assert_array_equal(found["confusion"], wanted["confusion"])
    assert found["over_all_pixels"].keys() == wanted["over_all_pixels"].keys()
    for name, value in wanted["over_all_pixels"].items():
        assert found["over_all_pixels"][name] == (value if value is None else pytest.approx(value)), name
    assert found["mean_over_images"] == pytest.approx(wanted["mean_over_images"])
    assert {image["name"] for image in found["images"]} == wanted["images"].keys()
    for image in found["images"]:
        for name, value in wanted["images"][image["name"]].items():
            assert image[name] == (value if value is None else pytest.approx(value)), (image["name"], name)


CASES = [("net.safetensors", "masks", 1), ("net3.safetensors", "kinds", 3), ("run/best.safetensors", "masks", 1),
         ("run3/best.safetensors", "kinds", 3)]


def masks_of(folder, net, options=()):
    """Truth and prediction as ids, by name: prediction as `minunet predict` writes it."""
    assert main([*predict("images", net=net, out="found"), "--masks", "ids", *options]) == 0
    truths = {path.stem: pixels(path) for path in Path(folder).iterdir()}
    return ({name: truth // 255 if folder == "masks" else truth for name, truth in truths.items()},
            {name: pixels(f"found/masks/{name}.png") for name in truths})


@pytest.mark.parametrize("net, folder, classes", CASES)
def test_json_agrees_with_a_count_of_the_predicted_masks(after_training, capsys, net, folder, classes):
    truths, founds = masks_of(folder, net)
    found = as_json(capsys, net=net, masks=folder)
    agree(found, expected(truths, founds, classes))
    assert len(found["classes"]) == classes and np.sum(found["confusion"]) == 6 * SIZE[0] * SIZE[1]


def shown(value):
    return "-" if value is None else f"{value:.4f}"


@pytest.mark.parametrize("net, folder, classes", CASES)
def test_the_table_agrees_with_a_count_of_the_predicted_masks(after_training, capsys, net, folder, classes):
    truths, founds = masks_of(folder, net)
    wanted = expected(truths, founds, classes)
    names = as_json(capsys, net=net, masks=folder)["classes"]
    text = as_text(capsys, net=net, masks=folder)
    table, matrix = ({re.split("  +", line.strip())[0]: re.split("  +", line.strip())[1:] for line in part.splitlines()}
                     for part in text.split("confusion, "))
    over_pixels, confusion = wanted["over_all_pixels"], wanted["confusion"]
    assert f"6 images, {6 * SIZE[0] * SIZE[1]:,} pixels" in text
    for i, name in enumerate(names):
        share = confusion[1 if classes == 1 else i].sum() / confusion.sum()
        assert table[name] == [shown(over_pixels[f"{f}_per_class"][i]) for f in FIGURES] + [f"{share:.2%}"]
    if classes > 1:
        assert table[f"mean of {classes} classes"] == [shown(over_pixels[f]) for f in FIGURES]
    assert table["mean over images:"] == [shown(wanted["mean_over_images"][f]) for f in FIGURES]
    assert (f"pixel accuracy: {shown(over_pixels['accuracy'])} over all pixels, "
            f"{shown(wanted['mean_over_images']['accuracy'])} mean over images") in text
    for i, title in enumerate(["background", *names] if classes == 1 else [f"{i} {n}" for i, n in enumerate(names)]):
        assert matrix[title] == [f"{100 * n / confusion[i].sum():.1f}" for n in confusion[i]]
    worst = sorted(wanted["images"], key=lambda name: wanted["images"][name]["iou"])[:3]
    assert re.search("worst images by IoU: " + ", ".join(rf"{name} [\d.]+" for name in worst), text)


@pytest.mark.parametrize("threshold", ["0.3", "0.6"])
def test_the_threshold_is_that_of_predict(here, capsys, threshold):
    truths, founds = masks_of("masks", "net.safetensors", ("--threshold", threshold))
    wanted = expected(truths, founds, 1)
    found = as_json(capsys, "--threshold", threshold)
    agree(found, wanted)
    assert found["confusion"] != as_json(capsys)["confusion"]


def test_a_threshold_is_refused_for_several_classes(here, capsys):
    said = refused(evaluate("--threshold", "0.5", net="net3.safetensors", masks="kinds"), capsys)
    assert said.startswith("--threshold is for one class, and this net has 3")


def test_a_class_that_is_neither_drawn_nor_found_has_no_figure(here, capsys):
    """And is left out of the mean, visibly."""
    save_net("net5.safetensors", classes=5, names=("ground", "a", "b", "c", "nowhere"))
    truths, founds = masks_of("kinds", "net5.safetensors")
    absent = [k for k in range(5) if all((founds[name] != k).all() and (truths[name] != k).all() for name in truths)]
    if not absent:          # this net finds everything: let it be measured on what it finds less of
        pytest.fail("the fixture's net finds every class; choose another")
    found = as_json(capsys, net="net5.safetensors", masks="kinds")
    agree(found, expected(truths, founds, 5))
    assert [k for k, value in enumerate(found["over_all_pixels"]["iou_per_class"]) if value is None] == absent
    text = as_text(capsys, net="net5.safetensors", masks="kinds")
    assert f"mean of {5 - len(absent)} classes ({len(absent)} absent)" in text


def test_ignored_pixels_are_not_counted(here, capsys):
    truths, founds = masks_of("masks", "net.safetensors")
    truths = {name: np.where(np.arange(SIZE[1]) < 9, 7, truth) for name, truth in truths.items()}
    each_mask(lambda mask: np.where(np.arange(SIZE[1]) < 9, np.uint8(7), mask))
    found = as_json(capsys, "--ignore", "7")
    agree(found, expected(truths, founds, 1))
    assert np.sum(found["confusion"]) == 6 * SIZE[0] * (SIZE[1] - 9)


# How the masks are read


def test_masks_are_read_as_the_training_read_them(here, capsys):
    """The checkpoint notes it: here what is drawn is the background, and 9 counts for nothing."""
    each_mask(lambda mask: np.where(np.arange(SIZE[1]) < 9, np.uint8(9), mask))
    assert main(train("--invert", "--ignore", "9", "--class-names", "gap", "--epochs", "1")) == 0
    net = "new/best.safetensors"
    assert main([*predict("images", net=net, out="found"), "--masks", "ids"]) == 0
    truths = {path.stem: np.select([pixels(path) == 9, pixels(path) == 0], [255, 1], 0)
              for path in Path("masks").iterdir()}
    founds = {name: pixels(f"found/masks/{name}.png") for name in truths}
    found = as_json(capsys, net=net)
    agree(found, expected(truths, founds, 1))
    assert found["classes"] == ["gap"]


def test_options_go_over_what_the_checkpoint_noted(after_training, capsys):
    """The same masks in colours, and with another suffix."""
    before = as_json(capsys, net="run3/best.safetensors", masks="kinds")
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 255]], np.uint8)
    each_mask(lambda mask: colours[mask], "kinds")
    for path in list(Path("kinds").iterdir()):
        path.rename(path.with_name(f"{path.stem}+x.png"))
    assert as_json(capsys, "--mask-colors", "#000000,#ff0000,#0080ff", "--mask-suffix", "+x",
                   net="run3/best.safetensors", masks="kinds") == before


@pytest.mark.parametrize("net, masks, words", [
    ("net.safetensors", "kinds", "kinds/s.*png: .*0, 1, 2; the net knows a background and one class"),
    ("net3.safetensors", "more", "more/s.*png: .*3; the net knows class ids 0 to 2"),
    ("net3.safetensors", "masks", "masks/s.*png: .*255; the net knows class ids 0 to 2"),
])
def test_ids_that_the_net_does_not_know_are_refused(here, capsys, net, masks, words):
    shutil.copytree("kinds", "more")
    each_mask(lambda mask: np.where(mask == 2, np.uint8(3), mask), "more")
    assert re.match(words, refused(evaluate(net=net, masks=masks), capsys))


def test_fewer_ids_than_the_net_knows_are_no_mistake(here, capsys):
    each_mask(lambda mask: np.minimum(mask, 1), "kinds")
    found = as_json(capsys, net="net3.safetensors", masks="kinds")
    assert np.sum(found["confusion"][2]) == 0 and np.sum(found["confusion"][1]) > 0


def test_colour_images_are_read_as_the_net_wants_them(here, capsys):
    """A net of grey images on the same images saved as colour."""
    before = as_json(capsys)
    for path in Path("images").iterdir():
        Image.open(path).convert("RGB").save(path)
    assert as_json(capsys) == before


# Images that it may know


def test_images_that_were_learned_from_are_told(after_training, capsys):
    parts = json.loads(Path("run/split.json").read_text())
    learned = sorted(parts["train"] + parts["validation"])
    assert as_json(capsys, net="run/best.safetensors")["learned_from"] == learned
    assert "note: 5 of these 6 images have names of images that the net learned from" in as_text(
        capsys, net="run/best.safetensors")


def test_new_images_and_a_checkpoint_alone_are_no_reason_for_a_note(after_training, capsys):
    assert as_json(capsys)["learned_from"] == [] and "note:" not in as_text(capsys)
    for folder in ("images", "masks"):
        for path in list(Path(folder).iterdir()):
            path.rename(path.with_name(f"new {path.name}"))
    assert as_json(capsys, net="run/best.safetensors")["learned_from"] == []
    assert "note:" not in as_text(capsys, net="run/best.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"validation": []}'])
def test_a_broken_split_does_no_harm(after_training, capsys, content):
    Path("run/split.json").write_text(content)
    assert as_json(capsys, net="run/best.safetensors")["learned_from"] == []


# Output


def test_json_alone_is_on_stdout_and_twice_the_same(here, capsys):
    """`as_json` reads all of stdout."""
    assert as_json(capsys) == as_json(capsys)
    assert as_text(capsys) == as_text(capsys)


def test_a_single_image_is_not_called_images(here, capsys):
    for folder in ("images", "masks"):
        for i in range(1, 6):
            Path(folder, f"s{i}.png").unlink()
    text = as_text(capsys)
    assert f"\n1 image, {SIZE[0] * SIZE[1]} pixels\n" in text and "worst images" not in text


def test_long_and_many_names_keep_the_columns_apart(here, capsys):
    names = ("a name that is far longer than twenty characters", *(f"kind {i}" for i in range(1, 20)))
    save_net("net20.safetensors", classes=20, names=names)
    text = as_text(capsys, net="net20.safetensors", masks="kinds")
    rows = [line for line in text.splitlines() if line.startswith("  ") and "mean" not in line]
    assert len({len(line) for line in rows if not line.startswith("   ")}) == 1
    assert all(name in text for name in names)
