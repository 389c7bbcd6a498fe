"""`minunet explain`: its options, what they write, what the terminal may show, and what it refuses."""

import io
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from PIL import Image

from minunet.cli import explain, main
from minunet.cli.matrices import dimmed
from minunet.errors import UserError
from tests.cli.helpers import complaint, refused, rejected, run_command
from tests.cli.told import blocks, said


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Runs the command in a terminal of so many columns and gives what it showed."""
    def run(*arguments, columns=100, **environment):
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            for name in ("NO_COLOR", "TERM"):
                patch.delenv(name, raising=False)
            for name, value in {"COLUMNS": str(columns), **environment}.items():
                patch.setenv(name, value)
            assert main(["explain", *arguments]) == 0
        return screen.getvalue()
    return run


def test_structural_zeros_are_dimmed_in_a_terminal(terminal, capsys):
    text, plain = terminal(), said(capsys)
    assert re.sub(r"\x1b\[2?2m", "", text) == plain
    dim = "".join(re.findall(r"\x1b\[2m(.*?)\x1b\[22m", text))
    assert set(dim) == {"·", " "} and dim.count("·") > 48
    assert "\x1b" not in terminal(NO_COLOR="1") and "\x1b" not in terminal(TERM="dumb")
    assert "\x1b" in terminal(NO_COLOR="")
    assert dimmed("1 · · 2 ·") == "1 \x1b[2m· ·\x1b[22m 2 \x1b[2m·\x1b[22m"


@pytest.mark.parametrize("columns", [1, 40, 61, 250])
def test_the_terminals_width_is_kept(terminal, columns):
    lines = terminal("--size", "12x12", columns=columns, NO_COLOR="1").splitlines()
    longest = max(map(len, lines))
    assert longest <= max(columns, 40) and (longest > 110) == (columns == 250)


def test_a_terminal_can_be_too_narrow(terminal):
    assert terminal(columns=1) == terminal(columns=40)


def test_without_a_terminal_the_environment_is_not_asked(capsys, monkeypatch):
    text = said(capsys)
    monkeypatch.setenv("COLUMNS", "45")
    assert said(capsys) == text


def test_a_terminal_without_these_letters():
    done = subprocess.run([sys.executable, "-m", "minunet", "explain"], capture_output=True, timeout=60,
                          env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0 and done.stderr == b"" and b"A? (16, 4)" in done.stdout


# ---- options


def test_both_sides_can_be_given(capsys):
    arguments = ["--kernel", "2", "--values", "1 1; 1 1", "--x", "1 2 3; 4 5 6; 7 8 9", "--y", "0 1; 0 0"]
    for option in ([], ["--transposed"]):
        found = blocks(said(capsys, *arguments, *option))
        assert found["A x as 2x2"] == [["12", "16"], ["24", "28"]]
        assert found["Aᵀ y as 3x3"] == [["0", "1", "1"], ["0", "1", "1"], ["0", "0", "0"]]


def test_values_give_the_kernel(capsys):
    found = blocks(said(capsys, "--values", "1 -2.5 3; 4,5,6", "--x", "1 0 0; 0 1 0"))
    assert found["kernel"] == [["1", "-2.5", "3"], ["4", "5", "6"]] and found["= A x (1)"] == [["6"]]
    found = blocks(said(capsys, "--values=-1", "--kernel", "1x1", "--size", "2x2", "--x", "1 2; 3 4"))
    assert found["A x as 2x2"] == [["-1", "-2"], ["-3", "-4"]]


def test_values_of_several_channels_and_filters(capsys):
    text = said(capsys, "--values", "1|2|3|4|5|6", "--channels", "2x3", "--size", "1x1", "--x", "10|1")
    found = blocks(text)
    assert [found[f"kernel, filter {f} channel {c}"] for f in range(3) for c in range(2)] == [
        [[str(n)]] for n in range(1, 7)]
    assert [found[f"A x, filter {f}"] for f in range(3)] == [[["12"]], [["34"]], [["56"]]]
    assert "A (3, 2) has a block (1, 1) for each filter that it makes and each channel that it reads" in text
    found = blocks(said(capsys, "--values", "1|2|3|4|5|6", "--channels", "2x3", "--y", "1|10|100", "--transposed"))
    assert [found[f"Aᵀ y, channel {c}"] for c in range(2)] == [[["531"]], [["642"]]]


def test_given_numbers_give_the_size(capsys):
    found = blocks(said(capsys, "--transposed", "--y", "1 0 0; 0 0 2", "--stride", "3", "--kernel", "3"))
    assert found["y (2x3)"] == [["1", "0", "0"], ["0", "0", "2"]]
    assert found["Aᵀ y as 6x9"][0] == "1 4 1 0 0 0 0 0 0".split()


@pytest.mark.parametrize("arguments, first", [
    ([], "3x3 kernel, stride 1, padding 0, dilation 1; 4x4 image, 2x2 windows"),
    (["--stride", "2"], "3x3 kernel, stride 2, padding 0, dilation 1; 5x5 image, 2x2 windows"),
    (["--kernel", "2", "--stride", "2"], "2x2 kernel, stride 2, padding 0, dilation 1; 4x4 image, 2x2 windows"),
    (["--kernel", "2x5", "--dilation", "1x2"],
     "2x5 kernel, stride 1, padding 0, dilation 1x2; 4x10 image, 3x2 windows"),
    (["--padding", "9"], "3x3 kernel, stride 1, padding 9, dilation 1; 4x4 image, 20x20 windows"),
    (["--stride", "2", "--output-padding", "1x0"],
     "3x3 kernel, stride 2, padding 0, dilation 1; 6x5 image, 2x2 windows"),
    (["--stride", "2", "--padding", "1", "--output-padding", "1", "--size", "4x4"],
     "3x3 kernel, stride 2, padding 1, dilation 1; 4x4 image, 2x2 windows"),
    (["--transposed", "--stride", "2", "--padding", "1", "--output-padding", "0x1", "--size", "3x4"],
     "3x3 kernel, stride 2, padding 1, dilation 1; 5x8 image, 3x4 windows"),
    (["--size", "5"], "3x3 kernel, stride 1, padding 0, dilation 1; 5x5 image, 3x3 windows"),
    (["--y", "1 2; 3 4", "--stride", "2"], "3x3 kernel, stride 2, padding 0, dilation 1; 5x5 image, 2x2 windows"),
    (["--y", "1 2; 3 4", "--stride", "2", "--output-padding", "1"],
     "3x3 kernel, stride 2, padding 0, dilation 1; 6x6 image, 2x2 windows"),
    (["--transposed", "--x", "1 2 3", "--kernel", "1x2", "--stride", "1x2"],
     "1x2 kernel, stride 1x2, padding 0, dilation 1; 1x3 image, 1x1 windows"),
    (["--channels", "1x2"],
     "3x3 kernel, stride 1, padding 0, dilation 1; 4x4 image, 2x2 windows; 1 channel, 2 filters"),
])
def test_the_settings_are_those_asked_for(capsys, arguments, first):
    assert " ".join(said(capsys, *arguments).split()).startswith(first + " kernel")


@pytest.mark.parametrize("arguments, words", [
    ("net --kernel 3", "--kernel and a checkpoint (net) exclude each other, for a net has its own convolutions; leave "
     "one of them out"),
    ("net image --output-padding 0", "--output-padding and a checkpoint (net) exclude"),
    ("net --serve", "--serve and a checkpoint (net) exclude each other"),
    ("--layer up1", "--layer is of a trained net; give its CHECKPOINT too"),
    ("--port 8000", "--port is of --serve; leave it out, or add --serve"),
    ("--kernel 3 --values 1;2", "--kernel 3x3 and --values, which holds 2x1 numbers, contradict each other; leave "
     "--kernel out, or give other numbers"),
    ("--size 4x4 --x 1,2,3;4,5,6;7,8,9", "--size 4x4 and --x, which holds 3x3 numbers, contradict each other"),
    ("--values 1|2", "--values holds 2 kernels, but 1 channel and 1 filter take 1; give --channels CxF"),
    ("--values 1 --channels 2x1", "--values holds 1 kernel, but 2 channels and 1 filter take 2"),
    ("--x 1|2 --kernel 1", "--x holds the numbers of 2 channels and must hold those of 1; give --channels CxF"),
    ("--y 1 --transposed --channels 1x2", "--y holds the numbers of 1 filter and must hold those of 2"),
    ("--output-padding 1 --size 5x5 --stride 2",
     "--output-padding 1 does not lead from 2x2 windows back to 5x5 px; 0 does"),
    ("--output-padding 0 --size 5x6 --stride 2",
     "--output-padding 0 does not lead from 2x2 windows back to 5x6 px; 0x1 does"),
    ("--output-padding 1", "output_padding must be below the stride, 0 to 0 in height; got 1"),
    ("--transposed --output-padding 2 --stride 2", "output_padding must be below the stride"),
    ("--kernel 5 --size 3x3", "kernel: its window spans 5 px in height"),
    ("--transposed --padding 3 --size 1x1", "padding: the transposed size in height would be"),
    ("--size 10000x10000", "size: the convolution matrix would have"),
    ("--x 1,2;3,4 --y 1,2 --kernel 1",
     "--x is an image of 2x2 px, which has 2x2 windows, but --y is of 1x2; leave one of them out"),
    ("--size 4x4 --y 1,2;3,4 --stride 2",
     "--size is an image of 4x4 px, which has 1x1 windows, but --y is of 2x2; leave one of them out"),
    ("--transposed --size 3x3 --x 1,2,3 --kernel 1",
     "--x is an image of 1x3 px, which has 1x3 windows, but --size is of 3x3"),
    ("--size 20 --html page.html", "--html: "), ("--size 20 --serve", "--serve: "),
    ("--html page.txt", "--html: must be a file that ends in .html; got page.txt"),
])
def test_what_contradicts_itself_is_refused_in_a_sentence(capsys, arguments, words):
    assert refused(["explain", *arguments.split()], capsys).startswith(words)


@pytest.mark.parametrize("name", explain.OWN)
def test_a_checkpoint_takes_no_option_of_a_geometry(capsys, name):
    value = {"size": "3x3", "channels": "1x1", "values": "1", "x": "1", "y": "1", "html": "a.html", "transposed": None,
             "serve": None}.get(name, "1")
    option = "--" + name.replace("_", "-")
    said = refused(["explain", "net", option, *([value] if value else [])], capsys)
    assert said.startswith(f"{option} and a checkpoint (net) exclude each other")


@pytest.mark.parametrize("option, value, words", [
    ("--kernel", "0", "must be a whole number from 1 to 1,000,000, or two such as 3x2 (HEIGHTxWIDTH); got '0'"),
    ("--kernel", "3x", "must be a whole number"), ("--stride", "2x2x2", "must be a whole number"),
    ("--stride", "1.5", "must be a whole number"), ("--padding", "-1", "must be a whole number from 0"),
    ("--dilation", "99999999", "got '99999999'"), ("--output-padding", "", "must be a whole number from 0"),
    ("--size", "4x", "must be a whole number from 1"), ("--out", "", "must be a folder; got ''"),
    ("--channels", "3", "must be CHANNELSxFILTERS, such as 2x3"),
    ("--channels", "0x1", "must be CHANNELSxFILTERS"), ("--port", "x", "must be a whole number of at least 0"),
    ("--values", "", "must be rows of equally many numbers, such as '1 4 1; 1 4 3; 3 3 1'"),
    ("--values", "1 2; 3", "must be rows of equally many numbers"), ("--values", "1 | 2 3", "of one shape"),
    ("--values", "1 2;", "must be rows of equally many numbers"),
    ("--values", "1 a", "must hold numbers from -1,000,000 to 1,000,000; got 'a'"),
    ("--x", "nan", "must hold numbers"), ("--y", "1e300", "got '1e300'"),
])
def test_what_cannot_be_read_is_rejected(capsys, option, value, words):
    said = rejected(["explain", f"{option}={value}"], capsys)
    assert said.startswith(f"argument {option}: ") and words in said


# ---- pictures, page, nets


@pytest.fixture
def studio(monkeypatch):
    """Stands for the pictures and pages, which have tests of their own; gives what was asked of it."""
    asked = []

    def draw(e, path, transposed):
        asked.append((e.size, transposed, path.name))
        path.write_bytes(b"")

    monkeypatch.setattr(explain, "PICTURES", {"matrix.png": (draw, "the matrix")})
    monkeypatch.setattr(explain, "ANIMATIONS", {"convolution.gif": (draw, "many to one")})
    monkeypatch.setattr(explain, "write_html",
                        lambda e, transposed, path: asked.append((e.size, transposed, path.name)))
    return asked


def test_out_writes_every_picture_and_says_what_it_shows(capsys, studio, tmp_path):
    folder = tmp_path / "new" / "explain"
    text = said(capsys, "--out", str(folder), "--size", "4x5")
    assert studio == [((4, 5), False, "matrix.png"), ((4, 5), False, "convolution.gif")]
    assert text.endswith(f"\n\n{folder}/matrix.png: the matrix\n{folder}/convolution.gif: many to one\n")
    assert text.startswith("3x3 kernel") and "--serve opens" not in text
    assert said(capsys, "--size", "4x5").endswith("--serve opens a page with numbers to change and to follow.\n")


def test_every_real_picture_is_written(capsys, tmp_path):
    text = said(capsys, "--kernel", "2", "--stride", "2", "--out", str(tmp_path))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["columns.png", "convolution.gif", "matrix.png", "overlap.png", "transposed.gif"]
    for name in files:
        assert f"\n{tmp_path / name}: " in text
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 300 and (getattr(picture, "n_frames", 1) > 1) == name.endswith(".gif")


def test_what_leads_is_passed_on(capsys, studio, tmp_path):
    said(capsys, "--out", str(tmp_path), "--transposed")
    assert {transposed for _, transposed, _ in studio} == {True}


@pytest.mark.parametrize("option", [["--serve"], ["--html", "page.html"]])
def test_what_the_page_cannot_show_is_refused_before_anything_is_drawn(capsys, studio, monkeypatch, tmp_path, option):
    monkeypatch.undo()
    monkeypatch.setattr(explain, "PICTURES", {"a.png": (lambda *_: pytest.fail("drawn first"), "")})
    monkeypatch.chdir(tmp_path)
    refusal = refused(["explain", "--size", "20", "--out", "out", *option], capsys)
    assert refusal.startswith(f"{option[0]}: ") and not (tmp_path / "page.html").exists()


def test_a_taken_port_is_refused_before_anything_is_drawn(capsys, studio, monkeypatch, tmp_path):
    def taken(*_, **__):
        raise UserError("port 1 cannot be had (taken)")
    monkeypatch.setattr(explain, "PageServer", taken)
    refusal = refused(["explain", "--serve", "--port", "1", "--out", str(tmp_path / "out")], capsys)
    assert refusal.startswith("--port: port 1 cannot be had") and studio == []


@pytest.mark.parametrize("what", ["write_html", "tell"])
def test_a_fault_of_ours_is_not_called_the_users(monkeypatch, tmp_path, what):
    def fault(*_):
        raise KeyError("ours")
    monkeypatch.setattr(explain, what, fault)
    with pytest.raises(KeyError):
        main(["explain", *(["--html", str(tmp_path / "a.html")] if what == "write_html" else [])])


def test_a_fault_in_a_picture_is_not_called_the_users(monkeypatch, tmp_path):
    def fault(*_):
        raise ValueError("ours")
    monkeypatch.setattr(explain, "PICTURES", {"a.png": (fault, "")})
    with pytest.raises(ValueError, match="ours"):
        main(["explain", "--out", str(tmp_path)])


def test_html_writes_the_page_instead_of_text(capsys, studio, tmp_path):
    file = tmp_path / "new" / "page.html"
    assert said(capsys, "--html", str(file), "--transposed") == f"{file}: this case as a page; open it in a browser\n"
    assert studio == [((4, 4), True, "page.html")] and file.parent.is_dir()


def test_a_file_in_the_way(capsys, tmp_path):
    (tmp_path / "out").write_text("")
    assert "there is a file of this name in the way" in refused(["explain", "--out", str(tmp_path / "out")], capsys)
    (tmp_path / "folder.html").mkdir()
    assert "must be a file that ends in .html" in refused(["explain", "--html", str(tmp_path / "folder.html")], capsys)


def test_the_page_is_served_until_ctrl_c():
    process = subprocess.Popen([sys.executable, "-m", "minunet", "explain", "--serve", "--kernel", "2"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watch = threading.Timer(60, process.kill)
    watch.start()
    try:
        line = process.stdout.readline()
        url = re.fullmatch(r"look at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends it\)\n", line)[1]
        assert b"<html" in urllib.request.urlopen(url).read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        watch.cancel()
        process.kill()
    assert (process.returncode, out, err) == (0, "\n", "")


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused(["explain", "--serve", "--port", str(taken.getsockname()[1])], capsys)
    assert said.startswith("--port: port ") and "cannot be had" in said


@pytest.mark.parametrize("arguments, expected", [
    (["net.st"], ("net.st", "None", None, "explain")),
    (["net.st", "cell.png", "--layer", "up1", "--out", "there"], ("net.st", "cell.png", "up1", "there")),
])
def test_a_checkpoint_is_handed_over(monkeypatch, arguments, expected):
    seen = []
    monkeypatch.setattr(explain, "explain_net", lambda *given: seen.append(given))
    assert main(["explain", *arguments]) == 0
    (checkpoint, image, layer, out), = seen
    assert (str(checkpoint), str(image), layer, str(out)) == expected


def test_the_real_command():
    done = run_command("explain", "--size", "2x2")
    assert done.returncode == 2 and complaint(done.stderr).startswith("kernel: its window spans 3 px in height")
    done = run_command("explain", "--help")
    assert done.returncode == 0 and "[CHECKPOINT] [IMAGE]" in " ".join(done.stdout.split())


def test_what_leads_is_served_at_the_port_asked_for(capsys, monkeypatch):
    asked = []

    def serve(e, transposed, port):
        asked.append((transposed, port))
        return nullcontext(SimpleNamespace(url="here", serve_forever=lambda: None))

    monkeypatch.setattr(explain, "PageServer", serve)
    assert said(capsys, "--serve", "--port", "7", "--transposed") == "look at here (Ctrl-C ends it)\n"
    said(capsys, "--serve")
    assert asked == [(True, 7), (False, 0)]
