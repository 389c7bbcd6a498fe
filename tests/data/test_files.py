"""Files of images and masks: which belong together, and what numbers every kind of file gives."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minunet.data.files import (
    image_files,
    name_below,
    open_picture,
    pack,
    pair_files,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
    unit,
    unpack,
    with_channels,
)
from minunet.errors import UserError

H, W = 6, 9
COLOURS = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
CLASS = np.zeros((H, W), np.uint8)      # a background and one class
CLASS[1:4, 2:7] = 1
IDS = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 5


def save(path, picture, **options):
    """Write an array, or a picture, as an image file; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(path, **options)
    return path


def palette(values, colours):
    """A palette picture: the values are indices of colours."""
    picture = Image.fromarray(values).convert("L")
    picture.putpalette([number for colour in colours for number in colour])
    return picture


def save_png_16(path, rgb):
    """Write (H, W, 3) uint16 as a PNG of 16 bits a colour, which Pillow cannot."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb)
    head = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
                     + chunk(b"IEND", b""))
    return path


# What a folder holds


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_is_searched_with_those_below_and_sorted(tmp_path):
    held = ["b.png", "a.JPG", "p2/c.jpeg", "p1/q/d.gif", "e.bmp", "f.tif", "g.TIFF"]
    touch(tmp_path, *held, ".hidden.png", "p1/.trash/z.png", "p1/._d.png", "README.txt", "Thumbs.db", "none", "h.npy")
    found = image_files(tmp_path)
    assert found == sorted(tmp_path / name for name in held)


def test_the_folder_itself_may_lie_in_a_hidden_one(tmp_path):
    touch(tmp_path / ".cache" / "images", "a.png")
    assert [path.name for path in image_files(tmp_path / ".cache" / "images")] == ["a.png"]


def test_a_name_is_the_path_below_without_extension(tmp_path):
    assert name_below(tmp_path / "plate3" / "a.1.png", tmp_path) == "plate3/a.1"


@pytest.mark.parametrize("make, words", [
    (lambda folder: None, "no such folder"),
    (lambda folder: folder.write_bytes(b"PK"), "is a file"),
    (lambda folder: folder.mkdir(), r"no image files \(.png, .jpg"),
    (lambda folder: touch(folder, "a.txt", ".a.png"), "no image files"),
])
def test_a_folder_without_images_is_named(tmp_path, make, words):
    make(tmp_path / "here")
    with pytest.raises(UserError, match=f"^{tmp_path / 'here'}: .*{words}"):
        image_files(tmp_path / "here")


# Pairs

PAIRS = {   # case -> (images, masks, options, pairs as "name: image mask", lone images, lone masks)
    "equal names": ("b.png a.png", "a.png b.png", {}, ["a: a.png a.png", "b: b.png b.png"], "", ""),
    "other extensions": ("a.jpg b.TIF", "a.gif b.png", {}, ["a: a.jpg a.gif", "b: b.TIF b.png"], "", ""),
    "dots in names": ("a.1.png a.2.png", "a.2.png a.1.png", {}, ["a.1: a.1.png a.1.png", "a.2: a.2.png a.2.png"],
                      "", ""),
    "several suffixes at once": ("a.png b.png c.png", "a_mask.png b_seg.png c.png", {},
                                 ["a: a.png a_mask.png", "b: b.png b_seg.png", "c: c.png c.png"], "", ""),
    "numbers that begin alike": ("1.png 11.png 111.png", "1_mask.png 11_mask.png 111_mask.png", {},
                                 ["111: 111.png 111_mask.png", "11: 11.png 11_mask.png", "1: 1.png 1_mask.png"], "",
                                 ""),
    "images that end as masks do": ("a_seg.png b_seg.png", "a_seg.png b_seg_mask.png", {},
                                    ["a_seg: a_seg.png a_seg.png", "b_seg: b_seg.png b_seg_mask.png"], "", ""),
    "a name that is a suffix": ("_mask.png", "_mask.png", {}, ["_mask: _mask.png _mask.png"], "", ""),
    "nested alike": ("p/a.png q/a.png", "p/a.png q/a_mask.png", {},
                     ["p/a: p/a.png p/a.png", "q/a: q/a.png q/a_mask.png"], "", ""),
    "nested images, flat masks": ("p/a.png q/b.png", "a.png b_mask.png", {},
                                  ["p/a: p/a.png a.png", "q/b: q/b.png b_mask.png"], "", ""),
    "flat images, nested masks": ("a.png b.png", "x/a.png y/b.png", {}, ["a: a.png x/a.png", "b: b.png y/b.png"],
                                  "", ""),
    "lone ones": ("a.png b.png", "a.png c_mask.png", {}, ["a: a.png a.png"], "b.png", "c_mask.png"),
    "case matters in names": ("a.png b.png", "a.png B.png", {}, ["a: a.png a.png"], "b.png", "B.png"),
    "a suffix of their own": ("a.png b.png", "a_lbl.png b_lbl.png", {"mask_suffix": "_lbl"},
                              ["a: a.png a_lbl.png", "b: b.png b_lbl.png"], "", ""),
    "a given suffix is demanded": ("a.png b.png", "a_t1.png a_t2.png b_t1.png b.png a_mask.png",
                                   {"mask_suffix": "_t1"}, ["a: a.png a_t1.png", "b: b.png b_t1.png"], "", ""),
    "an empty suffix is demanded too": ("a.png", "a.png a_mask.png", {"mask_suffix": ""}, ["a: a.png a.png"], "",
                                        "a_mask.png"),
    "an image's suffix": ("a_sat.jpg b_sat.jpg c.jpg", "a_mask.png b.png", {"image_suffix": "_sat"},
                          ["a_sat: a_sat.jpg a_mask.png", "b_sat: b_sat.jpg b.png"], "", ""),
    "both suffixes": ("a_img.png b_img.png", "a_lbl.png b_lbl.png", {"mask_suffix": "_lbl", "image_suffix": "_img"},
                      ["a_img: a_img.png a_lbl.png", "b_img: b_img.png b_lbl.png"], "", ""),
    "a suffix is not a name": ("_img.png a_img.png", "_lbl.png a_lbl.png",
                               {"mask_suffix": "_lbl", "image_suffix": "_img"}, ["a_img: a_img.png a_lbl.png"], "", ""),
    "nothing agrees": ("a.png", "b.png", {}, [], "a.png", "b.png"),
    "one folder": ("a.png a_mask.png p/b.jpg p/b_label.png c.png", None, {},
                   ["a: a.png a_mask.png", "p/b: p/b.jpg p/b_label.png"], "c.png", ""),
    "one folder, a suffix of their own": ("a.png a_lbl.png b.png b_lbl.png", None, {"mask_suffix": "_lbl"},
                                          ["a: a.png a_lbl.png", "b: b.png b_lbl.png"], "", ""),
    "one folder, both suffixes": ("a_img.png a_lbl.png b_img.png b_lbl.png", None,
                                  {"mask_suffix": "_lbl", "image_suffix": "_img"},
                                  ["a_img: a_img.png a_lbl.png", "b_img: b_img.png b_lbl.png"], "", ""),
}


def two_folders(tmp_path, images, masks):
    image_folder = touch(tmp_path / "images", *images.split())
    return image_folder, image_folder if masks is None else touch(tmp_path / "masks", *masks.split())


@pytest.mark.parametrize("case", PAIRS)
def test_files_are_paired_by_name(tmp_path, case):
    images, masks, options, pairs, lone_images, lone_masks = PAIRS[case]
    image_folder, mask_folder = two_folders(tmp_path, images, masks)
    found = pair_files(image_folder, mask_folder, **options)
    assert sorted(f"{p.name}: {p.image.relative_to(image_folder)} {p.mask.relative_to(mask_folder)}"
                  for p in found.pairs) == pairs
    assert [path.relative_to(image_folder).as_posix() for path in found.lone_images] == lone_images.split()
    assert [path.relative_to(mask_folder).as_posix() for path in found.lone_masks] == lone_masks.split()


@pytest.mark.parametrize("suffix", ["_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "-mask",
                                    "_MASK", "_Seg"])
def test_usual_suffixes_are_found_by_themselves(tmp_path, suffix):
    images, masks = two_folders(tmp_path, "a.jpg b.jpg", f"a{suffix}.png b{suffix}.png")
    found = pair_files(images, masks)
    assert [(p.name, p.mask.name) for p in found.pairs] == [("a", f"a{suffix}.png"), ("b", f"b{suffix}.png")]
    assert not found.lone_images and not found.lone_masks


@pytest.mark.parametrize("images, masks, options, named, words", [
    ("a.png a.jpg", "a.png", {}, "images/a.png", "a.jpg"),
    ("a.png", "a.png a.bmp", {}, "masks/a.png", "a.bmp"),
    ("a.png", "a.png a_mask.png", {}, "masks/a_mask.png", "a.png.*--mask-suffix"),
    ("p/a.png q/a.png", "a.png", {}, "images/q/a.png", "p/a.png in different folders"),
    ("a.png b.png", "p/a.png q/a.png", {}, "masks/q/a.png", "p/a.png in different folders"),
    ("a_mask.png b_mask.png", "a.png b.png", {}, "images", "exchanged: a_mask.png .* a.png in .*masks$"),
    ("a.png b.png", None, {}, "images", "in one folder.*--mask-suffix"),
    ("a_img.png", None, {"mask_suffix": "_lbl"}, "images", "in one folder.* _lbl"),
])
def test_names_that_cannot_be_paired_are_told(tmp_path, images, masks, options, named, words):
    folders = two_folders(tmp_path, images, masks)
    with pytest.raises(UserError, match=f"^{tmp_path / named}: .*{words}"):
        pair_files(*folders, **options)


def test_names_that_are_equal_do_not_look_exchanged(tmp_path):
    # the suffix fits none of the images, but the folders are in order
    folders = two_folders(tmp_path, "a.png b.png", "a.png b.png")
    with pytest.raises(UserError, match=f"^{folders[0]}: no file's name ends in _sat .the first is a.png"):
        pair_files(*folders, image_suffix="_sat")


# Images


def luma(rgb):
    return rgb @ np.array([0.299, 0.587, 0.114])        # ITU-R BT.601


BITS = GREY > 127
DEEP = GREY.astype(np.uint16) * 211
FEW = np.array([[255, 0, 0], [10, 20, 30], [0, 0, 0], [7, 7, 7], [255, 255, 255]], np.uint8)
MODES = {
    "1": (Image.fromarray(BITS), BITS, 1, np.uint8),
    "L": (Image.fromarray(GREY), GREY / 255, 1, np.uint8),
    "LA": (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(255 - GREY)]), GREY / 255, 1, np.uint8),
    "I;16": (Image.fromarray(DEEP), DEEP / 65535, 1, np.uint16),
    "P": (palette(IDS, FEW), FEW[IDS] / 255, 3, np.uint8),
    "RGB": (Image.fromarray(COLOURS), COLOURS / 255, 3, np.uint8),
    "RGBA": (Image.fromarray(np.dstack([COLOURS, 255 - GREY])), COLOURS / 255, 3, np.uint8),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_of_any_mode_is_read_as_it_looks(tmp_path, mode):
    picture, expected, channels, depth = MODES[mode]
    assert picture.mode == mode
    path = save(tmp_path / "a.png", picture)
    image = read_image(path, channels)
    assert image.shape == (H, W, channels) and image.dtype == depth
    np.testing.assert_allclose(unit(image).squeeze(), expected, atol=1e-6)
    if mode != "I;16":
        grey, colour = unit(read_image(path, 1)), unit(read_image(path, 3))
        np.testing.assert_allclose(grey[..., 0], luma(colour), atol=0.51 / 255)
        np.testing.assert_allclose(colour, expected if channels == 3 else np.dstack([expected] * 3), atol=1e-6)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_keeps_its_16_bits(tmp_path, name):
    deep = np.array([[0, 1, 255, 256], [257, 32768, 65534, 65535]], np.uint16)
    path = save(tmp_path / name, deep)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], deep)
    np.testing.assert_array_equal(read_image(path, 3), np.dstack([deep] * 3))
    assert open_picture(path).notes == ()


def test_bytes_of_16_bits_are_read_in_either_order(tmp_path):
    deep = np.array([[1, 256, 770]], np.uint16)
    path = save(tmp_path / "a.tif", Image.frombytes("I;16B", (3, 1), deep.astype(">u2").tobytes()))
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], deep)


def test_16_bit_colour_becomes_8_bits_and_is_noted(tmp_path):
    deep = np.array([[[0, 257, 65535], [256 * 7, 256 * 200, 256 * 99]]], np.uint16)
    path = save_png_16(tmp_path / "a.png", deep)
    image = read_image(path, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, deep >> 8)
    [note] = open_picture(path).notes
    assert "16 bits" in note and "reduced to 8" in note


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_only_the_first_of_several_frames_is_read_and_that_is_noted(tmp_path, name):
    frames = [Image.fromarray(np.full((H, W), v, np.uint8)) for v in (0, 255, 128)]
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    assert read_image(path, 1).max() == 0
    [note] = open_picture(path).notes
    assert "3 pictures" in note and "first" in note


def test_an_ordinary_file_has_no_notes(tmp_path):
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp", "a.gif"):
        assert open_picture(save(tmp_path / name, COLOURS)).notes == ()


def test_unit_is_by_the_depth():
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        image = np.array([[[0], [1], [top - 1], [top]]], dtype)
        assert unit(image).dtype == np.float32
        np.testing.assert_allclose(unit(image).ravel(), [0, 1 / top, 1 - 1 / top, 1], rtol=1e-6)
    floats = np.array([[[0.25]]], np.float32)
    assert unit(floats) == floats and unit(floats.astype(np.float64)).dtype == np.float32


def test_a_cmyk_jpeg_is_read_as_colour(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (W, H), (0, 255, 255, 0)))         # red
    np.testing.assert_allclose(unit(read_image(path, 3)).mean((0, 1)), [1, 0, 0], atol=0.05)


@pytest.mark.parametrize("transparency", [0, bytes(range(200, 205))])
def test_transparent_palette_entries_have_their_colour(tmp_path, transparency):
    path = save(tmp_path / "a.png", palette(IDS, FEW), transparency=transparency)
    np.testing.assert_array_equal(read_image(path, 3), FEW[IDS])


UPRIGHT = {     # EXIF orientation -> what the camera stores of an upright picture
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90,
    7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_jpeg_is_turned_upright(tmp_path, orientation):
    upright = np.add.outer(np.arange(24) * 6, np.arange(32) * 3).astype(np.uint8)       # no symmetry, little noise
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(UPRIGHT[orientation](upright)), exif=exif, quality=95)
    for array in (read_image(path, 1)[..., 0], read_mask(path)[0].values):
        assert array.shape == (24, 32)
        np.testing.assert_allclose(array / 255, upright / 255, atol=0.03)


def test_channels_are_repeated_or_weighed():
    np.testing.assert_array_equal(with_channels(GREY[..., None], 3), np.dstack([GREY] * 3))
    np.testing.assert_allclose(with_channels(COLOURS, 1)[..., 0], luma(COLOURS), atol=0.51)
    np.testing.assert_array_equal(with_channels(COLOURS, 3), COLOURS)


def broken(path):
    """A file of random noise that ends in its middle, so that no decoder can make up the rest."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = save(path, noise).read_bytes()
    path.write_bytes(data[:len(data) // 2])


def broken_second_frame(path):
    """A TIFF whose second picture has lost its width."""
    pictures = [Image.fromarray(GREY) for _ in range(2)]
    data = save(path, pictures[0], save_all=True, append_images=pictures[1:]).read_bytes()
    width = data.rindex(b"\x00\x01\x04\x00\x01\x00")         # the tag 256, of type 4, once
    path.write_bytes(data[:width] + b"\xf0\xff" + data[width + 2:])


UNREADABLE = {
    "none.png": (lambda path: None, "No such file"),
    "text.png": (lambda path: path.write_text("hello"), "not an image, or is damaged"),
    "empty.png": (lambda path: path.write_bytes(b""), "not an image, or is damaged"),
    "half.png": (broken, "damaged"),
    "half.jpg": (broken, "damaged"),
    "half.tif": (broken, "damaged"),
    "half.bmp": (broken, "damaged"),
    "half.gif": (broken, "damaged"),
    "frames.tif": (broken_second_frame, "damaged"),
    "folder.png": (lambda path: path.mkdir(), "directory"),
    "link.png": (lambda path: path.symlink_to("z.png"), "No such file"),
}
NO_RANGE = {
    "ints.tif": (lambda path: save(path, GREY.astype(np.int32)), "mode I .*8 or 16 bits"),
    "floats.tif": (lambda path: save(path, GREY.astype(np.float32)), "mode F .*8 or 16 bits"),
    "lab.tif": (lambda path: save(path, Image.new("LAB", (W, H))), "mode LAB .*RGB"),
}


@pytest.mark.parametrize("name", [*UNREADABLE, *NO_RANGE])
def test_read_image_says_what_is_wrong_with_which_file(tmp_path, name):
    make, words = (UNREADABLE | NO_RANGE)[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"^{tmp_path / name}: .*{words}") as error:
        read_image(tmp_path / name, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", UNREADABLE)
def test_read_mask_says_what_is_wrong_with_which_file(tmp_path, name):
    make, words = UNREADABLE[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"^{tmp_path / name}: .*{words}.*replace the file or take it away$"):
        read_mask(tmp_path / name)


def test_a_picture_with_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(UserError, match=f"^{tmp_path / 'a.png'}: .*more pixels"):
        read_image(save(tmp_path / "a.png", GREY), 1)


# Resizing


def test_an_image_of_the_size_is_not_changed():
    image = unit(COLOURS)
    np.testing.assert_array_equal(resize_image(image, (H, W)), image)


@pytest.mark.parametrize("size", [(12, 9), (3, 20), (5, 5), (1, 1)])
def test_resizing_keeps_channels_apart_and_a_constant_constant(size):
    image = np.broadcast_to(np.float32([0, 0.25, 1]), (8, 6, 3))
    resized = resize_image(image, size)
    assert resized.shape == (*size, 3) and resized.dtype == np.float32
    np.testing.assert_allclose(resized, np.broadcast_to(image[:1, :1], resized.shape), atol=1e-6)


def test_enlarging_is_bilinear():
    """A ramp stays a ramp between the first and the last pixel's middles; beyond them it is level."""
    ramp = np.repeat(np.arange(4, dtype=np.float32)[:, None, None], 2, axis=1)
    resized = resize_image(ramp, (16, 2))
    expected = ((np.arange(16) + 0.5) / 4 - 0.5).clip(0, 3)
    np.testing.assert_allclose(resized[..., 0], np.repeat(expected[:, None], 2, axis=1), atol=1e-6)


def test_shrinking_averages():
    checks = (np.indices((16, 16)).sum(0) % 2).astype(np.float32)[..., None]
    np.testing.assert_allclose(resize_image(checks, (4, 4))[1:-1, 1:-1], 0.5, atol=0.02)


def test_a_mask_is_resized_to_the_nearest_pixel():
    np.testing.assert_array_equal(resize_mask(IDS, (2 * H, 3 * W)), IDS.repeat(2, axis=0).repeat(3, axis=1))
    shrunken = resize_mask(np.where(CLASS, 255, 3).astype(np.uint8), (4, 5))
    assert shrunken.shape == (4, 5) and shrunken.dtype == np.uint8 and set(shrunken.flat) == {3, 255}


# Masks

MASKS = {       # what was saved -> (file, picture, the values)
    "grey": ("a.png", Image.fromarray(IDS), IDS),
    "bits": ("a.png", Image.fromarray(CLASS > 0), CLASS),
    "palette PNG": ("a.png", palette(IDS, FEW), IDS),
    "palette GIF": ("a.gif", palette(CLASS, [(200, 30, 20), (20, 200, 20)]), CLASS),
    "grey as RGB": ("a.png", Image.fromarray(np.dstack([IDS] * 3)), IDS),
    "grey as RGBA": ("a.png", Image.fromarray(np.dstack([IDS] * 3 + [IDS * 50])), IDS),
    "grey with alpha": ("a.png", Image.merge("LA", [Image.fromarray(IDS), Image.fromarray(IDS * 50)]), IDS),
    "16 bits": ("a.tif", Image.fromarray(DEEP), DEEP),
    "16 bits PNG": ("a.png", Image.fromarray(DEEP), DEEP),
    "32 bits": ("a.tif", Image.fromarray(IDS.astype(np.int32) * 10**6), IDS.astype(int) * 10**6),
    "floats": ("a.tif", Image.fromarray(IDS.astype(np.float32)), IDS),
    "bitmap": ("a.bmp", Image.fromarray(IDS), IDS),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_read_as_the_values_in_the_file(tmp_path, kind):
    name, picture, expected = MASKS[kind]
    mask, _ = read_mask(save(tmp_path / name, picture))
    np.testing.assert_array_equal(mask.values, expected)
    assert mask.values.dtype.kind in "ui" and not mask.colour and not mask.lossy


def test_a_mask_in_colours_is_packed(tmp_path):
    path = save(tmp_path / "a.png", FEW[IDS])
    mask, _ = read_mask(path)
    red, green, blue = FEW[IDS].astype(int).transpose(2, 0, 1)
    assert mask.colour and not mask.lossy
    np.testing.assert_array_equal(mask.values, red * 65536 + green * 256 + blue)
    np.testing.assert_array_equal(unpack(mask.values), FEW[IDS])
    np.testing.assert_array_equal(unpack(pack(COLOURS)), COLOURS)


@pytest.mark.parametrize("kind", ["palette", "grey", "RGBA"])
def test_a_mask_is_read_as_colours_if_asked_for(tmp_path, kind):
    picture = {"palette": palette(IDS, FEW), "grey": Image.fromarray(IDS),
               "RGBA": Image.fromarray(np.dstack([FEW[IDS], GREY]))}[kind]
    mask, _ = read_mask(save(tmp_path / "a.png", picture), as_colours=True)
    assert mask.colour
    np.testing.assert_array_equal(unpack(mask.values), np.dstack([IDS] * 3) if kind == "grey" else FEW[IDS])


@pytest.mark.parametrize("channel, index", [("red", 0), ("green", 1), ("blue", 2), ("alpha", 3)])
def test_one_channel_holds_the_values(tmp_path, channel, index):
    rgba = np.dstack([COLOURS, 255 - GREY])
    mask, _ = read_mask(save(tmp_path / "a.png", rgba), channel)
    np.testing.assert_array_equal(mask.values, rgba[..., index])
    assert not mask.colour


def test_a_channel_of_a_palette_is_that_of_its_colours(tmp_path):
    mask, _ = read_mask(save(tmp_path / "a.png", palette(IDS, FEW)), "green")
    np.testing.assert_array_equal(mask.values, FEW[IDS][..., 1])


@pytest.mark.parametrize("name, picture, options, words", [
    ("a.png", Image.fromarray(GREY), {"channel": "red"}, "no channel red .mode L"),
    ("a.png", Image.fromarray(COLOURS), {"channel": "alpha"}, "no channel alpha .mode RGB"),
    ("a.tif", Image.fromarray(CLASS / np.float32(2)), {}, "whole numbers"),
    ("a.tif", Image.fromarray(np.full((H, W), np.nan, np.float32)), {}, "whole numbers"),
    ("a.tif", Image.fromarray(np.full((H, W), np.inf, np.float32)), {}, "whole numbers"),
    ("a.tif", Image.fromarray(-CLASS.astype(np.int32)), {}, "negative"),
    ("a.tif", Image.fromarray(CLASS.astype(np.float32)), {"as_colours": True}, "no colours .mode F"),
])
def test_a_mask_without_values_is_refused(tmp_path, name, picture, options, words):
    path = save(tmp_path / name, picture)
    with pytest.raises(UserError, match=f"^{path}: .*{words}"):
        read_mask(path, **options)


def test_a_jpeg_is_lossy(tmp_path):
    assert read_mask(save(tmp_path / "a.jpg", CLASS * 255))[0].lossy
    assert read_mask(save(tmp_path / "a.JPEG", COLOURS))[0].lossy
