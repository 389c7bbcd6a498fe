"""What the project says of itself holds: README's commands and links, the version, no paths of somebody's machine."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
from pathlib import Path

import pytest

import minunet

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
LINK = re.compile(r"""\]\(([^)\s]+)|<(?:img|a)\b[^>]*?(?:src|href)=["']([^"']+)""")
TEXTS = {".md", ".py", ".cfg", ".toml", ".sh", ".cu", ".cuh", ".h", ".html", ".csv", ".json", ".txt"}
NESTED = {"kernels", "bench"}          # commands that have commands of their own
OPERATORS = {"&&", "||", ";", "|", "&"}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(markdown: str) -> list[list[str]]:
    """The arguments of every `minunet ...` in a page's ```sh blocks (`.venv/bin/minunet`, `python -m minunet` too)."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word not in OPERATORS:
                    words.append(word)
                    continue
                while words and "=" in words[0]:        # VARIABLE=value before the command
                    words.pop(0)
                if words[1:3] == ["-m", "minunet"]:
                    words = words[2:]
                if words and words[0].rsplit("/", 1)[-1] == "minunet":
                    found.append(words[1:])
                words = []
    return found


def test_commands_are_found():
    block = "$ A=1 .venv/bin/minunet demo --out 'a b' && \\\nx | python3 -m minunet run # -y"
    assert commands(f"```sh\n{block}\n```\n`minunet no`") == [["demo", "--out", "a b"], ["run"]]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_commands_in_the_pages_parse(name, capsys):
    """Those in ```sh blocks as a whole; `minunet train --base 16 ...` in the text by its command and option names."""
    from minunet.cli import build_parser

    def parse(arguments):
        try:
            build_parser().parse_args(arguments)
        except SystemExit as stop:                  # 0 after --help
            assert stop.code == 0, f"{name}: minunet {shlex.join(arguments)}: {capsys.readouterr().err}"
        return capsys.readouterr().out

    markdown = page(name)
    assert commands(markdown) or name != "README.md", "README.md shows no `minunet ...` in a ```sh block"
    for arguments in commands(markdown):
        parse(arguments)
    for mention in re.findall(r"`minunet ([a-z][^`]*)`", markdown):
        words = mention.split()
        within = 2 if words[0] in NESTED and len(words) > 1 and words[1].isalpha() else 1
        options = set(re.findall(r"--[a-z][\w-]*", parse([*words[:within], "--help"])))
        assert set(re.findall(r"--[a-z][\w-]*", mention)) <= options, f"{name}: minunet {mention}"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page(name), flags=re.MULTILINE | re.DOTALL)     # code has a[i](x)
    targets = [a or b for a, b in LINK.findall(text)]
    inside = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in inside if not (ROOT / target).exists()] == []


def test_version_is_read_from_the_package():
    """setup.cfg takes it from the text of minunet/__init__.py, so it is a plain string there. The changelog has it."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    assert config["metadata"]["version"] == "attr: minunet.__version__"
    literals = [ast.literal_eval(node.value) for node in ast.parse(page("minunet/__init__.py")).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"]
    assert literals == [minunet.__version__]
    assert f"## [{minunet.__version__}]" in page("CHANGELOG.md")


def test_no_path_of_a_machine():
    """No text names a directory that exists on one machine only."""
    machine = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\S*")
    rooms = (".ci", "minunet", "kernels", "tests", "benchmarks", "examples")
    files = [*ROOT.glob("*.*"), *(file for room in rooms for file in (ROOT / room).rglob("*"))]
    texts = [file for file in files if file.suffix in TEXTS or file.parent.name == ".ci"]
    assert ROOT / ".ci" / "run" in texts and Path(__file__) in texts
    assert [f"{file.relative_to(ROOT)}: {match}" for file in texts
            for match in machine.findall(file.read_text(encoding="utf-8"))] == []
