"""Blocks of work on all cores: threads take jobs from shared lists, each with one thread of BLAS.

NumPy releases the interpreter's lock inside its loops and products, so threads do run side by side. Jobs are cut by
the shapes of arrays alone, never by the number of cores, so results do not depend on it.

Between two runs all threads but the caller's would have nothing to do, and at the end of each they wait for the last
job. So work whose result is needed much later, as a weight's gradient, can be put aside: `later` gives a promise of its
result, and threads that find no job meanwhile make it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

from threadpoolctl import LibController, ThreadpoolController

from minunet.errors import UserError

TURN = 3e-4         # s, after which a thread that waits for the interpreter insists on it
LOOK = 1e-3         # s, after which a thread that waits for others looks for work again

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Thread(threading.local):
    """What a thread is at: a job (calls from there stay in it), a promise (its runs come second), an `overlap`."""

    in_job = in_promise = False
    promises: list[Promise] | None = None               # made within `overlap`


class _Team:
    """What the threads of this process share. Lists change by single steps of the interpreter, so they need no lock."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []
        self.runs: list[_Run] = []                      # whose jobs have not all been taken
        self.background: list[_Run] = []                # those of promises
        self.promises: deque[Promise] = deque()         # that nobody has begun
        self.settings = _Settings()
        self._making = threading.Lock()

    def call(self, count: int) -> None:
        """Wake so many workers, or make them."""
        if len(self.workers) < count:
            with self._making:                          # each has a number of its own
                while len(self.workers) < count:
                    self.workers.append(_Worker(len(self.workers)))
        for worker in self.workers[:count]:
            worker.wake()


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


def slices(total: int, step: int) -> list[slice]:
    """0 .. total in slices of this step."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def run(function: Callable[[Job], Result], jobs: Sequence[Job]) -> list[Result]:
    """function(job) for every job, in any order; the results in the jobs' order. An exception is raised here.

    A single job, or a call from within a job, runs in the calling thread.
    """
    if _local.in_job:
        return [function(job) for job in jobs]
    helpers = min(threads(), len(jobs)) - 1
    with sharing():
        if helpers <= 0:
            return [function(job) for job in jobs]
        shared, runs = _Run(function, jobs, helpers), _team.background if _local.in_promise else _team.runs
        try:
            runs.append(shared)
            _team.call(helpers)
            while shared.step():
                pass
        finally:
            with suppress(ValueError):
                runs.remove(shared)
            shared.cancel()                             # Ctrl-C: nobody goes on with these jobs
        _wait(shared.finished, _help_in_background)
    return shared.result()


class _Run:
    """Jobs that the caller and some helpers take from one iterator."""

    def __init__(self, function: Callable[[Any], Any], jobs: Sequence[Any], helpers: int):
        self.helpers = helpers
        self.finished = threading.Lock()                # open when the last job has ended
        self.finished.acquire()
        self._function: Any = function
        self._jobs, self._context = jobs, copy_context()
        self._results: list[Any] = [None] * len(jobs)
        self._failed: list[BaseException] = []
        self._waiting = iter(range(len(jobs)))          # advancing it is one step of the interpreter,
        self._ended = count(1)                          # and so is this

    def step(self) -> bool:
        """Do a job, if one is left, in the caller's context: NumPy's errstate belongs to it."""
        for index in self._waiting:
            before, _local.in_job = _local.in_job, True         # whoever takes a promise within a job helps meanwhile
            try:
                self._results[index] = self._context.copy().run(self._function, self._jobs[index])
            except BaseException as error:
                self._failed.append(error)
                self.cancel()                           # nobody takes up another job
            finally:
                _local.in_job = before
                self._end()
            return True
        return False

    def cancel(self) -> None:
        """Leave the jobs that nobody has begun."""
        for _ in self._waiting:
            self._end()

    def result(self) -> list[Any]:
        """All results, once; or the first exception, to which nothing here refers any more: it keeps its frames."""
        try:
            if self._failed:
                raise self._failed[0]
            return self._results
        finally:
            self._failed, self._results = [], []

    def _end(self) -> None:
        if next(self._ended) == len(self._results):
            self._function, self._jobs = None, ()       # a helper may refer to this run for a little longer
            self.finished.release()


class Promise:
    """A result that is made by a thread with nothing else to do, or at the latest when it is taken."""

    def __init__(self, function: Callable[[], Any]):
        self._function: Callable[[], Any] | None = function
        self._context = copy_context()
        self._finished = threading.Lock()
        self._finished.acquire()
        self._result: Any = None
        self._failed: BaseException | None = None
        self._gone = ""

    def take(self) -> Any:
        """The result, once; or the exception that making it has raised.

        Raises RuntimeError for a promise that was taken, or that `overlap` has forgotten.
        """
        if self._gone:
            raise RuntimeError(f"this promise was {self._gone} before; a promise is taken once, within `overlap`")
        self._gone = "taken"
        if self._begin():
            self.make()
        _wait(self._finished, lambda: _help_in_background() or _make_promise())
        try:
            if self._failed is not None:
                raise self._failed
            return self._result
        finally:
            self._result = self._failed = None

    def forget(self) -> None:
        """It is not needed any more; if somebody is making it, they go on."""
        self._gone = self._gone or "forgotten"
        if self._begin():
            self._function = None

    def make(self) -> None:
        """By the thread that has taken it off the list."""
        function, self._function = self._function, None
        assert function is not None
        before, _local.in_promise = _local.in_promise, True
        try:
            self._result = self._context.run(function)
        except BaseException as error:
            self._failed = error
        finally:
            _local.in_promise = before
            del function                                # and all that it refers to, before somebody goes on
            self._finished.release()

    def _begin(self) -> bool:
        """Take it off the list of those that nobody has begun."""
        try:
            _team.promises.remove(self)
        except ValueError:
            return False
        return True


def later(function: Callable[[], Any]) -> Any:
    """Within `overlap`, a `Promise` of function(); elsewhere, and where one thread works alone, function() itself.

    What function reads must stay as it is until the promise is taken.
    """
    if _local.promises is None or _local.in_job or _local.in_promise or threads() == 1:
        return function()
    promise = Promise(function)
    _local.promises.append(promise)
    _team.promises.append(promise)
    _team.call(threads() - 1)
    return promise


def at_once(function: Callable[[], Result]) -> Result:
    """In place of `later`: function()."""
    return function()


@contextmanager
def overlap() -> Iterator[None]:
    """Within it `later` puts work aside. At its end, promises that nobody has taken are forgotten."""
    promises: list[Promise] = []
    before, _local.promises = _local.promises, promises
    with sharing():
        try:
            yield
        finally:
            _local.promises = before
            for promise in promises:
                promise.forget()


class _Worker:
    """A thread that looks for work when its bell rings: a lock, which is open when it has rung."""

    def __init__(self, number: int):
        self._number, self._bell = number, threading.Lock()
        self._bell.acquire()
        threading.Thread(target=self._serve, name=f"minunet_{number}", daemon=True).start()

    def wake(self) -> None:
        """Ring; a worker that is at work looks once more when it has done it."""
        if self._bell.locked():
            with suppress(RuntimeError):                # somebody else has rung just now
                self._bell.release()

    def _serve(self) -> None:
        while True:
            while self._work():
                pass
            self._bell.acquire()

    def _work(self) -> bool:
        """Do a job, first of the runs that somebody waits for, or make a promise; False if there was nothing to do."""
        return any(self._number < run.helpers and run.step()
                   for run in (*_team.runs, *_team.background)) or _make_promise()


def _help_in_background() -> bool:
    """Do a job of a promise's run, if there is one."""
    return any(run.step() for run in (*_team.background,))


def _make_promise() -> bool:
    """Make the first promise that nobody has begun, if there is one."""
    try:
        _team.promises.popleft().make()
    except IndexError:
        return False
    return True


def _wait(finished: threading.Lock, other_work: Callable[[], bool]) -> None:
    """Until the lock is open; meanwhile, do other work: a promise may begin several runs one after the other."""
    while not finished.acquire(blocking=False):
        if not other_work() and finished.acquire(timeout=LOOK):
            return


class _Settings:
    """Of the process: what the first caller within `sharing` has met, and how many callers are within it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._turn = sys.getswitchinterval()
        self._libraries: list[tuple[LibController, int]] = []

    def enter(self) -> None:
        """The first one changes them."""
        with self._lock:
            if self._within == 0:
                self._turn, self._libraries = sys.getswitchinterval(), [(one, one.get_num_threads()) for one in _blas()]
                try:
                    self._change(TURN, [(library, 1) for library, _ in self._libraries])
                except BaseException:                   # Ctrl-C
                    self._change(self._turn, self._libraries)
                    raise
            self._within += 1

    def leave(self) -> None:
        """The last one changes them back."""
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._change(self._turn, self._libraries)

    @staticmethod
    def _change(turn: float, libraries: list[tuple[LibController, int]]) -> None:
        sys.setswitchinterval(turn)
        for library, number in libraries:
            # threadpoolctl's own method ignores all threads but the first that has called it
            getattr(library, "_real_set_num_threads", library.set_num_threads)(number)


class sharing:
    """Within it two settings of the process are those for threads that share work, until the last one has left it.

    BLAS is held to one thread, because its number of threads decides the order of its sums. And a thread that waits for
    the interpreter insists on it after TURN: between NumPy's calls the others have it so shortly that it may miss it
    again and again, until that time is over.

    Changing them takes 3 µs and more: whoever calls `run` several times is within it all the time.
    """

    def __enter__(self) -> None:
        self._settings = _team.settings                 # in a forked process another's
        self._settings.enter()

    def __exit__(self, *exception: Any) -> None:
        self._settings.leave()


@lru_cache(maxsize=1)
def _blas() -> list[LibController]:
    """The BLAS libraries of this process. (threadpoolctl's own context manager takes 13 µs, this 3.)"""
    return ThreadpoolController().select(user_api="blas").lib_controllers


_local = _Thread()
_team = _Team()


def _after_fork() -> None:
    """A forked process has none of the threads, so nobody will finish their work or release their lock."""
    global _local, _team
    promises = _team.promises
    _local, _team = _Thread(), _Team()              # the copy may have been made within a job
    _team.promises = promises                       # whoever has been promised something takes it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
