"""Batches, and a thread that makes them ahead. Tell-tale images, whose pixels say where they are, show each crop."""

import gc
import threading

import numpy as np
import pytest

from minunet.data import Batches, Sample, prefetch


def generator(seed=0):
    return np.random.default_rng(seed)


INDEX, ROW, COLUMN = 0, 1, 2    # what the channels of a tell-tale image hold


def code(index, row, column):
    """A mask's value, from which a pixel in the wrong place would stand out."""
    return (31 * index + 7 * row + 13 * column + row * column) % 251


def tell_tale(*sizes):
    """Samples whose pixels hold their image's number, row and column, and whose masks agree."""
    samples = []
    for i, (h, w) in enumerate(sizes):
        index, row, column = np.full((h, w), i), *np.indices((h, w))
        samples.append(Sample.of(str(i), np.dstack([index, row, column]).astype(np.float32),
                                 code(index, row, column).astype(np.uint8)))
    return samples


def crops(samples, crop, batch=4, seed=0, epochs=1):
    """The crops of some epochs: image (H, W, 3) as ints, mask (H, W)."""
    batches, rng = Batches(samples, crop, batch), generator(seed)
    return [(image.astype(int), mask) for _ in range(epochs) for images, masks in batches.epoch(rng)
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
    batches, rng = Batches(tell_tale(*sizes), crop, batch), generator()
    for _ in range(3):
        epoch = list(batches.epoch(rng))
        drawn = np.concatenate([images[:, 0, 0, INDEX] for images, _ in epoch]).astype(int)
        assert np.bincount(drawn).tolist() == pieces
        full, rest = divmod(sum(pieces), batch)
        assert [len(images) for images, _ in epoch] == [batch] * full + [rest] * (rest > 0)     # the last one is kept
        assert len(epoch) == len(batches) and all(len(images) == len(masks) for images, masks in epoch)


def test_each_epoch_has_an_order_of_its_own():
    batches, rng = Batches(tell_tale(*[(4, 4)] * 9), (4, 4), 2), generator()
    orders = {tuple(np.concatenate([images[:, 0, 0, INDEX] for images, _ in batches.epoch(rng)])) for _ in range(8)}
    assert len(orders) == 8


def test_the_generator_alone_decides_an_epoch():
    """So that a run that resumes sees what the uninterrupted one would have seen."""
    batches, fresh = (Batches(tell_tale((9, 9), (8, 10), (20, 20)), (4, 4), 3) for _ in range(2))
    for _ in range(2):
        list(batches.epoch(generator(1)))
    next(batches.epoch(generator(2)))                                   # one that was left in its middle
    for (images, masks), (same, same_masks) in zip(batches.epoch(generator(7)), fresh.epoch(generator(7)), strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(masks, same_masks)


def test_an_epoch_reads_a_sample_for_each_crop_as_it_goes():
    image, mask = np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)
    reads = []

    def read():
        reads.append(1)
        return image, mask
    batches = Batches([Sample("a", (8, 8), Sample.of("a", image, mask).moments, b"", read)], (4, 4), 3)
    assert len(batches) == 2 and not reads
    epoch = batches.epoch(generator())
    next(epoch)
    assert len(reads) == 3
    next(epoch)
    assert len(reads) == 4


@pytest.mark.parametrize("dtype, top", [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_images_of_any_depth_come_in_0_to_1(dtype, top):
    image = np.resize(np.array([0, top], dtype), (5, 5, 1))
    mask = (image[..., 0] > 0).astype(np.uint8)
    [(images, masks)] = Batches([Sample.of("a", image, mask)], (5, 5), 1).epoch(generator())
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images[..., 0], masks)


def test_batches_are_float32_images_with_integer_masks():
    images, masks = next(Batches(tell_tale((8, 8)), (4, 6), 2).epoch(generator()))
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
    for image, mask in Batches(samples, (5, 5), 4).epoch(generator()):
        image[:], mask[:] = -1, 255
    for sample, untouched in zip(samples, tell_tale((9, 9), (3, 3))):
        for array, same in zip(sample.read(), untouched.read()):
            np.testing.assert_array_equal(array, same)


# Ahead

LONG = 30       # s: only a thread that hangs takes this long


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "minunet-batches"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not workers()
    yield
    gc.collect()
    assert not workers()


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 40])
def test_prefetch_gives_the_same_items_in_order(count, size):
    taken = prefetch(iter(range(count)), size)
    assert list(taken) == list(range(count))
    assert not workers() and list(taken) == []


def test_prefetch_passes_on_whatever_an_item_is():
    items = [None, False, ValueError("not raised"), (), np.zeros(2)]
    for item, passed in zip(items, prefetch(iter(items)), strict=True):
        assert passed is item


def test_prefetched_batches_are_the_same_batches():
    batches = Batches(tell_tale((9, 9), (8, 10)), (4, 4), 3)
    for pair, same in zip(batches.epoch(generator(3)), prefetch(batches.epoch(generator(3))), strict=True):
        for array, other in zip(pair, same, strict=True):
            np.testing.assert_array_equal(array, other)


class Source:
    """Counts without end, and says how far it has come, and in which thread."""

    def __init__(self):
        self.made, self.threads, self.changed = 0, set(), threading.Condition()

    def __iter__(self):
        return self

    def __next__(self):
        with self.changed:
            self.made += 1
            self.threads.add(threading.get_ident())
            self.changed.notify_all()
            return self.made

    def reaches(self, count, timeout):
        with self.changed:
            return self.changed.wait_for(lambda: self.made >= count, timeout)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_prefetch_works_on_while_nobody_takes_but_not_without_end(size):
    source = Source()
    items = prefetch(source, size)
    for taken in (1, 2, 3):
        assert next(items) == taken
        assert source.reaches(taken + size, LONG)
        # one more may be made already, with no place to put it
        assert not source.reaches(taken + size + 2, 0.2)
    items.close()
    assert threading.get_ident() not in source.threads and len(source.threads) == 1


@pytest.mark.parametrize("error", [ValueError("the third"), KeyboardInterrupt(), OSError(28, "no space")])
def test_what_the_items_raise_is_raised_after_those_before(error):
    def items():
        yield 1
        yield 2
        raise error
    taken, got = prefetch(items(), 1), []
    with pytest.raises(type(error)) as raised:
        for item in taken:
            got.append(item)
    assert got == [1, 2] and raised.value is error
    assert not workers() and next(taken, "the end") == "the end"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_thread_ends_when_closed(count):
    source = Source()
    items = prefetch(source)
    for _ in range(count):
        next(items)
    if count:
        assert source.reaches(count + 2, LONG)              # it waits for a place
    assert len(workers()) == (count > 0)
    items.close()
    assert not workers()
    assert next(items, "the end") == "the end"


def test_the_thread_ends_when_forgotten():
    items = prefetch(Source())
    next(items)
    assert workers()
    del items
    gc.collect()
    assert not workers()


def test_the_thread_ends_when_the_loop_is_left():
    for item in prefetch(Source()):
        if item == 3:
            break
    gc.collect()
    assert not workers()


def test_the_thread_ends_when_the_loop_raises():
    def learn():
        for item in prefetch(Source()):
            raise ArithmeticError(item)
    with pytest.raises(ArithmeticError, match="^1$"):
        learn()


def test_nothing_begins_before_the_first_item_is_asked_for():
    source = Source()
    items = prefetch(source)
    assert source.made == 0 and not workers()
    items.close()
