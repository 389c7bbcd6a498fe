"""Pictures of a run: the curves of its history, and the sheet of what it predicts."""

import numpy as np
import pytest
from PIL import Image

from minunet.data import IGNORE, Sample
from minunet.training.report import plot_history, validation_sheet


def row(epoch, loss=1.0, iou=0.5, dice=0.6, best=True):
    return {"epoch": epoch, "loss": loss, "lr": 1e-3, "iou": iou, "dice": dice, "best": best}


@pytest.mark.parametrize("rows", [
    [row(1)],
    [row(1), row(2, 0.5, 0.4, 0.5, False), row(3, 0.4, 0.7, 0.8)],
    [row(1, 0.0, None, None), row(2, 0.0, None, None, False)],      # no class anywhere
    [row(k, 1 / k, k / 200, k / 200) for k in range(1, 120)],
], ids=["one epoch", "three", "no figures", "many"])
def test_a_history_is_drawn(tmp_path, rows):
    plot_history(rows, tmp_path / "history.png")
    with Image.open(tmp_path / "history.png") as picture:
        assert picture.format == "PNG" and picture.width > 500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_every_curve_and_the_best_epoch_are_drawn(tmp_path):
    """A change of any of them changes the picture; the same history is the same picture."""
    rows = [row(1), row(2, 0.5, 0.4, 0.5, False), row(3, 0.4, 0.7, 0.8)]
    others = [[*rows[:2], rows[2] | change] for change in
              ({}, {"loss": 0.7}, {"iou": 0.6}, {"dice": 0.9}, {"best": False})]
    pictures = []
    for i, history in enumerate([rows, *others]):
        plot_history(history, tmp_path / f"{i}.png")
        pictures.append((tmp_path / f"{i}.png").read_bytes())
    assert pictures[0] == pictures[1] and len(set(pictures)) == 5


def sample(height, width, channels=1):
    """A dark image with a square of class 1 in its middle, on the left, and a band to be ignored below."""
    image, mask = np.full((height, width, channels), 0.25, np.float32), np.zeros((height, width), np.uint8)
    mask[height // 4:height // 2, width // 4:width // 2] = 1
    mask[-height // 8:] = IGNORE
    return Sample.of("a", image, mask)


@pytest.mark.parametrize("size, panel", [
    ((400, 400), (400, 400)), ((800, 400), (400, 200)), ((1000, 1600), (250, 400)), ((250, 399), (250, 399)),
    ((200, 100), (400, 200)), ((24, 32), (288, 384)), ((3, 2000), (1, 400)),
])
def test_panels_are_shrunken_to_400_px_or_magnified_by_a_whole_factor(size, panel):
    one = sample(*size)
    ids = np.zeros(size, np.uint8)
    sheet = np.asarray(validation_sheet([one], [ids], ("class",)))
    rows, columns = panel
    assert sheet.shape[1] == 3 * (columns + 4) - 4
    assert sheet.shape[0] == validation_sheet([sample(400, 400)], [np.zeros((400, 400), np.uint8)],
                                              ("class",)).height - 400 + rows
    image = sheet[-rows:, :columns]                          # the panel without truth and prediction
    assert (abs(image.astype(int) - 64) <= 1).all()
    assert (sheet[-rows:, columns:columns + 4] == 255).all()


def test_a_sheet_shows_image_truth_and_prediction_a_row_an_image():
    samples = [sample(200, 400, 3), sample(400, 400, 3)]
    predictions = [np.zeros((200, 400), np.uint8), np.zeros((400, 400), np.uint8)]
    predictions[1][300:, 300:] = 1
    sheet = np.asarray(validation_sheet(samples, predictions, ("class",))).astype(int)
    top = sheet.shape[0] - 400 - 4 - 200                    # below the titles
    for sample_, prediction, first in zip(samples, predictions, (top, top + 204), strict=True):
        mask = sample_.read()[1]
        image, truth, found = (sheet[first:, j * 404:][:len(mask), :400] for j in range(3))
        assert (image == 64).all()
        known = mask != IGNORE
        grown = np.zeros(mask.shape, bool)
        h, w = mask.shape
        grown[h // 4 - 1:h // 2 + 1, w // 4 - 1:w // 2 + 1] = True
        outline = grown & (mask != 1)
        np.testing.assert_array_equal((truth != image).any(2) & known, outline)
        assert ((truth != image).any(2) & ~known).any()     # hatched
        changed = (found != image).any(2)
        np.testing.assert_array_equal(changed & known, (outline | (prediction == 1)) & known)
        assert (found[outline] == 255).all()                # on a tint the truth is white
    titles = sheet[:top]
    assert (titles == 255).all(2).mean() > 0.5 and (titles < 100).any()


def test_several_classes_get_a_legend():
    ids = np.zeros((400, 400), np.uint8)
    one, two = (validation_sheet([sample(400, 400)], [ids], names) for names in (("cell",), ("soil", "plant")))
    assert two.height > one.height + 15 and two.width == one.width
    np.testing.assert_array_equal(np.asarray(two)[:one.height], np.asarray(one))
