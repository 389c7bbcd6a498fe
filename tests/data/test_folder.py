"""Folders of images and masks: what is paired, how every kind of file is read, and what is said of a wrong one."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet.data import load_folder, read_image
from minunet.errors import UserError

H, W = 6, 9
COLOURS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
CLASS = np.zeros((H, W), np.uint8)      # a background and one class
CLASS[1:4, 2:7] = 1
IDS = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 5


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    return folder


def save(path, picture, **options):
    """Write an array, or a picture, as an image file."""
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(path, **options)


def palette(values, colours):
    """A palette picture: the values are indices of colours."""
    picture = Image.fromarray(values).convert("L")
    picture.putpalette([number for colour in colours for number in colour])
    return picture


# Pairs


@pytest.mark.parametrize("mask_suffix", [".png", ".gif", ".bmp", ".tif", ".tiff", ".PNG"])
@pytest.mark.parametrize("image_suffix", [".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".JPG", ".Tif"])
def test_files_are_paired_by_stem_over_all_suffixes(images, masks, image_suffix, mask_suffix):
    for stem, mask in (("b", CLASS), ("a.1", 1 - CLASS)):
        save(images / f"{stem}{image_suffix}", COLOURS)
        save(masks / f"{stem}{mask_suffix}", mask * np.uint8(255))
    dataset = load_folder(images, masks)
    assert [s.name for s in dataset.samples] == ["a.1", "b"]
    assert [s.image.shape for s in dataset.samples] == [(H, W, dataset.channels)] * 2
    np.testing.assert_array_equal(dataset.samples[0].mask, 1 - CLASS)
    np.testing.assert_array_equal(dataset.samples[1].mask, CLASS)


def test_folders_may_be_given_as_text(images, masks):
    save(images / "a.png", GREY)
    save(masks / "a.png", CLASS)
    assert len(load_folder(str(images), str(masks)).samples) == 1


def test_other_files_are_left_alone(images, masks):
    save(images / "a.png", GREY)
    save(masks / "a.png", CLASS)
    for folder in (images, masks):
        (folder / "old").mkdir()
        save(folder / "old" / "z.png", GREY)
        (folder / "README.txt").write_text("taken on Tuesday")
        (folder / "Thumbs.db").write_bytes(b"\0")
        (folder / "._a.png").write_bytes(b"what a Mac leaves beside each file of an archive")
    assert [s.name for s in load_folder(images, masks).samples] == ["a"]


# Images


def luma(rgb):
    return rgb @ np.array([0.299, 0.587, 0.114])        # ITU-R 601


BITS = GREY > 127
DEEP = GREY.astype(np.uint16) * 211
FEW = np.array([[255, 0, 0], [10, 20, 30], [0, 0, 0], [7, 7, 7], [255, 255, 255]], np.uint8)
MODES = {
    "1": (Image.fromarray(BITS), BITS, 1),
    "L": (Image.fromarray(GREY), GREY / 255, 1),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)]), GREY / 255, 1),
    "I;16": (Image.fromarray(DEEP), DEEP / 65535, 1),
    "P": (palette(IDS, FEW), FEW[IDS] / 255, 3),
    "RGB": (Image.fromarray(COLOURS), COLOURS / 255, 3),
    "RGBA": (Image.fromarray(np.dstack([COLOURS, 255 - GREY])), COLOURS / 255, 3),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_is_read_as_it_looks(images, masks, mode):
    picture, expected, channels = MODES[mode]
    assert picture.mode == mode
    save(images / "a.png", picture)
    save(masks / "a.png", CLASS)
    dataset = load_folder(images, masks)
    image = dataset.samples[0].image
    assert dataset.channels == channels and image.shape == (H, W, channels) and image.dtype == np.float32
    np.testing.assert_allclose(image.squeeze(), expected, atol=1e-6)

    grey, colour = (read_image(images / "a.png", n) for n in (1, 3))
    assert grey.shape == (H, W, 1) and colour.shape == (H, W, 3) and grey.dtype == colour.dtype == np.float32
    np.testing.assert_allclose(colour, expected if channels == 3 else np.dstack([expected] * 3), atol=1e-6)
    np.testing.assert_allclose(grey[..., 0], luma(colour), atol=0.51 / 255)


def test_a_cmyk_jpeg_is_read_as_colour(images):
    save(images / "a.jpg", Image.new("CMYK", (W, H), (0, 255, 255, 0)))         # red
    np.testing.assert_allclose(read_image(images / "a.jpg", 3).mean((0, 1)), [1, 0, 0], atol=0.05)


@pytest.mark.parametrize("transparency", [0, bytes(range(200, 205))])
def test_transparent_palette_entries_have_their_colour(images, transparency):
    save(images / "a.png", palette(IDS, FEW), transparency=transparency)
    np.testing.assert_allclose(read_image(images / "a.png", 3), FEW[IDS] / 255, atol=1e-6)


UPRIGHT = {     # EXIF orientation -> what the camera stores of an upright picture
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
    7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_jpeg_is_turned_upright(images, masks, orientation):
    upright = np.add.outer(np.arange(24) * 6, np.arange(32) * 3).astype(np.uint8)       # no symmetry, little noise
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(images / "a.jpg", np.ascontiguousarray(UPRIGHT[orientation](upright)), exif=exif, quality=95)
    save(masks / "a.png", upright % 2)
    sample = load_folder(images, masks).samples[0]
    assert sample.image.shape == (24, 32, 1)
    np.testing.assert_allclose(sample.image[..., 0], upright / 255, atol=0.03)


def test_one_colour_image_makes_all_of_them_colour(images, masks):
    for stem, picture in (("a", GREY), ("b", COLOURS), ("c", DEEP)):
        save(images / f"{stem}.png", picture)
        save(masks / f"{stem}.png", CLASS)
    dataset = load_folder(images, masks)
    assert dataset.channels == 3 and {s.image.shape for s in dataset.samples} == {(H, W, 3)}
    np.testing.assert_allclose(dataset.samples[0].image, np.dstack([GREY / 255] * 3), atol=1e-6)
    np.testing.assert_allclose(dataset.samples[2].image, np.dstack([DEEP / 65535] * 3), atol=1e-6)


# Masks

TWO_VALUED = {
    "0 and 255": ("a.png", Image.fromarray(CLASS * np.uint8(255))),
    "0 and 1": ("a.png", Image.fromarray(CLASS)),
    "bits": ("a.png", Image.fromarray(CLASS > 0)),
    "palette GIF": ("a.gif", palette(CLASS, [(0, 0, 0), (255, 255, 255)])),
    "palette GIF in colours": ("a.gif", palette(CLASS, [(200, 30, 20), (20, 200, 20)])),
    "grey as RGB": ("a.png", Image.fromarray(np.dstack([CLASS * np.uint8(255)] * 3))),
    "grey as RGBA": ("a.png", Image.fromarray(np.dstack([CLASS] * 3 + [CLASS * 0 + 255]))),
    "grey with alpha": ("a.png", Image.fromarray(CLASS * np.uint8(255)).convert("LA")),
    "16 bits": ("a.tif", Image.fromarray(CLASS.astype(np.uint16))),
    "32 bits": ("a.tif", Image.fromarray(CLASS.astype(np.int32) * 255)),
    "float": ("a.tif", Image.fromarray(CLASS.astype(np.float32))),
}


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("kind", TWO_VALUED)
def test_a_mask_of_two_values_is_one_class(images, masks, kind, invert):
    name, picture = TWO_VALUED[kind]
    save(images / "a.png", GREY)
    save(masks / name, picture)
    dataset = load_folder(images, masks, invert=invert)
    assert dataset.classes == 1
    np.testing.assert_array_equal(dataset.samples[0].mask, 1 - CLASS if invert else CLASS)


@pytest.mark.parametrize("first, second, classes, expected", [
    ([0], [0], 1, [0]),
    ([0], [0, 255], 1, [0]),
    ([255], [0], 1, [1]),
    ([1], [0], 1, [1]),
    ([0, 1], [0, 1, 2], 3, [0, 1]),
    ([0, 1], [0, 11], 12, [0, 1]),
    ([0, 3], [3], 4, [0, 3]),
    ([1, 2], [1], 3, [1, 2]),
])
def test_all_masks_together_decide_what_values_mean(images, masks, first, second, classes, expected):
    for stem, values in (("a", first), ("b", second)):
        save(images / f"{stem}.png", GREY)
        save(masks / f"{stem}.png", np.resize(np.array(values, np.uint8), (H, W)))
    dataset = load_folder(images, masks)
    assert dataset.classes == classes
    assert np.unique(dataset.samples[0].mask).tolist() == expected


@pytest.mark.parametrize("name, picture", [
    ("a.png", Image.fromarray(IDS)), ("a.gif", palette(IDS, FEW)), ("a.png", Image.fromarray(np.dstack([IDS] * 3))),
])
def test_class_ids_stay_as_they_are(images, masks, name, picture):
    save(images / "a.png", GREY)
    save(masks / name, picture)
    dataset = load_folder(images, masks)
    assert dataset.classes == 5
    np.testing.assert_array_equal(dataset.samples[0].mask, IDS)


# What is wrong: each plants one fault in folders with the good pairs a, b and c


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])


def remove_all(folder):
    for path in folder.iterdir():
        path.unlink()


FAULTS = {      # what the user did -> (how it is done, the name of the file or folder, further words)
    "no image folder": (lambda i, m: (remove_all(i), i.rmdir()), "images", "no such folder"),
    "no mask folder": (lambda i, m: (remove_all(m), m.rmdir()), "masks", "no such folder"),
    "an archive instead of a folder": (lambda i, m: (remove_all(i), i.rmdir(), i.write_bytes(b"PK")), "images",
                                       "folder"),
    "an empty image folder": (lambda i, m: remove_all(i), "images", r"no image files \(.png"),
    "an empty mask folder": (lambda i, m: remove_all(m), "masks", "no image files"),
    "only text": (lambda i, m: (remove_all(m), (m / "a.txt").write_text("x")), "masks", "no image files"),
    "an image without mask": (lambda i, m: (m / "b.png").unlink(), "images/b.png", "no mask"),
    "two images without mask": (lambda i, m: ((m / "b.png").unlink(), (m / "c.png").unlink()), "images/b.png",
                                "1 other"),
    "a mask without image": (lambda i, m: (i / "c.png").unlink(), "masks/c.png", "no image"),
    "names in another case": (lambda i, m: (m / "b.png").rename(m / "B.png"), "images/b.png", "no mask"),
    "two images of a stem": (lambda i, m: save(i / "b.jpg", GREY), "images/b.png", "b.jpg"),
    "two masks of a stem": (lambda i, m: save(m / "b.bmp", CLASS), "masks/b.png", "b.bmp"),
    "a mask of another size": (lambda i, m: save(m / "b.png", CLASS[:, :-1]), "masks/b.png", "8x6 px.* b .*9x6 px"),
    "a mask on its side": (lambda i, m: save(m / "b.png", CLASS.T), "masks/b.png", "6x9 px.* b .*9x6 px"),
    "text as image": (lambda i, m: (i / "b.png").write_text("hello"), "images/b.png", "not an image, or is damaged"),
    "text as mask": (lambda i, m: (m / "b.png").write_text("hello"), "masks/b.png", "not an image, or is damaged"),
    "no bytes": (lambda i, m: (i / "b.png").write_bytes(b""), "images/b.png", "not an image, or is damaged"),
    "half an image": (lambda i, m: cut(i / "c.png", 0.5), "images/c.png", "damaged"),
    "half a mask": (lambda i, m: cut(m / "c.png", 0.5), "masks/c.png", "damaged"),
    "half a JPEG": (lambda i, m: (save(i / "c.jpg", COLOURS), cut(i / "c.jpg", 0.9), (i / "c.png").unlink()),
                    "images/c.jpg", "damaged"),
    "half a TIFF": (lambda i, m: (save(i / "c.tif", COLOURS), cut(i / "c.tif", 0.9), (i / "c.png").unlink()),
                    "images/c.tif", "damaged"),
    "a folder named as an image": (lambda i, m: ((i / "b.png").unlink(), (i / "b.png").mkdir()), "images/b.png",
                                   "cannot be read"),
    "a link that leads nowhere": (lambda i, m: ((i / "b.png").unlink(), (i / "b.png").symlink_to("z.png")),
                                  "images/b.png", "No such file"),
    "a colour mask": (lambda i, m: save(m / "b.png", COLOURS), "masks/b.png", "grey or palette .*mode RGB"),
    "a colour mask with alpha": (lambda i, m: save(m / "b.png", np.dstack([COLOURS, GREY])), "masks/b.png", "RGBA"),
    "images and masks exchanged": (lambda i, m: [(save(i / f"{s}.png", CLASS), save(m / f"{s}.png", COLOURS))
                                                 for s in "abc"], "masks/a.png", "colours"),
    "a mask as JPEG": (lambda i, m: (save(m / "b.jpg", CLASS * 255, quality=50), (m / "b.png").unlink()), "masks/b.jpg",
                       "JPEG"),
    "a grey photograph as mask": (lambda i, m: save(m / "b.png", GREY), "masks/b.png", "0 and 255, .* ids 0 to 63"),
    "0, 1 and 255 mixed": (lambda i, m: save(m / "b.png", CLASS), "masks/b.png", "values 0, 1, 255"),
    "a grey mask of 0 and 128": (lambda i, m: save(m / "b.png", CLASS * 128), "masks/b.png", "values 0, 128, 255"),
    "16-bit values": (lambda i, m: save(m / "b.png", CLASS.astype(np.uint16) * 65535), "masks/b.png", "65535"),
    "an id that is too high": (lambda i, m: [save(m / f"{s}.png", CLASS * v) for s, v in zip("abc", (2, 5, 64))],
                               "masks/c.png", "values 0, 2, 5, 64"),
    "negative values": (lambda i, m: [(save(m / f"{s}.tif", -CLASS.astype(np.int32)), (m / f"{s}.png").unlink())
                                      for s in "abc"], "masks/a.tif", "values -1, 0"),
    "fractions": (lambda i, m: (save(m / "b.tif", CLASS.astype(np.float32) / 2), (m / "b.png").unlink()),
                  "masks/b.tif", "whole numbers"),
    "not a number": (lambda i, m: (save(m / "b.tif", np.full((H, W), np.nan, np.float32)), (m / "b.png").unlink()),
                     "masks/b.tif", "whole numbers"),
    "a 32-bit image": (lambda i, m: (save(i / "b.tif", GREY.astype(np.int32)), (i / "b.png").unlink()),
                       "images/b.tif", "8 or 16 bits"),
    "a float image": (lambda i, m: (save(i / "b.tif", GREY.astype(np.float32)), (i / "b.png").unlink()),
                      "images/b.tif", "8 or 16 bits"),
    "a CIELAB image": (lambda i, m: (save(i / "b.tif", Image.new("LAB", (W, H))), (i / "b.png").unlink()),
                       "images/b.tif", "RGB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_a_sentence_with_the_file(images, masks, fault):
    for stem in "abc":
        save(images / f"{stem}.png", GREY)
        save(masks / f"{stem}.png", CLASS * np.uint8(255))
    plant, name, words = FAULTS[fault]
    plant(images, masks)
    with pytest.raises(UserError, match=f"^{images.parent}/{name}: .*{words}") as error:
        load_folder(images, masks)
    assert "\n" not in str(error.value)


def test_class_ids_cannot_be_inverted(images, masks):
    save(images / "a.png", GREY)
    save(masks / "a.png", IDS)
    with pytest.raises(UserError, match=f"^{masks}: .*two values.*these hold 0, 1, 2, 3, 4"):
        load_folder(images, masks, invert=True)


@pytest.mark.parametrize("name", ["none.png", "text.png", "deep.tif"])
def test_read_image_names_the_file(images, name):
    (images / "text.png").write_text("hello")
    save(images / "deep.tif", GREY.astype(np.float32))
    with pytest.raises(UserError, match=f"^{images / name}: "):
        read_image(images / name, 3)


# Real images


@pytest.fixture(scope="module")
def real():
    if "MINUNET_DATA" not in os.environ:
        pytest.skip("MINUNET_DATA does not name the folder of real images")
    return Path(os.environ["MINUNET_DATA"])


@pytest.mark.parametrize("images, masks, invert, pairs, channels, classes, share", [
    ("dsb2018_nuclei/images", "dsb2018_nuclei/masks", False, 104, 3, 1, 0.145),
    ("isbi2012_membrane/images", "isbi2012_membrane/masks", True, 30, 1, 1, 0.22),
    ("camvid/val/images", "camvid/val/masks", False, 21, 3, 12, None),
    ("camvid/train/images", "camvid/train/masks", False, 74, 3, 12, None),
])
def test_real_folders(real, images, masks, invert, pairs, channels, classes, share):
    dataset = load_folder(real / images, real / masks, invert)
    assert (len(dataset.samples), dataset.channels, dataset.classes) == (pairs, channels, classes)
    values = np.unique(np.concatenate([np.unique(s.mask) for s in dataset.samples]))
    assert values.tolist() == list(range(max(2, classes)))
    for s in dataset.samples:
        assert s.image.shape == (*s.mask.shape, channels) and 0 <= s.image.min() < s.image.max() <= 1
    if share:
        assert np.mean([s.mask.mean() for s in dataset.samples]) == pytest.approx(share, abs=0.005)


def test_real_photographs_have_no_masks_of_their_names(real):
    with pytest.raises(UserError, match="has no mask of the same stem"):
        load_folder(real / "carvana/train", real / "carvana/train_masks")


def test_real_masks_in_a_colour_channel_are_refused(real):
    with pytest.raises(UserError, match="CameraSeg/.*colours"):
        load_folder(real / "carla/CameraRGB", real / "carla/CameraSeg")
