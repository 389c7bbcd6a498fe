"""BLAS's number of threads and the interpreter's turns: within runs, with several callers, afterwards."""

import sys
import threading

import pytest

from minunet import parallel
from tests.parallel.workers import (
    MAKERS,
    WAIT,
    blas_threads,
    promised,
    wait_for,
)


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


# BLAS's own threads

@pytest.mark.parametrize("count", [1, 2])
def test_blas_has_one_thread_inside_jobs_and_its_own_afterwards(use, count, blas):
    use(count)
    assert set(parallel.run(lambda job: blas_threads(), range(4))) == {1}
    assert blas_threads() == 2
    with pytest.raises(KeyError):
        parallel.run({}.__getitem__, range(4))


def test_callers_from_several_threads_do_not_disturb_each_other(use, blas):
    use(2)
    results = {}

    def caller(name):
        results[name] = [parallel.run(lambda job: (name, i, job), range(7)) for i in range(20)]

    threads = [threading.Thread(target=caller, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [[(name, i, job) for job in range(7)] for i in range(20)] for name in range(4)}


# BLAS's own threads

@MAKERS
def test_blas_has_one_thread_within_overlap_and_its_own_afterwards(maker, blas):
    with parallel.overlap():
        assert blas_threads() == 1
        with parallel.overlap():
            assert blas_threads() == 1
        parallel.run(abs, range(4))
        assert blas_threads() == 1
    assert blas_threads() == 2
    with promised(blas_threads, maker) as promise:
        assert promise.take() == 1
    assert blas_threads() == 2
    with promised(lambda: parallel.run(lambda job: blas_threads(), range(4)), maker) as promise:
        assert promise.take() == [1, 1, 1, 1]


@MAKERS
def test_blas_has_its_own_threads_after_an_exception(maker, blas):
    with pytest.raises(KeyError), parallel.overlap():
        raise KeyError
    assert blas_threads() == 2
    with pytest.raises(KeyError), promised(lambda: {}["key"], maker) as promise:
        promise.take()
    assert blas_threads() == 2
    with pytest.raises(KeyError), promised(lambda: parallel.run({}.__getitem__, range(5)), maker) as promise:
        promise.take()
