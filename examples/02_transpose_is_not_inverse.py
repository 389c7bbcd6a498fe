"""What the transpose is not: the inverse ("deconvolution"). What it is: the way back of shapes, and of gradients.

    python examples/02_transpose_is_not_inverse.py

It prints, after the images:

    Aᵀ(A x) has the shape of x and other numbers: 122 where x is 4.
    A has rank 4: of 16 numbers 4 are kept, 12 are lost.
    Another image z with A z = A x: True; at some pixel z is 3.1 from x.
    The smallest image b with A b = A x: True; at some pixel b is 7.2 from x.
    <y, A x> = 1432 and <Aᵀ y, x> = 1432
    The gradient of <y, A x> with respect to x is Aᵀ y: True
    Of an orthogonal matrix (2x2 Haar transform, stride 2) Aᵀ is the inverse: True
"""

import numpy as np

from minunet import ConvMatrix, Geometry, Tensor
from minunet import functional as F
from minunet.study.explanation import Explanation

case = Explanation(Geometry(kernel=3), size=4)      # the kernel, the image x and the windows y of 01_convolution_matrix
A, x, y = case.A, case.x.ravel(), case.y.ravel()

# 1. There and back: 16 numbers, 4 numbers, 16 numbers. The shape is that of x, the numbers are not.
print("x:", case.x[..., 0], "Aᵀ(A x):", case.ATAx[..., 0], sep="\n")
print(f"Aᵀ(A x) has the shape of x and other numbers: {case.ATAx[0, 0, 0]:g} where x is {x[0]:g}.")

# 2. No other matrix could bring x back either. Of 16 numbers A keeps 4; to all else it is blind.
dense = A.dense()
rank = np.linalg.matrix_rank(dense)
print(f"A has rank {rank}: of 16 numbers {rank} are kept, {16 - rank} are lost.")
inverse = np.linalg.pinv(dense)                     # the pseudoinverse A⁺, the closest that there is to an inverse
change = np.eye(16)[5] * 5
z = x + change - inverse @ (A @ change)             # x with a change of which the part that A sees was taken out
print(f"Another image z with A z = A x: {np.allclose(A @ z, A @ x)}; at some pixel z is {abs(z - x).max():.1f} from x.")
b = inverse @ (A @ x)
print(f"The smallest image b with A b = A x: {np.allclose(A @ b, A @ x)}; at some pixel b is {abs(b - x).max():.1f} "
      "from x.")

# 3. What makes it the transpose: it takes A from one side of a scalar product to the other.
print(f"<y, A x> = {y @ (A @ x):g} and <Aᵀ y, x> = {(A.T @ y) @ x:g}")

# 4. Read <y, A x> as a loss that weighs each window with its y. Its gradient with respect to x is Aᵀ y. So a transposed
#    convolution is what the backward of a convolution does: it tells each pixel what its windows want of it.
image = Tensor(case.x[None], requires_grad=True)                                    # (1, 4, 4, 1)
(F.conv2d(image, case.weight) * case.y[None]).sum().backward()
print("The gradient of <y, A x> with respect to x is Aᵀ y:", np.array_equal(image.grad[0], case.ATy))

# 5. In one case it is the inverse: when A is square and its rows are orthonormal. So are these four kernels, on windows
#    that do not overlap: 16 numbers become 4 windows of 4 numbers, and nothing is lost.
haar = np.array([[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]) / 2     # (F, KH, KW)
H = ConvMatrix(haar.transpose(1, 2, 0)[:, :, None], Geometry(kernel=2, stride=2), size=(4, 4))
print("Of an orthogonal matrix (2x2 Haar transform, stride 2) Aᵀ is the inverse:", np.allclose(H.T @ (H @ x), x))
