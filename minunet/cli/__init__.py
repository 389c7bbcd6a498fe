"""The command `minunet`: the only room that parses arguments and prints.

What a user can get wrong ends in one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from tqdm import tqdm

from minunet import __version__
from minunet.cli import apply, bench, explain, gradcheck, kernels, learn, look
from minunet.cuda import KernelError
from minunet.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 for what the user can mend, 130 after Ctrl-C.

    A command whose answer can be no (gradcheck) returns its own code: 1.
    """
    arguments = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):     # an overflow ends in a UserError
            warnings.filterwarnings("ignore", module="PIL")                         # odd tags do no harm
            warnings.showwarning = _say     # type: ignore[assignment]
            code: int | None = arguments.run(arguments)
            sys.stdout.flush()
        return code or 0
    except UserError as error:
        complaint = str(error)
    except KernelError as error:
        complaint = f"a CUDA kernel failed: {error}"
    except MemoryError as error:
        complaint = (f"there is not enough memory ({error}); use smaller images, or train with a smaller --crop, "
                     "--batch or --base")
    except BrokenPipeError:         # the reader of a pipe, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:        # no permission, disk full
        complaint = f"{error.filename or 'file system'}: {error.strerror or error}"
    except KeyboardInterrupt as stop:
        print(f"\nminunet: {str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    print(f"minunet: {complaint}", file=sys.stderr)
    return 2


def _say(message: Warning | str, *_: object) -> None:
    """A warning without the line of code that gave it, above a progress bar that is being drawn."""
    tqdm.write(f"minunet: {message}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(prog="minunet", description="A U-Net for semantic segmentation, from scratch.")
    parser.add_argument("--version", action="version", version=f"minunet {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for room in (look, learn, apply, explain, gradcheck, kernels, bench):
        room.add_commands(commands)
    return parser
