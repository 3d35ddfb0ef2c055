"""The file that explains captions, as a browser's parser and its content security policy see it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.explain_html import SIDE, ExplanationFile
from app.schemas import caption_out
from model.config import SearchConfig
from tests.app.fakes import FakeEngine, FakeRegions, np


class Blocks(HTMLParser):
    """Scripts, style sheets and the policy of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str, str]] = []  # type, content
        self.styles: list[str] = []
        self.policy, self._open = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._open = tag
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag == "script":
            self.scripts.append((given.get("type") or "", ""))
        if tag == "style":
            self.styles.append("")

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = kind, before + data
        elif self._open == "style":
            self.styles[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


[[BEST]] = FakeEngine().generate(FakeRegions(np.array([(16, 200, 40)])), SearchConfig(), explain=True)


def written(*names: str) -> Blocks:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "why.html")
        with closing(ExplanationFile(path)) as file:
            for name in names:
                file.add(name, Image.new("RGB", (2 * SIDE, SIDE)), (4 * SIDE, 2 * SIDE), caption_out(BEST))
        return Blocks(path.read_text(encoding="utf-8"))


@settings(deadline=None)
@given(st.lists(st.one_of(st.text(max_size=20), st.just("</script><!--<script>")), max_size=2))
def test_a_name_stays_a_name_whatever_is_in_it(names: list[str]) -> None:
    blocks = [json.loads(text) for kind, text in written(*names).scripts if kind == "application/json"]
    assert [block["name"] for block in blocks] == names
    for block in blocks:
        assert block["image"] == {"width": 4 * SIDE, "height": 2 * SIDE}
        assert block["caption"]["text"] == BEST.text


def test_the_policy_allows_its_own_script_and_style_and_no_others() -> None:
    page = written("a.png")
    [script] = [text for kind, text in page.scripts if kind == "module"]
    [style] = page.styles
    for name, content in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        [allowed] = re.findall(rf"{name} ([^;]*)", page.policy)
        assert allowed == f"'sha256-{digest}'"
    assert page.policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)
