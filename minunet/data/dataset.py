"""A set of images with masks in memory: split by a generator, and served in batches of random crops.

An image is (H, W, C) float32 in 0..1, a mask (H, W) of class ids. With one class, the ids are 0 (background) and 1;
with more, 0 .. classes − 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minunet.errors import UserError
from minunet.geometry import Pair


class Sample(NamedTuple):
    """One image (H, W, C) float32 with its mask (H, W) of class ids."""

    name: str
    image: np.ndarray
    mask: np.ndarray


class Dataset(NamedTuple):
    """Samples with the same channels and classes."""

    samples: list[Sample]
    channels: int
    classes: int


class Split(NamedTuple):
    """What learns, what chooses the best epoch, and what only the final figures see."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]


def split(samples: list[Sample], rng: np.random.Generator) -> Split:
    """Samples in 0.6 / 0.2 / 0.2 by the generator's order. Raises UserError for fewer than 3 samples."""
    if len(samples) < 3:
        raise UserError(f"training needs at least 3 pairs of image and mask (to learn, to validate and to test); "
                        f"got {len(samples)}")
    shuffled = [samples[i] for i in rng.permutation(len(samples))]
    part = max(1, round(0.2 * len(samples)))
    return Split(shuffled[2 * part:], shuffled[:part], shuffled[part:2 * part])


def channel_statistics(samples: list[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) float32 of every channel over all pixels; a constant channel has deviation 1."""
    pixels = sum(s.image[..., 0].size for s in samples)
    mean = sum(s.image.sum((0, 1), dtype=np.float64) for s in samples) / pixels
    variance = sum(np.square(s.image - mean).sum((0, 1)) for s in samples) / pixels
    deviation = np.sqrt(variance)
    return mean.astype(np.float32), np.where(deviation > 0, deviation, 1).astype(np.float32)


class Batches:
    """Random crops with flips and quarter turns, in batches: images (N, H, W, C) float32, masks (N, H, W).

    An epoch draws one crop for every crop-sized piece of each image, so that it shows about as many pixels as there
    are. Order, places, flips and turns come from the generator; the last, smaller batch is kept. Images smaller than
    the crop are extended by their edge.
    """

    def __init__(self, samples: list[Sample], crop: Pair, batch: int, rng: np.random.Generator):
        self.samples, self.crop, self.batch, self.rng = samples, crop, batch, rng
        self._order = np.repeat(np.arange(len(samples)), [self._pieces(s.mask.shape) for s in samples])

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._order) // self.batch)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch."""
        order = self.rng.permutation(self._order)
        for start in range(0, len(order), self.batch):
            crops = [self._draw(self.samples[i]) for i in order[start:start + self.batch]]
            yield np.stack([image for image, _ in crops]), np.stack([mask for _, mask in crops])

    def _pieces(self, size: tuple[int, ...]) -> int:
        return max(1, round(size[0] * size[1] / (self.crop[0] * self.crop[1])))

    def _draw(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """One crop of a sample, flipped and turned."""
        image, mask = sample.image, sample.mask
        (h, w), rng = self.crop, self.rng
        turns = int(rng.integers(4)) if h == w else 2 * int(rng.integers(2))
        flip = bool(rng.integers(2))
        missing = [(0, max(0, n - size)) for n, size in zip(self.crop, mask.shape)]
        if any(after for _, after in missing):
            image = np.pad(image, [*missing, (0, 0)], mode="edge")
            mask = np.pad(mask, missing, mode="edge")
        top, left = (int(rng.integers(size - n + 1)) for n, size in zip(self.crop, mask.shape))
        parts = []
        for array in (image, mask):
            part = np.rot90(array[top:top + h, left:left + w], turns)
            parts.append(part[:, ::-1] if flip else part)
        return parts[0], parts[1]
