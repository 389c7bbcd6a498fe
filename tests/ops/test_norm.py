"""Batch normalisation: the loop oracle, finite differences, PyTorch; one value a channel, constant channels."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from minunet import functional, gradcheck
from tests import naive
from tests.checks import assert_close, assert_keeps_float32, assert_refuses_mixed_dtypes, run
from tests.peers import PRECISIONS, assert_equals_torch, first, last
from tests.strategies import seeds


class Batch(NamedTuple):
    """Activations (..., C) of any scale and offset, and an eps that matters for the small ones."""

    shape: tuple[int, ...]
    scale: float
    offset: float
    eps: float
    seed: int

    def arrays(self):
        """x, gamma, beta."""
        rng, channels = np.random.default_rng(self.seed), self.shape[-1:]
        x = self.scale * rng.standard_normal(self.shape) + self.offset * rng.standard_normal(channels)
        return x, rng.standard_normal(channels), rng.standard_normal(channels)

    def statistics(self):
        """A mean and a variance for each channel that are not x's own."""
        rng, channels = np.random.default_rng(self.seed + 1), self.shape[-1:]
        return rng.standard_normal(channels), rng.uniform(0, 2, channels)


def batches(least=1, scales=(0.01, 1.0, 30.0), eps=(1e-5, 1e-3, 0.1)):
    """Images or rows, of at least this many values a channel."""
    shapes = st.one_of(st.tuples(*[st.integers(1, 4)] * 4), st.tuples(st.integers(1, 8), st.integers(1, 4)))
    return st.builds(Batch, shapes.filter(lambda shape: np.prod(shape[:-1]) >= least), st.sampled_from(scales),
                     st.sampled_from([0.0, 3.0]), st.sampled_from(eps), seeds)


def normalised(case):
    """The first of batch_norm's three results: what the gradients pass through."""
    return lambda *arrays: functional.batch_norm(*arrays, eps=case.eps)[0]


def predicted(case, dtype=np.float64):
    mean, var = (a.astype(dtype) for a in case.statistics())
    return lambda *arrays: functional.normalize(*arrays, mean, var, eps=case.eps)


@given(batches())
def test_values_and_statistics_equal_the_loop_oracle(case):
    arrays = case.arrays()
    y, mean, var = functional.batch_norm(*arrays, eps=case.eps)
    for ours, expected in zip((y.data, mean, var), naive.batch_norm(*arrays, case.eps), strict=True):
        assert_close(ours, expected, 1e-10)


@given(batches(scales=(1.0,), eps=(0.1, 1.0)))
def test_gradients_equal_finite_differences(case):
    """With an eps that keeps y smooth over the step where a channel's values happen to be close."""
    gradcheck(normalised(case), case.arrays())


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(case=batches(least=2, scales=(1.0, 3.0)))
def test_values_and_gradients_equal_pytorch(torch, dtype, tolerance, case):
    """PyTorch refuses one value a channel; a few that happen to be close would magnify float32's rounding."""
    assume(dtype == "float64" or np.prod(case.shape[:-1]) >= 8)
    assert_equals_torch(
        torch, normalised(case),
        lambda x, gamma, beta: last(torch.nn.functional.batch_norm(first(x), None, None, gamma, beta, True,
                                                                   eps=case.eps)),
        case.arrays(), dtype, tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@given(case=batches())
def test_prediction_equals_pytorch(torch, dtype, tolerance, case):
    mean, var = (torch.tensor(a.astype(dtype)) for a in case.statistics())
    assert_equals_torch(
        torch, predicted(case, dtype),
        lambda x, gamma, beta: last(torch.nn.functional.batch_norm(first(x), mean, var, gamma, beta, eps=case.eps)),
        case.arrays(), dtype, tolerance)


@given(batches())
def test_prediction_gradients_equal_finite_differences(case):
    gradcheck(predicted(case), case.arrays())


@given(batches())
def test_prediction_with_the_batchs_own_statistics_is_batch_norm(case):
    arrays = case.arrays()
    y, mean, var = functional.batch_norm(*arrays, eps=case.eps)
    assert_close(functional.normalize(*arrays, mean, var, eps=case.eps).data, y.data, 1e-9)


def test_the_variance_is_the_biased_one():
    x = np.array([[1.0], [2.0], [6.0]])
    y, mean, var = functional.batch_norm(x, np.ones(1), np.zeros(1), eps=1.0)
    assert mean.tolist() == [3] and np.isclose(var, 14 / 3, rtol=1e-15)          # not 14 / 2
    assert_close(y.data, (x - 3) / (14 / 3 + 1) ** 0.5, 1e-15)


def test_eps_is_1e_minus_5_by_default():
    arrays = Batch((3, 2), 0.01, 0, 0, 1).arrays()
    np.testing.assert_array_equal(functional.batch_norm(*arrays)[0].data,
                                  functional.batch_norm(*arrays, eps=1e-5)[0].data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3)])
def test_one_value_a_channel_gives_beta_and_gradient_0(dtype, shape):
    x, gamma, beta = (a.astype(dtype) for a in Batch(shape, 1e4, 0, 0, 0).arrays())
    y, cotangent, (dx, dgamma, dbeta) = run(lambda *a: functional.batch_norm(*a)[0], [x, gamma, beta])
    np.testing.assert_array_equal(y, np.broadcast_to(beta, shape))
    assert not dx.any() and not dgamma.any()
    np.testing.assert_array_equal(dbeta, cotangent.reshape(3))
    _, mean, var = functional.batch_norm(x, gamma, beta)
    np.testing.assert_array_equal(mean, x.reshape(3))
    assert not var.any()


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_a_constant_channel_gives_beta_and_a_finite_gradient(dtype, tolerance):
    """σ = √eps there: dx = γ/√eps · (dy − mean(dy)), with no x̂ to subtract."""
    x, gamma, beta = (a.astype(dtype) for a in Batch((2, 5, 7, 3), 1, 0, 0, 0).arrays())
    x[..., 1] = 0.1
    y, cotangent, (dx, dgamma, _) = run(lambda *a: functional.batch_norm(*a)[0], [x, gamma, beta])
    assert_close(y[..., 1], np.full((2, 5, 7), beta[1]), 10 * tolerance)
    expected = gamma[1] / 1e-5**0.5 * (cotangent[..., 1] - cotangent[..., 1].mean())
    assert_close(dx[..., 1], expected, 10 * tolerance)
    assert np.isfinite(dgamma).all()


@given(batches(), st.sampled_from([-1e8, 0.0, 1 / 3, 1e8]))
def test_no_constant_gives_nan(case, constant):
    for dtype in (np.float32, np.float64):
        x, gamma, beta = (a.astype(dtype) for a in case.arrays())
        y, _, gradients = run(normalised(case), [np.full_like(x, constant), gamma, beta])
        assert all(np.isfinite(a).all() for a in (y, *gradients))


@given(batches(least=2))
def test_a_constant_added_to_a_channel_changes_nothing(case):
    """So the gradient of x sums to 0 over each channel."""
    _, _, (dx, *_) = run(normalised(case), case.arrays())
    sums = dx.reshape(-1, case.shape[-1]).sum(0)
    assert_close(sums / max(1, np.abs(dx).max()), np.zeros_like(sums), 1e-10)


@pytest.mark.parametrize("f", [
    lambda *a: functional.batch_norm(*a)[0],
    lambda *a: functional.normalize(*a, np.zeros(3, np.float32), np.ones(3, np.float32)),
    lambda *a: functional.batch_norm(*a, eps=np.float64(0.1))[0],
    lambda *a: functional.normalize(*a, np.zeros(3, np.float32), np.ones(3, np.float32), eps=np.float64(0.1)),
])
def test_float32_stays_float32(f):
    assert_keeps_float32(f, (2, 5, 4, 3), (3,), (3,))
    x, gamma, beta = np.ones((4, 3), np.float32), np.ones(3, np.float32), np.ones(3, np.float32)
    assert [a.dtype for a in functional.batch_norm(x, gamma, beta)[1:]] == [np.float32] * 2


@pytest.mark.parametrize("f, statistics", [
    (functional.batch_norm, []),
    (lambda *a: functional.normalize(*a, np.zeros(3), np.ones(3)), []),
    (lambda *a: functional.normalize(*a[:3], mean=a[3].data, var=np.ones(3)), [(3,)]),
    (lambda *a: functional.normalize(*a[:3], mean=np.ones(3), var=a[3].data), [(3,)]),
])
def test_mixed_dtypes_are_refused(f, statistics):
    assert_refuses_mixed_dtypes(f, (2, 5, 4, 3), (3,), (3,), *statistics)


X, C = np.zeros((2, 4, 4, 3)), np.ones(3)


@pytest.mark.parametrize("make, message", [
    (lambda: functional.batch_norm(X, np.ones(4), C), r"batch_norm: .* gamma and beta \(C,\); x is .*, gamma \(4,\)"),
    (lambda: functional.batch_norm(X, C, np.ones(1)), r"batch_norm: .*x is \(2, 4, 4, 3\), gamma \(3,\), beta \(1,\)"),
    (lambda: functional.batch_norm(X[:0], C, C), r"batch_norm: x must be .*not empty.* x is \(0, 4, 4, 3\)"),
    (lambda: functional.batch_norm(C, C, C), r"batch_norm: x must be \(\.\.\., C\).*x is \(3,\)"),
    (lambda: functional.batch_norm(X, C, C, eps=0), "batch_norm: eps must be above 0; got 0"),
    (lambda: functional.normalize(X, np.ones(4), C, C, C), r"normalize: .* gamma and beta \(C,\).*gamma \(4,\)"),
    (lambda: functional.normalize(X, C, C, np.ones(1), C), r"normalize: mean and var must be \(3,\).* mean \(1,\)"),
    (lambda: functional.normalize(X, C, C, C, np.ones((4, 3))), r"normalize: mean and var .* var \(4, 3\)"),
    (lambda: functional.normalize(X, C, C, C, C, eps=-1), "normalize: eps must be above 0; got -1"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
