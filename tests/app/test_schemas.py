"""What people need beside a caption: alternative text, a call for review, tags, other words."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from model.caption import Caption, Token
from model.config import SearchConfig
from model.runtime.engine import Regions
from tests.app.fakes import FakeEngine
from tests.pictures import plain
from tests.training.shapes import draw_pair

BLANK = plain((16, 200, 40))
TAGS = ("dog", "man", "woman", "grass", "person")
LIKELY = (0.9, 0.3, 0.7, 0.05, 0.2)


class Engine(FakeEngine):
    """Says what it is told to, with tags."""

    says: Sequence[tuple[str, float]] = (("A photo of a man and his dog.", 0.8), ("A woman and her dog.", 0.6))
    support: float | None = None  # what the tags say of it

    def __init__(self) -> None:
        super().__init__()
        self.config = replace(self.config, tags=TAGS, review_below=0.5)

    def tags(self, regions: Regions) -> NDArray[np.float32]:
        return np.tile(np.float32(LIKELY), (len(regions), 1))

    def generate(
        self, regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        count = (search_config or self.config.search).num_captions
        made = [Caption(text, math.log(p), (Token(text.split()[-1], p),), self.support) for text, p in self.says]
        return [made[:count] for _ in range(len(regions))]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def client(settings: Settings, engine: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(settings, engine)) as client:
        yield client


def scene() -> bytes:
    """A picture that shows something."""
    file = io.BytesIO()
    draw_pair(random.Random(0), 64)[0].save(file, "PNG")
    return file.getvalue()


def post(client: TestClient, query: str = "", data: bytes | None = None) -> dict[str, Any]:
    answer = client.post(f"/caption?{query}", content=data or scene(), headers={"content-type": "image/png"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_the_caption_comes_as_alternative_text_too(client: TestClient) -> None:
    answer = post(client)
    assert answer["caption"] == "A photo of a man and his dog."
    assert answer["alt"] == "A man and his dog."
    assert (answer["review"], answer["decorative"]) == (False, False)


@pytest.mark.parametrize(("confidence", "review"), [(0.51, False), (0.49, True)])
def test_a_person_is_called_where_the_model_is_not_sure(
    client: TestClient, engine: Engine, confidence: float, review: bool
) -> None:
    engine.says = [("A dog.", confidence)]
    assert post(client)["review"] == review


@pytest.mark.parametrize(("support", "review"), [(0.51, False), (0.49, True)])
def test_what_the_tags_say_of_the_things_named_comes_before_the_confidence(
    client: TestClient, engine: Engine, support: float, review: bool
) -> None:
    engine.says, engine.support = [("A dog.", 1 - support)], support
    answer = post(client)
    assert (answer["captions"][0]["support"], answer["review"]) == (support, review)


def test_a_model_that_says_no_threshold_calls_nobody(client: TestClient, engine: Engine) -> None:
    engine.config = replace(engine.config, review_below=0.0)
    engine.says = [("A dog.", 1e-3)]
    assert post(client)["review"] is False


def test_a_blank_picture_is_told(client: TestClient) -> None:
    answer = post(client, data=BLANK)
    assert (answer["alt"], answer["decorative"], answer["review"]) == ("", True, True)
    assert answer["caption"]  # what the model says, for who wants it


def test_tags_come_likeliest_first(client: TestClient) -> None:
    said = [("dog", 0.9), ("woman", 0.7), ("man", 0.3), ("person", 0.2), ("grass", 0.05)]
    for query, count in (("", 5), ("num_tags=2", 2), ("num_tags=50", 5)):
        tags = post(client, query)["tags"]
        assert [(tag["text"], pytest.approx(tag["probability"])) for tag in tags] == said[:count]
    assert "tags" not in post(client, "num_tags=0")
    results = client.post("/captions?num_tags=1", files=[("images", ("a", scene()))] * 2).json()["results"]
    assert [result["result"]["tags"] for result in results] == [[{"text": "dog", "probability": 0.9}]] * 2


def test_a_model_without_tags_has_none(client: TestClient, engine: Engine) -> None:
    engine.config = replace(engine.config, tags=())
    assert "tags" not in post(client)


def test_neutral_words_change_captions_alternative_text_and_tags_but_no_tokens(client: TestClient) -> None:
    said, neutral = post(client, "num_captions=2"), post(client, "num_captions=2&wording=gender-neutral")
    assert [caption["text"] for caption in neutral["captions"]] == [
        "A photo of a person and their dog.",
        "A person and their dog.",
    ]
    assert neutral["caption"] == neutral["captions"][0]["text"]
    assert neutral["alt"] == "A person and their dog."
    assert [tag["text"] for tag in neutral["tags"]] == ["dog", "person", "grass"]
    assert [tag["probability"] for tag in neutral["tags"]] == [0.9, 0.7, 0.05]
    for one, other in zip(said["captions"], neutral["captions"], strict=True):
        assert one["tokens"] == other["tokens"]
        assert one["confidence"] == other["confidence"]
    assert post(client, "num_captions=2&wording=as-said")["captions"] == said["captions"]


def test_captions_that_are_one_in_neutral_words_come_once(client: TestClient, engine: Engine) -> None:
    engine.says = [("A man runs.", 0.8), ("A woman runs.", 0.6)]
    [only] = post(client, "num_captions=2&wording=gender-neutral")["captions"]
    assert only["text"] == "A person runs."
    assert only["confidence"] == pytest.approx(0.8)


def test_words_to_keep_to_reach_the_engine(client: TestClient, engine: Engine) -> None:
    seen: list[SearchConfig | None] = []
    generate = engine.generate

    def watched(
        regions: Regions, search_config: SearchConfig | None = None, explain: bool = False
    ) -> list[list[Caption]]:
        seen.append(search_config)
        return generate(regions, search_config, explain)

    engine.generate = watched  # type: ignore[method-assign]
    post(client, "min_length=3&avoid=big, old ,small round,&start_with= red ")
    post(client, "avoid=&start_with=&max_length=4")
    own = engine.config.search
    assert seen == [
        replace(own, min_length=3, avoid=("big", "old", "small round"), start_with="red"),
        replace(own, max_length=4),
    ]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("avoid=red,zebra", "avoid: the model does not know the word 'zebra'"),
        ("start_with=red zebra", "start_with: the model does not know the word 'zebra'"),
        ("start_with=red&avoid=red", "start_with says 'red', which is to be avoided"),
        ("start_with=red red red&max_length=2", "start_with has 3 tokens, and captions have 2 at most"),
        ("avoid=" + "red," * 101, "avoid must have 100 entries at most"),
        ("min_length=9&max_length=8", "min_length must be 0 to max_length, which is 8"),
    ],
)
def test_words_that_no_caption_can_keep_to_are_refused(client: TestClient, query: str, detail: str) -> None:
    for path, files in (("/caption", {"image": ("a", scene())}), ("/captions", {"images": ("a", scene())})):
        answer = client.post(f"{path}?{query}", files=files)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_parameter")
        assert answer.json()["detail"] == detail


@pytest.mark.parametrize("query", ["wording=rude", "num_tags=-1", "num_tags=51", "num_tags=some"])
def test_impossible_parameters_are_refused(client: TestClient, query: str) -> None:
    answer = client.post(f"/caption?{query}", content=scene(), headers={"content-type": "image/png"})
    assert answer.status_code == 422
    assert query.partition("=")[0] in answer.json()["detail"]
