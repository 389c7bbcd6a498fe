"""A training run: what it leaves on disk, that the seed decides all of it, that it learns, and how it stops."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from minunet.checkpoint import load_checkpoint
from minunet.data import Dataset, Sample, channel_statistics
from minunet.data.scenes import cell_scenes
from minunet.errors import UserError
from minunet.inference import predict_ids
from minunet.training import Run, RunConfig

TINY = {"base": 2, "depth": 2, "crop": (16, 16), "batch": 4, "epochs": 3, "lr": 1e-2}
FILES = ["best.safetensors", "history.csv", "last.safetensors", "metrics.json", "validation.png"]


def scenes(count=8, size=(24, 32), ids=1):
    """Made-up cells as a dataset of one class, or of the background and `ids` kinds of cell."""
    images, masks = cell_scenes(np.random.default_rng(0), count, size, ids)
    samples = [Sample(f"scene {i}", image, mask) for i, (image, mask) in enumerate(zip(images, masks))]
    return Dataset(samples, 1, 1 if ids == 1 else ids + 1)


def train(folder, dataset=None, **settings):
    """A whole run, the results of its epochs and its test figures."""
    run = Run(dataset or scenes(), folder, RunConfig(**(TINY | settings)))
    return run, list(run.epochs()), run.finish()


def read_history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, with the weights as they were after each epoch."""
    run = Run(scenes(), tmp_path_factory.mktemp("run") / "new" / "folder", RunConfig(**(TINY | {"epochs": 5})))
    states, steps, results = [], [], []
    for result in run.epochs(lambda epoch, loss: steps.append((epoch, loss))):
        results.append(result)
        states.append(run.checkpoint.model.state_dict())
    return run, results, states, steps, run.finish()


def assert_same_state(state, expected):
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(state[name], array)


# What a run leaves


def test_a_run_makes_its_folder_with_five_files(finished):
    run = finished[0]
    assert sorted(path.name for path in run.folder.iterdir()) == FILES


def test_history_has_a_row_for_each_epoch(finished):
    run, results, _, steps, _ = finished
    rows = read_history(run.folder)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5] == [r.epoch for r in results]
    for row, result in zip(rows, results):
        losses = [loss for epoch, loss in steps if epoch == result.epoch]
        assert len(losses) == len(run.batches) and np.isfinite(losses).all()
        assert float(row["loss"]) == result.loss == pytest.approx(np.mean(losses))
        assert float(row["iou"]) == result.iou and float(row["dice"]) == result.dice
        assert row["best"] == str(result.best)
        assert 0 <= result.iou <= result.dice <= 1


def test_best_and_last_are_the_weights_of_their_epochs(finished):
    run, results, states, _, _ = finished
    scores = [result.iou for result in results]
    assert [r.best for r in results] == [iou > max([-1, *scores[:i]]) for i, iou in enumerate(scores)]
    best, last = (load_checkpoint(run.folder / f"{name}.safetensors") for name in ("best", "last"))
    assert_same_state(best.model.state_dict(), states[int(np.argmax(scores))])
    assert_same_state(last.model.state_dict(), states[-1])


def test_checkpoints_hold_the_normalisation_of_the_training_images(finished):
    run = finished[0]
    mean, deviation = channel_statistics(run.split.train)
    checkpoint = load_checkpoint(run.folder / "last.safetensors")
    np.testing.assert_array_equal(checkpoint.mean, mean)
    np.testing.assert_array_equal(checkpoint.deviation, deviation)
    assert mean != channel_statistics(run.dataset.samples)[0]
    assert checkpoint.model.config["output"] == "sigmoid"


def counted(checkpoint, samples):
    """IoU and accuracy of one class over all pixels, the long way."""
    truth = np.concatenate([s.mask.ravel() for s in samples]) == 1
    prediction = np.concatenate([predict_ids(checkpoint, s.image).ravel() for s in samples]) == 1
    return (truth & prediction).sum() / (truth | prediction).sum(), (truth == prediction).mean()


def test_figures_are_those_of_the_whole_test_images(finished):
    run, results, _, _, figures = finished
    best = load_checkpoint(run.folder / "best.safetensors")
    assert (figures["iou"], figures["accuracy"]) == pytest.approx(counted(best, run.split.test))
    assert max(r.iou for r in results) == pytest.approx(counted(best, run.split.validation)[0])
    report = json.loads((run.folder / "metrics.json").read_text())
    assert report["test"] == figures
    assert report["config"] | {"crop": (16, 16)} == TINY | {"epochs": 5, "seed": 0}


@pytest.mark.parametrize("count, rows", [(3, 1), (12, 2), (25, 4)])
def test_the_picture_shows_image_truth_and_prediction(tmp_path, count, rows):
    run, _, _ = train(tmp_path, scenes(count), epochs=1, batch=32)
    with Image.open(tmp_path / "validation.png") as sheet:
        shown = np.asarray(sheet).astype(int)
    height, width = 24, 32
    assert shown.shape == (rows * (height + 4) - 4, 3 * (width + 4) - 4, 3)
    best = load_checkpoint(tmp_path / "best.safetensors")
    for i, sample in enumerate(run.split.validation[:rows]):
        image, truth, prediction = (shown[i * (height + 4):, j * (width + 4):][:height, :width] for j in range(3))
        np.testing.assert_allclose(image, np.dstack([sample.image * 255] * 3), atol=1)
        outline = (truth != image).any(2)
        assert not (outline & (sample.mask == 1)).any() and outline.any() == (0 < sample.mask.mean() < 1)
        tinted = (prediction != image).any(2) & ~outline
        ids = predict_ids(best, sample.image) == 1
        assert not (tinted & ~ids).any() and (tinted | outline)[ids].mean() > 0.99


def test_more_classes_get_a_softmax_and_a_figure_each(tmp_path):
    run, results, figures = train(tmp_path, scenes(ids=2), epochs=1)
    checkpoint = load_checkpoint(tmp_path / "best.safetensors")
    assert checkpoint.model.config["classes"] == 3 and checkpoint.model.config["output"] == "softmax"
    assert len(figures["iou_per_class"]) == len(figures["dice_per_class"]) == 3
    present = [v for v in figures["iou_per_class"] if v is not None]
    assert figures["iou"] == pytest.approx(np.mean(present))


def test_images_of_many_sizes_and_a_class_in_none_of_them(tmp_path):
    rng = np.random.default_rng(0)
    samples = [Sample(str(i), rng.random((h, w, 3), np.float32), np.zeros((h, w), np.uint8))
               for i, (h, w) in enumerate([(5, 40), (17, 16), (1, 1), (33, 9), (16, 16)])]
    run, results, figures = train(tmp_path, Dataset(samples, 3, 1))
    assert all(np.isfinite(r.loss) and r.iou is None for r in results)
    assert [r.best for r in results] == [True, False, False]        # as good is not better
    assert figures["iou"] in (0, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_images_are_not_changed_by_training(tmp_path):
    dataset = scenes()
    train(tmp_path, dataset, epochs=1)
    for sample, untouched in zip(dataset.samples, scenes().samples):
        np.testing.assert_array_equal(sample.image, untouched.image)
        np.testing.assert_array_equal(sample.mask, untouched.mask)


# The seed


def test_the_seed_decides_every_bit(tmp_path):
    runs = {name: train(tmp_path / name, seed=seed)[0] for name, seed in (("a", 7), ("again", 7), ("other", 8))}
    content = {name: {file: (tmp_path / name / file).read_bytes() for file in FILES} for name in runs}
    assert content["a"] == content["again"]
    assert all(content["a"][file] != content["other"][file] for file in FILES)
    parts = {name: [[s.name for s in part] for part in run.split] for name, run in runs.items()}
    assert parts["a"] == parts["again"] != parts["other"]


def test_the_seed_draws_the_weights(tmp_path):
    first, again, other = (Run(scenes(), tmp_path, RunConfig(**(TINY | {"seed": seed}))).checkpoint.model.state_dict()
                           for seed in (0, 0, 1))
    assert_same_state(first, again)
    assert (first["first.conv1.weight"] != other["first.conv1.weight"]).all()


# Learning


def test_training_on_scenes_beats_the_best_constant_prediction(tmp_path):
    run, results, figures = train(tmp_path, scenes(15, (64, 64)), base=4, crop=(64, 64), epochs=12)
    assert results[-1].loss < 0.8 * results[0].loss
    share = np.mean([sample.mask == 1 for sample in run.split.test])
    assert figures["iou"] > 1.1 * share                     # everything is cell: IoU is their share
    assert figures["accuracy"] > max(share, 1 - share)


# Stopping


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_pairs_are_told(tmp_path, count):
    dataset = Dataset(scenes(3).samples[:count], 1, 1)
    with pytest.raises(UserError, match="at least 3 pairs"):
        Run(dataset, tmp_path, RunConfig(**TINY))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")       # the overflow that the sentence is about
@pytest.mark.parametrize("batch, words", [
    (1, "the loss became nan in epoch 1, step 2; no weights were saved; try a smaller learning rate than 1e.30"),
    (100, "no longer finite"),                              # one step an epoch: the weights are bad, the loss was not
])
def test_bad_weights_are_never_saved(tmp_path, batch, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path / "run", lr=1e30, batch=batch)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("batch, words", [
    (1, "the loss became nan in epoch 2, step 14; the last good weights are in .*; try a smaller learning rate"),
    (100, "no longer finite"),
])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(tmp_path, batch, words):
    run = Run(scenes(), tmp_path, RunConfig(**(TINY | {"batch": batch})))
    epochs = run.epochs()
    next(epochs)
    state = run.checkpoint.model.state_dict()
    run.optimizer.lr = 1e30                                 # the user's rate was too large after all
    with pytest.raises(UserError, match=words):
        next(epochs)
    for name in ("best", "last"):
        assert_same_state(load_checkpoint(tmp_path / f"{name}.safetensors").model.state_dict(), state)
    assert len(read_history(tmp_path)) == 1
