"""Prediction of whole images, resized or by valid convolutions too, and the pictures of it: masks, overlays, sheets."""

import numpy as np
import pytest
from PIL import Image

from minunet import UNet
from minunet.checkpoint import Checkpoint
from minunet.data import IGNORE
from minunet.errors import UserError
from minunet.inference import (
    COLOURS,
    class_ids,
    legend,
    mask_picture,
    overlay,
    probabilities,
    save_overlay,
    side_by_side,
)
from tests.checks import assert_close


def made(channels=1, classes=1, size=None, **options):
    """A net that nobody trained, in a checkpoint with a normalisation of its own."""
    model = UNet(channels, classes, **({"base": 2, "depth": 2, "output": "sigmoid" if classes == 1 else "softmax",
                                        "rng": np.random.default_rng(1)} | options))
    return Checkpoint(model, np.full(channels, 0.4, np.float32), np.full(channels, 0.2, np.float32),
                      tuple(f"kind {k}" for k in range(classes)), size)


def picture(height, width, channels=1, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


def normalised(image):
    return (image - np.float32(0.4)) / np.float32(0.2)


NETS = [{}, {"padding": "valid"}, {"padding": "valid", "depth": 1, "norm": None}, {"size": (12, 20)},
        {"size": (18, 15), "padding": "valid", "depth": 1}]


@pytest.mark.parametrize("channels, classes", [(1, 1), (3, 4)])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (16, 16), (37, 23)])
@pytest.mark.parametrize("options", NETS, ids=str)
def test_an_answer_has_the_size_of_the_image(size, channels, classes, options):
    answer = probabilities(made(channels, classes, **options), picture(*size, channels))
    assert answer.shape == (*size, classes) and answer.dtype == np.float32
    assert 0 <= answer.min() and answer.max() <= 1
    if classes > 1:
        np.testing.assert_allclose(answer.sum(2), 1, atol=1e-5)
    ids = class_ids(answer)
    assert ids.shape == size and ids.dtype == np.uint8 and ids.max() <= max(1, classes - 1)


@pytest.mark.parametrize("channels, classes", [(1, 1), (3, 4)])
def test_an_answer_is_the_nets_for_the_normalised_image(channels, classes):
    checkpoint, image = made(channels, classes), picture(24, 21, channels)
    expected = checkpoint.model.predict(normalised(image)[None])[0]
    np.testing.assert_array_equal(probabilities(checkpoint, image), expected)


# Valid convolutions


def mirrored(i, n):
    """The pixel of a line of n that the mirrors at its first and last pixel show at place i, however far out."""
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
        if n == 1:
            return 0
    return i


@pytest.mark.parametrize("depth, margin", [(1, 8), (2, 20)])
@pytest.mark.parametrize("size", [(24, 32), (4, 4), (5, 7), (1, 3), (1, 1), (2, 31)])
def test_a_valid_net_sees_an_image_that_is_extended_by_its_mirror_image(depth, margin, size):
    """By hand, pixel by pixel: as much on every side as the net cuts off, then up to the next size that fits."""
    checkpoint, image = made(3, 2, padding="valid", depth=depth), picture(*size, 3)
    whole = []
    for n in size:
        total = n + 2 * margin
        while not fits(checkpoint.model, total):
            total += 1
        whole.append(total)
    extended = np.empty((*whole, 3), np.float32)
    for i in range(whole[0]):
        for j in range(whole[1]):
            extended[i, j] = image[mirrored(i - margin, size[0]), mirrored(j - margin, size[1])]
    expected = checkpoint.model.predict(normalised(extended)[None])[0, :size[0], :size[1]]
    assert_close(probabilities(checkpoint, image), expected, 1e-6)


def fits(model, n):
    try:
        return bool(model.output_size((n, n)))
    except ValueError:
        return False


def test_the_middle_of_a_valid_nets_answer_needs_no_mirror():
    checkpoint, image = made(1, 3, padding="valid"), picture(48, 56)
    middle = checkpoint.model.predict(normalised(image)[None])[0]
    assert middle.shape == (8, 16, 3)
    assert_close(probabilities(checkpoint, image)[20:28, 20:36], middle, 1e-6)


# A size


def resized(array, size):
    """(H, W, C) by bilinear interpolation, each channel as a picture."""
    planes = [Image.fromarray(plane) for plane in np.moveaxis(array, 2, 0)]
    return np.dstack([np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR)) for plane in planes])


@pytest.mark.parametrize("options", [{}, {"padding": "valid", "depth": 1}], ids=str)
@pytest.mark.parametrize("size", [(12, 20), (30, 9), (23, 31)])
def test_a_net_with_a_size_answers_to_the_resized_image_and_its_answer_is_resized_back(size, options):
    checkpoint, image = made(3, 2, size=size, **options), picture(23, 31, 3)
    small = resized(image, size)
    checkpoint.size = None
    answer = probabilities(checkpoint, small)
    checkpoint.size = size
    assert_close(probabilities(checkpoint, image), resized(np.ascontiguousarray(answer), (23, 31)), 1e-6)
    if size == (23, 31):
        np.testing.assert_array_equal(probabilities(checkpoint, image), answer)


# Ids


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_one_class_is_where_its_probability_reaches_the_threshold(threshold):
    answer = np.array([[0.0, 0.3, 0.5], [0.7, 0.49999, 1.0]])[..., None]
    np.testing.assert_array_equal(class_ids(answer, threshold), answer[..., 0] >= threshold)
    np.testing.assert_array_equal(class_ids(answer), [[0, 0, 1], [1, 0, 1]])
    assert class_ids(answer).dtype == np.uint8


def test_of_more_classes_the_likeliest_is_taken():
    answer = probabilities(made(3, 4), picture(24, 20, 3))
    ids = class_ids(answer)
    assert len(np.unique(ids)) > 1 and ids.dtype == np.uint8
    np.testing.assert_array_equal(np.take_along_axis(answer, ids[..., None].astype(int), 2)[..., 0], answer.max(2))


@pytest.mark.parametrize("options", NETS, ids=str)
def test_prediction_changes_neither_net_nor_image(options):
    checkpoint, image = made(dropout=0.5, **options), picture(9, 9)
    state, before = checkpoint.model.state_dict(), image.copy()
    first, again = probabilities(checkpoint, image), probabilities(checkpoint, image)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    assert checkpoint.model.training
    for name, array in checkpoint.model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("options", NETS, ids=str)
def test_weights_that_are_no_numbers_are_told(classes, options):
    checkpoint = made(classes=classes, **options)
    checkpoint.model.head.weight.data[:] = np.nan
    with pytest.raises(UserError, match="no longer finite.*smaller learning rate"):
        probabilities(checkpoint, picture(8, 8))


# Pictures


def saved(picture, path):
    """The picture after a way through a PNG file."""
    picture.save(path / "picture.png")
    with Image.open(path / "picture.png") as loaded:
        loaded.load()
        return loaded


def test_a_binary_mask_is_black_and_white(tmp_path):
    ids = np.array([[0, 1, 2], [254, 0, 255]], np.uint8)
    mask = saved(mask_picture(ids, "binary"), tmp_path)
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), [[0, 255, 255], [255, 0, 255]])


def test_a_mask_of_ids_holds_them_as_grey_values(tmp_path):
    ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
    mask = saved(mask_picture(ids, "ids"), tmp_path)
    assert mask.mode == "L"
    np.testing.assert_array_equal(np.asarray(mask), ids)


@pytest.mark.parametrize("count", [2, 5, 22, 23, 40, 255])
def test_a_mask_in_colours_is_a_palette_whose_indices_are_the_ids(tmp_path, count):
    """Its colours are those of the overlays; after the last they begin again."""
    ids = np.arange(count, dtype=np.uint8)[None]
    mask = saved(mask_picture(ids, "colors"), tmp_path)
    assert mask.mode == "P"
    np.testing.assert_array_equal(np.asarray(mask), ids)
    palette = np.rint(COLOURS * 255)
    expected = [[0, 0, 0], *(palette[(k - 1) % len(COLOURS)] for k in range(1, count))]
    np.testing.assert_array_equal(np.asarray(mask.convert("RGB"))[0], expected)


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


def test_outlines_have_the_colours_of_their_classes_without_a_tint():
    truth = np.zeros((9, 20), np.uint8)
    truth[3:6, 3:6], truth[3:6, 12:15] = 1, 5
    shown = np.asarray(overlay(np.full((9, 20, 1), 0.3, np.float32), truth=truth)).astype(float)
    np.testing.assert_allclose(shown[2, 2], COLOURS[0] * 255, atol=1)
    np.testing.assert_allclose(shown[6, 15], COLOURS[4] * 255, atol=1)
    np.testing.assert_allclose(shown[4, 4], 0.3 * 255, atol=1)


@pytest.mark.parametrize("light, line", [(0.2, 255), (0.9, 0)])
@pytest.mark.parametrize("with_prediction", [False, True])
def test_ignored_pixels_are_hatched_and_have_no_outline(light, line, with_prediction):
    truth = np.zeros((16, 16), np.uint8)
    truth[:, 6:] = IGNORE
    image = np.full((16, 16, 1), light, np.float32)
    plain = np.asarray(overlay(image))
    shown = np.asarray(overlay(image, np.zeros_like(truth) if with_prediction else None, truth))
    hatched = (shown != plain).any(2)
    assert not hatched[:, :6].any() and 0.1 < hatched[:, 6:].mean() < 0.3
    assert hatched[:, 6:].any(1).all() and (shown[hatched] == line).all()


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


# Legend


def colours_in(picture):
    return {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}


@pytest.mark.parametrize("ids", [[1], [2], [3, 1], list(range(1, 12))])
def test_a_legend_shows_each_id_in_its_colour(ids):
    shown = legend({k: f"kind {k}" for k in ids}, 300)
    assert shown.mode == "RGB" and shown.width == 300
    found = colours_in(shown)
    expected = {tuple(np.rint(colour * 255).astype(int).tolist()) for colour in COLOURS}
    assert found & expected == {tuple(np.rint(COLOURS[k - 1] * 255).astype(int).tolist()) for k in ids}


def test_a_legend_has_as_many_lines_as_it_needs():
    names = {k: "a rather long name" for k in range(1, 7)}
    heights = [legend(names, width).height for width in (2000, 500, 200, 60)]
    assert heights[0] < heights[1] < heights[2] == heights[3] and heights[3] > 5 * heights[0] / 2
    # the last line is whole: its square has a dark border below, and white after it
    last = np.asarray(legend(names, 200))[-4:]
    assert (last[-1] == 255).all() and len(colours_in(legend({1: "x"}, 99)) & {(0, 0, 0)}) == 1


def test_names_are_written():
    one, other = (np.asarray(legend({1: name}, 120)) for name in ("iiii", "mmmm"))
    assert (one != other).any() and (one[:, :20] == other[:, :20]).all()


@pytest.mark.parametrize("names, size", [({}, (40, 30)), ({1: "plant"}, (200, 30)), ({1: "plant"}, (300, 30))])
def test_an_overlay_is_saved_with_a_legend_if_there_are_names(tmp_path, names, size):
    ids = np.zeros((30, size[0] if size[0] != 200 else 40), np.uint8)
    ids[5:9, 5:9] = 1
    image = picture(*ids.shape, 3)
    save_overlay(tmp_path / "a.png", image, ids, names)
    with Image.open(tmp_path / "a.png") as loaded:
        shown = np.asarray(loaded)
        assert loaded.format == "PNG" and loaded.width == size[0]
    np.testing.assert_array_equal(shown[:30, :ids.shape[1]], np.asarray(overlay(image, ids)))
    assert (shown.shape[0] > 40) == bool(names)
