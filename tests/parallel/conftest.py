"""Threads as a test wants them, BLAS with two, and no garbage collector."""

import gc

import pytest

from tests.parallel.workers import two_blas_threads


@pytest.fixture
def use(monkeypatch):
    """Set the number of threads."""
    return lambda count: monkeypatch.setenv("MINUNET_NUM_THREADS", str(count))


@pytest.fixture
def blas():
    """BLAS with two threads, whatever the machine has; after the test they are still two."""
    with two_blas_threads():
        yield


@pytest.fixture
def no_collector():
    """Memory returns by reference count, or not at all."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
