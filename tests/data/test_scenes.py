"""Made-up scenes are well-formed and repeatable, and finding the cells takes more than a threshold."""

import time

import numpy as np
import pytest
from scipy import ndimage

from minunet.data import scenes
from minunet.data.scenes import ROUND, SPINDLE, VACUOLATED, cell_scene, cell_scenes

COUNT = 24  # scenes over which an average is taken


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def sample():
    """Scenes with every kind of cell told apart: images (N, H, W), masks (N, H, W)."""
    images, masks = cell_scenes(generator(1), COUNT, classes=3)
    return images[..., 0], masks


@pytest.fixture(scope="module")
def placed():
    """The cells and the owner map of several scenes."""
    rng = generator(2)
    return [scenes.place_cells(rng, (128, 128)) for _ in range(COUNT)]


# Shapes, ranges, repeatability


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("size", [(128, 128), (64, 200), (150, 40), (16, 16), (17, 31)])
def test_shapes_types_and_ranges(size, classes):
    image, mask = cell_scene(generator(), size, classes)
    assert image.shape == (*size, 1) and image.dtype == np.float32
    assert mask.shape == size and mask.dtype == np.uint8
    assert 0 <= image.min() < image.max() <= 1
    assert 1 <= mask.max() <= classes


def test_default_is_128_px_and_one_class():
    image, mask = cell_scene(generator())
    assert image.shape == (128, 128, 1) and set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("size", [(64, 256), (256, 64)])
def test_cells_lie_all_over_a_frame_that_is_not_square(size):
    _, masks = cell_scenes(generator(), 4, size)
    share = (masks > 0).mean(axis=0)  # (H, W)
    for quarter in (q for half in np.array_split(share, 2, axis=0) for q in np.array_split(half, 2, axis=1)):
        assert 0.1 < quarter.mean() < 0.6


def test_the_generator_state_decides_every_bit():
    first, again, other = cell_scene(generator(5)), cell_scene(generator(5)), cell_scene(generator(6))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[1], other[1])


def test_scenes_are_drawn_one_after_another():
    images, masks = cell_scenes(generator(3), 3, (48, 64), classes=2)
    rng = generator(3)
    assert images.shape == (3, 48, 64, 1) and images.dtype == np.float32
    assert masks.shape == (3, 48, 64) and masks.dtype == np.uint8
    for image, mask in zip(images, masks):
        one_image, one_mask = cell_scene(rng, (48, 64), classes=2)
        assert np.array_equal(image, one_image) and np.array_equal(mask, one_mask)


def test_more_classes_label_the_same_picture_more_finely():
    (image, coarse), (image2, two), (image3, three) = (cell_scene(generator(4), classes=c) for c in (1, 2, 3))
    assert np.array_equal(image, image2) and np.array_equal(image, image3)
    assert np.array_equal(coarse, three > 0)
    assert np.array_equal(two, np.where(three == VACUOLATED, ROUND, three))


def test_a_cell_that_fills_the_frame_has_no_outline_in_it():
    depth = scenes.depth_in_cell(np.ones((16, 16), np.int32))
    assert np.isfinite(depth).all() and depth.min() > 16


# What a net has to learn


def best_threshold_iou(feature, truth):
    """IoU of the mask that the best threshold gives, in either polarity, the truth being known."""
    thresholds = np.quantile(feature, np.linspace(0.005, 0.995, 60))
    masks = [feature > t for t in thresholds] + [feature < t for t in thresholds]
    return max((mask & truth).sum() / (mask | truth).sum() for mask in masks)


def flattened(image):
    return image - ndimage.gaussian_filter(image, 16)


def local_roughness(image):
    """Standard deviation in a neighbourhood of about 9 px."""
    mean, mean_square = ndimage.gaussian_filter(image, 3), ndimage.gaussian_filter(image**2, 3)
    return np.sqrt(np.maximum(mean_square - mean**2, 0))


def smoothed(image):
    return ndimage.gaussian_filter(flattened(image), 2)


@pytest.mark.parametrize(
    "feature, limit", [(np.asarray, 0.5), (flattened, 0.5), (smoothed, 0.5), (local_roughness, 0.58)]
)
def test_no_threshold_finds_the_cells(sample, feature, limit):
    ious = [best_threshold_iou(feature(image), mask > 0) for image, mask in zip(*sample)]
    assert np.mean(ious) < limit
    assert max(ious) < 0.65


def test_outlines_can_be_seen(sample):
    """Along the outline the membrane is darker than the fringe beside it, nearly everywhere and beyond the noise."""
    for image, mask in zip(*sample):
        inside = ndimage.distance_transform_edt(mask > 0)
        outside = ndimage.distance_transform_edt(mask == 0)
        membrane = np.where((inside > 0) & (inside <= 2), image, np.nan)
        fringe = np.where((outside > 1) & (outside <= 4), image, np.nan)
        rows, columns = np.nonzero(inside == 1)
        near = [np.s_[max(r - 4, 0):r + 5, max(c - 4, 0):c + 5] for r, c in zip(rows[::7], columns[::7])]
        near = [w for w in near if not np.isnan(fringe[w]).all()]
        step = np.array([np.nanmean(fringe[w]) - np.nanmean(membrane[w]) for w in near])
        noise = 1.48 * np.median(np.abs(image - ndimage.gaussian_filter(image, 1)))
        assert np.median(step) > 2 * noise
        assert np.mean(step > noise) > 0.8


def test_some_cells_are_brighter_than_the_medium_and_some_darker(sample):
    """Their inner parts are, more than 3 px away from the membrane."""
    steps = []
    for image, mask in zip(*sample):
        image = flattened(image)
        labels, count = ndimage.label(ndimage.distance_transform_edt(mask > 0) > 3)
        medium = np.median(image[mask == 0])
        steps += [np.median(image[labels == n]) - medium for n in range(1, count + 1)]
    assert np.mean(np.array(steps) > 0.02) > 0.25
    assert np.mean(np.array(steps) < -0.02) > 0.25


def test_foreground_share(sample):
    shares = (sample[1] > 0).mean(axis=(1, 2))
    assert 0.2 < shares.mean() < 0.4
    assert 0.12 < shares.min() and shares.max() < 0.5


@pytest.mark.parametrize("class_id", [ROUND, SPINDLE, VACUOLATED])
def test_every_class_is_in_most_scenes_and_none_is_rare(sample, class_id):
    found = sample[1] == class_id
    assert found.any(axis=(1, 2)).mean() > 0.9
    assert found.mean() > 0.04


# The cells


def elongation(inside):
    """Ratio of the standard deviations along the longest and the shortest direction."""
    small, large = np.linalg.eigvalsh(np.cov(np.nonzero(inside)))
    return np.sqrt(large / small)


def test_spindles_are_elongated_and_the_others_are_not():
    rng = generator(7)
    ratios = {}
    for kind in (ROUND, SPINDLE, VACUOLATED):
        ratios[kind] = []
        for _ in range(100):
            cell = scenes.random_cell(rng, kind)
            cell.centre = np.array([64.0, 64.0])
            ratios[kind].append(elongation(cell.interior(cell.window((128, 128)))))
    rounds, spindles = ratios[ROUND] + ratios[VACUOLATED], ratios[SPINDLE]
    assert np.mean(np.array(rounds) < 2) > 0.98 and np.median(rounds) < 1.4
    assert np.mean(np.array(spindles) > 2) > 0.98 and np.median(spindles) > 3


@pytest.mark.parametrize("kind", [ROUND, SPINDLE, VACUOLATED])
def test_a_cell_fits_into_its_window(kind):
    rng = generator(8)
    for _ in range(300):
        cell = scenes.random_cell(rng, kind)
        cell.centre = rng.uniform(60, 68, 2)
        inside = cell.interior(cell.window((128, 128)))
        assert not (inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any())
        pieces, _ = ndimage.label(inside, np.ones((3, 3)))
        assert np.bincount(pieces.ravel())[1:].max() > 0.98 * inside.sum()  # one piece, but for a pixel of a thin tip


def test_cells_touch_but_keep_their_area(placed):
    touching = 0
    for cells, owner in placed:
        for number, cell in enumerate(cells, start=1):
            window = cell.window(owner.shape)
            inside = cell.interior(window)
            assert np.count_nonzero(owner == number) >= 0.95 * np.count_nonzero(inside)
        beside = (owner[:, 1:] != owner[:, :-1]) & (owner[:, 1:] > 0) & (owner[:, :-1] > 0)
        touching += beside.any()
    assert touching > COUNT / 2


def test_depth_is_zero_on_the_outline_and_grows_to_both_sides():
    owner = np.zeros((20, 30), np.int32)
    owner[5:15, 5:15], owner[5:15, 15:25] = 1, 2  # two cells that touch
    depth = scenes.depth_in_cell(owner)
    assert depth[10, :].tolist() == [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4, 3, 2, 1, 0,
                                     -1, -2, -3, -4, -5]


@pytest.mark.parametrize("draw", [scenes.draw_debris, scenes.draw_fibres, scenes.draw_ghosts])
def test_distractors_are_bright_and_dark(draw):
    light = np.zeros((512, 512))
    draw(generator(9), light)
    assert light.max() > 0.08 and light.min() < -0.08
    assert np.mean(np.abs(light) > 0.02) < 0.4  # and leave most of the frame alone


@pytest.mark.parametrize("grain", [0.9, 1.5, 6])
def test_noise_texture_has_unit_deviation(grain):
    assert scenes.noise_texture(generator(), (512, 512), grain).std() == pytest.approx(1, rel=0.15)


# Errors and speed


@pytest.mark.parametrize("classes", [0, 4, -1, 1.5, "2", None, [1]])
def test_unknown_number_of_classes(classes):
    with pytest.raises(ValueError, match=r"classes must be 1, 2 or 3; got "):
        cell_scene(generator(), classes=classes)


@pytest.mark.parametrize("size", [(15, 64), (64, 15), (0, 0), (64,), (64, 64, 1), 128, (64.0, 64), None, "64"])
def test_impossible_size(size):
    with pytest.raises(ValueError, match=r"size must be \(height, width\), two ints of at least 16 px; got "):
        cell_scene(generator(), size=size)


@pytest.mark.parametrize("count", [0, -1, 2.0, None])
def test_impossible_count(count):
    with pytest.raises(ValueError, match=r"count must be an int of at least 1; got "):
        cell_scenes(generator(), count)


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match=r"rng must be a numpy.random.Generator, .* got 0"):
        cell_scene(0)


def test_sizes_may_be_numpy_ints():
    assert cell_scene(generator(), tuple(np.array([32, 40])))[1].shape == (32, 40)


def test_a_scene_takes_milliseconds():
    """About 9 ms on one core; the limit leaves room for a busy machine."""
    rng, best = generator(), np.inf
    for _ in range(10):
        start = time.perf_counter()
        cell_scene(rng)
        best = min(best, time.perf_counter() - start)
    assert best < 0.05
