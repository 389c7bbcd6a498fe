"""Kernels under test: run on a device, checked where it is the simulated one, in every order of threads."""

from __future__ import annotations

import numpy as np

from minunet import simulator
from minunet.backend import to_device

ORDERS = (0, 1, 2)      # threads and blocks forwards, backwards, shuffled


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
