"""A convolution is a product with a matrix A, a transposed convolution the product with Aᵀ: `ConvMatrix` is that A.

| | conv2d | conv_transpose2d |
|---|---|---|
| forward | y = A x | y = Aᵀ x |
| input gradient | dx = Aᵀ dy | dx = A dy |
| weight gradient | weight_grad(x, dy) | weight_grad(dy, x) |

Which algorithm computes the products is decided here and nowhere else:

| device | algorithm | |
|---|---|---|
| cpu | im2col | column matrix by blocks, NumPy's matrix product |
| | winograd | 3x3 windows at stride 1 by tiles, with a quarter of the multiplications |
| cuda, sim | direct | one thread an output |
| | im2col | column matrix and back by kernels, the array library's matrix product |
| | implicit | matrix product in shared-memory tiles, the column matrix never stored |
| | tensorcore | the same on tensor cores, operands rounded to TF32 or BF16 |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from minunet.backend import array_module, as_float, device_of, to_device
from minunet.convolution import im2col, kernels, tensor_cores, winograd_products
from minunet.convolution.explicit import sparse_matrix
from minunet.convolution.products import Each
from minunet.geometry import Geometry, IntOrPair, Pair, as_pair, pair_text, size_text

ALGORITHMS = {"cpu": ("auto", "im2col", "winograd"), "gpu": ("auto", *kernels.ALGORITHMS, "tensorcore")}
PRECISIONS = {"cpu": ("float32", "float64"), "gpu": ("float32", "float64", *tensor_cores.PRECISIONS)}
DENSE_LIMIT = 1 << 28       # elements; 1 GiB in float32, 2 in float64

# From where on winograd is faster than im2col, measured on two cores with AVX-512: channels and also filters, output
# pixels of an image, and pixels times the smaller number of the two.
WINOGRAD_CHANNELS = 8
WINOGRAD_PIXELS = 64
WINOGRAD_NUMBERS = 8192


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError unless the products of this device can be computed in this precision."""
    _check_choice("precision", precision, PRECISIONS, device)


def _check_choice(name: str, value: str, choices: Mapping[str, Sequence[str]], device: str) -> None:
    found = choices["cpu" if device == "cpu" else "gpu"]
    if value not in found:
        raise ValueError(f"{name} must be one of {', '.join(found)} on the device {device}; got {value!r}")


class ConvMatrix:
    """The matrix A of a 2-d convolution, as an operator: A @ x, A.T @ y, A.weight_grad(x, y).

    y[n, oh, ow, f] = Σ weight[kh, kw, c, f] · x[n, oh·SH − PH + kh·DH, ow·SW − PW + kw·DW, c], zero outside the image.

    Args:
        weight: (KH, KW, C, F), float32 or float64; other numbers are converted to `precision`.
        geometry: kernel (KH, KW), stride, padding and dilation.
        size: (H, W) of the images in px.
        algorithm: one of the table above for the weight's device, or "auto" for the fastest that fits: in float64
            im2col, whose sums are plain; in float32 winograd, which rounds a few times as much, where it is faster.
        precision: how float32 numbers are multiplied; "tf32" and "bf16" round the operands and add up in float32 on
            the tensor cores of a GPU (what does not fit those is computed in float32); "float64" computes everything
            in float64. A float64 weight always computes in float64.

    Images are (N, H, W, C), or one image as a flat vector of H·W·C numbers, on the weight's device; they are converted
    to the matrix's dtype. x may also be a tuple of images (N, H, W, ·) whose channels lie side by side in C: a product
    reads them where they are, where its algorithm can.

    Raises ValueError for a weight or image whose shape does not fit, an unknown algorithm or precision, a window
    larger than the padded image; TypeError for an image on another device. For every x and y:

        <y, A @ x> = <A.T @ y, x> = <weight, A.weight_grad(x, y)>

    >>> import numpy as np
    >>> from minunet import ConvMatrix, Geometry
    >>> weight = np.array([[1., 4, 1], [1, 4, 3], [3, 3, 1]]).reshape(3, 3, 1, 1)
    >>> A = ConvMatrix(weight, Geometry(kernel=3), size=(4, 4))
    >>> A
    ConvMatrix (4, 16): 4x4x1 -> 2x2x1, kernel 3x3, stride 1, padding 0, dilation 1, im2col, float64
    >>> A.dense()[0].astype(int)
    array([1, 4, 1, 0, 1, 4, 3, 0, 3, 3, 1, 0, 0, 0, 0, 0])
    >>> (A @ np.arange(16)).tolist(), (A.T @ np.ones(4)).shape
    ([109.0, 130.0, 193.0, 214.0], (16,))

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), section 4.1.
    """

    def __init__(self, weight: np.ndarray, geometry: Geometry, size: IntOrPair, algorithm: str = "auto",
                 precision: str = "float32"):
        weight = as_float(weight)
        self.device = device_of(weight)
        check_precision(precision, self.device)
        _check_choice("algorithm", algorithm, ALGORITHMS, self.device)
        if not isinstance(geometry, Geometry):
            raise TypeError(f"geometry must be a Geometry, such as Geometry(kernel=3); got {type(geometry).__name__}")
        weight = as_float(weight, precision if precision == "float64" else None)
        self.weight = array_module(weight).ascontiguousarray(weight)
        self.geometry = geometry
        self.size: Pair = as_pair(size, "size", 1)
        if weight.ndim != 4 or weight.shape[:2] != geometry.kernel or 0 in weight.shape:
            raise ValueError(
                f"weight must be (KH, KW, C, F) with (KH, KW) = {geometry.kernel}, the geometry's kernel; "
                f"its shape is {weight.shape}"
            )
        self.out_size: Pair = geometry.output_size(self.size)
        self.precision = str(self.dtype) if self.dtype == np.float64 else precision
        self.algorithm = self._choose(algorithm)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of every product, float32 or float64."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(OH·OW·F, H·W·C), the shape of `dense()`."""
        _, _, c, f = self.weight.shape
        return self.out_size[0] * self.out_size[1] * f, self.size[0] * self.size[1] * c

    @property
    def T(self) -> TransposedConvMatrix:
        """The transpose Aᵀ: the operator of the transposed convolution."""
        return TransposedConvMatrix(self)

    def __matmul__(self, x: Any) -> np.ndarray:
        """A x: (N, H, W, C) -> (N, OH, OW, F), or a vector of H·W·C numbers -> OH·OW·F numbers."""
        return self.affine(x)

    def affine(self, x: Any, b: np.ndarray | None = None, relu: bool = False) -> np.ndarray:
        """A x + b with one number of b (F,) for each filter, or the maximum of this and 0, made where it is stored."""
        y, _ = self._product(self._images(x), self._bias(b, 3), relu)
        return y.ravel() if _is_vector(x) else y

    def prepared(self, x: Any) -> Any:
        """Images x as the products read them, for those that several will: A @ A.prepared(x) has the numbers of A @ x.

        In BF16 they are rounded, by a kernel, into half of their memory. Otherwise no number is touched.
        """
        images = self._images(x)
        return tensor_cores.Operand.of(_joined(images), self.precision) if self.algorithm == "tensorcore" else images

    def with_each(self, x: Any, each: Callable[[np.ndarray], Any]) -> tuple[np.ndarray, list[Any]]:
        """A x, and in a fixed order what each makes of its blocks, while they are in a core's cache.

        x (N, H, W, C) -> (N, OH, OW, F). A block is (rows, L·F) with L pixels a row, which lie anywhere in the images.
        Raises ValueError on another device than the CPU, where products have no such blocks.
        """
        if self.device != "cpu":
            raise ValueError(f"with_each works on the CPU; this matrix is on {self.device}")
        return self._product(self._images(x), None, False, each)

    def weight_grad(self, x: Any, y: Any) -> np.ndarray:
        """The gradient of <y, A x> with respect to the weight: x (N, H, W, C), y (N, OH, OW, F) -> (KH, KW, C, F)."""
        images, y = self._images(x), self._image(y, "y", of_inputs=False)
        if images[0].shape[0] != y.shape[0]:
            raise ValueError(f"weight_grad: x holds {images[0].shape[0]} images and y {y.shape[0]}; both must hold the "
                             "same number")
        if self.algorithm == "winograd":
            return winograd_products.weight_grad(images, y, self.geometry.padding)
        x = _joined(images)
        if self.device == "cpu":
            return im2col.weight_grad(self.geometry, x, y)
        if self.algorithm == "tensorcore":
            return tensor_cores.weight_grad(self.geometry, x, y, precision=self.precision)
        return kernels.weight_grad(self.geometry, x, y, algorithm=self.algorithm)

    def sparse(self) -> scipy.sparse.csr_array:
        """A as a scipy.sparse matrix (on the CPU) in compressed sparse rows, shape (OH·OW·F, H·W·C)."""
        return sparse_matrix(to_device(self.weight, "cpu"), self.geometry, self.size)

    def dense(self) -> np.ndarray:
        """A as an array, (OH·OW·F, H·W·C). Raises ValueError above 2^28 elements."""
        self._refuse_large()
        return self.sparse().toarray()

    def __repr__(self) -> str:
        g, (_, _, c, f) = self.geometry, self.weight.shape
        return (
            f"ConvMatrix {self.shape}: {size_text((*self.size, c))} -> {size_text((*self.out_size, f))}, "
            f"kernel {size_text(g.kernel)}, stride {pair_text(g.stride)}, padding {pair_text(g.padding)}, "
            f"dilation {pair_text(g.dilation)}, {self.algorithm}, {self.precision}"
            + ("" if self.device == "cpu" else f", on {self.device}")
        )

    def _choose(self, algorithm: str) -> str:
        """The algorithm for "auto"; of the others, whether this case and precision are theirs."""
        if self.device == "cpu":
            return self._choose_on_cpu(algorithm)
        rounded = self.precision in tensor_cores.PRECISIONS
        _, _, c, f = self.weight.shape
        fits = rounded and tensor_cores.fits(c, f, self.precision)
        if algorithm == "auto":
            return "tensorcore" if fits else "implicit"
        if algorithm == "tensorcore" and not fits:
            raise ValueError("algorithm 'tensorcore' needs precision 'tf32' or 'bf16', and numbers of channels and "
                             f"filters that it can copy 16 bytes at a time (multiples of 4, bf16 of 8); got precision "
                             f"{self.precision!r}, {c} channels and {f} filters")
        if algorithm != "tensorcore" and rounded:
            raise ValueError(f"algorithm {algorithm!r} computes in float32 or float64; got precision "
                             f"{self.precision!r}, which is the algorithm 'tensorcore'")
        return algorithm

    def _choose_on_cpu(self, algorithm: str) -> str:
        fits = self.geometry == Geometry(3, padding=self.geometry.padding) and max(self.geometry.padding) <= 2
        if algorithm == "winograd" and not fits:
            raise ValueError("algorithm 'winograd' is for kernel 3, stride 1, dilation 1 and padding up to 2; got "
                             f"{self.geometry}")
        if algorithm == "auto":
            pixels, channels = self.out_size[0] * self.out_size[1], min(self.weight.shape[2:])
            faster = (channels >= WINOGRAD_CHANNELS and pixels >= WINOGRAD_PIXELS
                      and pixels * channels >= WINOGRAD_NUMBERS)
            return "winograd" if fits and faster and self.dtype == np.float32 else "im2col"
        return algorithm

    def _product(self, images: tuple[np.ndarray, ...], b: np.ndarray | None, relu: bool,
                 each: Each = None) -> tuple[np.ndarray, list[Any]]:
        if self.algorithm == "winograd":
            return winograd_products.forward(self.weight, images, self.geometry.padding, b, relu, each)
        image = _joined(images)
        if self.device == "cpu":
            return im2col.forward(self.weight, self.geometry, image, b, relu, each)
        if self.algorithm == "tensorcore":
            return tensor_cores.forward(self.weight, self.geometry, image, b, relu, precision=self.precision), []
        return kernels.forward(self.weight, self.geometry, image, b, relu, algorithm=self.algorithm), []

    def _transposed(self, y: np.ndarray, b: np.ndarray | None) -> np.ndarray:
        if self.algorithm == "winograd":
            return winograd_products.transposed(self.weight, y, self.geometry.padding, self.weight.shape[2:3], b)[0]
        if self.device == "cpu":
            return im2col.transposed(self.weight, self.geometry, y, self.size, b)
        if self.algorithm == "tensorcore":
            return tensor_cores.transposed(self.weight, self.geometry, y, self.size, b, precision=self.precision)
        return kernels.transposed(self.weight, self.geometry, y, self.size, b, algorithm=self.algorithm)

    def _refuse_large(self) -> None:
        rows, columns = self.shape
        if rows * columns > DENSE_LIMIT:
            raise ValueError(
                f"dense: {rows} x {columns} = {rows * columns} elements are more than 2^28; "
                "use sparse(), or a smaller size"
            )

    def _images(self, x: Any) -> tuple[Any, ...]:
        """x as contiguous images (N, H, W, ·) whose channels lie side by side; or what `prepared` has made of them."""
        if not isinstance(x, tuple):
            return (self._image(x, "x", of_inputs=True),)
        images = tuple(as_float(image, self.dtype) for image in x)
        channels = self.weight.shape[2]
        shapes = {image.shape[:-1] for image in images}
        if (len(shapes) != 1 or {image.shape[1:-1] for image in images} != {self.size}
                or sum(image.shape[-1] for image in images) != channels):
            raise ValueError(f"x must be images (N, {self.size[0]}, {self.size[1]}, ·), channels last, with {channels} "
                             f"channels together; their shapes are {', '.join(str(image.shape) for image in images)}")
        device_of(self.weight, *images)
        return tuple(array_module(image).ascontiguousarray(image) for image in images)

    def _image(self, array: Any, name: str, of_inputs: bool) -> Any:
        """array as contiguous (N, height, width, channels) of A's inputs or outputs; a flat vector is one image."""
        _, _, c, f = self.weight.shape
        expected = (*self.size, c) if of_inputs else (*self.out_size, f)
        if isinstance(array, tensor_cores.Operand):
            return self._operand(array, name, expected)
        array = as_float(array, self.dtype)
        if array.ndim == 1 and array.size == expected[0] * expected[1] * expected[2]:
            array = array.reshape(1, *expected)
        if array.ndim != 4 or array.shape[1:] != expected:
            raise ValueError(
                f"{name} must be (N, {', '.join(map(str, expected))}), channels last, or a vector of "
                f"{expected[0] * expected[1] * expected[2]} numbers; its shape is {array.shape}"
            )
        device_of(self.weight, array)               # raises for an image on another device
        return array_module(array).ascontiguousarray(array)

    def _bias(self, b: Any, axis: int) -> Any:
        """b as one number for each of the weight's channels on this axis; None is none."""
        if b is None:
            return None
        b = as_float(b, self.dtype)
        if b.shape != self.weight.shape[axis:axis + 1]:
            raise ValueError(f"b must be {self.weight.shape[axis:axis + 1]}, one number for each output channel; its "
                             f"shape is {b.shape}")
        device_of(self.weight, b)
        return array_module(b).ascontiguousarray(b)

    def _operand(self, operand: tensor_cores.Operand, name: str, expected: tuple[int, ...]) -> tensor_cores.Operand:
        """The operand, if `prepared` has made it of such images, for such products."""
        precision = self.precision if self.algorithm == "tensorcore" else str(self.dtype)
        if (operand.shape[1:], operand.precision) != (expected, precision):
            raise ValueError(f"{name} was prepared for a product in {operand.precision} with images "
                             f"{operand.shape[1:]}; this one is in {precision} with {expected}")
        return operand


def _joined(images: tuple[np.ndarray, ...]) -> np.ndarray:
    return images[0] if len(images) == 1 else array_module(*images).concatenate(images, axis=-1)


def _is_vector(x: Any) -> bool:
    return not isinstance(x, tuple | tensor_cores.Operand) and np.ndim(x) == 1


class TransposedConvMatrix:
    """Aᵀ, the transpose of a `ConvMatrix`: the same numbers, the products exchanged. `A.T.T is A`."""

    def __init__(self, matrix: ConvMatrix):
        self._matrix = matrix

    @property
    def T(self) -> ConvMatrix:
        """The matrix that this is the transpose of."""
        return self._matrix

    @property
    def dtype(self) -> np.dtype:
        """The dtype of every product, float32 or float64."""
        return self._matrix.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(H·W·C, OH·OW·F), the shape of `dense()`."""
        return self._matrix.shape[::-1]

    def __matmul__(self, y: Any) -> np.ndarray:
        """Aᵀ y: (N, OH, OW, F) -> (N, H, W, C), or a vector of OH·OW·F numbers -> H·W·C numbers."""
        return self.affine(y)

    def affine(self, y: Any, b: np.ndarray | None = None) -> np.ndarray:
        """Aᵀ y + b with one number of b (C,) for each channel, added where the product is stored."""
        A = self._matrix
        x = A._transposed(A._image(y, "y", of_inputs=False), A._bias(b, 2))
        return x.ravel() if _is_vector(y) else x

    def prepared(self, y: Any) -> Any:
        """y as the products read it, for one that several will: see `ConvMatrix.prepared`."""
        A = self._matrix
        y = A._image(y, "y", of_inputs=False)
        return tensor_cores.Operand.of(y, A.precision) if A.algorithm == "tensorcore" else y

    def split(self, y: Any, channels: Sequence[int]) -> tuple[np.ndarray, ...]:
        """Aᵀ y cut into images of these numbers of channels: (N, OH, OW, F) -> (N, H, W, c) for each c, in all C."""
        A = self._matrix
        y = A._image(y, "y", of_inputs=False)
        if sum(channels) != A.weight.shape[2] or min(channels) < 1:
            raise ValueError(f"split: channels must be at least 1 each, {A.weight.shape[2]} together; got {channels}")
        if A.algorithm == "winograd":
            return winograd_products.transposed(A.weight, y, A.geometry.padding, channels)
        x, xp = A._transposed(y, None), array_module(y)
        return tuple(xp.ascontiguousarray(part) for part in xp.split(x, np.cumsum(channels)[:-1], axis=-1))

    def sparse(self) -> scipy.sparse.csr_array:
        """Aᵀ as a scipy.sparse matrix in compressed sparse rows."""
        return self._matrix.sparse().T.tocsr()

    def dense(self) -> np.ndarray:
        """Aᵀ as an array, (H·W·C, OH·OW·F). Raises ValueError above 2^28 elements."""
        return self._matrix.dense().T

    def __repr__(self) -> str:
        return f"transpose {self.shape} of {self._matrix!r}"
