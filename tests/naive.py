"""Loop oracles: each operation by its definition, one output number at a time, in plain Python arithmetic.

They import nothing of minunet, so that no mistake can stand on both sides of a comparison.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np


def conv2d(x, w, stride, padding, dilation):
    """y[n, oh, ow, f] = Σ w[kh, kw, c, f] x[n, oh·SH − PH + kh·DH, ow·SW − PW + kw·DW, c]."""
    (n_, h_, w_, c_), (kh_, kw_, _, f_) = x.shape, w.shape
    oh_ = (h_ + 2 * padding[0] - dilation[0] * (kh_ - 1) - 1) // stride[0] + 1
    ow_ = (w_ + 2 * padding[1] - dilation[1] * (kw_ - 1) - 1) // stride[1] + 1
    y = np.zeros((n_, oh_, ow_, f_))
    for n, oh, ow, kh, kw in itertools.product(*map(range, (n_, oh_, ow_, kh_, kw_))):
        i = oh * stride[0] - padding[0] + kh * dilation[0]
        j = ow * stride[1] - padding[1] + kw * dilation[1]
        if 0 <= i < h_ and 0 <= j < w_:
            for c, f in itertools.product(range(c_), range(f_)):
                y[n, oh, ow, f] += w[kh, kw, c, f] * x[n, i, j, c]
    return y


def conv_transpose2d(y, w, stride, padding, dilation, size):
    """Each number of y stamps the kernel, times itself, onto the image; stamps add up; the padding is cut off."""
    (n_, oh_, ow_, f_), (kh_, kw_, c_, _) = y.shape, w.shape
    x = np.zeros((n_, *size, c_))
    for n, oh, ow, f, kh, kw in itertools.product(*map(range, (n_, oh_, ow_, f_, kh_, kw_))):
        i = oh * stride[0] - padding[0] + kh * dilation[0]
        j = ow * stride[1] - padding[1] + kw * dilation[1]
        if 0 <= i < size[0] and 0 <= j < size[1]:
            for c in range(c_):
                x[n, i, j, c] += w[kh, kw, c, f] * y[n, oh, ow, f]
    return x


def pool2d(x, kernel, stride, padding, kind):
    """Max (padding as -inf; also the first winner's position in its window) or mean (padding as zeros)."""
    n_, h_, w_, c_ = x.shape
    oh_ = (h_ + 2 * padding[0] - kernel[0]) // stride[0] + 1
    ow_ = (w_ + 2 * padding[1] - kernel[1]) // stride[1] + 1
    y = np.zeros((n_, oh_, ow_, c_))
    winners = np.zeros((n_, oh_, ow_, c_), int)
    for n, oh, ow, c in itertools.product(*map(range, (n_, oh_, ow_, c_))):
        best, where, total = -math.inf, 0, 0.0
        for kh, kw in itertools.product(*map(range, kernel)):
            i, j = oh * stride[0] - padding[0] + kh, ow * stride[1] - padding[1] + kw
            if 0 <= i < h_ and 0 <= j < w_:
                total += x[n, i, j, c]
                if x[n, i, j, c] > best:
                    best, where = x[n, i, j, c], kh * kernel[1] + kw
        y[n, oh, ow, c] = best if kind == "max" else total / (kernel[0] * kernel[1])
        winners[n, oh, ow, c] = where
    return y, winners


def max_unpool2d(y, winners, kernel, stride, padding, size):
    """Each value returns to its winner's pixel; values that meet add up."""
    n_, oh_, ow_, c_ = y.shape
    x = np.zeros((n_, *size, c_))
    for n, oh, ow, c in itertools.product(*map(range, (n_, oh_, ow_, c_))):
        kh, kw = divmod(int(winners[n, oh, ow, c]), kernel[1])
        i, j = oh * stride[0] - padding[0] + kh, ow * stride[1] - padding[1] + kw
        if 0 <= i < size[0] and 0 <= j < size[1]:
            x[n, i, j, c] += y[n, oh, ow, c]
    return x


def philox4x32(counter, key, rounds=10):
    """Philox4x32 in Python's own integers (Salmon et al. 2011): four 32-bit words from a counter and a key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def linear(x, w, b):
    """y[n, f] = b[f] + Σ x[n, c] w[c, f]."""
    (n_, c_), f_ = x.shape, w.shape[1]
    y = np.zeros((n_, f_))
    for n, f in itertools.product(range(n_), range(f_)):
        y[n, f] = b[f] + sum(x[n, c] * w[c, f] for c in range(c_))
    return y


def resample(x, size, method):
    """Each output pixel's centre looked up in the input, whose border pixels go on for ever outside it."""
    n_, h_, w_, c_ = x.shape
    y = np.zeros((n_, *size, c_))
    for oh, ow in itertools.product(*map(range, size)):
        rows, columns = _neighbours(oh, h_, size[0], method), _neighbours(ow, w_, size[1], method)
        for n, c, (i, wi), (j, wj) in itertools.product(range(n_), range(c_), rows, columns):
            y[n, oh, ow, c] += wi * wj * x[n, min(max(i, 0), h_ - 1), min(max(j, 0), w_ - 1), c]
    return y


def _neighbours(o, n, out, method):
    """The pixels of one axis that output pixel o reads, with their weights."""
    centre = Fraction(2 * o + 1, 2) * Fraction(n, out)          # its distance from the image's left border, in px
    if method == "nearest":
        return [(math.floor(centre), 1.0)]                      # the pixel that the centre lies in
    position = centre - Fraction(1, 2)                          # pixel i's own centre is now at i
    reach, weight = {"bilinear": (1, _triangle), "bicubic": (2, _cubic)}[method]
    first = math.floor(position) - reach + 1
    return [(i, weight(abs(float(position - i)))) for i in range(first, first + 2 * reach)]


def _triangle(d):
    return max(0.0, 1 - d)


def _cubic(d, a=-0.75):
    """Keys' kernel (1981), as he printed it, at the distance d."""
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def batch_norm(x, gamma, beta, eps):
    """y, mean and biased variance of each channel, one channel at a time."""
    y, means, variances = np.zeros(x.shape), np.zeros(x.shape[-1]), np.zeros(x.shape[-1])
    for c in range(x.shape[-1]):
        values = [float(v) for v in x[..., c].ravel()]
        means[c] = mean = math.fsum(values) / len(values)
        variances[c] = var = math.fsum((v - mean) ** 2 for v in values) / len(values)
        normalised = [gamma[c] * (v - mean) / math.sqrt(var + eps) + beta[c] for v in values]
        y[..., c] = np.reshape(normalised, x.shape[:-1])
    return y, means, variances


def softmax(x):
    """exp(z_k) / Σ exp(z_j) for each row of the last axis."""
    y = np.zeros(x.shape)
    for index in np.ndindex(x.shape[:-1]):
        exps = [math.exp(z) for z in x[index]]
        y[index] = [e / math.fsum(exps) for e in exps]
    return y


def broadcast(operation, a, b):
    """operation(a, b) with NumPy's broadcasting: an axis of length 1 always gives its one number."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    y = np.zeros(shape)
    for index in np.ndindex(shape):
        y[index] = operation(*(v[tuple(i if n > 1 else 0 for i, n in zip(index[len(shape) - v.ndim:], v.shape))]
                               for v in (a, b)))
    return y


def crop(x, top, left, size):
    """y[n, i, j] = x[n, top + i, left + j]."""
    y = np.zeros((len(x), *size, x.shape[3]))
    for n, i, j in itertools.product(*map(range, y.shape[:3])):
        y[n, i, j] = x[n, top + i, left + j]
    return y


def pad(x, margins, mode, value):
    """Each new pixel is the constant, or found by walking out of the image pixel by pixel."""
    top, bottom, left, right = margins
    n_, h_, w_, c_ = x.shape
    y = np.full((n_, top + h_ + bottom, left + w_ + right, c_), float(value))
    for n, i, j in itertools.product(*map(range, y.shape[:3])):
        row, column = i - top, j - left
        if mode != "constant":
            row, column = _walk(row, h_, mode), _walk(column, w_, mode)
        if 0 <= row < h_ and 0 <= column < w_:
            y[n, i, j] = x[n, row, column]
    return y


def _walk(position, n, mode):
    """Where |position| steps from pixel 0 end: at the edge they stop ("edge") or turn round ("reflect")."""
    at, step = 0, 1 if position > 0 else -1
    for _ in range(abs(position)):
        if not 0 <= at + step < n:
            step = -step if mode == "reflect" else 0
        if 0 <= at + step < n:
            at += step
    return at


def cross_entropy(logits, target, weights, class_weights, ignore_index):
    """Σ w·l / Σ w over the pixels that are not ignored, l = −log(e^z_t / Σ e^z_k)."""
    loss = norm = 0.0
    for index in np.ndindex(target.shape):
        t = int(target[index])
        if t != ignore_index:
            w = weights[index] * class_weights[t]
            loss += w * -math.log(math.exp(logits[index][t]) / math.fsum(math.exp(z) for z in logits[index]))
            norm += w
    return loss / norm if norm else 0.0


def bce_with_logits(logits, target, weights, class_weights, ignore_index):
    """Σ w·l / count of what is not ignored, l = −t log p − (1 − t) log(1 − p), p = 1/(1 + e^−z)."""
    loss, count = 0.0, 0
    for index in np.ndindex(logits.shape):
        z, t = float(logits[index]), float(target[index])
        if t != ignore_index:
            p = 1 / (1 + math.exp(-z))
            loss += weights[index[:-1]] * class_weights[index[-1]] * (-t * math.log(p) - (1 - t) * math.log(1 - p))
            count += 1
    return loss / count if count else 0.0


def dice(logits, target, weights, class_weights, ignore_index, smooth):
    """1 − (2Σpt+ε)/(Σp+Σt+ε) for each class; the (weighted) mean over the classes in target or prediction.

    Class ids (no channel axis): p by softmax, predicted is the largest. Fractions: p by the sigmoid, predicted if > ½.
    """
    classes = range(logits.shape[-1])
    losses, shares = [], []
    by_id = target.ndim < logits.ndim
    p = softmax(logits) if by_id else 1 / (1 + np.exp(-logits))
    for k in classes:
        overlap = total = 0.0
        present = False
        for index in np.ndindex(logits.shape[:-1]):
            t, w = target[index] if by_id else target[index][k], weights[index]
            if t == ignore_index:
                continue
            if by_id:
                t, predicted = float(t == k), max(classes, key=lambda j: logits[index][j]) == k
            else:
                t, predicted = float(t), p[index][k] > 0.5
            overlap += w * p[index][k] * t
            total += w * p[index][k] + w * t
            present |= bool(w > 0 and (t > 0 or predicted))
        if present:
            losses.append(1 - (2 * overlap + smooth) / (total + smooth))
            shares.append(class_weights[k])
    return sum(s * loss for s, loss in zip(shares, losses)) / sum(shares) if sum(shares) else 0.0
