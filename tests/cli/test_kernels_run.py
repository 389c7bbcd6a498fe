"""`minunet kernels run`: what it prints of an example, and the picture that it draws."""

import re

from PIL import Image

from minunet.cli import main
from tests.cli.helpers import refused, rejected


def test_a_run_tells_what_was_launched_and_checked(capsys):
    assert main(["kernels", "run", "conv_direct.forward"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "conv_direct.forward on the simulated GPU: 3x3 convolution, stride 1, 2 images of 8x8x16, 32 filters, direct, "
        "float32",
        "16 blocks of 256 threads; x float32 2x8x8x16, weight float32 3x3x16x32, bias float32 32, y float32 2x8x8x32",
        "no race, no access out of bounds, no read of uninitialised memory"]


def test_a_trace_is_a_table_and_a_picture(tmp_path, capsys):
    picture = tmp_path / "new" / "forward.png"
    assert main(["kernels", "run", "conv_direct.forward", "--trace", str(picture), "--block", "1", "--warp", "7"]) == 0
    said = capsys.readouterr().out
    assert "block 1, warp 7: what its 32 lanes touched together" in said
    rows = re.findall(r"^(\d+) +(\w+ \w+) +32 +(\S+ \w+) +(\S+) +conv_direct.cu:\d+ +(.*)$", said, re.M)
    assert ("1", "write y", "4 sectors", "4", "y[i] = with_relu ? relu_of(sum) : sum;") in rows
    assert {row[1] for row in rows} == {"read bias", "read x", "read weight", "write y"}
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    assert f"look at {picture}" in said


def test_a_trace_without_a_picture(capsys):
    assert main(["kernels", "run", "shape.copy_channels", "--trace"]) == 0
    said = capsys.readouterr().out
    assert "sectors: of 32 bytes" in said and "look at" not in said


def test_mistakes_are_one_sentence(tmp_path, capsys, monkeypatch):
    assert "there is no kernel 'forwards'; did you mean" in refused(["kernels", "run", "forwards"], capsys)
    assert "several kernels are called forward:" in refused(["kernels", "run", "forward"], capsys)
    assert "--block: must be below 16, as many as the launch of conv_direct.forward" in refused(
        ["kernels", "run", "conv_direct.forward", "--block", "16"], capsys)
    for wrong in ("picture.txt", str(tmp_path)):
        assert "--trace: must be a file that ends in .png, .svg or .pdf; got" in refused(
            ["kernels", "run", "activation.relu", "--trace", wrong], capsys)
    assert "must be a whole number of at least 0" in rejected(["kernels", "run", "relu", "--warp", "-1"], capsys)
    (tmp_path / "file").write_text("")
    assert "there is a file of this name in the way" in refused(
        ["kernels", "run", "activation.relu", "--trace", str(tmp_path / "file" / "a.png")], capsys)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "install g++" in refused(["kernels", "run", "activation.relu"], capsys)
