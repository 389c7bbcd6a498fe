"""`minunet explain`: a convolution and its transpose for the user's own sizes, in text, as pictures or as a page.

With a checkpoint it hands over to `explain_net`, which looks at a trained net's convolutions.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from minunet.cli.explain_net import explain_net
from minunet.cli.matrices import dimmed, prose
from minunet.cli.story import tell
from minunet.cli.values import Commands, counted, make_folder, whole
from minunet.errors import UserError
from minunet.geometry import Geometry, Pair, pair_text, size_text
from minunet.study.animations import ANIMATIONS
from minunet.study.explanation import Explanation
from minunet.study.page import LARGEST, write_html
from minunet.study.pictures import PICTURES
from minunet.study.server import PageServer

WIDTH = 100             # characters of a line where there is no terminal
NARROWEST = 40
SIDE = 4                # px of the image, if that is enough
# what a checkpoint brings itself
OWN = ("kernel", "stride", "padding", "dilation", "output_padding", "size", "values", "x", "y", "channels",
       "transposed", "serve", "html")


def add_commands(commands: Commands) -> None:
    """explain."""
    parser = commands.add_parser(
        "explain", help="convolution and transposed convolution, number by number",
        description="Show a convolution, its matrix and the transposed convolution with all numbers, for any geometry: "
        "in text, as pictures (--out) or as a page to play with (--serve). With a CHECKPOINT: what a trained net's "
        "layers do.",
        epilog="Numbers are written row by row, '1 4 1; 1 4 3; 3 3 1', several kernels or images with a | between. "
        "If the first number is negative, write --values='-1 0; 0 1'.")
    parser.set_defaults(run=_explain)
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="a trained net")
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="that it looks at; it stands directly "
                        "behind CHECKPOINT")
    parser.add_argument("--layer", metavar="NAME", help="one layer of the net, such as up1")

    group = parser.add_argument_group("geometry", "N is a whole number, or HEIGHTxWIDTH")
    group.add_argument("--kernel", type=setting(1), metavar="N", help="(3, or that of --values)")
    group.add_argument("--stride", type=setting(1), metavar="N", help="(1)")
    group.add_argument("--padding", type=setting(0), metavar="N", help="(0)")
    group.add_argument("--dilation", type=setting(1), metavar="N", help="(1)")
    group.add_argument("--output-padding", type=setting(0), metavar="N",
                       help="which of several sizes of image the transposed convolution makes (0 with --transposed, "
                       "otherwise what leads back to --size)")
    group.add_argument("--size", type=setting(1), metavar="N",
                       help="px of the image; with --transposed, of what that reads: the windows (that of --x or --y, "
                       "or 4x4, more if two windows need it; with --transposed 2x2)")
    group.add_argument("--transposed", action="store_true", default=None,
                       help="begin with the transposed convolution, and name what it reads")

    group = parser.add_argument_group("numbers")
    group.add_argument("--values", type=numbers, metavar="NUMBERS",
                       help="the kernel; of several channels and filters: for each filter its channels")
    group.add_argument("--x", type=numbers, metavar="NUMBERS",
                       help="the image, which the convolution reads, channel by channel")
    group.add_argument("--y", type=numbers, metavar="NUMBERS",
                       help="the windows' numbers, which the transposed convolution reads, filter by filter")
    group.add_argument("--channels", type=channels, metavar="CxF",
                       help="channels of the image and filters, which are those of the windows (1x1)")

    group = parser.add_argument_group("beyond text")
    group.add_argument("--out", type=folder, metavar="DIR",
                       help="write pictures and animations (of a CHECKPOINT always: explain)")
    group.add_argument("--html", type=Path, metavar="FILE", help="write the page with this case, in one file")
    group.add_argument("--serve", action="store_true", default=None,
                       help="serve the page to this machine and print its address, until Ctrl-C")
    group.add_argument("--port", type=whole(0), metavar="N", help="of --serve (any that is free)")


def setting(minimum: int) -> Any:
    """A whole number of at least this, or HEIGHTxWIDTH."""
    def parse(text: str) -> Pair:
        parts = text.lower().split("x")
        if len(parts) > 2 or not all(p.isdecimal() and len(p) < 10 and minimum <= int(p) <= LARGEST for p in parts):
            raise argparse.ArgumentTypeError(f"must be a whole number from {minimum} to {LARGEST:,}, or two such as "
                                             f"3x2 (HEIGHTxWIDTH); got {text!r}")
        return int(parts[0]), int(parts[-1])
    return parse


def folder(text: str) -> Path:
    """A folder by its name; no name would be the folder that one is in."""
    if not text:
        raise argparse.ArgumentTypeError("must be a folder; got ''. The one that you are in is .")
    return Path(text)


def channels(text: str) -> Pair:
    """CxF."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdecimal() and len(p) < 10 and int(p) >= 1 for p in parts):
        raise argparse.ArgumentTypeError("must be CHANNELSxFILTERS, such as 2x3 for 2 channels of the image and 3 "
                                         f"filters; got {text!r}")
    return int(parts[0]), int(parts[1])


def numbers(text: str) -> np.ndarray:
    """'1 2; 3 4 | 5 6; 7 8' as (2, 2, 2): arrays separated by |, rows by ;, numbers by blanks or commas."""
    rows = [[row.replace(",", " ").split() for row in array.split(";")] for array in text.split("|")]
    shape = len(rows), len(rows[0]), len(rows[0][0])
    if not shape[2] or any(len(array) != shape[1] or any(len(row) != shape[2] for row in array) for array in rows):
        raise argparse.ArgumentTypeError("must be rows of equally many numbers, such as '1 4 1; 1 4 3; 3 3 1', and of "
                                         f"one shape where there are several kernels or images; got {text!r}")
    return np.array([[[_number(word) for word in row] for row in array] for array in rows])


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and abs(value) <= LARGEST):
        raise argparse.ArgumentTypeError(f"must hold numbers from {-LARGEST:,} to {LARGEST:,}; got {text!r}")
    return value


def _explain(arguments: argparse.Namespace) -> None:
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")        # a terminal without ᵀ shows ?
    if arguments.port is not None and not arguments.serve:
        raise UserError("--port is of --serve; leave it out, or add --serve")
    if arguments.checkpoint is not None:
        for name in OWN:
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} and a checkpoint ({arguments.checkpoint}) exclude each "
                                "other, for a net has its own convolutions; leave one of them out")
        explain_net(arguments.checkpoint, arguments.image, arguments.layer, arguments.out or Path("explain"))
        return
    if arguments.layer is not None:
        raise UserError("--layer is of a trained net; give its CHECKPOINT too")
    try:
        explanation = _explanation(arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    _show(arguments, explanation)


def _explanation(arguments: argparse.Namespace) -> Explanation:
    """What the options ask for. Raises UserError where they contradict each other, ValueError for what cannot be."""
    values, x, y = arguments.values, arguments.x, arguments.y       # (F·C, KH, KW), (C, H, W), (F, OH, OW)
    kernel = _agreed("--kernel", arguments.kernel, "--values", values) or (3, 3)
    geometry = Geometry(kernel, arguments.stride or 1, arguments.padding or 0, arguments.dilation or 1)
    c, f = arguments.channels or (1, 1)
    arrays: dict[str, Any] = {"channels": (c, f)}
    if values is not None:
        if len(values) != c * f:
            raise UserError(f"--values holds {counted(len(values), 'kernel')}, but {counted(c, 'channel')} and "
                            f"{counted(f, 'filter')} take {c * f}; give --channels CxF, or other values")
        arrays["weight"] = values.reshape(f, c, *kernel).transpose(2, 3, 1, 0)      # (KH, KW, C, F)
    for name, read, count, what in (("x", x, c, "channel"), ("y", y, f, "filter")):
        if read is not None:
            if len(read) != count:
                raise UserError(f"--{name} holds the numbers of {counted(len(read), what)} and must hold those of "
                                f"{count}; give --channels CxF, or other numbers")
            arrays[name] = read.transpose(1, 2, 0)
    found = Explanation(geometry, _image_size(arguments, geometry), **arrays)
    if arguments.output_padding not in (None, found.output_padding):
        raise UserError(f"--output-padding {pair_text(arguments.output_padding)} does not lead from "
                        f"{size_text(found.out_size)} windows back to {size_text(found.size)} px; "
                        f"{pair_text(found.output_padding)} does")
    return found


def _image_size(arguments: argparse.Namespace, geometry: Geometry) -> Pair:
    """(H, W) that --size, --x, --y and --output-padding ask for."""
    size, transposed, extra = arguments.size, arguments.transposed, arguments.output_padding
    image = _agreed("--size", None if transposed else size, "--x", arguments.x)
    windows = _agreed("--size", size if transposed else None, "--y", arguments.y)
    if image is None and (windows or transposed or extra is not None):
        return geometry.transposed_size(windows or 2, extra or 0)
    if image is None:
        two_windows = (s + e - 2 * p for s, e, p in zip(geometry.stride, geometry.extent, geometry.padding))
        height, width = (max(SIDE, n) for n in two_windows)
        return height, width
    if windows not in (None, found := geometry.output_size(image)):
        given = "--x" if arguments.x is not None else "--size"
        raise UserError(f"{given} is an image of {size_text(image)} px, which has {size_text(found)} windows, but "
                        f"{'--size' if arguments.y is None else '--y'} is of {size_text(windows)}; leave one of them "
                        "out, or give other numbers")
    return image


def _agreed(option: str, chosen: Pair | None, source: str, array: np.ndarray | None) -> Pair | None:
    """The size that an option chose, or that of the numbers (n, height, width) given."""
    if array is None:
        return chosen
    height, width = array.shape[1:]
    if chosen is not None and chosen != (height, width):
        raise UserError(f"{option} {size_text(chosen)} and {source}, which holds {height}x{width} numbers, contradict "
                        f"each other; leave {option} out, or give other numbers")
    return height, width


def _show(arguments: argparse.Namespace, e: Explanation) -> None:
    """Text, or the page instead; and files. What may be refused comes first, and then what takes long."""
    out, html, transposed = arguments.out, arguments.html, bool(arguments.transposed)
    if html is not None and (html.suffix.lower() not in (".html", ".htm") or html.is_dir()):
        raise UserError(f"--html: must be a file that ends in .html; got {html}")
    with ExitStack() as stack:
        server = stack.enter_context(_server(e, transposed, arguments.port or 0)) if arguments.serve else None
        if out is not None:
            make_folder(out)
        if html is not None:
            make_folder(html.resolve().parent, "the place of --html")
            _write_html(e, transposed, html)
        if html is None and server is None:
            width = _width()
            _print(tell(e, transposed, width) + "\n")
            if out is None:
                print(prose("--out DIR draws this and animates it; --serve opens a page with numbers to change and to "
                            "follow.", width))
        if out is not None:
            for name, (draw, sentence) in {**PICTURES, **ANIMATIONS}.items():
                draw(e, out / name, transposed)
                print(f"{out / name}: {sentence}", flush=True)
        if server is not None:
            print(f"look at {server.url} (Ctrl-C ends it)", flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:       # is how it is meant to end
                print()


def _server(e: Explanation, transposed: bool, port: int) -> PageServer:
    """The page's server, its port taken."""
    try:
        return PageServer(e, transposed, port=port)
    except UserError as error:
        raise UserError(f"--port: {error}") from None
    except ValueError as error:             # more than the page shows
        raise UserError(f"--serve: {error}") from None


def _write_html(e: Explanation, transposed: bool, path: Path) -> None:
    try:
        write_html(e, transposed, path)
    except ValueError as error:             # more than the page shows
        raise UserError(f"--html: {error}") from None
    print(f"{path}: this case as a page; open it in a browser", flush=True)


def _width() -> int:
    if not sys.stdout.isatty():
        return WIDTH
    return max(NARROWEST, shutil.get_terminal_size((WIDTH, 0)).columns)


def _print(text: str) -> None:
    """With structural zeros dimmed, if this is a terminal that can and may (https://no-color.org)."""
    may = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print(dimmed(text) if may else text)
