"""Sums that stay accurate in float32, over many pixels of one value."""

import numpy as np
import pytest

from minunet import Tensor
from minunet.ops.sums import channel_sum, sum_to_shape

TENTHS = np.full((1, 4096, 256, 2), 0.1, np.float32)       # two channels: NumPy adds a single one in pairs by itself
EXACT = 4096 * 256 * float(np.float32(0.1))


@pytest.mark.parametrize("total", [
    lambda: channel_sum(TENTHS), lambda: channel_sum(TENTHS.reshape(-1, 2)), lambda: sum_to_shape(TENTHS, (2,)),
    lambda: Tensor(TENTHS).sum(axis=(0, 1, 2)).data,
], ids=["channels", "rows", "broadcast", "Tensor"])
def test_a_million_tenths(total):
    result = total()
    assert result.dtype == np.float32 and result.shape == (2,)
    assert np.abs(result / EXACT - 1).max() < 1e-5
