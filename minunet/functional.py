"""Every op as a function of Tensors: the pairs of `minunet.ops`, lifted onto the autograd.

Images are (N, H, W, C), channels last. Sizes, strides and paddings are ints or (height, width) pairs, in px. Inputs
may be Tensors or arrays (constants; lists and Python numbers become float32); all inputs of one call share a dtype,
float32 or float64, which is also that of the result and of the gradients. Raises ValueError for shapes or arguments
that do not fit and TypeError for mixed dtypes, each with what came and what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minunet.autograd import Tensor, lift
from minunet.backend import device_of
from minunet.geometry import IntOrPair
from minunet.ops import activation, block, conv
from minunet.ops import dropout as dropout_pair
from minunet.ops import loss, norm, pool
from minunet.ops import resample as resample_pair
from minunet.ops import shape
from minunet.recompute import once
from minunet.replay import fresh

Input = Tensor | np.ndarray
Images = Input | tuple[Input, ...]

_conv2d = lift(conv.conv2d, conv.conv2d_backward, kink=lambda cache: cache.positive)
_conv_transpose2d = lift(conv.conv_transpose2d, conv.conv_transpose2d_backward)
_conv_norm_relu = lift(block.conv_norm_relu, block.conv_norm_relu_backward, also=lambda cache: (cache.mean, cache.var),
                       kink=lambda cache: (cache.positive, cache.winners))
_linear = lift(conv.linear, conv.linear_backward)
_max_pool2d = lift(pool.max_pool2d, pool.max_pool2d_backward, also=lambda cache: (cache.winners,),
                   kink=lambda cache: cache.winners)
_avg_pool2d = lift(pool.avg_pool2d, pool.avg_pool2d_backward)
_max_unpool2d = lift(pool.max_unpool2d, pool.max_unpool2d_backward)
_resample = lift(resample_pair.resample, resample_pair.resample_backward)
_batch_norm = lift(norm.batch_norm, norm.batch_norm_backward, also=lambda cache: (cache.mean, cache.var),
                   kink=lambda cache: cache.positive)
_normalize = lift(norm.normalize, norm.normalize_backward, kink=lambda cache: cache.positive)
_relu = lift(activation.relu, activation.relu_backward, kink=lambda y: y > 0)
_leaky_relu = lift(activation.leaky_relu, activation.leaky_relu_backward, kink=lambda cache: cache[0] > 0)
_elu = lift(activation.elu, activation.elu_backward, kink=lambda cache: cache[0] > 0)
_sigmoid = lift(activation.sigmoid, activation.sigmoid_backward)
_softmax = lift(activation.softmax, activation.softmax_backward)
_dropout = lift(dropout_pair.dropout, dropout_pair.dropout_backward)
_concat = lift(shape.concat, shape.concat_backward)
_crop = lift(shape.crop, shape.crop_backward)
_center_crop = lift(shape.center_crop, shape.center_crop_backward)
_pad = lift(shape.pad, shape.pad_backward)
_cross_entropy = lift(loss.cross_entropy, loss.loss_backward)
_bce_with_logits = lift(loss.bce_with_logits, loss.loss_backward)
_dice = lift(loss.dice, loss.loss_backward, kink=lambda cache: cache.present)


def conv2d(x: Images, w: Input, b: Input | None = None, stride: IntOrPair = 1, padding: IntOrPair = 0,
           dilation: IntOrPair = 1, precision: str = "float32", relu: bool = False) -> Tensor:
    """Convolution, y = A x + b with A the `ConvMatrix` of w (as everywhere in deep learning, the kernel unflipped).

    x (N, H, W, C), w (KH, KW, C, F), b (F,) -> (N, OH, OW, F), OH = (H + 2·padding − extent) // stride + 1. precision
    is the `ConvMatrix`'s, also of the gradients: "tf32" and "bf16" for float32 arrays on a GPU. With relu, y is the
    maximum of this and 0. x may be a tuple of images with C channels together: as if `concat` had joined them.

    >>> conv2d(np.ones((1, 4, 4, 1)), np.ones((3, 3, 1, 1))).data.ravel()
    array([9., 9., 9., 9.])

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), chapter 2.
    """
    first, *more = x if isinstance(x, tuple) else (x,)
    return _conv2d(first, w, b, *more, stride=stride, padding=padding, dilation=dilation, precision=precision,
                   relu=relu)


def conv_norm_relu(x: Images, w: Input, gamma: Input, beta: Input, eps: float = 1e-5, padding: IntOrPair = 1,
                   pool: bool = False, precision: str = "float32") -> tuple[Any, ...]:
    """The U-Net's unit, max(batch_norm(A x), 0), in few passes over memory; returns y, mean, variance.

    x (N, H, W, C) or a tuple of images with C channels together, w (KH, KW, C, F), gamma and beta (F,) ->
    y (N, OH, OW, F), and the mean and biased variance of A x (F,) as arrays. With pool the results are y, pooled, mean,
    variance: pooled (N, OH/2, OW/2, F) the 2x2 maxima of y, whose height and width must be even. The same numbers as
    from `conv2d`, `batch_norm` with relu and `max_pool2d`.

    >>> y, mean, _ = conv_norm_relu(np.ones((1, 1, 2, 1)), np.ones((3, 3, 1, 1)), np.ones(1), np.full(1, 0.5))
    >>> y.data.ravel(), mean
    (array([0.5, 0.5]), array([2.]))

    Source: Ronneberger, Fischer, Brox, U-Net (2015), figure 1; Ioffe and Szegedy, Batch normalization (2015).
    """
    return _conv_norm_relu(w, gamma, beta, *(x if isinstance(x, tuple) else (x,)), eps=eps, padding=padding, pool=pool,
                           precision=precision)


def conv_transpose2d(x: Input, w: Input, b: Input | None = None, stride: IntOrPair = 1, padding: IntOrPair = 0,
                     output_padding: IntOrPair = 0, dilation: IntOrPair = 1, precision: str = "float32") -> Tensor:
    """Transposed convolution, y = Aᵀ x + b with A the matrix of the convolution that it transposes.

    x (N, H, W, F), w (KH, KW, C, F), b (C,) -> (N, OH, OW, C): w is the convolution's own weight, so its last axis is
    this op's input. OH = (H − 1)·stride + extent − 2·padding + output_padding, with output_padding below the stride.
    precision as of `conv2d`.

    >>> conv_transpose2d(np.ones((1, 2, 2, 1)), np.ones((2, 2, 1, 1)), stride=1).data[0, :, :, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])

    Source: Dumoulin and Visin, A guide to convolution arithmetic for deep learning (2016), chapter 4.
    """
    return _conv_transpose2d(x, w, b, stride=stride, padding=padding, output_padding=output_padding, dilation=dilation,
                             precision=precision)


def linear(x: Input, w: Input, b: Input | None = None) -> Tensor:
    """Fully connected layer, y = x W + b: x (N, C), w (C, F), b (F,) -> (N, F)."""
    return _linear(x, w, b)


def flatten(x: Input) -> Tensor:
    """Each image as one row: (N, ...) -> (N, product of the rest)."""
    x = x if isinstance(x, Tensor) else Tensor(x)
    return x.reshape((x.shape[0], int(np.prod(x.shape[1:]))))


def max_pool2d(x: Input, kernel: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0,
               return_winners: bool = False) -> Any:
    """The maximum of each window; padding counts as −inf and must be below the kernel; the stride defaults to it.

    x (N, H, W, C) -> (N, OH, OW, C). With return_winners also the position, kh·KW + kw, of each maximum in its window,
    the first of equals, as unsigned integers (N, OH, OW, C). The gradient goes to the winner alone.
    """
    y, winners = _max_pool2d(x, kernel=kernel, stride=stride, padding=padding)
    return (y, winners) if return_winners else y


def avg_pool2d(x: Input, kernel: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0) -> Tensor:
    """The mean of each window; padding counts as zeros; the stride defaults to the kernel.

    x (N, H, W, C) -> (N, OH, OW, C).
    """
    return _avg_pool2d(x, kernel=kernel, stride=stride, padding=padding)


def max_unpool2d(x: Input, winners: np.ndarray, kernel: IntOrPair, stride: IntOrPair | None = None,
                 padding: IntOrPair = 0, size: IntOrPair | None = None) -> Tensor:
    """Each value put where its window's winner was, zero elsewhere; values that meet add.

    x (N, OH, OW, C) -> (N, *size, C). winners come from `max_pool2d(..., return_winners=True)`; size defaults to the
    smallest image with these windows.

    Source: Zeiler, Taylor, Fergus, Adaptive deconvolutional networks (2011), section 2.
    """
    return _max_unpool2d(x, winners=winners, kernel=kernel, stride=stride, padding=padding, size=size)


def resample(x: Input, size: IntOrPair | None = None, factor: float | tuple[float, float] | None = None,
             method: str = "nearest") -> Tensor:
    """Fixed interpolation ("nearest", "bilinear", "bicubic") to a size, or to floor(factor · (H, W)).

    x (N, H, W, C) -> (N, *size, C). Pixel centres at half-integers, the border's pixels repeated outside, no
    antialiasing; bicubic with a = −0.75.

    >>> resample(np.array([0., 1.]).reshape(1, 1, 2, 1), size=(1, 4), method="bilinear").data.ravel()
    array([0.  , 0.25, 0.75, 1.  ])

    Source: Keys, Cubic convolution interpolation for digital image processing (1981).
    """
    return _resample(x, size=size, factor=factor, method=method)


def batch_norm(x: Input, gamma: Input, beta: Input, eps: float = 1e-5,
               relu: bool = False) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """y = γ (x − μ)/√(var + eps) + β with each channel's mean and biased variance; returns y, mean, variance.

    x (..., C), gamma and beta (C,), mean and variance (C,) as arrays. With relu, y is the maximum of this and 0: the
    same numbers as `relu` of the result, in fewer passes over memory.

    Source: Ioffe and Szegedy, Batch normalization (2015), algorithm 1.
    """
    return _batch_norm(x, gamma, beta, eps=eps, relu=relu)


def normalize(x: Input, gamma: Input, beta: Input, mean: np.ndarray, var: np.ndarray, eps: float = 1e-5,
              relu: bool = False) -> Tensor:
    """Batch norm in prediction: y = γ (x − mean)/√(var + eps) + β with given statistics (C,); relu as of batch_norm."""
    return _normalize(x, gamma, beta, mean=mean, var=var, eps=eps, relu=relu)


def relu(x: Input) -> Tensor:
    """max(x, 0), with slope 0 at 0."""
    return _relu(x)


def leaky_relu(x: Input, slope: float = 0.01) -> Tensor:
    """x where x > 0, slope · x elsewhere. Source: Maas, Hannun, Ng (2013)."""
    return _leaky_relu(x, slope=slope)


def elu(x: Input, alpha: float = 1.0) -> Tensor:
    """x where x > 0, alpha · (eˣ − 1) elsewhere. Source: Clevert, Unterthiner, Hochreiter (2016)."""
    return _elu(x, alpha=alpha)


def sigmoid(x: Input) -> Tensor:
    """1 / (1 + e⁻ˣ)."""
    return _sigmoid(x)


def softmax(x: Input) -> Tensor:
    """eˣ / Σ eˣ over the channels: (..., C) -> (..., C)."""
    return _softmax(x)


def dropout(x: Input, p: float, rng: np.random.Generator) -> Tensor:
    """Each number 0 with probability p, the others divided by 1 − p. Draws one 64-bit key from rng (none for p = 0).

    The mask is Philox4x32-10 of that key and the element's index. Source: Srivastava et al., Dropout (2014).
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"dropout: rng must be a numpy.random.Generator; got {type(rng).__name__}")
    x = x if isinstance(x, Tensor) else Tensor(x)
    if p == 0:
        return x
    return _dropout(x, p=p, key=once(lambda: fresh(lambda: rng.integers(1 << 64, size=1, dtype=np.uint64),
                                                   device_of(x.data))))


def concat(*xs: Input) -> Tensor:
    """The channels of all inputs side by side: (..., C1), (..., C2) -> (..., C1 + C2)."""
    if not xs or isinstance(xs[0], (list, tuple)):
        raise TypeError("concat: give the inputs as arguments, concat(a, b), not as a list")
    return _concat(*xs)


def crop(x: Input, top: int, left: int, size: IntOrPair) -> Tensor:
    """The part of this size that begins at row top and column left: (N, H, W, C) -> (N, *size, C)."""
    return _crop(x, top=top, left=left, size=size)


def center_crop(x: Input, size: IntOrPair) -> Tensor:
    """The middle of this size: (N, H, W, C) -> (N, *size, C). Of an odd margin, bottom and right lose more."""
    return _center_crop(x, size=size)


def pad(x: Input, margins: tuple[int, int, int, int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """x with (top, bottom, left, right) further px: (N, H, W, C) -> (N, top + H + bottom, left + W + right, C).

    mode "constant" fills with value, "edge" repeats the edge's pixel, "reflect" mirrors at it, as often as needed.
    """
    return _pad(x, margins=margins, mode=mode, value=value)


def cross_entropy(logits: Input, target: Any, weights: Any = None, class_weights: Any = None,
                  ignore_index: int | None = None) -> Tensor:
    """Cross-entropy of softmax(logits): Σ w·l / Σ w over the pixels that are not ignored, l = −log softmax(z)_target.

    logits (..., K), target (...) of integer class ids 0 .. K−1 or ignore_index; w = weights (...) times
    class_weights (K,) of the target. 0 when nothing is left.

    >>> round(cross_entropy(np.zeros((1, 2, 2, 4)), np.zeros((1, 2, 2), int)).item(), 6)    # log 4
    1.386294
    """
    return _cross_entropy(logits, target=target, weights=weights, class_weights=class_weights,
                          ignore_index=ignore_index)


def bce_with_logits(logits: Input, target: Any, weights: Any = None, class_weights: Any = None,
                    ignore_index: int | None = None) -> Tensor:
    """Binary cross-entropy of sigmoid(logits), each channel by itself: Σ w·l / (count of what is not ignored).

    logits (..., K), target of exactly that shape with values 0 to 1 or ignore_index; w = weights (...) times
    class_weights (K,). 0 when nothing is left.
    """
    return _bce_with_logits(logits, target=target, weights=weights, class_weights=class_weights,
                            ignore_index=ignore_index)


def dice(logits: Input, target: Any, weights: Any = None, class_weights: Any = None, ignore_index: int | None = None,
         smooth: float = 1.0) -> Tensor:
    """Dice loss: 1 − (2 Σ p·t + ε) / (Σ p + Σ t + ε) for each class, sums over batch and pixels, then the mean.

    p is sigmoid(logits) for a target of the logits' shape (..., K) with values 0 to 1, softmax(logits) for a target
    (...) of class ids. The mean is over the classes present in target or prediction, by class_weights (K,); weights
    (...) weigh pixels; ε is smooth. 0 when no class is present.

    Source: Milletari, Navab, Ahmadi, V-Net (2016), section 3, with p and t in the denominator not squared.
    """
    return _dice(logits, target=target, weights=weights, class_weights=class_weights, ignore_index=ignore_index,
                 smooth=smooth)


LOSSES: dict[str, Callable[..., Tensor]] = {"ce": cross_entropy, "bce": bce_with_logits, "dice": dice}


def loss_function(name: str) -> Callable[..., Tensor]:
    """A loss by its name, or a sum of losses: "bce+dice", "ce+dice". Arguments go to each.

    >>> f = loss_function("bce+dice")
    >>> x, y = np.zeros((1, 2, 2, 1)), np.ones((1, 2, 2, 1))
    >>> f(x, y).item() == bce_with_logits(x, y).item() + dice(x, y).item()
    True
    """
    parts = name.split("+")
    if not set(parts) <= set(LOSSES):
        raise ValueError(f"loss must be one or a sum of {', '.join(LOSSES)}, such as 'bce+dice'; got {name!r}")

    def total(logits: Input, target: Any, **options: Any) -> Tensor:
        first, *others = (LOSSES[part](logits, target, **options) for part in parts)
        for other in others:
            first = first + other
        return first

    return total
