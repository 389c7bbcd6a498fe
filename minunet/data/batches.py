"""Batches to learn from: random crops, or whole resized images, flipped and turned, made while the net computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from minunet.data.dataset import Arrays, Sample
from minunet.data.files import unit
from minunet.geometry import Pair

AHEAD = 2       # batches that wait ready


class Batches:
    """Random crops with flips and quarter turns, in batches: images (N, H, W, C) float32, masks (N, H, W) uint8.

    An epoch draws one crop for every crop-sized piece of each image, so that it shows about as many pixels as there
    are. Order, places, flips and turns come from the epoch's generator; the last, smaller batch is kept. Images
    smaller than the crop are extended by their edge.
    """

    def __init__(self, samples: Sequence[Sample], crop: Pair, batch: int):
        self.samples, self.crop, self.batch = samples, crop, batch
        self._order = np.repeat(np.arange(len(samples)), [self._pieces(sample.size) for sample in samples])

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._order) // self.batch)

    def epoch(self, rng: np.random.Generator) -> Iterator[Arrays]:
        """The batches of one epoch."""
        order = rng.permutation(self._order)
        for start in range(0, len(order), self.batch):
            crops = [self._draw(self.samples[i], rng) for i in order[start:start + self.batch]]
            yield np.stack([unit(image) for image, _ in crops]), np.stack([mask for _, mask in crops])

    def _pieces(self, size: Pair) -> int:
        return max(1, round(size[0] * size[1] / (self.crop[0] * self.crop[1])))

    def _draw(self, sample: Sample, rng: np.random.Generator) -> Arrays:
        """One crop of a sample, flipped and turned."""
        image, mask = sample.read()
        h, w = self.crop
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


def prefetch(items: Iterator[Any], size: int = AHEAD) -> Generator[Any]:
    """The same items, made by a thread: at most `size` wait while it makes another. Its exceptions are raised here.

    The thread ends when the items do, or when this iterator is closed or forgotten.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(size)
    closed = threading.Event()

    def put(last: bool, value: Any) -> None:
        while not closed.is_set():
            try:
                return waiting.put((last, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(False, item)
                if closed.is_set():
                    return
            put(True, None)
        except BaseException as error:
            put(True, error)

    def taken() -> Generator[Any]:
        thread = threading.Thread(target=work, name="minunet-batches", daemon=True)
        thread.start()
        try:
            while True:
                last, value = waiting.get()
                if last:
                    if value is not None:
                        raise value
                    return
                yield value
        finally:
            closed.set()
            thread.join()
    return taken()
