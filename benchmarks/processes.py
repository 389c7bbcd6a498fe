"""A process for each side of a comparison: they take turns, and what each takes of memory and cores is its own.

In one process PyTorch's idle threads slow down whoever works beside them, and what one side has allocated counts for
both. What other programs take of the machine meanwhile stands beside the times, so that a disturbed figure shows.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from minunet.cli.measuring import room
from minunet.errors import UserError

_made: list[Any] = []           # in a side's process: the object that it was told to make last


class Side:
    """A process of its own, which works while this one waits. Leaving it by an exception stops its work."""

    def __init__(self) -> None:
        # the new process must know where `minunet.benchmarks` is before it can unpickle a function of it
        self._process = ProcessPoolExecutor(1, get_context("spawn"), initializer=room, initargs=("processes",))
        self.pid: int = self.call(_begin)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments) over there; both must be picklable. Its exception is raised here.

        Raises UserError when the process was killed.
        """
        try:
            return self._process.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise UserError("a process that measured was killed, probably for lack of memory; measure something "
                            "smaller") from None

    def make(self, factory: Callable[..., Any], *arguments: Any) -> Remote:
        """factory(*arguments), made and kept over there until the next one is made."""
        self.call(_make, factory, *arguments)
        return Remote(self)

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: Any) -> None:
        if kind is not None:
            with suppress(ProcessLookupError):      # it was killed
                os.kill(self.pid, signal.SIGTERM)
        self.close()


class Remote:
    """The object that a side has made: its methods, called from here."""

    def __init__(self, side: Side):
        self._side = side

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *arguments: self._side.call(_ask, name, *arguments)


def _begin() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C goes to all; the first process answers for all
    return os.getpid()


def _make(factory: Callable[..., Any], *arguments: Any) -> None:
    _made.clear()                                       # before the next one takes its memory
    _made.append(factory(*arguments))


def _ask(method: str, *arguments: Any) -> Any:
    return getattr(_made[0], method)(*arguments)


# ---- memory

def resident_bytes(peak: bool = False) -> int | None:
    """Of this process's resident set now, or the most since `forget_peak`; None where nobody tells (not on Linux)."""
    return _kibibytes("/proc/self/status", "VmHWM" if peak else "VmRSS")


def forget_peak() -> None:
    """From now on the peak counts anew; where it cannot, it is that since the process began."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def available_bytes() -> int | None:
    """Memory that new work can have without swapping; None where nobody tells."""
    return _kibibytes("/proc/meminfo", "MemAvailable")


def _kibibytes(file: str, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


# ---- cores

class Load:
    """What other programs take of the machine's cores, from `/proc/stat`, less what these processes take."""

    def __init__(self, pids: Iterable[int]):
        self._pids = (os.getpid(), *pids)
        self._last = self._now()

    def others(self) -> float | None:
        """Their share of all cores since the last call, 0 to 1, to about 10 ms of time; None where nobody tells."""
        before, self._last = self._last, self._now()
        if before is None or self._last is None:
            return None
        wall, busy, own = (now - then for now, then in zip(self._last, before))
        return min(1.0, max(0.0, busy - own) / max(wall * (os.cpu_count() or 1), 1e-9))

    def _now(self) -> tuple[float, float, float] | None:
        """Wall clock, and seconds of all cores at work: everybody's, and these processes'."""
        try:
            user, nice, system, _idle, _waiting, *others = map(     # interrupts; stolen by other virtual machines
                int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9])
            own = 0
            for pid in self._pids:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                own += int(fields[11]) + int(fields[12])                # utime, stime
        except OSError:
            return None
        tick = os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), (user + nice + system + sum(others)) / tick, own / tick
