"""The text of an argument becomes a value, or a sentence that names the option and says what is allowed."""

import argparse
import re
from pathlib import Path

import pytest

from minunet.cli import main, values
from tests.cli.helpers import each_mask, look_at_run, rejected, save_net, train


def refuses(parse, text, words):
    with pytest.raises(argparse.ArgumentTypeError, match=words):
        parse(text)


# Numbers


@pytest.mark.parametrize("text, value", [("1", 1), ("007", 7), ("12345678901234567890", 12345678901234567890)])
def test_whole_numbers(text, value):
    assert values.whole(1)(text) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "+1", "1.0", "1e3", "one", " 1", "0x10", "1_000", "²"])
def test_what_is_no_whole_number_of_at_least_1(text):
    refuses(values.whole(1), text, f"^must be a whole number of at least 1; got {re.escape(repr(text))}$")


def test_the_minimum_itself_is_allowed():
    assert values.whole(0)("0") == 0 and values.whole(5)("5") == 5
    refuses(values.whole(5), "4", "at least 5")


@pytest.mark.parametrize("parse, allowed, refused", [
    (values.rate, {"1e-3": 1e-3, "0.5": 0.5, "7": 7, "1e30": 1e30}, ["0", "-1", "nan", "inf", "fast", "", "1e-999"]),
    (values.share, {"0": 0, "0.0": 0, "0.25": 0.25, ".5": 0.5}, ["1", "1.0", "-0.1", "20%", "nan", "1/5", "", "inf"]),
])
def test_rates_and_shares(parse, allowed, refused):
    assert {text: parse(text) for text in allowed} == allowed
    for text in refused:
        refuses(parse, text, "must be a number .*; got " + re.escape(repr(text)))


# Sizes


@pytest.mark.parametrize("text, value", [("128x64", (128, 64)), ("1x1", (1, 1)), ("128X64", (128, 64))])
def test_a_size_is_height_and_width(text, value):
    assert values.size(text) == value


@pytest.mark.parametrize("text", ["", "128", "128x", "x128", "0x16", "16x0", "1x2x3", "16,16", "-8x8", "8.5x8", "8 x 8",
                                  "axb", "8*8"])
def test_what_is_no_size(text):
    refuses(values.size, text, f"^must be HEIGHTxWIDTH in px, such as 128x128; got {re.escape(repr(text))}$")


# Ids


@pytest.mark.parametrize("text, value", [("11", (11,)), ("0", (0,)), ("11,255", (11, 255)), ("1, 2 ,3", (1, 2, 3))])
def test_ids_are_whole_numbers(text, value):
    assert values.ids(text) == value


@pytest.mark.parametrize("text", ["", ",", "1,", "-1", "a", "1;2", "1 2", "0.5", "#ff0000"])
def test_what_is_no_id(text):
    refuses(values.ids, text, "^must be a value in the masks, or several such as 11,255; got ")


# Names


@pytest.mark.parametrize("content", ["sky,road,tree", "sky, road , tree", "sky,road,tree,"])
def test_names_are_separated_by_commas(content):
    assert values.names(content) == ("sky", "road", "tree")


@pytest.mark.parametrize("content", ["sky\nroad\ntree\n", "sky\nroad\ntree", "sky\r\nroad\r\ntree\r\n",
                                     "sky\n\n road\n\ntree\n\n", "\ufeffsky\nroad\ntree\n"])
def test_names_may_stand_in_a_file(tmp_path, content):
    """Editors on Windows end lines and begin files in their own way."""
    (tmp_path / "names.txt").write_bytes(content.encode())
    assert values.names(str(tmp_path / "names.txt")) == ("sky", "road", "tree")


def test_names_keep_blanks_and_other_letters(tmp_path):
    (tmp_path / "names.txt").write_text("traffic light\nStraße\n", encoding="utf-8")
    assert values.names(str(tmp_path / "names.txt")) == ("traffic light", "Straße")
    assert values.names("traffic light,Straße") == ("traffic light", "Straße")


@pytest.mark.parametrize("text", ["", ",", " , ", "a,a", "a,b,a", "a, a"])
def test_names_must_be_there_and_differ(text):
    refuses(values.names, text, "^must be names that differ, separated by commas, or a file")


def test_many_names_are_no_file_name():
    """File systems refuse to look up a name of more than 255 bytes."""
    many = [f"class number {i}" for i in range(60)]
    assert values.names(",".join(many)) == tuple(many)


# Colours


CODES = (0x000000, 0xff0000, 0x0080c0)
NAMES = ("void", "red thing", "sea")


@pytest.mark.parametrize("text", ["#000000,#ff0000,#0080c0", "000000,ff0000,0080C0", "#000000, #FF0000 ,#0080c0",
                                  "0 0 0,255 0 0,0 128 192"])
def test_colours_without_names(text):
    assert values.colors(text) == (CODES, ())


@pytest.mark.parametrize("text", [
    "void=#000000,red thing=#ff0000,sea=#0080c0", "void = #000000, red thing=ff0000,sea=0080c0",
    "void=0 0 0,red thing=255 0 0,sea=0 128 192", "#000000 void,#ff0000 red thing,#0080c0 sea",
])
def test_colours_with_names(text):
    assert values.colors(text) == (CODES, NAMES)


def test_names_count_only_if_all_colours_have_one():
    assert values.colors("void=#000000,#ff0000,sea=#0080c0") == (CODES, ())


FILES = {
    "name r g b": "void 0 0 0\nred thing 255 0 0\nsea 0 128 192\n",
    "r g b name": "0 0 0 void\n255 0 0 red thing\n0 128 192 sea\n",
    "r g b, tab, name": "0 0 0\tvoid\n255 0 0\t\tred thing\n0 128 192\tsea",
    "name,r,g,b with heading": "name,r,g,b\nvoid,0,0,0\nred thing,255,0,0\nsea,0,128,192\n",
    "name, r, g, b with heading": "name, r, g, b\nvoid, 0, 0, 0\nred thing, 255, 0, 0\nsea, 0, 128, 192\n",
    "r,g,b,name": "0,0,0,void\n255,0,0,red thing\n0,128,192,sea\n",
    "name;r;g;b": "name;r;g;b\nvoid;0;0;0\nred thing;255;0;0\nsea;0;128;192\n",
    "#rrggbb name": "#000000 void\n#ff0000 red thing\n#0080c0 sea\n",
    "name #rrggbb": "void #000000\nred thing #FF0000\nsea #0080C0\n",
    "name,#rrggbb with heading": "class,color\nvoid,#000000\nred thing,#ff0000\nsea,#0080c0\n",
    "name=#rrggbb": "void=#000000\nred thing=#ff0000\nsea=#0080c0\n",
    "quoted": '"name","r","g","b"\n"void",0,0,0\n"red thing",255,0,0\n"sea",0,128,192\n',
    "Windows": "void 0 0 0\r\nred thing 255 0 0\r\nsea 0 128 192\r\n",
    "empty lines": "\nvoid 0 0 0\n\nred thing 255 0 0\nsea 0 128 192\n\n",
}


@pytest.mark.parametrize("form", FILES)
def test_colours_may_stand_in_a_file(tmp_path, form):
    (tmp_path / "colors.txt").write_bytes(FILES[form].encode())
    assert values.colors(str(tmp_path / "colors.txt")) == (CODES, NAMES)


def test_a_mark_that_a_file_begins_with_is_no_part_of_a_name(tmp_path):
    (tmp_path / "colors.txt").write_text("void 0 0 0\nsea 0 128 192\n", encoding="utf-8-sig")
    assert values.colors(str(tmp_path / "colors.txt"))[1] == ("void", "sea")


def test_colours_alone_may_stand_in_a_file(tmp_path):
    (tmp_path / "colors.txt").write_text("0 0 0\n255 0 0\n0 128 192\n")
    assert values.colors(str(tmp_path / "colors.txt")) == (CODES, ())


@pytest.mark.parametrize("name", ["facade", "decade", "C3", "a1b2c3", "lane 2"])
def test_a_name_that_could_be_a_colour_stays_a_name(tmp_path, name):
    """facade is six hexadecimal digits."""
    assert values.colors(f"{name}=#ff0000,sea=#0080c0") == ((0xff0000, 0x0080c0), (name, "sea"))


@pytest.mark.parametrize("text", ["red", "#ff00", "#ff0000,blue", "#ff0000,#00ff0", "sky=", "0 0 256", "300 0 0,0 0 0",
                                  "1 2", "#gg0000", "#ff0000,nofile.txt", "#ff0000ff"])
def test_what_is_no_colour(text):
    refuses(values.colors, text, "^must be colours such as .*; got ")


def test_a_line_without_a_colour_is_refused(tmp_path):
    (tmp_path / "colors.txt").write_text("name r g b\nvoid 0 0 0\nsea blue\n")
    refuses(values.colors, str(tmp_path / "colors.txt"), "got 'sea blue'")


def test_a_first_line_with_a_wrong_colour_is_no_heading(tmp_path):
    """Otherwise all ids would be off by one."""
    (tmp_path / "colors.txt").write_text("void 0 0 256\nsea 0 128 192\nsky 0 0 255\n")
    refuses(values.colors, str(tmp_path / "colors.txt"), "got 'void 0 0 256'")


@pytest.mark.parametrize("text", ["", ",", " "])
def test_no_colours_are_not_as_good_as_none_asked_for(text):
    refuses(values.colors, text, "must be colours")


def test_many_colours_are_no_file_name():
    many = [f"class {i}=#{i:06x}" for i in range(60)]
    assert values.colors(",".join(many)) == (tuple(range(60)), tuple(f"class {i}" for i in range(60)))


# On the command line


@pytest.mark.parametrize("option, value", [
    ("--base", "0"), ("--base", "many"), ("--base", "1.5"), ("--depth", "0"), ("--batch", "0"), ("--batch", "-1"),
    ("--epochs", "0"), ("--epochs", ""), ("--lr", "0"), ("--lr", "-1e-3"), ("--lr", "nan"), ("--lr", "inf"),
    ("--lr", "fast"), ("--seed", "-1"), ("--seed", "x"), ("--crop", "128"), ("--crop", "0x16"), ("--cache", "-1"),
    ("--val-split", "1"), ("--test-split", "20%"), ("--dropout", "1"), ("--ignore", "x"), ("--class-names", ","),
    ("--mask-colors", "red"),
])
def test_a_bad_value_is_refused_by_its_option(here, capsys, option, value):
    said = rejected(train(f"{option}={value}"), capsys)
    assert re.fullmatch(f"argument {option}: must be .*; got {re.escape(repr(value))}", said)


@pytest.mark.parametrize("option", ["--up", "--padding", "--norm", "--activation", "--pool", "--schedule", "--device",
                                    "--mask-channel"])
def test_a_choice_is_refused_with_the_choices(here, capsys, option):
    assert re.match(f"argument {option}: invalid choice: 'best'.*choose from ", rejected(train(option, "best"), capsys))


@pytest.mark.parametrize("option, value", [("--size", "0x0"), ("--size", "100"), ("--batch", "0"), ("--channels", "0"),
                                           ("--classes", "none")])
def test_summary_refuses_a_bad_value_by_its_option(capsys, option, value):
    assert re.fullmatch(f"argument {option}: must be .*; got '{value}'", rejected(["summary", option, value], capsys))


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("value", ["0", "1", "-0.5", "half", "nan", "50%"])
def test_a_threshold_is_between_0_and_1(here, capsys, command, value):
    rest = ["images", "--out", "out"] if command == "predict" else ["--images", "images", "--masks", "masks"]
    said = rejected([command, "net.safetensors", *rest, f"--threshold={value}"], capsys)
    assert re.fullmatch(f"argument --threshold: must be a number above 0 and below 1; got '{value}'", said)


@pytest.mark.parametrize("option", ["--class-names", "--mask-colors"])
def test_a_picture_in_place_of_a_list_is_refused_in_words(here, capsys, option):
    said = rejected(train(option, "images/s0.png"), capsys)
    assert re.match(f"argument {option}: ", said) and "invalid names value" not in said and "invalid colors" not in said


def test_names_from_a_file_reach_the_net(here, monkeypatch):
    Path("names.txt").write_text("ground\ncell\nspot\n")
    run = look_at_run(monkeypatch, *train("--class-names", "names.txt", masks="kinds"))
    assert run.checkpoint.class_names == ("ground", "cell", "spot")


def test_values_too_large_for_any_mask_are_no_trouble(here, capsys):
    """A slip of a finger: refused, or noted that no mask holds it."""
    try:
        code = main(["inspect", "images", "masks", "--ignore", "99999999999999999999"])
    except SystemExit as stop:
        code = stop.code
    assert code in (0, 2)


def test_a_single_colour_is_refused(here, capsys):
    each_mask(lambda mask: mask)
    save_net("other.safetensors")
    assert main(train("--mask-colors", "#000000")) == 2
    assert "--mask-colors needs two or more colours" in capsys.readouterr().err
