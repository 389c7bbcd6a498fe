"""The arena: memory comes back when the last view is gone, serves arrays of any size, and stays bounded."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from minunet import memory
from minunet.memory import LARGE, Arena

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MIB = 1 << 20
CHUNK = 1 << 21


def address(array):
    return array.ctypes.data


@pytest.fixture(params=[CHUNK, 513 * mmap.PAGESIZE], ids=["chunks of 2 MiB", "odd chunks"])
def arena(request, monkeypatch):
    """The second size does not divide the addresses that systems give: the first chunk begins within the region."""
    monkeypatch.setattr(memory, "CHUNK", request.param)
    return Arena()


@pytest.mark.parametrize("shape, dtype", [
    ((3, 5), "float32"), ((0, 7), "float64"), ((), "int64"), ((300, 400), "float64"), ((LARGE,), "uint8"),
    ((LARGE - 1,), "uint8"), ((2, 64, 64, 16), np.float32), ([300, 400], bool),
    ((np.int16(300), np.int16(300)), "uint8"),
])
def test_an_array_as_numpy_makes_it(arena, shape, dtype):
    other = arena.empty((LARGE + 1,), "uint8")
    array, model = arena.empty(shape, dtype), np.empty(shape, dtype)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype, array.strides) == (model.shape, model.dtype, model.strides)
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    assert (array.base is None) == (array.nbytes < LARGE)
    if array.base is not None:
        assert address(array) % 64 == 0 and address(array) != address(other)


def test_every_byte_is_the_arrays_own(arena):
    """Arrays side by side, some in recycled blocks: what is written into one shows in no other."""
    sizes = [LARGE + 1000 * k for k in range(20)]
    for _ in range(3):
        arrays = [arena.empty((size,), "uint8") for size in sizes]
        for k, array in enumerate(arrays):
            array[...] = k
        assert all((array == k).all() for k, array in enumerate(arrays))
        del arrays[::3], array


def test_objects_and_records_stay_numpys(arena):
    for dtype in (object, [("a", "f8")], "S8"):
        assert arena.empty((LARGE,), dtype).base is None


@pytest.mark.parametrize("shape", [(-4, -100000), (-4, 100000), (1.5, 2), ("a",)])
def test_a_wrong_shape_is_numpys_error_and_takes_nothing(arena, shape):
    with pytest.raises((ValueError, TypeError)):
        arena.empty(shape, "float32")
    assert arena.statistics().used == 0


def test_memory_comes_back_with_the_array(arena):
    array = arena.empty((300, 400), "float32")
    before = address(array)
    assert arena.statistics() == (array.nbytes, array.nbytes, memory.CHUNK)
    del array
    assert arena.statistics() == (0, 480_000, memory.CHUNK)
    assert address(arena.empty((400, 300), "float32")) == before


def test_a_view_keeps_the_memory(arena):
    array = arena.empty((300, 400), "float32")
    view = array[10:].reshape(-1).view(np.int32)[5:].T
    before = address(array)
    del array
    other = arena.empty((300, 400), "float32")
    assert address(other) != before and arena.statistics().used == 960_000
    del view
    assert address(arena.empty((300, 400), "float32")) == before


def test_memory_comes_back_without_the_garbage_collector():
    code = ("import gc; gc.disable()\n"
            "from minunet import memory\n"
            "seen = {memory.empty((300, 400), 'float32').ctypes.data for _ in range(50)}\n"
            "kept = memory.empty((300, 400), 'float32')\n"          # goes as the interpreter exits
            "print(len(seen))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("1", "")


def side_by_side(arena, *sizes):
    """Arrays that lie in this order, and where."""
    arrays = [arena.empty((size,), "uint8") for size in sizes]
    starts = list(map(address, arrays))
    assert np.array_equal(np.diff(starts), sizes[:-1])
    return arrays, starts


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
def test_ranges_that_touch_are_joined_whichever_goes_first(arena, order):
    arrays, starts = side_by_side(arena, *[MIB] * 5)
    for k in order:
        arrays[k] = None
    assert address(arena.empty((3 * MIB,), "uint8")) == starts[1]
    assert address(arena.empty((3 * MIB + 1,), "uint8")) == starts[4] + MIB


def test_an_array_lies_in_the_smallest_free_range_that_it_fits_in(arena):
    arrays, starts = side_by_side(arena, *[k * MIB for k in (4, 1, 2, 1, 3, 1, 2, 1)])
    for k in (0, 2, 4, 6):
        arrays[k] = None
    kept = [arena.empty((size,), "uint8") for size in (2 * MIB, 2 * MIB - 100, MIB, 4 * MIB)]
    assert [address(array) for array in kept] == [starts[2], starts[6], starts[4], starts[0]]
    assert address(arena.empty((2 * MIB,), "uint8")) == starts[4] + MIB         # what the third has left


def bound(statistics, pieces):
    """What may be held: a chunk at either end of each piece of used memory is perhaps used in part only."""
    return statistics.most * (1 + 1 / memory.SLACK) + (2 * pieces + 1) * memory.CHUNK


def test_little_more_is_held_than_was_in_use(arena, monkeypatch):
    """Of 500 arrays of random sizes, at most ten live at one time; no byte of these changes."""
    monkeypatch.setattr(memory, "SLACK", 1000)
    rng = np.random.default_rng(0)
    kept, highest = {}, 0
    for number in range(500):
        if len(kept) == 10 or (kept and rng.random() < 0.4):
            del kept[rng.choice(list(kept))]
        array = arena.empty((int(rng.integers(LARGE, 20 * MIB)),), "uint8")
        array[::1024] = array[-1024:] = number % 256
        kept[number] = array
        found = arena.statistics()
        assert 0 <= found.used - sum(array.nbytes for array in kept.values()) < 64 * len(kept)
        assert found.used <= found.held <= bound(found, len(kept))
        assert found.held == sum(arena._region._held) * memory.CHUNK
        assert all((kept[k][::1024] == k % 256).all() and (kept[k][-1024:] == k % 256).all() for k in kept)
        highest = max(highest, address(array) + array.nbytes)
    assert highest - arena._region.address > bound(found, 0)    # so many addresses were used: pages were given back


def resident():
    """Bytes of this process that are in memory."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        pytest.skip("this system does not tell what is in memory")


def test_what_is_not_held_is_not_in_memory():
    """Two free ranges between arrays that stay: as a larger array takes the place at the end, the last is dropped."""
    arena = Arena()
    arrays, starts = side_by_side(arena, *[k * CHUNK for k in (3, 20, 1, 10, 2)])
    for array in arrays:
        array[...] = 1
    arrays[1] = arrays[3] = array = None
    other = arena.empty((22 * CHUNK,), "uint8")
    before = resident()
    assert arena.statistics() == (28 * CHUNK, 36 * CHUNK, (36 + 1 + 1) * CHUNK)
    other[...] = 1
    assert resident() - before == pytest.approx(22 * CHUNK, abs=3 * CHUNK)
    assert (arrays[0] == 1).all() and (arrays[2] == 1).all() and (arrays[4] == 1).all()
    again = [arena.empty((size * CHUNK,), "uint8") for size in (20, 10)]
    assert [address(array) for array in again] == [starts[1], starts[3]]
    assert [int(array.sum()) // CHUNK for array in again] == [10, 0]        # of 20 chunks too many, 10 and 10 went
    assert arena.statistics().held == (28 + 20 + 10) * CHUNK


def test_release():
    arena = Arena()
    (kept, gone), _ = side_by_side(arena, CHUNK + 100 * 64, 9 * CHUNK)
    kept[...] = gone[...] = 7
    assert arena.release() == 0
    before = resident()
    del gone
    assert arena.release() == 9 * CHUNK             # the rest lies in a chunk with what is kept
    assert arena.statistics() == (kept.nbytes, kept.nbytes, 2 * CHUNK)          # the bound begins anew
    assert before - resident() == pytest.approx(9 * CHUNK, abs=2 * CHUNK)
    assert (kept == 7).all()
    assert arena.release() == 0


@pytest.mark.parametrize("spoil", [
    lambda patch: patch.setattr(mmap, "mmap", unavailable), lambda patch: patch.delattr(mmap, "MAP_ANONYMOUS"),
    lambda patch: patch.setitem(sys.modules, "resource", None),
], ids=["no addresses", "no such memory", "no limits"])
def test_without_a_region_arrays_are_numpys(monkeypatch, spoil):
    spoil(monkeypatch)
    arena = Arena()
    assert arena.empty((LARGE,), "uint8").base is None
    assert arena.statistics() == (0, 0, 0) and arena.release() == 0


def unavailable(*arguments):
    raise OSError("no memory")


def test_a_full_region_leaves_the_rest_to_numpy(monkeypatch):
    monkeypatch.setattr(memory, "_memory_size", lambda: 4 * CHUNK + 5)
    arena = Arena()
    first, second, third = (arena.empty((2 * CHUNK - LARGE,), "uint8") for _ in range(3))
    assert [array.base is None for array in (first, second, third)] == [False, True, True]
    del first
    assert arena.empty((3 * CHUNK,), "uint8").base is not None


def test_a_limit_of_addresses_is_not_used_up():
    pytest.importorskip("resource")
    code = """if True:
        import resource, sys
        import numpy
        size = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        from minunet import memory
        kept = memory.empty((300, 400), "float32"), numpy.empty(size // 4, "uint8")
        print(kept[0].base is not None)"""
    size = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    done = subprocess.run([sys.executable, "-c", code, str(size)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_threads(arena):
    """Eight threads take, fill and drop arrays, some of which another thread drops; none sees another's bytes."""
    wrong: list[int] = []
    handed_over: list[np.ndarray] = []
    interval = sys.getswitchinterval()

    def work(number):
        rng = np.random.default_rng(number)
        for _ in range(1000):
            array = arena.empty((LARGE,), "uint8")
            array[...] = number
            if (array != number).any():
                wrong.append(number)
            if rng.random() < 0.3:
                handed_over.append(array)
            if rng.random() < 0.3 and handed_over:
                try:
                    handed_over.pop()
                except IndexError:
                    pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    sys.setswitchinterval(1e-6)                 # a thread may be stopped at any step of the interpreter
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert arena.statistics().used == LARGE * len(handed_over)
    handed_over.clear()
    assert arena.statistics().used == 0


@pytest.fixture
def amid(arena):
    """amid(f) makes f happen once, amid the arena's next allocation."""
    def arrange(happen):
        def remove(*range):
            del arena._region._remove           # the method of the class is left
            happen()
            arena._region._remove(*range)

        arena._region._remove = remove
    return arrange


@pytest.mark.parametrize("event", ["drops an array", "makes an array", "releases", "asks"])
def test_amid_an_allocation(arena, amid, event):
    """A finalizer or a signal's handler may run in the thread that holds the arena's lock."""
    arrays, made, done = [arena.empty((MIB,), "uint8") for _ in range(3)], [], []
    del arrays[1:]
    arena.statistics()

    def happen():
        if event == "drops an array":
            arrays.clear()
        elif event == "makes an array":
            made.append(arena.empty((MIB,), "uint8"))
            made[0][...] = 1
        else:
            assert arena.release() == 0 if event == "releases" else arena.statistics().most == 3 * MIB

    amid(happen)
    thread = threading.Thread(target=lambda: done.append(arena.empty((MIB,), "uint8")), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and len(done) == 1
    done[0][...] = 2
    assert all((array == 1).all() for array in made)
    assert arena.statistics()[:2] == ((1 + len(arrays)) * MIB, 3 * MIB)
    del done[:]
    arrays.clear()
    assert arena.release() >= 3 * MIB and arena.statistics() == (0, 0, 0)


def test_another_thread_waits_until_an_allocation_is_through(arena, amid):
    made = []
    thread = threading.Thread(target=lambda: made.append(arena.empty((MIB,), "uint8")))

    def happen():
        thread.start()
        thread.join(0.1)

    amid(happen)
    made.append(arena.empty((MIB,), "uint8"))
    thread.join()
    assert address(made[0]) != address(made[1]) and arena.statistics().used == 2 * MIB


def test_an_allocation_that_is_broken_off_spoils_nothing(arena):
    """As by Ctrl-C, in the midst of noting a free range."""
    class Broken(list):
        def insert(self, *arguments):
            raise KeyboardInterrupt

    kept = arena.empty((MIB,), "uint8")
    kept[...] = 1
    arena._region._sizes = Broken(arena._region._sizes)
    with pytest.raises(KeyboardInterrupt):
        arena.empty((MIB,), "uint8")
    others = [arena.empty((MIB,), "uint8") for _ in range(3)]
    for array in others:
        array[...] = 2
    assert (kept == 1).all()
    del kept
    assert arena.statistics().used == 3 * MIB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_other_threads_allocate():
    code = """if True:
        import os, threading
        from minunet import memory

        going = True
        def work():
            while going:
                memory.empty((300, 400), "float32")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        failed = 0
        for _ in range(50):
            child = os.fork()
            if child == 0:
                for _ in range(3):
                    memory.empty((300, 400), "float32")[...] = 1
                os._exit(0)
            failed += os.waitpid(child, 0)[1] != 0
        going = False
        for thread in threads:
            thread.join()
        print(failed)"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True,
                          timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


def test_a_steady_loop_has_no_page_faults():
    resource = pytest.importorskip("resource")

    def step(empty):
        arrays = [empty((MIB * k,), "uint8") for k in (1, 3, 8, 40)]
        for array in arrays:
            array[::4096] = 1

    def faults(empty):
        for _ in range(2):
            step(empty)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            step(empty)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert faults(memory.empty) < 100           # np.empty: 200 where pages of 2 MiB are to be had, else 100,000


# scratch

def test_scratch_is_used_again_and_has_the_shape_and_dtype_asked_for():
    memory.release()
    first = memory.scratch((100, 7), np.float32)
    again = memory.scratch((7, 5), np.dtype(np.float32))
    assert np.shares_memory(first, again)
    assert (first.shape, again.shape, first.dtype) == ((100, 7), (7, 5), np.float32) and again.flags.c_contiguous
    assert not np.shares_memory(first, memory.scratch((100, 7), np.float64))
    assert not np.shares_memory(first, memory.scratch((100, 7), np.float32, "another"))
    assert memory.scratch((), np.float32).shape == () and memory.scratch((0, 3), np.float32).shape == (0, 3)
    larger = memory.scratch((200, 7), np.float32)
    larger[...] = 3
    first[...] = 1                                          # still an array, if an old one
    assert (larger == 3).all() and np.shares_memory(larger, memory.scratch((200, 7), np.float32))


def test_every_thread_has_its_own_scratch_and_all_of_it_is_released():
    both, ended = threading.Barrier(3), threading.Event()
    whole = []

    def work(number):
        mine = memory.scratch((MIB,), np.uint8)
        mine[...] = number
        both.wait(10)                                       # until the other has written into its own
        whole.append(bool((mine == number).all()))
        del mine
        both.wait(10)
        ended.wait(10)                                      # a thread's end would free its scratch, too

    memory.release()
    before = memory.statistics().used
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    both.wait(10)
    both.wait(10)
    held, mine = memory.scratch((2 * MIB,), np.uint8), memory.scratch((3 * MIB,), np.uint8, "mine")
    held[...] = 7
    assert memory.statistics().used - before == 7 * MIB
    del mine
    memory.release()
    assert memory.statistics().used - before == 2 * MIB     # what somebody still has
    assert not np.shares_memory(held, memory.scratch((2 * MIB,), np.uint8)) and (held == 7).all()
    ended.set()
    for thread in threads:
        thread.join()
    assert whole == [True, True]
