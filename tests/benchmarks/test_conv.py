"""`minunet bench conv`: the error beside the product of magnitudes, turns, and what is taken by itself."""

import json

import numpy as np
import pytest

from minunet.cli import main
from minunet.cli.measuring import room
from minunet.convolution import ConvMatrix
from minunet.convolution.matrix import ALGORITHMS
from minunet.geometry import Geometry
from tests.cli.helpers import refused, rejected

harness, kernels, bench_layers, products, tables = map(room, ("harness", "kernels", "layers", "products", "tables"))
SAME = Geometry(3, padding=1)
TINY = ["bench", "conv", "--quick", "--case", "8:2x16x32"]
SHORT = products.Budget(0.0, 2, 3, turns=2)


def layer(channels=8, filters=8, size=(6, 6)):
    return bench_layers.Layer(("one",), channels, filters, SAME, size)


# ---- the error beside the product of magnitudes

@pytest.mark.parametrize("product", products.PRODUCTS)
def test_the_largest_of_magnitudes(product):
    """Few enough elements for all to be verified, or enough of them to be near the largest."""
    a = layer(channels=2, filters=2, size=(4, 4))
    weight, x, y, rng = bench_layers.images(a, 1, mean=10)
    assert x.mean() == pytest.approx(10, abs=0.5) and y.mean() == pytest.approx(10, abs=0.5)
    assert weight.mean() == pytest.approx(0, abs=0.6)
    truth = products.truth(a, product, weight, x, y, rng)
    A = ConvMatrix(np.abs(weight).astype(np.float64), SAME, a.size)
    sums = products.compute(product, A, np.abs(x).astype(np.float64), np.abs(y).astype(np.float64))
    assert 0.5 * sums.max() < truth.largest <= sums.max() * (1 + 1e-12)
    exact = products.compute(product, ConvMatrix(weight.astype(np.float64), SAME, a.size), x, y)
    assert truth.bound_error(exact) < 1e-13
    spoilt = exact + 1e-3 * truth.largest
    assert truth.bound_error(spoilt) == pytest.approx(1e-3)


def test_too_large_an_error_is_not_timed(monkeypatch):
    """One that only shows where means are far from 0."""
    right = products.compute

    def wrong(product, A, x, y):
        result = right(product, A, x, y)
        return result + np.float32(1e-3) * np.abs(result).max() if product == "A x" and x.mean() > 50 else result

    def found():
        side = products.OurProducts(layer(), 2, "cpu", ["float32"], harness.CpuTimer(), SHORT, products.MEANS)
        return products.bench_layer([side], SHORT.turns)

    sound = found()
    assert all(r.correct and r.timing and 0 < r.bound_error < products.BOUNDS[r.what] for r in sound)
    monkeypatch.setattr(products, "compute", wrong)
    assert [r.what for r in found() if not r.correct] == ["A x"] * (len(ALGORITHMS["cpu"]) - 1)
    assert all((r.timing is None) == (r.what == "A x") for r in found())


def test_a_result_without_a_number_is_wrong_at_any_mean(monkeypatch):
    right = products.compute
    monkeypatch.setattr(products, "compute", lambda product, A, x, y: right(product, A, x, y)
                        * (np.float32(np.nan) if 5 < x.mean() < 50 else 1))
    side = products.OurProducts(layer(), 1, "cpu", ["float32"], harness.CpuTimer(), SHORT, products.MEANS)
    assert not any(r.correct for r in side.results())


# ---- turns

class Scripted:
    """A side whose times are numbered as they are asked for."""

    def __init__(self, log, name, *whats):
        self._log, self._name = log, name
        self._results = [products.Result(what, name, "cpu", "im2col", "float32", 1, 1, 0.0, 1.0, 0.0) for what in whats]

    def results(self):
        return self._results

    def times(self, number):
        self._log.append((self._name, number))
        return (float(len(self._log)),)


def test_sides_take_turns():
    log = []
    found = products.bench_layer([Scripted(log, "a", "A x", "dw"), Scripted(log, "b", "A x")], 2)
    assert log == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("a", 1)]
    assert [r.timing.times for r in found] == [(1.0, 3.0), (5.0, 6.0), (2.0, 4.0)]


def test_a_turn_is_a_part_of_the_budget():
    assert products.Budget(0.3, 5, 7, 3).turn == (pytest.approx(0.1), 2, 7, 1)


# ---- what is taken by itself

def result(what, seconds, algorithm, side="minunet", chosen=False):
    return products.Result(what, side, "cpu", algorithm, "float32", 10**9, 10**7, 1e-7, 1e-4, 0.0,
                           harness.Timing((seconds,)), chosen)


def case():
    def rows(times, algorithm, **options):
        return [result(product, t, algorithm, **options) for product, t in zip(products.PRODUCTS, times)]

    theirs = dict(side="PyTorch")
    narrow = [*rows((1, 1, 1), "im2col", chosen=True), *rows((2, 2, 2), "winograd"),
              *rows((3, 8, 8), "first", **theirs), *rows((4, 4, 4), "last", **theirs)]
    wide = [*rows((8, 8, 8), "im2col"), *rows((2, 4, 4), "winograd", chosen=True),
            *rows((8, 2, 8), "first", **theirs), *rows((4, 4, 4), "last", **theirs)]
    return kernels.Case((6, 6), 1, [(layer(), narrow), (layer(16, 16), wide)], [])


def test_versus_table_by_hand():
    lines = [line.split() for line in tables.versus_table(case()).splitlines()]
    assert lines[1][-9:] == ["im2col", "1,000", "3.00x", "im2col", "1,000", "4.00x", "im2col", "1,000", "4.00x"]
    assert lines[2][-9:] == ["winograd", "2,000", "2.00x", "winograd", "4,000", "0.500x", "winograd", "4,000", "1.00x"]


def test_totals_with_auto_by_hand():
    """auto takes the best of both layers; PyTorch's faster format over both is 24 s."""
    rows = {line.split()[1]: line.split() for line in tables.totals_table(case(), {}).splitlines()}
    assert rows["auto"][3:7] == ["3,000", "5,000", "5,000", "13,000"] and rows["auto"][-1] == "1.85x"
    assert rows["im2col"][6] == "27,000" and rows["winograd"][6] == "16,000"
    alone = kernels.Case((6, 6), 1, case().layers[:1], [])
    assert "auto" not in tables.totals_table(alone, {})             # there it is im2col
    assert tables.product_table(case(), {}).count("(auto)") == 6


# ---- the command

def test_the_command(tmp_path, capsys):
    options = ["--layers", "first.conv*", "up.3.up", "--json", str(tmp_path / "c.json"), "--plot",
               str(tmp_path / "c.png")]
    assert main([*TINY, *options]) == 0
    said = capsys.readouterr().out
    assert "what is taken by itself, 16x32 px, batch 2" in said and "worst: max |result" in said
    assert "kernels that move memory" not in said and "WRONG" not in said
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["command"] == "minunet bench conv" and found["options"]["case"] == [[8, 2, [16, 32]]]
    rows = found["rows"]
    assert {(r["channels"], r["filters"]) for r in rows} == {(3, 8), (8, 8), (8, 16)}
    for r in rows:
        assert r["correct"] and r["bound_error"] <= products.BOUNDS[r["what"]] and r["median_s"] > 0
        assert r["flop_per_s"] == pytest.approx(r["flop"] / r["median_s"])
    chosen = [(r["layer"], r["what"]) for r in rows if r["chosen"]]
    assert len(chosen) == len(set(chosen)) == 9             # one algorithm of each product of each layer
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_beside_pytorch(capsys, torch):
    assert main([*TINY, "--layers", "first.conv2", "--against", "torch"]) == 0
    said = capsys.readouterr().out
    assert "PyTorch (oneDNN, channels last)" in said and "PyTorch (oneDNN, contiguous)" in said and "WRONG" not in said


def test_a_wrong_product_is_refused(capsys, monkeypatch):
    right = products.compute
    monkeypatch.setattr(products, "compute", lambda what, *rest: right(what, *rest) * (2 if what == "dw" else 1))
    assert "marked WRONG above" in refused([*TINY, "--layers", "head"], capsys)


def test_mistakes(capsys):
    assert "BASE:BATCHxHEIGHTxWIDTH" in rejected(["bench", "conv", "--case", "16x16"], capsys)
    assert "no convolution is called nothing" in refused([*TINY, "--layers", "nothing"], capsys)
