"""The CUDA kernels, looked at without a GPU: `minunet kernels` lists, shows, compiles and traces them."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill

from minunet import cuda, nvrtc
from minunet.cli.values import Commands, counted, picture, whole
from minunet.cuda import resolve
from minunet.errors import UserError
from minunet.study.kernels import BANKS, SECTOR, WARP, draw, study

TITLES = ("kernel", "constants", "threads", "registers", "spilled B", "stack B", "shared B", "blocks", "occupancy")
WORDS = 2               # the first columns are words, the others figures
LEGEND = """\
registers, spilled and stack memory are of a thread, shared memory of a block; +: a launch adds to it
blocks: how many a multiprocessor holds; occupancy: their share of the warps that it can hold; both by calculation, and
at most (≤) where a launch adds shared memory"""


def add_commands(commands: Commands) -> None:
    """kernels, with its own commands show, run and compile."""
    kernels = commands.add_parser("kernels", help="the CUDA kernels: list, show, run, compile (no GPU needed)",
                                  description="Without a command: list the kernels by file.")
    kernels.set_defaults(run=_list)
    inner = kernels.add_subparsers(metavar="COMMAND")

    show = inner.add_parser("show", help="the thought behind a kernel's file, and the kernel's source")
    show.set_defaults(run=_show)
    show.add_argument("name", metavar="NAME", help="a kernel, such as relu or activation.relu, or a file")

    run = inner.add_parser("run", help="a small example of a kernel on the simulated GPU, with every access checked")
    run.set_defaults(run=_run)
    run.add_argument("name", metavar="NAME", help="a kernel, such as relu or activation.relu")
    run.add_argument("--trace", nargs="?", const="", metavar="FILE",
                     help="print what the threads of one warp touched, line by line, and draw it into FILE (PNG)")
    run.add_argument("--block", type=whole(0), default=0, help="of the launch (%(default)s)")
    run.add_argument("--warp", type=whole(0), default=0, help="of the block (%(default)s)")

    build = inner.add_parser("compile", help="registers, shared memory and occupancy of each kernel, by NVRTC")
    build.set_defaults(run=_compile)
    build.add_argument("--arch", nargs="+", choices=[f"sm_{arch}" for arch in nvrtc.ARCHITECTURES],
                       default=["sm_80", "sm_90"], metavar="sm_NN",
                       help="architectures: %(choices)s (sm_80 sm_90)")
    build.add_argument("--file", nargs="+", metavar="NAME", help="of these files alone, such as activation")
    build.add_argument("--real", choices=("float", "double"), default="float",
                       help="the number type to compile with (%(default)s)")
    build.add_argument("--markdown", action="store_true", help="print the tables in Markdown")


def _list(arguments: argparse.Namespace) -> None:
    for file in _files():
        least = f" Needs sm_{cuda.needs(file)} or above." if cuda.needs(file) else ""
        print(fill(f"{file}.cu: {_first_sentence(_thesis(file))}{least}", 110, subsequent_indent="  "))
        print("\n".join(_signatures(file)))
    print("\nminunet kernels show NAME prints the source of one, minunet kernels compile what each costs on a GPU")


def _signatures(file: str) -> Iterator[str]:
    """A line for each kernel of a file."""
    for kernel in cuda.kernels_of(file).values():
        threads = sorted({kernel.compiled_with(constants).threads for constants in nvrtc.variants(file)})
        line = (f"{kernel.name}({', '.join(map(_declared, kernel.parameters))}), "
                f"{' or '.join(map(str, threads))} threads a block")
        yield fill(line, 110, initial_indent="    ", subsequent_indent=" " * 8)


def _show(arguments: argparse.Namespace) -> None:
    if arguments.name in _files():
        print(f"{_thesis(arguments.name)}\n\n" + "\n".join(_signatures(arguments.name)))
        return
    kernel = _named(arguments.name)
    print(f"{_thesis(kernel.file)}\n\n{_source(kernel)}")


def _run(arguments: argparse.Namespace) -> None:
    kernel = _named(arguments.name)
    resolve("sim")
    if arguments.trace:
        picture(Path(arguments.trace), "--trace")
    found = study(f"{kernel.file}.{kernel.name}", arguments.block, arguments.warp)
    launch = found.launch
    print(f"{launch.kernel} on the simulated GPU: {found.example}")
    constants = _constants({name: str(value) for name, value in launch.defines})
    print(f"{counted(math.prod(launch.grid), 'block')} of {launch.threads} threads" + f", {constants}" * bool(constants)
          + "; " + ", ".join(f"{name} {dtype} {'x'.join(map(str, shape)) or '1'}"
                             for name, (shape, dtype) in launch.arrays.items()))
    print("no race, no access out of bounds, no read of uninitialised memory")
    if arguments.trace is None:
        return
    print(f"\nblock {found.block}, warp {found.warp}: what its {WARP} lanes touched together")
    rows = [("times", "access", "lanes", "cost", "least", "place", "source")]
    for group in found.groups:
        cost, least = group.costs
        rows.append((f"{len(group.steps)}", f"{group.kind} {group.array}", f"{len(group.first.accesses)}",
                     f"{cost:.3g} {'turns' if group.shared else 'sectors'}", f"{least:.3g}", group.place, group.source))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row[:-1], widths)) + f"  {row[-1][:60]}")
    print(f"\nsectors: of {SECTOR} bytes in global memory; turns: of shared memory, whose {BANKS} banks answer with a "
          "word each")
    if arguments.trace:
        draw(found, arguments.trace)
        print(f"look at {arguments.trace}")


def _compile(arguments: argparse.Namespace) -> None:
    known = _files()
    files = arguments.file or known
    for file in files:
        if file not in known:
            raise UserError(f"--file: must be of {', '.join(known)}; got {file!r}")
    for i, arch in enumerate(int(name.removeprefix("sm_")) for name in dict.fromkeys(arguments.arch)):
        rows, left_out = [], []
        for file in files:
            if cuda.needs(file) > arch:
                left_out.append(f"{file} needs sm_{cuda.needs(file)}")
                continue
            try:
                rows += list(_rows(file, arch, arguments.real))
            except cuda.KernelError as error:
                raise UserError(str(error)) from None
        title = f"sm_{arch}, {arguments.real}, NVRTC {'.'.join(map(str, nvrtc.version()))}"
        print("\n" * bool(i) + (f"### {title}\n" if arguments.markdown else title))
        print(_markdown(rows) if arguments.markdown else _text(rows))
        if left_out:
            print(f"\nleft out: {', '.join(left_out)}" if arguments.markdown else f"left out: {', '.join(left_out)}")
    print(f"\n{LEGEND}")


def _rows(file: str, arch: int, real: str) -> Iterator[tuple[str, ...]]:
    """A row of TITLES for each kernel of a file and each set of constants that it is launched with."""
    for constants in nvrtc.variants(file):
        if constants.get("real", real) != real:
            continue
        for kernel in nvrtc.compile(file, arch, {"real": real, **constants}).kernels.values():
            fits = nvrtc.occupancy(kernel.threads, kernel.registers, kernel.shared, arch)
            yield (f"{file}.{kernel.name}", _constants(constants), f"{kernel.threads}", f"{kernel.registers}",
                   f"{kernel.spill_stores + kernel.spill_loads}", f"{kernel.stack}",
                   f"{kernel.shared}{'+' * kernel.dynamic}", f"{'≤' * kernel.dynamic}{fits.blocks}",
                   f"{'≤' * kernel.dynamic}{fits.share:.0%}")


def _constants(constants: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in constants.items() if name != "real")


def _text(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of equal width; one that is empty in all rows is left out."""
    columns = [column for column in zip(TITLES, *rows) if not rows or any(column[1:])]
    titles = [column[0] for column in columns]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join("  ".join(f"{cell:{'<' if title in TITLES[:WORDS] else '>'}{width}}"
                               for title, cell, width in zip(titles, line, widths)).rstrip() for line in zip(*columns))


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    rule = ["---"] * WORDS + ["--:"] * (len(TITLES) - WORDS)
    return "\n".join(f"| {' | '.join(line)} |" for line in (TITLES, rule, *rows))


def _files() -> list[str]:
    """The kernel files by name, without .cu."""
    return sorted(path.stem for path in cuda.folder().glob("*.cu"))


def _named(name: str) -> cuda.Kernel:
    """The kernel of this name; file.name where two files have it."""
    every = {f"{file}.{kernel.name}": kernel for file in _files() for kernel in cuda.kernels_of(file).values()}
    found = [full for full in every if name in (full, full.partition(".")[2])]
    if len(found) > 1:
        raise UserError(f"several kernels are called {name}: {', '.join(found)}")
    if not found:
        close = difflib.get_close_matches(name, [*every, *(full.partition(".")[2] for full in every)], 1)
        raise UserError(f"there is no kernel {name!r}" + (f"; did you mean {close[0]}?" if close else "")
                        + "; minunet kernels lists them")
    return every[found[0]]


def _declared(p: cuda.Parameter) -> str:
    """A parameter as its source declares it, without __restrict__."""
    return "INOUT " * p.inout + "const " * p.const + p.type + "*" * (p.pointer + p.many) + " " + p.name


def _thesis(file: str) -> str:
    """The comment that a kernel file opens with."""
    text = (cuda.folder() / f"{file}.cu").read_text(encoding="utf-8")
    opening = re.match(r"(?://[^\n]*\n)*", text)
    # without what is meant for the compile checks
    lines = re.sub(r"^// (?:variants: |needs sm_).*\n", "", opening[0] if opening else "", flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"^// ?", "", lines, flags=re.MULTILINE)).strip()


def _first_sentence(text: str) -> str:
    line = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z0-9`(])", line)[0]


def _source(kernel: cuda.Kernel) -> str:
    """A kernel's text behind the functions of its files that it calls, each with its place and the comments above."""
    pasted = cuda.source(kernel.file)
    # comments blanked, so that they are taken for code nowhere and every position stays
    code = re.sub(r"//[^\n]*|/\*.*?\*/", lambda comment: re.sub(r"[^\n]", " ", comment[0]), pasted, flags=re.DOTALL)
    functions = {match[1]: match for match in _FUNCTION.finditer(code)}
    wanted, found = [kernel.name], []
    while wanted:
        name = wanted.pop()
        if name in functions and name not in found:
            found.append(name)
            body = code[functions[name].end():_end(code, functions[name])]
            wanted += re.findall(r"\b(\w+)(?:<[^;{}()]*>)?\s*\(", body)
    found.sort(key=lambda name: functions[name].start())
    return "\n\n".join(_with_place(kernel.file, pasted, functions[name].start(), _end(code, functions[name]))
                       for name in found)


# a function of kernels/*.cu: its head up to the name
_FUNCTION = re.compile(r"^(?:template\s*<[^\n]*>\s*)?(?:KERNEL|extern\s+\"C\"|(?:static\s+)?__device__)\b[^;{}()]*?"
                       r"(?:__launch_bounds__\s*\([^)]*\)\s*)?\b(\w+)\s*(?=\()", re.MULTILINE)


def _end(code: str, head: re.Match[str]) -> int:
    """Behind the brace that closes a function."""
    depth, end = 0, code.index("{", head.end())
    while True:
        depth += {"{": 1, "}": -1}.get(code[end], 0)
        end += 1
        if depth == 0:
            line = code.find("\n", end)
            return end if code[end:line].strip() else line          # with a comment behind it


def _with_place(own: str, pasted: str, head: int, end: int) -> str:
    """A function with the comments right above it, under a line that says where it stands."""
    above = re.search(r"(?:^[ \t]*//[^\n]*\n)*\Z", pasted[:head], re.MULTILINE)
    start = above.start() if above else head
    *_, (number, file, rest) = re.findall(r'^#line (\d+) "([^"]+)"\n((?:(?!^#line )[^\n]*\n?)*)', pasted[:start],
                                          re.MULTILINE)
    return f"{file}, line {int(number) + rest.count(chr(10))}:\n\n{pasted[start:end]}"
