"""BLAS's number of threads with several callers."""

import sys
import threading

import pytest

from minunet import parallel
from tests.workers import WAIT, blas_threads, two_blas_threads, wait_for


@pytest.fixture
def blas():
    with two_blas_threads():
        yield


@pytest.mark.parametrize("first_in", ["this", "other"])
@pytest.mark.parametrize("first_out", ["this", "other"])
def test_blas_has_one_thread_until_the_last_caller_has_ended(first_in, first_out, blas):
    """While both threads are alive: threadpoolctl listens to one of them only."""
    came, leave, left, end, seen = *(threading.Event() for _ in range(4)), []

    def other_caller():
        with parallel.overlap():
            seen.append(blas_threads())
            came.set()
            wait_for(leave)
        left.set()
        wait_for(end)

    def come():
        thread.start()
        wait_for(came)

    def go():
        leave.set()
        wait_for(left)

    thread = threading.Thread(target=other_caller)
    try:
        if first_in == "other":
            come()
        with parallel.overlap():
            seen.append(blas_threads())
            if first_in == "this":
                come()
            if first_out == "other":
                go()
            seen.append(blas_threads())
        if first_out == "this":
            seen.append(blas_threads())
            go()
        assert set(seen) == {1} and blas_threads() == 2
    finally:
        end.set()
        thread.join(WAIT)


def test_blas_has_one_thread_for_a_caller_that_is_not_the_main_thread(blas):
    parallel.run(abs, range(3))                             # of the main thread
    seen = []
    thread = threading.Thread(target=lambda: seen.extend(parallel.run(lambda job: blas_threads(), range(4))))
    thread.start()
    thread.join(WAIT)
    assert seen == [1] * 4


def test_a_waiting_thread_insists_on_its_turn_within_and_not_afterwards(monkeypatch):
    monkeypatch.setenv("MINUNET_NUM_THREADS", "2")
    before = sys.getswitchinterval()
    found = parallel.run(lambda job: sys.getswitchinterval(), range(4))
    assert found == pytest.approx([parallel.TURN] * 4) and sys.getswitchinterval() == before
