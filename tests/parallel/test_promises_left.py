"""What interrupted takers, and promises that were taken or forgotten, leave: nothing."""

import signal
import threading
import weakref
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from minunet import parallel
from tests.parallel.workers import (
    MAKERS,
    all_busy,
    begin_and_do,
    interrupt_the_main_thread_when_it_waits,
    interrupts,
    nothing_is_left,
    promised,
    wait_for,
)


@interrupts
def test_an_interrupted_taker_leaves_nothing_behind(blas):
    made = []

    def make():
        interrupt_the_main_thread_when_it_waits()
        made.extend(parallel.run(abs, range(3)))

    with pytest.raises(KeyboardInterrupt), promised(make, "other") as promise:
        promise.take()
    assert nothing_is_left() and made == [0, 1, 2]          # who was at it has gone on
    with promised(threading.get_ident, "other") as promise:
        assert promise.take() != threading.get_ident()


@interrupts
def test_an_interrupt_while_the_taker_makes_a_promise_comes_out():
    with promised(lambda: signal.raise_signal(signal.SIGINT), "taker") as promise, pytest.raises(KeyboardInterrupt):
        promise.take()
    assert nothing_is_left()


# memory

@MAKERS
def test_what_a_promise_referred_to_is_free_when_it_has_been_taken(maker, no_collector):
    """Also while somebody still refers to the promise."""
    array = np.ones(10)
    with promised(partial(np.add, array, 1), maker) as promise:
        seen = weakref.ref(array)
        del array
        result = weakref.ref(promise.take())
        assert seen() is None and result() is None


class Held:
    """A lock; who opens it goes on when `go` is set."""

    def __init__(self, lock, go):
        self.acquire, self._lock, self._go = lock.acquire, lock, go

    def release(self):
        self._lock.release()
        wait_for(self._go)


@pytest.mark.parametrize("function", [partial(np.add, 1), np.linalg.inv])     # of a vector: this fails
def test_its_maker_refers_to_nothing_any_more_when_the_taker_goes_on(function, no_collector):
    array, begun, go = np.ones(10), threading.Event(), threading.Event()
    seen = weakref.ref(array)
    with all_busy() as release:
        promise = parallel.later(partial(begin_and_do, begun, partial(function, array)))
        promise._finished = Held(promise._finished, go)
        release(1)
        wait_for(begun)
        del array
        try:
            with suppress(np.linalg.LinAlgError):
                promise.take()
            assert seen() is None
        finally:
            go.set()


@MAKERS
def test_a_promises_run_keeps_nothing_when_it_has_been_taken(maker, no_collector):
    array, jobs = np.ones(10), list(np.ones((3, 10)))
    seen = [*map(weakref.ref, [array, *jobs])]
    with promised(partial(parallel.run, partial(np.add, array), jobs), maker) as promise:
        del array, jobs
        results = [*map(weakref.ref, promise.take())]
        assert not any(s() is not None for s in (*seen, *results))


def test_what_a_forgotten_promise_referred_to_is_free(no_collector):
    array = np.ones(10)
    seen = weakref.ref(array)
    with all_busy():
        with parallel.overlap():
            parallel.later(partial(np.add, array, 1))
            del array
            assert seen() is not None
        assert seen() is None
