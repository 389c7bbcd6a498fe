"""Options that several commands share, and how the text of an argument becomes a value."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minunet.backend import DEVICES
from minunet.convolution import tensor_cores
from minunet.cuda import resolve
from minunet.data import MaskOptions, Survey, survey
from minunet.data.files import CHANNELS
from minunet.errors import UserError
from minunet.geometry import Pair
from minunet.models import UNet
from minunet.models.unet import CHOICES
from minunet.training import RunConfig

Commands = Any          # argparse's own type has no public name


def whole(minimum: int) -> Callable[[str], int]:
    """A whole number of at least this."""
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}; got {text!r}")
        return int(text)
    return parse


def number(low: float, high: float, words: str, low_too: bool = False) -> Callable[[str], float]:
    """A number above low (or from it) and below high; words say so."""
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low < value < high or low_too and value == low):
            raise argparse.ArgumentTypeError(f"must be {words}; got {text!r}")
        return value
    return parse


def size(text: str) -> Pair:
    """HEIGHTxWIDTH in px."""
    numbers = text.lower().split("x")
    if len(numbers) != 2 or not all(n.isdecimal() and int(n) >= 1 for n in numbers):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH in px, such as 128x128; got {text!r}")
    return int(numbers[0]), int(numbers[1])


def is_file(text: str) -> bool:
    """Whether there is a file of this name; text that is too long for a name is none."""
    try:
        return Path(text).is_file()
    except OSError:
        return False


def ids(text: str) -> tuple[int, ...]:
    """Whole numbers, separated by commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < 2**24 for part in parts):       # 0xFFFFFF is white
        raise argparse.ArgumentTypeError(f"must be a value in the masks, or several such as 11,255; got {text!r}")
    return tuple(int(part) for part in parts)


def text_of(path: str) -> str:
    """The content of a text file."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a text file, if it names a file; {path} is none") from None
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: cannot be read ({error.strerror})") from None


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas, or a text file with one on each line."""
    if is_file(text):
        text = ",".join(text_of(text).splitlines())
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"must be names that differ, separated by commas, or a file with one on each "
                                         f"line; got {text!r}")
    return found


def colors(text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Colours and, if all have one, their names.

    "#000000,#ff0000", "sky=#0000ff,road=#808080", or a text file with a colour on each line: #rrggbb or three numbers
    0 to 255, before or after a name, separated by commas or blanks; a heading may come first.
    """
    from_file = is_file(text)
    entries = text_of(text).splitlines() if from_file else text.split(",")
    found: list[tuple[int, str]] = []
    for line, entry in enumerate(filter(str.strip, entries)):
        # "facade" is a name where another colour has a #
        hexadecimal = re.search(r"#([0-9a-fA-F]{6})\b", entry) or re.search(r"\b([0-9a-fA-F]{6})\b", entry)
        triple = re.search(r"\b(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})\b", entry)
        match = triple or hexadecimal
        if match is None or triple and (max(map(int, triple.groups())) > 255
                                        or len(re.findall(r"\b\d+\b", entry)) > 3):
            if from_file and line == 0 and not re.search(r"\d", entry):
                continue                # the heading
            raise argparse.ArgumentTypeError(f"must be colours such as '#000000,#ff0000' or 'sky=#0000ff,road=#808080',"
                                             f" or a file with a name and a colour on each line; got {entry.strip()!r}")
        value = (int(hexadecimal[1], 16) if hexadecimal and not triple
                 else int.from_bytes(bytes(map(int, match.groups())), "big"))
        found.append((value, (entry[:match.start()] + entry[match.end():]).strip(" ,;=#\t\"'")))
    if not found:
        raise argparse.ArgumentTypeError(f"must be colours such as '#000000,#ff0000'; got {text!r}")
    named = all(name for _, name in found)
    return tuple(value for value, _ in found), tuple(name for _, name in found) if named else ()


PRECISIONS = ("float32", *tensor_cores.PRECISIONS)
positive = whole(1)
rate = number(0, float("inf"), "a number above 0")
share = number(0, 1, "a number from 0 and below 1", low_too=True)


def add_mask_options(parser: argparse.ArgumentParser, names_too: bool = True) -> None:
    """How masks are found and read, and what the classes are called."""
    group = parser.add_argument_group("masks", "minunet inspect tells which of these a folder needs")
    group.add_argument("--mask-suffix", metavar="TEXT", help="what the masks' names end in after the images' (_mask, "
                       "_label, _seg and others are found by themselves)")
    group.add_argument("--image-suffix", metavar="TEXT", help="what the images' names end in where the masks' do not")
    group.add_argument("--mask-channel", dest="channel", choices=tuple(CHANNELS), help="the channel with the class ids")
    group.add_argument("--mask-colors", dest="colors", type=colors, metavar="COLORS|FILE",
                       help="each class's colour in the order of the ids: '#000000,#ff0000' or 'sky=#0000ff,...', or a "
                       "file with a name and a colour on each line")
    group.add_argument("--instances", action=argparse.BooleanOptionalAction,
                       help="every value but 0 is an object of the one class")
    group.add_argument("--ignore", type=ids, metavar="ID", help="value of pixels that count for nothing, or several: "
                       "11,255 (with --mask-colors: positions from 0)")
    group.add_argument("--invert", action=argparse.BooleanOptionalAction, help="the masks' value 0 is the class")
    if names_too:
        group.add_argument("--class-names", type=names, metavar="NAMES|FILE",
                           help="separated by commas, or a file with one on each line")


def mask_options(arguments: argparse.Namespace, noted: MaskOptions = MaskOptions()) -> MaskOptions:
    """The options given, over those that a checkpoint noted."""
    values = {field.name: getattr(arguments, field.name, None) for field in fields(MaskOptions)}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if "colors" in given:
        given["colors"], color_names = given["colors"]
        given.setdefault("class_names", color_names)
    return replace(noted, **given)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The U-Net's shape."""
    defaults = RunConfig()
    group = parser.add_argument_group("net")
    group.add_argument("--base", type=positive, default=defaults.base,
                       help="channels of the first level, twice as many on each below (%(default)s)")
    group.add_argument("--depth", type=positive, default=defaults.depth, help="how often it halves (%(default)s)")
    group.add_argument("--up", choices=CHOICES["up"], default=defaults.up, help="the way up (%(default)s)")
    group.add_argument("--padding", choices=CHOICES["padding"], default=defaults.padding,
                       help="of the convolutions; valid as in the paper (%(default)s)")
    group.add_argument("--norm", choices=("batch", "none"), default=defaults.norm, help="(%(default)s)")
    group.add_argument("--dropout", type=share, default=defaults.dropout, help="probability (%(default)s)")
    group.add_argument("--activation", choices=CHOICES["activation"], default=defaults.activation,
                       help="(%(default)s)")
    group.add_argument("--pool", choices=CHOICES["pool"], default=defaults.pool, help="(%(default)s)")


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_model_options`, by the names of `UNet`'s arguments."""
    names_of = ("base", "depth", "up", "padding", "dropout", "activation", "pool")
    norm = None if arguments.norm == "none" else arguments.norm
    return {"norm": norm, **{name: getattr(arguments, name) for name in names_of}}


def add_device(parser: argparse.ArgumentParser, precision: bool = True) -> None:
    """Where to compute, and how exactly."""
    parser.add_argument("--device", choices=(*DEVICES, "auto"), default="auto", help="where to compute: cuda is a GPU, "
                        "sim a simulated one (slow), auto a GPU if there is one, else cpu (%(default)s)")
    if precision:
        parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the "
                            "convolutions' products; tf32 and bf16 are for a GPU's tensor cores (%(default)s)")


def device_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_device`, by the names of `Module.to`'s arguments. Raises UserError for what cannot be."""
    device = resolve(arguments.device)
    if device == "cpu" and arguments.precision != "float32":
        raise UserError(f"--precision {arguments.precision} is for the tensor cores of a GPU, and this computes on "
                        "cpu; leave it out, or choose --device cuda or sim")
    return {"device": device, "precision": arguments.precision}


def look_at(images: Path, masks: Path, options: MaskOptions, classes: int | None = None) -> Survey:
    """A survey with a progress bar for those that take their time."""
    with tqdm(unit="pair", desc="reading", delay=2, dynamic_ncols=True, leave=False) as bar:
        def on_read(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)
        return survey(images, masks, options, classes, on_read)


def make_folder(path: Path, option: str = "--out") -> None:
    """Make the folder for the results before the work begins, so that none is lost."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: {option} must be a folder, and there is a file of this name in the way") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: cannot be written to; choose another {option}")


def picture(path: Path, option: str) -> None:
    """Refuse, before the work begins, a file that no picture can be written to; make its folder."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf") or path.is_dir():
        raise UserError(f"{option}: must be a file that ends in .png, .svg or .pdf; got {path}")
    make_folder(path.resolve().parent, f"the place of {option}")


def counted(count: int, one: str, more: str = "") -> str:
    """1 image, 2 images."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def figure(value: float | None) -> str:
    """Four decimals, or a dash where there is no figure."""
    return "-" if value is None else f"{value:.4f}"


def class_words(model: UNet, class_names: tuple[str, ...]) -> str:
    """1 class (cell); 3 classes (background, cell, rim)."""
    listed = ", ".join(class_names if len(class_names) <= 8 else [*class_names[:7], "..."])
    return f"{counted(model.config['classes'], 'class', 'classes')} ({listed})"
