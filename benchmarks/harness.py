"""What every benchmark here shares: honest times, and the limits of the machine, measured in the same run.

A time alone says little. The work behind it is f floating-point operations and, at the least, b bytes: each array read
or written once. No program does it faster than

    max(f / peak, b / bandwidth) s

with the peak of the machine's fastest matrix product and the bandwidth of its fastest copy, both measured here, in the
same run. That time over the measured one is the share of the limit. Which of the two terms is larger depends on f / b,
the arithmetic intensity; the picture of it is the roofline (show.py).
"""

from __future__ import annotations

import gc
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from minunet import parallel
from minunet.backend import cupy, module_of

# ---- time


class Timer(Protocol):
    """Times one run on its device."""

    cache_bytes: int                # of the device's last cache

    def __call__(self, run: Callable[[], Any]) -> float:
        """Seconds that a run takes."""

    def wait(self) -> None:
        """Until the device has done all that it was given."""


class CpuTimer:
    """The wall clock around the run."""

    def __init__(self) -> None:
        self.cache_bytes = cpu_cache_bytes()

    def __call__(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - start
        del result                  # freed after the clock has stopped, for every side alike
        return seconds

    def wait(self) -> None:
        """A CPU is done when the call returns."""


class WallTimer(CpuTimer):
    """The wall clock around the run, until `wait` says that the device has done it: with what Python takes for it."""

    def __init__(self, wait: Callable[[], None]):
        super().__init__()
        self.wait = wait            # type: ignore[method-assign]

    def __call__(self, run: Callable[[], Any]) -> float:
        self.wait()

        def waited() -> Any:
            result = run()
            self.wait()
            return result

        return super().__call__(waited)


class CudaTimer:
    """Two device events around the run.

    Before them the GPU fills a buffer larger than its cache, several times: that empties the cache, and keeps the GPU
    busy while Python prepares the launches, so that what is timed is the GPU and not Python. Where the GPU was done
    with them before Python was, the run is timed again behind twice as many.
    """

    FILLS, MOST = 8, 128

    def __init__(self) -> None:
        self._fills = self.FILLS
        self.cache_bytes = int(cupy().cuda.Device().attributes["L2CacheSize"])
        self._buffer = cupy().empty(max(4 * self.cache_bytes, 256 << 20), np.uint8)

    def __call__(self, run: Callable[[], Any]) -> float:
        begin, end = cupy().cuda.Event(), cupy().cuda.Event()
        while True:
            for _ in range(self._fills):
                self._buffer.fill(0)
            begin.record()
            run()
            end.record()
            late = begin.done
            end.synchronize()
            if not late:
                break
            if self._fills >= self.MOST:
                self._fills = self.FILLS
                warnings.warn("the GPU waited for Python in a run that is timed: what it takes is Python's time",
                              stacklevel=3)
                break
            self._fills *= 2
        return cupy().cuda.get_elapsed_time(begin, end) / 1e3       # from ms

    def wait(self) -> None:
        """Until the current stream is empty."""
        cupy().cuda.get_current_stream().synchronize()


def timer_for(device: str) -> Timer:
    """The timer of cpu or cuda."""
    return CudaTimer() if device == "cuda" else CpuTimer()


@dataclass(frozen=True)
class Timing:
    """The times of repeated runs, in seconds."""

    times: tuple[float, ...]

    @cached_property
    def median(self) -> float:
        """The time that half of the runs stay below."""
        return float(np.median(self.times))

    @property
    def best(self) -> float:
        """The shortest time."""
        return min(self.times)

    @cached_property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median: half of the runs lie within ± this."""
        low, high = np.percentile(self.times, (25, 75))
        return float(high - low) / 2 / self.median

    @property
    def disturbed(self) -> bool:
        """Whether most runs took more than twice the shortest: something else ran beside them."""
        return self.median > 2 * self.best

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"median_s": self.median, "spread": self.spread, "min_s": self.best, "max_s": max(self.times),
                "runs": len(self.times)}


def measure(runs: Sequence[Callable[[], Any]], timer: Timer, seconds: float = 0.3, least: int = 5,
            most: int = 200) -> Timing:
    """Run them in turn, each with inputs of its own: once to warm up, then timed, until `seconds` are over.

    At least `least` and at most `most` times are taken.
    """
    for run in runs:
        run()
    timer.wait()
    times: list[float] = []
    start = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(times) < least or (len(times) < most and time.perf_counter() - start < seconds):
            times.append(timer(runs[len(times) % len(runs)]))
    finally:
        if collecting:
            gc.enable()
    return Timing(tuple(times))


def rotations(nbytes: int, cache_bytes: int, most: int = 256) -> int:
    """How many sets of inputs of this size to take in turn, so that none is still in the cache when it comes again."""
    return max(1, min(most, math.ceil(2 * cache_bytes / max(nbytes, 1))))


def first_call(run: Callable[[], Any], timer: Timer) -> tuple[Any, float]:
    """The result of the first run and its seconds by the wall clock: on a GPU it compiles the kernels."""
    start = time.perf_counter()
    result = run()
    timer.wait()
    return result, time.perf_counter() - start


# ---- limits

@dataclass(frozen=True)
class Ceilings:
    """What a device was measured to do at best: FLOP/s of a large matrix product, bytes/s of a large copy.

    Of its repeats the fastest counts: the others were disturbed.
    """

    copy: float                     # bytes read plus bytes written, a second
    gemm: Mapping[str, float]       # by precision

    def seconds(self, flop: int, nbytes: int, precision: str = "float32") -> float:
        """The least time that this work can take."""
        return max(flop / self.gemm[precision], nbytes / self.copy)

    def rate(self, flop: int, nbytes: int, precision: str = "float32") -> float:
        """The roof over this work, in FLOP/s: min(peak, intensity · bandwidth)."""
        return flop / self.seconds(flop, nbytes, precision)

    def raised(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements of each."""
        return Ceilings(max(self.copy, other.copy),
                        {precision: max(rate, other.gemm.get(precision, 0.0)) for precision, rate in self.gemm.items()})

    def bound(self, flop: int, nbytes: int, precision: str = "float32") -> str:
        """What the limit is made of: "arithmetic" or "memory"."""
        return "arithmetic" if flop / self.gemm[precision] >= nbytes / self.copy else "memory"


def measure_ceilings(device: str, precisions: Sequence[str] = ("float32",), quick: bool = False,
                     timer: Timer | None = None) -> Ceilings:
    """Both limits of cpu or cuda, by the array library."""
    xp, timer = module_of(device), timer or timer_for(device)
    seconds = 0.1 if quick else 0.5
    n = (512 if quick else 2048) if device == "cpu" else 8192
    rng = np.random.default_rng(0)                          # zeros could be multiplied faster than numbers
    a, b = (xp.asarray(rng.standard_normal((n, n), np.float32)) for _ in range(2))
    gemm = {}
    for precision in precisions:
        with threadpool_limits(parallel.threads(), "blas"), gemm_precision(device, precision):
            gemm[precision] = 2 * n**3 / measure([lambda: xp.matmul(a, b)], timer, seconds).best
    source = xp.ones(((4 if quick else 64) << 20) if device == "cpu" else 256 << 20, np.float32)
    target = xp.empty_like(source)
    copy = measure([lambda: copy_all(source, target)], timer, seconds)
    return Ceilings(2 * source.nbytes / copy.best, gemm)


def copy_all(source: Any, target: Any, piece: int = 1 << 20) -> None:
    """source -> target, on a CPU by all cores; one alone may not fill the memory's bandwidth."""
    if isinstance(source, np.ndarray):
        starts = range(0, len(source), piece)
        parallel.run(lambda start: np.copyto(target[start:start + piece], source[start:start + piece]), starts)
    else:
        target[...] = source


@contextmanager
def gemm_precision(device: str, precision: str) -> Iterator[None]:
    """How the array library multiplies float32 numbers: CuPy may round them to TF32 or BF16, on tensor cores."""
    if device != "cuda" or precision == "float32":
        yield
        return
    from cupy._core import _routines_linalg as routines

    before = routines.get_compute_type(np.float32)
    routines.set_compute_type(np.float32, {"bf16": 6, "tf32": 7}[precision])    # COMPUTE_TYPE_BF16, COMPUTE_TYPE_TF32
    try:
        yield
    finally:
        routines.set_compute_type(np.float32, before)


# ---- the machine

def cpu_cache_bytes() -> int:
    """Of the largest cache, as Linux tells it; 32 MiB where nobody does."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    found = [int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes if re.fullmatch(r"\d+[KM]", size)]
    return max(found, default=32 << 20)


def machine(device: str, others: Sequence[str] = ()) -> dict[str, Any]:
    """What the figures depend on: processor, threads, versions; on cuda the GPU and its driver."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        cpuinfo = ""
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    pools = [info for info in threadpool_info() if info["user_api"] == "blas"]
    own = [info for info in pools if "numpy" in info["filepath"]]       # SciPy brings one too
    # with the processor that its kernels are written for, which may not be this one
    blas = {" ".join(str(info[key]) for key in ("internal_api", "version", "architecture") if info.get(key))
            for info in own or pools}
    found: dict[str, Any] = {
        "processor": model[1] if model else platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": parallel.threads(), "system": platform.platform(terse=True), "python": platform.python_version(),
        "blas": ", ".join(sorted(blas))}
    if device == "cuda":
        properties = cupy().cuda.runtime.getDeviceProperties(cupy().cuda.Device().id)
        found |= {"gpu": properties["name"].decode(), "compute_capability": cupy().cuda.Device().compute_capability,
                  "gpu_memory_bytes": int(properties["totalGlobalMem"]), "driver": driver_version(),
                  "driver_cuda": cupy().cuda.runtime.driverGetVersion(),
                  "runtime_cuda": cupy().cuda.runtime.runtimeGetVersion(), "cupy": cupy().__version__}
    for name in ("minunet", "numpy", *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def driver_version() -> str | None:
    """Of the NVIDIA driver, as the Linux driver tells it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", text)
    return match[0] if match else None


def machine_words(found: Mapping[str, Any]) -> str:
    """The machine in one or two lines."""
    lines = [f"{found['processor']}, {found['threads']} of {found['cores']} cores; {found['system']}; Python "
             f"{found['python']}, NumPy {found['numpy']} ({found['blas'] or 'BLAS unknown'})"
             + (f", PyTorch {found['torch']}" if found.get("torch") else "")]
    if "gpu" in found:
        lines.append(f"{found['gpu']} (compute capability {found['compute_capability']}), driver {found['driver']}, "
                     f"CUDA {found['runtime_cuda']}, CuPy {found['cupy']}")
    return "\n".join(lines)
