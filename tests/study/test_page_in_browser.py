"""The explaining page in a real browser: pointing, stepping, playing, keys, the overlap, and the page as a file.

What must light up is found here by loops over the geometry; the page has it from the server.
"""

import json

import numpy as np
import pytest

from minunet import Geometry
from minunet.study.explanation import Explanation
from minunet.study.page import write_html
from tests import naive
from tests.study.browser import By, Keys, Page


def window_cells(e, window):
    """The cells of the padded image (one channel) that a window meets, and its elements, by loops."""
    g = e.geometry
    row, column = divmod(window, e.out_size[1])
    width = e.size[1] + 2 * g.padding[1]
    return {(row * g.stride[0] + i * g.dilation[0]) * width + column * g.stride[1] + j * g.dilation[1]:
            i * g.kernel[1] + j for i in range(g.kernel[0]) for j in range(g.kernel[1])}


def inside(e, cell):
    """Whether a cell of the padded image lies in the image."""
    row, column = divmod(cell, e.size[1] + 2 * e.geometry.padding[1])
    return all(0 <= at - p < n for at, p, n in zip((row, column), e.geometry.padding, e.size))


STRIDED = "size=5x4&kernel=3x2&stride=2x1&padding=1&dilation=1x2"
GEOMETRY = Geometry((3, 2), (2, 1), 1, (1, 2))


def test_pointing_at_an_output_lights_its_window(page):
    shown, e = page(STRIDED, "takes 5 × 4 numbers to 3 × 4"), Explanation(GEOMETRY, (5, 4))
    for window in (0, 5, 11):
        shown.point("result-0", f"w:{window}")
        met = window_cells(e, window)
        assert shown.lit("input") == {f"p:{cell}" for cell in met}
        assert shown.lit("weight") == {f"k:{k}" for k in range(6)}
        entries = {f"m:{window},{cell}" for cell in met if inside(e, cell)}
        assert {key for key in shown.lit("matrix") if key[0] == "m"} == entries
        # its row of the matrix, and what stands beside and above
        assert len(shown.lit("matrix", "band")) == 20
        assert {key for key in shown.lit("matrix") if key[0] != "m"} == {
            f"w:{window}", *(f"p:{cell}" for cell in met if inside(e, cell))}
        assert {key for key in shown.lit("columns") if key[0] == "c"} == {f"c:{6 * window + k}" for k in range(6)}
        assert all(shown.lit(grid, "main") == {f"w:{window}"} for grid in ("result-0", "columns", "matrix", "y"))
        products = [e.x.flat[(row - 1) * 4 + column - 1] * e.weight.flat[k] if inside(e, cell) else 0
                    for cell, k in met.items() for row, column in [divmod(cell, 6)]]
        assert shown.values("products") == products
        outside = sum(not inside(e, cell) for cell in met)
        padding = f" and {outside} in the padding" * (outside > 0)
        assert shown.text("readout").split(" = ")[2] == f"{sum(products):g}{padding}"


def test_and_the_other_way_round(page):
    shown, e = page(STRIDED, "takes 5 × 4"), Explanation(GEOMETRY, (5, 4))
    met = {window: window_cells(e, window) for window in range(12)}
    for cell in (8, 21, 0):                     # two pixels, and a corner of the padding
        shown.point("input", f"p:{cell}")
        windows = {f"w:{window}" for window in met if cell in met[window]}
        assert shown.lit("result-0") == windows
        assert shown.lit("weight") == {f"k:{met[window][cell]}" for window in met if cell in met[window]}
        assert shown.lit("matrix", "band") == ({f"m:{window},{cell}" for window in met} if inside(e, cell) else set())
    shown.point("weight", "k:3")
    places = {(window, cell) for window in met for cell, k in met[window].items() if k == 3}
    assert shown.lit("input") == {f"p:{cell}" for _, cell in places}
    assert {key for key in shown.lit("matrix") if key[0] == "m"} == {
        f"m:{window},{cell}" for window, cell in places if inside(e, cell)}
    outside = sum(not inside(e, cell) for _, cell in places)
    assert shown.text("readout").endswith(f"is used 12 times, once by each window, {outside} of them in the padding.")
    for window, cell in ((5, 15), (5, 8), (10, 26)):        # an entry: one window, one pixel, one element or none
        shown.point("matrix", f"m:{window},{cell}")
        k = met[window].get(cell)
        assert (shown.lit("result-0"), shown.lit("input")) == ({f"w:{window}"}, {f"p:{cell}"})
        assert shown.lit("weight") == (set() if k is None else {f"k:{k}"})
        row, column = divmod(cell, 6)
        assert shown.text("readout") == f"Ax[{window // 4}, {window % 4}] and x[{row - 1}, {column - 1}] " + (
            "do not meet: a zero of the matrix." if k is None else
            f"meet with kernel[{k // 2}, {k % 2}] = {e.weight.flat[k]:g}.")
    assert {met[w].get(c) is None for w, c in ((5, 15), (5, 8), (10, 26))} == {True, False}
    shown.point("columns", f"c:{6 * 5 + 2}")
    cell, = (cell for cell, k in met[5].items() if k == 2)
    assert (shown.lit("input"), shown.lit("result-0"), shown.lit("weight")) == ({f"p:{cell}"}, {"w:5"}, {"k:2"})
    shown.point("overlap", "p:8")
    assert shown.lit("result-0") == {f"w:{window}" for window in met if 8 in met[window]}


def test_the_transposed_convolution_in_three_faces(page):
    shown = page("transposed=1&size=3x2&kernel=3&stride=2&padding=1&output_padding=1x0", "takes 3 × 2 numbers to 6 × 3")
    e = Explanation.transposed(Geometry(3, 2, 1), (3, 2), output_padding=(1, 0))
    expected = naive.conv_transpose2d(e.y[None], e.weight, (2, 2), (1, 1), (1, 1), (6, 3))[0]
    assert shown.values("result-1") == expected.ravel().tolist()
    assert shown.values("result-0") == naive.conv_transpose2d(e.y[None], e.weight, (2, 2), (0, 0), (1, 1), (8, 5)
                                                              )[0].ravel().tolist()
    matrix = np.array(shown.values("matrix")[6:]).reshape(18, 7)
    assert (matrix[:, 6] == expected.ravel()).all() and (matrix[:, :6] @ e.y.ravel() == expected.ravel()).all()
    met = {window: window_cells(e, window) for window in range(6)}
    shown.point("input", "w:3")
    assert shown.lit("result-0") == {f"p:{cell}" for cell in met[3]}
    assert shown.values("products") == [e.y.flat[3] * k for k in e.weight.ravel()]
    assert {key for key in shown.lit("matrix") if key[0] == "m"} == {f"m:3,{c}" for c in met[3] if inside(e, c)}
    assert len(shown.lit("matrix", "band")) == 18 and len(shown.lit("stuffed")) == 1
    cell = 2 * 5 + 2                            # pixel (1, 1)
    shown.point("result-1", f"p:{cell}")
    assert shown.lit("input") == {f"w:{window}" for window in met if cell in met[window]}
    stuffed = {(1 + i) * 5 + 1 + j for i in range(3) for j in range(3)}
    assert shown.lit("stuffed") == {f"s:{place}" for place in stuffed}
    assert shown.lit("turned") == shown.lit("weight") == {f"k:{met[w][cell]}" for w in met if cell in met[w]}
    assert f"= {expected[1, 1, 0]:g}" in shown.text("readout")
    shown.point("stuffed", "s:7")               # a zero in between
    assert f"p:{cell}" in shown.lit("result-1") and "adds nothing" in shown.text("readout")
    assert shown.lit("input") == set()
    shown.point("stuffed", "s:6")               # y[0, 0]
    assert shown.lit("stuffed", "main") == {"s:6"} and shown.lit("input", "main") == {"w:0"}
    assert shown.lit("result-0") == {f"p:{place}" for place in met[0]}
    shown.point("result-0", "p:0")
    assert "cut off" in shown.text("readout")


def test_steps_show_sums_up_to_now(page):
    shown = page("transposed=1&size=2x3&kernel=2&stride=1", "takes 2 × 3 numbers to 3 × 4")
    e = Explanation.transposed(Geometry(2), (2, 3))
    assert shown.text("count") == "all 6 inputs"
    for step in range(6):
        shown.press(Keys.ARROW_RIGHT)
        assert shown.text("count") == f"input {step + 1} of 6"
        y = np.where(np.arange(6).reshape(1, 2, 3, 1) <= step, e.y, 0)
        sums = naive.conv_transpose2d(y, e.weight, (1, 1), (0, 0), (1, 1), (3, 4)).ravel().tolist()
        assert shown.values("result-0") == shown.values("result-1") == sums
        assert shown.values("matrix")[6:][6::7] == sums
        assert shown.lit("input", "main") == {f"w:{step}"}
    shown.press(Keys.ARROW_LEFT)
    assert shown.text("count") == "input 5 of 6"
    shown.find("#by-outputs").click()
    shown.find("#forward").click()
    shown.find("#forward").click()
    expected = e.ATy.ravel().tolist()
    assert shown.text("count") == "output 2 of 12"
    assert shown.values("result-1") == expected[:2] + [None] * 10 and shown.lit("result-1", "main") == {"p:1"}
    shown.find("#back").click()
    assert shown.values("result-0") == expected[:1] + [None] * 11
    shown.press(Keys.ESCAPE)
    assert shown.text("count") == "all 12 outputs" and shown.values("result-0") == expected
    assert not shown.driver.find_elements(By.CSS_SELECTOR, ".lit")


def test_playing(page):
    shown = page("size=3&kernel=2", "takes 3 × 3 numbers to 2 × 2")
    shown.press(Keys.SPACE)
    assert shown.text("count") == "output 1 of 4" and shown.text("play") == "Pause"
    shown.wait(lambda _: shown.text("count") == "output 2 of 4")
    shown.press(Keys.SPACE)
    assert shown.text("play") == "Play" and shown.text("count") == "output 2 of 4"
    shown.find("#play").click()
    shown.wait(lambda _: shown.text("count") == "output 4 of 4")
    shown.wait(lambda _: shown.text("play") == "Play")
    assert shown.values("result-0") == Explanation(Geometry(2), 3).Ax.ravel().tolist()


def test_with_the_keyboard_alone(page):
    shown = page("size=3&kernel=2", "takes 3 × 3 numbers")
    order = []
    shown.driver.execute_script("document.querySelector('#all').focus()")
    for _ in range(19):
        shown.press(Keys.TAB)
        order.append(shown.focused())
    # one stop a grid, in the order of reading
    assert order == [("step", None), ("input", "p:0"), ("weight", "k:0"), ("products", "k:0"), ("result-0", "w:0"),
                     ("columns", "k:0"), ("matrix", "p:0"), ("x", "p:0"), ("y", "w:0"), ("Ax", "w:0"), ("ATy", "p:0"),
                     ("x-again", "p:0"), ("ATAx", "p:0"), ("overlap", "p:0"), ("axis-0-0", None), ("inside-0", None),
                     ("axis-1-0", None), ("inside-1", None), ("answer", None)]
    shown.driver.execute_script("document.querySelector('[data-name=result-0] .cell').focus()")
    shown.press(Keys.ARROW_RIGHT)
    assert shown.focused() == ("result-0", "w:1") and shown.lit("input") == {"p:1", "p:2", "p:4", "p:5"}
    shown.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert shown.focused() == ("result-0", "w:3")
    outline = shown.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    shown.press(Keys.TAB)
    shown.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)        # from the kernel above into the columns
    assert shown.focused() == ("columns", "c:5")
    shown.press(Keys.SPACE)
    assert shown.text("play") == "Pause"
    shown.press(Keys.ESCAPE)
    assert shown.text("play") == "Play" and shown.text("count") == "all 4 outputs"
    shown.driver.execute_script("document.querySelector('[data-name=weight] .cell').focus()")
    shown.press("7", Keys.ARROW_RIGHT, Keys.BACKSPACE, "5", Keys.ARROW_DOWN)
    assert shown.focused() == ("weight", "k:2")                             # left and right moved in the text
    shown.wait(lambda _: "weight=5," in shown.driver.current_url)
    assert shown.focused() == ("weight", "k:2")


def test_everything_has_a_name(page):
    shown = page("transposed=1&size=2&stride=2&padding=1", "takes 2 × 2 numbers to 3 × 3")
    nameless = shown.driver.execute_script(
        "return [...document.querySelectorAll('input, button, [role=grid], [role=gridcell], section, form')]"
        ".filter(node => !(node.getAttribute('aria-label') || node.labels?.length || node.textContent.trim()))"
        ".map(node => node.outerHTML)")
    assert nameless == []
    label = shown.find('[data-name="result-0"] .cut').get_attribute("aria-label")
    assert label.startswith("row 0, column 0: ") and label.endswith(", cut off")


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(page, width):
    shown = page()
    try:
        shown.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                     dict(width=width, height=800, deviceScaleFactor=1, mobile=False))
        for fragment in ("transposed=1&size=3&stride=2&padding=1", "size=8&padding=1", "size=5&channels=2x3"):
            shown.driver.execute_script("location.hash = arguments[0]", fragment)
            shown.wait(lambda _: "weight=" in shown.driver.current_url)
            assert shown.driver.execute_script("return document.documentElement.scrollWidth") <= width
            assert width < 600 or shown.driver.execute_script(              # there a wide grid may scroll in its place
                "return [...document.querySelectorAll('.figures')].every(node => node.scrollWidth <= node.clientWidth)")
    finally:
        shown.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_several_channels(page):
    shown = page("size=3&kernel=2&channels=2x3", "takes 3 × 3 × 2 numbers to 2 × 2 × 3")
    e = Explanation(Geometry(2), 3, channels=(2, 3))
    assert shown.values("result-0-1") == e.Ax[..., 1].ravel().tolist()
    assert shown.values("weight-4") == e.weight[..., 1, 1].ravel().tolist()
    shown.point("result-0-1", "w:4")            # window (0, 1) of filter 1
    assert shown.lit("input-1") == {f"p:{(i * 3 + j) * 2 + 1}" for i in (0, 1) for j in (1, 2)}
    assert shown.lit("weight-1") == {f"k:{k * 6 + 1}" for k in range(4)} and shown.lit("weight-0") == set()


def test_why_the_overlap_is_uneven(page):
    shown = page("transposed=1&size=3&stride=2&kernel=3x2", "takes 3 × 3 numbers to 7 × 6")
    titles = [node.text for node in shown.driver.find_elements(By.CSS_SELECTOR, "#why h4")]
    assert titles == ["kernel 3x2, stride 2: uneven", "kernel 2, stride 2: even"]
    assert shown.values("axis-0-0") == [0, 1, 2, *[None] * 6, 0, 1, 2, *[None] * 6, 0, 1, 2, 1, 1, 2, 1, 2, 1, 1]
    assert shown.values("axis-0-1")[-6:] == shown.values("axis-1-0")[-6:] == [1] * 6
    assert shown.values("inside-0") == ([2] * 8 + [1] * 8) * 4 and shown.values("inside-1") == [1] * 64
    shown.point("input", "w:0")                 # what is no part of the case is not dimmed
    opacity = "return getComputedStyle(document.querySelector(`[data-name=${arguments[0]}] .cell:last-child`)).opacity"
    shown.wait(lambda _: float(shown.driver.execute_script(opacity, "ATy")) < .5)
    assert shown.driver.execute_script(opacity, "inside-0") == "1"


SHORT = [
    (0, "0"), (-7, "-7"), (12345, "12345"), (-12345, "-12345"), (123456, "1.2e5"), (-.5, "-0.5"), (.125, "0.125"),
    (.123456, "0.123"), (1.0004, "1.00"), (999.6, "999.6"), (999.96, "1000.0"), (-999.96, "-1000.0"),
    (1234.5, "1234.5"), (12345.67, "12345.7"), (99999.5, "1.0e5"), (.00123, "1.2e-3"), (1 / 3, "0.333"),
    (.1 + .2, "0.3"), (123.456, "123.5"),
]


def test_a_short_number_is_no_other_number(page):
    """A fraction never looks like a whole number."""
    shown, values = page(), [value for value, _ in SHORT]
    assert shown.driver.execute_script("return arguments[0].map(short)", values) == [text for _, text in SHORT]
    found = shown.driver.execute_script("return arguments[0].map(long)", values)
    assert [float(text) for text in found] == pytest.approx(values, rel=1e-12)


def test_the_file_works_without_a_server(driver, tmp_path):
    e = Explanation.transposed(Geometry(2, stride=2), (2, 2))
    write_html(e, True, tmp_path / "case.html")
    shown = Page(driver, (tmp_path / "case.html").as_uri())
    assert shown.values("result-0") == e.ATy.ravel().tolist()
    shown.point("input", "w:3")
    assert shown.lit("result-0") == {"p:10", "p:11", "p:14", "p:15"}
    shown.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert shown.text("count") == "input 2 of 4"
    shown.press(Keys.SPACE)
    shown.wait(lambda _: shown.text("count") == "input 4 of 4")
    enabled = driver.find_elements(By.CSS_SELECTOR, "#settings :is(input, button):enabled, .cells input")
    assert enabled == [] and not shown.find("#presets").is_displayed() and "run the command" in shown.text("note")
    assert shown.text("command").startswith("minunet explain --transposed --size 2x2 --kernel 2x2 --stride 2x2")
    assert shown.complaints() == []
    entries = json.loads(driver.execute_script("return JSON.stringify(performance.getEntriesByType('resource'))"))
    assert [entry["name"] for entry in entries if not entry["name"].startswith("data:")] == []


def test_a_count_is_pointed_at_with_its_pixel(page):
    shown = page("channels=2x1", "takes 4 × 4 × 2 numbers")
    found = shown.driver.execute_script(
        "return [...document.querySelectorAll('[data-name=overlap] .cell')].map(cell => cell.dataset.key)")
    assert found == [f"p:{2 * pixel}" for pixel in range(16)]


def test_a_pattern_that_is_not_drawn_is_said(page):
    shown = page("stride=9")
    words = "return document.getElementById('why-words').textContent"
    shown.wait(lambda _: shown.driver.execute_script(words) == "The pattern is too large to draw.")


def test_playing_at_the_end_begins_again(page):
    shown = page()
    assert shown.driver.execute_script("go(steps() - 1); play(); return state.step") == 0
    shown.driver.execute_script("stop()")


def test_the_readout_of_one_window_and_of_many_products(page):
    shown = page("size=3", "takes 3 × 3 numbers")
    shown.point("weight", "k:0")
    assert "is used once, by the only window" in shown.text("readout")
    shown.driver.execute_script("location.hash = 'kernel=4&size=5'")
    shown.settle("takes 5 × 5 numbers")
    shown.point("result-0", "w:0")
    assert shown.text("readout").count("·") == 12 and "+ … (16 products)" in shown.text("readout")


def test_shades_of_the_overlap_can_be_compared(page):
    """Counts along an axis by their own largest, those far from the border by the largest of both cases."""
    shown = page("stride=2&size=5", "takes 5 × 5 numbers")
    shades = shown.driver.execute_script(
        "return ['axis-0-0', 'inside-0', 'inside-1'].map(name => Number("
        "[...document.querySelectorAll(`[data-name=${name}] .cell`)].at(-1).style.getPropertyValue('--value')))")
    assert shades == [1 / 2, 1 / 4, 1 / 4]


def test_a_kernels_title_names_channel_and_filter(page):
    shown = page("channels=2x3", "takes 4 × 4 × 2 numbers")
    titles = [shown.find(f"[data-name='weight-{d}']").get_attribute("aria-label") for d in (1, 3)]
    assert [title.split("]")[0] for title in titles] == ["kernel [·, ·, 0, 1", "kernel [·, ·, 1, 0"]


def test_another_width_draws_anew(page):
    shown = page("size=8&stride=2", "takes 8 × 8 numbers")
    width = "return document.querySelector('[data-name=matrix] .cell').getBoundingClientRect().width"
    before, size = shown.driver.execute_script(width), shown.driver.get_window_size()
    try:
        shown.driver.set_window_size(size["width"] // 2, size["height"])
        shown.wait(lambda _: shown.driver.execute_script(width) < before)
    finally:
        shown.driver.set_window_size(**size)
