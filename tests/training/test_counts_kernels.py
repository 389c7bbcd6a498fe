"""Counts and class ids on a GPU (kernels/counts.cu), against the CPU's."""

import numpy as np
import pytest

from minunet.backend import to_device
from minunet.inference import class_ids
from minunet.ops.kernels import counts as kernels
from minunet.training.metrics import Confusion
from tests.devices import computed


def pair(ids, size, dtype=np.uint8, seed=0):
    """Two arrays of ids that mostly agree, the first and the last id among them."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, ids, size)
    prediction = np.where(rng.random(size) < 0.7, truth, rng.integers(0, ids, size))
    truth.flat[:2], prediction.flat[-2:] = [0, ids - 1][:truth.size], ids - 1
    return truth.astype(dtype), prediction.astype(dtype)


def counted(ids, truth, prediction):
    counts = Confusion(ids)
    counts.add(truth, prediction)
    return counts.counts


@pytest.mark.parametrize("ids", [1, 2, 3, 11, 12, 45, 64, 65, 255, 256])
def test_counts_equal_the_cpus(device, ids, monkeypatch):
    """Thirty-two copies in shared memory, fewer, one, none; two blocks that take several rounds, the last not full."""
    monkeypatch.setattr(kernels, "BLOCKS", 2)
    truth, prediction = pair(ids, (3, 37, 11))
    (result,) = computed(device, lambda t, p: counted(ids, t, p), truth, prediction)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, counted(ids, truth, prediction))


@pytest.mark.parametrize("size", [(), (1,), (0, 3), (255,), (256,), (257,), (513, 2)])
def test_any_number_of_pixels(device, size):
    truth, prediction = (np.zeros(size, np.uint8) if not np.prod(size) or not size else a
                         for a in pair(3, size or (1,)))
    (result,) = computed(device, lambda t, p: counted(3, t, p), truth, prediction)
    np.testing.assert_array_equal(result, counted(3, truth, prediction))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint16, np.int32])
def test_any_integer_type(device, dtype):
    truth, prediction = pair(2, (5, 7), dtype)
    np.testing.assert_array_equal(counted(2, to_device(truth, device), to_device(prediction, device)),
                                  counted(2, truth, prediction))
    np.testing.assert_array_equal(counted(2, to_device(truth, device), to_device(prediction.astype(np.uint8), device)),
                                  counted(2, truth, prediction))


def test_more_ids_than_a_byte_holds(device):
    truth, prediction = pair(300, (40, 50), np.int32)
    np.testing.assert_array_equal(counted(300, to_device(truth, device), to_device(prediction, device)),
                                  counted(300, truth, prediction))


def test_images_add_up_and_views_are_counted(device):
    counts, expected = Confusion(4), Confusion(4)
    for seed in range(3):
        truth, prediction = pair(4, (9, 10), seed=seed)
        counts.add(to_device(truth, device)[::2, 1:], to_device(prediction, device)[::2, 1:])
        expected.add(truth[::2, 1:], prediction[::2, 1:])
    assert type(counts.counts) is np.ndarray and counts.counts.dtype == np.int64
    np.testing.assert_array_equal(counts.counts, expected.counts)
    assert counts.iou(1) == expected.iou(1)


@pytest.mark.parametrize("truth, prediction, words", [
    (np.zeros((2, 2), int), np.zeros((2, 3), int), r"prediction must hold integer ids in the truth's shape \(2, 2\)"),
    (np.zeros((2, 2), np.uint8), np.zeros(4, np.uint8), r"prediction must hold integer ids .* got uint8 \(4,\)"),
    (np.zeros(2), np.zeros(2, int), "truth must hold integer ids .* got float64"),
    (np.array([0, 255], np.uint8), np.zeros(2, np.uint8), "truth must hold ids 0 to 1; got 0 to 255"),
    (np.array([0, 1], np.uint8), np.array([2, 1], np.uint8), "prediction must hold ids 0 to 1; got 1 to 2"),
    (np.array([0, 256]), np.zeros(2, int), "truth must hold ids 0 to 1; got 0 to 256"),
    (np.array([-1, 1]), np.zeros(2, int), "truth must hold ids 0 to 1; got -1 to 1"),
])
def test_what_cannot_be_counted_is_refused_and_counts_nothing(device, truth, prediction, words):
    counts = Confusion(2)
    with pytest.raises(ValueError, match=f"Confusion: {words}"):
        counts.add(to_device(truth, device), to_device(prediction, device))
    assert not counts.counts.any()


@pytest.mark.parametrize("ids, ignore", [(3, 255), (3, 2), (256, 255), (300, 299)])
@pytest.mark.parametrize("where", ["cpu", "device"])
def test_what_is_ignored_is_not_counted(device, where, ids, ignore):
    """Whatever is predicted there; all else is refused as ever."""
    where = device if where == "device" else where
    truth, prediction = pair(min(ids, 256), (9, 10))
    truth, prediction = (a.astype(np.uint8 if ids < 300 else np.int64) for a in (truth, prediction))
    truth[2:4] = ignore
    prediction[2:4] = 77
    counts, expected = Confusion(ids), Confusion(ids)
    counts.add(to_device(truth, where), to_device(prediction, where), ignore)
    counted = truth != ignore
    expected.add(truth[counted], prediction[counted])
    np.testing.assert_array_equal(counts.counts, expected.counts)
    assert 0 < counts.counts.sum() == counted.sum() < truth.size
    for spoilt in (truth, prediction):
        if ids < 256:
            spoilt[0, 0] = 200
            with pytest.raises(ValueError, match="must hold ids 0 to 2; got 0 to 200"):
                counts.add(to_device(truth, where), to_device(prediction, where), ignore)
            spoilt[0, 0] = 0


def test_truth_and_prediction_are_on_one_device(device):
    ids = np.zeros(3, np.uint8)
    for pair_ in ((ids, to_device(ids, device)), (to_device(ids, device), ids)):
        with pytest.raises(TypeError, match=f"on different devices: .*{device}.*; move one"):
            Confusion(2).add(*pair_)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [1, 2, 3, 33, 256])
def test_class_ids_equal_the_cpus(device, classes, dtype):
    """With ties, with the threshold itself and with values that are no numbers."""
    answer = np.random.default_rng(0).integers(0, 5, (9, 31, classes)).astype(dtype) / 4
    answer[::4, ::5] = np.nan
    answer[1::4, ::3, classes // 2] = np.nan
    answer[2, 3] = -np.inf
    for threshold in (0.5, 0.3):
        (result,) = computed(device, lambda a: class_ids(a, threshold), answer)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, class_ids(answer, threshold))


def test_a_threshold_is_rounded_as_the_answer_is(device):
    answer = np.full((1, 1, 1), 0.3, np.float32)
    assert to_device(class_ids(to_device(answer, device), 0.3), "cpu") == class_ids(answer, 0.3) == 1
