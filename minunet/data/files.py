"""Files of images and masks: found in folders, paired by name, and decoded with Pillow.

An image becomes an array (H, W, C) of its own depth, uint8 or uint16, with 1 channel (grey) or 3 (colour); `unit`
makes it float32 in 0..1. A mask becomes the values (H, W) that stand in the file: grey values, palette indices, one
channel, or packed colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minunet.errors import UserError
from minunet.geometry import Pair

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff")
# how the masks' names usually differ from the images'
MASK_SUFFIXES = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_groundtruth", "_annotation",
                 "_l", "-mask", "-label", "-labels", "-seg", "-gt")
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B")
CHANNELS = {"red": "R", "green": "G", "blue": "B", "alpha": "A"}


class FilePair(NamedTuple):
    """An image and its mask; name is the image's path below its folder, without its extension."""

    name: str
    image: Path
    mask: Path


class Pairing(NamedTuple):
    """What two folders hold: pairs, and the files that have no partner."""

    pairs: list[FilePair]
    lone_images: list[Path]
    lone_masks: list[Path]


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and in the folders below, hidden ones left out, sorted; UserError if none is there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give the folder that it is in" if folder.exists()
                        else f"{folder}: there is no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not found:
        raise UserError(f"{folder}: holds no image files ({', '.join(SUFFIXES)})")
    return found


def name_below(path: Path, folder: Path) -> str:
    """The path below a folder without its extension: "plate3/a" for FOLDER/plate3/a.png."""
    return path.relative_to(folder).with_suffix("").as_posix()


def pair_files(images: Path, masks: Path, mask_suffix: str | None = None, image_suffix: str = "") -> Pairing:
    """Images and masks whose names are equal but for a suffix of the mask's.

    Names are paths below the folders; where none agrees, the files' own stems. The mask's suffix is any of
    MASK_SUFFIXES or none; a given one, or an image's, is demanded of every file, and others are left out. The two
    folders may be one, if the masks have a suffix. Raises UserError for a folder without images, for two files that
    claim one name, and for folders that were exchanged.
    """
    image_paths, mask_paths = image_files(images), image_files(masks)
    if images.resolve() == masks.resolve():
        image_paths, mask_paths = _parted(image_paths, images, mask_suffix, image_suffix)
    for folder, paths, suffix, what in ((images, image_paths, image_suffix, "image"),
                                        (masks, mask_paths, mask_suffix or "", "mask")):
        if not any(path.stem.lower().endswith(suffix.lower()) for path in paths):
            raise UserError(f"{folder}: no file's name ends in {suffix} (the first is {paths[0].name}); leave "
                            f"--{what}-suffix out, or give another")
    pairing = _paired(image_paths, mask_paths, images, masks, mask_suffix, image_suffix)
    if not pairing.pairs and mask_suffix is None and not image_suffix:
        try:
            exchanged = _paired(mask_paths, image_paths, masks, images, None, "").pairs
        except UserError:
            exchanged = []
        if exchanged:
            raise UserError(f"{images}: the folders of images and masks look exchanged: {exchanged[0].mask.name} here "
                            f"has the name of a mask of {exchanged[0].image.name} in {masks}")
    return pairing


def _parted(paths: list[Path], folder: Path, suffix: str | None, image_suffix: str) -> tuple[list[Path], list[Path]]:
    """One folder's images and masks; masks are the files with a suffix whose name without it is another file's."""
    suffixes = MASK_SUFFIXES if suffix is None else (suffix,)
    names = {name_below(path, folder) for path in paths}
    masks = [path for path in paths if any(
        name_below(path, folder).lower().endswith(s.lower())
        and name_below(path, folder)[:-len(s)] + image_suffix in names for s in suffixes)]
    if not masks:
        raise UserError(f"{folder}: images and masks are in one folder, but no name is another one's with a suffix "
                        f"such as {', '.join(suffixes[:3])}; name theirs by --mask-suffix")
    return [path for path in paths if path not in masks], masks


def _paired(images: list[Path], masks: list[Path], image_folder: Path, mask_folder: Path, mask_suffix: str | None,
            image_suffix: str) -> Pairing:
    for whole_path in (True, False):
        image_of = _by_name(images, image_folder, whole_path, (image_suffix,), "image")
        known = None if mask_suffix is not None else set(image_of)
        mask_of = _by_name(masks, mask_folder, whole_path, ("", *MASK_SUFFIXES) if mask_suffix is None
                           else (mask_suffix,), "mask", known)
        both = [name for name in image_of if name in mask_of]
        if both:
            break
    return Pairing([FilePair(name_below(image_of[name], image_folder), image_of[name], mask_of[name]) for name in both],
                   [path for name, path in image_of.items() if name not in mask_of],
                   [path for name, path in mask_of.items() if name not in image_of])


def _by_name(paths: list[Path], folder: Path, whole_path: bool, suffixes: tuple[str, ...], what: str,
             known: set[str] | None = None) -> dict[str, Path]:
    """Files by the name that is left without a suffix: the first suffix that leads to a known name."""
    named: dict[str, Path] = {}
    for path in paths:
        full = name_below(path, folder) if whole_path else path.stem
        names = [full[:len(full) - len(s)] for s in suffixes if full.lower().endswith(s.lower()) and len(full) > len(s)]
        if not names:
            continue                # without the suffix that was asked for
        name = next((n for n in names if known is None or n in known), full)
        if name in named:
            where = "" if whole_path else " in different folders"
            raise UserError(f"{path}: belongs to the same name, {name}, as {named[name].relative_to(folder)}{where}; "
                            f"there may be one {what} of a name" + (", choose it by --mask-suffix" if known else ""))
        named[name] = path
    return named


class Picture(NamedTuple):
    """A decoded picture, upright, and what is worth saying of its file."""

    picture: Image.Image
    format: str
    notes: tuple[str, ...]


def open_picture(path: Path) -> Picture:
    """Decode a file. Raises UserError, naming the file and the reason, when that cannot be done."""
    try:
        with Image.open(path) as picture:
            notes = []
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                notes.append(f"holds {frames} pictures, of which only the first is read; save each as a file "
                             "of its own")
            # Pillow reads 16-bit colour into modes of 8 bits
            if any(";16" in str(tile[-1]) for tile in picture.tile) and not picture.mode.startswith("I"):
                notes.append("has colours of 16 bits, which are reduced to 8; grey images keep 16")
            picture.load()
            return Picture(ImageOps.exif_transpose(picture), picture.format or "", tuple(notes))
    except Image.DecompressionBombError:
        raise UserError(f"{path}: has more pixels than are read, {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} "
                        "million; cut it into pieces") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is not an image, or is damaged"
        raise UserError(f"{path}: cannot be read as an image ({reason}); replace the file or take it away") from None


def decode_image(picture: Image.Image, path: Path) -> np.ndarray:
    """(H, W, 1) for grey or (H, W, 3) for colour, uint8 or (16-bit grey) uint16, transparency left out.

    Raises UserError for modes whose range is not known.
    """
    if picture.mode in ("I", "F", "LAB"):
        raise UserError(f"{path}: an image of mode {picture.mode} is not read, because its range is not known; save it "
                        "as grey or RGB with 8 or 16 bits")
    if picture.mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[..., None]
    if picture.mode in GREY_MODES:
        return np.asarray(picture.convert("L"))[..., None]
    if picture.mode == "P":
        picture = picture.convert("RGBA")               # a palette may have transparent entries
    return np.asarray(picture.convert("RGB"))


def read_image(path: Path, channels: int) -> np.ndarray:
    """An image file as (H, W, channels), converted to grey (1) or colour (3) as needed: uint8 or uint16."""
    return with_channels(decode_image(open_picture(path).picture, path), channels)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey repeated to colour, or colour weighed to grey (ITU-R BT.601): (H, W, 1 or 3) -> (H, W, channels)."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., None]


def unit(image: np.ndarray) -> np.ndarray:
    """An image as float32 in 0..1: uint8 by 255, uint16 by 65535; floating-point images are in that range already."""
    return image.astype(np.float32) / np.float32({"uint8": 255, "uint16": 65535}.get(image.dtype.name, 1))


def resize_image(image: np.ndarray, size: Pair) -> np.ndarray:
    """(H, W, C) -> (*size, C) float32 by bilinear interpolation, averaged where it shrinks."""
    if image.shape[:2] == size:
        return image.astype(np.float32)
    planes = [Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)) for c in range(image.shape[2])]
    shape = (size[1], size[0])
    return np.stack([np.asarray(p.resize(shape, Image.Resampling.BILINEAR)) for p in planes], axis=-1)


def resize_mask(mask: np.ndarray, size: Pair) -> np.ndarray:
    """(H, W) uint8 -> size, by the nearest pixel."""
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


class MaskValues(NamedTuple):
    """What stands in a mask file: values (H, W), non-negative ints; colours as 0xRRGGBB; lossy after JPEG."""

    values: np.ndarray
    colour: bool
    lossy: bool


def read_mask(path: Path, channel: str | None = None, as_colours: bool = False) -> tuple[MaskValues, Picture]:
    """A mask's values as they stand in the file, or one channel of its colours, or all of it as colours.

    Raises UserError for an unreadable file, a channel that it does not have, and values that are no whole numbers.
    """
    opened = open_picture(path)
    picture = opened.picture
    lossy = opened.format in ("JPEG", "MPO")
    if channel is not None:
        if picture.mode == "P":
            picture = picture.convert("RGBA")
        if CHANNELS[channel] not in picture.getbands():
            raise UserError(f"{path}: has no channel {channel} (mode {picture.mode}); leave --mask-channel out, or "
                            "choose another")
        return MaskValues(np.asarray(picture.getchannel(CHANNELS[channel])), False, lossy), opened
    if as_colours or len(picture.getbands()) > 2:
        if picture.mode.startswith(("I", "F")):
            raise UserError(f"{path}: has no colours (mode {picture.mode}), and --mask-colors asks for them")
        rgb = np.asarray(picture.convert("RGBA").convert("RGB") if picture.mode == "P" else picture.convert("RGB"))
        if not as_colours and (rgb == rgb[..., :1]).all():
            return MaskValues(rgb[..., 0], False, lossy), opened        # grey saved as colour
        return MaskValues(pack(rgb), True, lossy), opened
    array = np.asarray(picture)
    if array.ndim == 3:
        array = array[..., 0]                               # without the transparency
    if array.dtype.kind == "b":
        return MaskValues(array.astype(np.uint8), False, lossy), opened
    if array.dtype.kind != "u":
        with np.errstate(invalid="ignore"):                 # not a number
            whole = array.astype(np.int64)
        if not (whole == array).all() or whole.min() < 0:
            raise UserError(f"{path}: a mask must hold whole numbers from 0; this one has fractions or negative "
                            f"numbers (mode {picture.mode}); save class ids, or 0 and 255, as 8-bit grey")
        array = whole
    return MaskValues(array, False, lossy), opened


def pack(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) int32, 0xRRGGBB."""
    wide = rgb.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def unpack(colours: np.ndarray) -> np.ndarray:
    """(...) int 0xRRGGBB -> (..., 3) int32."""
    return np.stack([colours >> 16 & 255, colours >> 8 & 255, colours & 255], axis=-1).astype(np.int32)
