"""Hugging Face inference, with `huggingface_hub`."""

from __future__ import annotations

import base64

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.app.compat.conftest import CAPTION, GREEN, KEY


@pytest.mark.parametrize("path", ["", "/", "/models/fake", "/models/fake:1"])
def test_a_picture_is_captioned(url: str, path: str) -> None:
    assert InferenceClient(url + path, token=KEY).image_to_text(GREEN).generated_text == CAPTION


def test_json_with_parameters_too(url: str) -> None:
    inputs = base64.b64encode(GREEN).decode()
    headers = {"Authorization": f"Bearer {KEY}"}
    asked = {"inputs": inputs, "parameters": {"max_new_tokens": 8, "generate_kwargs": {"num_return_sequences": 2}}}
    answer = httpx.post(url, json=asked, headers=headers)
    texts = [one["generated_text"] for one in answer.json()]
    assert len(set(texts)) == len(texts) == 2
    assert all(len(text.split()) <= 8 for text in texts)
    wrong = httpx.post(url, json={"inputs": inputs, "parameters": {"prompt": "x"}}, headers=headers)
    assert (wrong.status_code, wrong.json()["error_type"]) == (400, "bad_parameter")


@pytest.mark.parametrize(
    ("path", "key", "data", "status", "words"),
    [
        ("/models/other/model", KEY, GREEN, 404, "'fake' is served"),
        ("", KEY, b"garbage", 415, "not a picture"),
        ("", KEY, GREEN[:100], 400, "picture"),
        ("", "wrong", GREEN, 401, "API key"),
        ("", KEY, bytes(21_000_000), 413, "limit"),
    ],
)
def test_errors_are_the_clients_own(url: str, path: str, key: str, data: bytes, status: int, words: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        InferenceClient(url + path, token=key).image_to_text(data)
    assert error.value.response.status_code == status
    assert words in str(error.value)
