"""A look at folders of images and masks before anything is learned: what is there, how it will be read, what is wrong.

`minunet inspect` prints it; training and evaluation make the same survey first, and stop with the same words.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minunet import parallel
from minunet.data.dataset import Moments
from minunet.data.files import GREY_MODES, FilePair, decode_image, open_picture, pair_files, read_mask
from minunet.data.masks import IGNORE, LIKELY_CLASSES, MaskCode, MaskFacts, MaskOptions, decide, shown
from minunet.errors import UserError
from minunet.geometry import Pair, size_text

FEW_VALUES = 16         # an image with at most these could be a mask
KEPT_VALUES = 4096      # the most frequent values of a mask; a photograph has many more


class ImageFacts(NamedTuple):
    """What one image file holds: size (H, W) in px, Pillow's mode, bytes decoded, moments, whether it has as few
    values as a mask, and a digest of its pixels."""

    path: Path
    size: Pair
    mode: str
    nbytes: int
    moments: Moments
    few_values: bool
    digest: bytes


class Problem(NamedTuple):
    """One thing that is wrong, in a sentence that names the file and says what to do; a fatal one stops training."""

    kind: str
    text: str
    fatal: bool = True


@dataclass
class Survey:
    """What was found in one folder of images and one of masks. pairs are the sound ones; code is None if undecided."""

    images: Path
    masks: Path
    pairs: list[tuple[FilePair, ImageFacts, MaskFacts]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    code: MaskCode | None = None

    @property
    def channels(self) -> int:
        """1 if all images are grey, else 3."""
        return 1 if all(image.mode in GREY_MODES for _, image, _ in self.pairs) else 3

    @property
    def nbytes(self) -> int:
        """All images and masks, decoded."""
        return sum(image.nbytes * (1 if image.moments.mean.size == self.channels else 3)
                   + mask.size[0] * mask.size[1] for _, image, mask in self.pairs)

    def stop(self) -> None:
        """Raise UserError with the first fatal problem's words, if there is one."""
        fatal = [problem.text for problem in self.problems if problem.fatal]
        if fatal:
            more = f" ({len(fatal) - 1} more: minunet inspect lists them)" if len(fatal) > 1 else ""
            raise UserError(fatal[0] + more)


def survey(images: Path, masks: Path, options: MaskOptions = MaskOptions(), classes: int | None = None,
           on_read: Callable[[int, int], None] = lambda done, count: None) -> Survey:
    """Look at every file of two folders; classes is the number that a trained net has.

    on_read gets the pairs read so far and their count. Never raises for what is wrong in the folders: that becomes
    the survey's problems.
    """
    found = Survey(images, masks)
    try:
        pairing = pair_files(images, masks, options.mask_suffix, options.image_suffix)
    except UserError as error:
        found.problems.append(Problem("folders", str(error)))
        return found
    found.problems += _unpaired(pairing.lone_images, "mask", masks, pairing.lone_masks)
    found.problems += _unpaired(pairing.lone_masks, "image", images, [])
    counter, counting = itertools.count(1), threading.Lock()

    def look(pair: FilePair) -> tuple[ImageFacts | None, MaskFacts | None, list[Problem]]:
        facts = _look(pair, options)
        with counting:
            on_read(next(counter), len(pairing.pairs))
        return facts

    looked = parallel.run(look, pairing.pairs)
    for pair, (image, mask, problems) in zip(pairing.pairs, looked):
        found.problems += problems
        if image is not None and mask is not None and not any(problem.fatal for problem in problems):
            found.pairs.append((pair, image, mask))
    found.problems += _duplicates([image for image, _, _ in looked if image is not None])
    read_masks = [mask for _, mask, _ in looked if mask is not None]
    if read_masks:
        found.code, problems = _reading(found, [i for i, _, _ in looked if i], read_masks, options, classes)
        found.problems += problems
    return found


def _look(pair: FilePair, options: MaskOptions) -> tuple[ImageFacts | None, MaskFacts | None, list[Problem]]:
    """The facts of one pair, or why a file has none."""
    problems, image, mask = [], None, None
    try:
        opened = open_picture(pair.image)
        pixels = decode_image(opened.picture, pair.image)
        problems += [Problem(note[:12], f"{pair.image}: {note}", fatal=False) for note in opened.notes]
        image = ImageFacts(pair.image, (pixels.shape[0], pixels.shape[1]), opened.picture.mode, pixels.nbytes,
                           Moments.of(pixels), len(np.unique(pixels)) <= FEW_VALUES,
                           _digest(pixels))
    except UserError as error:
        problems.append(Problem("unreadable", str(error)))
    try:
        raw, opened = read_mask(pair.mask, options.channel, bool(options.colors))
        problems += [Problem(note[:12], f"{pair.mask}: {note}", fatal=False) for note in opened.notes]
        held, counts = _value_counts(raw.values)
        if len(held) > KEPT_VALUES:
            frequent = np.sort(np.argsort(counts)[-KEPT_VALUES:])
            held, counts = held[frequent], counts[frequent]
        mask = MaskFacts(pair.mask, (raw.values.shape[0], raw.values.shape[1]), held, counts, raw.colour, raw.lossy,
                         _digest(raw.values))
    except UserError as error:
        problems.append(Problem("unreadable", str(error)))
    if image and mask and image.size != mask.size:
        turned = "; one of them lies on its side" if image.size == mask.size[::-1] else ""
        problems.append(Problem("size", f"{pair.mask}: the mask has {size_text(mask.size)} px, its image "
                                        f"{pair.image} has {size_text(image.size)} px (height x width); they must be "
                                        f"equal{turned}"))
    return image, mask, problems


def _digest(pixels: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()


def _value_counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that occur, sorted, and how often; counting is faster than sorting where there are few."""
    if values.dtype.itemsize > 2:
        return np.unique(values, return_counts=True)
    counts = np.bincount(values.ravel())
    held = np.flatnonzero(counts)
    return held, counts[held]


def _unpaired(files: list[Path], what: str, folder: Path, candidates: list[Path]) -> list[Problem]:
    """Files without a partner; a partner's name that only goes on differently is named with the option that helps."""
    problems = []
    for path in files:
        rests = [other.stem[len(path.stem):] for other in candidates if other.stem.startswith(path.stem)]
        suffix = next((rest for rest in rests if rest and not rest[0].isalnum()), None)
        if suffix is not None:
            advice = f"if {path.stem}{suffix} is its mask, add --mask-suffix {suffix}"
        elif "" in rests:
            advice = "the file of its name there is in another folder; give both the same folders"
        else:
            advice = f"add it, or take the {'image' if what == 'mask' else 'mask'} away"
        problems.append(Problem(f"no {what}", f"{path}: has no {what} of the same name in {folder}; {advice}"))
    return problems


def _duplicates(images: list[ImageFacts]) -> list[Problem]:
    """Images with equal pixels."""
    first: dict[bytes, Path] = {}
    problems = []
    for image in images:
        if image.digest in first:
            problems.append(Problem("duplicate", f"{image.path}: is the same picture as {first[image.digest]}; remove "
                                                 "one, or figures are too good when one is learned and the other "
                                                 "tested", False))
        first.setdefault(image.digest, image.path)
    return problems


def _reading(found: Survey, images: list[ImageFacts], masks: list[MaskFacts], options: MaskOptions,
             classes: int | None) -> tuple[MaskCode | None, list[Problem]]:
    """How the masks are read, and what is odd about them then."""
    many_values = sum(len(m.values) > LIKELY_CLASSES for m in masks)
    if 2 * many_values > len(masks) and 2 * sum(image.few_values for image in images) > len(images):
        return None, [Problem("folders", f"{found.images}: the folders of images and masks look exchanged: these hold "
                                         f"few values, and those in {found.masks} as many as photographs")]
    try:
        code = decide(masks, options, classes)
    except UserError as error:
        return None, [Problem("reading", str(error))]
    problems = [Problem("note", f"{found.masks}: {note}", False) for note in code.notes]
    ids = [code.read(m.held(code.colour)) for m in masks]
    empty = [m for m, own in zip(masks, ids) if not np.isin(own, (0, IGNORE), invert=True).any()]
    if len(empty) == len(masks):
        problems.append(Problem("empty", f"{found.masks}: no mask holds anything but background or what is ignored "
                                         f"(values {shown(np.unique(np.concatenate([m.values for m in masks])))}), so "
                                         "there is nothing to learn; are these the right files?", classes is None))
    else:
        problems += [Problem("empty", f"{m.path}: holds nothing but background or what is ignored; right if the "
                                      "image shows nothing else, otherwise draw it", False) for m in empty]
    if code.classes > 1:
        held_by = Counter(int(k) for own in ids for k in set(own.tolist()))
        for m, own in zip(masks, ids):
            lone = sorted({int(k) for k in own if held_by[int(k)] == 1 and k != IGNORE})
            if lone and len(masks) > 2:
                which = ", ".join(f"{k} ({int(m.counts[own == k].sum()):,} px)" for k in lone)
                problems.append(Problem("lone value", f"{m.path}: is the only mask with class {which}; a slip of the "
                                                      "pen, or a class too rare to be both learned and tested", False))
        tops = [int(own[own != IGNORE].max(initial=0)) for own in ids]
        in_a_row = all(np.array_equal(own, np.arange(len(own))) for own in ids)
        if in_a_row and len(set(tops)) > 2 and code.classes > 3:
            problems.append(Problem("objects", f"{found.masks}: every mask's values run from 0 to a number of its own "
                                               f"({shown(sorted(set(tops)))}), as if they numbered objects; if so, add "
                                               "--instances", False))
        missing = [k for k in range(code.classes) if k not in held_by]
        if missing:
            problems.append(Problem("missing", f"{found.masks}: no mask holds class {shown(missing)}; if the ids begin "
                                               "at another number that does no harm", False))
    return code, problems
