"""A real browser, Debian's chromium, and what a user sees and does in it.

Whoever imports this is skipped, and says so, where there is no Selenium or no browser.
"""

from pathlib import Path

import pytest

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


def start(profile):
    """The browser, with an empty profile in a folder of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, Service(str(DRIVER)))


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
