"""Why a 3x3 kernel with stride 2 paints a checkerboard, why 2x2 and 4x4 do not, and another way out: resize first.

    python examples/04_checkerboard.py [checkerboard.png]

It prints:

    On a line, which elements of a kernel meet at a pixel, with stride 2:
    3 wide: 0   1   0+2 1   0+2 1   0+2 1   2
    2 wide: 0   1   0   1   0   1   0   1
    4 wide: 0   1   0+2 1+3 0+2 1+3 0+2 1+3 2   3
    In an image, four neighbours far from the border:
    3x3: met by 4 2 2 1 windows, unevenness 0.48; random kernels: 2.0 1.4 1.4 1.0 times as strong
    2x2: met by 1 1 1 1 windows, unevenness 0.00; random kernels: 1.0 1.0 1.0 1.0 times as strong
    4x4: met by 4 4 4 4 windows, unevenness 0.00; random kernels: 1.0 1.0 1.0 1.0 times as strong
    A flat image comes out flat with this many of 10000 random kernels:
    3x3: 0, 2x2: 0, 4x4: 0, resize first: 10000
    With the 3x3 kernel 1 2 1, 2 4 2, 1 2 1 it comes out flat, too: True

The picture has a column for each way. Above, how many windows meet each pixel; in the middle, a smooth image through a
kernel of equal elements, where only 3x3 shows squares; below, through a random kernel, where all do but the last.

Source: Odena, Dumoulin, Olah, Deconvolution and checkerboard artifacts, Distill (2016).
"""

import sys

import numpy as np
from matplotlib.figure import Figure

from minunet import Geometry
from minunet import functional as F
from minunet.study.explanation import Explanation, unevenness

if any(argument.startswith("-") for argument in sys.argv[1:]):
    sys.exit(__doc__)


def transposed(x, kernels):
    """(1, H, W, 1), (K, K, n) -> (1, ·, ·, n): about twice the size, by n transposed convolutions with stride 2."""
    return F.conv_transpose2d(x, kernels[:, :, :, None], stride=2).data


def resize_first(x, kernels):
    """(1, H, W, 1), (3, 3, n) -> (1, 2H, 2W, n): every pixel four times, then n convolutions with stride 1."""
    return F.conv2d(F.resample(x, factor=2), kernels[:, :, None, :], padding=1).data


def inside(y):
    """Without the border, where windows are missing."""
    return y[:, 4:-4, 4:-4]


# 1. Along one line. With stride 2 each number puts its stamp down two pixels after the one before. A stamp of three
#    reaches into the next: every other pixel gets two elements of the kernel, the pixels between get one.
print("On a line, which elements of a kernel meet at a pixel, with stride 2:")
for k in (3, 2, 4):
    line = Explanation.transposed(Geometry((1, k), stride=2), size=(1, 4))
    met = ["+".join(map(str, sorted(line.taps.element[line.taps.pixel == p]))) for p in range(line.size[1])]
    print(f"{k} wide:", " ".join(f"{m:3}" for m in met).rstrip())

# 2. In an image that is so for rows and for columns, and the counts multiply: 2·2, 2·1, 1·2, 1·1. They are even only
#    where the stride divides the kernel. It takes no bad weights: of random ones, as a net begins with, the sum of n is
#    √n times as strong as one.
print("In an image, four neighbours far from the border:")
rng = np.random.default_rng(0)
random = {k: rng.standard_normal((k, k, 10_000)) for k in (3, 2, 4)}
flat = np.ones((1, 8, 8, 1))
for k in (3, 2, 4):
    case = Explanation.transposed(Geometry(k, stride=2), size=8)
    strength = np.sqrt((transposed(flat, random[k])[0, 6:8, 6:8] ** 2).mean(-1))            # (2, 2)
    print(f"{k}x{k}: met by", *case.overlap[6:8, 6:8].ravel(), f"windows, unevenness {unevenness(case.geometry):.2f};",
          "random kernels:", *(f"{s:.1f}" for s in (strength / strength.min()).ravel()), "times as strong")

# 3. To be even is a fair start, not more: the four elements of a 2x2 kernel are a pattern of two pixels, too, until the
#    net has learned better. If the image is resized first, every pixel meets the whole kernel: nothing to unlearn.
ways = {"3x3": (transposed, 3), "2x2": (transposed, 2), "4x4": (transposed, 4), "resize first": (resize_first, 3)}
print("A flat image comes out flat with this many of 10000 random kernels:")
spread = {name: np.ptp(inside(way(flat, random[k])), axis=(0, 1, 2)) for name, (way, k) in ways.items()}
print(", ".join(f"{name}: {(spread[name] < 1e-9).sum()}" for name in ways))

# 4. And a 3x3 kernel can learn to be fair, if its sums are: 1 + 1 = 2. (It then is bilinear interpolation.)
fair = np.outer([1, 2, 1], [1, 2, 1])[:, :, None] / 4
print("With the 3x3 kernel 1 2 1, 2 4 2, 1 2 1 it comes out flat, too:", np.ptp(inside(transposed(flat, fair))) == 0)


def draw(path):
    """The ways side by side."""
    figure = Figure(figsize=(9.2, 7.3), dpi=100, layout="constrained")
    rows, columns = np.mgrid[-1:1:20j, -1:1:20j]
    smooth = np.exp(-2 * (rows**2 + columns**2))[None, :, :, None]
    grid = figure.subplots(3, 4)
    for axes, (name, (way, k)) in zip(grid.T, ways.items()):
        equal = np.ones((k, k, 1))
        counts = way(flat, equal)[0, 4:12, 4:12, 0]
        axes[0].imshow(counts, cmap="Oranges", vmin=0, vmax=2 * counts.max())
        for (row, column), count in np.ndenumerate(counts):
            axes[0].text(column, row, f"{count:.0f}", ha="center", va="center")
        for a, kernels in zip(axes[1:], (equal, random[k][:, :, :1])):
            a.imshow(inside(way(smooth, kernels))[0, :, :, 0], cmap="gray")
        axes[0].set_title(name if name == "resize first" else f"{name}, stride 2")
        for a in axes:
            a.set(xticks=[], yticks=[])
    for axes, words in zip(grid[:, 0], ("windows on a pixel", "a smooth image, equal elements",
                                        "the same, random elements")):
        axes.set_ylabel(words)
    figure.savefig(path)


if len(sys.argv) > 1:
    draw(sys.argv[1])
