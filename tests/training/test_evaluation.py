"""What a net is worth on known images, with a net whose prediction is drawn into the image."""

import json

import numpy as np
import pytest

from minunet import UNet
from minunet.checkpoint import Checkpoint
from minunet.cuda import record_launches
from minunet.data import IGNORE, Sample
from minunet.errors import UserError
from minunet.training import evaluate


def drawing_net(classes=1, size=None, names=None, **options):
    """A checkpoint that predicts the ids drawn as grey values id / 10: its convolutions copy the image.

    The logit of id k is −1000 (x − k/10)², less what all have; of one class it is above 0 from 0.05 on.
    """
    model = UNet(1, classes, base=1, depth=1, norm=None, output="sigmoid" if classes == 1 else "softmax", **options)
    state = {name: np.zeros_like(array) for name, array in model.state_dict().items()}
    for name in ("first.conv1", "first.conv2", "up.0.convs.conv1", "up.0.convs.conv2"):
        state[f"{name}.weight"][1, 1, 0, 0] = 1                 # of the decoder's inputs, the first is the skip
    ids = np.arange(classes)
    state["head.weight"][0, 0, 0] = 200 if classes == 1 else 200 * ids
    state["head.bias"][:] = -10 if classes == 1 else -10 * ids**2
    model.load_state_dict(state)
    names = names or (("class",) if classes == 1 else tuple(f"class {k}" for k in ids))
    return Checkpoint(model, np.zeros(1, np.float32), np.ones(1, np.float32), names, size)


def image_of(ids):
    """The image in which the net finds these ids."""
    return np.asarray(ids, np.float32)[..., None] / 10


def samples_of(*pairs):
    """Samples of pairs (truth, prediction)."""
    return [Sample.of(f"image {i}", image_of(prediction), np.asarray(truth, np.uint8))
            for i, (truth, prediction) in enumerate(pairs)]


SMALL_AND_RIGHT = [[1]], [[1]]
LARGE_AND_WRONG = np.ones((3, 3)), np.zeros((3, 3))


def test_over_all_pixels_is_not_the_mean_over_images():
    found = evaluate(drawing_net(), samples_of(SMALL_AND_RIGHT, LARGE_AND_WRONG))
    assert [image["iou"] for image in found.images] == [1.0, 0.0]
    assert found.over_pixels["iou"] == found.over_pixels["accuracy"] == found.over_pixels["recall"] == 0.1
    assert found.over_pixels["dice"] == pytest.approx(2 / 11) and found.over_pixels["precision"] == 1
    assert found.over_images == {"accuracy": 0.5, "iou": 0.5, "dice": 0.5, "precision": 0.5, "recall": 0.5}


def test_images_without_a_figure_are_left_out_of_the_mean_over_images():
    nothing = np.zeros((2, 2)), np.zeros((2, 2))
    found = evaluate(drawing_net(), samples_of(SMALL_AND_RIGHT, nothing, LARGE_AND_WRONG, nothing))
    assert [image["iou"] for image in found.images] == [1.0, None, 0.0, None]
    assert found.over_images["iou"] == 0.5 and found.over_images["accuracy"] == 0.75
    assert found.over_pixels["accuracy"] == 9 / 18
    assert evaluate(drawing_net(), samples_of(nothing)).over_images["iou"] is None


def test_counts_are_by_truth_and_prediction():
    truth, prediction = np.array([[0, 1, 2, 2]]), np.array([[0, 2, 2, 0]])
    found = evaluate(drawing_net(3), samples_of((truth, prediction), (truth.T, truth.T)))
    assert found.counts.counts.tolist() == [[2, 0, 0], [0, 1, 1], [1, 0, 3]]
    assert found.images[0]["iou_per_class"] == [1 / 2, 0, 1 / 3]
    assert found.over_pixels["iou_per_class"] == pytest.approx([2 / 3, 1 / 2, 3 / 5])
    assert found.over_pixels["iou"] == pytest.approx((2 / 3 + 1 / 2 + 3 / 5) / 3)


@pytest.mark.parametrize("classes", [1, 3])
def test_many_images_equal_a_loop_over_pixels(classes):
    rng = np.random.default_rng(classes)
    ids = max(2, classes)
    pairs = [[rng.integers(0, ids, size) for _ in range(2)] for size in [(4, 6), (1, 1), (7, 3), (8, 8)]]
    for truth, _ in pairs[:1] + pairs[2:]:
        truth[rng.random(truth.shape) < 0.3] = IGNORE
    found = evaluate(drawing_net(classes), samples_of(*pairs))
    expected = np.zeros((ids, ids), int)
    for truth, prediction in pairs:
        for t, p in zip(truth.ravel(), prediction.ravel()):
            if t != IGNORE:
                expected[t, p] += 1
    assert found.counts.counts.tolist() == expected.tolist()
    assert found.over_pixels["accuracy"] == pytest.approx(np.trace(expected) / expected.sum())


@pytest.mark.parametrize("classes, size", [(1, None), (3, None), (3, (6, 10))])
def test_on_a_device_the_pixels_are_counted_there(device, classes, size):
    rng = np.random.default_rng(0)
    pairs = [[rng.integers(0, max(2, classes), size) for _ in range(2)] for size in [(4, 6), (7, 3)]]
    pairs[0][0][:2, 1:3] = IGNORE
    expected, shown = evaluate(drawing_net(classes, size), samples_of(*pairs)), []
    checkpoint = drawing_net(classes, size)
    checkpoint.model.to(device)
    with record_launches() as launches:
        found = evaluate(checkpoint, samples_of(*pairs), on_image=lambda sample, ids: shown.append(type(ids)))
    assert found.as_dict() == expected.as_dict() and shown == [np.ndarray] * 2
    assert {"counts.class_ids", "counts.confusion"} <= {launch.kernel for launch in launches}


def test_ignored_pixels_count_for_nothing():
    truth = np.array([[1, 1, 0, IGNORE], [IGNORE] * 4])
    results = [evaluate(drawing_net(), samples_of((truth, prediction))).as_dict() for prediction in
               ([[1, 0, 0, 0], [0, 0, 0, 0]], [[1, 0, 0, 1], [1, 1, 1, 1]])]
    assert results[0] == results[1] and np.sum(results[0]["confusion"]) == 3
    nothing = evaluate(drawing_net(), samples_of((np.full((2, 3), IGNORE), np.ones((2, 3)))))
    assert nothing.over_pixels["accuracy"] is nothing.over_images["iou"] is None
    assert nothing.images[0]["name"] == "image 0"


def test_the_threshold_decides_what_is_of_the_class():
    """Grey 0.05 is a probability of one half, 0.052 one of 0.6."""
    grey = np.array([[0.0, 0.049, 0.052, 0.1]], np.float32)[..., None]
    sample = Sample.of("a", grey, np.ones((1, 4), np.uint8))
    for threshold, hits in ((0.1, 3), (0.5, 2), (0.7, 1)):
        assert evaluate(drawing_net(), [sample], threshold).counts.counts[1, 1] == hits
    assert evaluate(drawing_net(), [sample]).counts.counts[1, 1] == 2


def test_each_image_is_shown_with_its_ids():
    pairs = [([[0, 1, 1]], [[1, 1, 0]]), ([[0], [1]], [[0], [1]])]
    samples, seen = samples_of(*pairs), []
    evaluate(drawing_net(), iter(samples), on_image=lambda *shown: seen.append(shown))
    assert [sample for sample, _ in seen] == samples
    for (_, ids), (_, prediction) in zip(seen, pairs, strict=True):
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, prediction)


def test_everything_goes_into_json():
    found = evaluate(drawing_net(2, names=("soil", "plant")), samples_of(SMALL_AND_RIGHT, LARGE_AND_WRONG))
    report = json.loads(json.dumps(found.as_dict()))
    assert report == found.as_dict()
    assert report["classes"] == ["soil", "plant"] and report["confusion"] == [[0, 0], [9, 1]]
    assert report["over_all_pixels"] == found.over_pixels and report["mean_over_images"] == found.over_images
    assert report["images"] == found.images and report["images"][1]["recall_per_class"] == [0.0, 0.0]


@pytest.mark.parametrize("dtype, scale", [(np.uint8, 255), (np.uint16, 65535)])
def test_integer_images_are_read_as_0_to_1(dtype, scale):
    ids = np.array([[0, 1, 3, 2]])
    sample = Sample.of("a", np.rint(image_of(ids) * scale).astype(dtype), ids.astype(np.uint8))
    assert evaluate(drawing_net(4), [sample]).over_pixels["accuracy"] == 1


def test_with_a_size_the_truth_keeps_its_own():
    truth = np.repeat([[0, 1]], 12, axis=0).repeat(10, axis=1)              # (12, 20), the right half
    found = evaluate(drawing_net(size=(6, 10)), samples_of((truth, truth)))
    assert found.counts.counts.sum() == 12 * 20 and found.over_pixels["accuracy"] > 0.94


@pytest.mark.parametrize("size", [None, (6, 10)])
@pytest.mark.parametrize("where", ["cpu", "device"])
def test_a_net_without_numbers_is_told(device, where, size):
    checkpoint = drawing_net(size=size)
    checkpoint.model.to(device if where == "device" else where)
    checkpoint.model.head.bias.data[:] = np.inf
    checkpoint.model.head.weight.data[:] = -np.inf
    with pytest.raises(UserError, match="no longer finite"), np.errstate(invalid="ignore"):
        evaluate(checkpoint, samples_of(SMALL_AND_RIGHT))
