"""Prediction of whole images, and the pictures of it: masks, overlays, sheets."""

import numpy as np
import pytest
from PIL import Image

from minunet import UNet
from minunet.checkpoint import Checkpoint
from minunet.errors import UserError
from minunet.inference import (
    COLOURS,
    mask_picture,
    overlay,
    predict_ids,
    prediction_files,
    save_prediction,
    side_by_side,
)


def made(channels=1, classes=1):
    """A net that nobody trained, in a checkpoint with a normalisation of its own."""
    model = UNet(channels, classes, base=2, depth=2, output="sigmoid" if classes == 1 else "softmax",
                 rng=np.random.default_rng(1))
    return Checkpoint(model, np.full(channels, 0.4, np.float32), np.full(channels, 0.2, np.float32), {})


def picture(height, width, channels=1, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


@pytest.mark.parametrize("channels, classes", [(1, 1), (3, 1), (1, 4), (3, 4)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16), (37, 23)])
def test_ids_have_the_size_of_the_image(size, channels, classes):
    ids = predict_ids(made(channels, classes), picture(*size, channels))
    assert ids.shape == size and ids.dtype == np.uint8 and ids.max() <= max(1, classes - 1)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_one_class_is_where_its_probability_reaches_the_threshold(threshold):
    checkpoint, image = made(), picture(24, 20)
    probability = checkpoint.model.predict(((image - np.float32(0.4)) / np.float32(0.2))[None])[0, ..., 0]
    assert 0.1 < (probability >= 0.5).mean() < 0.9                      # the test sees both sides
    np.testing.assert_array_equal(predict_ids(checkpoint, image, threshold), probability >= threshold)
    np.testing.assert_array_equal(predict_ids(checkpoint, image), probability >= 0.5)


def test_of_more_classes_the_likeliest_is_taken():
    checkpoint, image = made(3, 4), picture(24, 20, 3)
    probabilities = checkpoint.model.predict(checkpoint.normalise(image)[None])[0]
    ids = predict_ids(checkpoint, image)
    assert len(np.unique(ids)) > 1
    np.testing.assert_array_equal(np.take_along_axis(probabilities, ids[..., None].astype(int), 2)[..., 0],
                                  probabilities.max(2))


def test_prediction_changes_neither_net_nor_image():
    checkpoint, image = made(), picture(9, 9)
    state, copy = checkpoint.model.state_dict(), image.copy()
    first, again = predict_ids(checkpoint, image), predict_ids(checkpoint, image)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, copy)
    for name, array in checkpoint.model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.parametrize("classes", [1, 3])
def test_weights_that_are_no_numbers_are_told(classes):
    checkpoint = made(classes=classes)
    checkpoint.model.head.weight.data[:] = np.nan
    with pytest.raises(UserError, match="no longer finite.*smaller learning rate"):
        predict_ids(checkpoint, picture(8, 8))


# Pictures


def test_a_mask_of_one_class_is_black_and_white_and_of_more_holds_the_ids():
    ids = np.array([[0, 1], [1, 0]], np.uint8)
    np.testing.assert_array_equal(np.asarray(mask_picture(ids, 1)), ids * 255)
    np.testing.assert_array_equal(np.asarray(mask_picture(ids * 11, 12)), ids * 11)
    assert mask_picture(ids, 1).mode == mask_picture(ids, 12).mode == "L"


def as_rgb(image):
    """The image as it should look, (H, W, 3) in 0..255."""
    return np.round(np.broadcast_to(image, (*image.shape[:2], 3)) * 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_without_prediction_an_overlay_is_the_image(channels):
    image = picture(6, 9, channels)
    shown = overlay(image)
    assert shown.mode == "RGB" and shown.size == (9, 6)
    np.testing.assert_allclose(np.asarray(shown), as_rgb(image), atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_prediction_is_tinted_and_the_background_is_not(channels):
    image, ids = picture(8, 10, channels), np.zeros((8, 10), np.uint8)
    ids[2:5, 3:7] = 1
    before = image.copy()
    shown = np.asarray(overlay(image, ids)).astype(float)
    np.testing.assert_allclose(shown[ids == 0], as_rgb(image)[ids == 0], atol=1)
    towards = np.abs(COLOURS[0] * 255 - as_rgb(image)) - np.abs(COLOURS[0] * 255 - shown)
    assert (towards[ids == 1] >= -1).all() and towards[ids == 1].mean() > 10
    assert shown[ids == 1].std() > 5                                    # the image still shows through
    np.testing.assert_array_equal(image, before)


def test_each_class_has_a_colour_of_its_own():
    ids = np.arange(len(COLOURS) + 2, dtype=np.uint8)[None]
    shown = np.asarray(overlay(np.full((*ids.shape, 1), 0.5, np.float32), ids))[0].tolist()
    assert len({tuple(colour) for colour in shown[:-1]}) == len(COLOURS) + 1
    assert shown[-1] == shown[1]                                        # after the last, they begin again


@pytest.mark.parametrize("with_prediction", [False, True])
def test_the_truth_is_outlined_and_its_inside_is_free(with_prediction):
    image, truth = 0.1 + 0.5 * picture(12, 12), np.zeros((12, 12), np.uint8)
    truth[4:8, 4:8] = 1
    prediction = np.zeros_like(truth) if with_prediction else None
    changed = (np.abs(np.asarray(overlay(image, prediction, truth)) - as_rgb(image)) > 1).any(2)
    ring = np.zeros_like(changed)
    ring[3:9, 3:9] = True
    ring[4:8, 4:8] = False
    np.testing.assert_array_equal(changed, ring)


@pytest.mark.parametrize("light, line", [(0.2, 255), (0.9, 0)])
def test_on_a_tint_the_outline_stands_out_from_the_image(light, line):
    truth = np.zeros((9, 9), np.uint8)
    truth[4, 4] = 1
    shown = np.asarray(overlay(np.full((9, 9, 1), light, np.float32), truth, truth))
    assert (shown[3, 4] == line).all() and not (shown[4, 4] == line).all()


def test_a_net_for_the_middle_of_images_is_refused():
    checkpoint = Checkpoint(UNet(1, 1, base=1, depth=1, padding="valid"), np.zeros(1), np.ones(1), {})
    with pytest.raises(UserError, match="need a net with padding='same'"):
        predict_ids(checkpoint, np.zeros((20, 20, 1), np.float32))


def test_no_class_no_outline():
    image = picture(5, 5)
    for value in (0, 1):
        np.testing.assert_array_equal(np.asarray(overlay(image, truth=np.full((5, 5), value, np.uint8))),
                                      np.asarray(overlay(image)))


def test_pictures_stand_side_by_side_with_white_between():
    small, large = Image.new("RGB", (3, 5), "red"), Image.new("RGB", (7, 4), "blue")
    sheet = np.asarray(side_by_side([[small, large, small], [large, large]], gap=2))
    assert sheet.shape == (5 + 2 + 4, 3 + 2 + 7 + 2 + 3, 3)
    expected = np.full_like(sheet, 255)
    for top, left, tile in ((0, 0, small), (0, 5, large), (0, 14, small), (7, 0, large), (7, 9, large)):
        expected[top:top + tile.height, left:left + tile.width] = np.asarray(tile)
    np.testing.assert_array_equal(sheet, expected)


def test_mask_and_overlay_are_saved_as_png(tmp_path):
    ids = np.eye(5, 8, dtype=np.uint8)
    save_prediction(ids, picture(5, 8, 3), 1, tmp_path, "cell.01")
    files = prediction_files(tmp_path, "cell.01")
    assert sorted(tmp_path.iterdir()) == sorted(files) == [tmp_path / "cell.01.png", tmp_path / "cell.01_overlay.png"]
    mask, tinted = (Image.open(file) for file in files)
    with mask, tinted:
        assert (mask.format, mask.mode, tinted.format, tinted.mode) == ("PNG", "L", "PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(mask), ids * 255)
        assert tinted.size == mask.size == (8, 5)
