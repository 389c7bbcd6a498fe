"""A folder of images and a folder of masks, as a person may have them, and the commands that make a net of them.

    python examples/own_folder.py cells                             # writes the folders; now try the commands yourself
    python examples/own_folder.py cells examples/own_folder.png     # also runs them, and draws README's picture

The images are made-up microscopy with two kinds of cells. The masks hold class ids: 0 background, 1 round, 2 spindle.
"""

import shlex
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minunet import cli
from minunet.data.scenes import cell_scenes
from minunet.inference import caption, legend, side_by_side

COMMANDS = """
minunet inspect {data}/images {data}/masks --class-names background,round,spindle
minunet train --images {data}/images --masks {data}/masks --class-names background,round,spindle --out {run} \\
    --crop 128x128 --base 8 --depth 3 --lr 3e-3 --epochs 40
minunet evaluate {run}/best.safetensors --images {data}/new --masks {data}/new_masks
minunet predict {run}/best.safetensors {data}/new --out {data}/found
minunet predict {run}/best.safetensors {data}/new --out {data}/spindles --only spindle
"""


def write_folder(folder, scenes=80, new=8):
    """images/NAME.png and masks/NAME_mask.png to learn from, new/ and new_masks/ that the net never sees."""
    images, masks = cell_scenes(np.random.default_rng(7), scenes + new, (128, 128), classes=2)
    for i, (image, mask) in enumerate(zip(images, masks)):
        kept = ("images", "masks") if i < scenes else ("new", "new_masks")
        for name in kept:
            (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[..., 0] * 255).astype(np.uint8)).save(folder / kept[0] / f"scene{i:02}.png")
        Image.fromarray(mask).save(folder / kept[1] / f"scene{i:02}_mask.png")


def run(folder, runs):
    """The commands, on this folder."""
    for line in COMMANDS.format(data=folder, run=runs).strip().replace("\\\n", "").splitlines():
        print(f"\n$ {line}")
        if cli.main(shlex.split(line)[1:]) != 0:
            sys.exit(1)


def draw(folder, runs, picture):
    """Two of the run's validation images; beside them its history, and what the net finds in new images."""
    validation, history = Image.open(runs / "validation.png"), Image.open(runs / "history.png")
    two_rows = validation.crop((0, 0, validation.width, 22 + 2 * (384 + 4)))
    history = history.resize((660, 660 * history.height // history.width))
    overlays = [Image.open(path).crop((0, 0, 128, 128)).resize((214, 214))          # without the legend
                for path in sorted((folder / "found" / "overlays").iterdir())[:3]]
    right = side_by_side([[history], [caption("new images", history.width)], overlays], gap=9)
    left = two_rows.resize((two_rows.width * right.height // two_rows.height, right.height))
    names = legend({1: "round", 2: "spindle"}, left.width)
    side_by_side([[left, right], [names]], gap=12).save(picture)


def main(folder, picture=None):
    write_folder(folder)
    if picture is None:
        print(COMMANDS.format(data=folder, run=f"runs/{folder.name}").strip())
    else:
        run(folder, folder / "run")
        draw(folder, folder / "run", picture)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
