"""A Chromium, the service around an engine of known words, and pages that must not complain."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.page.browser import chromium, open_browser
from tests.page.engine import FakeEngine
from tests.page.live import serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None and os.environ.get("CI") == "true":
        pytest.fail("CI must install Chromium: apt-get install chromium")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with open_browser(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeEngine()) as url:
        yield url


class Opened:
    """Opens pages in contexts of their own, and keeps what they complain of and whom they talk to."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def __call__(self, address: str = "/", **context: object) -> Page:
        page = self.browser.new_context(**context).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(20_000)
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(address if "://" in address else self.url + address)
        return page


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Opened]:
    made = Opened(browser, url)
    yield made
    for context in browser.contexts:
        context.close()
    assert made.complaints == []
    outside = [r for r in made.requests if not r.startswith((url, "blob:", "data:", "file:"))]
    assert outside == []
