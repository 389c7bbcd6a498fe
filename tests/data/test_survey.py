"""Every fault that folders of images and masks can have, what is said of it, and that the advice helps."""

import argparse
import re
import shlex
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from minunet.cli.tables import RAMP, grid, report
from minunet.cli.values import add_mask_options, mask_options
from minunet.data import IGNORE, MaskOptions, survey
from minunet.errors import UserError
from tests.data.test_files import CLASS, GREY, IDS, H, W, palette, save, save_png_16

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
STEMS = "abcd"
BIG = (30, 40, 3)           # enough pixels for all the values of a photograph


def photograph(seed, shape=(H, W, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def sound(tmp_path, masks=None, stems=STEMS):
    """Folders of pairs in which nothing is wrong; masks are arrays or pictures, of a class by default."""
    images_at, masks_at = tmp_path / "images", tmp_path / "masks"
    for i, stem in enumerate(stems):
        save(images_at / f"{stem}.png", photograph(i))
        save(masks_at / f"{stem}.png", CLASS * np.uint8(255) if masks is None else masks[i])
    return images_at, masks_at


def options_of(text):
    """The options that the command line makes of a text."""
    parser = argparse.ArgumentParser()
    add_mask_options(parser)
    return mask_options(parser.parse_args(shlex.split(text)))


def fatal(found):
    return [problem.text for problem in found.problems if problem.fatal]


def notes(found):
    return [problem.text for problem in found.problems if not problem.fatal]


def test_nothing_is_wrong_with_sound_folders(tmp_path):
    images, masks = sound(tmp_path)
    found = survey(images, masks)
    assert found.problems == [] and [pair.name for pair, _, _ in found.pairs] == list(STEMS)
    assert found.channels == 3 and found.code.classes == 1
    found.stop()


def move(path, target):
    target.parent.mkdir(exist_ok=True)
    path.rename(target)


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])


def remove_all(folder):
    for path in folder.iterdir():
        path.unlink()


FATAL = {       # what the user did -> (how it is done, the file or folder, further words)
    "no image folder": (lambda i, m: move(i, i.parent / "pictures"), "images", "no such folder"),
    "no mask folder": (lambda i, m: move(m, m.parent / "labels"), "masks", "no such folder"),
    "an archive instead of a folder": (lambda i, m: (move(i, i.parent / "x"), i.write_bytes(b"PK")), "images",
                                       "is a file"),
    "an empty image folder": (lambda i, m: remove_all(i), "images", r"no image files \(.png"),
    "only text": (lambda i, m: (remove_all(m), (m / "a.txt").write_text("x")), "masks", "no image files"),
    "an image without mask": (lambda i, m: (m / "b.png").unlink(), "images/b.png",
                              "no mask of the same name in .*/masks; add it, or take the image away$"),
    "a mask without image": (lambda i, m: (i / "c.png").unlink(), "masks/c.png",
                             "no image of the same name in .*/images; add it, or take the mask away$"),
    "a name in another case": (lambda i, m: move(m / "b.png", m / "B.png"), "images/b.png", "no mask"),
    "two images of a name": (lambda i, m: save(i / "b.jpg", GREY), "images/b.png", "b.jpg"),
    "two masks of a name": (lambda i, m: save(m / "b.bmp", CLASS), "masks/b.png", "b.bmp.*--mask-suffix"),
    "a mask of another size": (lambda i, m: save(m / "b.png", CLASS[:, :-1]), "masks/b.png",
                               r"6x8 px, its image .*/images/b.png has 6x9 px \(height x width\); they must be equal$"),
    "a mask on its side": (lambda i, m: save(m / "b.png", CLASS.T), "masks/b.png",
                           "9x6 px.*b.png has 6x9 px .*equal; one of them lies on its side$"),
    "text as image": (lambda i, m: (i / "b.png").write_text("hello"), "images/b.png", "not an image, or is damaged"),
    "text as mask": (lambda i, m: (m / "b.png").write_text("hello"), "masks/b.png", "not an image, or is damaged"),
    "no bytes": (lambda i, m: (i / "b.png").write_bytes(b""), "images/b.png", "damaged.*replace the file"),
    "half an image": (lambda i, m: cut(i / "c.png"), "images/c.png", "damaged.*replace the file"),
    "half a mask": (lambda i, m: cut(m / "c.png"), "masks/c.png", "damaged.*replace the file"),
    "a folder named as an image": (lambda i, m: ((i / "b.png").unlink(), (i / "b.png").mkdir()), "images/b.png",
                                   "cannot be read"),
    "a 32-bit image": (lambda i, m: (save(i / "b.tif", GREY.astype(np.int32)), (i / "b.png").unlink()),
                       "images/b.tif", "mode I .*8 or 16 bits"),
    "fractions in a mask": (lambda i, m: (save(m / "b.tif", CLASS / np.float32(2)), (m / "b.png").unlink()),
                            "masks/b.tif", "whole numbers"),
    "every mask is background": (lambda i, m: [save(m / f"{s}.png", CLASS * 0) for s in STEMS], "masks",
                                 r"no mask holds anything but background .*\(values 0\), so there is nothing to learn"),
    "exchanged by name": (lambda i, m: [move(i / f"{s}.png", i / f"{s}_mask.png") for s in STEMS], "images",
                          "exchanged: a_mask.png here .* mask of a.png in .*/masks$"),
    "exchanged by looks": (lambda i, m: [(save(i / f"{s}.png", CLASS * 255), save(m / f"{s}.png", photograph(0, BIG)))
                                         for s in STEMS], "images", "exchanged.*few values.*/masks as many"),
    "exchanged grey ones": (lambda i, m: [(save(i / f"{s}.png", IDS), save(m / f"{s}.png", photograph(1, BIG[:2])))
                                          for s in STEMS], "images", "exchanged"),
    "a photograph among the masks": (lambda i, m: save(m / "b.png", photograph(8, BIG[:2])), "masks/b.png",
                                     "is the only mask with the values .*the others hold 0, 255; mend it"),
    "a grey mask of 0 and 128": (lambda i, m: save(m / "b.png", CLASS * 128), "masks/b.png",
                                 "is the only mask with the value 128 .*the others hold 0, 255"),
}


@pytest.mark.parametrize("fault", FATAL)
def test_a_fault_is_told_in_a_sentence_with_the_file(tmp_path, fault):
    plant, name, words = FATAL[fault]
    images, masks = sound(tmp_path)
    plant(images, masks)
    found = survey(images, masks)
    told = [text for text in fatal(found) if re.search(f"^{tmp_path}/{name}.*: .*{words}", text)]
    assert told, fatal(found)
    assert all("\n" not in problem.text for problem in found.problems)
    assert told[0] in report(found)
    with pytest.raises(UserError, match=f"^{re.escape(fatal(found)[0])}"):
        found.stop()


def test_a_fault_leaves_the_other_pairs_sound(tmp_path):
    images, masks = sound(tmp_path)
    cut(images / "a.png")
    save(masks / "c.png", CLASS[:, 1:] * np.uint8(255))
    (masks / "d.png").unlink()
    found = survey(images, masks)
    assert [pair.name for pair, _, _ in found.pairs] == ["b"] and len(fatal(found)) == 3
    with pytest.raises(UserError, match=r"d.png: .* \(2 more: minunet inspect lists them\)$"):
        found.stop()


def test_both_files_of_a_pair_are_looked_at(tmp_path):
    images, masks = sound(tmp_path)
    cut(images / "b.png")
    cut(masks / "b.png")
    assert [text.split(":")[0] for text in fatal(survey(images, masks))] == [f"{images}/b.png", f"{masks}/b.png"]


def test_survey_tells_how_far_it_is(tmp_path):
    images, masks = sound(tmp_path)
    seen = []
    survey(images, masks, on_read=lambda done, count: seen.append((done, count)))
    assert sorted(seen) == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Oddities, which do not stop training

ODD = {         # what is odd -> (how it is done, the file, further words)
    "an empty mask": (lambda i, m: save(m / "b.png", CLASS * 0), "masks/b.png", "holds nothing but background.*draw"),
    "the same picture twice": (lambda i, m: save(i / "c.png", photograph(0)), "images/c.png",
                               "same picture as .*/images/a.png; remove one"),
    "the same pixels in another format": (lambda i, m: (save(i / "c.bmp", photograph(0)), (i / "c.png").unlink()),
                                          "images/c.bmp", "same picture as .*/images/a.png"),
    "several frames": (lambda i, m: (save(i / "b.tif", Image.fromarray(photograph(7)), save_all=True,
                                          append_images=[Image.fromarray(photograph(9))]), (i / "b.png").unlink()),
                       "images/b.tif", "holds 2 pictures, of which only the first is read; save each"),
    "several frames in a mask": (lambda i, m: (save(m / "b.tif", Image.fromarray(CLASS * 255), save_all=True,
                                                    append_images=[Image.fromarray(GREY)]), (m / "b.png").unlink()),
                                 "masks/b.tif", "holds 2 pictures"),
    "colour of 16 bits": (lambda i, m: save_png_16(i / "b.png", photograph(5).astype(np.uint16) * 257), "images/b.png",
                          "16 bits, which are reduced to 8"),
}


@pytest.mark.parametrize("oddity", ODD)
def test_an_oddity_is_noted_and_stops_nothing(tmp_path, oddity):
    plant, name, words = ODD[oddity]
    images, masks = sound(tmp_path)
    plant(images, masks)
    found = survey(images, masks)
    found.stop()
    assert fatal(found) == [] and len(found.pairs) == 4
    [note] = notes(found)
    assert re.search(f"^{tmp_path}/{name}: .*{words}", note)
    assert note in report(found) and "worth a look" in report(found)


def test_pictures_of_different_shape_are_not_the_same(tmp_path):
    images, masks = sound(tmp_path)
    for stem, shape in (("a", (4, 9, 3)), ("b", (6, 6, 3)), ("c", (6, 18))):           # as many bytes, all black
        save(images / f"{stem}.png", np.zeros(shape, np.uint8))
        save(masks / f"{stem}.png", np.resize(CLASS * 255, shape[:2]).astype(np.uint8))
    found = survey(images, masks)
    assert found.problems == []


@pytest.mark.parametrize("values, lone", [
    ([[0, 1], [0, 1], [0, 2], [0, 1]], [("c", r"class 2 \(27 px\)")]),
    ([[0, 1, 3], [0, 2], [1, 2], [1, 0]], [("a", r"class 3 \(18 px\)")]),
    ([[0, 5, 6], [0, 1, 2], [1, 2], [1, 0]], [("a", r"class 5 \(18 px\), 6 \(18 px\)")]),
    ([[0, 1], [0, 2, 1], [2, 1], [0, 2]], []),
])
def test_a_value_in_one_mask_only_is_noted(tmp_path, values, lone):
    images, masks = sound(tmp_path, [np.resize(np.uint8(v), (H, W)) for v in values])
    found = survey(images, masks)
    told = [text for text in notes(found) if "only mask" in text]
    assert len(told) == len(lone)
    for text, (stem, words) in zip(told, lone):
        assert re.search(f"^{masks}/{stem}.png: is the only mask with {words}", text)
    found.stop()


def test_an_ignored_value_may_be_in_one_mask_only(tmp_path):
    values = [[0, 1, 2], [1, 2, 0], [0, 1, 2], [0, 1, 2, 255]]
    images, masks = sound(tmp_path, [np.resize(np.uint8(v), (H, W)) for v in values])
    assert survey(images, masks, MaskOptions(ignore=(255,))).problems == []


def test_what_is_ignored_is_nothing_to_learn(tmp_path):
    values = [[0, 255], [0, 1], [0, 1, 255], [0, 1]]
    images, masks = sound(tmp_path, [np.resize(np.uint8(v), (H, W)) for v in values])
    [note] = notes(survey(images, masks, MaskOptions(ignore=(255,))))
    assert note.startswith(f"{masks}/a.png: holds nothing but background")


def test_an_id_that_no_mask_holds_is_noted(tmp_path):
    images, masks = sound(tmp_path, [np.resize(np.uint8([1, 2, 4]), (H, W))] * 4)
    found = survey(images, masks)
    [note] = notes(found)
    assert note.startswith(f"{masks}: no mask holds class 0, 3; ")


def test_what_snapping_does_is_noted(tmp_path):
    images, masks = sound(tmp_path, stems="ab")
    big = np.zeros((40, 52), np.uint8)
    big[9:30, 11:41] = 255
    for stem in "ab":
        save(images / f"{stem}.png", photograph(ord(stem), (40, 52, 3)))
        (masks / f"{stem}.png").unlink()
        save(masks / f"{stem}.jpg", big, quality=40)
    found = survey(images, masks)
    assert fatal(found) == [] and found.code.classes == 1
    [note] = notes(found)
    assert note.startswith(f"{masks}: values between 0 and 255") and "nearer" in note


def test_masks_are_looked_at_as_those_of_a_trained_net(tmp_path):
    images, masks = sound(tmp_path, [IDS] * 4)
    assert survey(images, masks, classes=5).code.classes == 5
    assert survey(images, masks, classes=7).code.classes == 7
    for classes, words in ((1, "a background and one class"), (3, "class ids 0 to 2")):
        [text] = fatal(survey(images, masks, classes=classes))
        assert text.startswith(f"{masks}/a.png: ") and text.endswith(f"the net knows {words}")


# Advice


def coloured(*colours):
    return np.array(colours, np.uint8)[IDS % len(colours)]


def in_channel(index):
    return np.where(np.arange(3) == index, IDS[..., None], 0).astype(np.uint8)


MANY = np.arange(H * W).reshape(H, W)       # one object a pixel
ADVICE = {      # masks -> (all of them, the option that is advised, classes with it, the ids then)
    "colours": (coloured((0, 0, 0), RED, GREEN), "--mask-colors '#000000,#00ff00,#ff0000'", 3,
                np.array([0, 2, 1])[IDS % 3]),
    "colours in a palette": (palette(IDS, [RED] * 5).convert("RGB"), None, 1, IDS * 0 + 1),
    "two colours": (coloured(RED, BLUE), "--mask-colors '#0000ff,#ff0000'", 1, np.array([1, 0])[IDS % 2]),
    "ids in red": (in_channel(0), "--mask-channel red", 5, IDS),
    "ids in green": (in_channel(1), "--mask-channel green", 5, IDS),
    "ids in blue": (in_channel(2), "--mask-channel blue", 5, IDS),
    "ids and 255": (np.where(IDS == 4, 255, IDS).astype(np.uint8), "--ignore 255", 4, np.where(IDS == 4, IGNORE, IDS)),
    "ids and 100": (np.where(IDS == 4, 100, IDS).astype(np.uint8), "--ignore 100", 4, np.where(IDS == 4, IGNORE, IDS)),
    "0, 1 and 255": (np.array([0, 1, 255], np.uint8)[IDS % 3], "--ignore 255", 1, np.array([0, 1, IGNORE])[IDS % 3]),
    "objects": (np.where(CLASS, MANY + 100, 0).astype(np.uint16), "--instances", 1, CLASS),
    "objects in colours": (np.where(CLASS[..., None], photograph(3), 0).astype(np.uint8), None, None, None),
}


@pytest.mark.parametrize("kind", [kind for kind in ADVICE if ADVICE[kind][1]])
def test_advice_helps(tmp_path, kind):
    mask, option, classes, ids = ADVICE[kind]
    images, masks = sound(tmp_path, [mask] * 4)
    [text] = fatal(survey(images, masks))
    assert text.startswith(f"{masks}/a.png: ") and text.endswith(option)
    options = options_of(option)
    found = survey(images, masks, options)
    assert fatal(found) == [] and found.code.classes == classes and len(found.pairs) == 4
    held = np.unique(ids)
    assert set(np.concatenate([found.code.read(m.values) for _, _, m in found.pairs]).tolist()) == set(held.tolist())


@pytest.mark.parametrize("stems, suffix", [
    (STEMS, "_lbl"), (STEMS, ".ome"), (("1", "2", "10", "11"), "_lbl"), (("img", "img2", "img3", "img33"), "-annot"),
])
def test_an_unknown_suffix_of_the_masks_is_advised(tmp_path, stems, suffix):
    images, masks = sound(tmp_path, stems=stems)
    for stem in stems:
        move(masks / f"{stem}.png", masks / f"{stem}{suffix}.png")
    texts = [text for text in fatal(survey(images, masks)) if text.startswith(f"{images}/")]
    assert len(texts) == 4
    for stem, text in zip(sorted(stems), sorted(texts)):
        assert text.startswith(f"{images}/{stem}.png: has no mask of the same name in {masks}; ")
        assert text.endswith(f"if {stem}{suffix} is its mask, add --mask-suffix {suffix}")
    found = survey(images, masks, options_of(f"--mask-suffix={suffix}"))
    assert found.problems == [] and len(found.pairs) == 4


def test_class_names_allow_more_ids(tmp_path):
    images, masks = sound(tmp_path, [(IDS * 25).astype(np.uint8)] * 4)          # up to 100
    [text] = fatal(survey(images, masks))
    assert "0, 25, 50, 75, 100" in text
    (tmp_path / "names.txt").write_text("".join(f"n{i}\n" for i in range(101)))
    assert survey(images, masks, options_of(f"--class-names {tmp_path}/names.txt")).code.classes == 101


def test_advice_with_many_colours_helps(tmp_path):
    colours = [(5 * k, 255 - k, k) for k in range(40)]
    images, masks = sound(tmp_path, [np.resize(np.uint8(colours), (H, W, 3))] * 4)
    [text] = fatal(survey(images, masks))
    assert survey(images, masks, options_of(text[text.index("--mask-colors"):])).code.classes == 40


def test_jpeg_masks_of_other_values_are_read_by_mask_colors(tmp_path):
    big = np.zeros((48, 48), np.uint8)
    big[13:31, 18:39] = 128
    images, masks = tmp_path / "images", tmp_path / "masks"
    for stem in STEMS:
        save(images / f"{stem}.png", photograph(ord(stem), (48, 48)))
        save(masks / f"{stem}.jpg", Image.fromarray(big), quality=30)
    [text] = fatal(survey(images, masks))
    assert text.startswith(f"{masks}/a.jpg: is a JPEG") and "--mask-colors" in text
    found = survey(images, masks, options_of("--mask-colors '#000000,#808080'"))
    assert fatal(found) == [] and found.code.classes == 1 and any("nearest" in note for note in notes(found))


def test_a_suffix_that_no_mask_has_is_said(tmp_path):
    images, masks = sound(tmp_path)
    found = survey(images, masks, MaskOptions(mask_suffix="_lbl"))
    assert any("_lbl" in text for text in fatal(found)), fatal(found)


# The page for a person


def test_a_report_of_sound_folders(tmp_path):
    images, masks = sound(tmp_path)
    save(images / "b.png", Image.fromarray(photograph(5)).convert("RGBA"))
    save(masks / "c.png", CLASS * 0)
    lines = report(survey(images, masks)).splitlines()
    assert lines[0] == f"4 sound pairs of image and mask in {images} and {masks}"
    assert "images  3 RGB, 1 RGBA (Pillow's modes), read as colour" in lines
    assert "sizes   4 6x9 px (height x width); 0 MiB decoded" in lines
    assert "masks   4 grey or ids" in lines
    held = 3 * CLASS.sum() / (4 * H * W)
    rows = {line.split()[0]: line.split()[1:] for line in lines if "%" in line}
    assert rows == {"0": [f"{1 - held:.3%}", "4", "background"], "255": [f"{held:.3%}", "3", "class"]}
    assert "read as one class: 0 is the background, 255 is the class" in lines
    assert lines[-1] == "nothing in the way of training"


def test_a_report_names_classes_and_what_is_ignored(tmp_path):
    images, masks = sound(tmp_path, [np.resize(np.uint8([0, 1, 2, 255]), (H, W))] * 4)
    text = report(survey(images, masks, MaskOptions(ignore=(255,), class_names=("sky", "road", "car"))))
    rows = [line.split() for line in text.splitlines() if "%" in line]
    assert [(row[0], row[2], " ".join(row[3:])) for row in rows] == [
        ("0", "4", "0 sky"), ("1", "4", "1 road"), ("2", "4", "2 car"), ("255", "4", "ignored")]
    assert sum(float(row[1].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.01)
    assert "read as 3 classes: class ids 0 to 2, 255 is ignored" in text


def test_a_report_of_colours_shows_them(tmp_path):
    images, masks = sound(tmp_path, [coloured((0, 0, 0), RED, GREEN)] * 3 + [CLASS * np.uint8(0)])
    text = report(survey(images, masks))
    assert "masks   3 colour, 1 grey or ids" in text and "read as one" not in text
    assert [line.split()[0] for line in text.splitlines() if "%" in line] == ["#000000", "#00ff00", "#ff0000"]
    assert "nothing in the way" not in text and "wrong, to be mended before training:" in text
    text = report(survey(images, masks, MaskOptions(colors=(0, 0xFF00, 0xFF0000))))
    assert [line.split()[0::3] for line in text.splitlines() if "%" in line] == [
        ["#000000", "0"], ["#00ff00", "1"], ["#ff0000", "2"]]


def test_a_report_counts_faults_of_a_kind(tmp_path):
    images, masks = sound(tmp_path, stems=[f"{i:02}" for i in range(14)])
    for i in range(13):
        (masks / f"{i:02}.png").unlink()
    text = report(survey(images, masks))
    assert text.count("has no mask") == 10 and "... and 3 more of this kind" in text


def test_a_report_lists_the_frequent_values_of_many(tmp_path):
    images, masks = sound(tmp_path, [MANY.astype(np.uint8)] * 4)
    text = report(survey(images, masks))
    assert len([line for line in text.splitlines() if "%" in line]) == 24 and "and 30 rarer values" in text


def test_a_report_of_nothing(tmp_path):
    text = report(survey(tmp_path / "images", tmp_path / "masks"))
    assert text.startswith("0 sound pairs") and f"{tmp_path}/images: there is no such folder" in text


def test_bytes_are_those_of_the_decoded_arrays(tmp_path):
    images, masks = sound(tmp_path)
    save(images / "b.png", GREY)
    assert survey(images, masks).nbytes == 4 * H * W * (3 + 1)
    for stem in STEMS:
        save(images / f"{stem}.png", photograph(ord(stem), (H, W)).astype(np.uint16))
    assert survey(images, masks).nbytes == 4 * H * W * (2 + 1) and survey(images, masks).channels == 1


# Class ids over an image


def test_a_grid_shows_brightness_ids_and_what_is_ignored():
    image = np.linspace(0, 1, 10)[None].repeat(2, 0)[..., None]
    ids = np.zeros((2, 10), np.uint8)
    assert grid(image, ids) == " .:-=+*#%@"
    ids[:] = [0, 1, 2, 9, 10, 35, 36, 61, IGNORE, 0]
    assert grid(image, ids) == " 129azAZ?@"


def test_a_grid_spreads_the_brightness_that_there_is():
    assert grid(np.float32([[0.4, 0.5, 0.6]])[..., None], np.zeros((1, 3), int)) == " =@" or RAMP[4] != "="
    assert grid(np.full((2, 3, 1), 0.7, np.float32), np.zeros((2, 3), int)) == "   "
    first, last = grid(np.float32([[[1, 0, 0.5], [0, 0.1, 0]]]), np.zeros((1, 2), int))   # channels are averaged
    assert (first, last) == ("@", " ")


@pytest.mark.parametrize("size, columns, expected", [
    ((40, 30), 78, (20, 30)), ((100, 156), 78, (25, 78)), ((64, 64), 16, (8, 16)), ((1, 9), 78, (1, 9)),
])
def test_a_grid_fits_a_terminal_and_keeps_the_shape(size, columns, expected):
    ids = np.zeros(size, np.uint8)
    ids[:, size[1] // 2:] = 1
    lines = grid(np.zeros((*size, 3), np.float32), ids, columns).split("\n")
    assert (len(lines), len(lines[0])) == expected and len({len(line) for line in lines}) == 1
    assert all(line == lines[0] and line.count("1") * 2 in (len(line), len(line) + 1) for line in lines)


def test_a_grid_shows_the_pixel_in_the_middle():
    ids = np.zeros((12, 6), np.uint8)
    ids[3, 1] = 1                       # characters own 6 x 3 px
    ids[9, 4] = 2
    assert grid(np.zeros((12, 6, 1), np.float32), ids, 2) == "1 \n 2"
    assert all(a != b for a, b in pairwise(RAMP))


def test_one_stray_pixel_is_told_with_its_file_and_nothing_else_is_advised(tmp_path):
    """--ignore 255 would leave the stray value as the class."""
    masks_of = [np.resize(np.uint8([0, 255]), (H, W)) for _ in range(4)]
    masks_of[2] = masks_of[2].copy()
    masks_of[2][3, 4] = 7
    [said] = fatal(survey(*sound(tmp_path, masks_of)))
    assert re.search(r"masks/c.png: is the only mask with the value 7 \(1 px\), the others hold 0, 255; mend it", said)
    assert "--ignore" not in said


def test_partners_in_other_folders_and_longer_names(tmp_path):
    for name in ("images/1/a.png", "images/2/b.png", "images/1/c1.png", "masks/1/a.png", "masks/3/b.png",
                 "masks/1/c10.png", "masks/1/c1_lbl.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, GREY if name.startswith("images") else CLASS * np.uint8(255))
    said = fatal(survey(tmp_path / "images", tmp_path / "masks"))
    assert any(re.search("images/2/b.png: .* in another folder", text) for text in said)
    assert any(re.search("images/1/c1.png: .*add --mask-suffix _lbl$", text) for text in said)


def test_numbered_objects_are_suspected(tmp_path):
    counts = (4, 6, 9, 7)
    masks_of = [np.resize(np.arange(count + 1, dtype=np.uint8), (H, W)) for count in counts]
    images, masks = sound(tmp_path, masks_of)
    assert any("--instances" in text for text in notes(survey(images, masks)))
    found = survey(images, masks, MaskOptions(instances=True))
    assert found.code.classes == 1 and not any("--instances" in text for text in notes(found))


def test_nothing_drawn_is_no_fault_where_a_net_is_measured(tmp_path):
    images, masks = sound(tmp_path, [np.zeros((H, W), np.uint8)] * 4)
    assert fatal(survey(images, masks)) and not fatal(survey(images, masks, classes=1))
