"""Depth and memory of the autograd: long chains, caches that die on the way, memory that returns by reference count."""

import gc
import tracemalloc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from minunet import Tensor, functional, memory, nn
from minunet.autograd import lift
from minunet.convolution import im2col
from tests.checks import leaf


@pytest.fixture(autouse=True)
def _without_arena(monkeypatch):
    """All memory comes from NumPy, so that tracemalloc sees it."""
    monkeypatch.setattr(memory, "LARGE", 1 << 60)


@contextmanager
def by_reference_count():
    """A test that it decorates runs with the garbage collector off, and leaves nothing that only that could find."""
    while gc.collect():             # of the tests before, in turns: what is finalized may leave more
        pass
    gc.disable()
    try:
        yield
        assert gc.collect() == 0
    finally:
        gc.enable()


def array_bytes():
    """The bytes that NumPy's arrays hold now, of those made since tracemalloc started."""
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)


@pytest.mark.parametrize("length", [10_000, 100_000])
@pytest.mark.parametrize("backward", [True, False])
@by_reference_count()
def test_long_chains_do_not_recurse(length, backward):
    x = leaf(1)
    y = x
    for _ in range(length):
        y = -y
    if backward:
        y.sum().backward()
        np.testing.assert_array_equal(x.grad, [1])
    del y


def test_the_peak_of_backward_is_what_the_forward_kept_and_a_few_arrays():
    """Each multiplication keeps one array and makes one parameter's gradient, which takes the freed array's place."""
    length, elements = 24, 50_000
    size = 8 * elements
    parameters = [Tensor(np.ones(elements), requires_grad=True) for _ in range(length)]
    tracemalloc.start()
    try:
        y = Tensor(np.ones(elements), requires_grad=True)
        for p in parameters:
            y = y * p
        loss = y.sum()
        del y
        kept = tracemalloc.get_traced_memory()[0]
        assert kept < (length + 2) * size
        tracemalloc.reset_peak()
        loss.backward()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < kept + 6 * size
    assert now < (length + 1) * size + size / 2             # the gradients alone, although the loss is still here


@by_reference_count()
def test_a_cache_dies_when_backward_has_passed_its_op():
    caches, alive = [], []

    def hold(x):
        own = x.copy()
        caches.append(weakref.ref(own))
        return x + 1, own

    def hold_backward(dy, own):
        del own
        alive.append([c() is not None for c in caches])
        return (dy,)

    hold, y = lift(hold, hold_backward), leaf(3)
    for _ in range(5):
        y = hold(y)
    loss = y.sum()
    loss.backward()
    assert alive == [[True] * k + [False] * (5 - k) for k in (5, 4, 3, 2, 1)]
    assert not any(c() is not None for c in caches) and loss.requires_grad


@by_reference_count()
def test_an_output_lives_only_as_long_as_somebody_needs_it():
    x = leaf(3)
    between = x + 1
    data = weakref.ref(between.data)
    y = between + 1
    del between
    assert data() is None and y.requires_grad


def test_across_a_concatenation_only_the_skips_own_gradient_waits():
    """While the branch beside it is passed, the skip's gradient takes the skip's size, not that of both branches."""
    skip = leaf(1, 64, 64, 16) * 1.0
    held = []

    def measure(dy, cache):
        held.append(array_bytes())
        return (dy,)

    branch = lift(lambda x: (x + 1, None), measure)(skip) * 2.0
    y = (functional.concat(skip, branch) * 1.0).sum()
    tracemalloc.start()
    y.backward()
    tracemalloc.stop()
    assert held[0] < 2.5 * skip.data.nbytes         # the skip's gradient, and the branch's on its way


@pytest.mark.parametrize("backward", [True, False])
@by_reference_count()
def test_memory_returns_by_reference_count(backward):
    x, w = leaf(3, 4), leaf(4)
    hidden = functional.sigmoid(x * w)
    y = (hidden * hidden - hidden).mean()
    if backward:
        y.backward()
    seen = [weakref.ref(a) for a in (x, x.data, w.data, hidden, hidden.data, y, y.data)]
    del x, w, hidden, y
    assert [s() for s in seen] == [None] * 7


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize("threads, scratch", [(1, 0), (2, 20_000)])      # bytes that a second thread may keep
@by_reference_count()
def test_memory_of_a_convolutional_net_returns_by_reference_count(backward, threads, scratch, monkeypatch):
    monkeypatch.setenv("MINUNET_NUM_THREADS", str(threads))
    monkeypatch.setattr(im2col, "BLOCK_BYTES", 4096)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.LeakyReLU(),
        nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Resample(2), nn.AvgPool2d(2), nn.ELU(), nn.Conv2d(4, 2, 1))

    def step():
        """The memory that the forward kept, the first and the last array."""
        before = array_bytes()
        x = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
        logits = net(Tensor(x))
        loss = functional.loss_function("ce+dice")(logits, np.zeros((2, 32, 32), int))
        kept = array_bytes() - before
        if backward:
            loss.backward()
            for p in net.parameters():
                p.grad = None
        return kept, weakref.ref(x), weakref.ref(logits.data)

    tracemalloc.start()
    try:
        step()                                              # fills what is kept between steps
        before = array_bytes()
        kept, *arrays = step()
        left = array_bytes() - before
    finally:
        tracemalloc.stop()
    assert [a() for a in arrays] == [None, None]
    assert kept > 100_000 and left <= scratch
