"""The picture on top of README: the convolution matrix, its transpose, and what a U-Net made of both has learned.

    minunet demo                            # trains a small U-Net into runs/demo
    python examples/overview.py runs/demo examples/overview.png

Every number in the picture comes from `ConvMatrix`, the prediction from the demo's checkpoint.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minunet import Geometry
from minunet.checkpoint import load_checkpoint
from minunet.data.scenes import cell_scene
from minunet.inference import class_ids, overlay, probabilities
from minunet.study.explanation import Explanation
from minunet.study.grid import Grid, beside
from minunet.study.net_pictures import Picture
from minunet.study.sheet import IMAGE, KERNEL, WINDOWS, Sheet

UNSEEN = 2026                   # the demo draws its scenes from the seed 0
CELL, WIDE = (24, 24), (24, 34)         # px of a number, and of one in a result
PICTURE = 232                           # px


def column(title, numbers, colour, cell=CELL):
    """An image or its windows as a vector, row by row."""
    return [Grid(title, numbers.reshape(-1, 1), colour, cell, blocks=((numbers.shape[1], ""), (1, "")))]


def main(run, out):
    """Draw the picture into a file."""
    e, sheet = Explanation(Geometry(kernel=3), 4), Sheet()
    A, zeros = e.A.dense(), np.ones(e.A.shape, bool)
    zeros[e.taps.window, e.taps.pixel] = False
    sheet.text(0, 0, "A convolution is a product with a matrix, a transposed convolution the product with its "
               "transpose.", 17, bold=True)
    sheet.text(0, 32, "The kernel [[1, 4, 1], [1, 4, 3], [3, 3, 1]] on 4x4 pixels, written out by ConvMatrix:", 13)
    # a row of the image makes a block of columns of A, a row of windows a block of its rows
    right, _ = beside(sheet, 0, 60, (
        [Grid("A", A, KERNEL, CELL, "4 x 16", zeros=zeros, blocks=((2, ""), (4, "")))], "×",
        column("x", e.x, IMAGE), "=", column("A x", e.Ax, WINDOWS, WIDE)))
    _, bottom = beside(sheet, right + 60, 60, (
        [Grid("Aᵀ", A.T, KERNEL, CELL, "16 x 4", zeros=zeros.T, blocks=((4, ""), (2, "")))], "×",
        column("y", e.y, WINDOWS), "=", column("Aᵀ y", e.ATy, IMAGE, WIDE)))

    checkpoint = load_checkpoint(Path(run) / "best.safetensors")
    image, truth = cell_scene(np.random.default_rng(UNSEEN))
    probability = probabilities(checkpoint, image)
    prediction = class_ids(probability)
    pictures = (("a scene it has not seen", overlay(image)), ("truth", overlay(image, truth=truth)),
                ("its probability of a cell", Image.fromarray(np.uint8(255 * probability[..., 0]))),
                ("prediction, truth", overlay(image, prediction, truth)))
    top = bottom + 30
    sheet.text(0, top, "A U-Net made of both, after `minunet demo`:", 13)
    for index, (title, picture) in enumerate(pictures):
        left, upper = (PICTURE + 12) * index, top + 48
        sheet.text(left, upper - 20, title, 12)
        sheet.marks.append(Picture((left, upper, left + PICTURE, upper + PICTURE), np.asarray(picture.convert("RGB"))))
    sheet.image(scale=2).save(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
