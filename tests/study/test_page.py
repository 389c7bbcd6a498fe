"""The explaining page's numbers against loops, requests there and back, and the page as one file."""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minunet import Geometry
from minunet.cli import main
from minunet.geometry import pair_text
from minunet.study.evenness import answer, answer_words, verdict
from minunet.study.explanation import SLIDES_IMAGE, SLIDES_KERNEL, SLIDES_WINDOWS, Explanation, is_even
from minunet.study.page import as_dict, from_request, html, write_html
from tests import naive
from tests.checks import assert_close
from tests.strategies import cases

SMALL = dict(max_kernel=3, max_stride=3, max_padding=3, max_dilation=2)


def array(found):
    return np.array(found["values"], float).reshape(found["shape"])


def explained(case, transposed):
    """The explanation of a case with random numbers, and what the page is told of it."""
    x, w, y = case.arrays()
    e = Explanation(case.geometry, case.size, w, x=x[0], y=y[0])
    try:
        return e, as_dict(e, transposed)
    except ValueError as error:
        assert "too large for the page" in str(error)
        return e, None


def meetings(e):
    """(window, cell of the padded image, element of the weight), by loops."""
    g, (c_, f_) = e.geometry, e.weight.shape[2:]
    width = e.size[1] + 2 * g.padding[1]
    for oh, ow, f, kh, kw, c in np.ndindex(*e.out_size, f_, *g.kernel, c_):
        i, j = oh * g.stride[0] + kh * g.dilation[0], ow * g.stride[1] + kw * g.dilation[1]
        element = (kh * g.kernel[1] + kw) * c_ + c
        yield [(oh * e.out_size[1] + ow) * f_ + f, (i * width + j) * c_ + c, element * f_ + f]


@given(cases(**SMALL), st.booleans())
def test_a_request_leads_back_to_the_same_case(case, transposed):
    e, found = explained(case, transposed)
    if found is None:
        return
    again, direction = from_request(json.loads(json.dumps(found["settings"])))
    assert (again.geometry, again.size, direction) == (e.geometry, e.size, transposed)
    assert all((getattr(again, name) == getattr(e, name)).all() for name in ("weight", "x", "y"))
    assert as_dict(again, transposed) == found


@given(cases(**SMALL), st.booleans())
def test_numbers_are_those_of_the_loops(case, transposed):
    e, found = explained(case, transposed)
    if found is None:
        return
    g, width = e.geometry, case.channels
    ax = naive.conv2d(e.x[None], e.weight, g.stride, g.padding, g.dilation)[0]
    aty = naive.conv_transpose2d(e.y[None], e.weight, g.stride, g.padding, g.dilation, e.size)[0]
    assert_close(array(found["Ax"]), ax, 1e-12)
    assert_close(array(found["ATy"]), aty, 1e-12)
    left, right = found["identity"]
    assert left == pytest.approx(float((e.y * ax).sum()), abs=1e-9) == right
    frame = tuple(n + 2 * p for n, p in zip(e.size, g.padding))
    pixels = np.array(found["frame"]["pixels"])
    places = [(i * frame[1] + j) * width + c for i, j, c in np.ndindex(*frame, width)
              if 0 <= i - g.padding[0] < e.size[0] and 0 <= j - g.padding[1] < e.size[1]]
    assert np.flatnonzero(pixels >= 0).tolist() == places and pixels[places].tolist() == list(range(e.x.size))
    links = found["links"]
    assert sorted(links) == sorted(meetings(e)) and links == sorted(links, key=lambda link: (link[0], link[2]))
    first, second, third = (np.array(result) for result in found["results"])
    expected = aty if transposed else ax
    assert_close(first[places] if transposed else first, expected.ravel(), 1e-12)
    assert_close(second, expected.ravel(), 1e-12)
    assert_close(third, expected.ravel(), 1e-12)


@given(cases(**SMALL), st.booleans())
def test_products_and_sums_step_by_step(case, transposed):
    e, found = explained(case, transposed)
    if found is None:
        return
    u = e.y.ravel() if transposed else array(found["frame"]).ravel()
    outputs = len(found["frame"]["pixels"]) if transposed else e.y.size
    alone = np.zeros((u.size, outputs))
    for window, cell, element in meetings(e):
        place = (window, cell) if transposed else (cell, window)
        alone[place] = u[place[0]] * e.weight.flat[element]
    assert_close(found["products"], alone, 1e-12)
    assert_close(found["running"], np.cumsum(alone, axis=0), 1e-12)


@given(cases(**SMALL))
def test_where_the_other_faces_numbers_come_from(case):
    e, found = explained(case, False)
    other = explained(case, True)[1]
    if found is None or other is None:
        return
    cells = np.array(found["columns"]["cells"])
    assert (array(found["frame"]).ravel()[cells] == array(found["columns"]).ravel()).all()
    rows, width = found["columns"]["shape"]
    windows, elements = np.array(found["columns"]["windows"]), np.array(found["columns"]["elements"])
    assert (windows.shape, elements.shape) == ((rows, case.filters), (case.filters, width))
    for (w, cell, k), entry in zip(found["links"], found["columns"]["entries"], strict=True):
        row, column = divmod(entry, width)
        assert cells[entry] == cell and w in windows[row] and k in elements[:, column]
    weight, columns = np.array(found["weight"]["values"]), array(found["columns"])
    assert_close(columns @ weight[elements].T, array(found["Ax"]).ravel()[windows], 1e-12)
    stuffed, windows = array(other["stuffed"]).ravel(), np.array(other["stuffed"]["windows"])
    assert (stuffed[windows >= 0] == e.y.ravel()[windows[windows >= 0]]).all() and not stuffed[windows < 0].any()
    elements = other["turned"]["elements"]
    assert sorted(elements) == list(range(e.weight.size))
    assert (array(other["turned"]).ravel() == e.weight.ravel()[elements]).all()
    sums = np.zeros(e.x.size)
    for pixel, cell, element in other["reads"]:
        sums[pixel] += stuffed[cell] * e.weight.flat[elements[element]]
    assert_close(sums, e.ATy.ravel(), 1e-12)
    put_in = sum(windows[cell] < 0 for _, cell, _ in other["reads"])
    assert other["words"]["zeros"].startswith(f"{put_in:,} of the {len(other['reads']):,} products")


@given(cases(**SMALL))
def test_the_pattern_of_the_overlap(case):
    """Along each axis and far from the border, and the answer to ones, against stamps by loops on a larger image."""
    e, found = explained(case, True)
    if found is None:
        return
    g, pattern = e.geometry, found["pattern"]
    assert len(pattern["cases"]) == 2 and [case["title"].split(": ")[1] for case in pattern["cases"]] == (
        ["even", "uneven"] if all(is_even(g)) else ["uneven", "even"])
    shown = pattern["cases"][0]
    assert shown["title"].startswith(f"kernel {pair_text(g.kernel)}, stride {pair_text(g.stride)}")
    names = [axis["name"] for axis in shown["axes"]]
    assert names in (["along height and width"], ["along height", "along width"])
    for axis, drawn in zip((0, 1), shown["axes"] * (3 - len(names))):
        k, s, d = g.kernel[axis], g.stride[axis], g.dilation[axis]
        elements = array(drawn["elements"])
        for o, px in np.ndindex(elements.shape):
            element, between = divmod(px - o * s, d)
            assert elements[o, px] == (element if between == 0 and 0 <= element < k else -1)
        assert drawn["counts"] == (elements >= 0).sum(axis=0).tolist()
        assert elements.shape[1] == (len(elements) - 1) * s + g.extent[axis]           # nothing is cut off
    inside, answer = array(shown["inside"]), array(pattern["answer"])
    assert min(inside.shape) >= 8 and min(answer.shape[:2]) >= 8 and answer.shape[2] == e.channels
    far = [-(-extent // s) * s for extent, s in zip(g.extent, g.stride)]
    windows = [(f + n) // s + 1 for f, s, n in zip(far, g.stride, (24, 24))]
    size = [(n - 1) * s + extent for n, s, extent in zip(windows, g.stride, g.extent)]
    for weight, drawn in ((e.weight, answer), (np.ones((*g.kernel, 1, 1)), inside[..., None])):
        ones = np.ones((1, *windows, weight.shape[3]))
        stamped = naive.conv_transpose2d(ones, weight, g.stride, (0, 0), g.dilation, size)
        there = stamped[0, far[0]:far[0] + drawn.shape[0], far[1]:far[1] + drawn.shape[1]]
        assert_close(drawn, there, 1e-12)


@pytest.mark.parametrize("kernel, stride, channels", [
    (3, 2, 1), (4, 2, 2), ([3, 4], 2, 1), (5, 3, 1), (6, 3, 1), ([1, 4], [1, 2], 1), ([2, 3], [1, 2], 2),
])
def test_the_bilinear_kernel_keeps_a_plane_of_numbers_a_plane(kernel, stride, channels):
    plane = np.add.outer(np.arange(3.), 10 * np.arange(3.))
    e, _ = from_request({"transposed": True, "size": 3, "channels": [channels] * 2, "kernel": kernel, "stride": stride,
                         "weight": "bilinear", "y": np.repeat(plane.ravel(), channels).tolist()})
    far = [k - 1 for k in e.geometry.kernel]
    made = e.ATy[far[0]:-far[0] or None, far[1]:-far[1] or None]
    for axis, slope in ((0, 1), (1, 10)):
        steps = np.diff(made, axis=axis)
        assert steps.size and np.abs(steps - slope / e.geometry.stride[axis]).max() < 1e-12
    # and it stands where y's numbers stand, as far from one side as from the other
    assert (e.weight == e.weight[::-1, ::-1]).all() and np.ptp(answer(e), axis=(0, 1)).max() < 1e-12
    assert as_dict(e, True)["bilinear"] is True


@pytest.mark.parametrize("asked", [
    {}, {"stride": 2, "kernel": 5, "size": 5}, {"stride": 2, "channels": [1, 2]}, {"stride": [2, 1]},
    {"stride": 2, "dilation": 2, "size": 5},
])
def test_no_bilinear_kernel(asked):
    assert as_dict(*from_request(asked))["bilinear"] is False
    with pytest.raises(ValueError, match="there are no numbers 'bilinear' for this case"):
        from_request({**asked, "weight": "bilinear"})


def test_ones_and_an_impulse():
    e, _ = from_request({"transposed": True, "size": [5, 4], "channels": [2, 2], "weight": "ones", "y": "impulse"})
    assert (e.weight == 1).all() and e.y.sum() == e.y[2, 2, 0] == 1


def test_an_empty_request_is_the_slides_example():
    (e, transposed), (other, direction) = from_request({}), from_request({"transposed": True})
    assert (transposed, direction) == (False, True) and e.A.shape == other.A.shape == (4, 16)
    for found in (e, other):
        assert (found.weight[..., 0, 0] == SLIDES_KERNEL).all() and (found.x[..., 0] == SLIDES_IMAGE).all()
        assert (found.y[..., 0] == SLIDES_WINDOWS).all()


@given(cases(**SMALL), st.booleans())
def test_the_command_leads_to_the_same_case(case, transposed):
    e, found = explained(case, transposed)
    if found is None:
        return
    program, *words, last = shlex.split(found["command"])
    assert (program, last) == ("minunet", "--serve")
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        assert main([*words, "--html", f"{folder}/page.html"]) == 0
        again = json.loads(Links(Path(folder, "page.html").read_text(encoding="utf-8")).scripts[0])
    assert again["settings"] == found["settings"]


def test_the_command_and_the_words():
    found = as_dict(Explanation.transposed(Geometry(3, stride=2, padding=1), 2, output_padding=(1, 0)), True)
    assert found["command"] == ('minunet explain --transposed --size 2x2 --kernel 3x3 --stride 2x2 --padding 1x1 '
                                '--output-padding 1x0 --values="1 4 1; 1 4 3; 3 3 1" --x="5 5 7; 9 1 2; 8 9 3; 3 8 4" '
                                '--y="2 1; 4 4" --serve')
    words = found["words"]
    assert words["summary"].endswith("takes 2 × 2 numbers to 4 × 3: Aᵀ is a matrix of 12 × 4.")
    assert "3 or 4 px of height and of 3 or 4 px of width" in words["sizes"] and "padding 1x0 leads" in words["sizes"]
    assert words["overlap"] == verdict(Geometry(3, stride=2, padding=1)) and "checkerboard" in words["overlap"]
    found = as_dict(Explanation(Geometry(1), 3, [[-1.5]], x=np.eye(3)), False)
    assert not found["words"]["back"].startswith("Here")
    assert '--values="-1.5" --x="1 0 0; 0 1 0; 0 0 1" --y=' in found["command"]
    assert found["words"]["answer"] == answer_words(Explanation(Geometry(1), 3, [[-1.5]]))
    assert as_dict(Explanation(Geometry(1), 3, [[-1]]), False)["words"]["back"].startswith("Here Aᵀ(A x) is x")


@pytest.mark.parametrize("left, right, words", [
    (1432., 1432., "equal"), (1432., 1432. + 1e-10, "equal but for rounding: they differ by 1e-10"),
    (1432., 1432.01, "equal, but here they differ by 0.01, more than rounding explains: a fault"),
    (0., 1e-6, "equal, but here they differ by 1e-06, more"),
])
def test_equal_but_for_rounding_is_said_of_rounding_only(monkeypatch, left, right, words):
    monkeypatch.setattr(Explanation, "identity", property(lambda _: (left, right)))
    said = as_dict(Explanation(Geometry(3), 4), False)["words"]["identity"]
    assert said.startswith(words) and (words != "equal" or said == words)


def test_a_large_stride_is_answered_briefly():
    for asked in ({"stride": 10**6}, {"stride": [1, 10**6], "size": [5, 3]}):
        found = as_dict(*from_request(asked))
        assert len(json.dumps(found)) < 6000 and found["pattern"] == {"cases": []}
    assert "Images of 3, 4, 5, … or 1000002 px of width" in found["words"]["sizes"]
    listed = as_dict(*from_request({"stride": 6}))["words"]["sizes"]
    assert "of 3, 4, 5, 6, 7 or 8 px of height" in listed
    assert "of 3, 4, 5, … or 9 px of height" in as_dict(*from_request({"stride": 7}))["words"]["sizes"]


@pytest.mark.parametrize("asked, sentence", [
    (None, "the request must be an object with settings; got NoneType"),
    ([1], "got list"),
    ({"strides": 2}, "there is no setting 'strides'; there are size, kernel, stride,"),
    ({"transposed": 1}, "transposed must be true or false; got 1"),
    ({"size": 2}, "kernel: its window spans 3 px in height"),
    ({"size": [4, 2]}, "kernel: its window spans 3 px in width"),
    ({"stride": 0}, "stride must be a whole number, or HEIGHTxWIDTH such as 3x2, at least 1; got 0"),
    ({"stride": [1, 0]}, "stride must be .* at least 1; got 1x0"),
    ({"stride": True}, "stride must be a whole number"),
    ({"stride": 1.5}, "stride must be a whole number"),
    ({"stride": float("inf")}, "stride must be a whole number"),
    ({"stride": "two"}, "stride must be a whole number.* got 'two'"),
    ({"stride": None}, "stride must be a whole number"),
    ({"stride": {"1": 1, "2": 2}}, "stride must be a whole number"),
    ({"channels": [1, 0]}, "channels must be two whole numbers such as 2x3, at least 1; got 1x0"),
    ({"channels": ["two", 1]}, "channels must be .* got twox1"),
    ({"stride": [1, [2] * 100]}, r"stride must be .* got \[1, \[2, 2"),
    ({"padding": -1}, "padding must be .* at least 0; got -1"),
    ({"kernel": 10**7}, "kernel must be at most 1,000,000; got 10000000"),
    ({"kernel": 10**400}, "kernel must be at most 1,000,000; got 1000000000"),
    ({"size": 10**4}, "too large for the page: its convolution matrix would have 9,996,000,400,000,000 cells, and"),
    ({"size": 10**6, "kernel": 10**6}, "too large for the page"),
    ({"transposed": True, "stride": 10**6}, "too large for the page"),
    ({"transposed": True, "kernel": 100}, "This case is too large for the page: its .* would have 40,804 cells"),
    ({"channels": [10**6, 10**6]}, "too large for the page"),
    ({"transposed": True, "output_padding": 1}, "output_padding must be below the stride"),
    ({"transposed": True, "padding": 2}, r"padding: the transposed size in height would be .* = 0 px"),
    ({"size": 4, "stride": 2, "output_padding": 0}, "output_padding must be 1, which leads back to 4 px; got 0"),
    ({"weight": [1, 2]}, "kernel must be a list of 9 numbers, 3 x 3 x 1 x 1; got 2"),
    ({"weight": 7}, "kernel must be a list .* got 7"),
    ({"weight": [1] * 5 + [True] * 4}, r"kernel\[1, 2\] must be a number .* got True"),
    ({"weight": ["1"] * 9}, r"kernel\[0, 0\] must be a number from -1,000,000 to 1,000,000; got '1'$"),
    ({"weight": [1, "1,5"] + [1] * 7}, r"kernel\[0, 1\] must be .* got '1,5'; decimals stand after a point"),
    ({"weight": [[1]] * 9}, r"kernel\[0, 0\] must be a number .* got \[1\]"),
    ({"weight": "bilinear"}, "kernel: there are no numbers 'bilinear' for this case"),
    ({"weight": "impulse"}, "kernel: there are no numbers 'impulse'"),
    ({"y": "a" * 100}, "y: there are no numbers 'aaa"),
    ({"x": [float("nan")] * 16}, r"x\[0, 0\] must be a number .* got nan"),
    ({"y": [1, 1, 10**400, 1]}, r"y\[1, 0\] must be a number from -1,000,000 to 1,000,000; got 1000"),
    ({"kernel": [1, 2], "channels": [1, 2], "weight": [1, 2, 3, "?"]}, r"kernel\[0, 1, 1\] must .* got '\?'"),
    ({"channels": [2, 1], "x": [1] * 31 + ["?"]}, r"x\[3, 3, 1\] must be a number"),
])
def test_what_does_not_fit_is_refused(asked, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        from_request(asked)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


@pytest.mark.parametrize("explanation, sentence", [
    (Explanation(Geometry(1), 9), "its convolution matrix would have 6,561 cells, and at most 4,096 are shown"),
    (Explanation(Geometry(1, padding=50, stride=120), 1), "padded image would have 10,201 cells"),
    (Explanation(Geometry(1, stride=50), 50), "padded image would have 2,500 cells"),
    (Explanation(Geometry(3, padding=9), 2), "matrix with the padding"),
    (Explanation(Geometry(20), 20), "image with zeros in between would have 1,521 cells"),
    (Explanation(Geometry(1), 1, channels=(40, 40)), "kernel would have 1,600 cells"),
    (Explanation(Geometry(1), 2, x=np.full((2, 2), 1e300)), "x must be numbers from -1,000,000 to 1,000,000"),
])
def test_what_the_page_cannot_show_is_refused(explanation, sentence):
    with pytest.raises(ValueError, match=sentence):
        as_dict(explanation, True)


class Links(HTMLParser):
    """The tags of a page that could fetch something, and the texts of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.scripts, self.open, self.inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.targets += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append(data)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_file_is_self_contained(tmp_path, transposed):
    e = Explanation(Geometry(3, stride=2, padding=1), (5, 4), channels=(2, 1))
    write_html(e, transposed, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Links(text)
    assert not page.open and all(target.startswith("data:") for target in page.targets)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    data, *scripts = page.scripts
    assert json.loads(data) == {"fixed": True, **as_dict(e, transposed)}
    assert len(scripts) == 4 and "default-src 'none'" in text


def test_data_cannot_end_its_script(monkeypatch):
    monkeypatch.setattr("minunet.study.page._command", lambda *_: "</script><script>alert(1)</script><!--\u2028")
    page = Links(html(Explanation(Geometry(3), 4), False, fixed=True))
    assert len(page.scripts) == 5
    assert json.loads(page.scripts[0])["command"] == "</script><script>alert(1)</script><!--\u2028"


def test_the_served_page_asks_its_own_server_only():
    assert [target for target in Links(html(Explanation(Geometry(3), 4), False, fixed=False)).targets
            if not target.startswith("data:")] == ["page.css", "grids.js", "overlap.js", "page.js", "control.js"]


def test_how_large_a_pattern_is_drawn():
    """Strides to 8 px, and lines to 24: of kernel 9 at stride 8, beside kernel 8, two strides inside take 25."""
    assert len(as_dict(*from_request({"stride": 8}))["pattern"]["cases"]) == 2
    assert as_dict(*from_request({"stride": 9}))["pattern"] == {"cases": []}
    found = as_dict(*from_request({"kernel": 8, "stride": 8, "size": 8}))["pattern"]
    assert [case["title"] for case in found["cases"]] == ["kernel 8, stride 8: even"]
    assert found["answer"]["shape"] == [8, 8, 1]
    assert as_dict(*from_request({"stride": 3}))["pattern"]["answer"]["shape"] == [9, 9, 1]
