"""Kernels under test: run on a device, checked where it is the simulated one, in every order of threads."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from minunet import simulator
from minunet.backend import cupy, to_device

ORDERS = (0, 1, 2)      # threads and blocks forwards, backwards, shuffled


def free_memory():
    """Bytes of the GPU that nobody has, CuPy's pool empty. Skips where other workers take of the same GPU."""
    if "PYTEST_XDIST_WORKER" in os.environ and "tests.cupy_standin" not in sys.modules:
        pytest.skip("the memory of a GPU is measured, which other workers use, too: run this without -n")
    cupy().cuda.Device().synchronize()
    cupy().get_default_memory_pool().free_all_blocks()
    return cupy().cuda.runtime.memGetInfo()[0]


def computed(device, f, *arrays):
    """f of these host arrays on the device, as a tuple of host arrays; twice or more, with the same bits each time.

    On `sim` every launch is checked, once for each order of threads; on `cuda` it runs twice.
    """
    results = []
    for order in ORDERS[:2] if device == "cuda" else ORDERS:
        on_device = [None if a is None else to_device(a, device) for a in arrays]
        with simulator.checking(order=order):
            result = f(*on_device)
        result = result if isinstance(result, tuple) else (result,)
        results.append(tuple(None if r is None else np.asarray(to_device(r, "cpu")) for r in result))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert a is b is None or a.tobytes() == b.tobytes(), "results differ between orders of threads, or runs"
    return results[0]
