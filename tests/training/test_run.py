"""A training run: what it leaves on disk, what a step learns from, that the seed decides all of it, how it stops."""

import copy
import csv
import functools
import json
import math
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from minunet import Tensor, functional, nn, optim
from minunet.checkpoint import load_checkpoint
from minunet.data import IGNORE, Dataset, MaskOptions, Sample, channel_statistics, unit
from minunet.data.scenes import cell_scenes
from minunet.errors import UserError
from minunet.inference import class_ids, probabilities
from minunet.models import DoubleConv
from minunet.training import Run, RunConfig
from minunet.training import run as run_module
from minunet.training.report import plot_history, validation_sheet
from tests.checks import assert_close

TINY = {"base": 2, "depth": 1, "crop": (16, 16), "batch": 4, "epochs": 3, "lr": 1e-2}
FILES = ["best.safetensors", "history.csv", "history.png", "last.safetensors", "metrics.json", "split.json",
         "validation.png"]
SAME_BITS = [name for name in FILES if not name.endswith(".png")]


@functools.cache
def drawn(count, size, ids):
    """Images and masks, drawn once."""
    return cell_scenes(np.random.default_rng(3), count, size, ids)


def without_pictures(patch):
    """Most of such a small run's time would go into its pictures; test_report.py looks at those."""
    patch.setattr(run_module, "plot_history", lambda rows, path: path.write_bytes(b""))
    patch.setattr(run_module, "validation_sheet", lambda *shown: Image.new("L", (1, 1)))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    without_pictures(monkeypatch)


def dataset_of(images, masks, classes=1, name="scene"):
    return Dataset.of([Sample.of(f"{name} {i}", image, mask) for i, (image, mask) in enumerate(zip(images, masks))],
                      images[0].shape[2], classes)


def scenes(count=8, size=(24, 32), ids=1, ignored=False, name="scene"):
    """Made-up cells as a dataset of one class, or of the background and `ids` kinds; with a band of ignored pixels."""
    images, masks = (array.copy() for array in drawn(count, size, ids))
    if ignored:
        masks[:, 3:9] = IGNORE
        masks[0] = IGNORE               # one image tells nothing at all
    return dataset_of(images, masks, 1 if ids == 1 else ids + 1, name)


def made(folder, dataset=None, validation=None, options=MaskOptions(), init=None, resume=False, recompute=False,
         **settings):
    """A run that has not begun."""
    return Run(dataset or scenes(), folder, RunConfig(**(TINY | settings)), validation, options, init, resume,
               recompute=recompute)


def train(folder, *given, **settings):
    """A whole run, the results of its epochs and its test figures."""
    run = made(folder, *given, **settings)
    return run, list(run.epochs()), run.finish()


def read_history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def recorded(run):
    """Everything that the run takes from its batches, as they are made: a list for each time that it begins anew."""
    handed, epoch = [], run.batches.epoch

    def record(rng):
        handed.append([])
        for batch in epoch(rng):
            handed[-1].append(batch)
            yield batch

    run.batches.epoch = record
    return handed


def assert_same_state(state, expected):
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, with the weights as they were after each epoch."""
    run = made(tmp_path_factory.mktemp("run") / "new" / "folder", scenes(9), epochs=6)
    states, steps, results = [], [], []
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        for result in run.epochs(lambda epoch, loss: steps.append((epoch, loss, run.optimizer.lr))):
            results.append(result)
            states.append(run.checkpoint.model.state_dict())
    return run, results, states, steps, run.finish()


# What a run leaves


def test_a_run_makes_its_folder_with_its_files(finished):
    assert sorted(path.name for path in finished[0].folder.iterdir()) == FILES


@pytest.mark.parametrize("slow, low, high", [("images", 0.5, 1), ("steps", 0, 0.5)])
def test_the_share_of_waiting_is_measured(tmp_path, monkeypatch, slow, low, high):
    """Batches that take 50 ms each to make, or steps that take 50 ms, while the other takes next to nothing."""
    run = made(tmp_path, epochs=2)
    assert run.waiting == 0
    monkeypatch.setattr(run, "_step", lambda *batch: time.sleep(0.05 * (slow == "steps")) or np.ones(()))
    draw = run.batches.epoch

    def epoch(rng):
        for batch in draw(rng):
            time.sleep(0.05 * (slow == "images"))
            yield batch

    monkeypatch.setattr(run.batches, "epoch", epoch)
    began = time.perf_counter()
    list(run.epochs())
    assert low < run.waiting < high
    assert run._waited + run._computed < time.perf_counter() - began


def test_history_has_a_row_for_each_epoch(finished):
    run, results, _, steps, _ = finished
    rows = read_history(run.folder)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5, 6] == [r.epoch for r in results]
    for row, result in zip(rows, results, strict=True):
        losses, rates = zip(*((loss, lr) for epoch, loss, lr in steps if epoch == result.epoch))
        assert len(losses) == len(run.batches) > 1 and np.isfinite(losses).all()
        assert float(row["loss"]) == result.loss == pytest.approx(np.mean(losses))
        assert float(row["lr"]) == result.lr == rates[-1]
        assert float(row["iou"]) == result.iou and float(row["dice"]) == result.dice
        assert row["best"] == str(result.best)
        assert 0 <= result.iou <= result.dice <= 1


def test_best_and_last_are_the_weights_of_their_epochs(finished):
    run, results, states, _, _ = finished
    ious = [result.iou for result in results]
    assert len(set(ious)) > 3
    assert [r.best for r in results] == [iou > max([-1, *ious[:i]]) for i, iou in enumerate(ious)]
    best, last = (load_checkpoint(run.folder / f"{name}.safetensors") for name in ("best", "last"))
    assert_same_state(best.model.state_dict(), states[int(np.argmax(ious))])
    assert_same_state(last.model.state_dict(), states[-1])
    assert last.optimizer and not best.optimizer


def test_checkpoints_hold_the_normalisation_of_the_training_images(finished):
    run = finished[0]
    pixels = np.concatenate([sample.read()[0].ravel() for sample in run.split.train]).astype(np.float64)
    for name in ("best", "last"):
        checkpoint = load_checkpoint(run.folder / f"{name}.safetensors")
        np.testing.assert_allclose([*checkpoint.mean, *checkpoint.deviation], [pixels.mean(), pixels.std()], rtol=1e-5)
        assert checkpoint.model.config["output"] == "sigmoid" and checkpoint.class_names == ("class",)
        assert checkpoint.size is None
    assert channel_statistics(run.dataset.samples)[0] != checkpoint.mean       # the test sees the difference


def test_checkpoints_note_how_the_masks_were_read_and_the_settings(tmp_path):
    options = MaskOptions(mask_suffix="_m", colors=(1, 0xff0000), ignore=(7,), class_names=("a", "b"))
    train(tmp_path, None, None, options, epochs=1)
    for name in ("best", "last"):
        notes = load_checkpoint(tmp_path / f"{name}.safetensors").notes
        assert MaskOptions.of(notes["masks"]) == options
        assert notes["run"] | {"crop": (16, 16)} == vars(RunConfig(**(TINY | {"epochs": 1})))
        assert [row["epoch"] for row in notes["history"]] == [1]


def counted(checkpoint, samples):
    """IoU and accuracy of one class over all pixels, the long way."""
    truth, prediction = [], []
    for sample in samples:
        image, mask = sample.read()
        ids = class_ids(probabilities(checkpoint, unit(image)))
        assert ids.shape == mask.shape
        kept = mask != IGNORE
        truth += mask[kept].tolist()
        prediction += ids[kept].tolist()
    truth, prediction = np.array(truth) == 1, np.array(prediction) == 1
    return (truth & prediction).sum() / (truth | prediction).sum(), (truth == prediction).mean()


def test_figures_are_those_of_the_whole_images(finished):
    run, results, _, _, found = finished
    best, last = (load_checkpoint(run.folder / f"{name}.safetensors") for name in ("best", "last"))
    assert (found.over_pixels["iou"], found.over_pixels["accuracy"]) == pytest.approx(counted(best, run.split.test))
    assert max(r.iou for r in results) == pytest.approx(counted(best, run.split.validation)[0])
    assert results[-1].iou == pytest.approx(counted(last, run.split.validation)[0])
    report = json.loads((run.folder / "metrics.json").read_text())
    assert report["part"] == "test" and report["over_all_pixels"] == found.over_pixels
    assert report["best_epoch"] == int(np.argmax([r.iou for r in results])) + 1
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in report["config"].items()} == vars(run.config)


@pytest.mark.parametrize("count, ids, shown", [(3, 1, 1), (12, 2, 2), (25, 1, 4)])
def test_pictures_show_the_history_and_the_best_epochs_predictions(tmp_path, monkeypatch, count, ids, shown):
    monkeypatch.setattr(run_module, "validation_sheet", validation_sheet)
    monkeypatch.setattr(run_module, "plot_history", plot_history)
    run, results, _ = train(tmp_path, scenes(count, (16, 16), ids), epochs=2, batch=32)
    plot_history([vars(result) for result in results], tmp_path / "expected.png")
    assert (tmp_path / "history.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    best, samples = load_checkpoint(tmp_path / "best.safetensors"), run.split.validation[:shown]
    predictions = [class_ids(probabilities(best, sample.read()[0])) for sample in samples]
    expected = validation_sheet(samples, predictions, run.dataset.class_names)
    with Image.open(tmp_path / "validation.png") as sheet:
        np.testing.assert_array_equal(np.asarray(sheet), np.asarray(expected))


def test_more_classes_get_a_softmax_and_a_figure_each(tmp_path):
    run, _, found = train(tmp_path, scenes(ids=2), epochs=1)
    checkpoint = load_checkpoint(tmp_path / "best.safetensors")
    assert checkpoint.model.config["classes"] == 3 and checkpoint.model.config["output"] == "softmax"
    figures = found.over_pixels
    assert len(figures["iou_per_class"]) == len(figures["dice_per_class"]) == 3
    assert figures["iou"] == pytest.approx(np.mean([v for v in figures["iou_per_class"] if v is not None]))


def test_images_of_many_sizes_and_a_class_in_none_of_them(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(5, 40), (17, 16), (1, 1), (33, 9), (16, 16)]
    dataset = dataset_of([rng.random((*size, 3), np.float32) for size in sizes],
                         [np.zeros(size, np.uint8) for size in sizes])
    run, results, found = train(tmp_path, dataset)
    assert all(np.isfinite(r.loss) and r.iou in (0, None) for r in results)
    assert [r.best for r in results] == [True, True, True]          # of equals the one that has learned longer
    assert found.over_pixels["iou"] in (0, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_images_are_not_changed_by_training(tmp_path):
    dataset = scenes(ignored=True)
    train(tmp_path, dataset, epochs=1)
    for sample, untouched in zip(dataset.samples, scenes(ignored=True).samples, strict=True):
        for array, expected in zip(sample.read(), untouched.read()):
            np.testing.assert_array_equal(array, expected)


# Parts


def names(samples):
    return [sample.name for sample in samples]


def assert_parts_are_written(run):
    written = json.loads((run.folder / "split.json").read_text())
    assert written == {"train": names(run.split.train), "validation": names(run.split.validation),
                       "test": names(run.split.test)}


def test_each_image_has_one_part_and_split_json_says_which(finished):
    run = finished[0]
    assert_parts_are_written(run)
    assert [len(part) for part in run.split] == [5, 2, 2]
    assert sorted(sum(map(names, run.split), [])) == sorted(names(run.dataset.samples))
    assert sum(len(batch) for batch, _ in run.batches.epoch(np.random.default_rng(0))) == 5 * 3    # crops of 24x32


@pytest.mark.parametrize("test_split, test", [(0.0, 0), (0.25, 2)])
def test_validation_images_given_by_themselves_are_all_validated_on(tmp_path, test_split, test):
    others = scenes(3, (20, 20), name="other")
    run, results, found = train(tmp_path, None, others, epochs=2, test_split=test_split)
    assert run.split.validation == others.samples
    assert len(run.split.test) == test
    assert sorted(names(run.split.train + run.split.test)) == sorted(names(run.dataset.samples))
    assert_parts_are_written(run)
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert max(r.iou for r in results) == pytest.approx(counted(best, others.samples)[0])
    measured = run.split.test or others.samples
    assert names(measured) == [image["name"] for image in found.images]
    assert json.loads((tmp_path / "metrics.json").read_text())["part"] == ("test" if test else "validation")


def test_without_test_images_the_figures_are_the_validation_images(tmp_path):
    run, results, found = train(tmp_path, test_split=0.0)
    assert len(run.split.test) == 0 and len(run.split.train) == 6
    assert found.over_pixels["iou"] == max(r.iou for r in results)
    assert json.loads((tmp_path / "metrics.json").read_text())["part"] == "validation"


# A step


def oracle(logits, target):
    """bce + dice (or ce + dice) of logits (N, H, W, K), float64, over the pixels of (N, H, W) that are not ignored."""
    kept = target != IGNORE
    z, t = logits[kept].astype(np.float64), target[kept].astype(int)        # (pixels, K), (pixels,)
    if z.shape[1] == 1:
        p, hot = 1 / (1 + np.exp(-z)), t[:, None] == 1
        first = -np.mean(np.where(hot, np.log(p), np.log(1 - p)))
        predicted = p > 0.5
    else:
        p, hot = np.exp(z) / np.exp(z).sum(1, keepdims=True), t[:, None] == np.arange(z.shape[1])
        first = -np.mean(np.log(p[hot]))
        predicted = z.argmax(1)[:, None] == np.arange(z.shape[1])
    present = (hot | predicted).any(0)
    dice = 1 - (2 * (p * hot).sum(0) + 1) / (p.sum(0) + hot.sum(0) + 1)
    return first + (dice[present].mean() if present.any() else 0)


def weighted(logits, target):
    """The same loss by weights of 0 instead of by ignored pixels."""
    kept = target != IGNORE
    clean = np.where(kept, target, 0)
    if logits.shape[-1] > 1:
        return functional.cross_entropy(logits, clean, weights=kept) + functional.dice(logits, clean, weights=kept)
    clean = clean[..., None]
    return functional.bce_with_logits(logits, clean, weights=kept) * (kept.size / kept.sum()) \
        + functional.dice(logits, clean, weights=kept)


STEPS = [
    ({}, {}), ({"ignored": True}, {}), ({"ids": 2}, {}), ({"ids": 2, "ignored": True}, {}),
    ({}, {"padding": "valid", "crop": (22, 24)}), ({"ids": 2, "ignored": True}, {"padding": "valid", "crop": (24, 20)}),
    ({"ignored": True}, {"size": (12, 18)}), ({"size": (18, 16), "ignored": True}, {"crop": (22, 20)}),
]


@pytest.mark.parametrize("data, settings", STEPS, ids=str)
def test_the_first_step_has_the_loss_and_gradient_of_the_pixels_that_count(tmp_path, data, settings):
    """Written out, from the batch as it came: normalised, the middle for valid convolutions, no ignored pixels."""
    run = made(tmp_path, scenes(**data), test_split=0.0, **settings)
    handed, model = recorded(run), copy.deepcopy(run.checkpoint.model)
    losses, gradients = [], []

    def on_step(epoch, loss):
        if not losses:
            gradients.extend(p.grad.copy() for p in run.optimizer.parameters)
        losses.append(loss)

    next(run.epochs(on_step))
    (images, masks), size = handed[0][0], settings.get("size") or settings.get("crop", (16, 16))
    assert images.shape[1:3] == masks.shape[1:] == size
    assert (masks == IGNORE).any() == ("ignored" in data)
    logits = model(Tensor((images - run.checkpoint.mean) / run.checkpoint.deviation))
    (h, w), (top, left) = logits.shape[1:3], [(a - b) // 2 for a, b in zip(size, logits.shape[1:3])]
    target = masks[:, top:top + h, left:left + w]
    if settings.get("padding") == "valid":
        assert (top, left) == (8, 8) and target.shape == (*masks.shape[:1], size[0] - 16, size[1] - 16)
    assert losses[0] == pytest.approx(oracle(logits.data, target), rel=1e-5)
    weighted(logits, target).backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert_close(gradient / np.abs(gradients[-1]).max(), p.grad / np.abs(gradients[-1]).max(), 1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_steps_are_adams_with_the_schedules_rates(tmp_path, schedule):
    """Two epochs by hand, on the batches as they came: the same weights, bit for bit."""
    run = made(tmp_path, epochs=2, lr=0.02, schedule=schedule)
    handed, model, rates = recorded(run), copy.deepcopy(run.checkpoint.model), []
    results = list(run.epochs(lambda epoch, loss: rates.append(run.optimizer.lr)))
    count, optimizer, t = 2 * len(run.batches), optim.Adam(model.parameters(), lr=1.0), 0
    assert len(rates) == count >= 4
    loss = functional.loss_function("bce+dice")
    for batches in handed[0], handed[2]:                    # between and behind them, the calibration's
        for images, masks in batches:
            optimizer.lr = 0.02 * 0.5 * (1 + math.cos(math.pi * t / count)) if schedule == "cosine" else 0.02
            assert rates[t] == pytest.approx(optimizer.lr, rel=1e-12)
            optimizer.zero_grad()
            loss(model(Tensor(run.checkpoint.normalise(images))), masks[..., None], ignore_index=IGNORE).backward()
            optimizer.step()
            t += 1
    assert rates[0] == 0.02 and results[-1].lr == rates[-1] > 0
    for p, expected in zip(run.checkpoint.model.parameters(), model.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, expected.data)


def test_each_epoch_has_its_own_batches(tmp_path):
    run = made(tmp_path, epochs=2)
    handed = recorded(run)
    list(run.epochs())
    first = [batches[0][0] for batches in handed]
    assert len(first) == 4 and len({array.tobytes() for array in first}) == 4


def test_a_batch_of_ignored_pixels_teaches_nothing(tmp_path):
    images, masks = (array.copy() for array in drawn(4, (16, 16), 1))
    masks[:] = IGNORE
    run = made(tmp_path, dataset_of(images, masks), norm=None)
    before, losses = run.checkpoint.model.state_dict(), []
    results = list(run.epochs(lambda epoch, loss: losses.append(loss)))
    assert set(losses) == {0.0} and [r.iou for r in results] == [None] * 3
    assert_same_state(run.checkpoint.model.state_dict(), before)
    figures = run.finish().over_pixels
    assert figures["accuracy"] is figures["iou"] is None


def test_ignored_pixels_do_not_count_in_figures(tmp_path):
    run, results, found = train(tmp_path, scenes(ignored=True), epochs=2)
    best = load_checkpoint(tmp_path / "best.safetensors")
    assert max(r.iou for r in results) == pytest.approx(counted(best, run.split.validation)[0])
    assert found.counts.counts.sum() == sum((s.read()[1] != IGNORE).sum() for s in run.split.test)


@pytest.mark.parametrize("settings, batches", [
    ({"batch": 4, "crop": (16, 16)}, 3),                    # of 4, 4 and 1 crops: each batch counts the same
    ({"batch": 1, "crop": (8, 8)}, 36),                     # the first 16 are enough
], ids=["few batches", "many batches"])
def test_running_statistics_are_plain_means_over_batches(tmp_path, settings, batches):
    """A net with the epoch's weights, whose batch norms forget (momentum 1), shows each batch's own statistics."""
    run = made(tmp_path, scenes(4, (24, 32)), test_split=0.0, depth=2, epochs=1, **settings)
    assert len(run.batches) == batches
    handed = recorded(run)
    next(run.epochs())
    model = run.checkpoint.model
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 10 and all(norm.momentum == 0.1 for _, norm in norms)
    probe = copy.deepcopy(model)
    assert probe.training
    seen = {name: [] for name, _ in norms}
    for images, _ in handed[1][:16]:
        for _, module in probe.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        probe(Tensor(run.checkpoint.normalise(images)))
        for name, module in probe.named_modules():
            if name in seen:
                seen[name].append((module.running_mean.copy(), module.running_var.copy()))
    for name, norm in norms:
        mean, var = (np.mean(values, axis=0, dtype=np.float64) for values in zip(*seen[name]))
        assert_close(norm.running_mean, mean, 1e-5, name)
        assert_close(norm.running_var, var, 1e-5, name)
        assert len(seen[name]) == min(16, batches)
    # and these are in the file
    assert_same_state(load_checkpoint(tmp_path / "last.safetensors").model.state_dict(), model.state_dict())


# Sizes


@pytest.mark.parametrize("settings", [
    {"size": (12, 20)}, {"padding": "valid", "crop": (20, 24)}, {"padding": "valid", "size": (24, 20), "ids": 2},
    {"crop": (40, 40)},
], ids=str)
def test_masks_are_measured_in_the_size_of_their_images(tmp_path, settings):
    ids = settings.pop("ids", 1)
    run, results, found = train(tmp_path, scenes(6, (19, 23), ids), epochs=1, **settings)
    size = settings.get("size")
    assert load_checkpoint(tmp_path / "best.safetensors").size == size
    assert found.counts.counts.sum() == len(run.split.test) * 19 * 23
    assert len(run.batches) == 1 or not size                # one crop an image: it is shown whole
    assert run.training_bytes == run.checkpoint.model.summary(size or settings["crop"], 4).training_bytes


# Less memory


@pytest.mark.parametrize("settings", [{"dropout": 0.2}, {"norm": None, "up": "unpool"}], ids=str)
def test_recomputing_changes_no_bit_and_may_change_on_the_way(tmp_path, monkeypatch, settings):
    def count_blocks(folder, **more):
        """How often a block of the net was computed, and in how many steps."""
        calls, forward = [], DoubleConv._compute
        with monkeypatch.context() as patch:
            patch.setattr(DoubleConv, "_compute", lambda *xs, **options: calls.append(1) or forward(*xs, **options))
            run, *_ = train(folder, **settings, **more)
        return len(calls), run.optimizer.steps

    (plain, steps), (again, _) = count_blocks(tmp_path / "plain"), count_blocks(tmp_path / "again", recompute=True)
    assert again == plain + 3 * steps                           # three blocks
    count_blocks(tmp_path / "changed", epochs=1, recompute=True, schedule="constant")
    for name in ("on the way", "kept"):
        shutil.copytree(tmp_path / "changed", tmp_path / name)
        train(tmp_path / name, **settings, schedule="constant", resume=True, recompute=name == "kept")
    for one, other in (("plain", "again"), ("on the way", "kept")):
        for file in SAME_BITS:
            assert (tmp_path / one / file).read_bytes() == (tmp_path / other / file).read_bytes(), file


def test_recomputing_needs_less_memory_and_a_run_says_so(tmp_path):
    plain, again = (made(tmp_path, base=8, depth=2, crop=(128, 128), recompute=recompute).training_bytes
                    for recompute in (False, True))
    assert again < 0.9 * plain


# The seed


def test_the_seed_decides_every_bit(tmp_path):
    runs = {name: train(tmp_path / name, seed=seed, dropout=0.2)[0] for name, seed in
            (("a", 7), ("again", 7), ("other", 8))}
    content = {name: {file: (tmp_path / name / file).read_bytes() for file in FILES} for name in runs}
    assert content["a"] == content["again"]
    assert all(content["a"][file] != content["other"][file] for file in SAME_BITS)
    assert [names(part) for part in runs["a"].split] != [names(part) for part in runs["other"].split]


def test_the_seed_draws_the_weights(tmp_path):
    first, again, other = (made(tmp_path, seed=seed).checkpoint.model.state_dict() for seed in (0, 0, 1))
    assert_same_state(first, again)
    assert (first["first.conv1.weight"] != other["first.conv1.weight"]).all()


def test_the_seed_draws_the_crops(tmp_path):
    """Of images that are all the same, so that the split makes no difference."""
    images, masks = (np.repeat(array[:1], 6, axis=0) for array in drawn(8, (24, 32), 1))
    first = []
    for seed in (0, 0, 1):
        run = made(tmp_path, dataset_of(images, masks), seed=seed, epochs=1)
        handed = recorded(run)
        next(run.epochs())
        first.append(handed[0][0][0])
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != first[2]).any()


@pytest.mark.parametrize("setting, value", [("dropout", 0.3), ("batch", 3), ("lr", 2e-2), ("loss", "bce"),
                                            ("schedule", "constant"), ("norm", None), ("activation", "elu"),
                                            ("pool", "average"), ("up", "bilinear"), ("base", 3), ("depth", 2)])
def test_every_setting_reaches_the_run(tmp_path, setting, value):
    losses = []
    for settings in ({}, {setting: value}):
        run = made(tmp_path / str(settings), epochs=1, **settings)
        losses.append(next(run.epochs()).loss)
    assert losses[0] != losses[1]
    if setting in run.checkpoint.model.config:
        assert run.checkpoint.model.config[setting] == value


# Learning


def test_training_on_scenes_beats_the_best_constant_prediction(tmp_path):
    run, results, found = train(tmp_path, scenes(10, (64, 64)), base=4, depth=2, crop=(32, 32), epochs=8)
    assert results[-1].loss < 0.8 * results[0].loss
    share = np.mean([sample.read()[1] == 1 for sample in run.split.test])
    assert found.over_pixels["iou"] > 1.1 * share                       # everything is cell: IoU is their share
    assert found.over_pixels["accuracy"] > max(share, 1 - share)


# Weights to begin with


def begun(folder, **options):
    """The best checkpoint of a small run on two kinds of cells."""
    train(folder, scenes(ids=2), epochs=1, seed=5, **options)
    return load_checkpoint(folder / "best.safetensors")


def test_init_copies_all_weights_of_a_net_with_the_same_classes(tmp_path):
    init = begun(tmp_path / "first", dropout=0.2)           # dropout is no part of the weights
    run = made(tmp_path / "second", scenes(5, (20, 20), ids=2), init=init)
    assert_same_state(run.checkpoint.model.state_dict(), init.model.state_dict())
    assert run.checkpoint.model.config["dropout"] == 0 and run.history == []
    np.testing.assert_array_equal(run.checkpoint.mean, channel_statistics(run.split.train)[0])      # not those there
    fresh, losses = made(tmp_path / "fresh", scenes(5, (20, 20), ids=2)), {}
    for name, other in (("init", run), ("fresh", fresh)):
        losses[name] = next(other.epochs()).loss
    assert losses["init"] != losses["fresh"]


@pytest.mark.parametrize("ids, classes", [(1, 1), (3, 4)])
def test_init_makes_the_head_anew_for_another_number_of_classes(tmp_path, ids, classes):
    init = begun(tmp_path / "first")
    run, fresh = (made(tmp_path / "second", scenes(ids=ids), init=given) for given in (init, None))
    state, untrained = run.checkpoint.model.state_dict(), fresh.checkpoint.model.state_dict()
    assert run.checkpoint.model.config["classes"] == classes
    for name, array in init.model.state_dict().items():
        np.testing.assert_array_equal(state[name], untrained[name] if name.startswith("head.") else array, name)
    assert {name for name in state if name.startswith("head.")} == {"head.weight", "head.bias"}


@pytest.mark.parametrize("setting, value, words", [
    ("base", 3, "base is 2 there and 3 here"), ("depth", 2, "depth is 1 there and 2 here"),
    ("norm", None, "norm is 'batch' there and None here"), ("up", "nearest", "up is 'transpose' there and 'nearest'"),
    ("activation", "elu", "activation is 'relu' there"), ("pool", "average", "pool is 'max' there"),
])
def test_init_refuses_another_architecture(tmp_path, setting, value, words):
    init = begun(tmp_path / "first")
    with pytest.raises(UserError, match=f"--init: .*another architecture: {words}") as error:
        made(tmp_path / "second", scenes(ids=2), init=init, **{setting: value})
    assert "\n" not in str(error.value) and not (tmp_path / "second").exists()


def test_init_refuses_a_net_for_other_channels(tmp_path):
    init = begun(tmp_path / "first")
    images, masks = drawn(8, (24, 32), 2)
    with pytest.raises(UserError, match="in_channels is 1 there and 3 here"):
        made(tmp_path / "second", dataset_of(np.repeat(images, 3, axis=3), masks, 3), init=init)


# What is refused


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pairs_are_told(tmp_path, count):
    dataset = Dataset.of(scenes(3).samples[:count], 1, 1)
    with pytest.raises(UserError, match="at least 3 pairs"):
        made(tmp_path, dataset)


@pytest.mark.parametrize("ids, settings, words", [
    (1, {"loss": "ce"}, "the loss ce does not fit one class; use bce, dice or bce[+]dice"),
    (1, {"loss": "ce+dice"}, "the loss ce[+]dice does not fit one class"),
    (2, {"loss": "bce"}, "the loss bce does not fit 3 classes; use ce, dice or ce[+]dice"),
    (1, {"loss": "hinge"}, "loss must be one or a sum of .*; got 'hinge'"),
    (1, {"padding": "valid"}, "an image of 16x16 px does not fit the pooling; .*height 16: 18"),
    (1, {"padding": "valid", "crop": (24, 24), "size": (24, 15)}, "an image of 24x15 px .*width 15: 18"),
    (1, {"up": "unpool", "pool": "average"}, "needs pool='max'"),
    (1, {"val_split": 0.0}, "training needs images to validate on"),
    (1, {"val_split": 0.5, "test_split": 0.5}, "shares of validation and test that leave some to learn from"),
])
def test_settings_that_do_not_fit_are_refused_in_one_sentence(tmp_path, ids, settings, words):
    with pytest.raises(UserError, match=words) as error:
        made(tmp_path / "run", scenes(ids=ids), **settings)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("ids, loss", [(1, "bce"), (1, "dice"), (2, "ce"), (2, "dice"), (2, "dice+ce")])
def test_losses_that_fit_are_taken(tmp_path, ids, loss):
    assert math.isfinite(next(made(tmp_path, scenes(ids=ids), loss=loss).epochs()).loss)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")       # the overflow that the sentence is about
@pytest.mark.parametrize("batch, words", [
    (4, "the loss became nan in epoch 1, step 2; the weights before epoch 1 are in .*last.safetensors; try a smaller "
        "learning rate than 1e.30"),
    (100, "no longer finite.*smaller learning rate"),       # one step an epoch: the weights are bad, the loss was not
])
def test_bad_weights_are_never_saved(tmp_path, batch, words):
    run = made(tmp_path / "run", lr=1e30, batch=batch)
    before = run.checkpoint.model.state_dict()
    with pytest.raises(UserError, match=words) as error:
        list(run.epochs())
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in run.folder.iterdir()) == ["last.safetensors", "split.json"]
    assert_same_state(load_checkpoint(run.folder / "last.safetensors").model.state_dict(), before)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(tmp_path):
    run = made(tmp_path, schedule="constant")
    count, epochs = len(run.batches), run.epochs()
    next(epochs)
    state = run.checkpoint.model.state_dict()
    run.optimizer.lr = 1e30                                 # the rate was too large after all
    words = f"the loss became nan in epoch 2, step {count + 2}; the weights before epoch 2 are in .*last.safetensors"
    with pytest.raises(UserError, match=words):
        next(epochs)
    for name in ("best", "last"):
        assert_same_state(load_checkpoint(tmp_path / f"{name}.safetensors").model.state_dict(), state)
    assert len(read_history(tmp_path)) == 1
    # and the run goes on from there
    assert [result.epoch for result in made(tmp_path, schedule="constant", resume=True).epochs()] == [2, 3]
