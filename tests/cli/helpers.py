"""What the tests of the command share: its arguments, what it says, and what it leaves on the disk."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minunet import UNet
from minunet.checkpoint import Checkpoint
from minunet.cli import learn, main

SIZE = (24, 32)
TINY = ("--base", "2", "--depth", "2", "--crop", "16x16", "--batch", "4", "--epochs", "2")
RUN_FILES = {"best.safetensors", "last.safetensors", "split.json", "history.csv", "history.png", "validation.png",
             "metrics.json"}


def train(*options, images="images", masks="masks", out="new", tiny=TINY):
    return ["train", "--images", images, "--masks", masks, *(["--out", out] if out else []), *tiny, *options]


def predict(*files, net="net.safetensors", out="out"):
    return ["predict", net, *files, "--out", out]


def evaluate(*options, net="net.safetensors", images="images", masks="masks"):
    return ["evaluate", net, "--images", images, "--masks", masks, *options]


def save_net(path, channels=1, classes=1, names=None, size=None, seed=8, **options):
    """A net that nobody trained, but one that finds something somewhere."""
    model = UNet(channels, classes, **{"base": 2, "depth": 2} | options, rng=np.random.default_rng(seed),
                 output="sigmoid" if classes == 1 else "softmax")
    names = names or (("cell",) if classes == 1 else tuple(f"kind {i}" for i in range(classes)))
    Checkpoint(model, np.full(channels, 0.5, np.float32), np.full(channels, 0.2, np.float32), names, size).save(path)


def complaint(stderr):
    """The one sentence on stderr: the last line, beside nothing but the progress bar."""
    assert "Traceback" not in stderr and "Warning" not in stderr
    lines = [line for line in re.split("[\r\n]", stderr) if line.strip() and not re.search(r"\d/\d+ \[", line)]
    assert len(lines) == 1 and lines[0].startswith("minunet: ") and stderr.endswith(f"\n{lines[0]}\n"[-len(stderr):])
    sentence = lines[0].removeprefix("minunet: ")
    assert sentence.strip(), "an empty sentence"
    return sentence


def refused(arguments, capsys):
    """The sentence with which the command refuses."""
    capsys.readouterr()
    assert main(arguments) == 2
    return complaint(capsys.readouterr().err)


def rejected(arguments, capsys):
    """What the command says of arguments that it does not even begin with."""
    capsys.readouterr()
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 2
    else:
        raise AssertionError(f"{arguments} was accepted")
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.split("error: ", 1)[1].strip()


def look_at_run(monkeypatch, *arguments):
    """The run that the command would begin with these arguments."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(learn, "_run", lambda run, *sizes: seen.append(run))
        assert main(list(arguments)) == 0
    return seen[0]


def files_below(folder):
    """Every file's bytes, by its path below the folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file()}


def pixels(path):
    """The values that stand in a picture's file: of a palette picture its indices."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def each_mask(change, folder="masks"):
    """Rewrite all masks: change gets a mask's values and gives an array or a picture."""
    for path in Path(folder).iterdir():
        changed = change(pixels(path))
        (Image.fromarray(changed) if isinstance(changed, np.ndarray) else changed).save(path)


def write(path, content=b"hello"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


def halve(path):
    write(path, Path(path).read_bytes()[:Path(path).stat().st_size // 2])


def unlink(*paths):
    for path in paths:
        Path(path).unlink()


def run_command(*arguments):
    """The real command, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "minunet", *arguments], capture_output=True, text=True, timeout=120)
