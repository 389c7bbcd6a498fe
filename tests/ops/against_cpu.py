"""An op's kernels against its code for the CPU: value and gradients, in both precisions, with a random cotangent."""

import numpy as np
import pytest

from minunet.backend import to_device
from tests.checks import assert_close
from tests.devices import computed

PRECISIONS = pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])


def assert_equals_cpu(device, pair, arrays, dtype, tolerance, **options):
    """The pair (op, backward) on the device in dtype, against the CPU in float64 from the same numbers.

    Arrays among the options go along to the device. Returns the device's value and gradients.
    """
    op, backward = pair
    arrays = [a.astype(dtype) for a in arrays]
    y, cache = op(*(a.astype(np.float64) for a in arrays), **options)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)

    def f(dy, *arrays):
        moved = {k: to_device(v, device) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        y, cache = op(*arrays, **moved)
        return (y, *backward(dy, cache))

    results = computed(device, f, dy, *arrays)
    expected = (y, *backward(dy.astype(np.float64), cache))
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == dtype
        assert_close(result, wanted, tolerance)
    return results
