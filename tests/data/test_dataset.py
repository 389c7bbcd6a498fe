"""Splits, channel statistics and batches. Tell-tale images, whose pixels say where they are, show what a crop did."""

import numpy as np
import pytest

from minunet.data import Batches, Sample, channel_statistics, split
from minunet.errors import UserError


def generator(seed=0):
    return np.random.default_rng(seed)


def numbered(count):
    return [Sample(str(i), np.zeros((2, 2, 1), np.float32), np.zeros((2, 2), np.uint8)) for i in range(count)]


def names(samples):
    return [sample.name for sample in samples]


# Split


@pytest.mark.parametrize("count, sizes", [
    (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (10, (6, 2, 2)), (30, (18, 6, 6)), (104, (62, 21, 21)),
])
def test_a_split_is_disjoint_and_complete(count, sizes):
    samples = numbered(count)
    parts = split(samples, generator())
    assert tuple(len(part) for part in parts) == sizes == tuple(map(len, (parts.train, parts.validation, parts.test)))
    assert sorted(names(sum(parts, []))) == sorted(names(samples))
    assert names(samples) == names(numbered(count))


@pytest.mark.parametrize("count", range(3, 60))
def test_a_split_is_as_near_to_60_20_20_as_whole_images_allow(count):
    train, validation, test = split(numbered(count), generator())
    assert len(validation) == len(test) >= 1 and len(train) >= 1
    assert abs(len(test) - 0.2 * count) <= 0.5 and len(train) + 2 * len(test) == count


def test_the_generator_decides_the_split():
    samples = numbered(10)
    first, again, other = ([names(part) for part in split(samples, generator(seed))] for seed in (1, 1, 2))
    assert first == again != other
    in_test = {name for seed in range(60) for name in names(split(samples, generator(seed)).test)}
    assert in_test == set(names(samples))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_split_needs_three_pairs(count):
    with pytest.raises(UserError, match=f"at least 3 pairs .*; got {count}"):
        split(numbered(count), generator())


# Statistics


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_over_all_pixels_of_all_images(channels):
    rng = generator()
    images = [rng.normal(0.3 * i, 1 + np.arange(channels), (h, w, channels)).astype(np.float32)
              for i, (h, w) in enumerate([(3, 5), (8, 1), (40, 30)])]
    mean, deviation = channel_statistics([Sample("", image, image[..., 0] > 0) for image in images])
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-5)
    assert mean.dtype == deviation.dtype == np.float32 and mean.shape == deviation.shape == (channels,)


@pytest.mark.parametrize("value", [0, 17, 85, 201, 255])
def test_a_constant_channel_has_deviation_1(value):
    image = np.full((37, 41, 2), np.float32(value) / 255, np.float32)
    image[::2, :, 1] = 0.123
    mean, deviation = channel_statistics([Sample("a", image, image[..., 0]), Sample("b", image[:7], image[:7, :, 0])])
    assert mean[0] == image[0, 0, 0] and deviation[0] == 1 and deviation[1] < 1


# Batches

INDEX, ROW, COLUMN = 0, 1, 2    # what the channels of a tell-tale image hold


def code(index, row, column):
    """A mask's value, from which a pixel in the wrong place would stand out."""
    return (31 * index + 7 * row + 13 * column + row * column) % 251


def tell_tale(*sizes):
    """Samples whose pixels hold their image's number, row and column, and whose masks agree."""
    samples = []
    for i, (h, w) in enumerate(sizes):
        index, row, column = np.full((h, w), i), *np.indices((h, w))
        samples.append(Sample(str(i), np.dstack([index, row, column]).astype(np.float32),
                              code(index, row, column).astype(np.uint8)))
    return samples


def crops(samples, crop, batch=4, seed=0, epochs=1):
    """The crops of some epochs: image (H, W, 3) as ints, mask (H, W)."""
    batches = Batches(samples, crop, batch, generator(seed))
    return [(image.astype(int), mask) for _ in range(epochs) for images, masks in batches
            for image, mask in zip(images, masks)]


def orientation(image):
    """How row and column change to the right and downwards: one of 8 matrices, as a tuple."""
    right, down = image[0, 1] - image[0, 0], image[1, 0] - image[0, 0]
    return (*right[1:].tolist(), *down[1:].tolist())


ALL_8 = {(1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, 1), (-1, 0, 0, -1),
         (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)}
UPRIGHT_4 = {o for o in ALL_8 if o[0] == 0}     # row stays the same to the right


@pytest.mark.parametrize("crop, expected", [((5, 5), ALL_8), ((4, 6), UPRIGHT_4), ((6, 3), UPRIGHT_4)])
def test_image_and_mask_are_turned_together_in_all_ways_that_fit(crop, expected):
    seen = set()
    for image, mask in crops(tell_tale((9, 11), (14, 8), (7, 7)), crop, epochs=12):
        np.testing.assert_array_equal(mask, code(*np.moveaxis(image, 2, 0)))
        assert image.shape == (*crop, 3) and mask.shape == crop
        assert (image[..., INDEX] == image[0, 0, INDEX]).all()
        # one step right, or down, is the same step in the image everywhere: the crop is a piece of it
        seen.add(orientation(image))
        steps = np.array(orientation(image)).reshape(2, 2)
        for axis, step in ((1, steps[0]), (0, steps[1])):
            assert (np.diff(image[..., 1:], axis=axis) == step).all()
    assert seen == expected


def test_each_way_is_as_likely():
    turned = [orientation(image) for image, _ in crops(tell_tale((4, 4)), (4, 4), epochs=800)]
    assert all(60 < turned.count(o) < 140 for o in ALL_8)


def test_every_place_is_reached():
    drawn = crops(tell_tale((6, 9)), (4, 5), epochs=99)
    places = {(image[..., ROW].min(), image[..., COLUMN].min()) for image, _ in drawn}
    assert places == {(row, column) for row in range(3) for column in range(5)}


@pytest.mark.parametrize("size, crop", [((5, 3), (8, 8)), ((3, 12), (6, 4)), ((12, 3), (6, 4)), ((1, 1), (4, 4)),
                                        ((7, 8), (8, 8))])
def test_smaller_images_are_extended_by_their_edge(size, crop):
    for image, mask in crops(tell_tale(size), crop, epochs=10):
        assert image.shape == (*crop, 3)
        np.testing.assert_array_equal(mask, code(*np.moveaxis(image, 2, 0)))
        for channel, length in ((ROW, size[0]), (COLUMN, size[1])):
            values = image[..., channel]
            line = values[0] if (values == values[0]).all() else values[:, 0]     # the channel changes along one axis
            np.testing.assert_array_equal(np.sort(line), line if line[0] <= line[-1] else line[::-1])
            assert len(set(line)) == min(length, len(line))
            inner = [np.count_nonzero(line == v) for v in set(line) - {0, length - 1}]
            assert set(inner) <= {1}                                              # only the edge is repeated


@pytest.mark.parametrize("sizes, crop, batch, pieces", [
    ([(4, 4)] * 5, (4, 4), 2, [1, 1, 1, 1, 1]),
    ([(8, 8), (4, 4), (2, 2)], (4, 4), 4, [4, 1, 1]),
    ([(9, 11), (12, 8)], (4, 4), 100, [6, 6]),
    ([(10, 10), (3, 16)], (4, 8), 3, [3, 2]),
])
def test_an_epoch_draws_a_crop_for_every_crop_sized_piece(sizes, crop, batch, pieces):
    batches = Batches(tell_tale(*sizes), crop, batch, generator())
    for _ in range(3):
        epoch = list(batches)
        drawn = np.concatenate([images[:, 0, 0, INDEX] for images, _ in epoch]).astype(int)
        assert np.bincount(drawn).tolist() == pieces
        full, rest = divmod(sum(pieces), batch)
        assert [len(images) for images, _ in epoch] == [batch] * full + [rest] * (rest > 0)     # the last one is kept
        assert len(epoch) == len(batches) and all(len(images) == len(masks) for images, masks in epoch)


def test_each_epoch_has_an_order_of_its_own():
    batches = Batches(tell_tale(*[(4, 4)] * 9), (4, 4), 2, generator())
    orders = {tuple(np.concatenate([images[:, 0, 0, INDEX] for images, _ in batches])) for _ in range(8)}
    assert len(orders) == 8


def test_batches_are_float32_images_with_integer_masks():
    images, masks = next(iter(Batches(tell_tale((8, 8)), (4, 6), 2, generator())))
    assert images.shape == (2, 4, 6, 3) and images.dtype == np.float32
    assert masks.shape == (2, 4, 6) and masks.dtype == np.uint8


def test_the_generator_decides_the_batches():
    samples = tell_tale((9, 9), (8, 10), (20, 20))
    first, again, other = (crops(samples, (4, 4), seed=seed, epochs=2) for seed in (0, 0, 1))
    for (image, mask), (same_image, same_mask) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(mask, same_mask)
    assert any((a != b).any() for (a, _), (b, _) in zip(first, other))
    half = len(first) // 2
    assert any((a != b).any() for (a, _), (b, _) in zip(first[:half], first[half:]))      # each epoch is another one


def test_the_samples_are_not_changed():
    samples = tell_tale((9, 9), (3, 3))
    for image, mask in Batches(samples, (5, 5), 4, generator()):
        image[:], mask[:] = -1, 255
    for sample, untouched in zip(samples, tell_tale((9, 9), (3, 3))):
        np.testing.assert_array_equal(sample.image, untouched.image)
        np.testing.assert_array_equal(sample.mask, untouched.mask)
