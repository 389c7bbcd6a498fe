"""Blocks of work on all cores: threads pull jobs from one list while BLAS is held to one thread each.

NumPy releases the interpreter's lock inside its loops and products, so threads do run side by side. Jobs are cut by
the shapes of arrays alone, never by the number of cores, so results do not depend on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import lru_cache, partial
from typing import Any, TypeVar

from threadpoolctl import LibController, ThreadpoolController

from minunet.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

_local = threading.local()
_holding = threading.Lock()      # held by the caller that has set BLAS's number of threads
_team: tuple[threading.Lock, list[_Worker]] = threading.Lock(), []      # held by the caller that has them at work


def threads() -> int:
    """How many threads work: MINUNET_NUM_THREADS, or the cores that this process may use.

    Raises UserError when the variable holds something else than a whole number of at least 1.
    """
    wanted = os.environ.get("MINUNET_NUM_THREADS", "").strip()
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise UserError(f"MINUNET_NUM_THREADS must be a whole number of at least 1, or not set; got {wanted!r}")
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(function: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """function(job) for every job, in any order; the results in the jobs' order. An exception is raised here.

    A single job, or a call from within a job, runs in the calling thread.
    """
    if getattr(_local, "inside", False):
        return [function(job) for job in jobs]
    workers = min(threads(), len(jobs))
    if workers <= 1:
        with _one_blas_thread():
            return [function(job) for job in jobs]
    results: list[Any] = [None] * len(jobs)
    failed: list[BaseException] = []
    waiting = iter(range(len(jobs)))            # advancing it is one step of the interpreter, so threads may share it

    def work() -> None:
        _local.inside = True
        try:
            for index in waiting:
                results[index] = function(jobs[index])
        except BaseException as error:
            failed.append(error)
            for index in waiting:               # nobody takes up another job
                pass
        finally:
            _local.inside = False

    with _one_blas_thread(), _others(workers - 1) as others:
        try:
            for other in others:                # in the caller's context: NumPy's errstate belongs to it
                other.begin(partial(copy_context().run, work))
            work()
            for other in others:
                other.wait()
        finally:
            for index in waiting:               # Ctrl-C: nobody goes on with these jobs
                pass
    try:
        if failed:
            raise failed[0]
    finally:
        failed.clear()                          # an exception that this frame refers to would never be freed
    return results


def slices(total: int, step: int) -> list[slice]:
    """0 .. total in slices of this step."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


class _Worker:
    """A thread that waits for work: two locks hand it over, in half the time that a pool of futures takes."""

    def __init__(self, number: int):
        self._begun, self._ended = threading.Lock(), threading.Lock()
        self._begun.acquire()
        self._ended.acquire()
        self._work: Callable[[], None] | None = None
        self._dismissed = False
        threading.Thread(target=self._serve, name=f"minunet_{number}", daemon=True).start()

    def begin(self, work: Callable[[], None]) -> None:
        """Let it do this work, which must not raise."""
        self._work = work
        self._begun.release()

    def wait(self) -> None:
        """Until the work is done."""
        self._ended.acquire()

    def dismiss(self) -> None:
        """Let its thread end, after its work if it has some."""
        self._dismissed = True
        with suppress(RuntimeError):            # it has yet to begin
            self._begun.release()

    def _serve(self) -> None:
        while True:
            self._begun.acquire()
            work, self._work = self._work, None
            if work is not None:
                work()
            del work                            # and all that it refers to, before its caller goes on
            if self._dismissed:
                return
            self._ended.release()


@contextmanager
def _others(count: int) -> Iterator[list[_Worker]]:
    """So many workers, or none while another caller has them."""
    lock, workers = _team
    if not lock.acquire(blocking=False):
        yield []
        return
    try:
        while len(workers) < count:
            workers.append(_Worker(len(workers)))
        yield workers[:count]
    except BaseException:                       # Ctrl-C while they were at work: nobody knows who has ended
        for worker in workers:
            worker.dismiss()
        workers.clear()
        raise
    finally:
        lock.release()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """BLAS is held to one thread: its number of threads decides the order of its sums.

    That number belongs to the whole process. While one caller holds it, callers from other threads leave it alone: if
    each restored what it had met, BLAS could stay at one thread.
    """
    holding = _holding
    if not holding.acquire(blocking=False):
        yield
        return
    libraries: list[tuple[LibController, int]] = []
    try:
        libraries = [(library, library.get_num_threads()) for library in _blas()]
        for library, _ in libraries:
            library.set_num_threads(1)
        yield
    finally:
        try:
            for library, before in libraries:
                library.set_num_threads(before)
        finally:
            holding.release()


@lru_cache(maxsize=1)
def _blas() -> list[LibController]:
    """The BLAS libraries of this process. (threadpoolctl's own context manager takes 13 µs, this 3.)"""
    return ThreadpoolController().select(user_api="blas").lib_controllers


def _after_fork() -> None:
    """A forked process has none of the threads, so nobody will finish their work or release their lock."""
    global _holding, _team
    _holding, _team = threading.Lock(), (threading.Lock(), [])
    _local.inside = False                       # the copy may have been made within a job


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
