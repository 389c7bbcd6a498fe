"""A folder of images and a folder of masks, paired by the files' stems and decoded with Pillow.

Images of any mode become float32 in 0..1 with 1 channel (grey) or 3 (colour, if any image has some). Masks are grey or
palette images; their values decide how they are read: {0, 255} or {0, 1} as background and one class, anything else as
class ids from 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from minunet.data.dataset import Dataset, Sample
from minunet.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff")
GREY_MODES = ("1", "L", "LA", "I;16", "I;16B")
MAX_CLASSES = 64


def load_folder(images: str | Path, masks: str | Path, invert: bool = False) -> Dataset:
    """All pairs of two folders as a `Dataset`.

    invert exchanges the background and the class of two-valued masks. Raises UserError, one sentence with the file,
    for a missing folder, an image or mask without partner, an unreadable file, a size mismatch, or mask values that
    are no classes.
    """
    pairs = _pairs(Path(images), Path(masks))
    loaded = [(name, _open_image(image), _read_mask(mask), mask) for name, image, mask in pairs]
    channels = 1 if all(picture.mode in GREY_MODES for _, picture, _, _ in loaded) else 3
    for name, picture, mask, mask_path in loaded:
        if picture.size != mask.shape[::-1]:
            raise UserError(f"{mask_path}: the mask has {mask.shape[1]}x{mask.shape[0]} px, its image {name} has "
                            f"{picture.width}x{picture.height} px (width x height); they must be equal")
    values = np.unique(np.concatenate([np.unique(mask) for _, _, mask, _ in loaded]))
    two_valued = set(values.tolist()) <= {0, 255} or set(values.tolist()) <= {0, 1}
    if invert and not two_valued:
        raise UserError(f"{masks}: invert is for masks of two values, 0 and 255 or 0 and 1; these hold "
                        f"{_listed(values)}")
    if not two_valued and not 0 <= values.min() <= values.max() < MAX_CLASSES:
        suspects = [(mask, path) for _, _, mask, path in loaded if not set(np.unique(mask).tolist()) <= {0, 255}]
        culprit = min(suspects, key=lambda suspect: 0 <= suspect[0].min() <= suspect[0].max() < MAX_CLASSES)[1]
        raise UserError(f"{culprit}: the masks hold the values {_listed(values)}; allowed are 0 and 255, 0 and 1, or "
                        f"class ids 0 to {MAX_CLASSES - 1} (a mask must not be saved as JPEG, which changes values)")
    samples = []
    for name, picture, mask, _ in loaded:
        ids = ((mask == 0) == invert).astype(np.uint8) if two_valued else mask.astype(np.uint8)
        samples.append(Sample(name, _to_array(picture, channels), ids))
    return Dataset(samples, channels, 1 if two_valued else int(values.max()) + 1)


def read_image(path: Path, channels: int) -> np.ndarray:
    """An image file as (H, W, channels) float32 in 0..1, converted to grey (1) or colour (3) as needed."""
    return _to_array(_open_image(path), channels)


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder, hidden ones left out, sorted by name; UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    return sorted(path for path in folder.iterdir()
                  if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _pairs(images: Path, masks: Path) -> list[tuple[str, Path, Path]]:
    """(stem, image, mask) for every image."""
    by_stem = []
    for folder in (images, masks):
        files = image_files(folder)
        if not files:
            raise UserError(f"{folder}: holds no image files ({', '.join(SUFFIXES)})")
        stems: dict[str, Path] = {}
        for path in files:
            if path.stem in stems:
                raise UserError(f"{path}: {stems[path.stem].name} has the same stem; images and masks are paired by "
                                "stem, so each may occur once")
            stems[path.stem] = path
        by_stem.append(stems)
    image_of, mask_of = by_stem
    for stems, others, what, folder in ((image_of, mask_of, "mask", masks), (mask_of, image_of, "image", images)):
        alone = [path for stem, path in stems.items() if stem not in others]
        if alone:
            raise UserError(f"{alone[0]}: has no {what} of the same stem in {folder}"
                            + (f" (nor have {len(alone) - 1} other files)" if len(alone) > 1 else ""))
    return [(stem, path, mask_of[stem]) for stem, path in image_of.items()]


def _open(path: Path) -> Image.Image:
    """The decoded picture, upright."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:     # odd tags do no harm
            picture.load()
            return ImageOps.exif_transpose(picture)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "it is not an image, or is damaged"
        raise UserError(f"{path}: cannot be read as an image ({reason})") from None


def _open_image(path: Path) -> Image.Image:
    """The decoded picture, in a mode that `_to_array` knows."""
    picture = _open(path)
    if picture.mode in ("I", "F", "LAB"):
        raise UserError(f"{path}: an image of mode {picture.mode} is not read, because its range is not known; save it "
                        "as grey or RGB with 8 or 16 bits")
    return picture.convert("RGBA") if picture.mode == "P" else picture      # a palette may have transparent entries


def _to_array(picture: Image.Image, channels: int) -> np.ndarray:
    if picture.mode.startswith("I;16"):
        grey = np.asarray(picture, np.float32)[..., None] / 65535
        return grey if channels == 1 else np.repeat(grey, 3, axis=2)
    array = np.asarray(picture.convert("L" if channels == 1 else "RGB"), np.float32) / 255
    return array[..., None] if channels == 1 else array


def _read_mask(path: Path) -> np.ndarray:
    """A mask's values (H, W) as they stand in the file: grey values or palette indices."""
    picture = _open(path)
    array = np.asarray(picture)
    if picture.getbands()[-1] == "A":
        array = array[..., :-1]                             # no transparency
    if array.ndim == 3 and (array == array[..., :1]).all():
        array = array[..., 0]                               # grey saved as colour
    if array.ndim == 3:
        raise UserError(f"{path}: a mask must be a grey or palette image with a class id in each pixel; this one has "
                        f"colours (mode {picture.mode})")
    with np.errstate(invalid="ignore"):                     # not a number
        values = array.astype(np.int64)
    if not (values == array).all():
        raise UserError(f"{path}: a mask must hold whole numbers; this one has fractions (mode {picture.mode})")
    return values


def _listed(values: Iterable[int]) -> str:
    shown = [str(v) for v in values]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:6], "...", shown[-1]])
