"""`minunet predict`: every form of a mask says what the net says, under its image's name, and no source is lost."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minunet.checkpoint import load_checkpoint
from minunet.cli import main
from tests.cli.helpers import SIZE, files_below, pixels, predict, refused, save_net, write


def answers(net="net.safetensors", folder="images"):
    """What the net itself says of each image: probabilities (H, W, K)."""
    checkpoint = load_checkpoint(net)
    return {path.stem: checkpoint.model.predict(checkpoint.normalise(
        pixels(path)[None, ..., None].astype(np.float32) / np.float32(255)))[0] for path in Path(folder).iterdir()}


def likeliest(net="net3.safetensors"):
    """The likeliest id of every pixel; the net finds them all somewhere."""
    found = {name: answer.argmax(-1) for name, answer in answers(net).items()}
    assert set(np.unique(np.stack([*found.values()]))) == {0, 1, 2}
    return found


def opened(path):
    with Image.open(path) as picture:
        picture.load()
        return picture


# Forms


@pytest.mark.parametrize("options, threshold", [((), 0.5), (("--threshold", "0.4"), 0.4),
                                                (("--masks", "binary", "--threshold", "0.6"), 0.6)])
def test_one_class_becomes_0_and_255(here, options, threshold):
    assert main([*predict("images"), *options]) == 0
    for name, answer in answers().items():
        mask = opened(f"out/masks/{name}.png")
        assert mask.mode == "L"
        np.testing.assert_array_equal(mask, np.where(answer[..., 0] >= threshold, 255, 0))
    assert {0, 255} == set(np.unique(np.stack([pixels(path) for path in Path("out/masks").iterdir()])))


@pytest.mark.parametrize("form", ["ids", "colors"])
def test_one_class_may_be_written_as_ids(here, form):
    assert main([*predict("images"), "--masks", form]) == 0
    for name, answer in answers().items():
        np.testing.assert_array_equal(pixels(f"out/masks/{name}.png"), answer[..., 0] >= 0.5)


@pytest.mark.parametrize("options, mode", [((), "P"), (("--masks", "colors"), "P"), (("--masks", "ids"), "L")])
def test_several_classes_become_ids(here, options, mode):
    """The indices of a palette picture are the ids, too."""
    assert main([*predict("images", net="net3.safetensors"), *options]) == 0
    for name, ids in likeliest().items():
        mask = opened(f"out/masks/{name}.png")
        assert mask.mode == mode
        np.testing.assert_array_equal(mask, ids)


def test_colours_tell_the_classes_apart_and_the_background_is_black(here):
    assert main(predict("images", net="net3.safetensors")) == 0
    colours = {}
    for name, ids in likeliest().items():
        rgb = np.asarray(opened(f"out/masks/{name}.png").convert("RGB"))
        for k in range(3):
            colours.setdefault(k, set()).update(map(tuple, rgb[ids == k].tolist()))
    assert all(len(colour) == 1 for colour in colours.values()) and colours[0] == {(0, 0, 0)}
    assert len(set.union(*colours.values())) == 3


def test_several_classes_may_be_written_as_foreground(here):
    assert main([*predict("images", net="net3.safetensors"), "--masks", "binary"]) == 0
    for name, ids in likeliest().items():
        np.testing.assert_array_equal(pixels(f"out/masks/{name}.png"), np.where(ids > 0, 255, 0))


@pytest.mark.parametrize("only", ["kind 0", "0", "kind 1", "1", "kind 2", "2"])
@pytest.mark.parametrize("form", [None, "binary"])
def test_only_one_class_by_name_or_id(here, only, form):
    options = ["--only", only, *(["--masks", form] if form else [])]
    assert main([*predict("images", net="net3.safetensors"), *options]) == 0
    k = int(only[-1])
    for name, ids in likeliest().items():
        np.testing.assert_array_equal(pixels(f"out/masks/{name}.png"), np.where(ids == k, 255, 0))


@pytest.mark.parametrize("form", ["ids", "colors"])
def test_only_one_class_has_no_ids(here, capsys, form):
    said = refused([*predict("images", net="net3.safetensors"), "--only", "1", "--masks", form], capsys)
    assert said == f"--only gives masks of 0 and 255; leave --masks {form} out"


@pytest.mark.parametrize("only, k", [("kind 2", 2), ("0", 0)])
@pytest.mark.parametrize("threshold", [0.2, 0.45])
def test_only_one_class_by_its_probability(here, only, k, threshold):
    """With a threshold a pixel may be of the class even where another one is likelier, or not although it is."""
    assert main([*predict("images", net="net3.safetensors"), "--only", only, "--threshold", str(threshold)]) == 0
    differs = False
    for name, answer in answers("net3.safetensors").items():
        expected = np.where(answer[..., k] >= threshold, 255, 0)
        differs |= (expected != np.where(answer.argmax(-1) == k, 255, 0)).any()
        np.testing.assert_array_equal(pixels(f"out/masks/{name}.png"), expected)
    assert differs


@pytest.mark.parametrize("only", ["cell", "1"])
def test_the_one_class_may_be_named(here, only):
    assert main(predict("images")) == main([*predict("images", out="named"), "--only", only]) == 0
    assert files_below("named") == files_below("out")


@pytest.mark.parametrize("net, only, known", [
    ("net.safetensors", "rim", "1 cell"), ("net.safetensors", "0", "1 cell"), ("net.safetensors", "2", "1 cell"),
    ("net3.safetensors", "3", "0 kind 0, 1 kind 1, 2 kind 2"), ("net3.safetensors", "kind", "0 kind 0, 1 kind 1, 2"),
    ("net3.safetensors", "-1", "0 kind 0, 1 kind 1, 2 kind 2"),
])
def test_a_class_that_the_net_does_not_know_is_refused_with_those_it_knows(here, capsys, net, only, known):
    said = refused([*predict("images", net=net), f"--only={only}"], capsys)
    assert said.startswith("--only: ") and repr(only) in said and known in said and not Path("out").exists()


def test_a_threshold_is_refused_for_several_classes(here, capsys):
    said = refused([*predict("images", net="net3.safetensors"), "--threshold", "0.5"], capsys)
    assert re.match("--threshold is for one class, and this net has 3.*--only", said) and not Path("out").exists()


# What is written


def test_probabilities_are_written_on_request(here):
    for net, classes in (("net", 1), ("net3", 3)):
        assert main([*predict("images", net=f"{net}.safetensors", out=net), "--probabilities"]) == 0
        for name, answer in answers(f"{net}.safetensors").items():
            written = np.load(f"{net}/probabilities/{name}.npy")
            assert written.dtype == np.float32 and written.shape == (*SIZE, classes)
            np.testing.assert_array_equal(written, answer)


def test_probabilities_of_one_class_alone(here):
    assert main([*predict("images", net="net3.safetensors"), "--probabilities", "--only", "2"]) == 0
    for name, answer in answers("net3.safetensors").items():
        np.testing.assert_array_equal(np.load(f"out/probabilities/{name}.npy"), answer[..., 2:])


def test_masks_and_overlays_are_all_that_is_written_otherwise(here, capsys):
    assert main(predict("images")) == 0
    assert files_below("out").keys() == {f"{kind}/s{i}.png" for kind in ("masks", "overlays") for i in range(6)}
    assert "6 masks in out/masks, overlays in out/overlays" in capsys.readouterr().out


def test_an_overlay_is_the_image_but_for_a_tint_where_the_class_is(here):
    assert main(predict("images")) == 0
    for i in range(6):
        grey, mask = pixels(f"images/s{i}.png"), pixels(f"out/masks/s{i}.png")
        overlay = opened(f"out/overlays/s{i}.png")
        assert (overlay.format, overlay.mode, overlay.size) == ("PNG", "RGB", SIZE[::-1])
        coloured = (np.asarray(overlay) != grey[..., None]).any(-1)
        np.testing.assert_array_equal(coloured, mask > 0)


def test_overlays_of_several_classes_have_a_legend_below(here):
    assert main(predict("images", net="net3.safetensors")) == 0
    overlay = opened("out/overlays/s0.png")
    assert overlay.height > SIZE[0] and overlay.width >= SIZE[1]


def test_black_masks_are_told(here, capsys):
    assert main([*predict("images"), "--threshold", "0.999"]) == 0
    assert "nothing was found in 6 of them" in capsys.readouterr().out
    assert main(predict("images", net="net3.safetensors", out="other")) == 0
    assert "nothing was found" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [(), ("--probabilities", "--only", "1", "--threshold", "0.3")])
def test_the_same_command_twice_gives_the_same_bytes(here, options):
    """Into another folder, and into the same."""
    for out in ("a", "b"):
        assert main([*predict("images", net="net3.safetensors", out=out), *options]) == 0
    first = files_below("a")
    assert first == files_below("b")
    assert main([*predict("images", net="net3.safetensors", out="a"), *options]) == 0
    assert files_below("a") == first


# Images of every kind


@pytest.mark.parametrize("channels, classes", [(1, 1), (3, 1), (1, 5), (3, 5)])
@pytest.mark.parametrize("mode, name", [
    ("1", "a.png"), ("L", "a.tif"), ("LA", "a.png"), ("P", "a.gif"), ("RGB", "a.jpg"), ("RGBA", "a.PNG"),
    ("I;16", "a.png"), ("CMYK", "a.jpeg"), ("L", "a.bmp"), ("RGB", "a.tiff"),
])
def test_predicted_masks_have_the_size_of_the_source(here, mode, name, channels, classes):
    save_net("some.safetensors", channels, classes)
    noise = np.random.default_rng(0).integers(0, 256, (19, 37, 3), dtype=np.uint8)
    picture = Image.fromarray(noise[..., 0].astype(np.uint16) * 257 if mode == "I;16" else noise)
    picture = picture if mode == "I;16" else picture.convert(mode)
    picture.save(f"empty/{name}")
    assert main(predict(f"empty/{name}", net="some.safetensors")) == 0
    assert files_below("out").keys() == {"masks/a.png", "overlays/a.png"}
    mask = opened("out/masks/a.png")
    assert mask.size == (37, 19) and mask.format == "PNG"
    values = set(np.unique(mask).tolist())
    assert values == {0, 255} if classes == 1 else values <= {0, 1, 2, 3, 4} and len(values) > 1


def test_equal_pictures_give_equal_masks_whatever_their_mode(here):
    """8 and 16 bits, grey as colour, as a palette, with transparency."""
    grey = pixels("images/s0.png")
    picture = Image.fromarray(grey)
    palette = Image.fromarray(grey)
    palette.putpalette([level for level in range(256) for _ in range(3)])
    for name, same in (("eight", picture), ("sixteen", Image.fromarray(grey.astype(np.uint16) * 257)),
                       ("colour", picture.convert("RGB")), ("palette", palette), ("alpha", picture.convert("LA"))):
        same.save(f"empty/{name}.png")
    assert main(predict("empty")) == 0
    masks = [pixels(path) for path in sorted(Path("out/masks").iterdir())]
    assert len(masks) == 5
    for mask in masks:
        np.testing.assert_array_equal(mask, masks[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (45, 61)])
@pytest.mark.parametrize("options", [{}, {"padding": "valid"}, {"size": (20, 12)}])
def test_images_of_any_size_are_predicted(here, size, options):
    save_net("some.safetensors", **options)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)).save("empty/a.png")
    assert main(predict("empty", net="some.safetensors")) == 0
    assert pixels("out/masks/a.png").shape == size


def test_valid_convolutions_answer_for_the_pixels_that_they_are_over(here):
    """In the middle no extension of the image matters: there stands what the net says of the image as it is."""
    save_net("valid.safetensors", padding="valid")
    image = np.random.default_rng(0).integers(0, 256, (60, 52), dtype=np.uint8)
    Image.fromarray(image).save("empty/a.png")
    assert main([*predict("empty", net="valid.safetensors"), "--probabilities"]) == 0
    middle = answers("valid.safetensors", "empty")["a"]
    assert middle.shape == (20, 12, 1)
    np.testing.assert_allclose(np.load("out/probabilities/a.npy")[20:40, 20:32], middle, rtol=1e-5)


@pytest.mark.parametrize("orientation, turned", [
    (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (4, np.flipud), (5, np.transpose), (6, lambda a: np.rot90(a, 3)),
    (7, lambda a: np.rot90(a, 2).T), (8, np.rot90),
])
def test_a_photograph_is_taken_upright(here, orientation, turned):
    """As the EXIF orientation tells (6: what is stored is turned clockwise to be shown)."""
    grey = pixels("images/s0.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey).save("empty/phone.png", exif=exif)
    Image.fromarray(np.ascontiguousarray(turned(grey))).save("empty/upright.png")
    assert main(predict("empty")) == 0
    np.testing.assert_array_equal(pixels("out/masks/phone.png"), pixels("out/masks/upright.png"))


# Names


def test_nested_folders_keep_their_structure(here):
    for name in ("plate1/a.png", "plate1/deep/a.png", "plate2/a.png", "top.b.png"):
        Path("nest", name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("images/s0.png", Path("nest", name))
    Path("nest/.hidden").mkdir()
    shutil.copy("images/s0.png", "nest/.hidden/x.png")
    assert main([*predict("nest"), "--probabilities"]) == 0
    stems = ("plate1/a", "plate1/deep/a", "plate2/a", "top.b")
    assert files_below("out").keys() == {
        f"{kind}/{stem}{end}" for stem in stems
        for kind, end in (("masks", ".png"), ("overlays", ".png"), ("probabilities", ".npy"))}


def test_folders_and_files_may_be_mixed(here, capsys):
    Path("images/notes.txt").write_text("left alone")
    Image.new("L", (1, 1)).save("single.bmp")
    assert main(predict("single.bmp", "images")) == 0
    assert {path.stem for path in Path("out/masks").iterdir()} == {"single", *(f"s{i}" for i in range(6))}
    assert "7 masks in out/masks" in capsys.readouterr().out


@pytest.mark.parametrize("files", [("images", "more"), ("more", "images"), ("images/s0.png", "more/s0.jpg"),
                                   ("images", "images/s0.png")])
def test_two_images_of_one_name_are_refused(here, capsys, files):
    write("more/s0.jpg")
    said = refused(predict(*files), capsys)
    assert "images/s0.png" in said and "name" in said and not Path("out").exists()


def test_one_name_in_one_folder_twice_is_refused(here, capsys):
    shutil.copy("images/s1.png", "images/s1.tif")
    said = refused(predict("images"), capsys)
    assert "images/s1.png" in said and "images/s1.tif" in said


# Sources


@pytest.mark.parametrize("files, out", [
    (["images/masks/a.png"], "images"), (["images/overlays/b.png"], "images"),
    (["images/masks/a.png", "images/overlays/b.png"], "empty/../images"),
])
def test_a_source_is_never_overwritten(here, capsys, files, out):
    for name in ("masks/a.png", "overlays/b.png"):
        Path("images", name).parent.mkdir()
        shutil.copy("images/s0.png", Path("images", name))
    before = files_below("images")
    said = refused(predict(*files, out=out), capsys)
    assert "overwrite" in said
    assert files_below("images") == before


def test_earlier_results_below_the_images_are_not_taken_for_images(here):
    for _ in range(2):
        assert main(predict("images", out="images/found")) == 0
    assert files_below("images/found").keys() == {f"{kind}/s{i}.png" for kind in ("masks", "overlays")
                                                  for i in range(6)}


@pytest.mark.parametrize("out", [".", "images", "images/.."])
def test_results_may_go_beside_or_above_the_images_or_the_reason_is_true(here, capsys, out):
    """The images are there: whatever happens, the command may not deny that, and may not change them."""
    shutil.rmtree("masks")
    before = files_below("images")
    code = main(predict("images", out=out))
    assert "no image files" not in capsys.readouterr().err
    assert code in (0, 2)
    after = files_below("images")
    assert {name: after[name] for name in before} == before


def test_the_masks_that_a_person_drew_are_not_overwritten(here, capsys):
    """They often are beside the images, where --out may point to by mistake; no overlays say that they are drawn."""
    before = files_below("masks")
    main(predict("images/s0.png", "images/s1.png", out="."))
    assert files_below("masks") == before
