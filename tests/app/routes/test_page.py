from __future__ import annotations

import base64
import hashlib
import os
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.routes import page
from app.settings import Settings
from tests.app.fakes import FakeEngine


def directives(policy: str) -> dict[str, str]:
    return dict(part.strip().split(" ", 1) for part in policy.split(";"))


def test_docs_need_nothing_from_the_internet(client: TestClient) -> None:
    html = client.get("/docs").text
    links = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert len(links) >= 3
    for link in links:
        assert not re.match(r"(https?:)?//", link)
        assert client.get(f"/{link}").status_code == 200
    [document] = re.findall(r"url: '([^']+)'", html)
    assert client.get(f"/{document}").json()["openapi"].startswith("3.")


def test_docs_policy_allows_exactly_the_scripts_there_are(client: TestClient) -> None:
    answer = client.get("/docs")
    policy = directives(answer.headers["content-security-policy"])
    inline = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert len(inline) == 1
    digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["default-src"] == "'none'"


def test_try_it_out_offers_a_file(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    one = paths["/caption"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert one["properties"]["image"] == {"type": "string", "format": "binary"}
    many = paths["/captions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert many["properties"]["images"]["items"] == {"type": "string", "format": "binary"}


def test_the_page_is_served_with_its_files_and_no_inline_code(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = directives(answer.headers["content-security-policy"])
    assert policy["script-src"] == policy["style-src"] == "'self'"
    links = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(/[^"]+|static/[^"]+)"', answer.text)
    assert links
    for link in links:
        assert client.get(link if link.startswith("/") else f"/{link}").status_code == 200, link
    assert not re.search(r"<script(?![^>]*\bsrc=)", answer.text)
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style", answer.text)


def test_without_a_page_the_documentation_is_shown(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "STATIC", tmp_path)
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


@pytest.mark.parametrize(
    "path", ["/static/../settings.py", "/static/%2e%2e/settings.py", "/docs/static/..%2f..%2fcore.py"]
)
def test_files_outside_the_folders_are_not_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/docs/static/swagger-ui.css"])
def test_browsers_ask_whether_a_file_has_changed(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.headers["cache-control"] == "no-cache"
    assert "last-modified" not in answer.headers
    again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    assert client.get(path, headers={"If-None-Match": '"of-before"'}).status_code == 200


def test_a_new_version_has_another_etag_whatever_its_times_and_sizes(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "STATIC", tmp_path)
    etags = set()
    for text in ("one", "two"):
        page._etag.cache_clear()  # as a new process has it
        (tmp_path / "a.js").write_text(text)
        os.utime(tmp_path / "a.js", (0, 0))
        with TestClient(create_app(Settings(), engine)) as client:
            etags.add(client.get("/static/a.js").headers["etag"])
    assert len(etags) == 2
