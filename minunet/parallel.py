"""Blocks of work on all cores: threads pull jobs from one list while BLAS is held to one thread each.

NumPy releases the interpreter's lock inside its loops and products, so threads do run side by side. Jobs are cut by
the shapes of arrays alone, never by the number of cores, so results do not depend on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from minunet.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

_local = threading.local()
_holding = threading.Lock()      # held by the caller that has set BLAS's number of threads


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

    with _one_blas_thread():
        others = [_pool(workers - 1).submit(work) for _ in range(workers - 1)]
        work()
        wait(others)
    try:
        if failed:
            raise failed[0]
    finally:
        failed.clear()                          # an exception that this frame refers to would never be freed
    return results


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
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        holding.release()


def scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that this thread uses again at its next call: valid until then."""
    size = int(np.prod(shape))
    key = np.dtype(dtype).char
    buffers = _local.__dict__.setdefault("buffers", {})
    if key not in buffers or buffers[key].size < size:
        buffers[key] = np.empty(size, dtype)
    return buffers[key][:size].reshape(shape)


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@lru_cache(maxsize=1)
def _pool(size: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(size, thread_name_prefix="minunet")


def _after_fork() -> None:
    """A forked process has none of the threads, so nobody will finish their work or release their lock."""
    global _holding
    _pool.cache_clear()
    _holding = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
