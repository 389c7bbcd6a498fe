"""`minunet explain` of a trained net: the pictures and figures it gives, and what it refuses."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet.checkpoint import load_checkpoint
from minunet.cli import explain_net as room
from minunet.cli import main
from minunet.cli.explain_net import explain_net
from minunet.data import read_image, unit
from minunet.errors import UserError
from minunet.study.net import checkerboard, constant_answer, constant_input, layers, look, without_skip
from tests.cli.helpers import refused as cli_refused
from tests.cli.helpers import save_net


def explained(image="images/s0.png", layer=None, net="net.safetensors", out="out"):
    explain_net(Path(net), image and Path(image), layer, Path(out))
    return sorted(path.name for path in Path(out).iterdir())


def refused(**arguments):
    with pytest.raises(UserError) as caught:
        explained(**arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence and not Path("out").is_dir()
    return sentence


def test_the_u(here, capsys):
    assert explained() == ["unet.png"]
    with Image.open("out/unet.png") as picture:
        assert picture.width > 1500
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["image", "first", "down1", "bridge", "up1", "up2", "head"]
    assert lines[0] == "image   24x32x1" and re.match(r"bridge  6x8x8 +2x2 max-pooling; two", lines[3])
    assert lines[-1] == "look at out/unet.png"


@pytest.mark.parametrize("image, files", [
    (None, ["up2_kernels.png"]), ("images/s1.png", ["up2_kernels.png", "up2_maps.png", "up2_skip.png"])])
def test_a_way_up(here, capsys, image, files):
    assert explained(image, "up2") == files
    said = capsys.readouterr().out
    checkpoint = load_checkpoint("net.safetensors")
    up = checkpoint.model.up[1]
    seen = look(checkpoint, unit(read_image(Path(image), 1))) if image else None
    assert "overlap: In height and in width stride 2 divides kernel 2:" in said and "Unevenness 0.000." in said
    assert "The overlap is even, so it comes from the kernels' elements, which differ." in said
    assert f"checkerboard {checkerboard(constant_answer(up, constant_input(up, seen))):.3f} in its answer" in said
    assert ("every input at its mean over this image" in said) == bool(image) == ("every input 1:" not in said)
    if seen:
        for words, mean in (("zeros in place", False), ("its mean in place", True)):
            found = without_skip(seen, up, mean)
            assert f"{words} of its skip connection: {found.classes:.2%} of the pixels" in said
            assert f"by {found.change:.4f} on average" in said
    else:
        assert "with an image behind the checkpoint there are feature maps as well, and what the skip" in said


@pytest.mark.parametrize("options", [{"up": "nearest"}, {"up": "unpool", "norm": None}, {"padding": "valid"},
                                     {"classes": 3, "channels": 3, "size": (16, 24)}], ids=str)
def test_every_layer_of_every_net(here, capsys, options):
    save_net("other.safetensors", **options)
    checkpoint = load_checkpoint("other.safetensors")
    assert explained(net="other.safetensors", out="u") == ["unet.png"]
    for name in layers(checkpoint.model):
        expected = [f"{name}_{what}.png" for what in ("kernels", "maps", *(["skip"] if name[:2] == "up" else []))]
        assert explained("images/s2.png", name, "other.safetensors", name) == expected
    assert ("no overlap: it adds no windows up" in capsys.readouterr().out) == ("up" in options)


def test_colour_images_for_grey_nets_and_the_other_way_round(here):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)).save("colour.png")
    save_net("rgb.safetensors", channels=3)
    assert explained("colour.png") == explained("images/s0.png", net="rgb.safetensors") == ["unet.png"]


def test_pictures_replace_earlier_ones(here):
    assert explained() == explained()


def test_the_command(here, capsys):
    assert main(["explain", "net.safetensors", "images/s0.png", "--layer", "up1", "--out", "out"]) == 0
    assert "look at out/up1_kernels.png, out/up1_maps.png, out/up1_skip.png" in capsys.readouterr().out
    assert cli_refused(["explain", "net.safetensors", "--layer", "up0"], capsys).startswith("--layer: there is no")
    assert cli_refused(["explain", "notes.txt", "images/s0.png"], capsys).startswith("notes.txt: is not a checkpoint")


# Mistakes


def test_neither_image_nor_layer(here):
    assert refused(image=None) == ("net.safetensors: give an image as well, to see the U with its feature maps, or "
                                   "--layer, to see the kernels of first, down1, bridge, up1, up2, head")


@pytest.mark.parametrize("image", [None, "images/s0.png"])
def test_an_unknown_layer(here, image):
    assert refused(image=image, layer="up3") == (
        "--layer: there is no layer 'up3'; this net has, from the image to the classes, first, down1, bridge, up1, "
        "up2, head (up1 is the first way up after the bridge)")


@pytest.mark.parametrize("arguments, sentence", [
    ({"net": "notes.txt"}, "notes.txt: is not a checkpoint, or is damaged"),
    ({"net": "images"}, "images: is a folder; the checkpoint is the file best.safetensors"),
    ({"net": "none.safetensors"}, "none.safetensors: there is no such checkpoint file"),
    ({"image": "notes.txt"}, "notes.txt: cannot be read as an image"),
    ({"image": "images"}, "images: is a folder; give one image"),
    ({"image": "none.png"}, "none.png: there is no such image"),
    ({"out": "notes.txt"}, "notes.txt: --out must be a folder, and there is a file of this name in the way"),
    ({"out": "notes.txt/new"}, "notes.txt/new: --out must be a folder"),
], ids=str)
def test_files_that_are_not_what_they_should_be(here, arguments, sentence):
    assert refused(**arguments).startswith(sentence)


def test_a_folder_that_may_not_be_written(here):
    Path("shut").mkdir(mode=0o500)
    if os.access("shut", os.W_OK):
        pytest.skip("who runs this may write everywhere")
    assert refused(out="shut").startswith("shut: cannot be written to; choose another --out")


@pytest.mark.parametrize("layer, name", [(None, "unet"), ("up1", "up1_maps")])
def test_the_image_is_not_overwritten(here, layer, name):
    Path("mine").mkdir()
    Path("images/s0.png").rename(f"mine/{name}.png")
    before = Path(f"mine/{name}.png").read_bytes()
    assert refused(image=f"mine/{name}.png", layer=layer, out="mine") == (
        f"mine/{name}.png: a picture would overwrite the image; choose another --out")
    assert Path(f"mine/{name}.png").read_bytes() == before and len(list(Path("mine").iterdir())) == 1


def test_a_net_of_two_channels_has_kernels_but_reads_no_image(here):
    save_net("two.safetensors", channels=2)
    assert refused(net="two.safetensors") == (
        "images/s0.png: an image file has 1 or 3 channels, and this net reads 2; leave the image out and name a "
        "--layer, or call minunet.study.net.look with an array")
    assert explained(None, "first", "two.safetensors") == ["first_kernels.png"]


def test_a_net_that_answers_with_no_numbers(here):
    checkpoint = load_checkpoint("net.safetensors")
    checkpoint.model.head.bias.data[...] = np.nan
    checkpoint.save("nan.safetensors")
    with pytest.raises(UserError, match="no longer finite"):
        explained(net="nan.safetensors")


def test_the_folder_is_made_before_the_work(here, monkeypatch):
    monkeypatch.setattr(room, "look", lambda *arguments: pytest.fail("worked first"))
    assert refused(out="notes.txt").startswith("notes.txt: --out must be a folder")
