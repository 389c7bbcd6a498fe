"""Samples and datasets: splits, statistics, what is held in memory, and other sizes."""

import threading

import numpy as np
import pytest

from minunet.data import Dataset, Sample, channel_statistics, split
from minunet.data.dataset import Cache, Moments
from minunet.errors import UserError


def generator(seed=0):
    return np.random.default_rng(seed)


def numbered(count):
    return [Sample.of(str(i), np.zeros((2, 2, 1), np.float32), np.zeros((2, 2), np.uint8)) for i in range(count)]


def names(samples):
    return [sample.name for sample in samples]


def test_a_sample_of_arrays_gives_them_back():
    image, mask = np.full((3, 5, 2), 0.5, np.float32), np.ones((3, 5), np.uint8)
    sample = Sample.of("a", image, mask)
    assert (sample.name, sample.size) == ("a", (3, 5)) and sample.read() == (image, mask)


@pytest.mark.parametrize("classes, names", [(1, ("class",)), (3, ("class 0", "class 1", "class 2"))])
def test_classes_of_samples_in_memory_have_names(classes, names):
    dataset = Dataset.of(numbered(2), 1, classes)
    assert (dataset.channels, dataset.classes, dataset.class_names) == (1, classes, names)


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


@pytest.mark.parametrize("count, validation, test, sizes", [
    (10, 0.3, 0.1, (6, 3, 1)), (10, 0.1, 0.3, (6, 1, 3)), (10, 0, 0.2, (8, 0, 2)), (10, 0.2, 0, (8, 2, 0)),
    (10, 0, 0, (10, 0, 0)), (1, 0, 0, (1, 0, 0)), (2, 0.2, 0, (1, 1, 0)), (50, 0.01, 0.99 / 2, (24, 1, 25)),
    (3, 0.01, 0.01, (1, 1, 1)),
])
def test_shares_may_be_given(count, validation, test, sizes):
    parts = split(numbered(count), generator(), validation, test)
    assert tuple(map(len, parts)) == sizes
    assert sorted(names(sum(parts, []))) == sorted(names(numbered(count)))


def test_the_generator_decides_the_split():
    samples = numbered(10)
    first, again, other = ([names(part) for part in split(samples, generator(seed))] for seed in (1, 1, 2))
    assert first == again != other
    for part in range(3):
        seen = {name for seed in range(60) for name in names(split(samples, generator(seed))[part])}
        assert seen == set(names(samples))


@pytest.mark.parametrize("count, validation, test, wanted", [
    (0, 0.2, 0.2, 3), (1, 0.2, 0.2, 3), (2, 0.2, 0.2, 3), (1, 0.2, 0, 2), (1, 0, 0.2, 2), (0, 0, 0, 1),
    (10, 0.5, 0.5, 3), (10, 0.98, 0, 2),
])
def test_something_must_be_left_to_learn_from(count, validation, test, wanted):
    with pytest.raises(UserError, match=f"at least {wanted} pairs .*got {count} pairs .*{validation} and {test}$"):
        split(numbered(count), generator(), validation, test)


# Statistics


def samples_of(*images):
    return [Sample.of(str(i), image, image[..., 0]) for i, image in enumerate(images)]


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_over_all_pixels_of_all_images(channels):
    rng = generator()
    images = [rng.normal(0.3 * i, 1 + np.arange(channels), (h, w, channels)).astype(np.float32)
              for i, (h, w) in enumerate([(3, 5), (8, 1), (40, 30)])]
    mean, deviation = channel_statistics(samples_of(*images))
    pixels = np.concatenate([image.reshape(-1, channels) for image in images]).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-5)
    assert mean.dtype == deviation.dtype == np.float32 and mean.shape == deviation.shape == (channels,)


def test_statistics_are_of_images_in_0_to_1():
    rng = generator()
    bytes_, deep = (rng.integers(0, top, (h, 7, 3)).astype(dtype)
                    for top, h, dtype in ((256, 9, np.uint8), (65536, 4, np.uint16)))
    floats = rng.random((5, 5, 3), np.float32)
    pixels = np.concatenate([image.reshape(-1, 3) for image in (bytes_ / 255, deep / 65535, floats)])
    mean, deviation = channel_statistics(samples_of(bytes_, deep, floats))
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, pixels.std(0), rtol=1e-6)


def test_a_small_deviation_beside_a_great_mean_is_kept():
    """The difference of E[x²] and E[x]² would lose it."""
    image = (60000 + np.arange(600 * 500).reshape(600, 500, 1) % 3).astype(np.uint16)
    mean, deviation = channel_statistics(samples_of(image, image[:100]))
    pixels = np.concatenate([image.ravel(), image[:100].ravel()]) / 65535
    np.testing.assert_allclose(mean, pixels.mean(), rtol=1e-6)
    np.testing.assert_allclose(deviation, pixels.std(), rtol=5e-3)          # float32 pixels are known to 3e-8


def test_moments_are_those_of_the_pixels():
    image = generator().integers(0, 256, (6, 7, 2), dtype=np.uint8)
    pixels, mean, squares = Moments.of(image)
    flat = image.reshape(-1, 2) / 255
    assert pixels == 42 and mean.dtype == squares.dtype == np.float64
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(squares, np.square(flat - flat.mean(0)).sum(0), rtol=1e-6)


@pytest.mark.parametrize("value", [0, 17, 85, 201, 255])
def test_a_constant_channel_has_deviation_1(value):
    image = np.full((37, 41, 2), np.float32(value) / 255, np.float32)
    image[::2, :, 1] = 0.123
    mean, deviation = channel_statistics(samples_of(image, image[:7]))
    np.testing.assert_allclose(mean[0], image[0, 0, 0], rtol=1e-6)
    assert deviation[0] == 1 and deviation[1] < 1


# Cache


def arrays(count):
    """A pair of arrays with so many bytes together."""
    return np.zeros(count - 1, np.uint8), np.zeros(1, np.uint8)


def reading(count, reads):
    def read():
        reads.append(count)
        return arrays(count)
    return read


def test_a_cache_reads_once_what_fits():
    cache, reads = Cache(100), []
    first, again = (cache.get("a", reading(60, reads)) for _ in range(2))
    assert reads == [60] and again[0] is first[0] and cache.used == 60


def test_a_cache_stays_within_its_budget_and_keeps_what_came_first():
    cache, reads = Cache(100), []
    for _ in range(3):
        for key, count in (("a", 60), ("b", 41), ("c", 40), ("d", 2)):
            image, mask = cache.get(key, reading(count, reads))
            assert image.nbytes + mask.nbytes == count          # the key's own
            assert cache.used <= cache.budget
    assert reads == [60, 41, 40, 2, 41, 2, 41, 2] and cache.used == 100


def test_a_cache_of_nothing_reads_always():
    cache, reads = Cache(0), []
    assert [len(cache.get("a", reading(5, reads))) for _ in range(3)] == [2, 2, 2] and len(reads) == 3


def test_two_threads_that_read_the_same_count_it_once():
    cache, both = Cache(100), threading.Barrier(2)

    def read():
        both.wait(10)                       # both have missed it before either puts it in
        return arrays(40)
    threads = [threading.Thread(target=cache.get, args=("a", read)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.used == 40


# Other sizes


def test_resized_samples_have_the_size_and_the_same_ids():
    rng = generator()
    samples = [Sample.of(f"{h}x{w}", rng.integers(0, 256, (h, w, 3), dtype=np.uint8),
                         rng.choice(np.array([0, 2, 255], np.uint8), (h, w))) for h, w in ((9, 14), (20, 6))]
    resized = [sample.resized((12, 8)) for sample in samples]
    assert names(resized) == names(samples) and [sample.size for sample in resized] == [(12, 8)] * 2
    for sample in resized:
        image, mask = sample.read()
        assert image.shape == (12, 8, 3) and image.dtype == np.float32 and 0 <= image.min() < image.max() <= 1
        assert mask.shape == (12, 8) and mask.dtype == np.uint8 and set(mask.flat) <= {0, 2, 255}


def test_a_resized_image_is_the_same_picture():
    image = np.zeros((8, 8, 1), np.uint8)
    image[:4, 4:] = 255                                     # the right upper quarter
    sample = Sample.of("a", image, image[..., 0] // 255)
    image, mask = sample.resized((4, 2)).read()
    np.testing.assert_array_equal(mask, [[0, 1], [0, 1], [0, 0], [0, 0]])
    assert image[0, 1, 0] > 0.6 and max(image[0, 0, 0], image[3, 1, 0]) < 0.4


def test_resized_samples_are_held_within_the_budget():
    reads = []
    image, mask = np.zeros((8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)

    def read(name):
        reads.append(name)
        return image, mask
    cache = Cache(4 * 4 * (4 + 1))                          # one resized sample: float32 and a byte
    samples = [Sample(name, (8, 8), Moments.of(image), b"", lambda name=name: read(name), cache) for name in "ab"]
    resized = [sample.resized((4, 4)) for sample in samples]
    assert reads == []
    for _ in range(3):
        for sample in resized:
            sample.read()
    assert reads == ["a", "b", "b", "b"]
    samples[0].resized((2, 2)).read()
    assert reads[-1] == "a"                                 # another size is another thing to hold
