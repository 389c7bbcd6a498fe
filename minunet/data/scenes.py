"""Made-up microscopy: pictures of cells together with their masks, drawn in milliseconds instead of downloaded.

A scene is made the way a phase-contrast microscope makes its picture: cells lie beside dirt, the optics add halos and
blur, the camera adds noise. Some cells are brighter than the medium and some darker, and the dirt is as bright or dark
as they are, so no threshold finds the cells: a net has to learn their outline and texture.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Window = tuple[slice, slice]

ROUND, SPINDLE, VACUOLATED = 1, 2, 3  # the kinds of cell
CLASS_IDS = {1: (0, 1, 1, 1), 2: (0, 1, 2, 1), 3: (0, 1, 2, 3)}  # classes -> mask id of background and of each kind
MIN_SIZE = 16  # px; in a smaller frame even the smallest cell shows no whole outline


def cell_scene(
    rng: np.random.Generator, size: tuple[int, int] = (128, 128), classes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """One made-up phase-contrast picture and its mask: image (H, W, 1) float32 in 0..1, mask (H, W) uint8.

    `size` is (height, width) in px. Cells are about 15 to 55 px long in a frame of any size; a larger one shows more.
    The same generator state draws the same picture for each `classes`; only the mask (0 is background) differs:

    - 1: every cell is 1;
    - 2: roundish cells are 1, elongated (spindle) cells 2;
    - 3: as 2, but roundish cells that hold a large clear vacuole are 3.

    Raises ValueError for another number of classes and for a size other than two ints of at least 16, TypeError when
    `rng` is not a Generator.

    >>> image, mask = cell_scene(np.random.default_rng(0), size=(96, 128), classes=2)
    >>> image.shape, image.dtype, mask.shape, mask.dtype
    ((96, 128, 1), dtype('float32'), (96, 128), dtype('uint8'))
    >>> np.unique(mask).tolist()
    [0, 1, 2]

    Source of the halo: Yin, Li, Kanade, Chen, Understanding the Optics to Aid Microscopy Image Segmentation (2010).
    """
    check_arguments(rng, size, classes)
    cells, owner = place_cells(rng, (int(size[0]), int(size[1])))
    light = draw_cells(rng, cells, owner)  # (H, W), 0 where the medium is clear
    draw_debris(rng, light)
    draw_fibres(rng, light)
    draw_ghosts(rng, light)
    image = take_picture(rng, light)
    kinds = np.array([0] + [cell.kind for cell in cells])
    mask = np.array(CLASS_IDS[classes], np.uint8)[kinds[owner]]
    return image[:, :, None], mask  # (H, W, 1), (H, W)


def cell_scenes(
    rng: np.random.Generator, count: int, size: tuple[int, int] = (128, 128), classes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """`count` scenes, drawn one after another by `cell_scene`: images (N, H, W, 1) float32, masks (N, H, W) uint8.

    Raises what `cell_scene` raises, and ValueError for a count below 1.

    >>> images, masks = cell_scenes(np.random.default_rng(0), 3, size=(32, 48))
    >>> images.shape, masks.shape
    ((3, 32, 48, 1), (3, 32, 48))
    """
    if not isinstance(count, numbers.Integral) or count < 1:
        raise ValueError(f"count must be an int of at least 1; got {count!r}")
    images, masks = zip(*(cell_scene(rng, size, classes) for _ in range(count)))
    return np.stack(images), np.stack(masks)


def check_arguments(rng: np.random.Generator, size: tuple[int, int], classes: int) -> None:
    """The errors that `cell_scene` promises."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0); got {rng!r}")
    if not isinstance(classes, numbers.Integral) or classes not in CLASS_IDS:
        raise ValueError(f"classes must be 1, 2 or 3; got {classes!r}")
    sides = size if isinstance(size, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(n, numbers.Integral) and n >= MIN_SIZE for n in sides):
        raise ValueError(f"size must be (height, width), two ints of at least {MIN_SIZE} px; got {size!r}")


# Where the cells lie


def window_around(centre: np.ndarray, reach: float, size: tuple[int, int]) -> Window:
    """The square of the frame that holds every pixel up to `reach` px from a centre (y, x)."""
    low, high = np.clip([centre - reach, centre + reach + 1], 0, size).astype(int)
    return slice(low[0], high[0]), slice(low[1], high[1])


def along_and_across(window: Window, centre: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's offset in px from a centre (y, x), along a direction and across it."""
    y, x = np.ogrid[window]
    y, x = y - centre[0], x - centre[1]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


@dataclass
class Cell:
    """One cell: its outline, place and look. Lengths in px, angles in radians, light as a share of full brightness."""

    kind: int
    half_length: float
    half_width: float
    bend: float  # how far the tips lie beside the cell's axis
    wobble: np.ndarray  # complex (3,): how the radius varies with the angle, Fourier coefficients 2, 3 and 4
    angle: float
    contrast: float  # of its body to the medium, below 0 in a dark cell
    granularity: float  # standard deviation of its texture
    centre: np.ndarray  # (2,): y, x

    def window(self, size: tuple[int, int]) -> Window:
        """The part of the frame that holds the cell."""
        return window_around(self.centre, 1.4 * self.half_length, size)

    def coordinates(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Each pixel's coordinates along the cell's bent axis and across it, in half lengths and half widths."""
        along, across = along_and_across(window, self.centre, self.angle)
        along = along / self.half_length
        return along, (across - self.bend * along**2) / self.half_width

    def interior(self, window: Window) -> np.ndarray:
        """Which pixels of the window lie inside: of a wobbling ellipse, or of a wobbling lens (a spindle has tips)."""
        along, across = self.coordinates(window)
        turn = np.exp(1j * np.arctan2(across, along))
        radius = 1 + (turn**2 * (self.wobble[0] + turn * (self.wobble[1] + turn * self.wobble[2]))).real
        if self.kind == SPINDLE:
            return np.abs(across) + along**2 < radius
        return np.hypot(along, across) < radius


def random_cell(rng: np.random.Generator, kind: int) -> Cell:
    """A cell of this kind, not placed yet."""
    if kind == SPINDLE:
        half_length, half_width = rng.uniform(16, 26), rng.uniform(4, 6)
        bend, roughness = rng.uniform(-8, 8), 0.07
    else:
        half_length = rng.uniform(8, 14) if kind == ROUND else rng.uniform(10, 14)  # a vacuole needs room
        half_width = half_length * rng.uniform(0.75, 1)  # rounder than any spindle
        bend, roughness = 0.0, 0.08
    wobble = rng.standard_normal(3) + 1j * rng.standard_normal(3)
    wobble *= roughness / np.array([1, 1.6, 3])  # the finer, the less: a membrane is smooth
    wobble *= min(1, 0.35 / np.abs(wobble).sum())  # the farthest point stays inside the cell's window
    dark, bright = rng.uniform(-0.18, -0.02), rng.uniform(0.08, 0.32)  # the dark membrane makes up for the difference
    contrast = dark if kind == VACUOLATED or rng.random() < 0.5 else bright  # beside a vacuole cytoplasm is dense
    granularity, angle = rng.uniform(0.04, 0.09), rng.uniform(0, 2 * np.pi)
    return Cell(kind, half_length, half_width, bend, wobble, angle, contrast, granularity, centre=np.zeros(2))


def place_cells(rng: np.random.Generator, size: tuple[int, int]) -> tuple[list[Cell], np.ndarray]:
    """Cells at random places, and for each pixel the number 1, 2, .. of the cell that owns it (H, W), 0 for none.

    A cell may push against those placed before it; it gives way to them, by a twentieth of its area at most.
    """
    owner = np.zeros(size, np.int32)  # (H, W)
    cells: list[Cell] = []
    kinds: list[int] = []  # the next ones, drawn as a hand of cards, so that no kind is missing for long
    wanted, covered = rng.uniform(0.2, 0.38) * owner.size, 0  # px
    for _ in range(3 + owner.size // 200):  # gives up in the end, should there be no room
        if covered > wanted:
            break
        kinds = kinds or rng.permutation([ROUND, ROUND, SPINDLE, SPINDLE, VACUOLATED]).tolist()
        cell = random_cell(rng, kinds[-1])
        for _ in range(4):
            cell.centre = rng.uniform(0, size)
            window = cell.window(size)
            inside = cell.interior(window)
            free = inside & (owner[window] == 0)
            area, free_area = np.count_nonzero(inside), np.count_nonzero(free)
            if free_area >= 0.95 * area:
                cells.append(cell)
                owner[window][free] = len(cells)
                covered += int(free_area)
                kinds.pop()
                break
    return cells, owner


# How the cells look


def bump(distance: np.ndarray, width: float) -> np.ndarray:
    """A bell of height 1: a Gaussian of the distance, whose standard deviation is the width."""
    return np.exp(-0.5 * (distance / width) ** 2)


def noise_texture(rng: np.random.Generator, size: tuple[int, int], grain: float) -> np.ndarray:
    """Smooth noise (H, W), mean 0 and standard deviation 1, with grains about 2·`grain` px wide."""
    noise = ndimage.gaussian_filter(rng.standard_normal(size, np.float32), grain)
    return noise * (2 * np.sqrt(np.pi) * grain)  # the filter leaves 1 / (4π·grain²) of white noise's variance


def depth_in_cell(owner: np.ndarray) -> np.ndarray:
    """Distance (H, W) in px to the nearest outline, below 0 outside; cells that touch have one between them."""
    edge = np.zeros(owner.shape, bool)
    beside, below = owner[:, 1:] != owner[:, :-1], owner[1:] != owner[:-1]
    edge[:, 1:] |= beside
    edge[:, :-1] |= beside
    edge[1:] |= below
    edge[:-1] |= below
    edge &= owner > 0
    if not edge.any():  # one cell fills a small frame; SciPy would measure to a point outside it
        return np.full(owner.shape, float(sum(owner.shape)))
    distance = ndimage.distance_transform_edt(~edge)
    return np.where(owner > 0, distance, -distance)


def draw_cells(rng: np.random.Generator, cells: list[Cell], owner: np.ndarray) -> np.ndarray:
    """What the cells add to the light of the clear medium (H, W): bodies, granules, organelles and membranes."""
    depth = depth_in_cell(owner)
    body = 1 - np.exp(-np.maximum(depth, 0) / 2.5)  # a cell is thin towards its outline
    contrast = np.array([0] + [cell.contrast for cell in cells])
    granularity = np.array([0] + [cell.granularity for cell in cells])
    light = body * (contrast[owner] + granularity[owner] * noise_texture(rng, owner.shape, 0.9))
    for number, cell in enumerate(cells, start=1):
        window = cell.window(owner.shape)
        draw_organelle(rng, cell, window, light[window], own=owner[window] == number)
    light -= 0.16 * bump(depth - 0.5, 1.0)  # the membrane, seen edge on
    light += 0.08 * bump(depth + 2.0, 1.3)  # the bright fringe around it
    return light


def draw_organelle(rng: np.random.Generator, cell: Cell, window: Window, light: np.ndarray, own: np.ndarray) -> None:
    """A vacuole (large, clear, bright at its rim) or a nucleus with a nucleolus, drawn into the cell's own pixels."""
    along, across = cell.coordinates(window)
    size = rng.uniform(0.5, 0.65) if cell.kind == VACUOLATED else rng.uniform(0.3, 0.42)
    place = rng.uniform(-0.2, 0.2, 2)
    distance = np.hypot(along - place[0], across - place[1]) / size  # 1 at the organelle's own outline
    inside, rim = own / (1 + np.exp(12 * (distance - 1))), own * bump(distance - 1, 0.12)
    if cell.kind == VACUOLATED:
        light += inside * (0.12 - light) + 0.1 * rim
    else:
        light += inside * (0.05 - 0.6 * light - 0.15 * bump(distance, 0.3)) - 0.06 * rim


# What is no cell


def draw_debris(rng: np.random.Generator, light: np.ndarray) -> None:
    """Specks 2 to 4 px wide, bright or dark, each in a fringe of the other sign."""
    for _ in range(rng.poisson(light.size / 1000)):
        radius, centre = rng.uniform(0.7, 1.8), rng.uniform(0, light.shape)
        window = window_around(centre, 5 * radius, light.shape)
        distance = np.hypot(*along_and_across(window, centre, 0.0))
        speck = bump(distance, radius) - 0.4 * bump(distance - 2.5 * radius, 0.6 * radius)
        light[window] += rng.uniform(0.1, 0.35) * rng.choice([-1, 1]) * speck


def draw_fibres(rng: np.random.Generator, light: np.ndarray) -> None:
    """Fibres and scratches: long thin arcs, bright or as dark as a membrane, that enclose nothing."""
    for _ in range(rng.poisson(light.size / 8000)):
        half_length, centre = rng.uniform(10, 40), rng.uniform(0, light.shape)
        window = window_around(centre, 3 * half_length, light.shape)
        along, across = along_and_across(window, centre, rng.uniform(0, np.pi))
        curve = rng.uniform(-0.005, 0.005) * along**2
        line = bump(along, half_length) * bump(across - curve, rng.uniform(0.6, 1.0))
        light[window] += rng.uniform(0.08, 0.2) * rng.choice([-1, 1]) * line


def draw_ghosts(rng: np.random.Generator, light: np.ndarray) -> None:
    """Dirt far out of focus: blobs as large as cells and as bright or dark, without outline or texture."""
    for _ in range(rng.poisson(light.size / 4000)):
        width, centre = rng.uniform(4, 8), rng.uniform(0, light.shape)
        window = window_around(centre, 3 * width, light.shape)
        distance = np.hypot(*along_and_across(window, centre, 0.0))
        light[window] += rng.uniform(0.1, 0.3) * rng.choice([-1, 1]) * bump(distance, width)


# The microscope and its camera


def take_picture(rng: np.random.Generator, light: np.ndarray) -> np.ndarray:
    """The camera's picture (H, W) float32 in 0..1 of the light that the specimen adds to that of the clear medium."""
    light = light - 0.7 * ndimage.gaussian_filter(light, 6)  # the phase ring takes most of the broad part: the halo
    light += 0.025 * noise_texture(rng, light.shape, 1.5) + 0.03 * noise_texture(rng, light.shape, 6)  # the medium
    light = (0.5 + rng.uniform(0.9, 1.5) * light) * illumination(rng, light.shape)
    light = ndimage.gaussian_filter(light, rng.uniform(0.5, 1.0)).clip(0, 1)  # defocus
    full_well = rng.uniform(500, 2000)  # electrons at full brightness; their number is Poisson: shot noise
    picture = rng.poisson(full_well * light) / full_well + rng.normal(0, 0.01, light.shape)  # read noise
    return picture.clip(0, 1).astype(np.float32)


def illumination(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """The lamp's light (H, W), 1 on average: it falls off to one side and from the middle, or towards the middle."""
    y, x = np.ogrid[-1:1:size[0] * 1j, -1:1:size[1] * 1j]
    slope_y, slope_x = rng.uniform(-0.15, 0.15, 2)
    return 1 + slope_y * y + slope_x * x - rng.uniform(-0.1, 0.2) * ((y**2 + x**2) / 2 - 1 / 3)
