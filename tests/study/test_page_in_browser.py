"""The explaining page in a real browser, Debian's chromium: pointing, stepping, typing, keys, and the page as a file.

What must light up is found here by loops over the geometry; the page has it from the server.
"""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from minunet import Geometry
from minunet.study.evenness import verdict
from minunet.study.explanation import Explanation
from minunet.study.page import write_html
from minunet.study.server import PageServer
from tests import naive

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--window-size=1400,1000")

pytest.importorskip("selenium", reason="the browser's tests need selenium: pip install -e '.[browser]'")
if not (CHROMIUM.exists() and DRIVER.exists()):
    pytest.skip("the browser's tests need Debian's packages chromium and chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """One browser for all tests, with an empty profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server():
    """The page, opened with the slides' convolution."""
    with PageServer(Explanation(Geometry(3), 4), transposed=False) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
    thread.join(timeout=10)


class Page:
    """What a user sees and does. A cell is named by its grid and by what it stands for, such as ("weight", "k:4")."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(url)
        self.wait(lambda _: self.text("summary").startswith("The "))

    def wait(self, condition):
        return WebDriverWait(self.driver, 30, poll_frequency=0.05).until(condition)

    def find(self, css):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def text(self, name):
        return self.find(f"#{name}").text

    def cell(self, grid, key):
        return self.find(f'[data-name="{grid}"] [data-key="{key}"]')

    def point(self, grid, key):
        ActionChains(self.driver, duration=0).move_to_element(self.cell(grid, key)).perform()

    def press(self, *keys):
        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def focused(self):
        """Grid and key of the cell with the focus."""
        return tuple(self.driver.execute_script(
            "const a = document.activeElement;"
            "return [a.closest('.cells')?.dataset.name ?? a.id, a.dataset.key ?? null]"))

    def lit(self, grid, name="lit"):
        """The keys of the cells of a grid that are lit."""
        return set(self.driver.execute_script(
            "return [...document.querySelectorAll(`[data-name='${arguments[0]}'] .${arguments[1]}`)]"
            ".map(cell => cell.dataset.key)", grid, name))

    def values(self, grid):
        """The cells' texts, row by row; an empty one is None, a zero that is only a dot is 0."""
        texts = self.driver.execute_script(
            "return [...document.querySelectorAll(`[data-name='${arguments[0]}'] .cell`)]"
            ".map(cell => cell.value ?? cell.textContent)", grid)
        return [None if text == "" else 0.0 if text == "·" else float(text) for text in texts]

    def type(self, name, text):
        """Replace the text of a setting."""
        field = self.find(f"#{name}")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.BACKSPACE)

    def settle(self, text, name="summary"):
        """Wait until a text is on the page."""
        self.wait(lambda _: text in self.text(name))

    def complaints(self):
        """What the browser's console says, but for the refusals that were asked for."""
        return [line["message"] for line in self.driver.get_log("browser") if "status of 400" not in line["message"]]


@pytest.fixture
def page(driver, server):
    """Opens the page, with these settings behind the #, and sees that the console stays silent."""
    opened = []

    def open_page(fragment="", words=None):
        opened.append(Page(driver, server.url + (f"#{fragment}" if fragment else "")))
        if words:
            opened[0].settle(words)
        return opened[0]

    yield open_page
    assert opened[0].complaints() == []


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


def test_settings_by_typing(page):
    shown = page()
    assert shown.values("result-0") == [122, 148, 126, 134] and shown.text("left") == shown.text("right") == "1432"
    shown.type("stride", "2")
    shown.settle("takes 4 × 4 numbers to 1 × 1")
    shown.type("padding", "1x0")
    shown.settle("takes 4 × 4 numbers to 2 × 1")
    assert shown.text("verdict") == verdict(Geometry(3, stride=2)) and "checkerboard" in shown.text("verdict")
    shown.type("size", "5x6")
    shown.settle("takes 5 × 6 numbers to 3 × 2")
    assert shown.values("weight") == [1, 4, 1, 1, 4, 3, 3, 3, 1]        # still fits, so it is kept
    shown.find("label[for=kernel] + .stepper button:first-child").click()
    shown.settle("takes 5 × 6 numbers to 3 × 3")
    assert shown.find("#kernel").get_attribute("value") == "2"
    assert "size=5x6&kernel=2x2&stride=2x2&padding=1x0" in shown.driver.current_url
    before = {grid: shown.values(grid) for grid in ("weight", "x", "y", "ATAx", "matrix")}
    again = page_of(shown, shown.driver.current_url, "takes 5 × 6 numbers to 3 × 3")
    assert {grid: again.values(grid) for grid in before} == before


def page_of(shown, url, words):
    """The same link in a page that was opened anew."""
    again = Page(shown.driver, url)
    again.settle(words)
    return again


def test_numbers_by_typing(page):
    shown = page()
    shown.cell("weight", "k:0").click()
    shown.press("-0.5", Keys.ENTER)
    shown.wait(lambda _: shown.values("result-0")[0] == 122 - 1.5 * 4)
    assert shown.focused() == ("weight", "k:0")
    kernel = [-0.5, 4, 1, 1, 4, 3, 3, 3, 1]
    e = Explanation(Geometry(3), 4, np.reshape(kernel, (3, 3)))
    assert shown.values("result-0") == e.Ax.ravel().tolist() and shown.values("ATy") == e.ATy.ravel().tolist()
    shown.cell("y", "w:1").click()
    shown.press("10", Keys.TAB)
    e = Explanation(Geometry(3), 4, np.reshape(kernel, (3, 3)), y=[[2, 10], [4, 4]])
    shown.settle(f"{e.identity[0]:g}", "left")
    assert shown.text("right") == shown.text("left") and shown.text("equal") == "equal"
    shown.cell("weight", "k:1").click()
    shown.press("abc", Keys.ENTER)
    shown.settle("kernel[0, 1] must be a number from -1,000,000 to 1,000,000; got 'abc'", "error")
    assert shown.values("result-0") == e.Ax.ravel().tolist()
    invalid = shown.driver.find_elements(By.CSS_SELECTOR, "[aria-invalid=true]")
    assert [node.get_attribute("data-key") for node in invalid] == ["k:1"]
    shown.cell("weight", "k:1").send_keys(Keys.CONTROL, "a")
    shown.press("4", Keys.ENTER)
    shown.wait(lambda _: shown.text("error") == "")


def test_a_number_is_kept_with_all_its_digits(page):
    shown = page("kernel=1&size=2&weight=0.123456789&x=1.23456,2,3,4", "takes 2 × 2 numbers")
    assert shown.values("weight") == [0.123] and shown.values("input")[0] == 1.23
    shown.cell("input", "p:3").click()
    shown.press("5", Keys.ENTER)
    shown.wait(lambda _: "weight=0.123456789&x=1.23456,2,3,5" in shown.driver.current_url)


def test_both_operations_share_the_numbers(page):
    shown = page("size=5&stride=2&kernel=2&weight=1,2,3,4", "takes 5 × 5 numbers to 2 × 2")
    before = {grid: shown.values(grid) for grid in ("weight", "x", "y", "Ax", "ATy", "ATAx")}
    assert not shown.find("#output_padding").is_enabled()
    shown.find("#transposed").click()
    shown.settle("takes 2 × 2 numbers to 5 × 5")
    assert {grid: shown.values(grid) for grid in before} == before
    assert shown.find("#output_padding").is_enabled()
    assert shown.find("#output_padding").get_attribute("value") == "1"
    shown.type("output_padding", "0")
    shown.settle("takes 2 × 2 numbers to 4 × 4")
    shown.find("#convolution").click()
    shown.settle("takes 4 × 4 numbers to 2 × 2")


def test_impossible_settings_are_refused_in_the_operators_words(page):
    shown = page()
    picture = [shown.values(grid) for grid in ("input", "weight", "matrix", "columns", "ATAx")]

    def refused(name, text, sentence):
        shown.type(name, text)
        shown.settle(sentence, "error")
        assert [shown.values(grid) for grid in ("input", "weight", "matrix", "columns", "ATAx")] == picture

    refused("kernel", "9", "kernel: its window spans 9 px in height (kernel (9, 9), dilation (1, 1)), the padded image")
    assert wrong(shown) == ["kernel"]
    refused("stride", "0", "stride must be a whole number, or HEIGHTxWIDTH such as 3x2, at least 1; got 0")
    assert wrong(shown) == ["stride"]           # for that is what the sentence is about
    shown.type("stride", "1")
    shown.settle("kernel: its window", "error")
    assert shown.find("#error").get_attribute("role") == "alert"
    shown.point("result-0", "w:3")              # what is shown still answers
    assert shown.lit("result-0", "main") == {"w:3"}
    shown.type("padding", "3")                  # makes the kernel fit
    shown.settle("takes 4 × 4 numbers to 2 × 2: A is a matrix of 4 × 16")
    assert shown.wait(lambda _: shown.text("error") == "") and "kernel=9x9" in shown.driver.current_url
    picture = [shown.values(grid) for grid in ("input", "weight", "matrix", "columns", "ATAx")]
    refused("size", "10000x10000", "This case is too large for the page: its convolution matrix would have")
    assert wrong(shown) == ["size"]             # which was changed
    shown.type("size", "4")
    refused("padding", "40", "its convolution matrix would have 92,416 cells")
    assert wrong(shown) == ["padding"]
    shown.type("padding", "3")
    refused("channels", "0", "channels must be two whole numbers such as 2x3, at least 1; got 0x1")
    assert wrong(shown) == ["channels"]
    shown.type("channels", "1")
    refused("stride", "two", "got 'two'")
    shown.type("stride", "1")
    refused("dilation", "", "dilation must be")


def wrong(shown):
    """The settings that are marked."""
    return [node.get_attribute("id") for node in shown.driver.find_elements(By.CSS_SELECTOR, "[aria-invalid=true]")]


@pytest.mark.parametrize("fragment, sentence", [
    ("size=2", "kernel: its window spans 3 px"), ("strides=2", "there is no setting 'strides'"),
    ("weight=1,x", "kernel must be a list of 9 numbers"), ("transposed=maybe", "transposed must be true or false"),
    ("%%%", "there is no setting"), ("size=%3Cscript%3Ealert(1)%3C/script%3E", "size must be a whole number"),
])
def test_a_link_that_is_wrong(page, fragment, sentence):
    shown = page(fragment)
    shown.settle(sentence, "error")
    assert shown.values("result-0") == [122, 148, 126, 134]


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


def test_channels_and_filters_have_fields(page):
    shown = page("size=3&kernel=2", "takes 3 × 3 numbers to 2 × 2")
    shown.type("channels", "2")
    shown.settle("takes 3 × 3 × 2 numbers to 2 × 2:")
    shown.find("label[for=filters] + .stepper button:last-child").click()
    shown.settle("takes 3 × 3 × 2 numbers to 2 × 2 × 2")
    e = Explanation(Geometry(2), 3, channels=(2, 2))
    assert shown.values("result-0-1") == e.Ax[..., 1].ravel().tolist() and "channels=2x2" in shown.driver.current_url
    shown.point("columns", "c:3")               # window 0, row (0, 1) and channel 1 of the kernel
    assert shown.lit("input-1") == {"p:3"} and shown.lit("weight-2") == {"k:6"} and shown.lit("weight-3") == {"k:7"}
    assert shown.text("readout").endswith("and likewise in each filter.")


def preset(shown, name, words):
    shown.driver.find_element(By.XPATH, f"//button[@data-name='{name}' and text()='{words}']").click()


def test_buttons_for_numbers(page):
    shown = page("transposed=1&size=3&stride=2", "takes 3 × 3 numbers to 7 × 7")
    e = Explanation.transposed(Geometry(3, stride=2), 3)
    preset(shown, "y", "one impulse")
    shown.wait(lambda _: shown.values("y") == [0, 0, 0, 0, 1, 0, 0, 0, 0])
    assert np.reshape(shown.values("ATy"), (7, 7))[2:5, 2:5].ravel().tolist() == e.weight.ravel().tolist()
    preset(shown, "weight", "bilinear")
    shown.wait(lambda _: shown.values("weight") == [.25, .5, .25, .5, 1, .5, .25, .5, .25])
    preset(shown, "y", "ones")
    shown.wait(lambda _: shown.values("y") == [1] * 9)
    assert np.reshape(shown.values("ATy"), (7, 7))[1:6, 1:6].tolist() == [[1] * 5] * 5
    assert set(shown.values("answer")) == {1} and "flat" in shown.text("answer-words")
    preset(shown, "weight", "ones")
    shown.wait(lambda _: shown.values("weight") == [1] * 9)
    assert np.reshape(shown.values("ATy"), (7, 7))[1:6, 1:6].ravel().tolist() == shown.values("overlap")[8:13] + sum(
        (shown.values("overlap")[7 * row + 1:7 * row + 6] for row in range(2, 6)), [])
    shown.driver.execute_script(        # both, before the first is answered
        "for (const name of ['weight', 'y']) document.querySelector(`#presets [data-name=${name}]`).click();")
    shown.wait(lambda _: shown.values("y") == e.y.ravel().tolist())
    assert shown.values("weight") == e.weight.ravel().tolist()
    shown.type("stride", "3")
    shown.settle("takes 3 × 3 numbers to 9 × 9")
    assert not shown.find("[data-numbers=bilinear]").is_enabled()


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


def test_the_page_says_when_the_server_is_gone(driver):
    with PageServer(Explanation(Geometry(3), 4), transposed=False) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        shown = Page(driver, server.url)
        requests = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert all(name.startswith((server.url, "data:")) for name in requests) and len(requests) >= 4
        assert shown.complaints() == []
    thread.join(timeout=10)
    shown.type("stride", "2")
    shown.settle("the server does not answer", "error")
    assert shown.values("result-0") == [122, 148, 126, 134]


def test_an_answer_that_comes_late_is_not_shown(page):
    shown = page()
    shown.driver.execute_script(
        "const own = fetch, held = new Promise(go => { window.release = go; }); let n = 0;"
        "window.fetch = async (...a) => { const mine = n++, answer = await own(...a); if (!mine) await held;"
        "  return answer; };"
        "window.first = ask({size: 5}); ask({size: 6});")
    shown.settle("takes 6 × 6 numbers")
    shown.driver.execute_async_script("const done = arguments[0]; release(); first.then(() => done());")
    assert "takes 6 × 6 numbers" in shown.text("summary")


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


def test_of_two_changed_settings_the_named_one_is_wrong(page):
    shown = page()
    shown.type("filters", "0")
    shown.settle("channels must be", "error")
    shown.type("stride", "2")
    shown.wait(lambda _: shown.driver.execute_script("return state.turn") >= 2)
    shown.driver.execute_async_script("const done = arguments[0]; ask(request()).then(() => done());")
    invalid = [shown.find(f"#{name}").get_attribute("aria-invalid") for name in ("filters", "channels", "stride")]
    assert invalid == ["true", "false", "false"]


def test_another_fragment_is_followed(page):
    shown = page()
    shown.driver.execute_script("location.hash = 'size=5'")
    shown.settle("takes 5 × 5 numbers")


def test_what_is_being_typed_outlives_an_answer(page):
    shown = page()
    shown.driver.execute_async_script(
        "const done = arguments[0], cell = document.querySelector(`[data-name=weight] [data-key='k:1']`);"
        "cell.focus(); cell.value = '77'; ask({size: 5}).then(() => done());")
    assert shown.focused() == ("weight", "k:1") and shown.values("weight")[:3] == [1, 77, 1]


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
    before, (size, _) = shown.driver.execute_script(width), shown.driver.get_window_size().values()
    try:
        shown.driver.set_window_size(size // 2, 900)
        shown.wait(lambda _: shown.driver.execute_script(width) < before)
    finally:
        shown.driver.set_window_size(size, 900)
