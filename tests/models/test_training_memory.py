"""The forecast of a training step's memory against what a process of its own takes."""

from __future__ import annotations

import numpy as np
import pytest

from minunet import Tensor, UNet, functional, memory, nn, optim
from minunet.cli.measuring import room
from minunet.models.summary import summarize

processes = room("processes")


def measure(size: tuple[int, int], batch: int, options: dict) -> tuple[int, int]:
    """The forecast for training a net, and the peak of three steps less the size before the net was made; in bytes."""
    rng = np.random.default_rng(0)
    x, truth = rng.standard_normal((batch, *size, 3), np.float32), rng.integers(0, 2, (batch, *size))
    loss = functional.loss_function("ce+dice")
    _steps(UNet(3, 2, base=4, depth=1), x[:1, :16, :16], truth[:1, :16, :16], loss)     # loads what is loaded once
    memory.release()
    before = processes.resident_bytes()
    processes.forget_peak()
    net = UNet(3, 2, **options)
    _steps(net, x, truth, loss)
    peak = processes.resident_bytes(peak=True)
    return net.summary(size, batch).training_bytes, (peak or 0) - (before or 0)


def _steps(net: UNet, x: np.ndarray, truth: np.ndarray, loss) -> None:
    optimizer = optim.Adam(net.parameters())
    for _ in range(3):
        value = loss(net(Tensor(x)), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        del value


@pytest.mark.parametrize("size, batch, options", [
    ((128, 128), 8, {"base": 16}), ((128, 128), 1, {"base": 64}), ((256, 256), 2, {"base": 32, "norm": None}),
    ((256, 256), 2, {"base": 16, "recompute": True}), ((256, 256), 2, {"base": 16, "depth": 2}),
    ((512, 512), 1, {"base": 16}), ((128, 128), 4, {"base": 16, "depth": 3, "pool": "average", "activation": "elu"}),
], ids=str)
def test_the_forecast_is_near_what_is_measured(size, batch, options):
    if processes.resident_bytes() is None:
        pytest.skip("this system does not tell what is in memory")
    with processes.Side() as process:
        forecast, measured = process.call(measure, size, batch, options)
    assert 0.9 < forecast / measured < 1.1


def test_what_a_layer_hands_on_as_it_is_counts_once():
    def forecast(*between):
        layers = nn.Conv2d(3, 8, 3, padding=1, relu=True), *between, nn.Conv2d(8, 8, 3, padding=1)
        return summarize(nn.Sequential(*layers), (1, 64, 64, 3)).training_bytes

    assert forecast() == forecast(nn.Dropout(0.0), nn.Pad(16)) < forecast(nn.Dropout(0.5))
