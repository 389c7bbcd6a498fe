"""Forks, and interpreters that end while threads wait or work."""

import os

import pytest

from tests.parallel.workers import (
    run_script,
)

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


FORK = """
import os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)         # Python 3.12 and later warn of forks beside threads
from threadpoolctl import threadpool_info
from minunet import parallel

def blas_threads():
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]

before = blas_threads()
os.register_at_fork(after_in_child=lambda: signal.alarm(60))        # a child that waits for ever ends

def work():
    outside = blas_threads()
    with parallel.overlap():
        begun = threading.Event()
        promise = parallel.later(lambda: (begun.set(), parallel.run(abs, [-1, -2, -3]))[1])
        assert begun.wait(30) and promise.take() == [1, 2, 3] and set(blas_threads()) == {1}
    return blas_threads() == outside

def child_ends_well(child):
    if child == 0:
        os._exit(not (parallel.later(lambda: 7) == 7 and work()))
    return os.waitpid(child, 0)[1] == 0

assert work()
assert child_ends_well(os.fork())
with parallel.overlap():
    begun, go = threading.Event(), threading.Event()
    first = parallel.later(lambda: (begun.set(), go.wait(30)))
    assert begun.wait(30)
    second = parallel.later(lambda: child_ends_well(os.fork()))     # made by the taker
    third = parallel.later(lambda: 3)
    assert child_ends_well(os.fork())                       # beside promises that others make or nobody has begun
    child = os.fork()
    assert third.take() == 3                                # in both processes, which then leave `overlap`
    if child:
        assert second.take()
        go.set()
        first.take()
assert blas_threads() == before
if child == 0:
    os._exit(not work())
assert os.waitpid(child, 0)[1] == 0
assert work() and child_ends_well(os.fork())
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_promises_of_its_own():
    assert run_script(FORK) == "done\n"


def test_an_interpreter_ends_while_a_promise_is_made():
    assert run_script("""
import threading
from minunet import parallel

begun = threading.Event()
with parallel.overlap():
    parallel.later(lambda: (begun.set(), threading.Event().wait(60)))
    parallel.later(lambda: print("forgotten"))
    print(begun.wait(30))
""") == "True\n"
