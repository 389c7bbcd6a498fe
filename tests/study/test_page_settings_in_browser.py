"""The explaining page in a real browser: settings and numbers typed, chosen, linked; what is refused, what is late."""

import threading

import numpy as np
import pytest

from minunet import Geometry
from minunet.study.evenness import verdict
from minunet.study.explanation import Explanation
from minunet.study.server import PageServer
from tests.study.browser import By, Keys, Page


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

    refused("kernel", "9", "kernel: its window spans 9 px in height (kernel 9, dilation 1), the padded image")
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
