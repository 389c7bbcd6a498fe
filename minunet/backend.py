"""The devices that arrays live on. So far there is one, `cpu`; ops ask here for the module that makes their arrays.

Every op allocates through `array_module(*its arrays)` and names no array library itself, so that a further device is
added in this file and not in each op.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def array_module(*arrays: Any) -> Any:
    """The module (numpy) that allocates beside these arrays. Raises TypeError for anything that is not an array."""
    for array in arrays:
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"expected NumPy arrays on the device cpu, got {type(array).__module__}.{type(array).__qualname__}; "
                "convert with numpy.asarray"
            )
    return np


def as_float(value: Any, dtype: Any = None) -> np.ndarray:
    """value as a float32 or float64 array: of dtype if one is given; else arrays of these stay, all else is float32.

    Raises TypeError for what holds no real numbers (None, complex numbers, text, a Tensor).
    """
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected an array of real numbers, got {type(value).__name__} ({array.dtype}); of a Tensor "
                        "pass .data")
    if dtype is None:
        native = array.dtype.newbyteorder("=")
        dtype = native if isinstance(value, (np.ndarray, np.generic)) and native in FLOATS else np.float32
    return array.astype(dtype, copy=False)


def same_dtype(name: str, **arrays: Any) -> None:
    """Raise TypeError unless these (named) arrays share one floating-point dtype; None stands for an absent one."""
    present = {key: a for key, a in arrays.items() if a is not None}
    if len({a.dtype for a in present.values()}) > 1 or any(a.dtype not in FLOATS for a in present.values()):
        kinds = ", ".join(f"{key} is {a.dtype}" for key, a in present.items())
        raise TypeError(f"{name}: all arrays must be float32 or all float64; {kinds}; convert with .astype")
