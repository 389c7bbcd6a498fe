"""Folders of images and masks as datasets, from end to end; and the real ones, each with its own conventions."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet.data import IGNORE, Batches, MaskOptions, channel_statistics, dataset_of
from minunet.data import folder as folder_module
from minunet.data import load_folder, survey, unit
from minunet.errors import UserError
from tests.data.test_files import CLASS, COLOURS, DEEP, FEW, GREY, IDS, MODES, H, W, palette, save


@pytest.fixture
def images(tmp_path):
    return tmp_path / "images"


@pytest.fixture
def masks(tmp_path):
    return tmp_path / "masks"


@pytest.mark.parametrize("mask_suffix", [".png", "_mask.gif", ".bmp", "_seg.tif", ".PNG"])
@pytest.mark.parametrize("image_suffix", [".png", ".jpg", ".JPG", ".Tif"])
def test_pairs_become_samples(images, masks, image_suffix, mask_suffix):
    for stem, mask in (("b", CLASS), ("a.1", 1 - CLASS)):
        save(images / f"{stem}{image_suffix}", COLOURS)
        save(masks / f"{stem}{mask_suffix}", mask * np.uint8(255))
    dataset = load_folder(images, masks)
    assert [(s.name, s.size) for s in dataset.samples] == [("a.1", (H, W)), ("b", (H, W))]
    assert (dataset.channels, dataset.classes, dataset.class_names) == (3, 1, ("class",))
    for sample, expected in zip(dataset.samples, (1 - CLASS, CLASS), strict=True):
        image, mask = sample.read()
        assert image.shape == (H, W, 3) and image.dtype == np.uint8 and mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected)


def test_folders_may_be_given_as_text(images, masks):
    save(images / "a.png", GREY)
    save(masks / "a.png", CLASS)
    assert len(load_folder(str(images), str(masks)).samples) == 1


def test_folders_may_be_nested(images, masks):
    for name, mask in (("p1/a", CLASS), ("p2/a", 1 - CLASS)):
        save(images / f"{name}.png", GREY)
        save(masks / f"{name}_mask.png", mask)
    samples = load_folder(images, masks).samples
    assert [s.name for s in samples] == ["p1/a", "p2/a"]
    np.testing.assert_array_equal(samples[1].read()[1], 1 - CLASS)


def test_images_and_masks_may_be_in_one_folder(images):
    save(images / "a.png", GREY)
    save(images / "a_mask.png", CLASS)
    [sample] = load_folder(images, images).samples
    np.testing.assert_array_equal(sample.read()[1], CLASS)


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_becomes_a_sample(images, masks, mode):
    picture, expected, channels, depth = MODES[mode]
    save(images / "a.png", picture)
    save(masks / "a.png", CLASS)
    dataset = load_folder(images, masks)
    image, _ = dataset.samples[0].read()
    assert dataset.channels == channels and image.shape == (H, W, channels) and image.dtype == depth
    np.testing.assert_allclose(unit(image).squeeze(), expected, atol=1e-6)


def mixed(images, masks):
    for stem, picture in (("a", GREY), ("b", COLOURS), ("c", DEEP)):
        save(images / f"{stem}.png", picture)
        save(masks / f"{stem}.png", CLASS)
    return [np.dstack([GREY / 255] * 3), COLOURS / 255, np.dstack([DEEP / 65535] * 3)]


def test_one_colour_image_makes_all_of_them_colour(images, masks):
    expected = mixed(images, masks)
    dataset = load_folder(images, masks)
    assert dataset.channels == 3
    for sample, image in zip(dataset.samples, expected, strict=True):
        np.testing.assert_allclose(unit(sample.read()[0]), image, atol=1e-6)


def test_statistics_are_those_of_what_is_read(images, masks):
    pixels = np.concatenate([image.reshape(-1, 3) for image in mixed(images, masks)])
    mean, deviation = channel_statistics(load_folder(images, masks).samples)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-5)


@pytest.mark.parametrize("picture, channels", [(COLOURS, 1), (GREY, 3)])
def test_a_net_has_its_own_number_of_channels(images, masks, picture, channels):
    save(images / "a.png", picture)
    save(masks / "a.png", CLASS)
    dataset = dataset_of(survey(images, masks), MaskOptions(), channels=channels)
    assert dataset.channels == channels and dataset.samples[0].read()[0].shape == (H, W, channels)


# Masks

TWO_VALUED = {
    "0 and 255": ("a.png", Image.fromarray(CLASS * np.uint8(255))),
    "0 and 1": ("a.png", Image.fromarray(CLASS)),
    "0 and 7": ("a.png", Image.fromarray(CLASS * np.uint8(7))),
    "bits": ("a.png", Image.fromarray(CLASS > 0)),
    "palette GIF": ("a.gif", palette(CLASS, [(0, 0, 0), (255, 255, 255)])),
    "palette GIF in colours": ("a.gif", palette(CLASS, [(200, 30, 20), (20, 200, 20)])),
    "grey as RGB": ("a.png", Image.fromarray(np.dstack([CLASS * np.uint8(255)] * 3))),
    "grey as RGBA": ("a.png", Image.fromarray(np.dstack([CLASS] * 3 + [CLASS * 0 + 255]))),
    "grey with alpha": ("a.png", Image.fromarray(CLASS * np.uint8(255)).convert("LA")),
    "black and red": ("a.png", Image.fromarray(CLASS[..., None] * np.array([255, 0, 0], np.uint8))),
    "16 bits": ("a.tif", Image.fromarray(CLASS.astype(np.uint16) * 65535)),
    "32 bits": ("a.tif", Image.fromarray(CLASS.astype(np.int32) * 255)),
    "float": ("a.tif", Image.fromarray(CLASS.astype(np.float32))),
}


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("kind", TWO_VALUED)
def test_a_mask_of_two_values_is_one_class(images, masks, kind, invert):
    name, picture = TWO_VALUED[kind]
    save(images / "a.png", GREY)
    save(masks / name, picture)
    dataset = load_folder(images, masks, MaskOptions(invert=invert))
    assert dataset.classes == 1
    np.testing.assert_array_equal(dataset.samples[0].read()[1], 1 - CLASS if invert else CLASS)


def red(ids):
    return np.dstack([ids, ids * 9, ids * 0])


OBJECTS = (CLASS * np.arange(300, 300 + W)).astype(np.uint16)
SEVERAL = {     # what is saved, the options, classes, the mask in memory
    "ids": (IDS, {}, 5, IDS),
    "ids in a palette": (palette(IDS, FEW), {}, 5, IDS),
    "ids as RGB": (np.dstack([IDS] * 3), {}, 5, IDS),
    "ids in red": (red(IDS), {"channel": "red"}, 5, IDS),
    "ids, one ignored": (IDS, {"ignore": (4,)}, 4, np.where(IDS == 4, IGNORE, IDS)),
    "colours": (FEW[IDS], {"colors": tuple(int(f"{r:02x}{g:02x}{b:02x}", 16) for r, g, b in FEW)}, 5, IDS),
    "colours of a palette": (palette(IDS, FEW), {"colors": (0xFFFFFF, 0x070707, 0, 0x0A141E, 0xFF0000)}, 5, 4 - IDS),
    "objects": (OBJECTS, {"instances": True}, 1, CLASS),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_values_are_read_as_the_options_say(images, masks, kind):
    picture, options, classes, expected = SEVERAL[kind]
    save(images / "a.png", GREY)
    save(masks / "a.png", picture)
    dataset = load_folder(images, masks, MaskOptions(**options))
    assert dataset.classes == classes == len(dataset.class_names)
    np.testing.assert_array_equal(dataset.samples[0].read()[1], expected)


@pytest.mark.parametrize("first, second, classes, expected", [
    ([0], [0, 255], 1, [0]),
    ([255], [0], 1, [1]),
    ([1], [0], 1, [1]),
    ([0, 1], [0, 1, 2], 3, [0, 1]),
    ([0, 3], [3], 1, [0, 1]),
    ([1, 2], [1], 3, [1, 2]),
])
def test_all_masks_together_decide_what_values_mean(images, masks, first, second, classes, expected):
    for stem, values in (("a", first), ("b", second)):
        save(images / f"{stem}.png", GREY)
        save(masks / f"{stem}.png", np.resize(np.array(values, np.uint8), (H, W)))
    dataset = load_folder(images, masks)
    assert dataset.classes == classes
    assert np.unique(dataset.samples[0].read()[1]).tolist() == expected


def test_masks_that_were_saved_as_jpeg_are_snapped(images, masks):
    truth = np.zeros((40, 52), np.uint8)
    truth[9:30, 11:41] = 1
    save(images / "a.png", np.resize(GREY, (40, 52)))
    save(masks / "a.jpg", truth * np.uint8(255), quality=40)
    assert len(np.unique(np.asarray(Image.open(masks / "a.jpg")))) > 3          # or there is nothing to snap
    dataset = load_folder(images, masks)
    assert dataset.classes == 1
    np.testing.assert_array_equal(dataset.samples[0].read()[1], truth)


def test_masks_are_read_as_a_trained_net_knows_them(images, masks):
    save(images / "a.png", GREY)
    save(masks / "a.png", CLASS)
    assert load_folder(images, masks).classes == 1
    dataset = load_folder(images, masks, classes=3)
    assert dataset.classes == 3
    np.testing.assert_array_equal(dataset.samples[0].read()[1], CLASS)


# What is wrong; tests/data/test_survey.py has all of it


@pytest.mark.parametrize("plant, name, words", [
    (lambda i, m: (m / "b.png").unlink(), "images/b.png", "no mask"),
    (lambda i, m: (i / "b.png").write_text("hello"), "images/b.png", "not an image"),
    (lambda i, m: save(m / "b.png", CLASS.T), "masks/b.png", "9x6 px"),
    (lambda i, m: save(m / "b.png", np.resize(np.uint8([0, 70, 80]), (H, W))), "masks/b.png",
     "only mask with the values 70, 80"),
    (lambda i, m: [save(m / f"{s}.png", CLASS * 0) for s in "abc"], "masks", "anything but background"),
])
def test_a_fault_is_told_in_a_sentence_with_the_file(images, masks, plant, name, words):
    for stem in "abc":
        save(images / f"{stem}.png", GREY)
        save(masks / f"{stem}.png", CLASS)
    plant(images, masks)
    with pytest.raises(UserError, match=f"^{images.parent}/{name}: .*{words}") as error:
        load_folder(images, masks)
    assert "\n" not in str(error.value)


# Memory


@pytest.mark.parametrize("budget, read_again", [(0, "abc"), (H * W * 4, "bc"), (H * W * 8 + 5, "c"), (1 << 20, "")])
def test_files_are_read_again_only_beyond_the_budget(images, masks, monkeypatch, budget, read_again):
    for stem in "abc":
        save(images / f"{stem}.png", COLOURS)
        save(masks / f"{stem}.png", CLASS)
    dataset = load_folder(images, masks, cache_bytes=budget)
    read = []

    def noting(path, channels, reader=folder_module.read_image):
        read.append(path.stem)
        return reader(path, channels)
    monkeypatch.setattr(folder_module, "read_image", noting)
    for again in (False, True):
        read.clear()
        for sample in dataset.samples:
            image, mask = sample.read()
            np.testing.assert_array_equal(image, COLOURS)
            np.testing.assert_array_equal(mask, CLASS)
        assert "".join(read) == (read_again if again else "abc")


# Real images


@pytest.fixture(scope="module")
def real():
    if "MINUNET_DATA" not in os.environ:
        pytest.skip("MINUNET_DATA does not name the folder of real images")
    return Path(os.environ["MINUNET_DATA"])


def some(folder, target, count=3):
    """The first files of a folder in another one."""
    target.mkdir()
    for path in sorted(folder.iterdir())[:count]:
        (target / path.name).symlink_to(path)
    return target


@pytest.mark.parametrize("images, masks, options, pairs, channels, classes, share", [
    ("dsb2018_nuclei/images", "dsb2018_nuclei/masks", {}, 104, 3, 1, 0.145),
    ("isbi2012_membrane/images", "isbi2012_membrane/masks", {"invert": True}, 30, 1, 1, 0.22),
    ("camvid/val/images", "camvid/val/masks", {"ignore": (11,)}, 21, 3, 11, None),
    ("carvana/train", "carvana/train_masks", {}, 3, 3, 1, None),
    ("carla/CameraRGB", "carla/CameraSeg", {"channel": "red"}, 4, 3, 13, None),
])
def test_real_folders(real, tmp_path, images, masks, options, pairs, channels, classes, share):
    folders = real / images, real / masks
    if images.startswith("carvana"):                        # great pictures: a few of them tell as much
        folders = some(folders[0], tmp_path / "images"), some(folders[1], tmp_path / "masks")
    dataset = load_folder(*folders, MaskOptions(**options))
    assert (len(dataset.samples), dataset.channels, dataset.classes) == (pairs, channels, classes)
    chosen = dataset.samples if share else dataset.samples[:5]
    held = set()
    for sample in chosen:
        image, mask = sample.read()
        assert image.shape == (*mask.shape, channels) == (*sample.size, channels)
        assert 0 <= image.min() < image.max() <= 255
        held |= set(np.unique(mask).tolist())
    assert held <= {*range(max(2, classes)), IGNORE} and (IGNORE in held) == ("ignore" in options)
    if share:
        assert np.mean([sample.read()[1].mean() for sample in chosen]) == pytest.approx(share, abs=0.005)
    else:
        assert len(held) > min(classes, 8)
    crops, ids = next(Batches(chosen, (64, 64), 4).epoch(np.random.default_rng(0)))
    assert crops.shape == (4, 64, 64, channels) and 0 <= crops.min() < crops.max() <= 1 and ids.shape == (4, 64, 64)


def test_real_masks_in_a_channel_are_told_apart(real):
    with pytest.raises(UserError, match="CameraSeg/.*only red is in use.*--mask-channel red"):
        load_folder(real / "carla/CameraRGB", real / "carla/CameraSeg")


def test_real_folders_that_were_exchanged_are_told(real):
    for images, masks in (("dsb2018_nuclei/masks", "dsb2018_nuclei/images"),
                          ("carla/CameraSeg", "carla/CameraRGB"), ("carvana/train_masks", "carvana/train")):
        with pytest.raises(UserError, match=f"^{real / images}.*exchanged"):
            load_folder(real / images, real / masks)
