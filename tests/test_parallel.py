"""Jobs on all cores: order, exceptions, nesting, BLAS's threads, forks; the same bits with any number of threads."""

import gc
import os
import signal
import threading
import time
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

from minunet import ConvMatrix, Geometry, parallel
from minunet.errors import UserError
from tests.workers import (
    WAIT,
    blas_threads,
    interrupt_the_main_thread_when_it_waits,
    interrupts,
    meet,
    nothing_is_left,
    run_script,
    two_blas_threads,
    wait_for,
)

COUNTS = pytest.mark.parametrize("count", [1, 2, 3])


@pytest.fixture
def use(monkeypatch):
    """Set the number of threads."""
    return lambda count: monkeypatch.setenv("MINUNET_NUM_THREADS", str(count))


@pytest.fixture
def blas():
    """BLAS with two threads, whatever the machine has; after the test they are still two."""
    with two_blas_threads():
        yield


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


# interrupted

def test_after_an_exception_nobody_takes_up_another_job(use):
    use(2)
    both, done = threading.Barrier(2), []

    def job(number):
        if number < 2:
            both.wait(10)
        if number == 0:
            raise KeyError(number)
        time.sleep(0.05)                                    # the other has failed meanwhile
        done.append(number)

    with pytest.raises(KeyError):
        parallel.run(job, range(20))
    assert done == [1]


def interrupt(*_):
    raise KeyboardInterrupt


@interrupts
def test_an_interrupted_caller_goes_on_without_the_thread_that_it_left_at_work(use):
    use(2)
    both, go = threading.Barrier(2), threading.Event()

    def job(number):
        both.wait(WAIT)
        if threading.current_thread() is not threading.main_thread():
            interrupt_the_main_thread_when_it_waits()
            go.wait(WAIT)

    with pytest.raises(KeyboardInterrupt):
        parallel.run(job, range(2))
    try:
        assert not parallel._team.runs
        assert set(parallel.run(lambda job: threading.get_ident(), range(5))) == {threading.get_ident()}
    finally:
        go.set()
    assert len(set(parallel.run(meet(2), range(2)))) == 2   # it is there again


@interrupts
@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_in_a_job_of_the_caller_is_carried_out(use, count):
    use(count)
    both, done = threading.Barrier(count), []

    def job(number):
        if number < count:
            both.wait(WAIT)
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        parallel.run(job, range(2))
    assert nothing_is_left() and len(done) == count - 1
    assert len(set(parallel.run(meet(count), range(count)))) == count


@pytest.mark.parametrize("count", [1, 2])
def test_blas_has_one_thread_after_a_caller_was_interrupted_before_its_jobs(use, count, blas):
    use(count)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parallel, "_blas", interrupt)
        parallel.run(abs, range(4))
    assert set(parallel.run(lambda job: blas_threads(), range(4))) == {1}


def test_blas_has_its_own_threads_after_a_caller_was_interrupted_while_it_set_them(use, blas):
    class Interrupted:
        """BLAS, the first setting of which Ctrl-C meets."""

        def __init__(self, library):
            self._library, self.numbers = library, []

        def __getattr__(self, name):
            return getattr(self._library, name)

        def set_num_threads(self, number):
            self.numbers.append(number)
            self._library.set_num_threads(number)
            if len(self.numbers) == 1:
                raise KeyboardInterrupt

        _real_set_num_threads = set_num_threads

    use(2)
    libraries = [*map(Interrupted, parallel._blas())]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parallel, "_blas", lambda: libraries)
        parallel.run(abs, range(4))
    assert libraries[0].numbers == [1, 2] and blas_threads() == 2
    assert set(parallel.run(lambda job: blas_threads(), range(4))) == {1}


def test_an_interrupted_caller_leaves_no_jobs_behind(use):
    use(2)
    call, begun, go, left, done = parallel._Team.call, threading.Event(), threading.Event(), [], []

    def call_and_interrupt(team, count):
        call(team, count)
        wait_for(begun)                                     # another thread is at work
        left.extend(team.runs)
        raise KeyboardInterrupt

    def job(number):
        begun.set()
        go.wait(WAIT)
        done.append(number)

    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(parallel._Team, "call", call_and_interrupt)
            parallel.run(job, range(10))
        assert not parallel._team.runs
        assert len(left) == 1 and not left[0].step()        # nor has a thread that had found them before
    finally:
        go.set()
    parallel.run(meet(2), range(2))                         # the other has ended its job
    assert done == [0]


def test_interrupted_callers_leave_no_threads(use):
    use(2)
    parallel.run(abs, range(2))
    before, wait = threading.active_count(), parallel._wait
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(parallel, "_wait", lambda *arguments: (wait(*arguments), interrupt()))
            parallel.run(abs, range(2))
    assert threading.active_count() == before and nothing_is_left()


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


# memory

@pytest.mark.parametrize("fails", [False, True])
def test_what_a_run_referred_to_is_free_when_it_returns(use, fails):
    """Also while another thread still refers to the run."""
    def attempt():
        array, jobs, runs, results = np.ones(10), list(np.ones((2, 10))), [], []

        def job(addend, array=array):
            runs.extend(parallel._team.runs)
            both.wait(WAIT)
            result = addend + array
            results.append(weakref.ref(result))
            if fails:
                raise ZeroDivisionError
            return result

        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            parallel.run(job, jobs)
        return runs, [*map(weakref.ref, [array, *jobs]), *results]

    use(2)
    both = threading.Barrier(2)
    gc.collect()
    gc.disable()
    try:
        runs, seen = attempt()
        assert runs and [s() for s in seen] == [None] * 5
    finally:
        gc.enable()


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


# other processes

OVERLAP = """
import threading
from threadpoolctl import threadpool_info
from minunet import parallel

def blas_threads():
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]

def first(job):
    assert second_in.wait(30)

def second(job):
    second_in.set()
    assert first_out.wait(30)

before = blas_threads()
for _ in range(2):
    second_in, first_out = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: parallel.run(second, range(2)))
    one = threading.Thread(target=lambda: (parallel.run(lambda job: (other.start() if job == 0 else 0, first(job)),
                                                        range(2)), first_out.set()))
    one.start()
    one.join()
    other.join()
print(blas_threads() == before, parallel.run(lambda job: set(blas_threads()), range(2)), blas_threads() == before)
"""


def test_blas_gets_its_threads_back_when_two_callers_overlap():
    """The first caller ends while the second is at work; the second must not keep what it met for the original."""
    assert run_script(OVERLAP) == "True [{1}, {1}] True\n"


FORK = """
import multiprocessing, os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)         # Python 3.12 and later warn of forks beside threads
import numpy as np
from minunet import ConvMatrix, Geometry, parallel

def product(_=None):
    barrier = threading.Barrier(2)
    assert len(set(parallel.run(lambda job: (barrier.wait(30), threading.get_ident())[1], range(2)))) == 2
    A = ConvMatrix(np.ones((3, 3, 8, 8), np.float32), Geometry(3, padding=1), (128, 128))
    return float((A @ np.ones((2, 128, 128, 8), np.float32)).sum())

expected = product()                                        # the pool has its threads
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        os._exit(product() != expected)
    status = os.waitpid(grandchild, 0)[1]
    os._exit(status != 0 or product() != expected)
assert os.waitpid(child, 0)[1] == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(product, range(3)) == [expected] * 3
[child] = parallel.run(lambda job: os.fork(), range(1))     # from within a job
if child == 0:
    os._exit(product() != expected)
assert os.waitpid(child, 0)[1] == 0
assert product() == expected
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    assert run_script(FORK) == "done\n"


def test_an_interpreter_ends_while_the_pool_waits():
    assert run_script("from minunet import parallel; print(parallel.run(abs, [-1, -2, -3]))") == "[1, 2, 3]\n"
