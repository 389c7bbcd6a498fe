"""README's gallery is what the commands leave today, and README shows all of it with its commands."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

EXAMPLES = Path(__file__).parents[1] / "examples"
BLOCK = 12              # px


@pytest.fixture(scope="module")
def gallery():
    sys.path.insert(0, str(EXAMPLES))           # as for a program that is run: its folder comes first
    try:
        spec = importlib.util.spec_from_file_location("gallery", EXAMPLES / "gallery.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def drawn(gallery, tmp_path_factory):
    """The folder of freshly drawn pictures."""
    folder = tmp_path_factory.mktemp("gallery")
    gallery.draw(folder)
    return folder


def frames(path):
    with Image.open(path) as picture:
        return [np.asarray(frame.convert("RGB"), float) for frame in ImageSequence.Iterator(picture)]


def drawn_by(path):
    """Matplotlib's version, (3, 11), as it leaves it in what it draws; none of what Pillow draws."""
    with Image.open(path) as picture:
        found = re.match(r"Matplotlib version(\d+)\.(\d+)", picture.info.get("Software", ""))
    return tuple(map(int, found.groups())) if found else ()


def difference(first, second):
    """The largest mean difference of a block of pixels, of 255: a digit makes 20 and more, smoother edges a few."""
    apart = np.abs(first - second).mean(-1)
    h, w = (n // BLOCK * BLOCK for n in apart.shape)
    return apart[:h, :w].reshape(h // BLOCK, BLOCK, w // BLOCK, BLOCK).mean((1, 3)).max()


def pictures():
    return sorted(path.name for path in (EXAMPLES / "gallery").iterdir() if path.suffix in (".png", ".gif")
                  and path.name not in ("cells.png", "page.png"))


@pytest.mark.parametrize("name", pictures())
def test_picture_is_what_its_command_leaves(drawn, name):
    by, now = map(drawn_by, (EXAMPLES / "gallery" / name, drawn / name))
    if now < by:
        pytest.skip(f"drawn by Matplotlib {'.'.join(map(str, by))}; an older one lays it out differently by a pixel")
    fresh, kept = frames(drawn / name), frames(EXAMPLES / "gallery" / name)
    assert len(fresh) == len(kept) and fresh[0].shape == kept[0].shape, f"{name} is stale: run examples/gallery.py"
    assert max(map(difference, fresh, kept)) < 12, f"{name} is stale: run examples/gallery.py"


def test_page_is_of_todays_page(gallery, tmp_path):
    """Its letters are those of the machine's fonts, so it is known by the page that it was taken of."""
    with Image.open(EXAMPLES / "gallery" / "page.png") as picture:
        assert picture.text["page"] == gallery.write_page(tmp_path / "case.html"), "page.png: run examples/gallery.py"


def test_page_can_be_photographed(gallery, tmp_path):
    importlib.import_module("tests.study.browser")      # or is skipped
    gallery.photograph(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as fresh, Image.open(EXAMPLES / "gallery" / "page.png") as kept:
        assert fresh.size == kept.size and fresh.text == kept.text
        small = [np.asarray(picture.convert("RGB").resize((34, 28)), float) for picture in (fresh, kept)]
    assert np.abs(small[0] - small[1]).mean() < 4, "page.png is stale: run examples/gallery.py"


def test_a_changed_digit_is_seen():
    """The comparison can fail: one number of the kernel, drawn in a cell."""
    kept = frames(EXAMPLES / "gallery" / "matrix.png")[0]
    other = kept.copy()
    high, wide = 24, 16
    ink = np.argwhere(kept.sum(-1) < 150)
    top, left = ink[len(ink) // 2]
    other[top - high // 2:top + high // 2, left - wide // 2:left + wide // 2] = 255
    assert difference(kept, other) >= 12


def test_readme_shows_the_gallery_with_its_commands(gallery):
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    others = {gallery.CHECKERBOARD: ("checkerboard.png",), gallery.PAGE: ("page.png",)}
    assert [*pictures(), "page.png"] == sorted([*(name for names in gallery.COMMANDS.values() for name in names),
                                                "checkerboard.png"]) + ["page.png"]
    for command, names in {**gallery.COMMANDS, **others}.items():
        assert f"`{command}`" in text, f"README does not name {command}"
        for name in names:
            assert f"(examples/gallery/{name})" in text, f"README does not show {name}"


@pytest.mark.parametrize("name", [name for name in pictures() if name.endswith(".gif")])
def test_an_animation_keeps_its_time(drawn, name):
    times = []
    for folder in (drawn, EXAMPLES / "gallery"):
        with Image.open(folder / name) as picture:
            durations = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
            times.append((picture.info.get("loop"), durations))
    assert times[0] == times[1], f"{name} is stale: run examples/gallery.py"


def test_each_picture_stands_behind_its_command(gallery):
    """The last command that README names before a picture is the one that leaves it."""
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    commands = {**gallery.COMMANDS, gallery.CHECKERBOARD: ("checkerboard.png",), gallery.PAGE: ("page.png",)}
    for command, names in commands.items():
        for name in names:
            before = text[:text.index(f"(examples/gallery/{name})")]
            assert max(commands, key=lambda other: before.rfind(f"`{other}`")) == command, name
