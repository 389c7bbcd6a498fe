"""What values mean: every usual convention of masks, and the words for those that cannot be read."""

from pathlib import Path

import numpy as np
import pytest

from minunet.data.files import MaskValues
from minunet.data.masks import IGNORE, MaskFacts, MaskOptions, decide, shown
from minunet.errors import UserError

BLACK, WHITE, RED, GREEN, BLUE = 0, 0xFFFFFF, 0xFF0000, 0x00FF00, 0x0000FF
FOLDER = Path("masks")


def mask(values, counts=None, colour=False, lossy=False, name="a"):
    """What one file holds: values, each with its pixels."""
    values = np.array(sorted(values))
    counts = np.full(len(values), 10) if counts is None else np.array(counts)
    return MaskFacts(FOLDER / f"{name}.png", (1, int(counts.sum())), values, counts, colour, lossy)


def masks(*values, colour=False, lossy=False):
    return [mask(v, colour=colour, lossy=lossy, name=name) for v, name in zip(values, "abcdef")]


def colours(*values, lossy=False):
    return masks(*values, colour=True, lossy=lossy)


READINGS = {    # convention -> (masks, options, classes, the id of each value)
    "0 and 1": (masks([0, 1]), {}, 1, {0: 0, 1: 1}),
    "0 and 255": (masks([0, 255]), {}, 1, {0: 0, 255: 1}),
    "0 and another": (masks([0, 38]), {}, 1, {0: 0, 38: 1}),
    "0 and a great one": (masks([0, 65535]), {}, 1, {0: 0, 65535: 1}),
    "some masks are empty": (masks([0], [0, 255], [255]), {}, 1, {0: 0, 255: 1}),
    "background alone": (masks([0], [0]), {}, 1, {0: 0}),
    "the class alone": (masks([255]), {}, 1, {255: 1}),
    "inverted": (masks([0, 255]), {"invert": True}, 1, {0: 1, 255: 0}),
    "inverted bits": (masks([0, 1]), {"invert": True}, 1, {0: 1, 1: 0}),
    "ids": (masks([0, 1, 2], [0, 3]), {}, 4, {0: 0, 1: 1, 2: 2, 3: 3}),
    "ids from 1": (masks([1, 2], [2, 3]), {}, 4, {1: 1, 2: 2, 3: 3}),
    "ids with gaps": (masks([0, 7, 11]), {}, 12, {0: 0, 7: 7, 11: 11}),
    "the highest id": (masks([0, 1, 63]), {}, 64, {0: 0, 63: 63}),
    "ids and 255 to ignore": (masks([0, 1, 2, 255]), {"ignore": (255,)}, 3, {0: 0, 2: 2, 255: IGNORE}),
    "several to ignore": (masks([0, 1, 2, 11, 255]), {"ignore": (255, 11)}, 3, {1: 1, 11: IGNORE, 255: IGNORE}),
    "an id between to ignore": (masks([0, 1, 2, 3]), {"ignore": (1,)}, 4, {0: 0, 1: IGNORE, 2: 2, 3: 3}),
    "0 to ignore": (masks([0, 1, 2]), {"ignore": (0,)}, 3, {0: IGNORE, 1: 1, 2: 2}),
    "one class and 255 to ignore": (masks([0, 1, 255]), {"ignore": (255,)}, 1, {0: 0, 1: 1, 255: IGNORE}),
    "0, 128 to ignore, 255": (masks([0, 128, 255]), {"ignore": (128,)}, 1, {0: 0, 128: IGNORE, 255: 1}),
    "inverted, something to ignore": (masks([0, 128, 255]), {"ignore": (128,), "invert": True}, 1,
                                      {0: 1, 128: IGNORE, 255: 0}),
    "instances": (masks([0, 1, 2, 300], [0, 1]), {"instances": True}, 1, {0: 0, 1: 1, 2: 1, 300: 1, 299: 1}),
    "instances in colours": (colours([BLACK, RED, 0x123456]), {"instances": True}, 1, {BLACK: 0, RED: 1, 0x123456: 1}),
    "instances, something to ignore": (masks([0, 1, 2, 255]), {"instances": True, "ignore": (255,)}, 1,
                                       {0: 0, 2: 1, 255: IGNORE}),
    "instances inverted": (masks([0, 5, 6]), {"instances": True, "invert": True}, 1, {0: 1, 5: 0, 6: 0}),
    "black and a colour": (colours([BLACK, RED]), {}, 1, {BLACK: 0, RED: 1}),
    "two colours": (colours([GREEN, RED]), {"colors": (GREEN, RED)}, 1, {GREEN: 0, RED: 1}),
    "two colours in their order": (colours([GREEN, RED]), {"colors": (RED, GREEN)}, 1, {GREEN: 1, RED: 0}),
    "two colours inverted": (colours([GREEN, RED]), {"colors": (GREEN, RED), "invert": True}, 1, {GREEN: 1, RED: 0}),
    "colours in their order": (colours([BLACK, RED], [GREEN, BLUE]), {"colors": (RED, BLUE, BLACK, GREEN)}, 4,
                               {RED: 0, BLUE: 1, BLACK: 2, GREEN: 3}),
    "a colour that no mask has": (colours([BLACK, RED]), {"colors": (BLACK, RED, BLUE)}, 3,
                                  {BLACK: 0, RED: 1, BLUE: 2}),
    "colours, the last to ignore": (colours([BLACK, RED, GREEN, BLUE]),
                                    {"colors": (RED, GREEN, BLUE, BLACK), "ignore": (3,)}, 3,
                                    {RED: 0, GREEN: 1, BLUE: 2, BLACK: IGNORE}),
    "colours, the first to ignore": (colours([BLACK, RED, GREEN]), {"colors": (BLACK, RED, GREEN), "ignore": (0,)}, 3,
                                     {BLACK: IGNORE, RED: 1, GREEN: 2}),
    "two colours and one to ignore": (colours([BLACK, RED, GREEN]), {"colors": (BLACK, RED, GREEN), "ignore": (2,)}, 1,
                                      {BLACK: 0, RED: 1, GREEN: IGNORE}),
    "colours in JPEG": (colours([0x020103, 0xFA0400, 0x00FDFD, 0xFFFE00], lossy=True),
                        {"colors": (BLACK, RED, 0x00FFFF, 0xFFFF00)}, 4,
                        {0x020103: 0, 0xFA0400: 1, 0x00FDFD: 2, 0xFFFE00: 3, RED: 1}),
    "the colour that is nearest in a straight line": (colours([BLACK, 0x320000, 0x501E00], lossy=True),
                                                      {"colors": (BLACK, 0x501E00, RED)}, 3, {BLACK: 0, 0x320000: 1}),
    "names alone": (masks([0, 1, 2]), {"class_names": ("a", "b", "c")}, 3, {0: 0, 1: 1, 2: 2}),
    "names beyond the ids": (masks([0, 1]), {"class_names": ("a", "b", "c", "d")}, 4, {0: 0, 1: 1}),
    "names for many ids": (masks([0, 1, 99]), {"class_names": tuple(f"n{i}" for i in range(100))}, 100, {99: 99}),
    "JPEG noise": ([mask([0, 1, 2, 100, 250, 255], [50, 5, 5, 2, 10, 40], lossy=True)], {}, 1,
                   {0: 0, 2: 0, 100: 0, 127: 0, 128: 1, 250: 1, 255: 1}),
    "little JPEG noise": ([mask([0, 1, 255], [50, 1, 50], lossy=True)], {}, 1, {0: 0, 1: 0, 255: 1}),
    "little JPEG noise above": ([mask([0, 254, 255], [50, 1, 50], lossy=True)], {}, 1, {0: 0, 254: 1, 255: 1}),
    "JPEG noise inverted": ([mask([0, 1, 2, 254, 255], lossy=True)], {"invert": True}, 1, {0: 1, 2: 1, 254: 0, 255: 0}),
    "smooth edges": ([mask([0, 64, 128, 191, 255], [500, 5, 5, 5, 400])], {}, 1, {0: 0, 64: 0, 191: 1, 255: 1}),
    "clean JPEG": (masks([0, 255], lossy=True), {}, 1, {0: 0, 255: 1}),
}


def reading(case):
    found, options, _, _ = READINGS[case]
    return decide(found, MaskOptions(**options))


@pytest.mark.parametrize("case", READINGS)
def test_every_convention_has_its_reading(case):
    _, options, classes, ids = READINGS[case]
    code = reading(case)
    assert code.classes == classes
    assert code.read(np.array(list(ids))).tolist() == list(ids.values())
    assert len(code.names) == classes and len(set(code.names)) == classes
    assert code.words


@pytest.mark.parametrize("case", READINGS)
def test_a_mask_is_decoded_pixel_by_pixel(case):
    found, _, _, ids = READINGS[case]
    code = reading(case)
    values = np.random.default_rng(0).permutation(np.resize(list(ids), 7 * 5)).reshape(7, 5)
    expected = np.vectorize(ids.get)(values)
    for dtype in (np.uint8, np.uint16, np.int32, np.int64):
        if values.max() <= np.iinfo(dtype).max:
            decoded = code.decode(MaskValues(values.astype(dtype), found[0].colour, False))
            assert decoded.dtype == np.uint8
            np.testing.assert_array_equal(decoded, expected)


def test_a_grey_mask_among_colours_is_black_or_white():
    found = [mask([0, 255], name="a"), mask([BLACK, RED], colour=True, name="b")]
    code = decide(found, MaskOptions(colors=(BLACK, WHITE, RED)))
    grey, colour = np.array([[0, 255]], np.uint8), np.array([[RED, BLACK]], np.int32)
    np.testing.assert_array_equal(code.decode(MaskValues(grey, False, False)), [[0, 1]])
    np.testing.assert_array_equal(code.decode(MaskValues(colour, True, False)), [[2, 0]])


@pytest.mark.parametrize("values, known", [
    ([0, 7], "7 .*0, 1, 2, 3"), ([0, 200], "200 .*0, 1, 2, 3"), ([0, 70000], "70000 .*0, 1, 2, 3")])
def test_a_value_without_reading_is_refused(values, known):
    code = decide(masks([0, 1, 2, 3]), MaskOptions())
    with pytest.raises(UserError, match=known):
        code.decode(MaskValues(np.array([values]), False, False))


# Words and notes


@pytest.mark.parametrize("case, words", [
    ("0 and 255", "0 is the background, 255 is the class"),
    ("inverted", "0 is the class, 255 is the background"),
    ("ids", "class ids 0 to 3"),
    ("several to ignore", "class ids 0 to 2, 255 is ignored, 11 is ignored"),
    ("instances", "0 is the background, every other value is the class"),
    ("black and a colour", "#000000 is the background, #ff0000 is the class"),
    ("two colours in their order", "#ff0000 is the background, #00ff00 is the class"),
    ("colours, the last to ignore", "#ff0000 is class 0, #00ff00 is class 1, #0000ff is class 2, #000000 is ignored"),
])
def test_the_reading_is_said(case, words):
    assert reading(case).words == words and reading(case).notes == ()


def test_what_snapping_changes_is_said():
    [note] = reading("JPEG noise").notes
    assert "19.6%" in note and "nearer" in note             # 22 of 112 pixels
    assert "127" in reading("JPEG noise").words
    [note] = reading("colours in JPEG").notes
    assert "JPEG" in note and "nearest" in note and "--mask-colors" in note


def test_an_ignored_value_that_is_not_there_is_said():
    assert decide(masks([0, 1, 2]), MaskOptions(ignore=(255,))).notes == ("--ignore 255: no mask holds this value",)
    assert decide(masks([0, 1, 2, 255]), MaskOptions(ignore=(255,))).notes == ()


@pytest.mark.parametrize("found, options, names, words", [
    (masks([0, 1]), {}, ("class",), "1 is the class"),
    (masks([0, 1]), {"class_names": ("cell",)}, ("cell",), "0 is the background, 1 is cell"),
    (masks([0, 1]), {"class_names": ("glass", "cell")}, ("cell",), "0 is glass, 1 is cell"),
    (masks([0, 1]), {"class_names": ("glass", "cell"), "invert": True}, ("cell",), "0 is cell, 1 is glass"),
    (masks([0, 9]), {"class_names": ("glass", "cell"), "instances": True}, ("cell",), "every other value is cell"),
    (masks([0, 1, 2]), {}, ("class 0", "class 1", "class 2"), "class ids 0 to 2"),
    (masks([0, 1, 2]), {"class_names": ("a", "b", "c")}, ("a", "b", "c"), "class ids 0 to 2"),
    (colours([RED, BLUE]), {"colors": (RED, BLUE), "class_names": ("sky", "road")}, ("road",),
     "#ff0000 is sky, #0000ff is road"),
    (colours([RED, BLUE, BLACK]), {"colors": (RED, BLUE, BLACK), "class_names": ("sky", "road", "car")},
     ("sky", "road", "car"), "#ff0000 is sky, #0000ff is road, #000000 is car"),
    # a name for each colour, also for those that are ignored: so sky=#ff0000,... gives them
    (colours([RED, BLUE, GREEN, BLACK]),
     {"colors": (RED, BLUE, GREEN, BLACK), "class_names": ("sky", "road", "car", "void"), "ignore": (3,)},
     ("sky", "road", "car"), "#ff0000 is sky, #0000ff is road, #00ff00 is car, #000000 is ignored"),
    (colours([RED, BLUE, BLACK]),
     {"colors": (RED, BLUE, BLACK), "class_names": ("sky", "road", "void"), "ignore": (2,)},
     ("road",), "#ff0000 is sky, #0000ff is road"),
])
def test_classes_have_names(found, options, names, words):
    code = decide(found, MaskOptions(**options))
    assert code.names == names
    assert words in code.words


# What cannot be read

PHOTOGRAPH = range(256)
NAMES = tuple(f"n{i}" for i in range(256))
REFUSED = {     # case -> (masks, options, classes of a trained net, words)
    "0, 1 and 255": (masks([0, 1], [0, 255]), {}, None, "masks/b.png: .*0, 1, 255.*--ignore 255$"),
    "ids and 255": (masks([0, 1, 2], [0, 2, 255]), {}, None, "masks/b.png: .*class ids and 255.*--ignore 255$"),
    "frequent ids and 255": ([mask([0, 1, 5, 20, 255], [50, 20, 20, 20, 5])], {}, None,
                             "masks/a.png: .*class ids and 255.*--ignore 255$"),
    "ids and 240": (masks([0, 1, 2, 240]), {}, None, "masks/a.png: .*class ids and 240.*--ignore 240$"),
    "ids and 100": (masks([0, 1, 2, 100]), {}, None, "masks/a.png: .*class ids and 100.*--ignore 100$"),
    "three grey values": (masks([0, 255], [0, 128, 255]), {}, None, "masks/a.png: .*0, 128, 255.* 0 and 255"),
    "ids that are too high": (masks([0, 1], [0, 64, 70]), {}, None,
                              "masks/b.png: .*0, 1, 64, 70; .*ids 0 to 63 .*--class-names.* 254.*--instances$"),
    "a photograph": (masks([0, 255], PHOTOGRAPH), {}, None, "masks/b.png: .*photograph.*exchanged"),
    "numbered objects": ([mask(range(300), [9000] + [9] * 299)], {}, None, "masks/a.png: .*object, add --instances$"),
    "JPEG of ids": (masks([0, 1, 2, 3], lossy=True), {}, None, "masks/a.png: .*JPEG.*0, 1, 2, 3.*PNG.*--mask-colors$"),
    "JPEG of 0 and 128": ([mask([0, 1, 126, 128], lossy=True)], {}, None, "masks/a.png: .*JPEG.*PNG.*--mask-colors$"),
    "a grey JPEG": (masks(PHOTOGRAPH, lossy=True), {}, None, "masks/a.png: .*JPEG"),
    "ids inverted": (masks([0, 1, 2]), {"invert": True}, None, "--invert .*two values.*0, 1, 2$"),
    "colours inverted": (colours([BLACK, RED, BLUE]), {"colors": (BLACK, RED, BLUE), "invert": True}, None,
                         "--invert .*two colours.*3$"),
    "all is ignored": (masks([0, 1]), {"ignore": (0, 1)}, None, "masks: .*nothing but what --ignore leaves out"),
    "all colours are ignored": (colours([BLACK, RED]), {"colors": (BLACK, RED), "ignore": (0, 1)}, None, "--ignore"),
    "three colours": (colours([BLACK, RED], [BLACK, BLUE]), {}, None,
                      "masks/a.png: .*3 colours.*order of the ids: --mask-colors '#000000,#0000ff,#ff0000'$"),
    "two colours without black": (colours([RED, BLUE]), {}, None, "masks/a.png: .*--mask-colors '#0000ff,#ff0000'$"),
    "ids in red": (colours([0, 0x010000], [0, 0x070000]), {}, None,
                   "masks/a.png: .*only red .*0, 1, 7; .*--mask-channel red$"),
    "ids in green": (colours([0, 0x0100, 0x0200]), {}, None, "masks/a.png: .*--mask-channel green$"),
    "ids in blue": (colours([0, 0x01, 0x02]), {}, None, "masks/a.png: .*--mask-channel blue$"),
    "a colour photograph": (colours(range(0, 10**6, 9999)), {}, None, "masks/a.png: .*photograph.*exchanged"),
    "a JPEG in colours": (colours(range(0, 10**6, 9999), lossy=True), {}, None, "masks/a.png: .*JPEG.*--mask-colors"),
    "many colours in many masks": (colours(*(range(BLUE + k, 10**6 + k, 50000) for k in range(6))), {}, None,
                                   "masks/a.png: .*colours.*--instances.*--mask-colors$"),
    "an unknown colour": ([mask([BLACK, RED], colour=True),
                           mask([BLACK, BLUE, 0x00FF01], [70, 10, 20], True, name="b")],
                          {"colors": (BLACK, RED)}, None, "masks/b.png: .*#00ff01 .20.00% .*--mask-colors; add it"),
    "one colour": (colours([BLACK]), {"colors": (BLACK,)}, None, "--mask-colors needs two or more.*#000000$"),
    "a colour twice": (colours([BLACK]), {"colors": (BLACK, RED, BLACK)}, None, "--mask-colors .*each once"),
    "too few names": (masks([0, 1, 2, 3]), {"class_names": ("a", "b", "c")}, None,
                      "--class-names has 3 names.*4 classes .ids 0 to 3"),
    "two names for three ids": (masks([0, 1, 2]), {"class_names": ("a", "b")}, None, "--class-names has 2 .*3 classes"),
    "too many names for two colours": (colours([BLACK, RED]), {"colors": (BLACK, RED), "class_names": ("a", "b", "c")},
                                       None, "--class-names has 3 names.*background and one class"),
    "too few names for colours": (colours([BLACK, RED, BLUE]),
                                  {"colors": (BLACK, RED, BLUE), "class_names": ("a", "b")},
                                  None, "--class-names has 2 names.*3 classes"),
    "an id of 255": (masks([0, 255], [1]), {"class_names": NAMES}, None, "masks/a.png: .*255"),
    # masks for a trained net
    "ids for a net of one class": (masks([0, 1], [0, 2, 1]), {}, 1,
                                   "masks/b.png: .*0, 1, 2; the net knows a background and one class$"),
    "a higher id than the net's": (masks([0, 1], [0, 3]), {}, 3, "masks/b.png: .*0, 1, 3; .*class ids 0 to 2$"),
    "0 and 255 for a net of ids": (masks([0, 255]), {}, 3, "masks/a.png: .*0, 255; .*class ids 0 to 2$"),
    "inverted for a net of ids": (masks([0, 1]), {"invert": True}, 3, "--invert .*one class; this net has 3 classes$"),
    "more colours than the net's": (colours([BLACK, RED]), {"colors": (BLACK, RED, BLUE, GREEN)}, 3,
                                    "--mask-colors names 4 colours; there may be 3$"),
    "more colours than a background and one class": (colours([BLACK, RED]), {"colors": (BLACK, RED, BLUE)}, 1,
                                                     "--mask-colors names 3 colours; there may be 2$"),
    "names that are not the net's": (masks([0, 1]), {"class_names": ("a", "b")}, 3, "--class-names has 2 .*3 classes"),
    "instances for a net of ids": (masks([0, 1, 2]), {"instances": True}, 5, "--instances .*5 classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_told_in_a_sentence(case):
    found, options, classes, words = REFUSED[case]
    with pytest.raises(UserError, match=f"^{words}") as error:
        decide(found, MaskOptions(**options), classes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("found, options, classes, ids", [
    (masks([0, 1]), {}, 1, {0: 0, 1: 1}),
    (masks([0, 255]), {}, 1, {0: 0, 255: 1}),
    (masks([0, 1]), {}, 3, {0: 0, 1: 1, 2: 2}),             # two values, and yet ids
    (masks([0, 2]), {}, 3, {0: 0, 2: 2}),
    (masks([0]), {}, 3, {0: 0}),
    (masks([0, 1, 99]), {}, 100, {99: 99}),
    (masks([0, 1, 11]), {"ignore": (11,)}, 11, {1: 1, 10: 10, 11: IGNORE}),
    (colours([BLACK, RED]), {"colors": (BLACK, RED)}, 1, {BLACK: 0, RED: 1}),
    (colours([BLACK, RED]), {"colors": (BLACK, RED, BLUE)}, 3, {BLACK: 0, RED: 1, BLUE: 2}),
    (colours([BLACK, RED]), {"colors": (BLACK, RED)}, 2, {BLACK: 0, RED: 1}),
    (masks([0, 5]), {"instances": True}, 1, {0: 0, 5: 1}),
])
def test_masks_for_a_trained_net_have_its_classes(found, options, classes, ids):
    code = decide(found, MaskOptions(**options), classes)
    assert code.classes == classes and len(code.names) == classes
    assert code.read(np.array(list(ids))).tolist() == list(ids.values())


def test_no_number_of_classes_is_taken_for_ignore():
    values = list(range(255))
    code = decide(masks(values), MaskOptions(class_names=NAMES[:255]))
    assert code.classes == 255
    np.testing.assert_array_equal(code.read(np.array(values)), values)


def test_options_come_back_from_json():
    options = MaskOptions("_m", "_i", "red", (1, 2), True, (255,), True, ("a", "b"))
    noted = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(options).items()}
    assert MaskOptions.of(noted) == options
    assert MaskOptions.of({}) == MaskOptions()


def test_long_lists_of_values_are_shortened():
    assert shown([0, 255]) == "0, 255" and shown([0, 255], colour=True) == "#000000, #0000ff"
    assert shown(range(8)) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert shown(range(100)) == "0, 1, 2, 3, 4, 5, ..., 99"
