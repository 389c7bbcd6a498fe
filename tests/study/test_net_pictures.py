"""Pictures of nets: the maps that they say, nothing over anything else, and no pattern that is not in the numbers."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minunet import Geometry
from minunet.nn import ConvTranspose2d
from minunet.study.captions import WIDTH
from minunet.study.evenness import verdict
from minunet.study.explanation import is_even
from minunet.study.layer_pictures import draw_kernels, draw_maps, draw_skip
from minunet.study.net import kernels, layers, look, strongest, without_skip
from minunet.study.net_pictures import MAPS, Arrow, Picture, coloured, draw_u, fitted, signed
from minunet.study.sheet import MARGIN, Frame, Text
from tests.study.test_net import made, picture

# depth, image, and what else is special
CASES = [(1, (16, 16), {}), (2, (24, 40), {"padding": "valid"}), (3, (20, 90), {"up": "nearest"}),
         (4, (90, 20), {"up": "unpool"}), (5, (40, 30), {"norm": None}), (1, (200, 16), {"up": "bicubic"}),
         (2, (7, 300), {}), (2, (60, 60), {"size": (16, 30)}), (1, (1, 1), {})]


def seen_in(depth, size, options, channels=1, classes=3):
    """A net with an image; the classes have long names."""
    checkpoint = made(channels, classes, depth=depth, **options)
    checkpoint.class_names = tuple(f"a class with the number {k}" for k in range(classes))
    return look(checkpoint, picture(*size, channels))


def texts(sheet):
    return [mark.text for mark in sheet.marks if isinstance(mark, Text)]


def covers(a, b, slack=0.0):
    """Whether two boxes have more than slack px in common, both ways."""
    return min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack


def assert_tidy(sheet):
    """As wide as the others, no text on a text or a picture, no picture or arrow on a picture."""
    left, _, right, _ = sheet.box
    assert left >= -8 and right <= WIDTH + 8
    words, pictures, arrows, frames = ([mark.box for mark in sheet.marks if isinstance(mark, kind)]
                                       for kind in (Text, Picture, Arrow, Frame))
    for i, box in enumerate(words):
        assert not any(covers(box, other) for other in words[:i]), texts(sheet)[i]
        assert not any(covers(box, other) for other in pictures), texts(sheet)[i]
    for i, box in enumerate(pictures):
        assert not any(covers(box, other, 0.01) for other in pictures[:i] + arrows), box
    for i, box in enumerate(frames):
        assert not any(covers(box, other) for other in frames[:i] + arrows + words), box
    assert all(x1 >= x0 and y1 >= y0 for x0, y0, x1, y1 in words + pictures + arrows)


def painted(mark, size, scale):
    """(H, W, 3): a picture alone on a black sheet."""
    image = Image.new("RGB", size)
    mark.paint(image, 0, 0, scale)
    return np.asarray(image)


# The U


@pytest.mark.parametrize("depth, size, options", CASES, ids=str)
def test_the_u_is_tidy(depth, size, options):
    sheet = draw_u(seen_in(depth, size, options))
    assert_tidy(sheet)
    image = sheet.image()
    assert image.width <= WIDTH + 2 * MARGIN + 16 and image.height < 1300


@pytest.mark.parametrize("depth, size, options", CASES, ids=str)
def test_the_u_has_every_level_with_its_size_and_its_strongest_channels(depth, size, options):
    seen = seen_in(depth, size, options)
    sheet = draw_u(seen)
    written, names = texts(sheet), list(layers(seen.checkpoint.model))
    for name in names:
        assert written.count(name) == 1
    drawn = iter([mark.pixels for mark in sheet.marks if isinstance(mark, Picture)])
    for name in names[:-1]:
        maps = seen.output(name)
        assert "×".join(map(str, maps.shape)) in written
        for channel in strongest(maps, 4):
            np.testing.assert_array_equal(next(drawn), coloured(maps[..., channel]))
    assert next(drawn).shape == next(drawn).shape == (*size, 3) and next(drawn, None) is None


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_the_u_is_symmetric_and_its_arrows_meet_the_tiles(depth):
    sheet = draw_u(seen_in(depth, (64, 64), {}))
    skips = [mark for mark in sheet.marks if isinstance(mark, Arrow) and mark.colour == "#e69f00"][:-1]
    assert len(skips) == depth                          # and one in the legend
    for arrow in skips:
        assert arrow.start[0] + arrow.end[0] == pytest.approx(WIDTH) and arrow.end[0] - arrow.start[0] > 40
    upright = [mark for mark in sheet.marks if isinstance(mark, Arrow) and mark.start[0] == mark.end[0]]
    assert len(upright) == 2 * depth
    for arrow in upright:                               # a tile right above and right below
        (x, _), above, below = arrow.start, min(arrow.start[1], arrow.end[1]), max(arrow.start[1], arrow.end[1])
        tiles = [mark.box for mark in sheet.marks
                 if isinstance(mark, Picture) and mark.box[0] - 3 <= x <= mark.box[2] + 3]
        assert any(abs(box[3] + 8 - above) < 1 for box in tiles) and any(abs(box[1] - 8 - below) < 1 for box in tiles)


def test_the_u_says_what_is_in_it():
    seen = seen_in(2, (17, 20), {"up": "bilinear", "pool": "average"})
    written = " ".join(texts(draw_u(seen)))
    for words in ("skip connection", "2x2 average-pooling", "1x1 convolution, bilinear interpolation",
                  "largest standard deviation", "The net reads the image at 20×20 px."):
        assert words in written
    found = {f"a class with the number {k}" in written for k in np.unique(seen.answer.argmax(2)) if k}
    assert found == {True} and "a class with the number 0" not in written
    assert "The net reads" not in " ".join(texts(draw_u(seen_in(2, (20, 20), {}))))


@pytest.mark.parametrize("classes", [9, 30])
def test_many_classes_have_a_legend_of_several_lines(classes):
    seen = seen_in(1, (40, 40), {}, classes=classes)
    answer = np.zeros_like(seen.answer)
    answer.reshape(-1, classes)[np.arange(1600), np.arange(1600) % classes] = 1
    sheet = draw_u(replace(seen, answer=answer))
    assert_tidy(sheet)
    assert sum("a class" in text for text in texts(sheet)) == classes - 1


# One layer


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("depth, size, options", CASES[:6], ids=str)
def test_every_layer_can_be_drawn(depth, size, options, channels):
    seen = seen_in(depth, size, options, channels) if channels != 2 else None
    model = seen.checkpoint.model if seen else made(2, 3, depth=depth, **options).model
    for name in layers(model):
        sheets = [draw_kernels(model, name, seen)] + ([draw_maps(seen, name)] if seen else [])
        for sheet in sheets:
            assert_tidy(sheet)
            assert texts(sheet)[0].startswith(f"{name}: ")


def test_the_kernels_of_the_largest_outputs_and_inputs_come_first():
    model = made(1, 1, base=20, depth=1).model
    up = model.up[0]
    up.up.weight.data[:, :, 7, 11] *= 1000                # output 7, input 11
    sheet = draw_kernels(model, "up1")
    tiles = [mark for mark in sheet.marks if hasattr(mark, "colours")][:16 * 16]
    top = float(np.abs(up.up.weight.data).max())
    np.testing.assert_array_equal(tiles[0].colours, signed(kernels(up)[1][:, :, 11, 7], top))
    assert tiles[0].left == 0 and tiles[1].left > 0 and tiles[1].top == tiles[0].top
    assert "16 of 20 outputs (rows), 16 of 40 inputs (columns)" in " ".join(texts(sheet))


def test_kernels_of_colour_images_are_colours():
    model = made(3, 1).model
    model.first.conv1.weight.data[...] = 0
    model.first.conv1.weight.data[0, 2, :, 1] = (1, 0, -1)
    sheet = draw_kernels(model, "first")
    first = next(mark for mark in sheet.marks if hasattr(mark, "colours")).colours
    assert first[0, 2].tolist() == [255, 128, 0] and first[1, 1].tolist() == [128, 128, 128]


def test_three_inputs_of_another_layer_are_no_colours():
    model = made(1, 2, base=3, depth=1).model
    tiles = [mark for mark in draw_kernels(model, "head").marks if hasattr(mark, "colours")]
    assert len(tiles) == 6 and sum(text == "0" for text in texts(draw_kernels(model, "head"))) == 1    # with a scale


@pytest.mark.parametrize("up, said", [("transpose", "The overlap is even, so it comes from the kernels' elements"),
                                      ("bilinear", "nothing is added up"), ("unpool", "where its maximum came from")])
def test_a_way_up_is_judged(up, said):
    written = " ".join(texts(draw_kernels(made(up=up).model, "up1")))
    assert said in written and "every input 1;" in written
    assert ("Unevenness 0.000" in written) == (up == "transpose")
    seen = look(made(up=up), picture())
    written = " ".join(texts(draw_kernels(seen.checkpoint.model, "up1", seen)))
    assert "every input at its mean over the image;" in written


@pytest.mark.parametrize("geometry, words", [
    (Geometry(3, 2), "a checkerboard. Unevenness 0.484."), (Geometry(1, 2), "has gaps"),
    (Geometry((3, 2), 2), "horizontal stripes. Unevenness 0.333."), (Geometry(16, 16), "met by 1 window each"),
])
def test_a_way_up_of_another_geometry_is_not_called_even(geometry, words):
    model = made().model
    up = model.up[0]
    up.up = ConvTranspose2d(up.up.weight.shape[3], up.up.weight.shape[2], geometry.kernel, geometry.stride,
                            rng=np.random.default_rng(0))
    sheet = draw_kernels(model, "up1")
    assert_tidy(sheet)
    written = " ".join(texts(sheet))
    assert words in written and verdict(geometry) in written
    assert ("It comes from the uneven overlap and" in written) != ("The overlap is even, so it comes" in written)
    assert ("The overlap is even" in written) == all(is_even(geometry))


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("size", [(20, 20), (10, 60), (60, 10)])
def test_what_a_skip_connection_adds(size, classes):
    seen = seen_in(2, size, {}, classes=classes)
    ablations = {"zeros": without_skip(seen, seen.checkpoint.model.up[1])}
    ablations["its mean"] = without_skip(seen, seen.checkpoint.model.up[1], mean=True)
    sheet = draw_skip(seen, "up2", ablations)
    assert_tidy(sheet)
    written = " ".join(texts(sheet))
    for what, found in ablations.items():
        assert f"{what} in its place" in written and f"{found.classes:.1%} of the pixels" in written
        assert f"{found.change:.4f}" in written
    pixels = [mark.pixels for mark in sheet.marks if isinstance(mark, Picture) and mark.pixels.shape[:2] == size]
    assert len(pixels) == 5
    if classes == 1:
        added = [seen.answer[..., 0] - found.answer[..., 0] for found in ablations.values()]
        top = max(np.abs(a).max() for a in added)
        np.testing.assert_array_equal(pixels[2], signed(added[0], top))
        np.testing.assert_array_equal(pixels[4], signed(added[1], top))


def test_a_skip_connection_that_adds_nothing():
    seen = look(made(), picture())
    nothing = without_skip(seen, seen.checkpoint.model.up[0])._replace(answer=seen.answer, classes=0.0, change=0.0)
    sheet = draw_skip(seen, "up1", {"zeros": nothing})
    assert_tidy(sheet)
    sheet.image()


# Colours and pixels


def test_maps_are_dark_at_the_least_and_bright_at_the_99th_percentile():
    values = np.arange(1000.0).reshape(20, 50)
    values[-1, -1] = 1e6                                # one pixel does not leave all others dark
    colours = coloured(values)
    dark, middle, bright = MAPS([0.0, 0.5, 1.0], bytes=True)[:, :3].astype(int)
    assert colours[0, 0].tolist() == dark.tolist() and colours[-1, -5].tolist() == bright.tolist()
    assert np.abs(colours.reshape(-1, 3)[495] - middle).max() < 5


@pytest.mark.parametrize("value", [0.0, 3.0, -1e30])
def test_a_constant_map_is_dark(value):
    assert (coloured(np.full((4, 5), value, np.float32)) == coloured(np.array([[0.0, 1.0]]))[0, 0]).all()


def test_a_map_with_a_single_number_above_the_others_shows_it():
    values = np.zeros((30, 30))
    values[3, 4] = 1e-3
    assert (coloured(values)[3, 4] != coloured(values)[0, 0]).any()


def test_signed_colours_have_white_in_the_middle():
    minus, zero, plus = signed(np.array([-2.0, 0, 2]), 2.0).astype(int)
    assert minus.tolist() == [0xd5, 0x5e, 0x00] and plus.tolist() == [0x00, 0x72, 0xb2]
    assert zero.min() >= 254
    assert signed(np.zeros((2, 2)), 0.0).min() >= 254


CHECKS = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)


def test_pixels_grow_to_squares():
    np.testing.assert_array_equal(painted(Picture((1, 2, 97, 98), CHECKS), (200, 200), 2)[4:196, 2:194],
                                  CHECKS.repeat(3, 0).repeat(3, 1))


def test_pixels_that_grow_by_a_fraction_keep_their_share():
    edge = np.array([[[0] * 3, [255] * 3]], np.uint8)
    row = painted(Picture((0, 0, 3, 1), edge), (3, 1), 1)[0, :, 0]
    assert row.tolist() == pytest.approx([0, 127, 255], abs=1)


@pytest.mark.parametrize("side", [11, 17, 23])
def test_a_checkerboard_that_shrinks_becomes_grey(side):
    """And not a checkerboard of another size, which the net has not made."""
    shrunk = painted(Picture((0, 0, side, side), CHECKS), (2 * side, 2 * side), 2)[4:-4, 4:-4].astype(int)
    assert np.abs(shrunk - 127).max() < 60 and shrunk.std() < 25


@pytest.mark.parametrize("shape, expected", [((64, 64), (128, 128)), ((50, 50), (125, 125)), ((100, 50), (50, 100)),
                                             ((600, 300), (70, 140)), ((1000, 2), (6, 140))])
def test_sizes_of_maps(shape, expected):
    assert fitted(shape, 140, 140, whole=True) == pytest.approx(expected)
