"""A folder of images and a folder of masks as a `Dataset`: surveyed first, then read when needed, within a budget."""

from __future__ import annotations

from pathlib import Path

from minunet.data.dataset import Arrays, Cache, Dataset, Moments, Sample
from minunet.data.files import FilePair, read_image, read_mask
from minunet.data.masks import MaskCode, MaskFacts, MaskOptions
from minunet.data.survey import ImageFacts, Survey, survey
from minunet.errors import UserError

CACHE_BYTES = 1 << 30


def load_folder(images: str | Path, masks: str | Path, options: MaskOptions = MaskOptions(),
                classes: int | None = None, cache_bytes: int = CACHE_BYTES) -> Dataset:
    """All pairs of two folders. classes is the number that a trained net has, if one shall be measured on them.

    Raises UserError, one sentence with the file, for the first thing that is wrong with them (see `survey`).
    """
    return dataset_of(survey(Path(images), Path(masks), options, classes), options, cache_bytes)


def dataset_of(found: Survey, options: MaskOptions, cache_bytes: int = CACHE_BYTES,
               channels: int | None = None) -> Dataset:
    """The dataset that a survey found, with its own number of channels or another; UserError if something is wrong."""
    found.stop()
    assert found.code is not None
    cache = Cache(cache_bytes)
    channels = channels or found.channels
    samples = [_sample(pair, image, mask, found.code, options, channels, cache)
               for pair, image, mask in found.pairs]
    return Dataset(samples, channels, found.code.classes, found.code.names)


def _sample(pair: FilePair, image: ImageFacts, facts: MaskFacts, code: MaskCode, options: MaskOptions, channels: int,
            cache: Cache) -> Sample:
    """A sample that reads its files unless the cache holds them."""
    def fetch() -> Arrays:
        mask, _ = read_mask(pair.mask, options.channel, bool(options.colors))
        try:
            return read_image(pair.image, channels), code.decode(mask)
        except UserError as error:
            raise UserError(f"{pair.mask}: has changed since it was first read ({error})") from None
    pixels, mean, squares = image.moments
    if mean.size < channels:
        mean, squares = mean.repeat(channels), squares.repeat(channels)
    return Sample(pair.name, image.size, Moments(pixels, mean, squares), image.digest + facts.digest,
                  fetch, cache)
