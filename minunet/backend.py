"""The devices that arrays live on: `cpu` (NumPy), `cuda` (CuPy, a GPU) and `sim` (the simulated GPU).

An array of `sim` is a NumPy array of the subclass `SimArray`: it lies in the computer's own memory, but the ops treat
it as they treat a CuPy array, and launch the same CUDA kernels on it. Ops ask here for the module that makes arrays
beside theirs (`array_module`) and name no array library themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache
from typing import Any

import numpy as np

from minunet import tape
from minunet.errors import IncompleteError, UserError
from minunet.sim_array import SimArray, sim

DEVICES = ("cpu", "cuda", "sim")
INSTALL = ": pip install 'minunet[gpu]' (CUDA 12) or 'minunet[gpu13]' (CUDA 13)"
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


@lru_cache(maxsize=1)
def cupy() -> Any:
    """The module cupy. Raises UserError, with what to install, where it is missing or finds no GPU."""
    try:
        module = importlib.import_module("cupy")
    except ImportError as error:
        if importlib.util.find_spec("cupy") is None:
            raise UserError(f"the device cuda needs CuPy, which is not installed{INSTALL}; without a GPU, --device sim "
                            "runs the same kernels") from None
        raise IncompleteError(f"the device cuda needs CuPy, which cannot be imported ({_words(error)}){INSTALL}; "
                              "--device sim runs the same kernels") from None
    try:
        count = module.cuda.runtime.getDeviceCount()
    except Exception as error:              # CUDARuntimeError, which exists only with CuPy
        raise UserError(f"the device cuda needs an NVIDIA GPU and its driver ({_words(error)}); without one, "
                        "--device sim runs the same kernels") from None
    if count == 0:
        raise UserError("the device cuda needs an NVIDIA GPU, and the driver sees none (is CUDA_VISIBLE_DEVICES "
                        "empty?); without one, --device sim runs the same kernels")
    try:                                    # both are loaded when they are asked for first
        _ = module.cuda.nvrtc.getVersion(), module.cuda.cublas
    except (ImportError, RuntimeError) as error:
        raise IncompleteError(f"the device cuda needs CUDA's compiler NVRTC and its cuBLAS ({_words(error)}){INSTALL}; "
                              "--device sim runs the same kernels") from None
    return module


def _words(error: BaseException) -> str:
    """The first line of what an error, or the one that it came of, says; where it says nothing its name."""
    error = error.__cause__ or error
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def device_of(*arrays: Any) -> str:
    """The one device, of `DEVICES`, that all these arrays are on.

    Raises TypeError for arrays on different devices, and for anything that is no array.
    """
    found = {_device(array) for array in arrays}
    if len(found) > 1:
        shapes = {_device(array): array.shape for array in arrays}
        raise TypeError("arrays are on different devices: " + ", ".join(f"{shape} on {device}" for device, shape in
                                                                        shapes.items())
                        + "; move one with minunet.backend.to_device")
    return next(iter(found), "cpu")


def _device(array: Any) -> str:
    if type(array) is np.ndarray:           # first: asked hundreds of times a step
        return "cpu"
    if isinstance(array, SimArray):
        return "sim"
    if isinstance(array, np.ndarray):
        return "cpu"
    if _is_cupy(array):
        return "cuda"
    raise TypeError(f"expected an array, got {type(array).__module__}.{type(array).__qualname__}; convert with "
                    "numpy.asarray")


def _is_cupy(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "cupy"


def on_gpu(array: Any) -> bool:
    """Whether kernels compute on this array: it is on `cuda` or `sim`."""
    return _device(array) != "cpu"


def address(array: Any) -> int:
    """Where in its device's memory an array begins, in bytes: a part of a larger array may begin anywhere."""
    return array.data.ptr if _is_cupy(array) else array.ctypes.data


def array_module(*arrays: Any) -> Any:
    """The module that makes arrays beside these: numpy, cupy, or NumPy with SimArrays as results.

    Raises TypeError for arrays on different devices, and for anything that is no array.
    """
    return module_of(device_of(*arrays))


def module_of(device: str) -> Any:
    """The array module of a device. Raises ValueError for an unknown one, UserError for cuda without a GPU."""
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}; got {device!r}")
    return cupy() if device == "cuda" else sim if device == "sim" else np


def to_device(array: Any, device: str) -> Any:
    """The array on a device of `DEVICES`: itself if it is there already, else a copy.

    Raises ValueError for an unknown device, UserError for cuda without a GPU, NotRecordable while work is recorded.

    >>> import numpy as np
    >>> to_device(np.ones(2), "sim")
    SimArray([1., 1.])
    """
    here, xp = _device(array), module_of(device)
    if here == device:
        return array
    tape.refuse("read back from" if device == "cpu" else "brought to")
    host = array.get() if here == "cuda" else array.view(np.ndarray)
    return xp.array(host)


def as_float(value: Any, dtype: Any = None, like: Any = None) -> Any:
    """value as a float32 or float64 array: of dtype if one is given; else arrays of these stay, all else is float32.

    An array stays on its device; numbers and lists go to that of the array `like`, or to cpu. Raises TypeError for what
    holds no real numbers (None, complex numbers, text, a Tensor).
    """
    is_array = isinstance(value, np.ndarray) or _is_cupy(value)
    array = value if is_array else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected an array of real numbers, got {type(value).__name__} ({array.dtype}); of a Tensor "
                        "pass .data")
    if dtype is None:
        native = array.dtype.newbyteorder("=")
        dtype = native if (is_array or isinstance(value, np.generic)) and native in FLOATS else np.float32
    array = array.astype(dtype, copy=False)
    if is_array or like is None:
        return array
    if array.ndim == 0:                     # written by the device, without a copy
        return array_module(like).full((), array[()], dtype)
    return to_device(array, device_of(like))


def same_dtype(name: str, **arrays: Any) -> None:
    """Raise TypeError unless these (named) arrays share one floating-point dtype and one device; None is no array."""
    present = {key: a for key, a in arrays.items() if a is not None}
    if len({a.dtype for a in present.values()}) > 1 or any(a.dtype not in FLOATS for a in present.values()):
        kinds = ", ".join(f"{key} is {a.dtype}" for key, a in present.items())
        raise TypeError(f"{name}: all arrays must be float32 or all float64; {kinds}; convert with .astype")
    devices = {key: _device(a) for key, a in present.items()}
    if len(set(devices.values())) > 1:
        raise TypeError(f"{name}: all arrays must be on one device; "
                        + ", ".join(f"{key} is on {device}" for key, device in devices.items())
                        + "; move them with minunet.backend.to_device")
