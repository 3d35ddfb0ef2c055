from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from training.data import DataError, Picture
from training.scoring.failures import Failure
from training.scoring.gallery import THUMBNAIL, Entry, write_gallery


class Page(HTMLParser):
    """What a browser would see: attributes by tag, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(folder: Path, name: str = "a.jpg", *captions: str) -> Picture:
    Image.new("RGB", (600, 300), "teal").save(folder / name)
    return Picture(name, captions or ("a wall",), "test", "s", folder / name, 0, (folder / name).stat().st_size)


def test_the_page_shows_everything_and_needs_nothing_else(tmp_path: Path) -> None:
    entry = Entry(picture(tmp_path, "a.jpg", "a teal wall", "wall"), "A <b>wall</b> & sky.", 0.51, 42.4)
    failed = Entry(picture(tmp_path, "b.jpg"), "A dog.", 0.2, 0.0, [Failure("wrong object", "no reference has “dog”")])
    judged = Entry(picture(tmp_path, "c.jpg"), "A dog.", 0.2, 0.0, [Failure("hallucination", "empty", judged=True)])
    file = tmp_path / "new" / "page.html"
    write_gallery(file, "Captions <1>", {"model": "m & n"}, [entry, failed, judged], "A note.")
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    shown = ["Captions <1>", "m & n", "A note.", "A <b>wall</b> & sky.", "a teal wall", "CIDEr 42", "confidence 0.51"]
    shown += ["wrong object (guessed):", "no reference has “dog”", "hallucination (judged):", "3 pictures"]
    assert [text for text in shown if text not in page.text] == []
    assert "<b>wall" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert [item["data-cider"] for item in page.all("li") if "data-cider" in item] == ["42.4", "0.0", "0.0"]
    assert ["open" in details for details in page.all("details")] == [False, True, True]


def test_thumbnails_are_small_and_have_the_captions_as_text(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_gallery(file, "t", {}, [Entry(picture(tmp_path), "A wall.", 0.5, 1.0)])
    (image,) = Page(file.read_text(encoding="utf-8")).all("img")
    assert image["alt"] == "A wall."
    assert image["src"] is not None
    header, _, data = image["src"].partition(",")
    assert header == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as thumbnail:
        assert thumbnail.size == (THUMBNAIL, THUMBNAIL // 2)


def test_a_picture_that_went_missing_is_an_error(tmp_path: Path) -> None:
    gone = Picture("a.jpg", ("x",), "test", "s", tmp_path / "gone.jpg", 0, 10)
    with pytest.raises(DataError, match=r"a\.jpg"):
        write_gallery(tmp_path / "page.html", "t", {}, [Entry(gone, "A wall.", 0.5, 1.0)])
