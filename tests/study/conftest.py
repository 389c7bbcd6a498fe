"""The explaining page on a real server, and in a real browser."""

import threading

import pytest

from minunet import Geometry
from minunet.study.explanation import Explanation
from minunet.study.server import PageServer


@pytest.fixture(scope="module")
def server():
    """The page, opened with the slides' convolution."""
    with PageServer(Explanation(Geometry(3), 4), transposed=False) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """One browser for all tests."""
    from tests.study import browser

    driver = browser.start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, server):
    """Opens the page, with these settings behind the #, and sees that the console stays silent."""
    from tests.study import browser

    opened = []

    def open_page(fragment="", words=None):
        opened.append(browser.Page(driver, server.url + (f"#{fragment}" if fragment else "")))
        if words:
            opened[0].settle(words)
        return opened[0]

    yield open_page
    assert opened[0].complaints() == []
