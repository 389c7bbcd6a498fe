"""Runs that fail or are interrupted, and what they leave: no jobs, no threads, no memory."""

import gc
import signal
import threading
import time
import weakref
from contextlib import nullcontext

import numpy as np
import pytest

from minunet import parallel
from tests.parallel.workers import (
    WAIT,
    blas_threads,
    interrupt_the_main_thread_when_it_waits,
    interrupts,
    meet,
    nothing_is_left,
    wait_for,
)


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
