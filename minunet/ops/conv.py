"""Convolution and transposed convolution: the same matrix, the products exchanged. And the linear layer.

| | conv2d | conv_transpose2d |
|---|---|---|
| forward | y = A x + b | y = Aᵀ x + b |
| dx | Aᵀ dy | A dy |
| dw | weight_grad(x, dy) | weight_grad(dy, x) |

x of a convolution may be several images whose channels lie side by side. On the CPU no joined image is stored; on a GPU
one is, once, by a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minunet import memory, parallel
from minunet.backend import on_gpu, same_dtype
from minunet.convolution import ConvMatrix
from minunet.geometry import Geometry, IntOrPair
from minunet.ops.activation import relu_backward
from minunet.ops.kernels import shape as kernels
from minunet.ops.sums import channel_sum

Gradients = tuple[np.ndarray | None, ...]
Later = Callable[[Callable[[], np.ndarray]], Any]

COLUMNS = 256               # of a linear layer's product that are one job


class Convolved(NamedTuple):
    """What the backward needs: the matrix, its images as `joined`, the channels of each, and y if the ReLU is fused.

    x is kept as it is, even where the products round it: another op may keep it, too.
    """

    A: ConvMatrix
    xs: tuple[np.ndarray, ...]
    channels: tuple[int, ...]
    y: np.ndarray | None

    @property
    def positive(self) -> np.ndarray:
        """Where y > 0, the kink of a fused ReLU; without one an empty array."""
        return (self.A.weight[:0] if self.y is None else self.y) > 0


def conv2d(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *more: np.ndarray, stride: IntOrPair = 1,
           padding: IntOrPair = 0, dilation: IntOrPair = 1, precision: str = "float32",
           relu: bool = False) -> tuple[np.ndarray, Convolved]:
    """y = A x + b: x (N, H, W, C), w (KH, KW, C, F), b (F,) -> (N, OH, OW, F). With relu, the maximum of this and 0.

    more images beside x: the C channels are those of all of them.
    """
    xs = (x, *more)
    check_images("conv2d", xs, w, b)
    A = ConvMatrix(w, Geometry(w.shape[:2], stride, padding, dilation), x.shape[1:3], precision=precision)
    images, channels = joined(xs)
    y = A.affine(images, b, relu)
    return y, Convolved(A, images, channels, y if relu else None)


def conv2d_backward(dy: np.ndarray, cache: Convolved, needs: tuple[bool, ...] = (True, True, True),
                    later: Later = parallel.at_once) -> Gradients:
    """<dy, A x> = <Aᵀ dy, x>, so dx = Aᵀ dy. The same product as a function of w has the gradient weight_grad(x, dy).

    b is added to every pixel, so db is the sum of dy over all pixels. A fused ReLU's gradient comes first.
    """
    A, xs, channels, y = cache
    if y is not None:
        dy, = relu_backward(dy, y)
    db = channel_sum(dy) if needs[2] else None
    dw, dx, *more = gradients(A, xs, channels, dy, (needs[1], needs[0], *needs[3:]), later)
    return dx, dw, db, *more


def joined(xs: tuple[np.ndarray, ...]) -> tuple[tuple[np.ndarray, ...], tuple[int, ...]]:
    """The images as the products take them, on a GPU as one; and the channels of each."""
    channels = tuple(x.shape[3] for x in xs)
    return (kernels.concat(xs),) if len(xs) > 1 and on_gpu(xs[0]) else xs, channels


def gradients(A: ConvMatrix, xs: Any, channels: tuple[int, ...], dy: np.ndarray, needs: tuple[bool, ...],
              later: Later) -> Gradients:
    """weight_grad(xs, dy); and Aᵀ dy, cut into what belongs to each image, of so many channels. None if not needed."""
    if not any(needs):
        return (None,) * len(needs)
    dy = A.T.prepared(dy)
    dw = weight_gradient(A, xs, dy, later) if needs[0] else None
    if not any(needs[1:]):
        return dw, *(None for _ in channels)
    if len(channels) == 1:
        return dw, A.T @ dy
    dxs = kernels.split(A.T @ dy, channels) if on_gpu(A.weight) else A.T.split(dy, channels)
    return dw, *(dx if needed else None for dx, needed in zip(dxs, needs[1:]))


def weight_gradient(A: ConvMatrix, xs: Any, y: Any, later: Later) -> Any:
    """A.weight_grad(xs, y), on the CPU later: no other op needs it."""
    return A.weight_grad(xs, y) if on_gpu(A.weight) else later(lambda: A.weight_grad(xs, y))


def conv_transpose2d(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, *, stride: IntOrPair = 1,
                     padding: IntOrPair = 0, output_padding: IntOrPair = 0, dilation: IntOrPair = 1,
                     precision: str = "float32") -> tuple[np.ndarray, Any]:
    """y = Aᵀ x + b: x (N, H, W, F), w (KH, KW, C, F), b (C,) -> (N, OH, OW, C)."""
    _check("conv_transpose2d", x, x.shape[3:], w, b, channel_axis=3)
    geometry = Geometry(w.shape[:2], stride, padding, dilation)
    A = ConvMatrix(w, geometry, geometry.transposed_size(x.shape[1:3], output_padding), precision=precision)
    x = A.T.prepared(x)                 # in BF16 half the memory; of a U-Net's x nobody else keeps anything
    return A.T.affine(x, b), (A, x)


def conv_transpose2d_backward(dy: np.ndarray, cache: Any, needs: tuple[bool, ...] = (True, True, True),
                              later: Later = parallel.at_once) -> Gradients:
    """<dy, Aᵀ x> = <A dy, x>, so dx = A dy. As a function of w, <x, A dy> has the gradient weight_grad(dy, x)."""
    A, x = cache
    db = channel_sum(dy) if needs[2] else None
    if not any(needs[:2]):
        return None, None, db
    dy = A.prepared(dy)
    dw = weight_gradient(A, dy, x, later) if needs[1] else None
    return A @ dy if needs[0] else None, dw, db


def linear(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> tuple[np.ndarray, Any]:
    """y = x W + b: x (N, C), w (C, F), b (F,) -> (N, F)."""
    same_dtype("linear", x=x, weight=w, bias=b)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(f"linear: x must be (N, C) and weight (C, F); x is {x.shape}, weight is {w.shape}")
    _check_bias("linear", b, w.shape[1])
    y = _product(x, w)
    if b is not None:
        y += b
    return y, (x, w)


def linear_backward(dy: np.ndarray, cache: Any, needs: tuple[bool, ...] = (True, True, True)) -> Gradients:
    """<dy, x W> = <dy Wᵀ, x> = <xᵀ dy, W>: dx = dy Wᵀ, dw = xᵀ dy, db = Σ dy over the batch."""
    x, w = cache
    return (
        _product(dy, w.T) if needs[0] else None,
        _product(x.T, dy) if needs[1] else None,
        channel_sum(dy) if needs[2] else None,
    )


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b, a few columns of it a job."""
    if on_gpu(a):
        return a @ b
    y = memory.empty((len(a), b.shape[1]), a.dtype)
    parallel.run(lambda part: np.matmul(a, b[:, part], out=y[:, part]), parallel.slices(b.shape[1], COLUMNS))
    return y


def check_images(name: str, xs: tuple[np.ndarray, ...], w: np.ndarray, b: np.ndarray | None) -> None:
    """The border's check of a convolution: shapes and dtypes, of all images beside each other."""
    same_dtype(name, **{f"image {i}": x for i, x in enumerate(xs)} if len(xs) > 1 else {"x": xs[0]}, weight=w, bias=b)
    if len({x.shape[:-1] for x in xs}) > 1:
        raise ValueError(f"{name}: images side by side must have one shape but for the channels; got "
                         + ", ".join(str(x.shape) for x in xs))
    _check(name, xs[0], tuple(x.shape[3] for x in xs if x.ndim == 4), w, b, channel_axis=2)


def _check(name: str, x: np.ndarray, channels: tuple[int, ...], w: np.ndarray, b: np.ndarray | None,
           channel_axis: int) -> None:
    """Shapes and dtypes: x, or the images x is the first of, has these channels; they meet w's channel_axis."""
    same_dtype(name, x=x, weight=w, bias=b)
    if x.ndim != 4:
        raise ValueError(f"{name}: x must be (N, H, W, C), channels last; its shape is {x.shape}")
    if w.ndim != 4:
        raise ValueError(f"{name}: weight must be 4-d, (KH, KW, channels of the image, channels of the windows); "
                         f"its shape is {w.shape}")
    if w.shape[channel_axis] != sum(channels):
        raise ValueError(f"{name}: weight has {w.shape[channel_axis]} input channels, x has "
                         f"{' + '.join(map(str, channels))} (x is {x.shape}, channels last; weight is {w.shape})")
    _check_bias(name, b, w.shape[5 - channel_axis])


def _check_bias(name: str, b: np.ndarray | None, channels: int) -> None:
    if b is not None and b.shape != (channels,):
        raise ValueError(f"{name}: bias must be ({channels},), one number for each output channel; "
                         f"its shape is {b.shape}")
