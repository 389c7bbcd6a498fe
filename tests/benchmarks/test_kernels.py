"""The benchmark's arithmetic against numbers worked out by hand, its verification against faults, its tables."""

import json

import numpy as np
import pytest

from minunet import UNet
from minunet.cli import bench
from minunet.convolution import ConvMatrix
from minunet.convolution.matrix import ALGORITHMS
from minunet.geometry import Geometry
from tests import naive

harness, kernels, bench_layers, memory, peer, products, show, tables = map(
    bench.room, ("harness", "kernels", "layers", "memory", "peer", "products", "show", "tables"))
CPU = harness.CpuTimer()
SHORT = products.Budget(0.0, 2, 3, turns=2)


class Still:
    """A clock on which every run takes a second."""

    cache_bytes = 0

    def __call__(self, run):
        return 1.0

    def wait(self):
        pass


def layer(kernel=3, stride=1, padding=1, dilation=1, size=(5, 6), channels=3, filters=4):
    return bench_layers.Layer(("one",), channels, filters, Geometry(kernel, stride, padding, dilation), size)


# ---- what is counted

def test_work_by_hand():
    a = layer(size=(8, 8), filters=16)
    assert a.flop(2) == 2 * 2 * 64 * 9 * 3 * 16 == 110592
    assert a.nbytes(2) == 4 * (9 * 3 * 16 + 2 * 64 * 3 + 2 * 64 * 16) == 11456
    up = layer(kernel=2, stride=2, padding=0, size=(8, 8), channels=4, filters=8)
    assert up.is_up and not a.is_up
    assert up.flop(1) == 2 * 16 * 4 * 4 * 8 == 4096         # 4x4 windows of 2x2 pixels
    assert up.nbytes(1, itemsize=2) == 2 * (4 * 4 * 8 + 64 * 4 + 16 * 8)


@pytest.mark.parametrize("size, base, depth", [((32, 48), 4, 3), ((16, 16), 3, 4)])
def test_the_layers_are_those_of_the_net(size, base, depth):
    rows = [row for row in UNet(3, 2, base=base, depth=depth).summary(size).rows if "Conv" in row.kind]
    layers = bench_layers.unet_layers(size, base, depth)
    assert sorted(name for a in layers for name in a.names) == sorted(row.name for row in rows)
    by_name = {name: a for a in layers for name in a.names}
    for row in rows:
        a = by_name[row.name]
        assert a.flop(1) == 2 * row.multiply_adds, row
        assert row.shape[1:] == ((*a.size, a.channels) if a.is_up else (*a.out_size, a.filters)), row
    assert len({(a.channels, a.filters, a.geometry, a.size) for a in layers}) == len(layers)


def test_the_whole_net_takes_48_billion_multiply_adds():
    layers = bench_layers.unet_layers((256, 256), 64)
    assert round(sum(len(a.names) * a.flop(1) for a in layers) / 2e9) == 48
    assert len(layers) == 19 and sum(len(a.names) for a in layers) == 23


def test_bytes_moved():
    nbytes = {"x": 100, "y": 25, "winners": 6}
    assert memory.moved("x, y, winners", nbytes) == 131
    assert memory.moved("2 x, y", nbytes) == 225


def test_bytes_of_the_ops():
    """N=1, 4x4 px, 2 channels of float32: x is 128 bytes."""
    case = kernels.bench_case([layer()], (4, 4), 1, {"cpu": Still()}, ["float32"], SHORT, None, 2, lambda name: None)
    found = {(name, r.what): r.nbytes for name, results in case.ops for r in results}
    assert found["ReLU", "forward"] == 256 and found["ReLU", "backward"] == 384
    assert found["batch norm and ReLU", "forward"] == 384 and found["batch norm and ReLU", "backward"] == 640
    assert found["batch norm and ReLU, 2x2x4", "forward"] == 3 * 64 == found["concat, 2x2x4", "forward"] * 3 / 4
    assert found["max unpool 2x2", "forward"] == 32 + 8 + 128 == found["max unpool 2x2", "backward"]
    assert found["sum of a channel", "forward"] == 128 and ("sum of a channel", "backward") not in found
    assert found["class ids, 8 classes", "forward"] == 512 + 16 and found["confusion, 8 classes", "forward"] == 32
    assert found["max pool 2x2", "forward"] == 128 + 32 + 8 == found["max pool 2x2", "backward"]
    assert found["concat", "forward"] == 512 and found["bilinear, twice the size", "forward"] == 32 + 128
    assert found["binary cross-entropy", "forward"] == 64 + 16 + 64      # logits, one byte a pixel, gradient
    assert found["Dice", "forward"] == 2 * 64 + 2 * 16 + 64
    assert found["cross-entropy, 8 classes", "forward"] == 512 + 16 + 512
    assert found["Adam, all weights", "step"] == 7 * 4 * 9 * 3 * 4
    assert found["SGD with momentum, all weights", "step"] == 5 * 4 * 9 * 3 * 4
    assert all(r.correct and r.seconds == 1.0 for r in kernels.all_results([case]))


def test_the_roof_by_hand():
    limits = harness.Ceilings(copy=10e9, gemm={"float32": 100e9, "tf32": 400e9})
    assert limits.seconds(200e9, 1e9) == 2.0 and limits.bound(200e9, 1e9) == "arithmetic"
    assert limits.seconds(200e9, 1e9, "tf32") == 0.5
    assert limits.seconds(1e9, 20e9) == 2.0 and limits.bound(1e9, 20e9) == "memory"
    assert limits.rate(5e9, 1e9) == pytest.approx(50e9)     # 5 FLOP/byte at 10 GB/s
    result = products.Result("A x", "minunet", "cpu", "im2col", "float32", 200e9, 1e9, 0.0, 1e-4, 0.0,
                             harness.Timing((8.0, 8.0)))
    assert result.share(limits) == 0.25
    found = result.as_dict({"cpu": limits})
    assert (found["share_of_limit"], found["flop_per_s"], found["bytes_per_s"]) == (0.25, 25e9, 0.125e9)


# ---- what is verified

@pytest.mark.parametrize("a", [
    layer(), layer(kernel=2, stride=2, padding=0), layer(kernel=1, padding=0),
    layer(kernel=(3, 2), stride=(2, 3), padding=(2, 1), dilation=(1, 2), size=(9, 7)),
    layer(size=(1, 2)),
], ids=str)
def test_truth_is_the_product(a):
    """Every element of it, where few enough to be all; against loops that share nothing with it."""
    weight, x, y, rng = bench_layers.images(a, 2)
    weight, x, y = (array.astype(np.float64) for array in (weight, x, y))
    g = a.geometry
    expected = {
        "A x": naive.conv2d(x, weight, g.stride, g.padding, g.dilation),
        "Aᵀ y": naive.conv_transpose2d(y, weight, g.stride, g.padding, g.dilation, a.size),
        "dw": ConvMatrix(weight, g, a.size).weight_grad(x, y),
    }
    for product, result in expected.items():
        truth = products.truth(a, product, weight, x, y, rng)
        assert truth.error(result) < 1e-13
        assert truth.values.size >= min(result.size, 12)
        assert truth.error(result * (1 + 1e-3)) == pytest.approx(1e-3, rel=1e-2)


def test_samples_have_first_and_last():
    found = np.stack(products._sampled((50, 60, 7), 8, np.random.default_rng(0)), 1)
    assert [0, 0, 0] in found.tolist() and [49, 59, 6] in found.tolist() and 3 <= len(found) <= 8
    assert len(products._sampled((2, 3), 8, np.random.default_rng(0))[0]) == 6


FAULTS = {
    "a missing tap": lambda product, A, x, y: kernels_product(product, without_a_tap(A), x, y),
    "A for its transpose": lambda product, A, x, y: kernels_product("A x" if product == "Aᵀ y" else product, A, x, y),
    "rounded operands": lambda product, A, x, y: kernels_product(product, A, rounded(x), y),
    "not written": lambda product, A, x, y: spoilt(kernels_product(product, A, x, y)),
}
kernels_product = products.compute


def ours(a, means=()):
    """Of minunet on the CPU: three products, by each algorithm that takes the layer."""
    side = products.OurProducts(a, 2, "cpu", ["float32"], CPU, SHORT, means)
    return products.bench_layer([side], SHORT.turns)


def rounded(x):
    return x.astype(np.float16).astype(np.float32)


def without_a_tap(A):
    weight = A.weight.copy()
    weight[0, 0] = 0
    return ConvMatrix(weight, A.geometry, A.size, A.algorithm)


def spoilt(result):
    result.reshape(-1)[result.size // 2] = np.nan
    return result


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_not_timed(fault, monkeypatch):
    a = layer(size=(6, 6), filters=3)
    sound = ours(a)
    assert [r.what for r in sound] == list(products.PRODUCTS) * 2              # by two algorithms
    assert all(r.correct and r.error < 1e-5 and len(r.timing.times) == 2 for r in sound)
    monkeypatch.setattr(products, "compute", FAULTS[fault])
    found = ours(a)
    touched = {"A for its transpose": ["Aᵀ y"], "a missing tap": ["A x", "Aᵀ y"],
               "rounded operands": ["A x", "dw"]}.get(fault, list(products.PRODUCTS))
    assert [r.what for r in found if not r.correct] == touched * 2
    assert all((r.timing is None) == (r.what in touched) for r in found)
    case = kernels.Case((6, 6), 2, [(a, found)], [])
    assert tables.product_table(case, {}).count("WRONG") == 2 * len(touched)
    assert "im2col" not in tables.totals_table(case, {})


def test_a_gpu_beside_the_cpu():
    """The simulated one in place of a real one: each algorithm and precision there, float32 on the CPU."""
    assert products.algorithms("cuda", "float32") == ("direct", "im2col", "implicit")
    assert products.algorithms("sim", "tf32") == ("tensorcore",)
    assert products.algorithms("cpu", "float32") == ALGORITHMS["cpu"][1:]
    a = layer(size=(4, 4), channels=4)

    def measured(layers, precisions):
        return kernels.bench_case(layers, (4, 4), 1, {"sim": Still(), "cpu": Still()}, precisions, SHORT, None, None,
                                  lambda name: None)

    case = measured([a, layer()], ["float32", "tf32"])
    (_, first), (_, second) = case.layers
    ladder = [("sim", "direct", "float32"), ("sim", "im2col", "float32"), ("sim", "implicit", "float32")]
    own = [("sim", "tensorcore", "tf32")]
    cpu = [("cpu", algorithm, "float32") for algorithm in ALGORITHMS["cpu"][1:]]
    assert list(dict.fromkeys((r.device, r.algorithm, r.precision) for r in first)) == ladder + own + cpu
    assert list(dict.fromkeys((r.device, r.algorithm, r.precision) for r in second)) == ladder + cpu    # 3 channels
    assert all(r.correct and r.seconds == 1.0 for r in first + second)
    assert tables.product_table(case, {}).count("1.00x") == 3 * (3 + 1) + 3 * 3     # the CPU's time over the others'
    ((_, results),) = measured([a], ["tf32"]).layers
    assert [(r.device, r.precision) for r in results] == [("sim", "tf32")] * 3 + [("cpu", "float32")] * 6


def test_a_wrong_op_is_found(monkeypatch):
    op = memory.small_op("ReLU")
    # in float32 alone
    wrong = op._replace(backward=lambda dy, y: (dy * (y > 0) * dy.dtype.type(1 + 0.001 * (dy.itemsize == 4)),))
    monkeypatch.setattr(memory, "small_op", lambda name: wrong)
    forward, backward = memory.bench_op(op, "cpu", CPU, SHORT)
    assert forward.correct and forward.timing and not backward.correct and backward.timing is None


@pytest.mark.parametrize("name", dict.fromkeys(op.name for op in memory.memory_ops(*memory.SMALL)))
def test_the_ops_on_a_device(device, name, monkeypatch):
    """Verified, and timed, as they are replayed."""
    op, replayed, recording = memory.small_op(name), [], memory.Recording
    monkeypatch.setattr(memory, "Recording", lambda run, *given: replayed.append(run) or recording(run, *given))
    results = list(memory.bench_op(op, device, Still(), SHORT))
    assert len(replayed) > len(results)             # to be verified, and to be timed
    assert [r.what for r in results] == ["forward", "backward"][:1 + bool(op.moves_backward)]
    assert all(r.correct and r.seconds == 1.0 for r in results)


# ---- PyTorch

def test_torch_computes_the_same_products(torch, monkeypatch):
    def theirs(a, batch, precisions):
        return products.bench_layer([peer.TorchProducts(a, batch, "cpu", precisions, SHORT)], SHORT.turns)

    for a in (layer(size=(8, 8)), layer(kernel=2, stride=2, padding=0, size=(8, 8))):
        found = theirs(a, 2, ["float32"])
        assert [r.what for r in found] == list(products.PRODUCTS) * 2
        assert [r.algorithm for r in found[::3]] == ["oneDNN, channels last", "oneDNN, contiguous"]
        assert all(r.side == "PyTorch" and r.correct and r.error < 1e-6 and r.timing for r in found)
        assert all((r.flop, r.nbytes) == (a.flop(2), a.nbytes(2)) for r in found)
    asked, of = [], torch.ops.aten.convolution_backward
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", lambda *arguments: asked.append(arguments[-1])
                        or of(*arguments))
    theirs(layer(), 1, ["float32"])
    assert {tuple(mask) for mask in asked} == {(True, False, False), (False, True, False)}     # no more than is timed
    found = theirs(layer(size=(8, 8)), 1, ["float32", "bf16"])
    plain, rounded = found[:6], found[6:]
    assert all(r.correct and r.precision == "float32" and r.error < 1e-6 for r in plain)
    assert all(r.correct and 1e-4 < r.error < 1e-2 for r in rounded)        # which float32's tolerance would refuse
    assert rounded[0].nbytes == plain[0].nbytes / 2


def test_torch_computes_the_same_ops(torch):
    found = peer.torch_ops((8, 8), 1, 4, "cpu", SHORT)
    assert {"ReLU", "batch norm and ReLU", "max pool 2x2", "concat", "concat, 2x2x16"} < found.keys() <= {
        op.title for op in memory.memory_ops((8, 8), 1, 4)}
    assert all(r.correct and r.timing for results in found.values() for r in results)
    assert [r.what for r in found["concat"]] == ["forward"]         # its backward moves nothing


# ---- tables, file, picture

def test_numbers_for_people():
    assert [show.significant(v) for v in (1234.5, 99.96, 12.34, 0.012345, 0.0, float("inf"))] == [
        "1,230", "100", "12.3", "0.0123", "-", "-"]
    assert [show.share_bar(s) for s in (0.0, 0.5, 1.0, 1.3)] == [
        "..........   0%", "#####.....  50%", "########## 100%", "########## 130%"]


def test_table():
    text = show.table(("name", "none", "value"), [("a", "", "1"), "a heading", ("long", "", "12345")], words=1)
    assert text == "name  value\na         1\na heading\nlong  12345"


def result(what, seconds, side="minunet", device="cpu", algorithm="im2col", precision="float32", flop=10**9):
    timing = harness.Timing((seconds,) * 3) if seconds else None
    return products.Result(what, side, device, algorithm, precision, flop, 10**7, 1e-7 if seconds else 1.0, 1e-4, 0.5,
                           timing)


def gpu_case():
    """Two layers; tensor cores take only the second, which occurs twice in the net."""
    first, second = layer(), bench_layers.Layer(("two", "three"), 8, 8, Geometry(3, padding=1), (8, 8))

    def rows(times, **options):
        return [result(product, seconds, **options) for product, seconds in zip(products.PRODUCTS, times)]

    both = [*rows((0.2, 0.2, 0.2), device="cuda", algorithm="direct"),
            *rows((0.1, 0.1, 0.1), device="cuda", algorithm="implicit"),
            *rows((0.05, 0.1, 0.1), side="PyTorch", device="cuda", algorithm="cuDNN"),
            *rows((1.0, 2.0, 3.0))]
    fast = rows((0.02, 0.02, 0.02), device="cuda", algorithm="tensorcore", precision="tf32")
    return kernels.Case((8, 8), 1, [(first, both), (second, both + fast)], [])


LIMITS = {"cuda": harness.Ceilings(1e12, {"float32": 20e9, "tf32": 100e9}),
          "cpu": harness.Ceilings(1e10, {"float32": 2e9})}


def test_product_table_has_the_ratios():
    text = tables.product_table(gpu_case(), LIMITS)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][-4:] == ["vs", "PyTorch", "vs", "CPU"]
    implicit = next(line for line in lines if "implicit" in line)
    assert implicit == ["cuda", "implicit", "float32", "100", "0%", "10.0", "0.100", "#####.....", "50%", "of", "GEMM",
                        "1e-07", "0.500x", "10.0x"]
    assert "[2] 8 -> 8, 3x3, 8x8 px, batch 1 (two, 2 in the net)" in text
    cpu = next(line for line in lines if line[:2] == ["cpu", "im2col"])
    assert cpu[-1] == "1e-07" and "50%" in cpu


def test_totals_are_sums_over_the_net():
    rows = {tuple(line.split()[:2]): line.split() for line in tables.totals_table(gpu_case(), LIMITS).splitlines()}
    # 3 convolutions, of 3 products each
    assert rows["cuda", "implicit"][3:8] == ["300", "300", "300", "900", "10.0"]
    assert rows["cuda", "implicit"][-2:] == ["0.833x", "20.0x"]              # 750 ms, 18 s
    assert rows["cuda", "tensorcore"][3:7] == ["140", "140", "140", "420"]   # the first layer by implicit
    assert rows["cuda", "PyTorch"][-1] == "24.0x" and rows["cpu", "im2col"][6] == "18,000"
    assert rows["cuda", "implicit"][8:10] == ["#####.....", "50%"]


def test_what_stands_in_for_tensor_cores_is_float32():
    (_, _), (_, results) = gpu_case().layers
    picked = tables._picked(("minunet", "cuda", "tensorcore", "bf16"), "dw", results)
    assert (picked.algorithm, picked.precision) == ("implicit", "float32")
    wrong = [result("dw", None, device="cuda", algorithm="tensorcore", precision="bf16"), *results]
    assert tables._picked(("minunet", "cuda", "tensorcore", "bf16"), "dw", wrong) is None


def test_json_has_every_figure(tmp_path):
    path = tmp_path / "b.json"
    show.write_json(path, {"machine": harness.machine("cpu"), **show.limits(LIMITS),
                           **kernels.figures([gpu_case()], LIMITS)})
    found = json.loads(path.read_text())
    assert {"date", "machine", "ceilings", "rows"} <= found.keys()
    assert {"processor", "threads", "numpy", "python", "blas"} <= found["machine"].keys()
    assert found["ceilings"]["cuda"] == {"copy_bytes_per_s": 1e12, "gemm_flop_per_s": {"float32": 20e9, "tf32": 100e9}}
    assert len(found["rows"]) == 27
    row = found["rows"][-1]
    assert (row["algorithm"], row["precision"]) == ("tensorcore", "tf32")
    assert (row["median_s"], row["share_of_limit"]) == (0.02, 0.5)
    assert row["places"] == ["two", "three"] and row["correct"] and row["first_call_s"] == 0.5


def test_roofline(tmp_path):
    path = tmp_path / "roof.svg"
    points = kernels.points(gpu_case())
    assert len(points) == 27 and [p.label for p in points if p.label] == ["1", "2"]
    show.plot_roofline(path, points, LIMITS, "title")
    assert path.stat().st_size > 10_000
