"""kernels/norm.cu against the CPU and the loop oracle: statistics, y, gradients, with the ReLU fused and without."""

import numpy as np
import pytest

from minunet.backend import to_device
from minunet.ops import activation, block, norm
from minunet.ops.kernels import norm as kernels
from minunet.ops.kernels import sums
from tests import naive
from tests.checks import assert_close
from tests.devices import computed
from tests.ops.against_cpu import PRECISIONS, assert_equals_cpu

TRAINING = norm.batch_norm, norm.batch_norm_backward
PREDICTION = norm.normalize, norm.normalize_backward
SHAPES = [(1, 3), (9, 8), (1, 2, 3, 1), (2, 9, 13, 3), (40, 30, 1), (3, 5, 6, 64), (23, 29, 4), (5, 5, 33), (2, 3, 260)]
SHAPES = pytest.mark.parametrize("shape", SHAPES, ids=str)
RELU = pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
BOTH = pytest.mark.parametrize("training", [True, False], ids=["training", "prediction"])
ON_CPU_TOO = pytest.mark.parametrize("on_cpu", [True, False], ids=["cpu", "kernels"])


def batch(shape, dtype=np.float64, seed=0):
    """x, gamma, beta, dy, mean, var; every channel with its own mean and scale."""
    rng = np.random.default_rng(seed)
    c = shape[-1]
    x = rng.uniform(-2, 2, c) + rng.uniform(0.5, 2, c) * rng.standard_normal(shape)
    arrays = (x, rng.standard_normal(c), rng.standard_normal(c), rng.standard_normal(shape), rng.standard_normal(c),
              rng.uniform(0.2, 2, c))
    return [a.astype(dtype) for a in arrays]


def results(training, relu, composed=False):
    """A function of a batch's arrays: y, dx, dgamma, dbeta, fused or as two ops."""
    def f(x, gamma, beta, dy, mean, var):
        fused = relu and not composed
        if training:
            y, cache = norm.batch_norm(x, gamma, beta, relu=fused)
        else:
            y, cache = norm.normalize(x, gamma, beta, mean=mean, var=var, relu=fused)
        if relu and composed:
            y, rectified = activation.relu(y)
            dy, = activation.relu_backward(dy, rectified)
        return y, *(norm.batch_norm_backward if training else norm.normalize_backward)(dy, cache)
    return f


def run(device, on_cpu, f, *arrays):
    """f's results as host arrays, on the device or on the CPU."""
    return f(*arrays) if on_cpu else computed(device, f, *arrays)


def statistics(device, x):
    return computed(device, kernels.statistics, x)


@PRECISIONS
@SHAPES
@RELU
def test_training_equals_the_cpu(device, shape, relu, dtype, tolerance):
    x, gamma, beta, *_ = batch(shape)
    eps = 1e-5 if x.size // shape[-1] > 8 else 0.1          # a few numbers that happen to be close magnify rounding
    assert_equals_cpu(device, TRAINING, [x, gamma, beta], dtype, tolerance, relu=relu, eps=eps)


@PRECISIONS
@SHAPES
@RELU
def test_prediction_equals_the_cpu(device, shape, relu, dtype, tolerance):
    x, gamma, beta, _, mean, var = (a.astype(dtype) for a in batch(shape))

    def f(x, gamma, beta, dy, mean, var):
        y, cache = norm.normalize(x, gamma, beta, mean=mean, var=var, relu=relu)
        return y, *norm.normalize_backward(dy, cache)

    dy = batch(shape)[3].astype(dtype)
    expected = f(*(a.astype(np.float64) for a in (x, gamma, beta, dy, mean, var)))
    for result, wanted in zip(computed(device, f, x, gamma, beta, dy, mean, var), expected, strict=True):
        assert result.dtype == dtype
        assert_close(result, wanted, tolerance)


@PRECISIONS
@SHAPES
def test_statistics_equal_the_loop_oracle(device, shape, dtype, tolerance):
    x, gamma, beta, *_ = batch(shape, dtype)
    _, *expected = naive.batch_norm(x.astype(np.float64), gamma, beta, 1e-5)
    for result, wanted in zip(statistics(device, x), expected, strict=True):
        assert result.dtype == dtype and result.shape == shape[-1:]
        assert_close(result, wanted, tolerance / 10)


@pytest.mark.parametrize("mean", [1, 10, 100, 1000])
@pytest.mark.parametrize("shape", [(30, 40, 3), (7, 8, 9, 8)])
def test_the_variance_stands_a_mean_of_a_thousand_standard_deviations(device, shape, mean):
    """In float32, to what the numbers themselves hold; Σ x² / n − mean² would have no digit left at 1000."""
    x = (mean + np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    exact = x.astype(np.float64).reshape(-1, shape[-1])
    ours, var = statistics(device, x)
    np.testing.assert_allclose(ours, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-6)


@pytest.mark.parametrize("where", [0, 1, 340, -1])
def test_the_variance_stands_a_pivot_far_away(device, where):
    """One number a million standard deviations from the others: the first of a thread, of a block, any."""
    x = np.random.default_rng(0).standard_normal((1200, 3)).astype(np.float32)
    x[where] = 1e6
    np.testing.assert_allclose(statistics(device, x)[1], x.astype(np.float64).var(0), rtol=1e-5)


def test_more_chunks_than_a_block_has_threads(device, monkeypatch):
    """As a large image has; here of one pixel a thread."""
    monkeypatch.setattr(sums, "LEAST", 1)
    x, gamma, beta, *_ = batch((2401, 31))
    assert sums.Cut.of(x).chunks == 301
    assert_equals_cpu(device, TRAINING, [x, gamma, beta], np.float64, 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, -1e8, 1 / 3])
def test_a_constant_channel_is_exact(device, dtype, value):
    mean, var = statistics(device, np.full((17, 31, 4), value, dtype))
    np.testing.assert_array_equal(mean, np.full(4, value, dtype))
    assert not var.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_value_a_channel_gives_beta_and_gradient_0(device, dtype):
    x, gamma, beta, dy, *others = batch((1, 1, 1, 4), dtype)
    y, dx, dgamma, dbeta = computed(device, results(True, False), x, gamma, beta, dy, *others)
    np.testing.assert_array_equal(y.ravel(), beta)
    np.testing.assert_array_equal(dbeta, dy.ravel())
    assert not dx.any() and not dgamma.any()


@ON_CPU_TOO
@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 9, 13, 3), (5, 6, 16), (300, 8)])
def test_the_fused_relu_has_the_bits_of_the_two_ops(device, on_cpu, training, shape, dtype):
    arrays = batch(shape, dtype)
    arrays[1][0] = arrays[2][0] = 0                         # a channel of zeros: its slope is 0
    fused = run(device, on_cpu, results(training, True), *arrays)
    composed = run(device, on_cpu, results(training, True, composed=True), *arrays)
    assert (fused[0] == 0).any() and (fused[0] > 0).any()
    for a, b in zip(fused, composed, strict=True):
        np.testing.assert_array_equal(a, b)


@ON_CPU_TOO
@BOTH
def test_the_cache_tells_the_kink_of_the_relu(device, on_cpu, training):
    def f(x, gamma, beta, dy, mean, var):
        options = {} if training else {"mean": mean, "var": var}
        op = norm.batch_norm if training else norm.normalize
        y, cache = op(x, gamma, beta, relu=True, **options)
        return y > 0, cache.positive, op(x, gamma, beta, **options)[1].positive

    expected, positive, none = run(device, on_cpu, f, *batch((3, 4, 5, 4)))
    np.testing.assert_array_equal(positive, expected)
    assert positive.dtype == bool and expected.any() and not expected.all()
    assert none.size == 0


@RELU
def test_of_large_arrays_the_cache_keeps_x_alone(device, relu):
    def f(x, gamma, beta, *_):
        y, cache = norm.batch_norm(x, gamma, beta, relu=relu)
        large, = (a for a in cache if getattr(a, "size", 0) >= x.size)
        assert large is cache.x and (large is x or np.shares_memory(large, x))
        return y

    computed(device, f, *batch((3, 4, 5, 8)))


@BOTH
@RELU
def test_nan_and_infinity_go_where_they_go_on_the_cpu(device, training, relu):
    """A channel each with a NaN and infinities in x, and in dy."""
    arrays = batch((40, 5))
    x, dy = arrays[0], arrays[3]
    x[3, 0], x[5, 1], x[7, 2] = np.nan, np.inf, -np.inf
    dy[:, 3], dy[2, 4] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        expected = results(training, relu)(*arrays)
    for name, result, wanted in zip(("y", "dx", "dgamma", "dbeta"), computed(device, results(training, relu), *arrays),
                                    expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=1e-10, atol=1e-12, err_msg=name)


def test_views_have_the_bits_of_the_array(device):
    """Strided ones, and those that do not begin at a multiple of 16 bytes."""
    arrays = batch((7, 9, 8), np.float32)
    expected = computed(device, results(True, True), *arrays)
    doubled = [np.repeat(a, 2, -1) for a in arrays]
    strided = computed(device, lambda *d: results(True, True)(*(a[..., ::2] for a in d)), *doubled)
    shifted = computed(device, lambda *d: results(True, True)(*(a[1:].reshape(b.shape) for a, b in zip(d, arrays))),
                       *(np.concatenate([[0], a.ravel()]).astype(np.float32) for a in arrays))
    for a, b, c in zip(expected, strided, shifted, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_arrays_of_two_devices_are_refused(device):
    x, gamma, beta, *_ = batch((3, 4))
    with pytest.raises(TypeError, match="batch_norm: all arrays must be on one device"):
        norm.batch_norm(to_device(x, device), gamma, beta)


def test_the_relu_on_the_cpu_carries_nan_on_and_leaves_dy_alone():
    x, gamma, beta, dy, *_ = batch((4, 3))
    gamma[1] = np.nan
    y, cache = norm.batch_norm(x, gamma, beta, relu=True)
    assert np.isnan(y[:, 1]).all() and (y[:, [0, 2]] >= 0).all()
    before = dy.copy()
    norm.batch_norm_backward(dy, cache)
    np.testing.assert_array_equal(dy, before)


@PRECISIONS
@pytest.mark.parametrize("channels", [1, 255, 256, 257])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_running_statistics(device, dtype, tolerance, channels, count):
    """In place, as on the CPU and by the formula; one value has no variance."""
    running_mean, running_var, mean, var = np.random.default_rng(0).uniform(1, 2, (4, channels)).astype(dtype)
    expected_mean = 0.9 * running_mean + 0.1 * mean
    expected_var = running_var if count == 1 else 0.9 * running_var + 0.1 * var * count / (count - 1)

    def update(*arrays):
        arrays = [array.copy() for array in arrays]
        norm.update_running(*arrays, momentum=0.1, count=count)
        return tuple(arrays)

    arrays = running_mean, running_var, mean, var
    for found in (update(*arrays), computed(device, update, *arrays)):
        for array, expected in zip(found, (expected_mean, expected_var, mean, var)):
            assert array.dtype == dtype
            assert_close(array, expected, tolerance)


@PRECISIONS
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 3, 5, 7), (3, 3, 16, 16), (2, 1, 3, 300)], ids=str)
def test_batch_norm_folded_into_weights(device, dtype, tolerance, shape):
    """w gamma / sigma and beta - mean gamma / sigma, written out."""
    rng = np.random.default_rng(0)
    w, gamma, beta, mean = (rng.standard_normal(n).astype(dtype) for n in (shape, *[shape[3:]] * 3))
    var = rng.uniform(0.5, 2, shape[3]).astype(dtype)
    scale = gamma / np.sqrt(var + 1e-3)

    def fold(*arrays):
        return block.fold(*arrays, 1e-3)

    arrays = w, gamma, beta, mean, var
    for folded, shift in (fold(*arrays), computed(device, fold, *arrays)):
        assert folded.dtype == shift.dtype == dtype
        assert_close(folded, w * scale, tolerance)
        assert_close(shift, beta - mean * scale, tolerance)


def test_running_statistics_keep_their_dtype(device):
    """Also beside a net whose parameters alone were converted."""
    running = np.ones((2, 3), np.float32)
    batch = np.full((2, 3), 3.0)

    def update(running_mean, running_var, *batch):
        norm.update_running(running_mean, running_var, *batch, momentum=0.5, count=2)
        return running_mean, running_var

    for found in (update(*running.copy(), *batch), computed(device, update, *running, *batch)):
        assert [array.dtype for array in found] == [np.float32] * 2
        np.testing.assert_array_equal(found, [[2] * 3, [3.5] * 3])
