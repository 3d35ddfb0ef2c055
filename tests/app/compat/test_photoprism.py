"""PhotoPrism Vision: the requests that its documentation shows and that PhotoPrism sends."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from tests.app.compat.conftest import CAPTION, GREEN, KEY

URL = "data:image/jpeg;base64," + base64.b64encode(GREEN).decode()


def post(service: str, path: str = "caption", key: str = KEY, **asked: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{service}/api/v1/vision/{path}", json=asked, headers=headers)


@pytest.mark.parametrize("path", ["caption", "caption/fake", "caption/fake/1", "caption/fake/latest"])
def test_a_picture_is_captioned(url: str, path: str) -> None:
    answer = post(url, path, id="b3db", images=[URL], model="", prompt="x", suffix="", stream=False)
    caption = {"text": CAPTION, "source": "image", "confidence": pytest.approx(0.9)}
    model = {"name": "fake", "version": "1", "resolution": 224}
    assert answer.json() == {"id": "b3db", "code": 200, "model": model, "result": {"caption": caption}}


@pytest.mark.parametrize(
    ("path", "asked", "status", "words"),
    [
        ("caption/kosmos-2", {"images": [URL]}, 404, "kosmos-2"),
        ("caption/fake/9", {"images": [URL]}, 404, "fake:9"),
        ("caption", {}, 400, "picture is needed"),
        ("caption", {"images": ["data:image/jpeg;base64,!"]}, 400, "base64"),
        ("caption", {"url": "https://a.example/b.jpg"}, 400, "CAPTION_FETCH_HOSTS"),
        ("caption", {"images": [base64.b64encode(bytes(21_000_000)).decode()]}, 413, "limit"),
        ("labels", {"images": [URL]}, 400, "no tags"),
        ("nsfw", {"images": [URL]}, 404, "/api/v1/vision/nsfw is not among"),
    ],
)
def test_errors_have_its_shape(url: str, path: str, asked: Any, status: int, words: str) -> None:
    answer = post(url, path, **asked)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, status)
    assert words in told["error"]
    assert told["result"] == {}


def test_a_key_is_needed(url: str) -> None:
    assert post(url, key="wrong", images=[URL]).status_code == 401
