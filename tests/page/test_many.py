"""The page with many pictures, with folders, with a service that goes away; and what it shows beside captions."""

from __future__ import annotations

import io
import json
import random
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.page.conftest import Opened
from tests.page.engine import FakeEngine
from tests.page.live import serving
from tests.page.test_page import BLUE, RED, drop_in, picture, serious, upload
from tests.training.shapes import draw_pair

AT_ONCE = 4
MANY = 200


def scene(shade: int) -> bytes:
    """A picture that shows something, in grey: of the dark ones the engine says a cat, of the light ones a train."""
    drawn = np.asarray(draw_pair(random.Random(0), 96)[0].convert("L"), np.float64)
    file = io.BytesIO()
    Image.fromarray((drawn / 255 * 90 + shade).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


DARK, LIGHT = scene(0), scene(160)


def test_tags_and_doubts_are_shown(opened: Opened) -> None:
    page = opened()
    drop_in(page, upload("dark.png", DARK), upload("light.png", LIGHT), upload("blank.png", picture("#22c")))
    cards = page.locator(".card")
    expect(cards.locator(".caption")).to_have_count(3)
    expect(cards.nth(0).get_by_role("list", name="Tags").locator("li")).to_have_text(
        ["cat 90%", "train 45%", "dog 23%", "snow 11%", "street 6%"]
    )
    expect(cards.nth(0).locator(".remark")).to_have_count(0)
    expect(cards.nth(1).locator(".remark")).to_have_text("Not sure: have a look at this one.")
    expect(cards.nth(2).locator(".remark")).to_have_text("Shows nothing: its alternative text is empty.")
    cards.nth(1).get_by_role("button", name="Why?").click()
    expect(page.locator("#stage .remark")).to_have_text("Not sure: have a look at this one.")
    expect(page.locator("#stage .tags li").first).to_have_text("train 90%")
    assert serious(page) == []


def test_html_to_copy_and_json_to_keep(opened: Opened) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    drop_in(page, upload('the "cat".png', DARK), upload("blank.png", picture("#22c")))
    said = "A black cat sleeps on a wooden chair by the window."
    for number, html in (
        (0, f'<img src="the%20%22cat%22.png" alt="{said}" width="96" height="96">'),
        (1, '<img src="blank.png" alt="" width="64" height="48">'),
    ):
        page.locator(".card").nth(number).get_by_role("button", name="HTML").click()
        expect(page.get_by_role("status")).to_have_text("HTML copied.")
        assert page.evaluate("navigator.clipboard.readText()") == html
    with page.expect_download() as download:
        page.locator(".bar-row").get_by_role("button", name="JSON").click()
    first, second = (one["result"] for one in json.loads(Path(download.value.path()).read_text()))
    assert (first["alt"], first["review"], first["decorative"]) == (said, False, False)
    assert (second["alt"], second["review"], second["decorative"]) == ("", True, True)
    assert [tag["text"] for tag in first["tags"]] == ["cat", "train", "dog", "snow", "street"]


def drop_many(page: Page, count: int) -> None:
    """As many pictures at once, made in the page: sent through the browser's pipe they would take longer."""
    page.evaluate(
        """async ([bytes, count]) => {
            const dataTransfer = new DataTransfer();
            const file = (i) => new File([new Uint8Array(bytes)], `${i}.png`, { type: "image/png" });
            for (let i = 0; i < count; i++) dataTransfer.items.add(file(i));
            document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }""",
        [list(picture("#c22")), count],
    )


def test_of_many_pictures_few_are_drawn_and_few_are_sent_at_once(opened: Opened) -> None:
    page = opened()
    flying: set[int] = set()
    most = 0

    def sent(request: object) -> None:
        nonlocal most
        if "/caption?" in request.url:  # type: ignore[attr-defined]
            flying.add(id(request))
            most = max(most, len(flying))

    page.on("request", sent)
    page.on("requestfinished", lambda request: flying.discard(id(request)))
    drop_many(page, MANY)
    expect(page.locator(".card")).to_have_count(MANY)
    expect(page.locator("#count")).to_have_text(f"{MANY} pictures", timeout=120_000)
    assert 1 <= most <= AT_ONCE
    assert page.locator(".card img").count() < MANY / 4
    assert page.locator(".card[data-state=done]").count() == MANY
    last = page.locator(".card").last
    expect(last.locator("img")).to_have_count(0)
    last.scroll_into_view_if_needed()
    expect(last.locator(".caption")).to_have_text(RED)
    expect(last.locator("img")).to_have_count(1)
    expect(page.locator(".card").first.locator("img")).to_have_count(0)  # no longer near
    assert page.locator(".card img").count() < MANY / 4
    assert serious(page) == []


def test_it_can_be_made_to_wait(opened: Opened) -> None:
    page = opened()
    page.route("**/caption?*", lambda route: route.continue_())
    drop_many(page, 60)
    page.get_by_role("button", name="Pause").click()
    resume = page.get_by_role("button", name="Resume")
    expect(resume).to_be_visible()
    expect(page.locator(".card[data-state=working]")).to_have_count(0)  # those under way come to their end
    waiting = page.locator(".card[data-state=waiting]").count()
    assert waiting > 0
    page.wait_for_timeout(300)
    assert page.locator(".card[data-state=waiting]").count() == waiting
    resume.click()
    expect(page.locator("#count")).to_have_text("60 pictures", timeout=60_000)
    expect(resume).to_be_hidden()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures two levels deep, among other files."""
    for name, colour in (("2.png", "#22c"), ("10.png", "#c22"), ("more/deep/3.png", "#c22"), (".hidden/4.png", "#c22")):
        path = tmp_path / "holidays" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(colour))
    (tmp_path / "holidays" / "notes.txt").write_text("no picture")
    return tmp_path / "holidays"


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_folders_are_walked(opened: Opened, folder: Path, way: str) -> None:
    page = opened()
    if way == "chosen":
        page.set_input_files("#folder", folder)
    else:
        session = page.context.new_cdp_session(page)
        box = page.locator("#drop").bounding_box()
        assert box is not None
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            session.send("Input.dispatchDragEvent", {"type": event, **at, "data": data})
    expect(page.locator("#count")).to_have_text("3 pictures")
    expect(page.locator(".card .name")).to_have_text(["2.png", "10.png", "3.png"])
    expect(page.locator(".card .caption")).to_have_text([BLUE, RED, RED])


def test_a_folder_without_pictures_is_told(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    page = opened()
    page.set_input_files("#folder", tmp_path)
    expect(page.get_by_role("status")).to_have_text("There is no picture in it.")


def test_it_goes_on_when_the_service_is_back(browser: Browser) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = browser.new_page()
    with serving(FakeEngine(), port=port) as address:
        page.goto(address)
        expect(page.locator("#model")).not_to_be_empty()
        drop_in(page, upload("red.png", picture("#c22")), upload("blue.png", picture("#22c")))
        expect(page.locator(".card[data-state=done]")).to_have_count(2)
    drop_in(page, upload("again.png", picture("#c22")))
    lost = page.get_by_role("alert")
    expect(lost).to_have_text("The service cannot be reached. This page goes on as soon as it answers.")
    with serving(FakeEngine(), port=port):
        expect(page.locator(".card .caption")).to_have_text([RED, BLUE, RED])
        expect(lost).to_be_hidden()
    page.context.close()
