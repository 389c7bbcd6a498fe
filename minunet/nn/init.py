"""Initial weights: normal numbers scaled so that activations keep their size through the layers.

Source: He et al., Delving deep into rectifiers (2015), equation 10: N(0, gain² / fan_in).
"""

from __future__ import annotations

import math

import numpy as np

from minunet.geometry import Geometry

# gain² = 1 / E[f(z)²] for a standard normal z; for ELU (alpha 1) that is 1 / 0.6449
GAINS = {"relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + 0.01**2)), "elu": 1.2452, "linear": 1.0}


def as_generator(rng: np.random.Generator | None) -> np.random.Generator:
    """rng itself, or for None a new generator that the system seeds, as NumPy's own default. TypeError for others."""
    if rng is None:
        return np.random.default_rng()      # a fixed seed would give all layers of one shape the same numbers
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, such as numpy.random.default_rng(0); got "
                        f"{type(rng).__name__}")
    return rng


def he_normal(shape: tuple[int, ...], fan_in: int, gain: float, rng: np.random.Generator | None) -> np.ndarray:
    """float32 weights of this shape, N(0, gain² / fan_in); without a generator, from one with a seed of its own."""
    rng = as_generator(rng)
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(gain / math.sqrt(fan_in))


def transposed_fan_in(geometry: Geometry, channels_in: int) -> int:
    """How many products a pixel of a transposed convolution sums up: channels_in · ⌈KH/SH⌉ · ⌈KW/SW⌉.

    At most, for dilations that have no factor in common with the stride.
    """
    (kh, kw), (sh, sw) = geometry.kernel, geometry.stride
    return channels_in * math.ceil(kh / sh) * math.ceil(kw / sw)
