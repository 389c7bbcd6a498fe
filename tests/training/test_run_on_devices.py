"""A run on a device: its steps are replayed, its losses read back rarely, and it learns as if neither were so."""

import numpy as np
import pytest

from minunet import UNet, functional, nn
from minunet.backend import to_device
from minunet.errors import UserError
from minunet.nn import replayed
from minunet.training import run as runs
from minunet.training.run import Run, RunConfig
from tests.devices import free_memory
from tests.training.test_run import assert_same_state, scenes

SETTINGS = dict(base=2, depth=1, crop=(16, 16), batch=2, epochs=2, dropout=0.2)


def made(folder, device, count=11, **settings):
    """A run of four steps an epoch, of which the last has one image only."""
    return Run(scenes(count, (16, 16)), folder, RunConfig(**(SETTINGS | settings)), device=device)


@pytest.fixture
def recordings(monkeypatch):
    """All that are made."""
    found = []

    class Counted(replayed.Recording):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            found.append(self)

    monkeypatch.setattr(replayed, "Recording", Counted)
    return found


def learn(run):
    """The losses of all steps, as they were told, and the weights in the end."""
    told = []
    results = list(run.epochs(lambda epoch, loss: told.append((epoch, loss))))
    steps = len(run.batches)
    assert steps > 2 and [epoch for epoch, _ in told] == [epoch for epoch in (1, 2) for _ in range(steps)]
    for result in results:
        assert result.loss == sum(loss for epoch, loss in told if epoch == result.epoch) / steps
    return told, run.checkpoint.model.state_dict()


def test_it_learns_the_same_to_the_bit(device, tmp_path, recordings, monkeypatch):
    """Recorded, and with too little memory for that."""
    told, state = learn(made(tmp_path / "recorded", device))
    assert len(recordings) >= 2                 # a recording of steps an epoch, and some of predictions

    def too_little(*_):
        raise MemoryError

    monkeypatch.setattr(replayed, "Recording", too_little)
    with pytest.warns(UserWarning, match="there is too little memory"):
        expected, expected_state = learn(made(tmp_path / "each", device))
    assert told == expected and len(set(told)) == len(told)
    assert_same_state(state, expected_state)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
def test_an_epoch_gives_its_memory_back(device, tmp_path):
    """Before predictions need theirs."""
    run = Run(scenes(20, (96, 96)), tmp_path, RunConfig(base=8, depth=2, crop=(96, 96), batch=4), device=device)
    run._learn(1, lambda *_: None)          # which also loads the kernels
    before, recorded = free_memory(), []
    run._learn(2, lambda *_: recorded.append(nn.recorded_bytes()))
    assert max(recorded) > 16 << 20 and free_memory() >= before - (4 << 20)


def test_losses_are_read_rarely(device, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "READ_SECONDS", 1e9)
    run, reads = made(tmp_path, device), []
    read = run._read
    monkeypatch.setattr(run, "_read", lambda unread, *rest: (reads.append(len(unread)), read(unread, *rest))[1])
    learn(run)
    assert reads == [len(run.batches)] * 2


def test_a_step_that_is_read_late_is_still_named(device, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "READ_SECONDS", 1e9)
    run = made(tmp_path, device)
    step, steps, told = run._step, [], []

    def spoilt(images, masks):
        steps.append(1)
        return step(images * np.float32(np.nan if len(steps) == 3 else 1), masks)

    monkeypatch.setattr(run, "_step", spoilt)
    with pytest.raises(UserError, match="the loss became nan in epoch 1, step 3; the weights before epoch 1 are in"):
        next(run.epochs(lambda epoch, loss: told.append(loss)))
    assert len(told) == 2 and np.isfinite(told).all() and len(steps) == len(run.batches)


def test_recordings_keep_no_memory_from_each_other(device, tmp_path, monkeypatch):
    """When an epoch begins that of its predictions is gone, and before them that of its steps."""
    def alive():
        return sum(r._recording is not None for r in list(replayed._all))

    run, at = made(tmp_path, device, count=14), []
    assert len(run.batches) == 4 and len(run.batches.samples) == 8      # the last batch, too, is replayed
    for name in ("_batches", "_save_last"):
        original = getattr(run, name)
        monkeypatch.setattr(run, name, lambda *a, original=original: (at.append(alive()), original(*a))[1])
    nn.release_recordings()
    list(run.epochs())
    # as it begins; then in each epoch before the steps, before the calibration, and after the predictions
    assert at[:3] == [0, 0, 0] and at[4:6] == [0, 0]


def test_a_loss_that_is_no_number_has_no_gradients_where_it_can_be_read(device):
    for place in ("cpu", device):
        model = UNet(1, 1, base=2, depth=1).to(place)
        images, masks = (to_device(np.full((1, 4, 4, *more), np.nan if more else 1, np.float32), place)
                         for more in ((1,), ()))
        loss, gradients = runs._gradients(functional.loss_function("bce"), model.parameters(), model, images, masks)
        assert np.isnan(to_device(loss, "cpu"))
        assert {gradient is None for gradient in gradients} == {place == "cpu"}
