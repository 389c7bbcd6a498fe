"""A convolution is a product with a matrix, and a transposed convolution the product with its transpose.

    python examples/01_convolution_matrix.py [matrix.png]

The matrix of a 3x3 kernel on a 4x4 image is written out here by hand, with four loops, and held beside `ConvMatrix` and
the layers. The picture shows both products. It prints, among the matrices:

    A is (4, 16): it takes the 16 pixels to the 4 windows.
    A x    = 122 148 126 134
    sliding= 122 148 126 134
    Aᵀ is (16, 4): it takes 4 numbers back to 16.
    Aᵀ y   = 2 9 6 1 6 29 30 7 10 29 33 13 12 24 16 4
    stamps = 2 9 6 1 6 29 30 7 10 29 33 13 12 24 16 4
    ConvMatrix is this very matrix: True
    conv2d and conv_transpose2d give these very numbers: True True
"""

import sys

import numpy as np

from minunet import ConvMatrix, Geometry
from minunet import functional as F
from minunet.study.explanation import Explanation
from minunet.study.pictures import PICTURES

if any(argument.startswith("-") for argument in sys.argv[1:]):
    sys.exit(__doc__)

w = np.array([[1, 4, 1], [1, 4, 3], [3, 3, 1]], float)                              # the kernel
x = np.array([[4, 5, 8, 7], [1, 8, 8, 8], [3, 6, 6, 4], [6, 5, 7, 8]], float)       # an image
y = np.array([[2, 1], [4, 4]], float)                                               # one number for each window


def line(numbers):
    """An image as one line of text."""
    return " ".join(f"{n:g}" for n in numbers.ravel())


# 1. The kernel fits at four places of the image, so there are four windows. Row by row, A says which pixel counts how
#    much in a window: the elements of the kernel, at the pixels that they lie on, and zeros elsewhere.
A = np.zeros((4, 16))
for top in range(2):
    for left in range(2):
        for i in range(3):
            for j in range(3):
                window, pixel = 2 * top + left, 4 * (top + i) + (left + j)
                A[window, pixel] = w[i, j]

print(f"A is {A.shape}: it takes the 16 pixels to the 4 windows.")
for row in A:
    print("   ", " ".join(f"{n:.0f}" if n else "·" for n in row))

# 2. The product with it is the convolution, as one sees it drawn: a kernel that slides.
sliding = np.array([[(w * x[top:top + 3, left:left + 3]).sum() for left in range(2)] for top in range(2)])
print("A x    =", line(A @ x.ravel()))
print("sliding=", line(sliding))

# 3. The product with its transpose takes 4 numbers to 16. Column by column, A says where a window's number goes: the
#    whole kernel is put down there like a stamp, multiplied with the number, and where stamps overlap they add.
print(f"Aᵀ is {A.T.shape}: it takes 4 numbers back to 16.")
for row in A.T:
    print("   ", " ".join(f"{n:.0f}" if n else "·" for n in row))

stamps = np.zeros((4, 4))
for top in range(2):
    for left in range(2):
        stamps[top:top + 3, left:left + 3] += y[top, left] * w
print("Aᵀ y   =", line(A.T @ y.ravel()))
print("stamps =", line(stamps))

# 4. `ConvMatrix` is this matrix for any kernel, stride, padding, dilation and number of channels, and it multiplies
#    without writing it out. The layers are its products. Images are (N, H, W, C), kernels (KH, KW, C, F).
weight = w.reshape(3, 3, 1, 1)
matrix = ConvMatrix(weight, Geometry(kernel=3), size=(4, 4))
print("ConvMatrix is this very matrix:", np.array_equal(matrix.dense(), A))

forth = F.conv2d(x.reshape(1, 4, 4, 1), weight).data
back = F.conv_transpose2d(y.reshape(1, 2, 2, 1), weight).data
print("conv2d and conv_transpose2d give these very numbers:",
      np.array_equal(forth.ravel(), A @ x.ravel()), np.array_equal(back.ravel(), A.T @ y.ravel()))

# 5. The same products as a picture. `minunet explain` draws it for any kernel, stride, padding and size.
if len(sys.argv) > 1:
    draw, _ = PICTURES["matrix.png"]
    draw(Explanation(Geometry(kernel=3), (4, 4), weight=w, x=x, y=y), sys.argv[1])
