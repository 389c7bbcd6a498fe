"""kernels/sums.cu and the cut of kernels/reduce.cuh: any number of pixels and channels, bits decided by the shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet.backend import to_device
from minunet.ops.kernels import sums
from minunet.ops.kernels.sums import BLOCKS, LEAST, MOST, THREADS, Cut
from minunet.ops.kernels.vector import vector_length
from minunet.ops.sums import channel_sum
from tests.checks import assert_close
from tests.devices import computed

SHAPES = [
    (1, 1), (1, 3), (7,), (5, 4), (1030, 1), (2, 41, 45, 1), (41, 45, 2), (9, 40, 3), (1100, 5), (2, 7, 9, 8),
    (3, 5, 21), (3, 5, 5, 64), (300, 33), (40, 31), (5, 130), (9, 132), (0, 5), (2, 0, 4, 8), (3, 0),
]
PRECISIONS = pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-13), (np.float32, 1e-6)])


def normal(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@PRECISIONS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_sum_in_float64(device, shape, dtype, tolerance):
    x = normal(shape, dtype)
    y, = computed(device, channel_sum, x)
    assert y.dtype == dtype
    assert_close(y, x.astype(np.float64).reshape(-1, shape[-1]).sum(0) if x.size else np.zeros(shape[-1]), tolerance)


@pytest.mark.parametrize("channels", [2047, 2048])
def test_many_channels(device, channels):
    x = normal((3, 3, channels), np.float32)
    assert_close(to_device(channel_sum(to_device(x, device)), "cpu"), x.astype(np.float64).sum((0, 1)), 1e-6)


def test_more_chunks_than_a_block_has_threads(device, monkeypatch):
    """As a large image has; here of one pixel a thread."""
    monkeypatch.setattr(sums, "LEAST", 1)
    x = normal((2401, 31), np.float32)
    assert Cut.of(x).chunks == 301
    assert_close(computed(device, channel_sum, x)[0], x.astype(np.float64).sum(0), 1e-6)


def test_a_hundred_thousand_tenths(device):
    """Added one by one in float32, they would be wrong by 1e-5 and more."""
    y, = computed(device, channel_sum, np.full((50_000, 2), 0.1, np.float32))
    assert abs(y / (50_000 * float(np.float32(0.1))) - 1).max() < 2e-7


@pytest.mark.parametrize("shape", [(70, 8), (300, 3)])
def test_views_have_the_bits_of_the_array(device, shape):
    """Strided ones, and those that do not begin at a multiple of 16 bytes."""
    x = normal((*shape, 2), np.float32)
    expected, = computed(device, channel_sum, np.ascontiguousarray(x[..., 0]))
    np.testing.assert_array_equal(computed(device, lambda x: channel_sum(x[..., 0]), x)[0], expected)
    shifted = to_device(np.concatenate([[0], x[..., 0].ravel()]).astype(np.float32), device)[1:].reshape(shape)
    np.testing.assert_array_equal(to_device(channel_sum(shifted), "cpu"), expected)
    moved, = sums.ready(shifted)
    assert vector_length(shape[-1], moved) == vector_length(shape[-1]) and (moved == shifted).all()


@given(st.integers(1, 2**27), st.integers(1, 2048))
def test_the_cut_covers_everything_once_with_a_bounded_sum_a_thread(pixels, channels):
    cut = Cut.of(np.broadcast_to(np.float32(0), (pixels, channels)))
    chunks, tiles = cut.blocks
    groups = channels // cut.defines["VECTOR"]
    assert groups * cut.defines["VECTOR"] == channels
    assert (tiles - 1) * cut.width < groups <= tiles * cut.width                # no tile without a channel
    assert (chunks - 1) * cut.chunk < pixels <= chunks * cut.chunk              # no chunk without a pixel
    assert cut.width * cut.rows <= THREADS < cut.width * (cut.rows + 1)
    each, rest = divmod(cut.chunk, cut.rows)
    assert LEAST <= each <= MOST and rest == 0
    assert chunks * tiles >= BLOCKS or each <= max(LEAST, pixels / cut.rows * tiles / BLOCKS + 1)
