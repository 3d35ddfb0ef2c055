"""Makes the screenshots in docs/images from the running service: `python -m tests.page.screenshots`.

It serves the embedded model and looks at the sample picture, so the pictures show what a reader will see.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, Page

from app.settings import DEFAULT_MODEL
from model.runtime import load_engine
from tests.page.browser import chromium, open_browser
from tests.page.live import serving

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESK = {"viewport": {"width": 1280, "height": 860}, "reduced_motion": "reduce"}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


def main() -> int:
    """Write every picture; returns the exit status."""
    path = chromium()
    if path is None:
        print("no Chromium here: apt-get install chromium fonts-inter fonts-stix", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with serving(load_engine(DEFAULT_MODEL, "cpu")) as url, open_browser(path) as browser:

        def opened(**context: object) -> Page:
            page = browser.new_context(**context).new_page()  # type: ignore[arg-type]
            page.goto(url)
            page.get_by_role("button", name="Try the sample").click()
            page.locator("#stage .word").first.wait_for()
            return page

        page = opened(**DESK)
        point(page)
        save(page, "page")
        save(page.locator(".memory"), "gates")
        page.goto(str(page.locator(".walk").get_attribute("href")))
        page.locator(".steps > li").last.wait_for()
        save(page, "lstm", full_page=True)

        page = opened(**DESK, color_scheme="dark")
        point(page)
        save(page, "page-dark")

        page = opened(**PHONE)
        point(page)
        page.evaluate("scrollTo(0, document.querySelector('#stage').offsetTop - 12)")
        save(page, "page-phone")
    return 0


def point(page: Page) -> None:
    """Choose the word whose attention is narrowest: it has most to show."""
    peaks = page.evaluate(
        """async () => {
            const sample = await (await fetch("static/sample.jpg")).blob();
            const answer = await (await fetch("caption?explain=true", { method: "POST", body: sample })).json();
            const tokens = answer.captions[0].tokens;
            return tokens.map(({ text, attention }) => (text === "." ? 0 : Math.max(...attention.weights)));
        }"""
    )
    best = max(range(len(peaks)), key=peaks.__getitem__)
    page.locator("#stage .word").nth(best).click()
    page.mouse.move(1, 1)
    page.wait_for_timeout(300)  # the overlay fades in


def save(view: Page | Locator, name: str, **options: object) -> None:
    """Write docs/images/<name>.webp."""
    path = IMAGES / f"{name}.webp"
    with Image.open(io.BytesIO(view.screenshot(**options))) as image:  # type: ignore[arg-type]
        image.convert("RGB").save(path, quality=88, method=6)
    print(path, path.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
