"""State dicts in PyTorch's order of dimensions and with its names, and back; PyTorch itself is not imported.

| | minunet | PyTorch |
|---|---|---|
| convolution | (KH, KW, in, out) | (out, in, KH, KW) |
| transposed convolution | (KH, KW, out, in) | (in, out, KH, KW) |
| linear | (in, out) | (out, in) |
| batch norm | gamma, beta | weight, bias |

In both convolutions the last axis comes first and the kernel's axes come last, so one permutation serves both. A
linear layer behind `flatten` sees its inputs in another order (channels last): its rows are not reordered here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_NAMES = {"gamma": "weight", "beta": "bias"}


def to_torch(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """minunet's state dict as arrays for a PyTorch model whose modules have the same names.

    Each batch norm also gets PyTorch's counter num_batches_tracked (0), which a strict load wants.
    """
    result: dict[str, np.ndarray] = {}
    for name, array in state.items():
        prefix, _, last = name.rpartition(".")
        result[f"{prefix}.{_NAMES.get(last, last)}" if prefix else _NAMES.get(last, last)] = _swap(array)
        if last == "running_var":
            result[f"{prefix}.num_batches_tracked" if prefix else "num_batches_tracked"] = np.array(0, np.int64)
    return result


def from_torch(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A PyTorch state dict (CPU tensors or arrays) as minunet's; batch norms are known by their running_mean."""
    back = {torch: ours for ours, torch in _NAMES.items()}
    norms = {name.rpartition(".")[0] for name in state if name.rpartition(".")[2] == "running_mean"}
    result = {}
    for name, array in state.items():
        prefix, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            continue
        ours = back.get(last, last) if prefix in norms else last
        result[f"{prefix}.{ours}" if prefix else ours] = _swap(np.asarray(array), inverse=True)
    return result


def _swap(array: np.ndarray, inverse: bool = False) -> np.ndarray:
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose((2, 3, 1, 0) if inverse else (3, 2, 0, 1)))
    return np.ascontiguousarray(array.T) if array.ndim == 2 else np.array(array)
