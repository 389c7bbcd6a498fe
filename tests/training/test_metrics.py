"""IoU, Dice and accuracy: integer counts over all pixels, against a loop over the pixels."""

import numpy as np
import pytest

from minunet.training.metrics import Confusion, scores


def brute_force(pairs, k):
    """IoU and Dice of an id from the sets of (image, pixel) that truth and prediction give it."""
    truth, prediction = ({(i, p) for i, pair in enumerate(pairs) for p, v in enumerate(pair[side].ravel()) if v == k}
                         for side in (0, 1))
    if not truth | prediction:
        return None, None
    hits = len(truth & prediction)
    return hits / len(truth | prediction), 2 * hits / (len(truth) + len(prediction))


def counted(pairs, ids):
    counts = Confusion(ids)
    for truth, prediction in pairs:
        counts.add(truth, prediction)
    return counts


@pytest.mark.parametrize("classes", [1, 2, 3, 12])
@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_a_loop_over_pixels(classes, seed):
    rng = np.random.default_rng(seed)
    ids = max(2, classes)
    pairs = [[rng.integers(0, ids, size, np.uint8) for _ in range(2)] for size in [(3, 4), (1, 7), (5, 5)]]
    figures = scores(counted(pairs, ids), classes)
    iou, dice = zip(*(brute_force(pairs, k) for k in ([1] if classes == 1 else range(classes))))
    assert figures["iou_per_class"] == pytest.approx(list(iou))
    assert figures["dice_per_class"] == pytest.approx(list(dice))
    assert figures["iou"] == pytest.approx(np.mean([v for v in iou if v is not None]))
    assert figures["dice"] == pytest.approx(np.mean([v for v in dice if v is not None]))
    right = [t == p for truth, prediction in pairs for t, p in zip(truth.ravel(), prediction.ravel())]
    assert figures["accuracy"] == pytest.approx(np.mean(right))


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


@pytest.mark.parametrize("truth, prediction, iou", [
    (1, 1, 1.0), (1, 0, 0.0), (0, 1, 0.0), (0, 0, None),
])
def test_with_one_class_the_background_has_no_figure(truth, prediction, iou):
    figures = scores(counted([(np.full((2, 2), truth), np.full((2, 2), prediction))], 2), 1)
    assert figures["iou"] == figures["dice"] == iou and figures["iou_per_class"] == [iou]
    assert figures["accuracy"] == (truth == prediction)


def test_ids_near_the_top_of_uint8_are_counted_right():
    truth = np.array([[63, 62, 63]], np.uint8)
    counts = counted([(truth, truth), (truth, truth[:, ::-1])], 64)
    assert counts.counts[63, 63] == 4 and counts.counts[62, 62] == 2 and counts.counts.sum() == 6


def test_many_pixels_do_not_overflow():
    counts = Confusion(2)
    counts.counts[:] = [[2**40, 0], [2**33, 2**34]]
    assert counts.iou(1) == pytest.approx(2 / 3) and counts.dice(1) == pytest.approx(4 / 5)
