"""A set of images with masks: samples that are read when they are needed, and split by a generator.

An image is (H, W, C) in 0..1, held as uint8, uint16 or float32 (`files.unit` converts), a mask (H, W) uint8 of class
ids. With one class, the ids are 0 (background) and 1; with more, 0 .. classes − 1; pixels of IGNORE count for nothing.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from minunet.data.files import resize_image, resize_mask, unit
from minunet.errors import UserError
from minunet.geometry import Pair

Arrays = tuple[np.ndarray, np.ndarray]

ROUNDING = 1e-6         # a deviation that rounding leaves of a constant channel; a step of 16 bits is 1.5e-5


class Moments(NamedTuple):
    """The count of pixels, and each channel's mean and sum of squared deviations from it, (C,) float64, for 0..1."""

    pixels: int
    mean: np.ndarray
    squares: np.ndarray

    @staticmethod
    def of(image: np.ndarray) -> Moments:
        """Those of one image (H, W, C)."""
        pixels = unit(image).reshape(-1, image.shape[2])
        mean = pixels.mean(0, dtype=np.float64)
        return Moments(len(pixels), mean, np.square(pixels - mean).sum(0))


class Cache:
    """Arrays that were read once, as far as they fit in a budget of bytes; the rest is read again each time.

    What came first stays: over epochs in random order that keeps as much as replacing would, without the churn.
    """

    def __init__(self, budget: int):
        self.budget, self.used = budget, 0
        self._held: dict[Hashable, Arrays] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], Arrays]) -> Arrays:
        """What is held for the key, or read() afresh."""
        if key in self._held:
            return self._held[key]
        arrays = read()
        size = sum(array.nbytes for array in arrays)
        with self._lock:
            if key not in self._held and self.used + size <= self.budget:
                self._held[key] = arrays
                self.used += size
        return arrays


@dataclass(frozen=True)
class Sample:
    """One image with its mask. read() gives both, (H, W, C) and (H, W), from the cache if there is one and it has
    them, else by fetch(); size is (H, W) in px, digest changes with any pixel of image or mask."""

    name: str
    size: Pair
    moments: Moments
    digest: bytes
    fetch: Callable[[], Arrays]
    cache: Cache | None = None

    @staticmethod
    def of(name: str, image: np.ndarray, mask: np.ndarray) -> Sample:
        """A sample of arrays in memory."""
        digest = hashlib.blake2b(image.tobytes() + mask.tobytes(), digest_size=16).digest()
        return Sample(name, (mask.shape[0], mask.shape[1]), Moments.of(image), digest, lambda: (image, mask))

    def read(self) -> Arrays:
        """Image and mask."""
        return self.cache.get((self.name, self.size), self.fetch) if self.cache else self.fetch()

    def resized(self, size: Pair) -> Sample:
        """The same sample with its image (bilinear) and mask (nearest) at another size; only these are cached."""
        def fetch() -> Arrays:
            image, mask = self.fetch()
            return resize_image(unit(image), size), resize_mask(mask, size)
        return replace(self, size=size, fetch=fetch)


@dataclass(frozen=True)
class Dataset:
    """Samples with the same channels and classes; class_names has one name, or one for each id."""

    samples: Sequence[Sample]
    channels: int
    classes: int
    class_names: tuple[str, ...]

    @staticmethod
    def of(samples: Sequence[Sample], channels: int, classes: int) -> Dataset:
        """A dataset whose classes have no names of their own."""
        return Dataset(samples, channels, classes,
                       ("class",) if classes == 1 else tuple(f"class {i}" for i in range(classes)))


class Split(NamedTuple):
    """What learns, what chooses the best epoch, and what only the final figures see."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]


def split(samples: Sequence[Sample], rng: np.random.Generator, validation: float = 0.2, test: float = 0.2) -> Split:
    """Samples in the generator's order: these shares (each at least one image, unless it is 0), and the rest to learn.

    Raises UserError when nothing is left to learn from.
    """
    count = len(samples)
    parts = [max(1, round(share * count)) if share else 0 for share in (validation, test)]
    if sum(parts) >= count:
        wanted = 1 + sum(share > 0 for share in (validation, test))
        raise UserError(f"training needs at least {wanted} pairs of image and mask, and shares of validation and test "
                        f"that leave some to learn from; got {count} pairs and the shares {validation} and {test}")
    shuffled = [samples[i] for i in rng.permutation(count)]
    return Split(shuffled[sum(parts):], shuffled[:parts[0]], shuffled[parts[0]:sum(parts)])


def channel_statistics(samples: Iterable[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) float32 of every channel over all pixels; a constant channel has deviation 1.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
    """
    moments = [sample.moments for sample in samples]
    pixels = np.array([m.pixels for m in moments], np.float64)[:, None]                     # (images, 1)
    means = np.stack([m.mean for m in moments])                                             # (images, C)
    mean = (pixels * means).sum(0) / pixels.sum()
    squares = np.stack([m.squares for m in moments]) + pixels * np.square(means - mean)
    deviation = np.sqrt(squares.sum(0) / pixels.sum()).astype(np.float32)
    return mean.astype(np.float32), np.where(deviation > ROUNDING, deviation, np.float32(1))
