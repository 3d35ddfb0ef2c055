"""OpenAI's chat completions, with `openai`."""

from __future__ import annotations

import base64
from typing import Any

import openai
import pytest

from tests.app.compat.conftest import CAPTION, GREEN, KEY

URL = "data:image/jpeg;base64," + base64.b64encode(GREEN).decode()


def client(url: str, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def ask(url: str, *pictures: str, text: str = "What is it?", **given: Any) -> Any:
    parts: list[Any] = [{"type": "text", "text": text}] if text else []
    parts += [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    messages = [{"role": "system", "content": "Be brief."}] if text else []
    messages += [{"role": "user", "content": parts}]  # type: ignore[dict-item]
    with client(url) as chat:
        answer = chat.chat.completions.create(**{"model": "fake", "messages": messages, **given})
        return list(answer) if given.get("stream") else answer


def test_the_assistant_says_the_caption_and_what_it_ignored(url: str) -> None:
    answer = ask(url, URL)
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason, choice.message.role) == (CAPTION, "stop", "assistant")
    assert (answer.object, answer.model) == ("chat.completion", "fake")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (0, 6, 6)
    assert "ignored" in answer.note
    assert not hasattr(ask(url, URL, text=""), "note")


def test_a_stream_is_the_same_in_words(url: str) -> None:
    chunks = ask(url, URL, stream=True, stream_options={"include_usage": True})
    *said, end, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == CAPTION
    assert [chunk.choices[0].finish_reason for chunk in said] == [None] * len(said)
    assert (end.choices[0].finish_reason, usage.choices, usage.usage.completion_tokens) == ("stop", [], 6)
    assert {chunk.id for chunk in chunks} == {usage.id}
    assert ask(url, URL, stream=True)[-1].usage is None


def test_what_means_something_here_is_done(url: str) -> None:
    first, second = (choice.message.content for choice in ask(url, URL, n=2).choices)
    assert (first, second) == (CAPTION, CAPTION.replace("0", "1"))
    assert "sample3" in ask(url, URL, temperature=0.7, seed=1).choices[0].message.content
    assert "beam3" in ask(url, URL, temperature=0, top_p=1).choices[0].message.content
    assert ask(url, URL, max_completion_tokens=2).choices[0].message.content == "Green light."
    assert ask(url, URL, max_tokens=4000).choices[0].message.content == CAPTION


def test_models_are_listed(url: str) -> None:
    with client(url) as chat:
        [model] = chat.models.list().data
        assert (model.id, model.object, model.owned_by) == ("fake", "model", "caption-service")
        assert chat.models.retrieve("fake") == model


@pytest.mark.parametrize(
    ("pictures", "given", "error", "code"),
    [
        ([URL], {"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        (["https://a.example/b.png"], {}, openai.BadRequestError, "url_refused"),
        (["data:image/png;base64,!!!!"], {}, openai.BadRequestError, "bad_parameter"),
        (["data:image/png,abc"], {}, openai.BadRequestError, "bad_parameter"),
        ([base64.b64encode(b"text").decode()], {}, openai.BadRequestError, "unsupported_media_type"),
        ([base64.b64encode(bytes(21_000_000)).decode()], {}, openai.APIStatusError, "too_large"),
        ([], {}, openai.BadRequestError, "bad_parameter"),
        ([URL, URL], {}, openai.BadRequestError, "not_supported"),
        ([URL], {"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "not_supported"),
        ([URL], {"response_format": {"type": "json_object"}}, openai.BadRequestError, "bad_parameter"),
        ([URL], {"stop": ["."]}, openai.BadRequestError, "not_supported"),
        ([URL], {"n": 6}, openai.BadRequestError, "bad_parameter"),
    ],
)
def test_errors_are_the_clients_own(url: str, pictures: list[str], given: Any, error: Any, code: str) -> None:
    with pytest.raises(error) as raised:
        ask(url, *pictures, **given)
    assert raised.value.code == code
    assert raised.value.status_code == {"model_not_found": 404, "too_large": 413}.get(code, 400)


def test_a_wrong_key_is_refused(url: str) -> None:
    with client(url, "wrong") as chat, pytest.raises(openai.AuthenticationError) as raised:
        chat.models.list()
    assert raised.value.code == "invalid_api_key"


def test_what_else_openai_has_is_said_not_to_be_here(url: str) -> None:
    with client(url) as chat, pytest.raises(openai.NotFoundError, match="is not among what can be done") as raised:
        chat.embeddings.create(model="fake", input="a dog")
    assert raised.value.code == "not_supported"
