"""Losses from logits, with their gradient made in the same pass: y, cache = loss(logits, target=...).

Every loss takes per-pixel weights (the target's shape without channels), class weights (K,) and ignore_index, a target
value whose pixels count for nothing. Cross-entropy is a weighted mean, so only the weights' ratios count; binary
cross-entropy divides by the count of pixels, so weights also scale it (both as PyTorch). Where nothing is left the loss
is 0 and so is its gradient. The cache is the gradient itself, so that every backward is one product.

Beside logits on a GPU, targets and weights may be in the computer's memory; they are checked where they are, but while
a recording runs (`minunet.replay`) their shapes and dtypes alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minunet import tape
from minunet.backend import array_module, device_of, module_of, on_gpu, to_device
from minunet.ops.activation import sigmoid, softmax
from minunet.ops.kernels import loss as kernels
from minunet.ops.sums import channel_sum


class LossCache(NamedTuple):
    """dloss/dlogits, and for dice the classes that took part."""

    gradient: np.ndarray
    present: np.ndarray | None = None


def loss_backward(dy: np.ndarray, cache: LossCache) -> tuple[np.ndarray]:
    """dlogits = dy · (dloss/dlogits); each forward's docstring derives its own."""
    return (cache.gradient * dy,)


def cross_entropy(logits: np.ndarray, *, target: Any, weights: Any = None, class_weights: Any = None,
                  ignore_index: int | None = None) -> tuple[np.ndarray, LossCache]:
    """Σ w·l / Σ w with l = −log softmax(z)_t: logits (..., K), target (...) of class ids.

    ∂l/∂z_k = softmax(z)_k − [k = t], times w / Σ w.
    """
    xp = array_module(logits)
    name = "cross_entropy"
    if on_gpu(logits):
        ids, ignore = _moved_ids(name, logits, target, ignore_index)
        y, gradient = kernels.cross_entropy(logits, ids, *_moved_weights(name, logits, weights, class_weights), ignore)
        return y, LossCache(gradient)
    target, valid = _class_ids(name, logits, target, ignore_index)
    logits = xp.where(valid[..., None] > 0, logits, 0)                      # not even a NaN counts where ignored
    w = valid * _pixel_weights(name, weights, logits)
    w = w * _class_weights(name, class_weights, logits)[target]
    total = w.sum(dtype=np.float64)
    share = (w / (total or 1)).astype(logits.dtype)[..., None]              # (..., 1); all 0 when nothing is left
    z = logits - logits.max(-1, keepdims=True)
    log_p = z - xp.log(xp.exp(z).sum(-1, keepdims=True))                    # (..., K)
    picked = xp.take_along_axis(log_p, target[..., None], -1)               # (..., 1)
    loss = (share * -picked).sum(dtype=np.float64)                          # not −0.0 when nothing is left
    gradient = xp.exp(log_p)
    xp.put_along_axis(gradient, target[..., None], xp.exp(picked) - 1, -1)
    gradient *= share
    return xp.asarray(loss, logits.dtype), LossCache(gradient)


def bce_with_logits(logits: np.ndarray, *, target: Any, weights: Any = None, class_weights: Any = None,
                    ignore_index: int | None = None) -> tuple[np.ndarray, LossCache]:
    """Σ w·l / (count of what is not ignored), l = −t log σ(z) − (1−t) log(1−σ(z)) = max(z, 0) − z t + log(1 + e^−|z|).

    The target has exactly the logits' shape, values 0 to 1. ∂l/∂z = σ(z) − t.
    """
    xp = array_module(logits)
    name = "bce_with_logits"
    if on_gpu(logits):
        t, ignore = _moved_fractions(name, logits, target, ignore_index)
        y, gradient = kernels.bce_with_logits(logits, t, *_moved_weights(name, logits, weights, class_weights), ignore)
        return y, LossCache(gradient)
    t, valid = _fractions(name, logits, target, ignore_index)
    logits = xp.where(valid > 0, logits, 0)
    w = valid * _pixel_weights(name, weights, logits)[..., None]
    w = w * _class_weights(name, class_weights, logits)
    w /= max(int(valid.sum()), 1)
    e = xp.exp(-abs(logits))                                                # in (0, 1]
    losses = xp.maximum(logits, 0) - logits * t + xp.log1p(e)
    loss = (w * losses).sum(dtype=np.float64)
    gradient = xp.where(logits >= 0, 1, e) / (1 + e)                        # σ(z)
    gradient -= t
    gradient *= w
    return xp.asarray(loss, logits.dtype), LossCache(gradient)


def dice(logits: np.ndarray, *, target: Any, weights: Any = None, class_weights: Any = None,
         ignore_index: int | None = None, smooth: float = 1.0) -> tuple[np.ndarray, LossCache]:
    """1 − (2 Σ p t + ε) / (Σ p + Σ t + ε) for each class, sums over batch and pixels; mean over the classes present.

    A target of the logits' shape (values 0 to 1) gives p = σ(z), each channel by itself; class ids without the
    channel axis give p = softmax(z). Present is a class that the target or the prediction (σ > 1/2, or the largest
    of the softmax) holds. With I = Σ w p t, S = Σ w p + Σ w t:

        g = ∂loss/∂p = −s w (2 t (S + ε) − (2 I + ε)) / (S + ε)²,  s the class's share of the mean;
        ∂loss/∂z = g p (1 − p) through σ,  p (g − Σ_k g_k p_k) through softmax.
    """
    xp = array_module(logits)
    name, k, dtype = "dice", logits.shape[-1], logits.dtype
    if not smooth > 0:
        raise ValueError(f"dice: smooth must be above 0; got {smooth!r}")
    multiclass = np.ndim(target) == logits.ndim - 1
    if on_gpu(logits):
        t, ignore = (_moved_ids if multiclass else _moved_fractions)(name, logits, target, ignore_index)
        y, gradient, present = kernels.dice(logits, t, *_moved_weights(name, logits, weights, class_weights), ignore,
                                            smooth, multiclass)
        return y, LossCache(gradient, present)
    if multiclass:
        ids, valid = _class_ids(name, logits, target, ignore_index)
        t = (ids[..., None] == xp.arange(k)).astype(dtype)                  # (..., K), one-hot
        valid = valid[..., None]
        logits = xp.where(valid > 0, logits, 0)
        p = softmax(logits)[0]
        predicted = logits.argmax(-1)[..., None] == xp.arange(k)
    else:
        t, valid = _fractions(name, logits, target, ignore_index)
        logits = xp.where(valid > 0, logits, 0)
        p = sigmoid(logits)[0]
        predicted = logits > 0
    w = valid * _pixel_weights(name, weights, logits)[..., None]
    wp, wt = w * p, w * t
    overlap, total = channel_sum(wp * t), channel_sum(wp) + channel_sum(wt)             # (K,)
    present = ((wt > 0) | (predicted & (w > 0))).reshape(-1, k).any(0)
    share = present * _class_weights(name, class_weights, logits)
    share /= share.sum() or 1
    losses = 1 - (2 * overlap + smooth) / (total + smooth)
    g = -share * w * (2 * t * (total + smooth) - (2 * overlap + smooth)) / (total + smooth) ** 2
    g = p * (g - (g * p).sum(-1, keepdims=True)) if multiclass else g * p * (1 - p)
    return xp.asarray((share * losses).sum(), dtype), LossCache(g.astype(dtype, copy=False), present)


def _class_ids(name: str, logits: np.ndarray, target: Any, ignore_index: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The target's class ids (0 where ignored) and which pixels are not ignored, in logits' dtype."""
    target, valid = _checked_ids(name, logits, target, ignore_index)
    return array_module(logits).where(valid, target, 0), valid.astype(logits.dtype)


def _fractions(name: str, logits: np.ndarray, target: Any, ignore_index: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The target in logits' dtype (0 where ignored) and which elements are not ignored."""
    target, valid = _checked_fractions(name, logits, target, ignore_index)
    return array_module(logits).where(valid, target, 0).astype(logits.dtype), valid.astype(logits.dtype)


def _pixel_weights(name: str, weights: Any, logits: np.ndarray) -> np.ndarray:
    return _weights(name, "weights", "pixel", weights, logits, logits.shape[:-1])


def _class_weights(name: str, weights: Any, logits: np.ndarray) -> np.ndarray:
    return _weights(name, "class_weights", "class", weights, logits, logits.shape[-1:])


def _weights(name: str, argument: str, each: str, weights: Any, logits: np.ndarray,
             shape: tuple[int, ...]) -> np.ndarray:
    """The weights in logits' dtype, where they are; ones for None."""
    if weights is None:
        return array_module(logits).ones(shape, logits.dtype)
    weights = _numbers(name, argument, weights, logits).astype(logits.dtype, copy=False)
    wanted = f"{name}: {argument} must hold a finite number of at least 0 for each {each}, shape {shape}; got"
    if weights.shape != shape:
        raise ValueError(f"{wanted} shape {weights.shape}")
    if tape.is_recording():
        return weights
    wrong = ~((weights >= 0) & (weights < np.inf))
    if wrong.any():
        raise ValueError(f"{wanted} {weights[wrong][0]}")
    return weights


def _checked_ids(name: str, logits: np.ndarray, target: Any, ignore_index: int | None) -> tuple[Any, Any]:
    """The target, and which of its pixels are not ignored. Raises ValueError unless those are class ids."""
    k = logits.shape[-1]
    target = _numbers(name, "target", target, logits)
    if k < 2:
        raise ValueError(f"{name}: a target of class ids needs logits of at least 2 classes; for one class, "
                         f"bce_with_logits and dice take a target of exactly the logits' shape {logits.shape}; "
                         f"got {target.shape}")
    if target.shape != logits.shape[:-1] or target.dtype.kind not in "iu":
        raise ValueError(f"{name}: target must hold integer class ids in the logits' shape without channels, "
                         f"{logits.shape[:-1]}; got {target.dtype} {target.shape}")
    if tape.is_recording():                     # nothing can be read back
        return target, None
    valid = _valid(target, ignore_index)
    wrong = valid & ((target < 0) | (target >= k if _can_hold(target.dtype, k) else False))
    if wrong.any():
        raise ValueError(f"{name}: target holds the class id {target[wrong][0]}, the logits have the classes 0 to "
                         f"{k - 1}; give ignore_index if it means 'no class'")
    return target, valid


def _checked_fractions(name: str, logits: np.ndarray, target: Any, ignore_index: int | None) -> tuple[Any, Any]:
    """The target, and which of its elements are not ignored. Raises ValueError unless those are 0 to 1."""
    target = _numbers(name, "target", target, logits)
    if target.shape != logits.shape:
        raise ValueError(f"{name}: target must have exactly the logits' shape {logits.shape}; got {target.shape}")
    if tape.is_recording():
        return target, None
    valid = _valid(target, ignore_index)
    wrong = valid & ~((target >= 0) & (target <= 1))
    if wrong.any():
        raise ValueError(f"{name}: target must lie in 0 to 1; got {target[wrong][0]}; divide a 0/255 mask by 255, or "
                         "give ignore_index if the value means 'no class'")
    return target, valid


def _valid(target: Any, ignore_index: int | None) -> Any:
    """Which elements are not ignored."""
    if ignore_index is None or not _can_hold(target.dtype, ignore_index):
        return array_module(target).ones(target.shape, bool)
    return target != ignore_index


def _can_hold(dtype: np.dtype, value: int) -> bool:
    """Whether an array of dtype can be compared with value; if not, CuPy raises an error."""
    return dtype.kind not in "iu" or np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _numbers(name: str, argument: str, value: Any, logits: np.ndarray) -> Any:
    """value as an array, where it is: beside logits or in the computer's memory.

    Raises TypeError for what is elsewhere, and for what holds no numbers (a Tensor would become an array of one
    object).
    """
    try:
        device = device_of(value)
    except TypeError:                           # a list, a number
        device = "cpu"
    if device not in ("cpu", device_of(logits)):
        raise TypeError(f"{name}: {argument} is on the device {device}, the logits are on {device_of(logits)}; move "
                        "one with minunet.backend.to_device")
    array = module_of(device).asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: {argument} must be an array of numbers; got {type(value).__name__}")
    return array


# to the logits' device, which need not be waited for if they come from the computer's memory


def _moved_ids(name: str, logits: np.ndarray, target: Any, ignore_index: int | None) -> tuple[Any, int | None]:
    """The target's class ids in int32 beside logits, and the value in them that is ignored, if one is."""
    return _moved(_checked_ids(name, logits, target, ignore_index)[0], np.dtype(np.int32), logits, ignore_index)


def _moved_fractions(name: str, logits: np.ndarray, target: Any, ignore_index: int | None) -> tuple[Any, int | None]:
    """The target in logits' dtype and beside them, and the value in it that is ignored, if one is."""
    return _moved(_checked_fractions(name, logits, target, ignore_index)[0], logits.dtype, logits, ignore_index)


def _moved(target: Any, dtype: np.dtype, logits: np.ndarray, ignore_index: int | None) -> tuple[Any, int | None]:
    target = target.astype(target.dtype.newbyteorder("="), copy=False)
    if ignore_index is not None and not _can_hold(target.dtype, ignore_index):
        ignore_index = None
    if target.dtype.itemsize > 2:               # else every value stays itself in dtype
        if ignore_index is not None:
            signed = target if target.dtype.kind == "f" else target.astype(np.int64)
            target, ignore_index = array_module(target).where(target == ignore_index, -1, signed), -1
        target = target.astype(dtype, copy=False)
    return to_device(target, device_of(logits)).astype(dtype, copy=False), ignore_index


def _moved_weights(name: str, logits: np.ndarray, weights: Any, class_weights: Any) -> tuple[Any, Any]:
    """Both weights in logits' dtype and beside them, or None."""
    device = device_of(logits)
    if weights is not None:
        weights = to_device(_pixel_weights(name, weights, logits), device)
    if class_weights is not None:
        class_weights = to_device(_class_weights(name, class_weights, logits), device)
    return weights, class_weights
