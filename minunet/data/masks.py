"""What the values in mask files mean: one class and its background, class ids, colours, or numbered objects.

`decide` looks at the values of all masks together and chooses the reading, a `MaskCode`, or says in a sentence why it
cannot and which option would help. In memory a mask is (H, W) uint8 of class ids, IGNORE where a pixel counts for
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minunet.data.files import CHANNELS, MaskValues, unpack
from minunet.errors import UserError

IGNORE = 255            # the id of pixels that count for nothing
LIKELY_CLASSES = 64     # more than these are hardly class ids; with --class-names there may be MAX_CLASSES
MAX_CLASSES = 255
NOISE = 32              # JPEG and smoothed edges leave grey values this near to 0 and 255, ...
NOISE_SHARE = 0.9       # ... but for some pixels between
GREY_TO_RGB = 0x010101  # times a grey value: the same as a packed colour
SMOOTH = 5              # smoothed edges have at least this many values (0, 64, 128, 191, 255 after halving)
FLAT_SHARE = 0.3        # a mask's most frequent value has more of the pixels, a photograph's fewer


@dataclass(frozen=True)
class MaskOptions:
    """How masks are found and read, where their values do not say it themselves.

    mask_suffix, image_suffix: what the files' names end in. channel: the one that holds the ids. colors: 0xRRGGBB of
    each class, in the order of the ids. instances: every value but 0 is an object of one class. ignore: values (with
    colors: ids) of pixels that count for nothing. invert: 0 is the class. class_names: of one class its name or
    those of background and class, else one for each id.
    """

    mask_suffix: str | None = None
    image_suffix: str = ""
    channel: str | None = None
    colors: tuple[int, ...] = ()
    instances: bool = False
    ignore: tuple[int, ...] = ()
    invert: bool = False
    class_names: tuple[str, ...] = ()

    @staticmethod
    def of(noted: Mapping[str, Any]) -> MaskOptions:
        """The options that a checkpoint noted, where JSON has made lists of tuples."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in noted.items()}
        try:
            return MaskOptions(**values)
        except TypeError as error:
            raise UserError(f"the checkpoint notes of its masks what this version does not know ({error}); use the "
                            "version that wrote it") from None


@dataclass(frozen=True)
class MaskFacts:
    """What one mask file holds: its values, sorted, each with its pixels; colour and lossy as in `MaskValues`; and a
    digest of its pixels."""

    path: Path
    size: tuple[int, int]
    values: np.ndarray
    counts: np.ndarray
    colour: bool
    lossy: bool
    digest: bytes = b""

    def held(self, colour: bool) -> np.ndarray:
        """The values; as colours, if other masks hold some."""
        return self.values.astype(np.int64) * (GREY_TO_RGB if colour and not self.colour else 1)


@dataclass(frozen=True)
class MaskCode:
    """The reading of mask values: known values (sorted) have ids; others are the nearest known one's, or `other`.

    classes is 1 (ids 0 and 1) or the number of ids. words say the reading to a person; notes what was guessed.
    """

    classes: int
    names: tuple[str, ...]
    known: tuple[int, ...]
    ids: tuple[int, ...]
    colour: bool = False
    nearest: bool = False
    other: int | None = None
    words: str = ""
    notes: tuple[str, ...] = ()

    def decode(self, mask: MaskValues) -> np.ndarray:
        """Class ids (H, W) uint8 of a mask's values; UserError for a value that has no reading."""
        values = mask.values
        if self.colour and not mask.colour:
            values = values.astype(np.int32) * GREY_TO_RGB
        if values.dtype.itemsize <= 2:                              # a table is faster than sorting the pixels
            present = np.flatnonzero(np.bincount(values.ravel()))
            table = np.zeros(int(present[-1]) + 1, np.uint8)
            table[present] = self.read(present)
            return table[values]
        present, places = np.unique(values, return_inverse=True)
        return self.read(present)[places].reshape(values.shape)

    def read(self, values: np.ndarray) -> np.ndarray:
        """The ids of some values (n,), uint8."""
        known, ids = np.array(self.known, np.int64), np.array(self.ids, np.uint8)
        if self.nearest:
            points = unpack if self.colour else (lambda v: v[:, None])
            distance = np.square(points(values.astype(np.int64))[:, None] - points(known)[None]).sum(-1)
            return ids[distance.argmin(1)]
        places = np.searchsorted(known, values).clip(0, len(known) - 1)
        found = known[places] == values
        if self.other is None and not found.all():
            raise UserError(f"the value {shown(values[~found][:1], self.colour)} is none of those that the masks are "
                            f"read by ({shown(known, self.colour)})")
        return np.where(found, ids[places], self.other or 0).astype(np.uint8)


def decide(masks: list[MaskFacts], options: MaskOptions, classes: int | None = None) -> MaskCode:
    """The reading of all these masks; classes is the number that a trained net has, or None.

    Raises UserError, naming a file and what to do, when the values fit no reading.
    """
    colour = bool(options.colors) or any(m.colour for m in masks)
    held = [m.held(colour) for m in masks]
    values, places = np.unique(np.concatenate(held), return_inverse=True)
    pixels = np.bincount(places, np.concatenate([m.counts for m in masks]), len(values))
    if options.invert and (classes or 1) > 1:
        raise UserError(f"--invert is for masks of one class; this net has {classes} classes")
    if options.instances and (classes or 1) > 1:
        raise UserError(f"--instances is for masks of one class; this net has {classes} classes")
    if options.colors:
        return _by_colours(masks, held, options, classes)
    ignored = np.isin(values, options.ignore)
    notes = tuple(f"--ignore {v}: no mask holds this value" for v in options.ignore if v not in values)
    values, pixels = values[~ignored], pixels[~ignored]
    if values.size == 0:
        raise UserError(f"{masks[0].path.parent}: the masks hold nothing but what --ignore leaves out")
    if options.instances:
        return _one_class(options, 0, None, ("0", "every other value"), notes, colour)
    # what a number of classes, or names for them, leave open
    one = classes == 1 or (classes is None and len(options.class_names) <= 2)
    present = values[values > 0]
    if one and len(present) <= 1:
        value = int(present[0]) if len(present) else 255
        return _one_class(options, 0, value, (shown([0], colour), shown([value], colour)), notes, colour)
    if colour:
        raise _unread_colours(masks, held, values)
    extreme = (values <= NOISE) | (values >= 255 - NOISE)
    # without JPEG, grey values between tell smoothed edges from class ids and a 255 for what does not count
    between = (values >= LIKELY_CLASSES) & (values < 255)
    noisy = 255 - NOISE <= values[-1] <= 255 and (any(m.lossy for m in masks) or (
        len(values) >= SMOOTH and values[-1] == 255 and between.any()))
    if one and noisy and pixels[extreme].sum() >= NOISE_SHARE * pixels.sum():
        share = pixels[(values > 0) & (values < 255)].sum() / pixels.sum()
        notes += (f"values between 0 and 255 ({share:.1%} of the pixels), as JPEG and smoothing leave them, are read "
                  "as the nearer of the two",)
        return _one_class(options, 0, 255, ("a value up to 127", "a higher one"), notes, colour, nearest=True)
    lossy = next((m.path for m in masks if m.lossy), None)
    if lossy is not None:
        raise UserError(f"{lossy}: is a JPEG, which changes values, and these ({shown(values)}) are not near 0 and 255 "
                        "alone; save the masks as PNG, or name the values there should be by --mask-colors")
    if options.invert:
        raise UserError(f"--invert is for masks of two values, such as 0 and 255; these hold {shown(values)}")
    limit = classes or (MAX_CLASSES if len(options.class_names) > 2 else LIKELY_CLASSES)
    if one and classes or values[-1] >= limit:
        raise _unread_values(masks, held, values, pixels, options, classes)
    count = classes or max(int(values[-1]) + 1, len(options.class_names))
    known = {v: v for v in range(count)} | {v: IGNORE for v in options.ignore}
    words = f"class ids 0 to {count - 1}" + "".join(f", {v} is ignored" for v in options.ignore)
    return _coded(known, count, _names(options, count), colour, words, notes)


def _by_colours(masks: list[MaskFacts], held: list[np.ndarray], options: MaskOptions, classes: int | None) -> MaskCode:
    """The reading that --mask-colors gives."""
    colours = options.colors
    if len(colours) < 2 or len(set(colours)) < len(colours):
        raise UserError("--mask-colors needs two or more colours, each once; got " + shown(colours, True))
    nearest, notes = False, ()      # type: bool, tuple[str, ...]
    for m, values in zip(masks, held):
        unknown = ~np.isin(values, colours)
        if unknown.any() and m.lossy:
            nearest = True
        elif unknown.any():
            worst = np.argmax(np.where(unknown, m.counts, 0))
            share = m.counts[worst] / m.counts.sum()
            raise UserError(f"{m.path}: holds the colour {shown(values[worst:worst + 1], True)} ({share:.2%} of its "
                            "pixels), which is not in --mask-colors; add it there")
    if nearest:
        notes = ("JPEG masks: each colour is read as the nearest of those in --mask-colors",)
    kept = [i for i in range(len(colours)) if i not in options.ignore]
    if not kept:
        raise UserError("--ignore leaves none of the colours in --mask-colors; it takes positions from 0")
    if len(options.class_names) == len(colours):            # a name for each colour, the ignored ones' too
        options = replace(options, class_names=options.class_names[:max(kept) + 1])
    known = {c: i if i in kept else IGNORE for i, c in enumerate(colours)}
    if kept == [0, 1] and classes in (None, 1):
        code = _one_class(options, colours[0], colours[1], (shown(colours[:1], True), shown(colours[1:2], True)), notes,
                          True, nearest)
        extra = {c: IGNORE for c, i in known.items() if i == IGNORE}
        known = dict(zip(code.known, code.ids)) | extra
        return _coded(known, 1, code.names, True, code.words, notes, nearest)
    if options.invert:
        raise UserError(f"--invert is for masks of two colours; --mask-colors names {len(colours)}")
    count = classes or max(kept) + 1
    if count > MAX_CLASSES or max(kept) >= count:
        raise UserError(f"--mask-colors names {len(colours)} colours; there may be {max(2, min(count, MAX_CLASSES))}")
    names = _names(options, count)
    words = ", ".join(f"{shown([c], True)} is " + ("ignored" if i == IGNORE else names[i])
                      for c, i in known.items())
    return _coded(known, count, names, True, words, notes, nearest)


def _one_class(options: MaskOptions, low: int, high: int | None, words: tuple[str, str], notes: tuple[str, ...],
               colour: bool, nearest: bool = False) -> MaskCode:
    """Background and one class: the values low and high (None: all others), and what a person calls them.

    With options.invert the low one is the class.
    """
    if len(options.class_names) > 2:
        raise UserError(f"--class-names has {len(options.class_names)} names, but the masks hold a background and one "
                        "class: give its name, or two")
    background = options.class_names[0] if len(options.class_names) == 2 else "the background"
    name = options.class_names[-1] if options.class_names else "the class"
    ids, meanings = ((1, 0), (name, background)) if options.invert else ((0, 1), (background, name))
    known = {low: ids[0]} | ({} if high is None else {high: ids[1]})
    if not options.colors:
        known |= {v: IGNORE for v in options.ignore}
    text = f"{words[0]} is {meanings[0]}, {words[1]} is {meanings[1]}"
    return _coded(known, 1, options.class_names[-1:] or ("class",), colour, text, notes, nearest,
                  ids[1] if high is None else None)


def _coded(known: dict[int, int], classes: int, names: tuple[str, ...], colour: bool, words: str,
           notes: tuple[str, ...], nearest: bool = False, other: int | None = None) -> MaskCode:
    order = sorted(known)
    return MaskCode(classes, names, tuple(order), tuple(known[v] for v in order), colour, nearest, other, words, notes)


def _names(options: MaskOptions, count: int) -> tuple[str, ...]:
    if not options.class_names:
        return tuple(f"class {i}" for i in range(count))
    if len(options.class_names) != count:
        raise UserError(f"--class-names has {len(options.class_names)} names, but there are {count} classes (ids 0 to "
                        f"{count - 1}); give one name for each id, the background's too")
    return options.class_names


def _unread_colours(masks: list[MaskFacts], held: list[np.ndarray], values: np.ndarray) -> UserError:
    """Why masks in colours have no reading, with the option that would help."""
    path, own = next((m.path, v) for m, v in zip(masks, held) if m.colour)
    if len(own) > LIKELY_CLASSES:
        lossy = any(m.lossy for m in masks)
        return UserError(f"{path}: holds {len(own)} or more colours, " + (
            "as JPEG leaves them; name the true ones by --mask-colors, or save the masks as PNG" if lossy else
            "so it looks like a photograph and not like a mask; are images and masks exchanged?"))
    channels = unpack(values)
    for c, name in enumerate(list(CHANNELS)[:3]):
        others = np.delete(channels, c, axis=1)
        if not others.any() and channels[:, c].max() < LIKELY_CLASSES:
            return UserError(f"{path}: is in colours, but only {name} is in use, with the values "
                             f"{shown(channels[:, c])}; if these are class ids, add --mask-channel {name}")
    if len(values) > LIKELY_CLASSES:
        return UserError(f"{path}: the masks hold {len(values)} colours; if each is one object, add --instances, if "
                         "some are classes, name these by --mask-colors")
    listed = ",".join(f"#{v:06x}" for v in values)
    return UserError(f"{path}: the masks hold {len(values)} colours; say which class each one is, in the order of the "
                     f"ids: --mask-colors '{listed}'")


def _unread_values(masks: list[MaskFacts], held: list[np.ndarray], values: np.ndarray, pixels: np.ndarray,
                   options: MaskOptions, classes: int | None) -> UserError:
    """Why grey values have no reading, with the option that would help."""
    limit = (2 if classes == 1 else classes) or LIKELY_CLASSES
    high = values[values >= limit]
    path = next((m.path for m, v in zip(masks, held) if np.isin(v, high).any()), masks[0].path)
    if classes is not None:
        allowed = "a background and one class" if classes == 1 else f"class ids 0 to {classes - 1}"
        return UserError(f"{path}: the masks hold the values {shown(values)}; the net knows {allowed}")
    if len(values) == 2 and values[0] == 0 and len(options.class_names) > 2:
        return UserError(f"{path}: the masks hold {shown(values)}, a background and one class, but --class-names has "
                         f"{len(options.class_names)} names; give one or two")
    lone = _lone_values(masks, held, values, pixels)
    if lone is not None:
        return lone
    if set(values.tolist()) == {0, 1, 255}:
        return UserError(f"{path}: the masks hold the values 0, 1, 255: some are of 0 and 1, others of 0 and 255, or "
                         "255 marks what does not count; make them equal, or add --ignore 255")
    if len(high) == 1:
        return UserError(f"{path}: the masks hold class ids and {high[0]}; if that marks what does not count, add "
                         f"--ignore {high[0]}")
    if len(values) > LIKELY_CLASSES and pixels.max() < FLAT_SHARE * pixels.sum():
        path = max(masks, key=lambda m: len(m.values)).path
        return UserError(f"{path}: looks like a photograph and not like a mask, because the masks hold {len(values)} "
                         "values and none is frequent; are images and masks exchanged?")
    return UserError(f"{path}: the masks hold the values {shown(values)}; allowed are 0 and one other (such as 0 and "
                     f"255), or class ids 0 to {LIKELY_CLASSES - 1} (--class-names allows up to {MAX_CLASSES - 1}); if "
                     "each value is one object, add --instances")


def _lone_values(masks: list[MaskFacts], held: list[np.ndarray], values: np.ndarray,
                 pixels: np.ndarray) -> UserError | None:
    """The one mask that spoils the reading of the others, if it is a single one."""
    holders = np.sum([np.isin(values, v) for v in held], axis=0)
    lone, shared = values[holders == 1], values[holders > 1]
    spoilers = [m for m, v in zip(masks, held) if np.isin(lone, v).any()]
    if len(masks) < 3 or len(spoilers) != 1 or not (np.count_nonzero(shared) <= 1
                                                    or shared[-1] < LIKELY_CLASSES <= lone[-1]):
        return None
    count = int(pixels[holders == 1].sum())
    return UserError(f"{spoilers[0].path}: is the only mask with the value{'s' * (len(lone) > 1)} {shown(lone)} "
                     f"({count:,} px), the others hold {shown(shared)}; mend it, or take the pair away")


def shown(values: Iterable[int], colour: bool = False) -> str:
    """Some values as text, the middle of a long list left out."""
    texts = [f"#{v:06x}" if colour else str(v) for v in values]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:6], "...", texts[-1]])
