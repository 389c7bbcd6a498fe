"""A padded image seen as its windows: one strided view, no copy.

The same view is read by im2col and max-pooling, and written by their transposes, one kernel position at a time
(windows overlap, the pixels under one fixed kernel position do not).
"""

from __future__ import annotations

import numpy as np

from minunet import memory
from minunet.geometry import Geometry, Pair


def pad_border(x: np.ndarray, geometry: Geometry, value: float = 0.0) -> np.ndarray:
    """x (N, H, W, C) with geometry's padding filled with value: (N, H + 2·PH, W + 2·PW, C); x itself for no padding."""
    ph, pw = geometry.padding
    if ph == pw == 0:
        return x
    n, h, w, c = x.shape
    padded = memory.empty((n, h + 2 * ph, w + 2 * pw, c), x.dtype)
    padded[:, :ph], padded[:, ph + h:] = value, value
    padded[:, :, :pw], padded[:, :, pw + w:] = value, value
    padded[:, ph:ph + h, pw:pw + w] = x
    return padded


def crop_border(padded: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The view of a padded image without its border: the transpose of padding with zeros."""
    ph, pw = geometry.padding
    return padded[:, ph:padded.shape[1] - ph, pw:padded.shape[2] - pw]


def windows(padded: np.ndarray, geometry: Geometry, out_size: Pair) -> np.ndarray:
    """The view (N, OH, OW, KH, KW, C) of an image with its padding: [n, oh, ow] is one window."""
    n, h, w, c = padded.shape
    (kh, kw), (sh, sw), (dh, dw), (oh, ow) = geometry.kernel, geometry.stride, geometry.dilation, out_size
    inside = (oh - 1) * sh + geometry.extent[0] <= h and (ow - 1) * sw + geometry.extent[1] <= w
    assert inside, "a window reaches outside the padded image"
    on_n, on_h, on_w, on_c = padded.strides
    strides = (on_n, sh * on_h, sw * on_w, dh * on_h, dw * on_w, on_c)
    return np.lib.stride_tricks.as_strided(padded, (n, oh, ow, kh, kw, c), strides)
