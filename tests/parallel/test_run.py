"""Jobs on all cores: order, exceptions, nesting, who joins; the same bits with any number of threads."""

import gc
import os
import threading
import time
import weakref

import numpy as np
import pytest

from minunet import ConvMatrix, Geometry, parallel
from minunet.errors import UserError
from tests.parallel.workers import (
    WAIT,
    meet,
    wait_for,
)

COUNTS = pytest.mark.parametrize("count", [1, 2, 3])


@COUNTS
@pytest.mark.parametrize("jobs", [[], [7], list(range(100)), range(5), "abc", (None, None)])
def test_results_are_in_the_jobs_order(use, count, jobs):
    def late(job):
        time.sleep(0.002 if job == 0 else 0)                # the first job ends last
        return job, "done"

    use(count)
    assert parallel.run(late, jobs) == [(job, "done") for job in jobs]


@COUNTS
def test_every_job_runs_once(use, count):
    use(count)
    seen = []
    parallel.run(seen.append, range(1000))
    assert sorted(seen) == list(range(1000))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_as_many_threads_work_at_the_same_time_as_were_asked_for(use, count):
    use(count)
    for _ in range(3):
        threads = parallel.run(meet(count), range(count))
        assert len(set(threads)) == count and threading.get_ident() in threads
    assert len(set(parallel.run(meet(2), range(2)))) == 2   # no more than there are jobs


@pytest.mark.parametrize("jobs, count", [(1, 4), (50, 1)])
def test_one_job_or_one_thread_stays_in_the_calling_thread(use, jobs, count):
    use(count)
    assert set(parallel.run(lambda job: threading.get_ident(), range(jobs))) == {threading.get_ident()}


@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5"])
def test_another_number_of_threads_is_refused(monkeypatch, value):
    monkeypatch.setenv("MINUNET_NUM_THREADS", value)
    with pytest.raises(UserError, match=f"MINUNET_NUM_THREADS must be a whole number of at least 1.* got '{value}'"):
        parallel.threads()


@pytest.mark.parametrize("value, count", [("1", 1), ("3", 3), (" 64 ", 64), ("", None), (None, None)])
def test_the_environment_sets_the_number_of_threads(monkeypatch, value, count):
    monkeypatch.delenv("MINUNET_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("MINUNET_NUM_THREADS", value)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert parallel.threads() == (cores if count is None else count)


@COUNTS
@pytest.mark.parametrize("failing", [[0], [3], [9], [2, 5], range(10)])
def test_an_exception_is_carried_out(use, count, failing):
    def job(number):
        if number in failing:
            raise KeyError(number)
        return number

    use(count)
    with pytest.raises(KeyError) as caught:
        parallel.run(job, range(10))
    assert caught.value.args[0] in failing
    assert parallel.run(lambda number: number, range(10)) == list(range(10))        # and the next run is a new one


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("failing", [{True}, {False}, {True, False}], ids=["caller", "other", "both"])
def test_an_exception_of_any_thread_is_carried_out_and_keeps_no_memory(use, failing, error):
    """The arrays of a run that failed return by reference count."""
    def attempt():
        array, both = np.ones(1000), threading.Barrier(2)

        def job(number, array=array):
            both.wait(10)
            if (threading.current_thread() is threading.main_thread()) in failing:
                raise error(number, array.sum())

        with pytest.raises(error):
            parallel.run(job, range(2))
        return weakref.ref(array)

    use(2)
    gc.collect()
    gc.disable()
    try:
        assert attempt()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [1, 2])
def test_a_nested_call_runs_in_the_thread_of_its_job(use, count, blas):
    def inner(job):
        assert len(parallel._team.runs) <= 1                # no other may join it
        return threading.get_ident(), job

    def outer(job):
        return {ident for ident, _ in parallel.run(inner, range(5))} == {threading.get_ident()}, job

    use(count)
    assert parallel.run(outer, range(6)) == [(True, job) for job in range(6)]
    if count == 2:
        assert len(set(parallel.run(meet(2), range(2)))) == 2       # afterwards, calls are not nested any more


def test_a_call_from_a_single_job_is_not_nested(use):
    use(2)
    (idents,) = parallel.run(lambda job: parallel.run(meet(2), range(2)), range(1))
    assert len(set(idents)) == 2


def test_other_threads_work_in_the_context_of_the_caller(use):
    use(2)
    both = threading.Barrier(2)

    def job(number):
        both.wait(10)
        return np.float64(1) / np.zeros(1000), np.geterr()["divide"]

    with np.errstate(divide="ignore"):
        assert [found[1] for found in parallel.run(job, range(2))] == ["ignore", "ignore"]


# who joins

def test_only_as_many_threads_join_a_run_as_were_asked_for(use):
    use(4)
    parallel.run(meet(4), range(4))

    def job(number):
        for worker in parallel._team.workers:               # all are awake and look for work
            worker.wake()
        time.sleep(0.001)
        return threading.get_ident()

    use(2)
    assert len(set(parallel.run(job, range(100)))) <= 2


def test_threads_are_woken_every_time(use):
    use(3)
    for _ in range(300):
        assert len(set(parallel.run(meet(3), range(3)))) == 3


def test_a_thread_is_woken_that_found_nothing_just_now(use):
    """Its bell rings between its last look and its sleep."""
    use(2)
    parallel.run(meet(2), range(2))
    work, looked, published = parallel._Worker._work, threading.Event(), threading.Event()

    def look_and_dawdle(worker):
        found = work(worker)
        if not found and worker is parallel._team.workers[0]:
            looked.set()
            published.wait(WAIT)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel._Worker, "_work", look_and_dawdle)
        parallel._team.workers[0].wake()
        wait_for(looked)
        both = threading.Barrier(2)

        def job(number):
            published.set()
            both.wait(WAIT)

        parallel.run(job, range(2))


# the same bits

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch, size, channels, filters, geometry", [
    (2, (96, 128), 8, 16, Geometry(3, padding=1)),
    (1, (200, 90), 3, 5, Geometry((5, 3), stride=(2, 1), padding=(2, 0), dilation=(1, 2))),
    (3, (64, 64), 16, 8, Geometry(2, stride=2)),
    (2, (128, 128), 8, 3, Geometry(1)),
    (1, (256, 192), 4, 1, Geometry(3)),
    (1, (8, 8), 64, 32, Geometry(3, padding=1)),            # a single job
    (1, (64, 64), 3, 16, Geometry(3, padding=1)),
    (1, (16, 16), 64, 33, Geometry(2, stride=2)),
])
def test_products_have_the_same_bits_with_any_number_of_threads(use, dtype, batch, size, channels, filters, geometry,
                                                                blas):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((*geometry.kernel, channels, filters))
    A = ConvMatrix(w.astype(dtype), geometry, size)
    x = rng.standard_normal((batch, *size, channels)).astype(dtype)
    y = rng.standard_normal((batch, *A.out_size, filters)).astype(dtype)
    results = []
    for count in (1, 2, 3, 2):
        use(count)
        results.append([product() for product in (lambda: A @ x, lambda: A.T @ y, lambda: A.weight_grad(x, y))])
    for other in results[1:]:
        for expected, array in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(array, expected)
