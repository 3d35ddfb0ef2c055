"""Ollama, with `ollama`."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from tests.app.compat.conftest import CAPTION, GREEN, KEY


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_generate_and_chat_caption(client: ollama.Client) -> None:
    answer = client.generate("fake", "What is it?", images=[GREEN])
    assert (answer.response, answer.done, answer.done_reason, answer.eval_count) == (CAPTION, True, "stop", 6)
    assert answer.total_duration
    messages = [{"role": "user", "content": "And this?", "images": [GREEN]}, {"role": "user", "content": "Well?"}]
    said = client.chat("fake:latest", messages=messages)
    assert (said.message.content, said.message.role, said.done) == (CAPTION, "assistant", True)


def test_streams_say_it_in_words(client: ollama.Client) -> None:
    parts = list(client.generate("fake", images=[GREEN], stream=True))
    assert "".join(part.response or "" for part in parts) == CAPTION
    assert [part.done for part in parts] == [False] * 5 + [True]
    messages = [{"role": "user", "images": [GREEN]}]
    said = list(client.chat("fake", messages=messages, stream=True))
    assert "".join(part.message.content or "" for part in said) == CAPTION


def test_it_streams_unless_told_not_to_and_says_what_it_ignored(url: str) -> None:
    asked = {"model": "fake", "prompt": "x", "images": [base64.b64encode(GREEN).decode()]}
    lines = httpx.post(f"{url}/api/generate", json=asked, headers={"X-API-Key": KEY})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.text.count("\n") == 6
    whole = httpx.post(f"{url}/api/generate", json={**asked, "stream": False}, headers={"X-API-Key": KEY}).json()
    assert "ignored" in whole["note"]


def test_options_that_mean_something_are_followed(client: ollama.Client) -> None:
    short = client.generate("fake", images=[GREEN], options={"num_predict": 2, "num_ctx": 9})
    assert short.response == "Green light."
    drawn = client.generate("fake", images=[GREEN], options={"temperature": 0.5})
    assert "sample3" in drawn.response


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"model": "llava", "images": [GREEN]}, 404, "'llava'"),
        ({"prompt": "x"}, 400, "a picture is needed"),
        ({"images": [GREEN, GREEN]}, 400, "one picture"),
        ({"images": ["not base64"]}, 400, "base64"),
        ({"images": [b"text"]}, 415, "not a picture"),
        ({"images": [bytes(21_000_000)]}, 413, "limit"),
        ({"images": ["https://a.example/b.png"]}, 400, "CAPTION_FETCH_HOSTS"),
        ({"images": [GREEN], "format": "json"}, 400, "format"),
        ({"images": [GREEN], "think": True}, 400, "thinking"),
        ({"images": [GREEN], "options": {"temperature": 99}}, 400, "temperature"),
    ],
)
def test_errors_are_the_clients_own(client: ollama.Client, given: dict[str, Any], status: int, words: str) -> None:
    images = [image if isinstance(image, str) else _text(image) for image in given.get("images", [])]
    asked = {"model": "fake", **given, "images": images}
    with pytest.raises(ollama.ResponseError) as error:  # below the client's own checks
        client._request(ollama.GenerateResponse, "POST", "/api/generate", json=asked)
    assert error.value.status_code == status
    assert words in error.value.error


def test_tools_and_a_wrong_key_are_refused(client: ollama.Client, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    with pytest.raises(ollama.ResponseError, match="does not support tools"):
        client.chat("fake", messages=[{"role": "user", "images": [GREEN]}], tools=[tool])
    monkeypatch.setenv("OLLAMA_API_KEY", "wrong")
    with ollama.Client(url) as stranger, pytest.raises(ollama.ResponseError) as error:
        stranger.list()
    assert error.value.status_code == 401


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_what_else_ollama_has_is_said_not_to_be_here(client: ollama.Client) -> None:
    for ask in (lambda: client.embed("fake", "a dog"), lambda: client.pull("llava")):
        with pytest.raises(ollama.ResponseError, match=r"^POST /api/.* is not among what can be done here") as raised:
            ask()
        assert raised.value.status_code == 404
