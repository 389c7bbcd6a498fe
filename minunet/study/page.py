"""The explaining page: an `Explanation` as JSON with every number that the page shows, and back from a request.

The page (web/) only looks up and draws. Arrays are {"shape", "values"} with the values flat in C order, and who meets
whom is told in these flat indices: a window is a row of A, a cell lies in the padded image (the frame), an element in
the weight (KH, KW, C, F). Each of the three faces brings its own result, computed its way.
"""

from __future__ import annotations

import json
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from minunet.geometry import Geometry, Pair, as_pair, pair_text, size_text
from minunet.study import evenness
from minunet.study.explanation import Explanation, is_even, sizes

WEB = Path(__file__).with_name("web")
FIELDS = {"size": 1, "kernel": 1, "stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "channels": 1}
SCRIPTS = ("grids.js", "overlap.js", "page.js", "control.js")
ARRAYS = {"weight": "kernel", "x": "x", "y": "y"}       # and what they are called on the page
LARGEST = 10**6                     # of a setting, and of a number's magnitude
MATRIX, FRAMED, PLANE = 1 << 12, 1 << 14, 1 << 10      # cells of a matrix, of the padded image's, and of an image
PERIOD, LINE = 8, 24                # px of the largest stride and of the longest line of which the overlap is drawn
LISTED = 6                          # sizes in a sentence
ROUNDING = 1e-10                    # relative to ‖y‖·‖A x‖


def from_request(request: Any) -> tuple[Explanation, bool]:
    """The explanation that a request asks for, and whether it is of the transposed convolution.

    A request is what `as_dict` calls "settings"; each setting may be missing: {} is a 3x3 kernel on a 4x4 image. "size"
    is that of the operation's input: (H, W), or (OH, OW) if "transposed". Numbers are flat lists in C order, or a name:
    "ones", the "impulse" (y: a single 1), "bilinear" (weight, where that fits).

    Raises ValueError: what came, what is allowed. What begins with a setting's name or a cell's is about that one.

    >>> e, transposed = from_request({"transposed": True, "size": 3, "stride": 2, "weight": [1, 2, 3, 4], "kernel": 2})
    >>> e.A
    ConvMatrix (9, 36): 6x6x1 -> 3x3x1, kernel 2x2, stride 2, padding 0, dilation 1, im2col, float64
    """
    if not isinstance(request, dict):
        raise ValueError(f"the request must be an object with settings; got {type(request).__name__}")
    known = [*FIELDS, *ARRAYS, "transposed"]
    if unknown := [name for name in request if name not in known]:
        raise ValueError(f"there is no setting {unknown[0][:40]!r}; there are {', '.join(known)}")
    transposed = request.get("transposed", False)
    if not isinstance(transposed, bool):
        raise ValueError(f"transposed must be true or false; got {_short(transposed)}")
    defaults = {"size": 2 if transposed else 4, "kernel": 3}
    found = {name: _setting(name, request.get(name, defaults.get(name, minimum)), minimum)
             for name, minimum in FIELDS.items()}
    geometry = Geometry(*(found[name] for name in ("kernel", "stride", "padding", "dilation")))
    size = geometry.transposed_size(found["size"], found["output_padding"]) if transposed else found["size"]
    c, f = found["channels"]
    _refuse_large(geometry, size, c, f)
    shapes = {"weight": (*geometry.kernel, c, f), "x": (*size, c), "y": (*geometry.output_size(size), f)}
    arrays = {name: _named(name, request[name], geometry, shapes[name]) if isinstance(request[name], str) else
              _numbers(ARRAYS[name], request[name], shapes[name]) for name in ARRAYS if name in request}
    explanation = Explanation(geometry, size, channels=(c, f), **arrays)
    if "output_padding" in request and found["output_padding"] != explanation.output_padding:
        raise ValueError(f"output_padding must be {pair_text(explanation.output_padding)}, which leads back to "
                         f"{pair_text(size)} px; got {pair_text(found['output_padding'])}")
    return explanation, transposed


def as_dict(explanation: Explanation, transposed: bool) -> dict[str, Any]:
    """All that the page shows of a convolution or, if transposed, of its transpose, for `json.dumps`.

    Raises ValueError for more cells than the page shows, and for numbers beyond a million.
    """
    e = explanation
    _refuse_large(e.geometry, e.size, e.channels, e.filters)
    for name, called in ARRAYS.items():
        array = getattr(e, name)
        if not all(isfinite(v) and abs(v) <= LARGEST for v in array.ravel()):
            raise ValueError(f"{called} must be numbers from -{LARGEST:,} to {LARGEST:,} for the page; got "
                             f"{np.abs(array).max():g}")
    framed = _framed(e)
    products, running = _step_by_step(framed, transposed)
    found: dict[str, Any] = {
        "settings": _settings(e, transposed), "command": _command(e, transposed), "words": _words(e, transposed),
        "bilinear": _is_bilinear(e.geometry, e.channels, e.filters), "pattern": _pattern(e),
        "identity": list(e.identity), "links": _links(framed), "products": products.tolist(),
        "running": running.tolist(),
        "frame": {**_array(framed.ATy if transposed else framed.x), "pixels": _pixels(e).tolist()},
        "matrix": _array(e.A.T.dense() if transposed else e.A.dense()),
    } | {name: _array(getattr(e, name)) for name in ("weight", "x", "y", "Ax", "ATy", "ATAx", "overlap")}
    third = e.A.T.dense() @ e.y.ravel() if transposed else e.A.dense() @ e.x.ravel()
    if transposed:
        reader = _reader(e)
        found |= {"stuffed": {**_array(e.stuffed), "windows": _windows(e).tolist()},
                  "turned": {**_array(e.flipped.weight), "elements": _turned(e).tolist()}, "reads": _links(reader),
                  "results": [framed.ATy.ravel().tolist(), reader.Ax.ravel().tolist(), third.tolist()]}
        found["words"]["zeros"] = _zeros(found)
    else:
        window, _, element = np.array(found["links"]).reshape(-1, 3).T
        entries = window // e.filters * e.columns.shape[1] + element // e.filters
        found |= {"columns": {**_array(e.columns), "cells": _cells(framed).tolist(), "entries": entries.tolist(),
                              "windows": np.arange(e.y.size).reshape(-1, e.filters).tolist(),
                              "elements": np.arange(e.weight.size).reshape(-1, e.filters).T.tolist()},
                  "results": [e.Ax.ravel().tolist(), (e.columns @ e.weight.reshape(-1, e.filters)).ravel().tolist(),
                              third.tolist()]}
    return found


def html(explanation: Explanation, transposed: bool, fixed: bool) -> str:
    """The page with the case in it; fixed: in one piece, which needs no server, and whose settings cannot change."""
    text = _file("page.html")
    found = json.dumps({"fixed": fixed, **as_dict(explanation, transposed)}, allow_nan=False, separators=(",", ":"))
    pieces = {'<script type="application/json" id="data"></script>':
              f'<script type="application/json" id="data">{_escaped(found)}</script>'}
    if fixed:
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
        pieces |= {'<meta charset="utf-8">':
                   f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">',
                   '<link rel="stylesheet" href="page.css">': f"<style>\n{_file('page.css')}</style>"}
        pieces |= {f'<script src="{name}"></script>': f"<script>\n{_file(name)}</script>" for name in SCRIPTS}
    for mark, piece in pieces.items():
        assert text.count(mark) == 1, mark
        text = text.replace(mark, piece)
    return text


def write_html(explanation: Explanation, transposed: bool, path: Any) -> None:
    """The case as one self-contained file, for a course page.

    Raises ValueError like `as_dict`, OSError if the file cannot be written.
    """
    Path(path).write_text(html(explanation, transposed, fixed=True), encoding="utf-8")


def _setting(name: str, value: Any, minimum: int) -> Pair:
    try:
        pair = as_pair(value, name, minimum)
    except ValueError:
        wanted = "two whole numbers such as 2x3" if name == "channels" else (
            "a whole number, or HEIGHTxWIDTH such as 3x2")
        raise ValueError(f"{name} must be {wanted}, at least {minimum}; got {_short(value)}") from None
    if max(pair) > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:,}; got {_short(max(pair))}")
    return pair


def _numbers(called: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not isinstance(values, list) or len(values) != prod(shape):
        raise ValueError(f"{called} must be a list of {prod(shape):,} numbers, {' x '.join(map(str, shape))}; got "
                         f"{f'{len(values):,}' if isinstance(values, list) else _short(values)}")
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST <= value <= LARGEST:
            point = "; decimals stand after a point" if isinstance(value, str) and "," in value else ""
            raise ValueError(f"{called}{_at(shape, index)} must be a number from -{LARGEST:,} to {LARGEST:,}; got "
                             f"{_short(value)}{point}")
    return np.array(values, float).reshape(shape)


def _named(name: str, values: str, g: Geometry, shape: tuple[int, ...]) -> np.ndarray:
    if values == "ones":
        return np.ones(shape)
    if (name, values) == ("y", "impulse"):
        impulse = np.zeros(shape)
        impulse[shape[0] // 2, shape[1] // 2, 0] = 1
        return impulse
    if (name, values) == ("weight", "bilinear") and _is_bilinear(g, *shape[2:]):
        sides = [1 - np.abs(np.arange(k) - (k - 1) / 2) / s for k, s in zip(g.kernel, g.stride)]
        return np.multiply.outer(*sides)[:, :, None, None] * np.eye(shape[2])       # each channel for itself
    raise ValueError(f"{ARRAYS[name]}: there are no numbers {_short(values)} for this case")


def _is_bilinear(g: Geometry, c: int, f: int) -> bool:
    """Whether there is a kernel with which Aᵀ interpolates between y's numbers: a triangle of two strides each way."""
    return c == f and max(g.stride) > 1 == max(g.dilation) and all(
        k in (2 * s - 1, 2 * s) for k, s in zip(g.kernel, g.stride))


def _short(value: Any) -> str:
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(v) in (int, str) for v in value)
    text = size_text(value) if is_pair else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _at(shape: tuple[int, ...], index: int) -> str:
    """The place of a flat index as the page writes it: [1, 2], with its channel where there are several."""
    places = (int(i) for i in np.unravel_index(index, shape))
    return f"[{', '.join(str(i) for n, (i, length) in enumerate(zip(places, shape)) if n < 2 or length > 1)}]"


def _refuse_large(g: Geometry, size: Pair, c: int, f: int) -> None:
    """Raise ValueError for more cells than the page shows."""
    frame = prod(n + 2 * p for n, p in zip(size, g.padding)) * c
    stuffed = prod(n + extent - 1 for n, extent in zip(size, g.extent)) * f
    positions, window = prod(g.output_size(size)), prod(g.kernel) * c
    for what, cells, limit in (
            ("convolution matrix", positions * f * prod(size) * c, MATRIX), ("padded image", frame, PLANE),
            ("matrix with the padding", positions * f * frame, FRAMED), ("column matrix", positions * window, MATRIX),
            ("image with zeros in between", stuffed, PLANE), ("kernel", window * f, PLANE)):
        if cells > limit:
            raise ValueError(f"This case is too large for the page: its {what} would have {cells:,} cells, and at most "
                             f"{limit:,} are shown; take a smaller image, kernel or padding, or fewer channels")


def _framed(e: Explanation) -> Explanation:
    """The same on the padded image, without padding: what the windows also meet there, and what is cut off."""
    g, pad = e.geometry, [(p, p) for p in e.geometry.padding]
    size = [n + 2 * p for n, p in zip(e.size, g.padding)]
    return Explanation(Geometry(g.kernel, g.stride, 0, g.dilation), size, e.weight, x=np.pad(e.x, [*pad, (0, 0)]),
                       y=e.y)


def _pixels(e: Explanation) -> np.ndarray:
    """For each cell of the frame its index in x, −1 in the padding."""
    pad = [(p, p) for p in e.geometry.padding]
    return np.pad(np.arange(e.x.size).reshape(e.x.shape), [*pad, (0, 0)], constant_values=-1).ravel()


def _links(e: Explanation) -> list[list[int]]:
    """[window, pixel, element] of each meeting, channel by channel; sorted by window, then element."""
    c, f = e.channels, e.filters
    cs, fs = np.arange(c)[:, None], np.arange(f)
    window, pixel, element = (part[:, None, None] for part in e.taps)
    links = np.broadcast_arrays(window * f + fs, pixel * c + cs, (element * c + cs) * f + fs)
    flat = np.stack([part.ravel() for part in links], axis=1)
    return flat[np.lexsort((flat[:, 2], flat[:, 0]))].tolist()


def _step_by_step(framed: Explanation, transposed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two products (inputs, outputs): of each number of the input alone, and of the input up to and with it."""
    M, u = (framed.A.T, framed.y) if transposed else (framed.A, framed.x)
    alone = np.eye(u.size) * u.ravel()
    up_to = np.tri(u.size) * u.ravel()
    products, running = (M @ stack.reshape(-1, *u.shape) for stack in (alone, up_to))
    return products.reshape(u.size, -1), running.reshape(u.size, -1)


def _cells(framed: Explanation) -> np.ndarray:
    """For each entry of the column matrix its cell in the frame: the column matrix of an image of cell numbers."""
    numbered = np.arange(framed.x.size).reshape(framed.x.shape)
    return Explanation(framed.geometry, framed.size, framed.weight, x=numbered).columns.astype(int).ravel()


def _reader(e: Explanation) -> Explanation:
    """The plain convolution of `stuffed` with the turned kernel, which arrives at Aᵀ y."""
    return Explanation(e.flipped.geometry, e.flipped.size, e.flipped.weight, x=e.stuffed)


def _windows(e: Explanation) -> np.ndarray:
    """For each cell of `stuffed` its index in y, −1 for a zero in between."""
    numbered = np.arange(1, e.y.size + 1).reshape(e.y.shape)
    return Explanation(e.geometry, e.size, e.weight, y=numbered).stuffed.astype(int).ravel() - 1


def _turned(e: Explanation) -> np.ndarray:
    """For each element of the turned kernel its index in the weight."""
    numbered = np.arange(e.weight.size).reshape(e.weight.shape)
    return Explanation(e.geometry, e.size, numbered).flipped.weight.astype(int).ravel()


def _settings(e: Explanation, transposed: bool) -> dict[str, Any]:
    g = e.geometry
    pairs = {"size": e.out_size if transposed else e.size, "kernel": g.kernel, "stride": g.stride, "padding": g.padding,
             "dilation": g.dilation, "output_padding": e.output_padding, "channels": (e.channels, e.filters)}
    return {"transposed": transposed, **{name: list(pair) for name, pair in pairs.items()},
            **{name: getattr(e, name).ravel().tolist() for name in ARRAYS}}


def _array(values: np.ndarray) -> dict[str, Any]:
    return {"shape": list(values.shape), "values": values.ravel().tolist()}


def _command(e: Explanation, transposed: bool) -> str:
    """The command line that serves this case."""
    words = ["minunet explain", *["--transposed"] * transposed]
    for name, pair in _settings(e, transposed).items():
        if name not in FIELDS or name == "output_padding" and not transposed:
            continue
        if name in ("size", "kernel") or pair != [FIELDS[name]] * 2:
            words.append(f"--{name.replace('_', '-')} {pair[0]}x{pair[1]}")
    kernels = e.weight.transpose(3, 2, 0, 1).reshape(-1, *e.geometry.kernel)        # (F·C, KH, KW)
    images = [f'--{name}="{_rows(getattr(e, name).transpose(2, 0, 1))}"' for name in ("x", "y")]
    return " ".join([*words, f'--values="{_rows(kernels)}"', *images, "--serve"])


def _words(e: Explanation, transposed: bool) -> dict[str, str]:
    """What the numbers mean, in sentences."""
    left, right = e.identity
    image, windows = _shape_text(e.size, e.channels), _shape_text(e.out_size, e.filters)
    rows, columns = e.A.shape
    summary = (f"The transposed convolution takes {windows} numbers to {image}: Aᵀ is a matrix of {columns} × {rows}."
               if transposed else
               f"The convolution takes {image} numbers to {windows}: A is a matrix of {rows} × {columns}.")
    gap, most = abs(left - right), ROUNDING * float(np.linalg.norm(e.y) * np.linalg.norm(e.Ax))
    identity = ("equal" if gap == 0 else f"equal but for rounding: they differ by {gap:.1g}" if gap <= most else
                f"equal, but here they differ by {gap:.1g}, more than rounding explains: a fault in the program")
    back = ("Here Aᵀ(A x) is x: for this image Aᵀ undoes A. In general Aᵀ is the transpose of A, not its inverse."
            if e.returns_x else
            "Aᵀ(A x) has the shape of x, but not its numbers: Aᵀ is the transpose of A, not its inverse.")
    return {"summary": summary, "overlap": evenness.verdict(e.geometry), "answer": evenness.answer_words(e),
            "back": back, "sizes": _sizes(e), "identity": identity}


def _pattern(e: Explanation) -> dict[str, Any]:
    """Why the overlap is as it is: this case and one of the other kind, each along its axes and far from the border.

    And one period or more of Aᵀ y for y of ones. All is left out of a stride whose pattern would be too large.
    """
    if max(e.geometry.stride) > PERIOD:
        return {"cases": []}
    found = [_overlap(g) for g in (e.geometry, evenness.comparison(e.geometry))]
    again = [-(-PERIOD // s) for s in e.geometry.stride]
    return {"cases": [case for case in found if case], "answer": _array(np.tile(evenness.answer(e), [*again, 1]))}


def _overlap(g: Geometry) -> dict[str, Any] | None:
    """Which element of the kernel meets which pixel along each axis, and how many windows do far from the border."""
    g = Geometry(g.kernel, g.stride, 0, g.dilation)         # padding changes nothing far from the border
    lengths = [evenness.telling_length(g, axis) for axis in (0, 1)]
    if max(lengths) > LINE or max(evenness.line(g, axis).output_size((lengths[axis], 1))[0] for axis in (0, 1)) > LINE:
        return None
    same = all(high == wide for high, wide in (g.kernel, g.stride, g.dilation))
    axes = [{"name": f"along {name}", "elements": _array(evenness.met(g, axis, lengths[axis])),
             "counts": evenness.profile(g, axis, lengths[axis]).tolist()}
            for axis, name in enumerate(["height and width"] if same else ["height", "width"])]
    title = ", ".join(f"{name} {pair_text(getattr(g, name))}"
                      for name in ("kernel", "stride", *["dilation"] * (max(g.dilation) > 1)))
    return {"title": f"{title}: {'even' if all(is_even(g)) else 'uneven'}", "axes": axes,
            "inside": _array(evenness.inside(g))}


def _zeros(found: dict[str, Any]) -> str:
    """How many products of the convolution of `stuffed` are with zeros that were put in."""
    put_in = sum(found["stuffed"]["windows"][cell] < 0 for _, cell, _ in found["reads"])
    return f"{put_in:,} of the {len(found['reads']):,} products are with zeros that were put in."


def _sizes(e: Explanation) -> str:
    """Which image sizes share the number of windows: the question that output_padding answers."""
    found = []
    for axis, name in enumerate(("height", "width")):
        images = next(row.images for row in sizes(e.geometry, axis, e.size[axis], 1))
        if len(images) > 1:
            found.append(f"{_listed(images)} px of {name}")
    if not found:
        return "Only this size of image has this number of windows, so there is no output padding to choose."
    return (f"Images of {' and of '.join(found)} have this number of windows. Output padding "
            f"{pair_text(e.output_padding)} leads back to {_shape_text(e.size)}.")


def _listed(numbers: tuple[int, ...]) -> str:
    first, dots = (numbers[:-1], "") if len(numbers) <= LISTED else (numbers[:3], ", …")
    return f"{', '.join(map(str, first))}{dots} or {numbers[-1]}"


def _shape_text(size: Pair, channels: int = 1) -> str:
    return f"{size[0]} × {size[1]}" + (f" × {channels}" if channels > 1 else "")


def _rows(arrays: np.ndarray) -> str:
    """Arrays (n, height, width) as the command line reads them: 1 4 1; 1 4 3; 3 3 1 | 0 1 ..."""
    return " | ".join("; ".join(" ".join(repr(v).removesuffix(".0") for v in row) for row in array)
                      for array in arrays.tolist())


def _file(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    """JSON that can stand in a <script>: no </script> in it, and no <!--."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
