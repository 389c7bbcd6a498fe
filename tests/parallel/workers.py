"""Tests of threads that do not depend on time: all workers kept busy, Ctrl-C while the main thread waits, BLAS."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minunet import parallel

ROOT = Path(__file__).parents[2]
WAIT = 30           # s, for what comes in any case

MAKERS = pytest.mark.parametrize("maker", ["taker", "other"])
interrupts = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system cannot interrupt a thread")


def meet(parties):
    """A job that ends when as many threads as parties are at work, each in a job."""
    barrier = threading.Barrier(parties)
    return lambda job: (barrier.wait(WAIT), threading.get_ident())[1]


def wait_for(event):
    assert event.wait(WAIT)


@contextmanager
def all_busy(least=1):
    """All workers that there are, and at least so many, make promises until the end, or until `release(count)`.

    So many threads are set that each of them may join every run that has a job for it.
    """
    count = max(least, len(parallel._team.workers))
    begun, gate = threading.Barrier(count + 1), threading.Semaphore(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINUNET_NUM_THREADS", str(count + 1))
        with parallel.overlap():
            for _ in range(count):
                parallel.later(lambda: (begun.wait(WAIT), gate.acquire(timeout=WAIT)))
            begun.wait(WAIT)
            try:
                yield gate.release
            finally:
                gate.release(count)


@contextmanager
def promised(function, maker):
    """A promise that another thread has begun, or that nobody but the taker can make."""
    with all_busy() as release:
        begun = threading.Event()
        promise = parallel.later(partial(begin_and_do, begun, function))
        del function                                        # the promise alone refers to it
        if maker == "other":
            release(1)
            wait_for(begun)
        yield promise


def begin_and_do(begun, function):
    """What function returns, after telling that it has begun."""
    begun.set()
    return function()


def nothing_is_left():
    """Whether, when the workers have ended what they are at, no list holds a run or a promise."""
    with all_busy():
        pass
    team, local = parallel._team, parallel._local
    return not (team.runs or team.background or team.promises or local.promises or local.in_job or local.in_promise)


def interrupt_the_main_thread_when_it_waits():
    """Ctrl-C, once the main thread waits at the end of a run or for a promise.

    And again: Python does not notice a signal that comes just before the system puts the thread to sleep.
    """
    main = threading.main_thread().ident
    _until(lambda: _waits(main))
    for _ in range(WAIT):
        signal.pthread_kill(main, signal.SIGINT)
        with suppress(AssertionError):
            return _until(lambda: not _waits(main), 1)


def _until(condition, seconds=WAIT):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def _waits(thread):
    return parallel._wait.__code__ in _codes(sys._current_frames()[thread])


def _codes(frame):
    """The functions that a thread is in."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def blas_threads():
    return max(info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas")


@contextmanager
def two_blas_threads():
    """BLAS with two threads, whatever the machine has; at the end they are still two, and threads' turns as long."""
    turn = sys.getswitchinterval()
    sys.setswitchinterval(0.002)
    try:
        with threadpool_limits(2, "blas"):
            if blas_threads() != 2:
                pytest.skip("this BLAS has no two threads")
            yield
            assert (blas_threads(), round(sys.getswitchinterval(), 6)) == (2, 0.002)
    finally:
        sys.setswitchinterval(turn)


def run_script(code):
    """What a fresh interpreter prints, with two threads for jobs and two for BLAS."""
    environment = {**os.environ, "MINUNET_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout
