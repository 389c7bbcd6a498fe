"""im2col: a convolution as one product of two small full matrices, and a transposed convolution as the same backwards.

    python examples/03_im2col.py [columns.png]

The picture shows each window beside its row. It prints, among the matrices:

    columns is (4, 9): 4 windows of 9 pixels each, 36 numbers from 16 pixels.
    columns @ w = 122 148 126 134: this is A x: True
    y @ wᵀ is (4, 9), a stamp for each window; added up where they belong: this is Aᵀ y: True
    columnsᵀ @ y is (9, 1), the gradient of <y, A x> with respect to the kernel: True
    With 2 channels, 3 filters and stride 2: (9, 18) @ (18, 3) = (9, 3), and this is A x: True
    A layer of 64 channels reads 16 MiB at 256x256 px; its columns would take 144 MiB.
"""

import sys

import numpy as np

from minunet import Geometry
from minunet.study.explanation import Explanation
from minunet.study.pictures import PICTURES

if any(argument.startswith("-") for argument in sys.argv[1:]):
    sys.exit(__doc__)


def windows(size, kernel, stride):
    """Where each window lies in an image of size x size px, as rows and columns."""
    for top in range(0, size - kernel + 1, stride):
        for left in range(0, size - kernel + 1, stride):
            yield slice(top, top + kernel), slice(left, left + kernel)


def im2col(x, kernel, stride):
    """(H, W, C) -> (OH·OW, KH·KW·C): what lies under each window, as a row."""
    return np.array([x[window].ravel() for window in windows(len(x), kernel, stride)])


def col2im(rows, shape, kernel, stride):
    """(OH·OW, KH·KW·C) -> (H, W, C): each row back to where its window lies; what overlaps adds up."""
    x = np.zeros(shape)
    for window, row in zip(windows(len(x), kernel, stride), rows):
        x[window] += row.reshape(kernel, kernel, -1)
    return x


case = Explanation(Geometry(kernel=3), size=4)      # the kernel, the image x and the windows y of 01_convolution_matrix
w = case.weight.reshape(9, 1)                       # the kernel as a column

# 1. A is mostly zeros, and a product with it mostly multiplies with them. So the pixels under each window are copied
#    side by side instead, and what is left of A is the kernel, once.
columns = im2col(case.x, 3, 1)
print(f"columns is {columns.shape}: 4 windows of 9 pixels each, {columns.size} numbers from {case.x.size} pixels.")
print(columns.astype(int))
Ax = columns @ w                                    # (4, 1)
print("columns @ w =", *Ax.astype(int).ravel(), end=": this is A x: ")
print(np.array_equal(Ax.ravel(), case.Ax.ravel()))

# 2. Backwards: the product first, then each row goes to its window's place. im2col copies a pixel into every window
#    that it lies in; its transpose, col2im, adds up what these windows have for it.
stamps = case.y.reshape(4, 1) @ w.T
print(f"y @ wᵀ is {stamps.shape}, a stamp for each window;", end=" ")
print("added up where they belong: this is Aᵀ y:", np.array_equal(col2im(stamps, case.x.shape, 3, 1), case.ATy))

# 3. The third product of a layer, the gradient of its kernel, comes from the columns too.
dw = columns.T @ case.y.reshape(4, 1)
print(f"columnsᵀ @ y is {dw.shape}, the gradient of <y, A x> with respect to the kernel:",
      np.array_equal(dw.reshape(case.weight.shape), case.A.weight_grad(case.x[None], case.y[None])))

# 4. Channels lie side by side in a row, filters side by side in the kernel's matrix: still one product.
larger = Explanation(Geometry(kernel=3, stride=2), size=7, channels=(2, 3))
columns, kernels = im2col(larger.x, 3, 2), larger.weight.reshape(-1, 3)
print(f"With 2 channels, 3 filters and stride 2: {columns.shape} @ {kernels.shape} = {(columns @ kernels).shape},",
      "and this is A x:", np.array_equal(columns @ kernels, larger.Ax.reshape(-1, 3)))

# 5. The price is memory: a 3x3 kernel copies every pixel nine times. That is why minunet makes the columns in blocks
#    that stay in the processor's cache, and never all of them.
image = 256 * 256 * 64 * 4 / 2**20                  # MiB in float32
print(f"A layer of 64 channels reads {image:.0f} MiB at 256x256 px; its columns would take {9 * image:.0f} MiB.")

if len(sys.argv) > 1:
    draw, _ = PICTURES["columns.png"]
    draw(case, sys.argv[1])
