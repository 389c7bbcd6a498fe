"""`minunet gradcheck`: the table, its exit code, what is said of a fault."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from minunet import functional
from minunet.cli import gradcheck, main
from minunet.study.cases import Case
from minunet.study.gradients import CHECKS, PLANTS
from tests.cli.helpers import refused, rejected, run_command

NUMBER = r"\d\.\de[-+]\d\d"


def said(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(["gradcheck", *arguments]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_the_table(capsys):
    text = said(capsys, "conv2d", "--device", "cpu")
    first, titles, *rows = text.splitlines()
    assert first == "gradients on cpu in float64, seed 0"
    assert re.split(r" {2,}", titles) == ["op", "comparisons", "by direction", "by element", "tolerance", "rounding",
                                          "verdict", "time"]
    for name, row in zip(["conv2d", "conv2d 3x3", "conv2d, relu", "conv2d, images side by side", "conv2d 1x1"], rows):
        assert re.fullmatch(rf"{name} +\d+ +{NUMBER} +{NUMBER} +1e-06 +{NUMBER} +right +\d+\.\d\d s", row), row
        assert len(row) == len(titles)
    assert rows[5] == "" and re.fullmatch(r"5 of 5 right; 1,721 comparisons in \d+\.\d s", rows[-1])


def test_everything_is_the_default(capsys, monkeypatch):
    names = []

    def check(name, *where):
        names.append((name, *where))
        return real("relu")

    real = gradcheck.check
    monkeypatch.setattr(gradcheck, "check", check)
    text = said(capsys, "--device", "cpu", "--seed", "7", "--dtype", "float32")
    assert names == [(name, "cpu", np.float32, 7) for name in CHECKS]
    assert text.startswith("gradients on cpu in float32, seed 7\n") and f"{len(CHECKS)} of {len(CHECKS)} right" in text


def test_the_loss_in_float32(capsys):
    text = said(capsys, "loss", "--dtype", "float32", "--device", "cpu", "--seed", "1")
    assert len(re.findall(r" 0\.01 .* right ", text)) == 4


def test_the_simulated_gpu(capsys):
    text = said(capsys, "conv_transpose2d 2x2", "--device", "sim")
    assert text.startswith("gradients on sim in float64") and "1 of 1 right" in text


def test_a_wrong_op_gives_1_and_is_told(capsys, monkeypatch):
    wrong = Case(lambda x, w: functional.linear(x, w) + w.data.sum() * 0.1, ((3, 4), (4, 5)))
    monkeypatch.setitem(CHECKS, "linear", wrong)
    text = said(capsys, "linear", "--device", "cpu", code=1)
    assert re.search(r"^linear +38 .* WRONG +", text, re.M) and "0 of 1 right" in text
    assert re.search(r"^linear: the gradient of w \(4, 5\) is wrong, in 20 of 20 elements\n"
                     r"  at \(\d, \d\): \S+ analytic, \S+ numeric; no kink lies within the step\n"
                     r"  the differences have no simple pattern", text, re.M)
    assert "gradient of x" not in text


def test_a_kink_is_told(capsys, monkeypatch):
    monkeypatch.setattr(Case, "inputs", lambda *_: [np.array([1.0, 0.0, -1.0])])
    text = said(capsys, "relu", "--device", "cpu", code=1)
    assert "at (1,): 0 analytic" in text and "the step crosses a kink there, which may be the cause" in text


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_is_announced_found_and_told(capsys, name):
    plant = PLANTS[name]
    text = said(capsys, "--plant", name, "--device", "cpu", code=1)
    assert text.startswith(f"planted in {plant.op}, in the gradient of {plant.tensor}: {plant.words}\n")
    assert re.search(rf"^{plant.op} .* WRONG +", text, re.M)
    assert text.count(") is wrong, in ") == 1 and f"{plant.op}: the gradient of {plant.tensor} (" in text
    assert gradcheck.KINDS[plant.kind].split("{")[0] in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_readme_shows_what_is_said(capsys):
    text = said(capsys, "--plant", "doubled-weight", "--device", "cpu", code=1)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown, = re.findall(r"```\n(conv2d: the gradient of w .*?)```", readme, re.S)
    assert shown in text and shown.count("\n") == 3


def test_a_plant_that_is_not_found_is_an_error(capsys, monkeypatch):
    monkeypatch.setattr(gradcheck, "check_plant", lambda name, *where: gradcheck.check("relu"))
    assert refused(["gradcheck", "--plant", "missing-bias", "--device", "cpu"], capsys) == \
        "the check has not found the fault missing-bias, which was planted; so it is the check that is wrong"


def test_the_plants_are_listed(capsys):
    lines = said(capsys, "--plant", "list").splitlines()
    assert [line.split()[0] for line in lines] == list(PLANTS)
    assert all(f"{plant.op}: {plant.words}" in line for line, plant in zip(lines, PLANTS.values()))


@pytest.mark.parametrize("arguments, words", [
    (["conv"], "no op, loss or case is called 'conv'; did you mean conv2d?; minunet gradcheck --help names them"),
    (["xyz"], "no op, loss or case is called 'xyz'; minunet gradcheck --help names them"),
    (["--plant", "doubled"], "no plant is called 'doubled'; did you mean doubled-weight?; --plant list names them"),
    (["--plant", "winner"], "no plant is called 'winner'; did you mean wrong-winner?; --plant list names them"),
    (["relu", "--plant", "missing-bias"], "--plant brings the op that it spoils; leave relu out"),
])
def test_mistakes_are_one_sentence(capsys, arguments, words):
    assert refused(["gradcheck", *arguments], capsys) == words


def test_arguments_are_checked(capsys, monkeypatch):
    assert "--dtype" in rejected(["gradcheck", "--dtype", "float16"], capsys)
    assert "--device" in rejected(["gradcheck", "--device", "tpu"], capsys)
    assert "must be a whole number of at least 0" in rejected(["gradcheck", "--seed", "-1"], capsys)
    monkeypatch.setitem(sys.modules, "cupy", None)
    gradcheck.resolve.__globals__["cupy"].cache_clear()
    assert "pip install 'minunet[gpu]'" in refused(["gradcheck", "--device", "cuda"], capsys)


def test_the_help_names_every_op(capsys):
    with pytest.raises(SystemExit):
        main(["gradcheck", "--help"])
    listed = " ".join(capsys.readouterr().out.split()).split("ops: ")[1].split(", ")
    assert listed == list(dict.fromkeys(gradcheck.op_of(name) for name in CHECKS if name != "unet"))


def test_the_real_command_returns_the_code():
    done = run_command("gradcheck", "--plant", "relu-passes-all", "--device", "cpu")
    assert done.returncode == 1 and done.stderr == "" and "something passes that should be stopped" in done.stdout
