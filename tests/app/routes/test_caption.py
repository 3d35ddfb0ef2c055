"""POST /caption."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from app.schemas import CaptionParams, CaptionResponse, caption_out
from model.config import MAX_BEAM_SIZE, MAX_CAPTIONS, MAX_LENGTH, SearchConfig
from tests.app.fakes import POISON, FakeEngine, FakeRegions
from tests.pictures import CONTENT_TYPES, FORMATS, bombs, encode, plain

GREEN = plain((16, 200, 40))
RAW = {"content-type": "image/png"}


def post(client: TestClient, data: bytes = GREEN, query: str = "", filename: str = "x") -> Any:
    return client.post(f"/caption{query}", files={"image": (filename, data)})


@pytest.mark.parametrize("format", FORMATS)
def test_a_form_and_a_raw_body_get_the_same_answer(client: TestClient, format: str) -> None:
    data = plain((16, 200, 40), format)
    form = post(client, data)
    raw = client.post("/caption", content=data, headers={"content-type": CONTENT_TYPES[format]})
    assert form.status_code == raw.status_code == 200
    assert form.json()["caption"] == raw.json()["caption"]
    assert form.json()["image"] == raw.json()["image"] == {"width": 24, "height": 16, "format": format}


def test_the_answer_is_the_contract(client: TestClient) -> None:
    answer = post(client, query="?num_captions=3").json()
    assert set(answer) == {
        *("caption", "confidence", "captions", "model", "image", "timing_ms", "request_id"),
        *("alt", "review", "decorative"),  # and `tags`, of a model that has them
    }
    best = answer["captions"][0]
    assert (answer["caption"], answer["confidence"]) == (best["text"], best["confidence"])
    assert len({c["text"] for c in answer["captions"]}) == 3
    for caption in answer["captions"]:
        assert set(caption) == {"text", "confidence", "log_probability", "tokens"}
        probabilities = [token["probability"] for token in caption["tokens"]]
        assert caption["log_probability"] == pytest.approx(sum(map(math.log, probabilities)))
        assert caption["confidence"] == pytest.approx(math.prod(probabilities) ** (1 / len(probabilities)))
        assert all(set(token) == {"text", "probability"} for token in caption["tokens"])
    confidences = [c["confidence"] for c in answer["captions"]]
    assert confidences == sorted(confidences, reverse=True)
    assert answer["model"] == {"name": "fake", "version": "1"}
    timing = answer["timing_ms"]
    assert set(timing) == {"queue", "decode", "encode", "generate", "total"}
    assert sum(timing.values()) - timing["total"] <= timing["total"] + 0.01
    CaptionResponse.model_validate(answer)


def test_explain_adds_reasons_and_changes_nothing_else(client: TestClient) -> None:
    plain, explained = post(client).json(), post(client, query="?explain=true").json()
    for token, without in zip(explained["captions"][0]["tokens"], plain["captions"][0]["tokens"], strict=True):
        grid = token.pop("attention")
        assert (grid["rows"], grid["columns"], len(grid["weights"])) == (7, 7, 49)
        assert sum(grid["weights"]) + grid["sentinel"] == pytest.approx(1, abs=1e-3)
        assert [a["text"] for a in token.pop("alternatives")] == ["thing", "."]
        assert all({"forget", "input", "output"} <= set(layer) for layer in token.pop("gates"))
        assert token == without


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", SearchConfig()),
        ("?beam_size=1", SearchConfig(beam_size=1)),
        ("?beam_size=2&num_captions=5", SearchConfig(beam_size=5, num_captions=5)),
        ("?max_length=7", SearchConfig(max_length=7)),
        ("?temperature=0.5&seed=3", SearchConfig()),  # sampling's settings without sampling
        (
            "?strategy=sample&temperature=0.5&top_p=0.9&seed=3",
            SearchConfig(strategy="sample", temperature=0.5, top_p=0.9, seed=3),
        ),
    ],
)
def test_parameters_reach_the_engine(
    client: TestClient, engine: FakeEngine, query: str, expected: SearchConfig
) -> None:
    seen = []
    generate = engine.generate
    engine.generate = lambda regions, search_config, explain: (
        seen.append(search_config),
        generate(regions, search_config, explain),
    )[1]  # type: ignore[method-assign,assignment,misc,func-returns-value]
    assert post(client, query=query).status_code == 200
    assert seen == [expected]


def test_a_model_without_attention_explains_the_rest() -> None:
    [[said]] = FakeEngine().generate(FakeRegions(np.array([(16, 200, 40)])), SearchConfig(), explain=True)
    token = said.tokens[0]
    assert token.explanation is not None
    blind = replace(token, explanation=replace(token.explanation, attention=None, sentinel=0.0))
    plain, out = (caption_out(replace(said, tokens=(one,))).tokens[0].model_dump() for one in (token, blind))
    assert plain["attention"] is not None
    assert out == {**plain, "attention": None}


def test_what_is_left_out_is_the_models_default() -> None:
    own = SearchConfig("sample", 2, 4, 9, temperature=0.7, top_p=0.8, seed=5)
    assert CaptionParams().search_config(own) == own
    assert CaptionParams(num_captions=1, top_p=0.5).search_config(own) == replace(own, num_captions=1, top_p=0.5)
    assert CaptionParams(strategy="beam").search_config(own) == SearchConfig(
        "beam", 4, 4, 9
    )  # as many beams as captions
    documented = CaptionParams.model_json_schema()["properties"]
    ours = {"explain": False, "wording": "as-said", "num_tags": 10}  # no model has a say in these
    assert {name: schema["default"] for name, schema in documented.items() if schema["default"] is not None} == ours


@pytest.mark.parametrize(
    "query",
    [
        "num_captions=0",
        f"num_captions={MAX_CAPTIONS + 1}",
        "beam_size=0",
        f"beam_size={MAX_BEAM_SIZE + 1}",
        "max_length=0",
        f"max_length={MAX_LENGTH + 1}",
        "strategy=guess",
        "temperature=0",
        "temperature=nan",
        "temperature=inf",
        "temperature=1e-41",
        "top_p=0",
        "top_p=1e-47",
        "top_p=1.1",
        "seed=-1",
        "seed=99999999999999999999",
        "explain=perhaps",
        "beam=3",
        "beam_size=",
        "beam_size=3.5",
        "beam_size=%00",
    ],
)
def test_bad_parameters_are_named(client: TestClient, engine: FakeEngine, query: str) -> None:
    answer = post(client, query=f"?{query}")
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_parameter"
    assert query.split("=")[0] in answer.json()["detail"]
    assert engine.batches == []


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "broken_image"),
        (GREEN[:40], 422, "broken_image"),
        (plain((1, 2, 3), "JPEG")[:-100], 422, "broken_image"),
        (plain((1, 2, 3), "WEBP")[:-10], 422, "broken_image"),
        (b"not a picture", 415, "unsupported_media_type"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_media_type"),
        (bombs()["PNG"], 413, "too_large"),
        (bombs()["WEBP"], 413, "too_large"),
        (encode(Image.new("1", (1001, 1000)), "PNG"), 413, "too_large"),
        (bytes(1_000_001), 413, "too_large"),
        (bytes(1_100_000), 413, "too_large"),
    ],
    ids=["empty", "png", "jpeg", "webp", "text", "svg", "bomb", "guarded-bomb", "pixels", "bytes", "more-bytes"],
)
@pytest.mark.parametrize("way", ["form", "raw"])
def test_bad_files_get_their_status(client: TestClient, data: bytes, status: int, code: str, way: str) -> None:
    answer = post(client, data) if way == "form" else client.post("/caption", content=data, headers=RAW)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert post(client).status_code == 200


def test_the_content_type_and_the_name_are_not_believed(client: TestClient) -> None:
    jpeg = plain((16, 200, 40), "JPEG")
    answer = client.post("/caption", content=jpeg, headers={"content-type": "image/png"})
    assert answer.json()["image"]["format"] == "JPEG"
    assert post(client, jpeg, filename="../../etc/passwd.gif").json()["image"]["format"] == "JPEG"


def test_an_engine_that_fails_is_a_500_that_tells_nothing(client: TestClient) -> None:
    answer = post(client, plain(POISON))
    assert (answer.status_code, answer.json()["code"]) == (500, "inference_failed")
    assert "poisoned" not in answer.text
    assert post(client).status_code == 200
