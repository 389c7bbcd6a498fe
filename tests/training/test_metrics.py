"""Figures of a segmentation: integer counts over all pixels, against a loop over the pixels."""

import json

import numpy as np
import pytest

from minunet.training.metrics import Confusion, mean_of, scores


def brute_force(pairs, k):
    """The figures of an id, pixel by pixel; each is a share of a set, 0 of an empty one, None if nothing is there."""
    truth, prediction = ({(i, p) for i, pair in enumerate(pairs) for p, v in enumerate(pair[side].ravel()) if v == k}
                         for side in (0, 1))
    hits = len(truth & prediction)
    if not truth | prediction:
        return dict.fromkeys(("iou", "dice", "precision", "recall"))
    return {"iou": hits / len(truth | prediction), "dice": 2 * hits / (len(truth) + len(prediction)),
            "precision": hits / max(len(prediction), 1), "recall": hits / max(len(truth), 1)}


def counted(pairs, ids):
    counts = Confusion(ids)
    for truth, prediction in pairs:
        counts.add(truth, prediction)
    return counts


@pytest.mark.parametrize("classes", [1, 2, 3, 12])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ignored", [0.0, 0.7])
def test_figures_equal_a_loop_over_pixels(classes, seed, ignored):
    rng = np.random.default_rng(seed)
    ids = max(2, classes)
    pairs = [[rng.integers(0, ids, size, np.uint8) for _ in range(2)] for size in [(3, 4), (1, 7), (5, 5)]]
    kept = [rng.random(truth.shape) >= ignored for truth, _ in pairs]
    pairs = [[array[keep] for array in pair] for pair, keep in zip(pairs, kept)]
    figures = scores(counted(pairs, ids), classes)
    expected = [brute_force(pairs, k) for k in ([1] if classes == 1 else range(classes))]
    for name in ("iou", "dice", "precision", "recall"):
        values = [each[name] for each in expected]
        assert figures[f"{name}_per_class"] == pytest.approx(values)
        assert figures[name] == pytest.approx(np.mean([v for v in values if v is not None]))
    right = [t == p for truth, prediction in pairs for t, p in zip(truth, prediction)]
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    assert set(figures) == {"accuracy", *expected[0], *(f"{name}_per_class" for name in expected[0])}


def test_counts_are_over_all_images_and_no_mean_of_means():
    small = np.array([[1]]), np.array([[1]])
    large = np.ones((1, 9), int), np.zeros((1, 9), int)
    counts = counted([small, large], 2)
    assert counts.iou(1) == 0.1 and counts.dice(1) == 2 / 11 and counts.accuracy() == 0.1
    assert counts.counts.dtype.kind == "i" and counts.counts.tolist() == [[0, 0], [9, 1]]     # [truth, prediction]


def test_a_class_absent_from_both_has_no_figure_and_is_left_out_of_the_mean():
    truth, prediction = np.array([[0, 0, 2, 2]]), np.array([[0, 2, 2, 2]])
    figures = scores(counted([(truth, prediction)], 4), 4)
    assert figures["iou_per_class"] == [1 / 2, None, 2 / 3, None]
    assert figures["iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert figures["dice_per_class"] == [2 / 3, None, 4 / 5, None]
    assert figures["dice"] == pytest.approx((2 / 3 + 4 / 5) / 2)


@pytest.mark.parametrize("truth, prediction, iou, precision, recall", [
    (1, 1, 1.0, 1.0, 1.0), (1, 0, 0.0, 0.0, 0.0), (0, 1, 0.0, 0.0, 0.0), (0, 0, None, None, None),
])
def test_with_one_class_the_background_has_no_figure(truth, prediction, iou, precision, recall):
    figures = scores(counted([(np.full((2, 2), truth), np.full((2, 2), prediction))], 2), 1)
    assert figures["iou"] == figures["dice"] == iou and figures["iou_per_class"] == [iou]
    assert figures["precision"] == precision and figures["recall"] == recall
    assert figures["accuracy"] == (truth == prediction)


def test_without_any_pixel_there_is_no_figure():
    empty = np.zeros((0, 3), np.uint8)
    figures = scores(counted([(empty, empty)], 3), 3)
    assert figures.pop("iou_per_class") == figures.pop("recall_per_class") == [None] * 3
    assert figures.pop("dice_per_class") == figures.pop("precision_per_class") == [None] * 3
    assert set(figures.values()) == {None} and len(figures) == 5


def test_precision_and_recall_are_not_exchanged():
    """Of three pixels predicted, one is right; of two that are there, one was found."""
    figures = scores(counted([(np.array([[1, 1, 0, 0, 0]]), np.array([[1, 0, 1, 1, 0]]))], 2), 1)
    assert figures["precision"] == pytest.approx(1 / 3) and figures["recall"] == 1 / 2


@pytest.mark.parametrize("values, mean", [([], None), ([None], None), ([0.0, None], 0.0), ([1.0, None, 0.5], 0.75)])
def test_a_mean_is_over_what_is_there(values, mean):
    assert mean_of(values) == mean


def test_figures_are_plain_numbers():
    figures = scores(counted([(np.eye(3, dtype=int), np.eye(3, dtype=int))], 2), 2)
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize("truth, prediction, words", [
    (np.zeros((2, 2), int), np.zeros((2, 3), int), r"prediction must hold integer ids in the truth's shape \(2, 2\)"),
    (np.zeros(4, int), np.zeros((2, 2), int), r"prediction .* got int64 \(2, 2\)"),
    (np.zeros(2), np.zeros(2, int), "truth must hold integer ids .* got float64"),
    (np.zeros(2, int), np.zeros(2), "prediction must hold integer ids .* got float64"),
    (np.array([0, 255], np.uint8), np.zeros(2, int), "truth must hold ids 0 to 1; got 0 to 255"),
    (np.zeros(2, int), np.array([2, 1]), "prediction must hold ids 0 to 1; got 1 to 2"),
    (np.array([-1, 1]), np.zeros(2, int), "truth must hold ids 0 to 1; got -1 to 1"),
])
def test_what_cannot_be_counted_is_refused_and_counts_nothing(truth, prediction, words):
    counts = Confusion(2)
    with pytest.raises(ValueError, match=f"Confusion: {words}"):
        counts.add(truth, prediction)
    assert not counts.counts.any()


def test_ids_near_the_top_of_uint8_are_counted_right():
    truth = np.array([[63, 62, 63]], np.uint8)
    counts = counted([(truth, truth), (truth, truth[:, ::-1])], 64)
    assert counts.counts[63, 63] == 4 and counts.counts[62, 62] == 2 and counts.counts.sum() == 6


def test_many_pixels_do_not_overflow():
    counts = Confusion(2)
    counts.counts[:] = [[2**40, 0], [2**33, 2**34]]
    assert counts.iou(1) == pytest.approx(2 / 3) and counts.dice(1) == pytest.approx(4 / 5)
