"""kernels/dropout.cu against the CPU, to the bit: the mask of a key does not depend on where it is made."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minunet.backend import to_device
from minunet.ops import dropout
from minunet.ops.kernels import dropout as kernels
from tests import naive
from tests.devices import computed

KEYS = [0, 7, 2**32, 2**63 + 5, 2**64 - 1]


def both(p, key):
    """y and dx of (x, dy)."""
    def f(x, dy):
        y, cache = dropout.dropout(x, p=p, key=key)
        return y, *dropout.dropout_backward(dy, cache)
    return f


def normal(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_bits_of_the_cpu(device, p, key, x, dy):
    with np.errstate(invalid="ignore"):
        expected = both(p, key)(x, dy)
    for result, wanted in zip(computed(device, both(p, key), x, dy), expected, strict=True):
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (2, 3, 5, 4), (1023,), (1024,), (37, 61), (0, 3), ()], ids=str)
def test_value_and_gradient_have_the_bits_of_the_cpu(device, shape, dtype):
    assert_bits_of_the_cpu(device, 0.3, 2**40 + 17, normal(shape, dtype), normal(shape, dtype, 1))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("p", [0, 1e-9, 0.5, 0.9, 1 - 1e-12])
def test_every_key_and_probability(device, key, p):
    """Of a p so near 1 that p · 2^32 is rounded to 2^32, nothing is kept."""
    x = normal((9, 7), np.float32)
    assert_bits_of_the_cpu(device, p, key, x, x[::-1])
    if p == 1 - 1e-12:
        assert not computed(device, both(p, key), x, x)[0].any()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hnp.array_shapes(max_dims=4, max_side=6), st.sampled_from([0.1, 0.5, 0.75]), st.integers(0, 2**64 - 1))
def test_the_mask_is_the_oracles(device, shape, p, key):
    y, _ = computed(device, both(p, key), np.ones(shape), np.ones(shape))
    halves = key & 0xFFFFFFFF, key >> 32
    kept = [naive.philox4x32((i // 4, 0, 0, 0), halves)[i % 4] / 2**32 >= p for i in range(y.size)]
    np.testing.assert_array_equal(y.ravel() > 0, kept)


def test_a_word_of_just_the_threshold_is_kept(device):
    key, x = 7, np.ones(8, np.float32)
    for i, word in enumerate(naive.philox4x32((0, 0, 0, 0), (key, 0))):
        y, _ = computed(device, both(word / 2**32, key), x, x)
        assert y[i] > 0
        assert_bits_of_the_cpu(device, word / 2**32, key, x, x)


def test_nan_and_infinity_go_where_they_go_on_the_cpu(device):
    """Dropped, too, they give NaN."""
    x = np.random.default_rng(0).choice([1.0, np.nan, np.inf, -np.inf], (30, 7))
    assert_bits_of_the_cpu(device, 0.5, 3, x, x[::-1])


def test_views_of_any_strides_and_beginnings(device):
    x, dy = normal((6, 8)), normal((6, 8), seed=1)
    expected = both(0.5, 9)(x[:, ::-1], dy)
    strided = computed(device, lambda x, dy: both(0.5, 9)(x[:, ::-1], dy.T), x, dy.T.copy())
    shifted = computed(device, lambda x, dy: both(0.5, 9)(x[1:].reshape(6, 8), dy[1:].reshape(6, 8)),
                       np.concatenate([[0], x[:, ::-1].ravel()]), np.concatenate([[0], dy.ravel()]))
    for a, b, c in zip(expected, strided, shifted, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_vectors_where_the_array_allows_them(device, monkeypatch):
    """Four numbers at a time need 16 bytes that the array begins at; in checked mode the simulator moves it there."""
    used = []
    monkeypatch.setattr(kernels, "launch", lambda *arguments, defines, **options: used.append(defines["VECTOR"]))
    x = to_device(np.zeros(33, np.float32), device)
    for part in x[:32], x[1:], x[:30]:
        dropout.dropout(part, p=0.5, key=1)
    assert used == [4, 1, 1]


def test_the_cache_holds_no_array(device):
    _, cache = dropout.dropout(to_device(normal((5, 8)), device), p=0.5, key=1)
    assert not any(getattr(value, "size", 1) > 1 for value in cache)
