"""A process for each side: what goes there and comes back, what it takes of memory and cores, how it ends."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minunet.cli.measuring import room
from minunet.errors import UserError

harness, layers, processes = map(room, ("harness", "layers", "processes"))
MIB = 1 << 20
LINUX = pytest.mark.skipif(processes.resident_bytes() is None, reason="nobody tells, as Linux does")


class Holder:
    """An object to be made over there; functions of tests are found there by their module's name."""

    def __init__(self, number):
        self.number = number

    def plus(self, other):
        return self.number + other, os.getpid()


def held_and_peak(nbytes):
    """Of a process that takes memory and gives it back."""
    processes.forget_peak()
    before = processes.resident_bytes()
    array = np.ones(nbytes, np.uint8)
    held = processes.resident_bytes() - before
    del array
    return held, processes.resident_bytes(peak=True) - before, processes.resident_bytes() - before


def busy(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_an_object_lives_over_there_until_the_next():
    with processes.Side() as side:
        held = side.make(Holder, 3)
        assert held.plus(4) == (7, side.pid) and side.pid != os.getpid()
        side.make(Holder, 10)
        assert held.plus(4)[0] == 14
        with pytest.raises(TypeError):
            held.plus("a")
        assert held.plus(1)[0] == 11            # an exception does not end it


def test_a_killed_process_is_an_error_for_people():
    with pytest.raises(UserError, match="killed, probably for lack of memory"), processes.Side() as side:
        side.call(os.kill, side.pid, signal.SIGKILL)


def test_an_exception_does_not_wait_for_the_work():
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), processes.Side() as side:
        side._process.submit(time.sleep, 60)
        raise KeyboardInterrupt
    assert time.perf_counter() - start < 30


@LINUX
def test_memory_held_and_at_most_held():
    with processes.Side() as side:
        held, peak, after = side.call(held_and_peak, 64 * MIB)
        assert 60 * MIB < held < 80 * MIB and 60 * MIB < peak < 80 * MIB and after < 16 * MIB
        assert side.call(held_and_peak, 4 * MIB)[1] < 40 * MIB      # what was before forget_peak counts no more


@LINUX
def test_load_of_others():
    """A process of one's own is none of the others; one that is not is."""
    with processes.Side() as side:
        mine, strange = processes.Load([side.pid]), processes.Load([])
        side.call(busy, 0.5)
        ours, others = mine.others(), strange.others()
        assert 0 <= ours <= others <= 1
        assert others - ours > 0.2 / os.cpu_count()


def test_load_where_nobody_tells(monkeypatch):
    load = processes.Load([2**30])
    assert load.others() is None
    monkeypatch.setattr(processes, "_kibibytes", lambda file, name: None)
    assert processes.available_bytes() is None and processes.resident_bytes() is None


def test_load_by_hand(monkeypatch):
    """Two cores for 10 s, 12 s of them busy, 5 s of those one's own: others took 7 of 20."""
    now = iter([(100.0, 50.0, 8.0), (110.0, 62.0, 13.0), (111.0, 62.0, 14.0)])
    monkeypatch.setattr(processes.Load, "_now", lambda self: next(now))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    load = processes.Load([])
    assert load.others() == pytest.approx(0.35)
    assert load.others() == 0.0                 # ticks are coarse: never below none


@LINUX
def test_ctrl_c_is_one_sentence(tmp_path):
    """A terminal sends it to the group of processes, and so to one at work for another and to one that waits."""
    code = ("import sys, time; from minunet.cli import bench, main; from minunet.cli.measuring import room\n"
            "def work(*_):\n"
            "    Side = room('processes').Side\n"
            "    with Side(), Side() as side:\n"
            "        print('ready', flush=True)\n"
            "        side.call(time.sleep, 60)\n"
            "if __name__ == '__main__':\n"
            "    room('unet').verify_gradients = work\n"
            "    sys.exit(main(['bench', 'unet', '--quick']))\n")
    (tmp_path / "command.py").write_text(code)
    running = subprocess.Popen([sys.executable, "command.py"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True, cwd=tmp_path)
    while running.stdout.readline() != "ready\n":
        assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=40)
    assert running.returncode == 130 and "Traceback" not in said
    assert said.strip().splitlines()[-1] == "minunet: stopped"


def test_the_other_side_is_a_process_of_its_own():
    with processes.Side() as side:
        assert side.call(harness.rotations, 10 << 20, 32 << 20) == 7
        with pytest.raises(UserError, match="multiples of 16"):
            side.call(layers.unet_layers, (30, 30), 4)
