"""The U-Net's benchmark: its work by hand, its verification against planted faults, its figures in table and file."""

import json

import numpy as np
import pytest

from minunet import UNet
from minunet.cli import main
from minunet.cli.measuring import room
from minunet.convolution import ConvMatrix
from minunet.geometry import Geometry
from tests.cli.helpers import refused, rejected

unet, sides, report, processes, products, bench_layers = map(
    room, ("unet", "unet_sides", "unet_report", "processes", "products", "layers"))
SMALL = sides.Case(2, 2, (16, 32))
TINY = ["bench", "unet", "--quick", "--case", "2:2x16x32"]
SHORT = products.Budget(0.0, 2, turns=2)


# ---- what is counted

def test_work_by_hand():
    layers = bench_layers.unet_layers((256, 256), 64, classes=1)
    forward = 2 * sum(layer.flop(1) * len(layer.names) for layer in layers)
    case = sides.Case(64, 2, (256, 256))
    assert case.flop("prediction") == forward and round(forward / 2e9) == 96       # multiply-adds
    first = 2 * 2 * 256 * 256 * 9 * 3 * 64
    assert case.flop("step") == 3 * forward - first
    assert case.megapixels == pytest.approx(0.131072)
    assert case.forecast() == UNet(3, 1, 64).summary((256, 256), 2).training_bytes
    assert str(case) == "base 64, 2x256x256 px"


def test_the_images_are_the_same_everywhere_and_differ_between_cases():
    (x, y), (again, _), (other, _) = SMALL.images(), SMALL.images(), sides.Case(2, 2, (32, 16)).images()
    np.testing.assert_array_equal(x, again)
    assert x.shape == (2, 16, 32, 3) and y.shape == (2, 16, 32, 1) and set(np.unique(y)) == {0, 1}
    assert x.ravel()[0] != other.ravel()[0]


def test_scaling_cases():
    found = unet.scaling_cases(16, (64, 128), (1, 2, 4), 128)
    assert found == [(16, batch, (n, n)) for batch, n in [(1, 64), (1, 128), (2, 128), (4, 128)]]


# ---- what is verified

def test_gradients_in_float64_are_those_of_im2col():
    """By the algorithms of float32 they differ in rounding, so another algorithm did compute them."""
    error = unet.relative(unet.our_gradients(unet.VERIFIED, True), unet.our_gradients(unet.VERIFIED))
    assert 0 < error < unet.GRADIENTS


def test_gradients_in_float64_are_pytorchs(torch):
    ours, theirs = unet.our_gradients(SMALL, True), unet.torch_gradients(SMALL)
    assert ours.keys() == theirs.keys()
    assert unet.relative(ours, theirs) < unet.GRADIENTS


def test_algorithms_of_float32_are_put_back():
    weight = np.ones((3, 3, 64, 64))
    geometry = Geometry(3, padding=1)
    with unet.algorithms_of_float32():
        within = ConvMatrix(weight, geometry, 64).algorithm
    assert within == ConvMatrix(weight.astype(np.float32), geometry, 64).algorithm
    assert ConvMatrix(weight, geometry, 64).algorithm == "im2col"


@pytest.mark.parametrize("factor", [2, -1, np.nan])
def test_wrong_gradients_are_found(factor, monkeypatch, capsys):
    """Of a single parameter."""
    right, name = unet.our_gradients(SMALL), "up.1.convs.conv1.weight"
    wrong = right | {name: factor * right[name]}
    check = unet.Check("im2col in float64", unet.relative(wrong, right))
    assert not check.correct
    monkeypatch.setattr(unet, "verify_gradients", lambda device, against: check)
    assert "they are wrong, and nothing was timed" in refused(TINY, capsys)


class Local:
    """In place of a process: the net is made here."""

    pid = 1

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def make(self, factory, *arguments):
        return factory(*arguments)

    def call(self, function, *arguments):
        return function(*arguments)


class Doubled(sides.OurNet):
    """One whose answers are wrong."""

    def prediction(self):
        return 1.01 * super().prediction()


class Climbing(sides.OurNet):
    """One that learns backwards."""

    def step(self):
        self._adam.lr = -0.1
        return super().step()


def bench(contestants, monkeypatch, exact=True, case=SMALL):
    monkeypatch.setattr(unet, "Side", Local)
    return unet.bench_case(case, contestants, SHORT, exact, lambda name: None)


def test_a_wrong_prediction_is_not_timed(monkeypatch):
    rows = bench([sides.Contestant("minunet", sides.OurNet), sides.Contestant("doubled", Doubled)], monkeypatch)
    found = {(row.side, row.work): row for row in rows}
    assert not found["doubled", "prediction"].correct and found["doubled", "prediction"].timing is None
    assert found["doubled", "prediction"].error == pytest.approx(0.01, rel=1e-3)
    sound = found["minunet", "prediction"]
    assert sound.correct and sound.error < 1e-5 and len(sound.timing.times) == 2
    assert found["doubled", "step"].correct and found["doubled", "step"].error is None     # nobody to compare it with
    assert "WRONG" in report.case_table(rows, {"float32": 1e11})


def test_steps_that_learn_something_else_are_not_timed(torch, monkeypatch):
    theirs = sides.Contestant("PyTorch, contiguous", sides.TorchNet, ("contiguous_format",))
    ours, climbing = sides.Contestant("minunet", sides.OurNet), sides.Contestant("climbing", Climbing)
    rows = bench([ours, climbing, theirs], monkeypatch, exact=False)
    steps = {row.side: row for row in rows if row.work == "step"}
    assert steps["minunet"].correct and steps["minunet"].error < 1e-3 and steps["PyTorch, contiguous"].error == 0
    assert not steps["climbing"].correct and steps["climbing"].timing is None
    assert all(row.error is None and row.timing for row in rows if row.work == "prediction")


def test_both_sides_predict_the_same(torch, monkeypatch):
    rows = bench(sides.contestants("cpu", True), monkeypatch)
    assert [row.side for row in rows if row.work == "step"] == [
        "minunet", "PyTorch, channels last", "PyTorch, contiguous"]
    assert all(row.correct and row.error < 1e-4 for row in rows)


@pytest.mark.skipif(processes.resident_bytes() is None, reason="nobody tells, as Linux does")
def test_what_a_process_held_before_does_not_count():
    with processes.Side() as side:
        side.call(np.ones, 16 << 20)            # 128 MiB, and gone
        net = side.make(sides.OurNet, SMALL)
        net.load(UNet(3, 1, SMALL.base).state_dict())
        net.step()
        assert 0 < net.growth() < 100 << 20


# ---- on a GPU, for which the simulated one stands in

@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_steps_and_predictions_of_a_device(device, precision, monkeypatch):
    """Replayed and launch by launch, right and with the same losses."""
    monkeypatch.setattr(sides, "PIPELINED", 1)
    case = sides.Case(4, 1, (16, 16), device, precision)
    rows = bench(sides.contestants(device, False), monkeypatch, case=case)
    assert [(r.work, r.side) for r in rows] == [(work, f"minunet{more}") for work in unet.WORKS
                                                for more in ("", ", launch by launch")]
    assert all(r.correct and len(r.timing.times) == 2 and r.peak is not None for r in rows)
    losses = []
    for arguments in ((), (False, False)):
        net = sides.OurNet(case, *arguments)
        net.load(UNet(3, 1, case.base).state_dict())
        losses.append(net.first_losses())
        assert (net._gradients._recording is None) == bool(arguments)
    assert losses[0] == losses[1] and len(set(losses[0])) == len(losses[0])


def test_a_gpu_is_timed_until_it_is_done_and_step_by_step(monkeypatch):
    order, harness = [], room("harness")
    timer = harness.WallTimer(lambda: order.append("wait"))
    assert timer(lambda: order.append("run")) > 0 and order == ["wait", "run", "wait"]
    steps, settled = [], []

    class Eight(harness.WallTimer):
        def __call__(self, run):
            run()
            return 8.0

    monkeypatch.setattr(sides, "PIPELINED", 4)
    monkeypatch.setattr(sides, "WallTimer", Eight)
    net = sides.OurNet(SMALL._replace(device="sim"))
    monkeypatch.setattr(net, "step", lambda: steps.append(1))
    monkeypatch.setattr(net, "prediction", lambda: None)
    monkeypatch.setattr(net, "settle", lambda: settled.append(len(steps)))
    assert net.times("step", SHORT) == (2.0, 2.0) and len(steps) == 2 + 3 * 4      # and one warms up
    assert settled == [2]                                                           # behind the first calls
    assert net.times("prediction", SHORT) == (8.0, 8.0)


def test_a_devices_gradients_in_float64(device):
    case = SMALL._replace(device=device)
    assert unet.relative(unet.our_gradients(case, True), unet.our_gradients(SMALL)) < unet.GRADIENTS


def test_pytorch_computes_in_every_precision(torch):
    """Here on the CPU, which knows no TF32."""
    losses = {}
    for precision in ("tf32", "float32", "bf16"):
        net = sides.TorchNet(SMALL._replace(precision=precision), "channels_last")
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        net.load(UNet(3, 1, SMALL.base).state_dict())
        losses[precision] = np.array(net.first_losses())
        assert net.prediction().dtype == np.float32
    difference = abs(losses["bf16"] / losses["float32"] - 1).max()
    assert 1e-6 < difference < unet.LOSSES["bf16"]


def test_a_case_names_its_device_and_precision():
    assert str(sides.Case(64, 8, (256, 256), "cuda", "tf32")) == "base 64, 8x256x256 px on cuda in tf32"


# ---- figures

def row(work, side, turns, case=SMALL, **options):
    return unet.Row(case, work, side, 1e-7, 1e-4, turns, **options)


def rows_by_hand():
    return [row("step", "minunet", ((1.0, 1.0), (2.0, 2.0))), row("step", "PyTorch, channels last", ((3.0,), (9.0,))),
            row("step", "PyTorch, contiguous", ((4.0,), (4.0,))), row("prediction", "minunet", ((0.5,), (0.5,))),
            row("prediction", "PyTorch, channels last", ()), row("prediction", "PyTorch, contiguous", ())]


def test_the_faster_memory_format_counts():
    rows = rows_by_hand()
    assert unet.ratio(rows, rows[0]) == (4 / 1.5, 2.0, 4.0)         # medians 1.5, 6 and 4; turns 4 / 1 and 4 / 2
    assert unet.ratio(rows, rows[1]) is None and unet.ratio(rows, rows[3]) is None


def test_case_table_by_hand():
    flop = SMALL.flop("step")
    text = report.case_table([r if r.side != "minunet" else r.__class__(**{**vars(r), "peak": 3 << 20, "others": 0.25})
                              for r in rows_by_hand()], {"float32": flop / 3.0})
    line = next(line for line in text.splitlines() if line.startswith("step        minunet")).split()
    assert line[:5] == ["step", "minunet", "1,500", "1,000..2,000", "33%"]
    assert "2.00x" in line and "3" in line and "25%" in line        # twice the peak of a matrix product
    assert line[-2:] == ["2.67x", "(2.00..4.00)"]


def test_what_does_not_fit_is_left_out(monkeypatch):
    monkeypatch.setattr(unet, "available_bytes", lambda: SMALL.forecast())
    assert unet.lacking(SMALL, 1) is None
    assert unet.lacking(SMALL, 3).startswith("base 2, 2x16x32 px: left out, it needs about")
    monkeypatch.setattr(unet, "available_bytes", lambda: None)
    assert unet.lacking(SMALL, 3) is None


# ---- the command

def test_the_command(tmp_path, capsys):
    files = ["--json", str(tmp_path / "u.json"), "--plot", str(tmp_path / "u.png")]
    assert main([*TINY, "--recompute", *files]) == 0
    said = capsys.readouterr().out
    assert "verified: the gradients in float64" in said and "im2col in float64" in said and "base 2, 2x16x32 px" in said
    found = json.loads((tmp_path / "u.json").read_text())
    assert {"date", "command", "machine", "ceilings", "gradients", "rows"} <= found.keys()
    assert [(r["work"], r["side"]) for r in found["rows"]] == [
        (work, side) for work in ("step", "prediction") for side in ("minunet", "minunet, recompute")]
    gemm = found["ceilings"]["cpu"]["gemm_flop_per_s"]["float32"]
    for r in found["rows"]:
        times = [t for turn in r["turns_s"] for t in turn]
        assert r["correct"] and r["min_s"] == min(times) <= r["median_s"] <= max(times) == r["max_s"]
        assert r["runs"] == len(times) and len(r["turns_s"]) == 2
        assert r["flop_per_s"] == pytest.approx(r["flop"] / r["median_s"])
        assert r["share_of_gemm"] == pytest.approx(r["flop_per_s"] / gemm)
        assert r["peak_bytes"] is None or 0 < r["peak_bytes"] < 1 << 30
    assert (tmp_path / "u.png").read_bytes().startswith(b"\x89PNG")


def test_scaling(tmp_path, capsys):
    files = ["--json", str(tmp_path / "u.json"), "--plot", str(tmp_path / "u.png")]
    assert main(["bench", "unet", "--quick", "--scaling", "2", *files]) == 0
    said = capsys.readouterr().out
    assert all(f"base 2, {case}" in said for case in ("1x32x32", "1x64x64", "2x32x32")) and "s/Mpx" in said
    rows = json.loads((tmp_path / "u.json").read_text())["rows"]
    assert len(rows) == 6 and all(r["error"] is None and r["median_s"] > 0 for r in rows)
    assert (tmp_path / "u.png").read_bytes().startswith(b"\x89PNG")


def test_beside_pytorch_on_one_thread(capsys, torch, monkeypatch):
    monkeypatch.setenv("MINUNET_NUM_THREADS", "2")
    assert main([*TINY, "--against", "torch", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "PyTorch in float64" in said and ", 1 of " in said and said.count("PyTorch, channels last") == 2
    assert "WRONG" not in said


def test_mistakes(capsys, monkeypatch):
    assert "BASE:BATCHxHEIGHTxWIDTH" in rejected(["bench", "unet", "--case", "64"], capsys)
    assert "multiples of 16" in rejected(["bench", "unet", "--case", "64:1x30x32"], capsys)
    assert "must be BASE" in rejected(["bench", "unet", "--case", "0:1x32x32"], capsys)
    assert "leave out --case" in refused([*TINY, "--scaling"], capsys)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'minunet[peers]'" in refused([*TINY, "--against", "torch"], capsys)
