"""The pictures of README's gallery, each as the command leaves it that README names.

    python examples/gallery.py                  # draws them all again, into examples/gallery
    python examples/gallery.py --train          # the same, after training the small net that some of them look into

The net learned from made-up cells (examples/own_folder.py) and is kept with the pictures, as is an image that it has
not seen: training again on another machine gives another net, and with it other pictures. The page is photographed
with Debian's chromium and chromium-driver, and Selenium (the extra `browser`).
"""

import hashlib
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import own_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minunet import cli

GALLERY = Path(__file__).parent / "gallery"
NET, IMAGE = GALLERY / "cells.safetensors", GALLERY / "cells.png"
# as README writes them, each with the pictures of its that are shown
COMMANDS = {
    "minunet explain --out explain": ("matrix.png", "convolution.gif"),
    "minunet explain --stride 2 --padding 1 --out explain": ("transposed.gif", "overlap.png"),
    "minunet explain examples/gallery/cells.safetensors examples/gallery/cells.png": ("unet.png",),
    "minunet explain examples/gallery/cells.safetensors examples/gallery/cells.png --layer up3": ("up3_maps.png",),
}
CHECKERBOARD = "python examples/04_checkerboard.py checkerboard.png"
PAGE = "minunet explain --transposed --stride 2 --padding 1 --output-padding 1 --html case.html"
TRAIN = "--crop 128x128 --base 4 --depth 3 --lr 3e-3 --epochs 40 --class-names background,round,spindle"


def draw(folder):
    """All pictures, by their commands, into a folder."""
    for command, pictures in COMMANDS.items():
        with tempfile.TemporaryDirectory() as scratch:
            words = command.replace("examples/gallery", str(GALLERY)).replace(" --out explain", "").split()[1:]
            code = cli.main([*words, "--out", scratch])
            assert code == 0, command
            for name in pictures:
                shutil.copy(Path(scratch) / name, folder)
    program = str(GALLERY.parent / "04_checkerboard.py")
    with patch.object(sys, "argv", [program, str(Path(folder) / "checkerboard.png")]):
        runpy.run_path(program, run_name="__main__")


def write_page(path):
    """The page as a file, and its digest, which its picture carries along."""
    assert cli.main(PAGE.replace("case.html", str(path)).split()[1:]) == 0
    return hashlib.sha256(path.read_bytes()).hexdigest()


def photograph(path):
    """The page in a browser, in the middle of its steps."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    with tempfile.TemporaryDirectory() as scratch:
        case = Path(scratch) / "case.html"
        digest = write_page(case)
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                         "--hide-scrollbars", "--window-size=1360,1148",
                         f"--user-data-dir={scratch}/user"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            driver.get(case.as_uri())
            for _ in range(3):
                driver.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_RIGHT)
            driver.save_screenshot(f"{scratch}/page.png")
        finally:
            driver.quit()
        information = PngInfo()
        information.add_text("page", digest)
        with Image.open(f"{scratch}/page.png") as picture:
            picture.save(path, pnginfo=information, optimize=True)


def train():
    """The net, and the first of the images that it has not seen."""
    with tempfile.TemporaryDirectory() as scratch:
        data, run = Path(scratch) / "cells", Path(scratch) / "run"
        own_folder.write_folder(data)
        code = cli.main(["train", "--images", str(data / "images"), "--masks", str(data / "masks"), "--out", str(run),
                         *TRAIN.split()])
        assert code == 0
        shutil.copy(run / "best.safetensors", NET)
        shutil.copy(min((data / "new").iterdir()), IMAGE)


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--train"]):
        sys.exit(__doc__)
    if sys.argv[1:]:
        train()
    draw(GALLERY)
    photograph(GALLERY / "page.png")
