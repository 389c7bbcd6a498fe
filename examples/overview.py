"""The picture on top of README: the convolution matrix, its transpose, and what a U-Net made of both has learned.

    minunet demo                            # trains a small U-Net into runs/demo
    python examples/overview.py runs/demo examples/overview.png

Every number in the picture comes from `ConvMatrix`, the prediction from the demo's checkpoint.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")           # draws into a file, also where there is no screen
from matplotlib import pyplot as plt  # noqa: E402

from minunet import ConvMatrix, Geometry  # noqa: E402
from minunet.checkpoint import load_checkpoint  # noqa: E402
from minunet.data.scenes import cell_scene  # noqa: E402
from minunet.inference import class_ids, overlay, probabilities  # noqa: E402

KERNEL = np.array([[1, 4, 1], [1, 4, 3], [3, 3, 1]], float)
IMAGE = np.array([[4, 5, 8, 7], [1, 8, 8, 8], [3, 6, 6, 4], [6, 5, 7, 8]], float)
UNSEEN = 2026                   # the demo draws its scenes from the seed 0


SIZE = (12.5, 6.1)              # of the figure, in inches
CELL = 0.222                    # of a matrix element, in inches


def panel(figure, left, middle, width, height):
    """Axes at a place in inches, centred vertically on `middle`."""
    w, h = SIZE
    return figure.add_axes((left / w, (middle - height / 2) / h, width / w, height / h))


def draw_numbers(figure, left, middle, matrix, title, colours):
    """A matrix as coloured cells with its numbers in them, zeros dimmed; returns where it ends."""
    rows, columns = matrix.shape
    axes = panel(figure, left, middle, columns * CELL, rows * CELL)
    axes.imshow(matrix, cmap=colours, vmin=0, vmax=1.6 * matrix.max())      # light enough for black digits
    for (row, column), value in np.ndenumerate(matrix):
        axes.text(column, row, f"{value:g}", ha="center", va="center", fontsize=8 if value < 100 else 6.5,
                  color="black" if value else "0.75")
    for line in np.arange(1, columns):
        axes.axvline(line - 0.5, color="white", linewidth=1)
    for line in np.arange(1, rows):
        axes.axhline(line - 0.5, color="white", linewidth=1)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    return left + columns * CELL


def draw_product(figure, left, middle, parts):
    """matrix · input = output, in a row, every element of the same size."""
    for sign, (matrix, title, colours) in zip(("·", "=", ""), parts):
        left = draw_numbers(figure, left, middle, matrix, title, colours) + 0.42
        figure.text((left - 0.21) / SIZE[0], middle / SIZE[1], sign, ha="center", va="center", fontsize=14)


def main(run, out):
    """Draw the picture into a file."""
    A = ConvMatrix(KERNEL.reshape(3, 3, 1, 1), Geometry(kernel=3), size=4)
    y = np.array([[2.0, 1], [4, 4]])
    checkpoint = load_checkpoint(Path(run) / "best.safetensors")
    image, truth = cell_scene(np.random.default_rng(UNSEEN))
    probability = checkpoint.model.predict(checkpoint.normalise(image)[None])[0]
    prediction = class_ids(probabilities(checkpoint, image))

    figure = plt.figure(figsize=SIZE, dpi=100)
    figure.text(0.012, 0.945, "A convolution is a product with a matrix, a transposed convolution the product with its "
                "transpose.", fontsize=12.5, weight="bold")
    figure.text(0.012, 0.895, "The kernel [[1, 4, 1], [1, 4, 3], [3, 3, 1]], written out by ConvMatrix:", fontsize=10)
    draw_product(figure, 0.15, 4.6, (
        (A.dense(), f"A {A.shape}", "Blues"), (IMAGE, "x, 16 numbers", "Oranges"),
        ((A @ IMAGE.ravel()).reshape(2, 2), "A x, 4 numbers", "Greens")))
    draw_product(figure, 1.5, 1.9, (
        (A.T.dense(), f"Aᵀ {A.T.shape}", "Blues"), (y, "y, 4 numbers", "Oranges"),
        ((A.T @ y.ravel()).reshape(4, 4), "Aᵀ y, 16 numbers", "Greens")))

    figure.text(0.60, 0.895, "A U-Net made of both, after `minunet demo`:", fontsize=10)
    pictures = (
        (overlay(image), "a scene it has not seen"), (overlay(image, truth=truth), "truth"),
        (probability[..., 0], "its probability of a cell"), (overlay(image, prediction, truth), "prediction, truth"))
    for index, (picture, title) in enumerate(pictures):
        axes = panel(figure, 7.5 + 2.48 * (index % 2), 3.98 - 2.68 * (index // 2), 2.4, 2.4)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(title, fontsize=9, pad=4)
    figure.savefig(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
