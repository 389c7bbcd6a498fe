"""`--device` and `--precision`: a net learned on the simulated GPU predicts anywhere; what cannot be is a sentence."""

import re
import sys

import numpy as np
import pytest

from minunet import backend
from minunet.cli import main
from minunet.nn import replayed
from tests.cli.helpers import evaluate, files_below, look_at_run, pixels, predict, refused, train

SMALL = ("--base", "2", "--depth", "1", "--crop", "8x8", "--batch", "2", "--epochs", "1")


def test_train_evaluate_and_predict_on_the_simulated_gpu(here, capsys):
    assert main(train("--device", "sim", tiny=SMALL)) == 0
    assert "on the device sim, products in float32" in capsys.readouterr().out
    net = "new/best.safetensors"
    assert main(predict("images", net=net) + ["--device", "sim", "--probabilities"]) == 0
    assert main(predict("images", net=net, out="cpu") + ["--probabilities"]) == 0
    assert files_below("out").keys() == files_below("cpu").keys()
    for path in files_below("out"):
        if path.endswith(".npy"):
            np.testing.assert_allclose(np.load(f"out/{path}"), np.load(f"cpu/{path}"), atol=1e-5)
        elif path.startswith("masks"):
            assert (pixels(f"out/{path}") != pixels(f"cpu/{path}")).mean() < 0.01
    assert main(evaluate("--device", "sim", net=net)) == 0
    assert "IoU" in capsys.readouterr().out


def test_the_test_figures_are_computed_there_too(here, monkeypatch):
    run = look_at_run(monkeypatch, *train("--device", "sim", "--precision", "bf16", tiny=SMALL))
    list(run.epochs())
    run.finish()
    model = run.checkpoint.model
    assert (model.device, model.head.precision) == ("sim", "bf16")


@pytest.mark.filterwarnings("default")
def test_what_is_not_recorded_is_said(here, monkeypatch, capsys):
    """In one line, once: it takes longer."""
    def too_little(*_):
        numbers.append(1)
        raise MemoryError(f"the GPU has no {len(numbers)} bytes for what is recorded")

    numbers = []
    monkeypatch.setattr(replayed, "Recording", too_little)
    assert main(train("--device", "sim", "--epochs", "3", tiny=SMALL[:-2])) == 0
    said = capsys.readouterr().err
    line = "minunet: what is computed on the device sim is launched kernel by kernel, not as one graph: there is too "
    assert len(numbers) > 1 and said.count("kernel by kernel") == 1 and "replayed.py" not in said
    assert [text for text in re.split("[\r\n]", said) if "kernel by" in text] == [line + "little memory"]


def test_a_run_goes_on_on_another_device(here, capsys):
    assert main(train(tiny=SMALL)) == 0
    assert main(train("--device", "sim", "--resume", "--epochs", "2", tiny=SMALL[:-2])) == 0
    assert "going on after epoch 1" in capsys.readouterr().out


@pytest.mark.parametrize("command", [train, predict, evaluate])
def test_what_this_computer_lacks_is_one_sentence(here, capsys, monkeypatch, command):
    backend.cupy.cache_clear()
    monkeypatch.setitem(sys.modules, "cupy", None)
    arguments = command("images") if command is predict else command()
    assert "pip install 'minunet[gpu]'" in refused([*arguments, "--device", "cuda"], capsys)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "g++" in refused([*arguments, "--device", "sim"], capsys)
    monkeypatch.delenv("CXX")
    assert "--precision tf32 is for the tensor cores of a GPU" in refused(
        [*(train(out="other") if command is train else arguments), "--device", "cpu", "--precision", "tf32"], capsys)
