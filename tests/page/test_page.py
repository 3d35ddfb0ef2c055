"""The page, the walk-through and the explanation file in a real Chromium, around an engine of known words."""

from __future__ import annotations

import csv
import io
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, expect

from app import explain_html
from app.schemas import caption_out
from app.settings import Settings
from model.config import SearchConfig
from tests.page.conftest import Opened
from tests.page.engine import SENTENCES, FakeEngine, FakeRegions
from tests.page.live import serving

STATIC = explain_html.STATIC
RED, GREEN, BLUE = (f"{sentence.capitalize()}." for sentence in SENTENCES[:3])
DARK, LIGHT = {"color_scheme": "dark"}, {"color_scheme": "light"}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
expect.set_options(timeout=20_000)  # a shared machine may be slow
BUDGET = 160_000  # bytes of all the page's files


def picture(colour: str, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def upload(name: str, data: bytes, mime: str = "image/png") -> FilePayload:
    return {"name": name, "mimeType": mime, "buffer": data}


def drop_in(page: Page, *files: FilePayload) -> None:
    page.set_input_files("#file", list(files))


def test_upload_shows_the_caption_and_announces_it(opened: Opened) -> None:
    page = opened()
    drop_in(page, upload("red.png", picture("#c22")))
    expect(page.locator("#stage h2")).to_have_text(RED)
    expect(page.get_by_role("status")).to_have_text(f"red.png: {RED}")
    expect(page.locator("#stage .word")).to_have_count(len(RED.split()) + 1)


def test_paste(opened: Opened) -> None:
    page = opened()
    page.evaluate(
        """async (bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        list(picture("#2c2")),
    )
    expect(page.locator("#stage h2")).to_have_text(GREEN)


def test_drop(opened: Opened) -> None:
    page = opened()
    page.evaluate(
        """async (bytes) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
            document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }""",
        list(picture("#22c")),
    )
    expect(page.locator("#stage h2")).to_have_text(BLUE)


def test_sample(opened: Opened) -> None:
    page = opened()
    page.get_by_role("button", name="Try the sample").click()
    expect(page.locator("#stage .name")).to_have_text("sample.jpg · 640 × 480")


def test_several_with_one_broken(opened: Opened) -> None:
    page = opened()
    drop_in(
        page,
        upload("red.png", picture("#c22")),
        upload("broken.png", picture("#2c2")[:40]),
        upload("notes.txt", b"words, no picture", "text/plain"),
        upload("blue.png", picture("#22c")),
    )
    cards = page.locator(".card")
    expect(page.locator("#count")).to_have_text("4 pictures, 2 of them failed")
    expect(cards.nth(0).locator(".caption")).to_have_text(RED)
    expect(cards.nth(1).locator(".error")).to_contain_text("damaged or cut off")
    expect(cards.nth(2).locator(".error")).to_contain_text("Not a picture in a format that is read here")
    expect(cards.nth(3).locator(".caption")).to_have_text(BLUE)
    # Chromium itself reports each refused request; nothing else may be there.
    assert len(opened.complaints) == 2
    assert all("Failed to load resource" in complaint for complaint in opened.complaints)
    opened.complaints.clear()

    with page.expect_download() as download:
        page.locator(".bar-row").get_by_role("button", name="CSV").click()
    rows = list(csv.reader(Path(download.value.path()).read_text().splitlines()))
    assert rows[0] == ["filename", "caption", "confidence", "error", "alt", "review", "tags"]
    assert [row[:2] for row in rows[1:]] == [
        ["red.png", RED], ["broken.png", ""], ["notes.txt", ""], ["blue.png", BLUE]
    ]  # fmt: skip
    assert [bool(row[3]) for row in rows[1:]] == [False, True, True, False]

    with page.expect_download() as download:
        page.locator(".bar-row").get_by_role("button", name="JSON").click()
    results = json.loads(Path(download.value.path()).read_text())
    assert [result.get("error", {}).get("code") for result in results] == [
        None, "broken_image", "unsupported_media_type", None
    ]  # fmt: skip
    assert results[0]["result"]["caption"] == RED
    assert results[0]["result"]["tags"][0] == {"text": "dog", "probability": 0.9}
    assert results[0]["result"]["alt"] == ""  # one colour shows nothing
    assert results[0]["result"]["review"] is True

    cards.nth(3).get_by_role("button", name="Why?").click()
    expect(page.locator("#stage h2")).to_have_text(BLUE)
    expect(page.locator("#stage")).to_be_focused()


def test_too_large_a_file_is_not_even_sent(browser: Browser) -> None:
    with serving(FakeEngine(), Settings(drain_delay=0, max_upload_mb=1)) as url:
        page = browser.new_page()
        sent: list[str] = []
        with page.expect_response("**/model"):
            page.goto(url)
        page.on("request", lambda request: sent.append(request.method))
        expect(page.locator("#model")).not_to_be_empty()
        drop_in(page, upload("big.png", b"x" * 1_200_000))
        expect(page.locator("#stage")).to_contain_text("The file has 1.2 MB; the service takes up to 1.0 MB.")
        assert "POST" not in sent
        page.context.close()


def test_a_busy_service_is_asked_again(opened: Opened) -> None:
    page = opened()
    answers = iter([503, 429])

    def busy(route) -> None:  # type: ignore[no-untyped-def]
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "0.01"}, json={"detail": "busy"})

    page.route("**/caption*", busy)
    drop_in(page, upload("red.png", picture("#c22")))
    expect(page.locator("#stage h2")).to_have_text(RED)
    assert next(answers, "all used") == "all used"
    opened.complaints.clear()  # Chromium's own lines about the two refusals


def test_key_is_asked_for_once(browser: Browser) -> None:
    settings = Settings(drain_delay=0, max_upload_mb=1, api_keys="open-sesame")  # type: ignore[arg-type]
    with serving(FakeEngine(), settings) as url:
        page = browser.new_page()
        page.goto(url)
        drop_in(page, upload("red.png", picture("#c22")), upload("blue.png", picture("#22c")))
        page.get_by_label("API key").fill("open-sesame")
        page.get_by_role("button", name="Use it").click()
        expect(page.locator(".card .caption")).to_have_text([RED, BLUE])
        # What the service told nobody without a key: its model, and the limit on files.
        expect(page.locator("#model")).to_have_text("fake 1, on CPU")
        drop_in(page, {"name": "large.png", "mimeType": "image/png", "buffer": bytes(1_100_000)})
        expect(page.locator(".card .error")).to_have_text("The file has 1.1 MB; the service takes up to 1.0 MB.")
        page.context.close()


def test_a_key_that_no_header_carries_does_not_lock_the_page(browser: Browser) -> None:
    with serving(FakeEngine(), Settings(drain_delay=0, api_keys="open-sesame")) as url:  # type: ignore[arg-type]
        page = browser.new_page()
        page.add_init_script("sessionStorage.setItem('caption-api-key', 'сезам')")
        page.goto(url)
        drop_in(page, upload("red.png", picture("#c22")))
        use = page.get_by_role("button", name="Use it")
        page.get_by_label("API key").fill("сезам")
        use.click()
        assert page.get_by_label("API key").evaluate("input => input.validationMessage").startswith("A key has no")
        expect(use).to_be_visible()
        page.get_by_label("API key").fill("open-sesame")
        use.click()
        expect(page.locator("#stage h2")).to_have_text(RED)
        page.context.close()


def overlay_alpha(page: Page, x: float, y: float) -> int:
    """Opacity (0-255) of the dimming at a place given in shares of the picture; negative where it is warm."""
    return int(
        page.evaluate(
            """([x, y]) => {
                const canvas = document.querySelector("#stage .frame canvas");
                const at = [Math.floor(x * (canvas.width - 1)), Math.floor(y * (canvas.height - 1))];
                const [red, , , alpha] = canvas.getContext("2d").getImageData(...at, 1, 1).data;
                return red > 128 ? -alpha : alpha;
            }""",
            [x, y],
        )
    )


def test_hovering_a_word_shows_attention_runners_up_and_gates(opened: Opened) -> None:
    page = opened(reduced_motion="reduce")
    drop_in(page, upload("red.png", picture("#c22")))
    words = page.locator("#stage .word")
    expect(page.locator("#stage .panel")).to_contain_text("Point at a word")
    words.first.hover()
    expect(page.locator("#stage .frame")).to_have_class("frame looking")
    assert overlay_alpha(page, 0, 0) < 0 < overlay_alpha(page, 1, 1)  # the engine looks top left first
    words.last.hover()
    assert overlay_alpha(page, 1, 1) < 0 < overlay_alpha(page, 0, 0)
    expect(page.locator("#stage .panel h3")).to_contain_text("To end the sentence here")
    words.nth(2).hover()
    expect(page.locator("#stage .options .option")).to_have_text(["dog", "puppy", "wet", "jumps", "while"])
    expect(page.locator("#stage .panel")).to_contain_text("relied 25% on the sentence so far and 75% on the picture")
    expect(page.locator(".chart")).to_have_count(6)
    expect(page.locator(".chart").first).to_contain_text("How much of its memory the network kept.")
    expect(page.locator(".chart .word-tick.on")).to_have_text(["dog"] * 6)
    page.mouse.move(1, 1)
    expect(page.locator("#stage .frame")).to_have_class("frame")


@pytest.mark.parametrize(
    ("tokens", "text", "shown", "direction"),
    [
        (["一", "只", "狗"], "一只狗。", ["一", "只", "狗", "。"], "ltr"),
        (["كَلْبٌ", "يجري"], "كَلْبٌ يجري.", ["كَلْبٌ", "يجري", "."], "rtl"),
        (["एक", "कुत्ता"], "एक कुत्ता।", ["एक", "कुत्ता", "।"], "ltr"),
        (["นั่", "ง"], "นั่ง", ["นั่", "ง", "∎"], "ltr"),
        (["a", "skate", "##board"], "A skateboard.", ["A", "skate", "board", "."], "ltr"),
    ],
)
def test_a_sentence_is_laid_out_as_its_script_is(
    tokens: list[str], text: str, shown: list[str], direction: str, opened: Opened
) -> None:
    """The answer of a service whose model writes another language; the walk-through and the file have it too."""
    page = opened()

    def answer(route) -> None:  # type: ignore[no-untyped-def]
        given = route.fetch().json()
        [best, *_] = given["captions"]
        best["text"] = given["caption"] = text
        kept = [*best["tokens"][: len(tokens)], best["tokens"][-1]]
        best["tokens"] = [token | {"text": said} for token, said in zip(kept, [*tokens, "."], strict=True)]
        route.fulfill(json=given)

    page.route("**/caption?*", answer)
    drop_in(page, upload("red.png", picture("#c22")))
    sentence = page.locator("#stage .sentence")
    expect(sentence.locator(".word")).to_have_text(shown)
    assert sentence.text_content() == text.rstrip("∎") + ("∎" if shown[-1] == "∎" else "")
    assert sentence.evaluate("p => getComputedStyle(p).direction") == direction
    boxes = [sentence.locator(".word").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]
    assert boxes[1]
    assert (boxes[0]["x"] > boxes[1]["x"]) == (direction == "rtl")
    sentence.locator(".word").first.focus()
    page.keyboard.press("ArrowLeft" if direction == "rtl" else "ArrowRight")
    expect(sentence.locator(".word").nth(1)).to_be_focused()
    expect(page.locator("#stage .panel h3")).to_contain_text(f"“{shown[1]}”")
    walk = page.locator("#stage a.walk").get_attribute("href")
    assert walk
    there = opened(walk)
    expect(there.locator("#walk .sentence .word")).to_have_text(shown)
    assert there.locator("#walk .sentence").evaluate("p => getComputedStyle(p).direction") == direction


def test_keyboard(opened: Opened) -> None:
    page = opened()
    drop_in(page, upload("red.png", picture("#c22")))
    words = page.locator("#stage .word")
    words.first.focus()
    page.keyboard.press("ArrowRight")
    expect(words.nth(1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(words.last).to_be_focused()
    page.keyboard.press("Enter")
    expect(words.last).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(words.last).to_have_attribute("aria-pressed", "false")


def test_playing_goes_through_all_words(opened: Opened) -> None:
    page = opened()
    page.clock.install()
    drop_in(page, upload("red.png", picture("#c22")))
    words = page.locator("#stage .word")
    expect(words.first).to_be_visible()
    page.get_by_role("button", name="Play word by word").click()
    page.mouse.move(1, 1)
    for index in range(3):
        expect(words.nth(index)).to_have_attribute("aria-pressed", "true")
        page.clock.run_for(950)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Play word by word")).to_be_visible()


def test_other_captions_are_listed_and_explained_in_their_turn(opened: Opened) -> None:
    page = opened()
    drop_in(page, upload("red.png", picture("#c22")))
    page.locator("#stage").get_by_role("button", name="Other captions").click()
    others = page.locator("#stage .others button")
    expect(others).to_have_count(4)
    others.filter(has_text=BLUE).click()
    expect(page.locator("#stage h2")).to_have_text(BLUE)
    page.get_by_role("button", name="Back to the best caption").click()
    expect(page.locator("#stage h2")).to_have_text(RED)


def test_copy(opened: Opened) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    drop_in(page, upload("red.png", picture("#c22")))
    page.locator("#stage").get_by_role("button", name="Copy").click()
    expect(page.locator("#stage").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == RED


def test_walk_through_has_this_captions_numbers(opened: Opened) -> None:
    page = opened()
    drop_in(page, upload("red.png", picture("#c22")))
    link = page.get_by_role("link", name="Walk through the four steps")
    [[best]] = FakeEngine().generate(FakeRegions([0]), SearchConfig(), explain=True)
    page.goto(str(link.get_attribute("href")))
    page.get_by_role("button", name="dog").click()
    expect(page.locator("#walk .lead")).to_contain_text("just read “brown” and is about to say “dog”")
    why = best.tokens[2].explanation
    before = best.tokens[1].explanation
    assert why is not None
    assert before is not None
    now, old = why.layers[1], before.layers[1]
    expect(page.locator(".figure b")).to_have_text(
        [
            f"{now['forget']:.0%}", f"{now['input']:.0%}", f"{now['candidate']:.2f}",
            f"{old['state']:.2f} → {now['state']:.2f}", f"{now['output']:.0%}", f"{now['hidden']:.2f}",
        ]
    )  # fmt: skip
    page.get_by_role("button", name="Layer 1").click()
    expect(page.locator(".figure b").first).to_have_text(f"{why.layers[0]['forget']:.0%}")
    expect(page.locator("math")).to_have_count(6)


def test_walk_through_alone_takes_the_sample(opened: Opened) -> None:
    page = opened("/static/lstm.html#no-numbers")
    expect(page.locator("#whose")).to_contain_text("the sample picture")
    expect(page.locator(".steps > li")).to_have_count(4)


def test_walk_through_says_so_when_the_cell_is_no_lstm(opened: Opened) -> None:
    page = opened("/static/lstm.html#" + json.dumps([["a", [{"reset": 0.5, "update": 0.5}]]]))
    expect(page.locator("#walk")).to_contain_text("no LSTM: it reports reset, update")


@pytest.mark.parametrize("context", [LIGHT, DARK, PHONE], ids=["light", "dark", "phone"])
def test_accessible(opened: Opened, context: dict[str, object]) -> None:
    page = opened(**context)
    assert serious(page) == []
    drop_in(
        page,
        upload("red.png", picture("#c22")),
        upload("broken.png", b"\x89PNG\r\n\x1a\nnothing more"),
        upload("blue.png", picture("#22c")),
    )
    expect(page.locator("#count")).to_have_text("3 pictures, 1 of them failed")
    expect(page.locator("#stage")).to_be_hidden()  # of several, none is opened unasked
    page.get_by_role("button", name="Show red.png in detail").click()
    page.locator("#stage .word").nth(1).click()
    page.locator("#stage").get_by_role("button", name="Other captions").click()
    expect(page.locator("#stage .others button")).to_have_count(4)
    # Asked from here: a wait inside the page evaluates text again and again, which its policy forbids.
    for _ in range(100):
        if page.evaluate("document.getAnimations().every((a) => a.playState === 'finished')"):
            break
        page.wait_for_timeout(50)
    assert serious(page) == []
    walk = str(page.locator(".walk").get_attribute("href"))
    page.goto(walk)
    expect(page.locator(".steps > li")).to_have_count(4)
    assert serious(page) == []
    opened.complaints.clear()  # Chromium's own line about the broken picture


def serious(page: Page) -> list[str]:
    """What axe-core finds on `page` that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {node['html']} {node.get('failureSummary')}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]


def test_dark_mode_is_dark(opened: Opened) -> None:
    shades = {}
    for name, context in (("light", LIGHT), ("dark", DARK)):
        page = opened(**context)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[name] = sum(int(part) for part in colour[4:-1].split(","))
    assert shades["dark"] < 150 < 600 < shades["light"]


def test_phone_needs_no_sideways_scrolling(opened: Opened) -> None:
    page = opened(**PHONE)
    drop_in(page, upload("red.png", picture("#c22", (90, 160))), upload("blue.png", picture("#22c")))
    expect(page.locator("#count")).to_have_text("2 pictures")
    page.get_by_role("button", name="Why?").first.tap()
    page.locator("#stage .word").nth(2).tap()
    expect(page.locator("#stage .options li")).to_have_count(5)
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert page.evaluate(wide) is False
    page.goto(str(page.locator(".walk").get_attribute("href")))
    expect(page.locator(".steps > li")).to_have_count(4)
    assert page.evaluate(wide) is False


def test_explanation_file_needs_nothing_else(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "why.html"
    engine = FakeEngine()
    with closing(explain_html.ExplanationFile(path)) as file:
        for name, sentence in (("</script><b>red.png", 0), ("blue.png", 2)):
            [[best]] = engine.generate(FakeRegions([sentence]), SearchConfig(), explain=True)
            file.add(name, Image.new("RGB", (1200, 800), "#c22"), (3600, 2400), caption_out(best))
    page = opened(path.as_uri())
    expect(page.locator(".stage h2")).to_have_text([RED, BLUE])
    expect(page.locator(".stage .name").first).to_have_text("</script><b>red.png")
    page.locator(".stage .word").nth(2).hover()
    expect(page.locator(".stage .options .option").first).to_have_text("dog")
    assert page.evaluate("document.images[0].naturalWidth") == explain_html.SIDE
    page.locator("summary").first.click()
    expect(page.locator(".steps").first.locator("> li")).to_have_count(4)
    assert serious(page) == []


def test_without_attention_the_page_says_so_and_explains_the_rest(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "why.html"
    [[best]] = FakeEngine().generate(FakeRegions([0]), SearchConfig(), explain=True)
    tokens = [replace(t, explanation=replace(t.explanation, attention=None, sentinel=0.0)) for t in best.tokens]  # type: ignore[type-var]
    with closing(explain_html.ExplanationFile(path)) as file:
        file.add("red.png", Image.new("RGB", (120, 80), "#c22"), (120, 80), caption_out(replace(best, tokens=tokens)))
    page = opened(path.as_uri())
    expect(page.locator("figcaption .legend")).to_contain_text("no attention: it saw the picture once")
    page.locator(".stage .word").nth(2).hover()
    expect(page.locator(".stage .options .option").first).to_have_text("dog")
    expect(page.locator(".stage .looked")).to_have_count(0)
    expect(page.locator(".frame.looking")).to_have_count(0)
    expect(page.locator(".layers li").nth(1)).to_have_text("layer 2, which reads layer 1")
    page.locator("summary").first.click()
    expect(page.locator(".steps > li")).to_have_count(4)
    expect(page.locator(".walk-inline")).to_contain_text("where x is what layer 1 shows, this happens")
    assert serious(page) == []


def test_the_page_is_small_and_has_no_inline_code() -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < BUDGET
    for path in files:
        if path.suffix == ".html":
            html = path.read_text()
            assert "style=" not in html
            assert "<style" not in html
            assert "<script>" not in html
            assert "http" not in html.replace("http-equiv", "")
