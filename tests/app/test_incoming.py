"""`POST /caption` and `/captions` with JSON, parameters in the body, and answers line by line."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.schemas import Line
from app.settings import Settings
from tests.app.asgi import body, call, running, until
from tests.app.fakes import POISON, FakeEngine
from tests.pictures import plain

GREEN, BLUE = plain((16, 200, 40)), plain((10, 10, 230), "JPEG")
LINES = {"Accept": "application/x-ndjson"}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("form", ["{}", "data:image/png;base64,{}", "data:;base64,{}"])
def test_a_picture_in_json_gets_the_answer_it_gets_as_a_file(client: TestClient, form: str) -> None:
    alone = client.post("/caption?num_captions=2", content=GREEN).json()
    answer = client.post("/caption", json={"image": form.format(text(GREEN)), "num_captions": 2}).json()
    assert answer["captions"] == alone["captions"]


def test_the_body_goes_before_the_query(client: TestClient) -> None:
    asked = {"image": text(GREEN), "beam_size": 2}
    assert "beam2" in client.post("/caption?beam_size=5&num_captions=1", json=asked).json()["caption"]
    form = {"beam_size": "2", "num_captions": "1"}
    assert "beam2" in client.post("/caption?beam_size=5", data=form, files={"image": GREEN}).json()["caption"]
    many = client.post("/captions", data=form, files=[("images", GREEN)] * 4).json()
    assert all("beam2" in result["result"]["caption"] for result in many["results"])


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({}, 422, "image"),
        ({"image": 7}, 422, "image"),
        ({"image": "not base64"}, 422, "base64"),
        ({"image": "https://a.example/b.png"}, 422, "CAPTION_FETCH_HOSTS"),
        ({"image": text(b"text")}, 415, "not a picture"),
        ({"image": text(bytes(1_000_001))}, 413, "1000000"),
        ({"image": text(bytes(2_000_000))}, 413, "limit"),
        ({"image": text(GREEN), "beam_size": 11}, 422, "beam_size"),
        ({"image": text(GREEN), "beam_size": "2"}, 422, "beam_size"),  # JSON has numbers
        ({"image": text(GREEN), "beams": 2}, 422, "beams"),
        ([], 400, "object"),
    ],
)
def test_bad_json_is_told(client: TestClient, asked: Any, status: int, words: str) -> None:
    answer = client.post("/caption", json=asked)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


def test_pictures_in_json_have_errors_of_their_own(client: TestClient) -> None:
    images = [text(GREEN), "not base64", text(b"text"), text(BLUE)]
    answer = client.post("/captions", json={"images": images, "num_captions": 2}).json()
    codes = [result.get("error", {}).get("code") for result in answer["results"]]
    assert codes == [None, "bad_parameter", "unsupported_media_type", None]
    assert len(answer["results"][3]["result"]["captions"]) == 2
    for wrong, status in (([], 422), ([text(GREEN)] * 5, 422), ([7], 422), ([text(bytes(700_000))] * 3, 413)):
        assert client.post("/captions", json={"images": wrong}).status_code == status


def test_memory_is_given_back(client: TestClient) -> None:
    for asked in ({"images": [text(GREEN)]}, {"images": ["!"]}, {}):
        for headers in ({}, LINES):
            client.post("/captions", json=asked, headers=headers)
    service = client.app.state.service  # type: ignore[attr-defined]
    assert (service.upload_memory.used, service.batcher.admitted) == (0, 0)


def test_lines_have_the_results_of_the_whole(client: TestClient) -> None:
    files = [("images", (f"{i}.x", data)) for i, data in enumerate((GREEN, b"text", BLUE, plain(POISON)))]
    whole = client.post("/captions", files=files).json()["results"]
    answer = client.post("/captions", files=files, headers={"Accept": "application/json;q=0.5, application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(line["index"] for line in lines) == [0, 1, 2, 3]
    for line in lines:
        Line.model_validate(line)
        other = whole[line["index"]]
        assert line["filename"] == other["filename"]
        assert ("error" in line) == ("error" in other)
        if "result" in line:
            assert line["result"]["captions"] == other["result"]["captions"]
    assert (
        client.post("/captions", files=files, headers={"Accept": "*/*"}).headers["content-type"] == "application/json"
    )


def test_a_line_comes_while_others_are_worked_on() -> None:
    held = threading.Event()
    engine = FakeEngine(lambda stage, size: None, lanes=1)
    first = engine.generate

    def generate(*arguments: Any) -> Any:
        made = first(*arguments)
        if any("Red" in caption.text for captions in made for caption in captions):
            assert held.wait(60)
        return made

    engine.generate = generate  # type: ignore[method-assign]
    images = [text(plain((200, 200, 200))), text(plain((5, 5, 5)))]
    asked = json.dumps({"images": images}).encode()

    async def test() -> None:
        async with running(create_app(Settings(batch_size=1), engine)) as app:
            sent: list[bytes] = []
            replied = asyncio.Event()
            headers = {"content-type": "application/json", "accept": "application/x-ndjson"}
            task = asyncio.ensure_future(call(app, "/captions", body(asked), headers, replied))
            await replied.wait()  # the first line
            assert not task.done()
            assert app.state.service.batcher.admitted == 2  # held until the last
            held.set()
            reply = await task
            sent = reply.body.splitlines()
            assert {json.loads(line)["index"] for line in sent} == {0, 1}
            await until(lambda: app.state.service.batcher.admitted == 0)

    asyncio.run(test())


def test_late_pictures_get_lines_that_say_so() -> None:
    held = threading.Event()
    engine = FakeEngine(lambda stage, size: None if stage == "generate" else (held.wait(60), None)[1])
    settings = Settings(deadline=0.2)
    with TestClient(create_app(settings, engine)) as client:
        answer = client.post("/captions", json={"images": [text(GREEN)]}, headers=LINES)
        held.set()
    assert json.loads(answer.text)["error"]["code"] == "deadline_exceeded"


def test_protocols_can_be_switched_off(engine: FakeEngine) -> None:
    def paths(**given: Any) -> set[str]:
        with TestClient(create_app(Settings(**given), engine)) as client:
            return set(client.get("/openapi.json").json()["paths"])

    ours = paths(compat="none")
    assert not [path for path in ours if path.startswith(("/v1", "/v2", "/api", "/computervision", "/models"))]
    assert {path for path in paths(compat="openai") - ours if not path.startswith("/v1/")} == set()
    assert paths(compat="ollama, openai") < paths()
    for wrong in ("opanai", "none,openai"):
        with pytest.raises(ValueError, match="none"):
            Settings(compat=wrong)  # type: ignore[arg-type]
