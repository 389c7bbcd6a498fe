"""The table of gradients: all are right, every plant is found in its tensor and told for what it is."""

import numpy as np
import pytest

from minunet import functional
from minunet.backend import array_module
from minunet.errors import UserError
from minunet.study import gradients
from minunet.study.cases import CASES, Case
from minunet.study.gradients import CHECKS, KINDS, PLANTS, check, check_plant, names_of, op_of, select

DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@DTYPES
@pytest.mark.parametrize("name", CHECKS)
def test_every_backward_is_right(name, dtype):
    row = check(name, "cpu", dtype)
    report = row.found.report
    assert row.faults == [] and row.seconds > 0
    assert report.tolerance == (1e-6 if dtype == np.float64 else 1e-2)
    assert report.comparisons == sum(3 + int(np.prod(shape)) for shape in CHECKS[name].shapes)
    assert report.by_direction <= report.tolerance + report.rounding
    assert report.by_element <= report.tolerance + report.rounding
    assert max(report.by_direction, report.by_element) < (1e-7 if dtype == np.float64 else 5e-2)


@pytest.mark.parametrize("name", [n for n in CHECKS if n != "unet"])
def test_no_gradient_is_zero(name):
    """Where the gradient is 0 for the cotangent that was drawn, a factor in the backward would not be seen."""
    found = check(name, seed=1).found
    assert all(abs(gradient).max() > 1e-3 for gradient in found.analytic)
    for analytic, numeric in zip(found.analytic, found.numeric, strict=True):
        np.testing.assert_allclose(analytic, numeric, atol=1e-6 * abs(analytic).max())


@pytest.mark.parametrize("name", ["conv_transpose2d", "batch_norm, relu", "max_pool2d overlapping", "dice, softmax"])
@DTYPES
def test_the_kernels_are_right(device, dtype, name):
    assert check(name, device, dtype).faults == []


@DTYPES
@pytest.mark.parametrize("name", PLANTS)
def test_every_plant_is_found(name, dtype):
    """In its tensor and in no other, as what it is, with the numbers of a wrong element, whatever was drawn."""
    plant = PLANTS[name]
    for seed in range(2 if dtype == np.float64 else 1):
        row = check_plant(name, "cpu", dtype, seed)
        fault, = row.faults
        assert (row.name, fault.tensor, fault.kind) == (plant.op, plant.tensor, plant.kind)
        position = names_of(plant.op).index(plant.tensor)
        assert fault.shape == plant.shapes[position] and 0 < fault.wrong <= np.prod(fault.shape)
        assert fault.analytic == row.found.analytic[position][fault.index]
        np.testing.assert_allclose(fault.numeric, row.found.numeric[position][fault.index], rtol=1e-12)
        assert abs(fault.analytic - fault.numeric) > 1e-3 and not fault.near_kink


@pytest.mark.parametrize("name", PLANTS)
def test_plants_are_found_on_a_gpu_too(device, name):
    fault, = check_plant(name, device).faults
    assert (fault.tensor, fault.kind) == (PLANTS[name].tensor, PLANTS[name].kind)


def test_plants_leave_the_ops_alone():
    for name in ("missing-bias", "relu-passes-all", "batch-norm-mean", "wrong-winner", "softmax-diagonal"):
        assert check_plant(name).faults and not check(PLANTS[name].op).faults


@pytest.mark.parametrize("name, factor", [("doubled-weight", 2), ("missing-bias", 0), ("loss-not-averaged", 11)])
def test_the_factor_is_told(name, factor):
    assert abs(check_plant(name).faults[0].factor - factor) < 1e-6


RIGHT = np.random.default_rng(0).standard_normal((4, 5)) * (np.arange(20).reshape(4, 5) % 3 > 0)      # 7 zeros


@pytest.mark.parametrize("wrong, kind, count", [
    (RIGHT * 0, "missing", 13), (-RIGHT, "factor", 13), (0.5 * RIGHT, "factor", 13),
    (RIGHT + (RIGHT == 0), "passes", 7), (RIGHT[::-1], "moved", 16), (RIGHT + 1, "other", 20),
    (RIGHT * (1 + 1e-5), "slight", 13), (np.where(RIGHT > 0, np.nan, RIGHT), "nan", int((RIGHT > 0).sum())),
])
def test_the_kind_of_a_fault(wrong, kind, count):
    assert gradients._kind(wrong, RIGHT, 1e-7)[:2] == (kind, count)
    assert kind in KINDS


def test_a_kink_is_told(monkeypatch):
    monkeypatch.setitem(CHECKS, "relu", Case(functional.relu, ((3,),)))
    monkeypatch.setattr(Case, "inputs", lambda *_: [np.array([1.0, 0.0, -1.0])])
    fault, = check("relu").faults
    assert fault.near_kink and fault.index == (1,) and fault.tensor == "x"


def test_a_wrong_parameter_of_the_net_is_named(monkeypatch):
    """A fault in the bias of the transposed convolution reaches no other parameter."""
    def without_bias(x, w, b, *options):
        return right(x, w, b.data, *options)

    right = functional.conv_transpose2d
    monkeypatch.setattr(functional, "conv_transpose2d", without_bias)
    fault, = check("unet").faults
    assert (fault.tensor, fault.kind, fault.shape) == ("up.0.up.bias", "missing", (2,))


@pytest.mark.parametrize("what, names", [
    ("conv2d", ["conv2d", "conv2d 3x3", "conv2d, relu", "conv2d, images side by side", "conv2d 1x1"]),
    ("conv2d 3x3", ["conv2d 3x3"]),
    ("resample", ["nearest", "bilinear", "bicubic"]), ("bicubic", ["bicubic"]), ("unet", ["unet"]),
    ("loss", ["cross_entropy", "bce_with_logits", "dice, softmax", "dice, sigmoid"]), ("all", list(CHECKS)),
    ("relu", ["relu"]), ("pad", ["pad", "pad, edge", "pad, reflect"]),
])
def test_what_is_meant_by_a_name(what, names):
    assert sorted(select(what)) == sorted(names)


@pytest.mark.parametrize("name, guess", [("conv2", "conv2d"), ("RELU", ""), ("relus", "relu"), ("", "")])
def test_an_unknown_name(name, guess):
    with pytest.raises(UserError, match=f"^no op, loss or case is called '{name}'"
                       + (f"; did you mean {guess}\\?" if guess else "")):
        select(name)


def test_every_input_has_a_name():
    for name, case in CHECKS.items():
        names = names_of(name)
        assert len(set(names)) == len(names) == len(case.shapes)
        if name != "unet":
            assert op_of(name) in " ".join(map(op_of, CASES))
    assert names_of("conv2d") == ("x", "w", "b") and names_of("concat") == ("xs[0]", "xs[1]")
    assert names_of("unet")[:2] == ("image", "first.conv1.weight")


def test_the_net_is_computed_with_what_it_is_given():
    """Every parameter changes the loss, and the same ones make the same loss."""
    case = CHECKS["unet"]
    inputs = case.inputs("cpu")
    value = case.f(*map(gradients.Tensor, inputs)).item()
    assert case.f(*map(gradients.Tensor, inputs)).item() == value
    for i in range(len(inputs)):
        changed = [a + 0.5 * (i == j) * np.arange(a.size).reshape(a.shape) for j, a in enumerate(inputs)]
        assert case.f(*map(gradients.Tensor, changed)).item() != value, names_of("unet")[i]
    assert array_module(*inputs) is np
