"""The unit: equal to its ops one after the other, and to PyTorch's; ties, large means, blocks, threads, folding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minunet import Tensor, functional, gradcheck, optim
from minunet.backend import to_device
from minunet.cuda import record_launches
from minunet.ops import block, conv, norm, pool, rows
from tests.checks import assert_close, assert_refuses_mixed_dtypes
from tests.devices import computed
from tests.peers import first, kernel, last
from tests.strategies import seeds


@st.composite
def units(draw, pooled=st.booleans()):
    """Images side by side and parameters, padding, whether to pool, cotangents (None for one of two results)."""
    small, pool = st.integers(1, 3), draw(pooled)
    channels, filters, padding = draw(st.lists(small, min_size=1, max_size=3)), draw(small), draw(st.integers(0, 2))
    out = [draw(small) * (2 if pool else 1) for _ in range(2)]
    kernel_size = [draw(st.integers(1, min(3, n + 2 * padding))) for n in out]
    size = [n + k - 1 - 2 * padding for n, k in zip(out, kernel_size)]
    if min(size) < 1:
        size, padding = [n + k - 1 for n, k in zip(out, kernel_size)], 0
    rng = np.random.default_rng(draw(seeds))
    batch = draw(st.integers(2, 3))
    arrays = [rng.standard_normal((*kernel_size, sum(channels), filters)), rng.standard_normal(filters),
              rng.standard_normal(filters), *(rng.standard_normal((batch, *size, c)) for c in channels)]
    dy, dpooled = rng.standard_normal((batch, *out, filters)), None
    if pool:
        dpooled = rng.standard_normal((batch, out[0] // 2, out[1] // 2, filters))
        wanted = draw(st.sampled_from(["both", "y", "pooled"]))
        dy, dpooled = None if wanted == "pooled" else dy, None if wanted == "y" else dpooled
    return arrays, padding, pool, dy, dpooled


def unit(arrays, dy, dpooled, pool_too, needs=None, **options):
    """What the op and its backward give: results, statistics, gradients (as the arrays), kinks."""
    y, cache = block.conv_norm_relu(*arrays, pool=pool_too, **options)
    gradients = block.conv_norm_relu_backward((dy, dpooled) if pool_too else dy, cache, needs or (True,) * len(arrays))
    results = y if pool_too else (y,)
    return [*results, cache.mean, cache.var], gradients, (cache.positive, cache.winners)


def composition(arrays, dy, dpooled, pool_too, padding=1, eps=1e-5):
    """The same from conv2d of joined images, batch_norm, relu and max_pool2d."""
    w, gamma, beta, *xs = arrays
    z, convolved = conv.conv2d(np.concatenate(xs, -1), w, padding=padding)
    y, normalised = norm.batch_norm(z, gamma, beta, eps=eps, relu=True)
    results, winners = [y], y[:0] > 0
    total = np.zeros_like(y) if dy is None else dy
    if pool_too:
        pooled, cache = pool.max_pool2d(y, kernel=2)
        results, winners = [y, pooled], cache.winners
        total = total if dpooled is None else total + pool.max_pool2d_backward(dpooled, cache)[0]
    dz, dgamma, dbeta = norm.batch_norm_backward(total, normalised)
    dx, dw, _ = conv.conv2d_backward(dz, convolved)
    dxs = np.split(dx, np.cumsum([x.shape[-1] for x in xs])[:-1], -1)
    return [*results, normalised.mean, normalised.var], [dw, dgamma, dbeta, *dxs], (y > 0, winners)


@given(units(), st.sampled_from([1e-5, 0.1]))
def test_equals_its_ops_one_after_the_other(case, eps):
    arrays, padding, pooled, dy, dpooled = case
    ours = unit(arrays, dy, dpooled, pooled, padding=padding, eps=eps)
    theirs = composition(arrays, dy, dpooled, pooled, padding, eps)
    for a, b in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), strict=True):
        assert_close(a, b, 1e-12)
    for a, b in zip(ours[2], theirs[2]):
        np.testing.assert_array_equal(a, b)


@given(seeds, st.sampled_from(["both", "y", "pooled"]))
def test_of_equal_maxima_the_first_wins(seed, wanted):
    """Small whole numbers, which tie in most windows, above 0 as well as at 0."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (2, 4, 6, 2)).astype(float)
    arrays = [np.eye(2).reshape(1, 1, 2, 2), np.ones(2), np.full(2, 0.1), x]
    dy, dpooled = rng.standard_normal(x.shape), rng.standard_normal((2, 2, 3, 2))
    dy, dpooled = None if wanted == "pooled" else dy, None if wanted == "y" else dpooled
    ours, theirs = unit(arrays, dy, dpooled, True, padding=0), composition(arrays, dy, dpooled, True, 0)
    np.testing.assert_array_equal(ours[2][1], theirs[2][1])
    assert_close(ours[1][3], theirs[1][3], 1e-13)


@given(units(pooled=st.just(True)))
@settings(max_examples=30)
def test_equals_pytorch(torch, case):
    arrays, padding, *_ = case
    w, gamma, beta, *xs = arrays
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    y, pooled, _, _ = functional.conv_norm_relu(tuple(leaves[3:]), *leaves[:3], padding=padding, pool=True)
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    z = torch.nn.functional.conv2d(torch.cat([first(x) for x in theirs[3:]], 1), kernel(theirs[0]), padding=padding)
    expected = torch.relu(torch.nn.functional.batch_norm(z, None, None, theirs[1], theirs[2], True))
    maxima = torch.nn.functional.max_pool2d(expected, 2)
    assert_close(y.data, last(expected).detach().numpy(), 1e-10)
    assert_close(pooled.data, last(maxima).detach().numpy(), 1e-10)
    ((y * y).sum() + (pooled * pooled * 3).sum()).backward()
    ((expected * expected).sum() + (maxima * maxima * 3).sum()).backward()
    for ours, other in zip(leaves, theirs):
        assert_close(ours.grad, other.grad.numpy(), 1e-8)


@given(units())
@settings(max_examples=25)
def test_gradients_equal_finite_differences(case):
    arrays, padding, pooled, _, dpooled = case
    which = 1 if pooled and dpooled is not None else 0
    gradcheck(lambda w, gamma, beta, *xs: functional.conv_norm_relu(xs, w, gamma, beta, 0.1, padding, pooled)[which],
              arrays)


@given(units(), st.lists(st.booleans(), min_size=6, max_size=6))
def test_only_the_gradients_that_are_needed_are_computed(case, wanted):
    arrays, padding, pooled, dy, dpooled = case
    needs = tuple(wanted[:len(arrays)])
    gradients = unit(arrays, dy, dpooled, pooled, needs, padding=padding)[1]
    given_anyway = {1, 2}                       # gamma's and beta's come with the sums that dz needs
    assert [g is not None for g in gradients] == [i in given_anyway or n for i, n in enumerate(needs)]


BIG = (2, 48, 40)


def big(dtype, offset=0.0, seed=0):
    """A unit of many blocks, once BLOCK is small; with a weight of 1 the offset is z's, in standard deviations."""
    rng = np.random.default_rng(seed)
    w, x = np.eye(8).reshape(1, 1, 8, 8), rng.standard_normal((*BIG, 8)) + offset
    arrays = [a.astype(dtype) for a in (w, rng.uniform(0.5, 1, 8), rng.standard_normal(8), x)]
    return arrays, rng.standard_normal(x.shape).astype(dtype), rng.standard_normal((2, 24, 20, 8)).astype(dtype)


def test_blocks_make_no_difference(monkeypatch):
    arrays, dy, dpooled = big(np.float64)
    whole = unit(arrays, dy, dpooled, True, padding=0)
    monkeypatch.setattr(rows, "BLOCK", 1000)            # elements: of rows of 640, or 320
    cut = unit(arrays, dy, dpooled, True, padding=0)
    for a, b in zip((*whole[0], *whole[1]), (*cut[0], *cut[1]), strict=True):
        assert_close(a, b, 1e-13)


def test_the_number_of_threads_makes_no_difference(monkeypatch):
    arrays, dy, dpooled = big(np.float32, offset=3.0)
    monkeypatch.setattr(rows, "BLOCK", 1000)
    found = []
    for threads in "1", "2", "3":
        monkeypatch.setenv("MINUNET_NUM_THREADS", threads)
        results, gradients, _ = unit(arrays, dy, dpooled, True, padding=0)
        found.append([a.tobytes() for a in (*results, *gradients)])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("offset", [0.0, 3.0, -5.0, 100.0, -1000.0])        # on either side of norm.FAR, and far off
def test_float32_keeps_its_accuracy_at_means_of_1000_standard_deviations(offset):
    """Against float64 from the same float32 numbers. With a dy that does not sum to 0, which hides what μ loses."""
    arrays, dy, dpooled = big(np.float32, offset)
    dy += 1
    ours = unit(arrays, dy, dpooled, True, padding=0)
    exact = [a.astype(np.float64) for a in (*arrays, dy, dpooled)]
    theirs = composition(exact[:-2], *exact[-2:], True, 0)
    for name, a, b in zip(("y", "pooled", "mean", "var"), ours[0], theirs[0], strict=True):
        assert a.dtype == np.float32
        assert_close(a, b, 2e-6, name)
    for name, a, b in zip(("gamma", "beta", "x"), ours[1][1:], theirs[1][1:], strict=True):
        assert_close(a, b, 1e-5 if name == "x" else 2e-6, name)


@pytest.mark.parametrize("cut", [[96], [1, 90, 5], [40, 8, 48], [1] * 96])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-11), (np.float32, 1e-5)])
def test_statistics_do_not_depend_on_the_blocks(dtype, tolerance, cut):
    """Of unequal sizes; some of whose means are near 0, some far; a few rows 1000 standard deviations off."""
    x = np.random.default_rng(0).standard_normal((96, 7 * 8)).astype(dtype) + np.arange(96)[:, None].astype(dtype)
    x[::12] += 1000
    parts = [norm.moments(8)(part) for part in np.split(x, np.cumsum(cut)[:-1])]
    mean, var = norm.combined(parts)
    expected = x.astype(np.float64).reshape(-1, 8)
    assert (mean.dtype, var.dtype) == (np.float64, np.float64)
    np.testing.assert_allclose(mean, expected.mean(0), rtol=tolerance)
    np.testing.assert_allclose(var, expected.var(0), rtol=tolerance)


@pytest.mark.parametrize("means", [[0, 0, 0], [0, 3.9, 0], [0, 4.1, -1000], [1e5, 0, 1]])
def test_one_channel_far_from_zero_is_enough(means):
    """Statistics, y, dx and dγ of all channels keep their accuracy; a channel of equal numbers has the variance 0."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 50, 40, 4), np.float32), rng.standard_normal((2, 50, 40, 4), np.float32) + 1
    x[..., :3] += np.array(means, np.float32)
    x[..., 3] = 7
    gamma, beta = np.array([1, 2, -3, 1], np.float32), np.array([0, 1, -1, 2], np.float32)
    y, cache = norm.batch_norm(x, gamma, beta)
    dx, dgamma, _ = norm.batch_norm_backward(dy, cache)
    exact, exact_cache = norm.batch_norm(*(a.astype(np.float64) for a in (x, gamma, beta)))
    exact_dx, exact_dgamma, _ = norm.batch_norm_backward(dy.astype(np.float64), exact_cache)
    np.testing.assert_allclose(cache.exact_var[:3], exact_cache.exact_var[:3], rtol=1e-6)
    assert cache.exact_var[3] == 0
    for channel in range(3):
        assert_close(y[..., channel], exact[..., channel], 1e-6)
        assert_close(dx[..., channel], exact_dx[..., channel], 1e-6)
    assert_close(dgamma[:3], exact_dgamma[:3], 1e-6)


def test_squares_that_overflow_are_taken_around_the_mean():
    x = np.random.default_rng(0).uniform(1e19, 1.1e19, (64, 64)).astype(np.float32)
    with np.errstate(over="ignore"):
        mean, var = norm.combined([norm.moments(4)(x)])
    expected = x.astype(np.float64).reshape(-1, 4)
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var, expected.var(0), rtol=1e-4)


def test_equal_maxima_in_a_large_image_are_rare_and_still_found():
    """One window of many whose two largest numbers are the same, above 0."""
    rng = np.random.default_rng(0)
    y = rng.uniform(1, 2, (2, 64, 64, 8)).astype(np.float32)
    y[1, 40, 31] = y[1, 41, 30] = 3                 # in one window; the upper right one is the first
    pooled = y.reshape(2, 32, 2, 32, 2, 8).max((2, 4))
    z, one = np.zeros_like(y), np.ones(8, np.float32)
    cache = norm.Normalised(z, y, one, np.zeros(8), np.ones(8), 1e-5, constant=True)    # so that dz is g
    dpooled = np.ones_like(pooled)
    g, *_ = block._normalised_backward(None, dpooled, cache, pooled)
    assert np.all(g[1, 40, 31] > 0.99) and not g[1, 41, 30].any()
    windows = g.reshape(2, 32, 2, 32, 2, 8)
    np.testing.assert_array_equal((windows != 0).sum((2, 4)), 1)


@given(units())
@settings(max_examples=30)
def test_prediction_folds_batch_norm_into_the_weights(case):
    (w, gamma, beta, *xs), padding, *_ = case
    rng = np.random.default_rng(3)
    mean, var = rng.standard_normal(len(gamma)), rng.uniform(0, 2, len(gamma))
    folded, b = block.fold(w, gamma, beta, mean, var, 1e-3)
    y, _ = conv.conv2d(xs[0], folded, b, *xs[1:], padding=padding, relu=True)
    z, _ = conv.conv2d(np.concatenate(xs, -1), w, padding=padding)
    assert_close(y, norm.normalize(z, gamma, beta, mean=mean, var=var, eps=1e-3, relu=True)[0], 1e-12)


@pytest.mark.parametrize("wanted", [["y"], ["y", "pooled"], ["pooled"]], ids="-".join)
def test_on_a_device_as_on_the_cpu(device, wanted):
    """Pooling or not, and with gradients of one result or of both."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32)
              for shape in ((3, 3, 5, 4), (4,), (4,), (2, 4, 6, 3), (2, 4, 6, 2))]
    dy, dpooled = rng.standard_normal((2, 4, 6, 4)), rng.standard_normal((2, 2, 3, 4))
    dy, dpooled = dy.astype(np.float32), dpooled.astype(np.float32)

    def f(dy, dpooled, *arrays):
        results, gradients, kinks = unit(arrays, dy if "y" in wanted else None, dpooled, "pooled" in wanted)
        return (*results, *gradients, *kinks)

    expected = f(*(a.astype(np.float64) for a in (dy, dpooled, *arrays)))
    for a, b in zip(computed(device, f, dy, dpooled, *arrays), expected, strict=True):
        assert_close(a.astype(np.float64), b.astype(np.float64), 1e-5)


def test_images_side_by_side_are_joined_once_on_a_device(device):
    """By a launch for each image, and cut by as many: the backward needs no second joining."""
    rng = np.random.default_rng(0)
    arrays = [to_device(rng.standard_normal(shape).astype(np.float32), device)
              for shape in ((3, 3, 8, 4), (4,), (4,), (2, 4, 6, 4), (2, 4, 6, 4))]
    for forward, backward, inputs in ((block.conv_norm_relu, block.conv_norm_relu_backward, arrays),
                                      (conv.conv2d, conv.conv2d_backward, [arrays[3], arrays[0], None, arrays[4]])):
        with record_launches() as launches:
            y, cache = forward(*inputs, padding=1)
            made = [launch.kernel for launch in launches]
            backward(y, cache, (True,) * len(inputs))
        assert made.count("shape.copy_channels") == 2
        assert [launch.kernel for launch in launches].count("shape.copy_channels") == 4


def test_learning_the_unit():
    """Both results are used; a step of gradient descent along the gradient lowers the loss."""
    rng = np.random.default_rng(0)
    parameters = [Tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((3, 3, 2, 3), (3,), (3,))]
    x, optimizer, losses = rng.standard_normal((2, 6, 6, 2)), optim.SGD(parameters, lr=1e-2), []
    for _ in range(5):
        y, pooled, *_ = functional.conv_norm_relu(x, *parameters, pool=True)
        loss = (y - 1.0).__pow__(2).mean() + (pooled - 2.0).__pow__(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


def test_mixed_dtypes_are_refused():
    assert_refuses_mixed_dtypes(lambda x, w, gamma, beta: functional.conv_norm_relu(x, w, gamma, beta),
                                (1, 4, 4, 2), (3, 3, 2, 3), (3,), (3,))
    assert_refuses_mixed_dtypes(lambda a, b, w: functional.conv2d((a, b), w), (1, 4, 4, 2), (1, 4, 4, 1), (3, 3, 3, 2))


X, W, G = np.zeros((1, 4, 6, 2)), np.zeros((3, 3, 2, 3)), np.ones(3)


@pytest.mark.parametrize("make, message", [
    (lambda: functional.conv_norm_relu(X, W, np.ones(2), G),
     r"conv_norm_relu: gamma and beta must be \(3,\), .*; got gamma \(2,\), beta \(3,\)"),
    (lambda: functional.conv_norm_relu(X, W, G, np.ones((3, 1))), r"conv_norm_relu: .*gamma \(3,\), beta \(3, 1\)"),
    (lambda: functional.conv_norm_relu(X[:0], W, G, G), "conv_norm_relu: x must not be empty"),
    (lambda: functional.conv_norm_relu(X, W, G, G, eps=0), "conv_norm_relu: eps must be above 0; got 0"),
    (lambda: functional.conv_norm_relu(X[:, :3], W, G, G, pool=True),
     r"conv_norm_relu: with pool .* height and width must be even; got \(3, 6\)"),
    (lambda: functional.conv_norm_relu(X[:, :, :5], W, G, G, pool=True), r"must be even; got \(4, 5\)"),
    (lambda: functional.conv_norm_relu((X, X), W, G, G), r"weight has 2 input channels, x has 2 \+ 2"),
    (lambda: functional.conv2d((X, X[:, :2]), W), r"conv2d: images side by side must have one shape but for the "
                                                  r"channels; got \(1, 4, 6, 2\), \(1, 2, 6, 2\)"),
    (lambda: functional.conv2d((X[0], X[0]), W), r"conv2d: x must be \(N, H, W, C\), channels last"),
])
def test_errors_name_what_came_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
