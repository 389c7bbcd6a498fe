"""How a recording uses CuPy, on a stand-in: the order of copies and launches, and what happens where it fails."""

import sys
import types

import numpy as np
import pytest

from minunet import backend, replay, tape
from minunet.replay import Recording, fresh
from minunet.tape import NotRecordable
from tests.asynchronous import CuPy

SEEDS = range(40)


@pytest.fixture
def gpu(monkeypatch):
    """Makes a CuPy of a seed, which is then that of minunet."""
    def make(seed=0):
        fake = CuPy(seed)
        for module in (backend, replay):
            monkeypatch.setattr(module, "cupy", lambda: fake)
        cupyx = types.ModuleType("cupyx")
        cupyx.empty_pinned = fake.empty_pinned
        monkeypatch.setitem(sys.modules, "cupyx", cupyx)
        return fake
    return make


def batches(count):
    rng = np.random.default_rng(0)
    return [(rng.random((3, 2)), np.array([number], np.int32)) for number in range(count)]


def replayed(inputs):
    """For each of these inputs x + 2 y + a fresh number; all are read at the end."""
    drawn = iter(range(100, 200))

    def function(x, y):
        return x + (y * 2) + fresh(lambda: np.array([next(drawn)], np.int32), "cuda")

    recording, found = None, []
    for batch in inputs:
        if recording is None:
            recording = Recording(function, batch, "cuda")
        else:
            assert recording.replay(*batch) is recording.results
        found.append(recording.results.copy())
    return [result.get() for result in found]


def right(found, inputs):
    return all(np.array_equal(y, x + 2 * number + 100 + i) for i, (y, (x, number)) in enumerate(zip(found, inputs)))


@pytest.mark.parametrize("seed", SEEDS)
def test_however_late_the_gpu_is_each_replay_gets_its_own_inputs(gpu, seed):
    gpu(seed)
    inputs = batches(7)
    assert right(replayed(inputs), inputs)


@pytest.mark.parametrize("kind, method", [("Event", "synchronize"), ("Stream", "wait_event"), ("Stream", "record")])
def test_each_wait_is_needed(gpu, monkeypatch, kind, method):
    """Without it, some order of the streams' work gives some replay other inputs. Of waits and records all are left
    out, or those of one event: each is missed."""
    inputs = batches(7)

    def fails(skip):
        for seed in SEEDS:
            fake = gpu(seed)
            cls = getattr(fake.cuda, kind)
            original = getattr(cls, method)

            def patched(self, *arguments, original=original):
                if not skip(self, fake):
                    original(self, *arguments)
            setattr(cls, method, patched)
            if not right(replayed(inputs), inputs):
                return True
        return False

    if kind == "Event":
        assert fails(lambda self, fake: True)
    else:
        assert fails(lambda self, fake: self.null) and fails(lambda self, fake: not self.null)


def test_arrays_on_the_gpu_are_copied_there(gpu):
    fake = gpu()
    x = np.arange(3.0)
    recording = Recording(lambda x: x * 2, [fake.array(x)], "cuda")
    first = recording.results.copy()
    second = recording.replay(fake.array(x + 1)).copy()
    np.testing.assert_array_equal([first.get(), second.get()], [2 * x, 2 * x + 2])


def test_a_capture_computes_nothing_and_frees_first(gpu, monkeypatch):
    fake = gpu()
    monkeypatch.setattr(replay.gc, "collect", lambda: fake.gpu.log.append("collect"))
    recording = Recording(lambda x: x * 2, [np.ones(2)], "cuda")
    assert fake.gpu.log == ["free", "collect", "begin", "end", "launch"]
    recording.replay(np.ones(2))
    assert fake.gpu.log[5:] == ["launch"] and fake.allocator is None and len(fake.gpu.current) == 1


def test_a_recordings_memory_is_told_and_goes_with_its_last_array(gpu):
    fake = gpu()

    def function(x):
        between = x * 2
        return between + fake.empty((2,), np.float64)

    recording = Recording(function, [np.ones(2)], "cuda")
    assert recording.nbytes == fake.live_bytes() == 48
    results = recording.results
    del recording
    assert fake.live_bytes() >= 16
    del results
    assert fake.live_bytes() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_memory_that_pending_work_still_uses_is_not_written_before(gpu, seed):
    """The arrays that inputs arrive in were another's a moment ago."""
    fake, inputs = gpu(seed), batches(3)
    for x, y in inputs:                         # as in the call before, launch by launch
        fake.array(x) * 0, fake.array(y) * 0
    assert right(replayed(inputs), inputs)


@pytest.mark.parametrize("seed", SEEDS)
def test_pinned_memory_is_nobody_elses_while_it_is_copied(gpu, seed):
    fake, x = gpu(seed), np.ones(3)
    recording = Recording(lambda x: x * 2, [x], "cuda")
    found = [recording.replay(number * x).copy() for number in (5, 6, 7)]
    del recording
    for _ in range(4):
        fake.empty_pinned((3,), float)[...] = -1
    assert [result.get().tolist() for result in found] == [[10] * 3, [12] * 3, [14] * 3]


def test_memory_comes_from_a_pool_that_gives_nothing_back(gpu):
    """CUDA's own error would let the pool free blocks that the graph uses; ours passes through it."""
    fake = gpu()
    with pytest.raises(MemoryError, match="the GPU has no 8000 bytes for what is recorded .cudaErrorMemoryAllocation"):
        Recording(lambda x: fake.empty((1000,), np.float64), [np.ones(2)], "cuda")
    assert fake.gpu.log == ["free", "begin", "end"] and len(fake.gpu.current) == 1


def test_other_shapes_than_the_recorded_ones_are_refused(gpu):
    gpu()
    recording = Recording(lambda x: x * 2, [np.ones(2)], "cuda")
    for wrong in (np.ones(1), np.ones(2, np.float32), np.ones((2, 1))):
        with pytest.raises(ValueError, match="replay: the inputs must be as they were recorded"):
            recording.replay(wrong)
    with pytest.raises(ValueError, match="got "):
        recording.replay(np.ones(2), np.ones(2))


def test_an_error_within_a_capture_comes_out_and_the_capture_is_ended(gpu):
    fake = gpu()

    def function(x):
        fake.gpu.current[-1].broken = True
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        Recording(function, [np.ones(2)], "cuda")
    assert fake.gpu.log == ["free", "begin", "end"] and not tape.is_recording()
    assert Recording(lambda x: x * 2, [np.ones(2)], "cuda").results.get().tolist() == [2, 2]


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, "CUDARuntimeError", None])
def test_what_cupy_refuses_within_a_capture_is_not_recordable(gpu, error):
    """By its own errors, by Python's, or in the end."""
    fake = gpu()

    def function(x):
        fake.gpu.current[-1].broken = True
        if error:
            raise (getattr(fake.cuda.runtime, error) if isinstance(error, str) else error)("not while it captures")
        return x * 2

    with pytest.raises(NotRecordable, match="CuPy: not while it captures" if error else
                       "CuPy: the capture was broken off"):
        Recording(function, [np.ones(2)], "cuda")
    assert fake.gpu.log == ["free", "begin", "end"] and len(fake.gpu.current) == 1 and fake.allocator is None


def test_nothing_is_brought_within_a_capture(gpu):
    gpu()
    with pytest.raises(NotRecordable, match="cannot be brought to the device"):
        Recording(lambda x: x + backend.to_device(np.ones(2), "cuda"), [np.ones(2)], "cuda")
