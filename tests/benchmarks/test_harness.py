"""The clocks of the benchmarks, the limits of a machine, and where the benchmarks are found."""

import itertools
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minunet.cli import bench

harness = bench.room("harness")
CPU = harness.CpuTimer()


def test_timing():
    timing = harness.Timing((4.0, 1.0, 2.0, 3.0, 5.0))
    assert (timing.median, timing.best, timing.spread) == (3.0, 1.0, pytest.approx(1 / 3))
    assert timing.disturbed and not harness.Timing((4.0, 2.0, 4.0)).disturbed
    assert timing.as_dict() == {"median_s": 3.0, "spread": pytest.approx(1 / 3), "min_s": 1.0, "max_s": 5.0, "runs": 5}


def test_inputs_take_turns_after_one_warm_run_each():
    seen, timed = [], []

    class Clock:
        def __call__(self, run):
            timed.append(len(seen))
            run()
            return float(len(timed))

        def wait(self):
            seen.append("wait")

    runs = [lambda i=i: seen.append(i) for i in range(3)]
    assert harness.measure(runs, Clock(), seconds=0, least=4).times == (1.0, 2.0, 3.0, 4.0)
    assert seen == [0, 1, 2, "wait", 0, 1, 2, 0]
    assert len(harness.measure(runs, Clock(), seconds=9, least=1, most=7).times) == 7
    assert len(harness.measure([lambda: time.sleep(0.02)], CPU, seconds=0.05, least=1).times) <= 3


def test_rotations_fill_the_cache_twice():
    assert harness.rotations(10 << 20, 32 << 20) == 7
    assert harness.rotations(100 << 20, 32 << 20) == 1 and harness.rotations(1, 32 << 20, most=4) == 4


def test_cpu_timer_measures_the_run_alone():
    assert 0.02 <= CPU(lambda: time.sleep(0.02)) < 0.2
    assert CPU.cache_bytes >= 1 << 15


def test_cuda_timer_keeps_the_gpu_busy_before_its_events(monkeypatch):
    """The order of its calls, with a stand-in for CuPy whose GPU is done early twice."""
    log, early, events = [], [True, True, False, False], itertools.count()

    class Event:
        def __init__(self):
            self.name = ("begin", "end")[next(events) % 2]

        @property
        def done(self):
            log.append(f"ask {self.name}")
            return early.pop(0)

        def record(self):
            log.append(f"record {self.name}")

        def synchronize(self):
            log.append(f"synchronize {self.name}")

    cuda = SimpleNamespace(Device=lambda: SimpleNamespace(attributes={"L2CacheSize": 1 << 20}), Event=Event,
                           get_elapsed_time=lambda begin, end: 2.5)
    buffer = SimpleNamespace(fill=lambda value: log.append("fill"))
    monkeypatch.setattr(harness, "cupy", lambda: SimpleNamespace(cuda=cuda, empty=lambda size, dtype: buffer))
    timer = harness.timer_for("cuda")
    assert timer(lambda: log.append("run")) == timer(lambda: log.append("run")) == 0.0025
    rest = ["record begin", "run", "record end", "ask begin", "synchronize end"]
    assert log == [step for fills in (8, 16, 32, 32) for step in ["fill"] * fills + rest]
    early += [True] * 3             # a run that reads back is waited for: no more are tried
    with pytest.warns(UserWarning, match="the GPU waited for Python"):
        timer(lambda: None)
    assert not early


def test_measured_ceilings(monkeypatch):
    found = harness.measure_ceilings("cpu", ["float32"], quick=True)
    assert 1e8 < found.gemm["float32"] < 1e14 and 1e7 < found.copy < 1e13

    class Clock:
        times = iter([4.0, 2.0, 8.0] * 100)

        def __call__(self, run):
            run()
            return next(self.times)

        def wait(self):
            pass

    monkeypatch.setattr(harness, "measure", lambda runs, timer, seconds: harness.Timing(
        tuple(timer(runs[0]) for _ in range(3))))
    found = harness.measure_ceilings("cpu", ["float32"], quick=True, timer=Clock())
    assert found.gemm["float32"] == 2 * 512**3 / 2.0        # of the fastest
    assert found.copy == 2 * 4 * (4 << 20) / 2.0            # read and written


def test_copy_all_copies_all():
    source = np.arange(1000, dtype=np.float32)
    target = np.zeros_like(source)
    harness.copy_all(source, target, piece=64)
    np.testing.assert_array_equal(target, source)


def test_benchmarks_are_found_from_anywhere(tmp_path):
    code = "from minunet.cli.measuring import room; print(room('kernels').__name__, room('harness').__file__)"
    root = Path(__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); {code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    name, file = done.stdout.split()
    assert name == "minunet.benchmarks.kernels" and file.endswith("benchmarks/harness.py")
