"""kernels/pool.cu against the CPU and the loop oracles: any geometry, ties, NaN, wide windows, vectors of channels."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from minunet import functional, gradcheck
from minunet.backend import to_device
from minunet.geometry import Geometry
from minunet.ops import pool
from minunet.ops.kernels import pool as kernels
from minunet.ops.kernels.vector import vector_length
from tests import naive
from tests.checks import assert_close
from tests.devices import computed
from tests.ops.against_cpu import assert_equals_cpu
from tests.ops.test_pool import Pooling, beyond, poolings

MAX = pool.max_pool2d, pool.max_pool2d_backward
UNPOOL = pool.max_unpool2d, pool.max_unpool2d_backward
MEAN = pool.avg_pool2d, pool.avg_pool2d_backward

# sums in the order of the CPU: equal to the last digit in its own precision
PRECISIONS = pytest.mark.parametrize("dtype, tolerance", [(np.float64, 0), (np.float32, 1e-5)])
CASES = [
    # kernel, stride, padding, size, batch, channels
    ((2, 2), (2, 2), (0, 0), (6, 8), 2, 8),             # the U-Net's
    ((2, 2), (2, 2), (0, 0), (7, 5), 2, 4),             # a row and a column in no window
    ((2, 2), (2, 2), (0, 0), (5, 9), 1, 3),
    ((2, 2), (2, 2), (0, 0), (21, 22), 2, 12),          # several blocks
    ((2, 2), (2, 2), (0, 0), (33, 31), 1, 4),           # fewer than 256 windows, more with what the border cuts
    ((2, 2), (2, 2), (1, 1), (5, 6), 1, 4),
    ((2, 2), (2, 2), (0, 1), (6, 4), 1, 4),
    ((2, 2), (1, 1), (0, 0), (5, 4), 2, 4),
    ((3, 3), (2, 2), (1, 1), (9, 8), 2, 4),
    ((3, 2), (1, 2), (2, 0), (6, 7), 2, 5),
    ((3, 2), (3, 2), (0, 0), (8, 7), 1, 4),
    ((2, 1), (3, 2), (0, 0), (7, 6), 1, 5),             # gaps between the windows
    ((3, 4), (1, 1), (2, 3), (11, 10), 1, 4),
    ((1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
]
CASES = [Pooling(*case, seed=0) for case in CASES]
WIDE = [Pooling((17, 16), (3, 5), (8, 4), (20, 18), 1, 4, 0), Pooling((1, 257), (1, 257), (0, 0), (2, 300), 1, 3, 0)]
CASES, WIDE, EVERY = (pytest.mark.parametrize("case", cases, ids=str) for cases in (CASES, WIDE, CASES + WIDE))
FEW = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def options(case):
    return dict(zip(("kernel", "stride", "padding"), case.window))


def assert_winners_equal(device, x, case):
    """Values and winners, their type too, are the CPU's, to the bit."""
    def f(x):
        y, cache = pool.max_pool2d(x, **options(case))
        return y, cache.winners

    y, winners = computed(device, f, x)
    expected, cache = pool.max_pool2d(x, **options(case))
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winners, cache.winners)
    assert winners.dtype == cache.winners.dtype


@PRECISIONS
@CASES
def test_max_pool_and_its_gradient_equal_the_cpu(device, case, dtype, tolerance):
    assert_equals_cpu(device, MAX, [case.image()], dtype, tolerance, **options(case))


@PRECISIONS
@CASES
def test_avg_pool_and_its_gradient_equal_the_cpu(device, case, dtype, tolerance):
    assert_equals_cpu(device, MEAN, [case.image()], dtype, tolerance, **options(case))


@PRECISIONS
@CASES
def test_unpool_and_its_gradient_equal_the_cpu(device, case, dtype, tolerance):
    """With winners anywhere, in the padding too."""
    values, winners = case.maxima()
    assert_equals_cpu(device, UNPOOL, [values], dtype, tolerance, winners=winners, size=case.size, **options(case))


@EVERY
def test_unpooled_onto_another_gradient(device, case):
    values, winners = case.maxima()
    onto = case.image()
    wider = np.pad(onto, [(0, 0), (0, 0), (1, 0), (0, 0)])      # of which onto is a part

    def f(values, winners, wider):
        return tuple(kernels.max_unpool2d(values, winners, Geometry(*case.window), case.size, *more)
                     for more in ((), (wider[:, :, 1:],)))

    alone, both = computed(device, f, values, winners, wider)
    assert_close(both, onto + alone, 1e-12)
    assert alone.any()


@CASES
@pytest.mark.parametrize("levels", [None, 2, 0])
def test_winners_equal_the_cpu_and_the_first_of_ties_wins(device, case, levels):
    assert_winners_equal(device, case.image(levels).astype(np.float32), case)


@FEW
@given(case=poolings())
def test_max_pooling_and_unpooling_equal_the_loop_oracles(device, case):
    def f(x, values):
        y, cache = pool.max_pool2d(x, **options(case))
        return y, cache.winners, pool.max_unpool2d(values, winners=cache.winners, size=case.size, **options(case))[0]

    x, (values, _) = case.image(2), case.maxima()
    y, winners, back = computed(device, f, x, values)
    expected, first_winners = naive.pool2d(x, *case.window, "max")
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(winners, first_winners)
    assert_close(back, naive.max_unpool2d(values, first_winners, *case.window, case.size), 1e-12)


@FEW
@given(case=poolings(beyond))
def test_avg_pool_equals_the_loop_oracle(device, case):
    y, = computed(device, lambda x: pool.avg_pool2d(x, **options(case))[0], case.image())
    assert_close(y, naive.pool2d(case.image(), *case.window, "mean")[0], 1e-12)


@PRECISIONS
def test_windows_of_a_mean_with_nothing_but_padding_are_zero(device, dtype, tolerance):
    case = Pooling((2, 3), (1, 2), (3, 4), (4, 3), 2, 4, 0)
    y, _ = assert_equals_cpu(device, MEAN, [case.image()], dtype, tolerance, **options(case))
    assert not y[:, 0].any()


@WIDE
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_windows_of_more_than_256_positions(device, case, dtype):
    assert_winners_equal(device, case.image().astype(dtype), case)
    tolerance = 0 if dtype == np.float64 else 1e-5
    assert_equals_cpu(device, MAX, [case.image()], dtype, tolerance, **options(case))
    values, _ = case.maxima()
    winners = np.random.default_rng(0).integers(0, np.prod(case.kernel), values.shape).astype(np.uint16)
    assert_equals_cpu(device, UNPOOL, [values], dtype, tolerance, winners=winners, size=case.size, **options(case))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint64])
def test_winners_of_any_unsigned_type_are_taken(device, dtype):
    case = Pooling((2, 2), (2, 2), (0, 0), (4, 4), 1, 4, 0)
    values, winners = case.maxima()
    assert_equals_cpu(device, UNPOOL, [values], np.float32, 1e-6, winners=winners.astype(dtype), **options(case))


@CASES
def test_nan_and_infinity_go_where_they_go_on_the_cpu(device, case):
    """A NaN wins nothing and is carried on; a gradient that is not finite shows in its whole window."""
    rng = np.random.default_rng(0)

    def strange(shape):
        return rng.choice([0.0, 1.0, 2.0, np.nan, np.inf, -np.inf], shape, p=[.3, .25, .15, .1, .1, .1])

    x = strange((case.batch, *case.size, case.channels))
    dy = strange((case.batch, *case.out_size, case.channels))
    assert_winners_equal(device, x, case)
    assert_winners_equal(device, np.full_like(x, -np.inf), case)        # winner 0, in the padding too

    def f(x, dy):
        y, cache = pool.max_pool2d(x, **options(case))
        mean, mean_cache = pool.avg_pool2d(x, **options(case))
        return (*pool.max_pool2d_backward(dy, cache), *pool.max_unpool2d_backward(x, cache), mean,
                *pool.avg_pool2d_backward(dy, mean_cache))

    with np.errstate(invalid="ignore"):
        expected = f(x, dy)
    for result, wanted in zip(computed(device, f, x, dy), expected, strict=True):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("kernel, stride, padding", [(2, 2, 0), (3, 2, 1), (2, 1, 1)])
def test_gradients_equal_finite_differences(device, kernel, stride, padding):
    rng = np.random.default_rng(0)
    x = to_device(rng.standard_normal((2, 5, 7, 2)), device)
    y, winners = functional.max_pool2d(x, kernel, stride, padding, return_winners=True)
    gradcheck(lambda x: functional.max_pool2d(x, kernel, stride, padding), [x])
    gradcheck(lambda x: functional.avg_pool2d(x, kernel, stride, padding), [x])
    gradcheck(lambda y: functional.max_unpool2d(y, winners, kernel, stride, padding, (5, 7)), [y.data])


def test_an_array_that_does_not_lie_on_16_bytes_is_pooled_channel_by_channel(device):
    case = Pooling((2, 2), (2, 2), (0, 0), (6, 4), 1, 4, 0)
    x = case.image().astype(np.float32)
    shifted = to_device(np.concatenate([[7], x.ravel()]).astype(np.float32), device)[1:].reshape(x.shape)
    placed = to_device(x, device)
    assert vector_length(4, placed) == 4 and vector_length(4, shifted) == 1 and vector_length(6, placed) == 1
    y, cache = pool.max_pool2d(shifted, **options(case))
    np.testing.assert_array_equal(to_device(y, "cpu"), pool.max_pool2d(x, **options(case))[0])
    dx, = pool.max_pool2d_backward(y, cache)
    assert_close(to_device(dx, "cpu").sum(), to_device(y, "cpu").sum(), 1e-5)


@pytest.mark.parametrize("op", [pool.max_pool2d, pool.avg_pool2d])
def test_strided_views_and_empty_batches(device, op):
    x = np.random.default_rng(0).standard_normal((2, 5, 8, 4))
    y, = computed(device, lambda x: op(x[:, ::-1, ::2], kernel=2)[0], x)
    np.testing.assert_array_equal(y, op(x[:, ::-1, ::2], kernel=2)[0])
    assert op(to_device(x[:0], device), kernel=2)[0].shape == (0, 2, 4, 4)


def test_gradients_may_be_strided_views(device):
    def f(x, dy):
        _, cache = pool.max_pool2d(x, kernel=2)
        _, mean_cache = pool.avg_pool2d(x, kernel=2)
        back, = pool.max_unpool2d_backward(x[:, :, ::-1], cache)
        return (*pool.max_pool2d_backward(dy[:, ::-1], cache), *pool.avg_pool2d_backward(dy[:, ::-1], mean_cache), back)

    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((1, 4, 6, 4)), rng.standard_normal((1, 2, 3, 4))
    for result, wanted in zip(computed(device, f, x, dy), f(x, dy), strict=True):
        assert_close(result, wanted, 1e-12)


def test_a_window_of_as_many_positions_as_a_byte_has(device):
    """CuPy compares no byte with 256."""
    y, winners = np.ones((1, 1, 1, 2)), np.full((1, 1, 1, 2), 255, np.uint8)
    x = pool.max_unpool2d(to_device(y, device), winners=to_device(winners, device), kernel=16)[0]
    assert x.shape == (1, 16, 16, 2) and to_device(x, "cpu")[0, 15, 15].tolist() == [1, 1]


def test_winners_are_checked_on_the_device(device):
    y = to_device(np.zeros((1, 2, 2, 3)), device)
    with pytest.raises(ValueError, match="max_unpool2d: winners must be unsigned integers below 4"):
        pool.max_unpool2d(y, winners=to_device(np.full((1, 2, 2, 3), 4, np.uint8), device), kernel=2)
    with pytest.raises(TypeError, match="different devices"):
        pool.max_unpool2d(y, winners=np.zeros((1, 2, 2, 3), np.uint8), kernel=2)
