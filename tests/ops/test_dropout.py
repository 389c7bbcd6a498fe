"""Dropout: Philox4x32-10 against its published vectors, the mask against its definition, the key, the gradient."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minunet import functional, gradcheck
from minunet.ops import dropout
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, run

words64 = st.integers(0, 2**64 - 1)
shares = st.sampled_from([0.1, 0.25, 0.5, 0.9])
shapes = hnp.array_shapes(max_dims=4, max_side=5)


def halves(word):
    return word & 0xFFFFFFFF, word >> 32


def words(text):
    return tuple(int(word, 16) for word in text.split())


def drop(x, p, key):
    """The mask that functional.dropout makes of a generator whose next 64 bits are the key."""
    y, _ = dropout.dropout(x, p=p, key=key)
    return y


@pytest.mark.parametrize("counter, key, expected", [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
])
def test_the_oracle_gives_the_known_answers_of_random123(counter, key, expected):
    assert naive.philox4x32(words(counter), words(key)) == words(expected)


def test_block_0_of_key_0_is_the_known_answer_of_random123():
    got = dropout.philox4x32(np.zeros(1, np.uint64), 0)
    assert tuple(map(int, got[0])) == words("6627e8d5 e169c58d bc57ac4c 9b00dbd8")


@given(st.lists(words64, min_size=1, max_size=5), words64)
def test_philox_equals_the_oracle_for_every_block_and_key(blocks, key):
    got = dropout.philox4x32(np.array(blocks, np.uint64), key)
    assert [tuple(map(int, row)) for row in got] == [
        naive.philox4x32((*halves(block), 0, 0), halves(key)) for block in blocks]


@given(shapes, shares, words64)
def test_element_i_is_dropped_when_word_i_mod_4_of_block_i_over_4_is_below_p(shape, p, key):
    x = np.random.default_rng(0).uniform(1, 2, shape)
    expected = np.array([naive.philox4x32((i // 4, 0, 0, 0), halves(key))[i % 4] / 2**32 >= p for i in range(x.size)])
    assert_close(drop(x, p, key), x / (1 - p) * expected.reshape(shape), 1e-15)


@given(st.integers(1, 300), words64, st.integers(1, 20))
def test_the_mask_does_not_depend_on_the_chunks_it_is_made_in(count, key, chunk):
    whole = dropout.keep_mask(key, np.zeros(count), 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropout, "_CHUNK", chunk)
        np.testing.assert_array_equal(dropout.keep_mask(key, np.zeros(count), 0.5), whole)


def test_the_mask_is_the_same_on_both_sides_of_a_chunks_end():
    count = 4 * dropout._CHUNK + 6
    end = dropout.keep_mask(7, np.zeros(count), 0.5)[-8:]
    words = [word for block in range(count // 4 - 2, count // 4 + 1)
             for word in naive.philox4x32((block, 0, 0, 0), (7, 0))]
    np.testing.assert_array_equal(end, [word >= 2**31 for word in words[2:10]])


@given(shapes, shares, words64)
@settings(max_examples=20)
def test_the_mask_does_not_depend_on_the_shape_or_the_memorys_order(shape, p, key):
    x = np.ones(shape)
    expected = drop(x, p, key)
    np.testing.assert_array_equal(drop(x.ravel(), p, key), expected.ravel())
    np.testing.assert_array_equal(drop(np.asfortranarray(x), p, key), expected)
    np.testing.assert_array_equal(drop(np.ones(np.prod(shape) + 9), p, key)[:x.size], expected.ravel())


@given(st.integers(0, 2**32), shares)
@settings(max_examples=20)
def test_one_64_bit_key_is_drawn_and_nothing_else(seed, p):
    rng, twin = np.random.default_rng(seed), np.random.default_rng(seed)
    x = np.ones((3, 5))
    key = int(twin.bit_generator.random_raw())
    np.testing.assert_array_equal(functional.dropout(x, p, rng).data, drop(x, p, key))
    assert rng.bit_generator.state == twin.bit_generator.state


def test_a_second_call_makes_another_mask():
    rng = np.random.default_rng(0)
    first, second = (functional.dropout(np.ones(100), 0.5, rng).data for _ in range(2))
    assert (first != second).any()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_about_1_minus_p_are_kept_and_the_mean_stays(p):
    count = 200_000
    y = functional.dropout(np.ones(count), p, np.random.default_rng(1)).data
    deviation = math.sqrt(p * (1 - p) / count)
    assert abs((y > 0).mean() - (1 - p)) < 4 * deviation
    assert abs(y.mean() - 1) < 4 * deviation / (1 - p)


def test_p_0_keeps_everything_and_draws_nothing():
    rng, twin = np.random.default_rng(0), np.random.default_rng(0)
    x = np.random.default_rng(1).standard_normal((3, 4))
    np.testing.assert_array_equal(functional.dropout(x, 0, rng).data, x)
    assert rng.bit_generator.state == twin.bit_generator.state


@given(shapes, shares, st.integers(0, 99))
def test_gradient_equals_finite_differences(shape, p, seed):
    x = np.random.default_rng(seed).standard_normal(shape)
    gradcheck(lambda x: functional.dropout(x, p, np.random.default_rng(seed)), [x])


def test_the_gradient_has_the_outputs_mask():
    y, cotangent, (dx,) = run(lambda x: functional.dropout(x, 0.5, np.random.default_rng(0)), [np.ones((8, 8))])
    np.testing.assert_array_equal(dx, cotangent * y)


@pytest.mark.parametrize("p", [0, 0.3, np.float64(0.3)])
def test_float32_stays_float32(p):
    assert_keeps_float32(lambda x: functional.dropout(x, p, np.random.default_rng(0)), (3, 4))


@pytest.mark.parametrize("p", [1, 1.5, -0.1, math.nan])
def test_errors_name_what_came_and_what_is_allowed(p):
    with pytest.raises(ValueError, match=f"dropout: p must be at least 0 and below 1; got {p}"):
        functional.dropout(np.ones(3), p, np.random.default_rng(0))
