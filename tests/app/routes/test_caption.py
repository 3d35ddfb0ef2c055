"""POST /caption: app/routes/caption.py, and app/serving/service.py beneath it."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import threading
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from app.main import create_app
from app.schemas import CaptionParams, CaptionResponse, caption_out
from app.serving.middleware import LINGER_BYTES
from app.settings import Settings
from model.config import MAX_BEAM_SIZE, MAX_CAPTIONS, MAX_LENGTH, SearchConfig
from tests.app.asgi import assert_, body, call, running, until
from tests.app.fakes import POISON, FakeEngine, FakeRegions
from tests.pictures import CONTENT_TYPES, FORMATS, bombs, encode, plain

GREEN = plain((16, 200, 40))
RAW = {"content-type": "image/png"}
FORM = {"content-type": "multipart/form-data; boundary=b"}


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


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ([("picture", ("x.png", GREEN))], "'picture'"),
        ([("image", ("x.png", GREEN)), ("image", ("y.png", GREEN))], "at most 1"),
        ([("image", ("x.png", GREEN)), ("other", ("y.png", GREEN))], "'other'"),
        ([("image", ("x.png", GREEN))] * 5, "at most 1"),
        ([("image", ("x.png", GREEN))] * 50, "more than"),
    ],
)
def test_wrong_form_fields_are_named(client: TestClient, files: list[Any], word: str) -> None:
    answer = client.post("/caption", files=files)
    assert answer.status_code == 422
    assert word in answer.json()["detail"]


def test_a_form_without_the_file(client: TestClient) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    text = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nhello\r\n--b--\r\n'
    assert "filename" in client.post("/caption", content=text, headers=boundary).json()["detail"]
    empty = client.post("/caption", content=b"--b--\r\n", headers=boundary)
    assert (empty.status_code, "missing" in empty.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=b", b"x", 400),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--', 400),
        ("multipart/form-data; boundary=" + "b" * 1000, b"x", 400),
        ("application/x-www-form-urlencoded", b"image=x", 415),
        ("application/json", b"{}", 422),
        ("text/plain", b"hello", 415),
        ("", b"hello", 415),
        ("multipart/related; boundary=b", GREEN, 415),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx', 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_upload(client: TestClient, content_type: str, content: bytes, status: int) -> None:
    assert client.post("/caption", content=content, headers={"content-type": content_type}).status_code == status


def test_hundreds_of_parts_are_refused(client: TestClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'
    answer = client.post(
        "/caption", content=part * 500 + b"--b--\r\n", headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert (answer.status_code, answer.json()["detail"]) == (422, "more than 14 parts in the form")


def test_the_bytes_say_what_a_body_is(client: TestClient) -> None:
    # What curl sends with --data-binary, with -T (by PUT), and what other clients call a file.
    for content_type in ("application/x-www-form-urlencoded", "", "text/plain", "binary/octet-stream", "IMAGE/JPG"):
        headers = {"content-type": content_type} if content_type else {}
        for method in ("POST", "PUT"):
            answer = client.request(method, "/caption", content=GREEN, headers=headers)
            assert answer.status_code == 200, (method, content_type)
            assert answer.json()["image"]["format"] == "PNG"


@pytest.mark.parametrize("name", ["image", "file"])
def test_the_field_may_be_called_a_file(client: TestClient, name: str) -> None:
    assert client.post("/caption", files={name: ("x.png", GREEN)}).status_code == 200


def test_a_part_without_a_file_name_is_a_file_all_the_same(client: TestClient) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    large = encode(Image.effect_noise((400, 400), 100).convert("RGB"), "PNG")
    assert len(large) > 100_000
    for data, status in ((GREEN, 200), (large, 200), (b"a" * 100_000, 415)):
        body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + data + b"\r\n--b--\r\n"
        assert client.post("/caption", content=body, headers=boundary).status_code == status


def test_a_slow_body_that_goes_on_is_waited_for(engine: FakeEngine) -> None:
    async def send(pieces: int, pause: float, **settings: float) -> int:
        """The status for a body in so many pieces; the loop's clock goes on by `pause` before each of them."""
        async with running(create_app(Settings(**settings), engine)) as app:  # type: ignore[arg-type]
            loop, ahead = asyncio.get_running_loop(), 0.0
            real, size = loop.time, -(-len(GREEN) // pieces)
            loop.time = lambda: real() + ahead  # type: ignore[method-assign]
            left = [GREEN[i : i + size] for i in range(0, len(GREEN), size)]

            async def receive() -> Any:
                nonlocal ahead
                if not left:
                    await asyncio.Event().wait()
                ahead += pause
                await asyncio.sleep(0.001)  # past timers get their turn
                return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

            return (await call(app, "/caption", receive, RAW)).status

    assert asyncio.run(send(10, 15, body_timeout=20, body_rate_kb=0)) == 200  # 150 seconds
    assert asyncio.run(send(10, 25, body_timeout=20, body_rate_kb=0)) == 408  # silent for too long
    assert asyncio.run(send(10, 15, body_timeout=20, body_rate_kb=16)) == 408  # under 16 kB a second


def test_an_engine_that_fails_is_a_500_that_tells_nothing(client: TestClient) -> None:
    answer = post(client, plain(POISON))
    assert (answer.status_code, answer.json()["code"]) == (500, "inference_failed")
    assert "poisoned" not in answer.text
    assert post(client).status_code == 200


def test_a_body_over_the_limit_is_refused_while_it_streams_in(settings: Settings, engine: FakeEngine) -> None:
    given = 0

    async def endless() -> dict[str, Any]:
        nonlocal given
        given += 100_000
        return {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def test() -> None:
        async with running(create_app(settings, engine)) as app:
            reply = await call(app, "/caption", endless, {**RAW, "transfer-encoding": "chunked"})
            assert (reply.status, reply.headers.get("connection")) == (413, "close")
            assert given <= settings.max_upload_bytes + LINGER_BYTES + 300_000
            form = {"content-type": "multipart/form-data; boundary=b"}
            assert (await call(app, "/caption", endless, form)).status in (400, 413)
            assert app.state.service.upload_memory.used == 0

    asyncio.run(test())


def test_a_declared_600_mb_is_refused_before_it_is_read(settings: Settings, engine: FakeEngine) -> None:
    replied = asyncio.Event()

    async def after_the_answer() -> dict[str, Any]:
        assert replied.is_set()
        return {"type": "http.disconnect"}

    async def test() -> None:
        async with running(create_app(settings, engine)) as app:
            headers = {**RAW, "content-length": "600000000"}
            reply = await call(app, "/caption", after_the_answer, headers, replied)
            assert (reply.status, reply.headers.get("connection")) == (413, "close")
            assert reply.json()["code"] == "too_large"

    asyncio.run(test())


def test_a_body_that_never_ends_times_out(engine: FakeEngine) -> None:
    async def test() -> None:
        async with running(create_app(Settings(body_timeout=0.05), engine)) as app:
            chunks = [{"type": "http.request", "body": GREEN[:9], "more_body": True}]

            async def slow() -> Any:
                return chunks.pop() if chunks else await asyncio.Event().wait()

            reply = await call(app, "/caption", slow, RAW)
            assert (reply.status, reply.json()["code"]) == (408, "body_timeout")

    asyncio.run(test())


def test_a_client_that_hangs_up_is_dropped(engine: FakeEngine) -> None:
    entered, go = threading.Event(), threading.Event()

    def stop(stage: str, size: int) -> None:
        entered.set()
        assert_(go.wait(60))

    async def test() -> None:
        engine.on_batch = stop
        async with running(create_app(Settings(), engine)) as app:
            batcher = app.state.service.batcher
            first = asyncio.ensure_future(call(app, "/caption", body(GREEN), RAW))
            await asyncio.to_thread(entered.wait, 60)
            gone = asyncio.Event()
            second = asyncio.ensure_future(call(app, "/caption", body(GREEN, gone=gone), RAW))
            await until(lambda: bool(batcher._request_queues))
            assert batcher.admitted == 2
            gone.set()
            assert (await second).status == 499
            assert batcher.admitted == 1
            go.set()
            assert (await first).status == 200
        assert engine.batches == [1]

    asyncio.run(test())


def test_a_client_that_hangs_up_while_sending(settings: Settings, engine: FakeEngine) -> None:
    messages = [{"type": "http.request", "body": GREEN[:9], "more_body": True}, {"type": "http.disconnect"}]

    async def test() -> None:
        async with running(create_app(settings, engine)) as app:

            async def receive() -> dict[str, Any]:
                return messages.pop(0)

            assert (await call(app, "/caption", receive, RAW)).status == 499
            assert app.state.service.upload_memory.used == 0

    asyncio.run(test())


def test_the_deadline_covers_waiting_and_running(engine: FakeEngine) -> None:
    go = threading.Event()
    engine.on_batch = lambda stage, size: assert_(go.wait(60))

    async def test() -> None:
        async with running(create_app(Settings(deadline=0.5), engine)) as app:
            replies = await asyncio.gather(*(call(app, "/caption", body(GREEN), RAW) for _ in range(3)))
            assert [(r.status, r.json()["code"]) for r in replies] == [(504, "deadline_exceeded")] * 3
            assert app.state.service.batcher.admitted == 0
            go.set()
        assert len(engine.batches) <= 1  # what had run out of time while it waited was not run

    asyncio.run(test())


def test_overload_answers_503_at_once_while_accepted_work_finishes(engine: FakeEngine) -> None:
    entered, go = threading.Event(), threading.Event()

    def stop(stage: str, size: int) -> None:
        entered.set()
        assert_(go.wait(60))

    async def never() -> Any:
        raise AssertionError("the upload was read before it was refused")

    async def test() -> None:
        engine.on_batch = stop
        async with running(create_app(Settings(queue_size=3, max_images=3), engine)) as app:
            accepted = [asyncio.ensure_future(call(app, "/caption", body(GREEN), RAW)) for _ in range(3)]
            await asyncio.to_thread(entered.wait, 60)
            await until(lambda: app.state.service.batcher.admitted == 3)
            reply = await call(app, "/caption", never, RAW)
            assert (reply.status, reply.json()["code"]) == (503, "overloaded")
            assert int(reply.headers["retry-after"]) >= 1
            go.set()
            assert [(await task).status for task in accepted] == [200] * 3
            assert (await call(app, "/caption", body(GREEN), RAW)).status == 200

    asyncio.run(test())


def test_uploads_held_at_once_are_bounded(engine: FakeEngine) -> None:
    async def test() -> None:
        settings = Settings(max_upload_mb=1, max_batch_mb=1, upload_memory_mb=1)
        async with running(create_app(settings, engine)) as app:
            waiting = asyncio.Event()
            chunks = [{"type": "http.request", "body": bytes(800_000), "more_body": True}]

            async def slow() -> Any:
                if chunks:
                    return chunks.pop()
                await waiting.wait()
                return {"type": "http.disconnect"}

            first = asyncio.ensure_future(call(app, "/caption", slow, RAW))
            await until(lambda: app.state.service.upload_memory.used > 0)
            second = await call(app, "/caption", body(bytes(300_000)), RAW)
            assert (second.status, second.headers["retry-after"]) == (503, "1")
            waiting.set()
            await first
            assert app.state.service.upload_memory.used == 0
            assert (await call(app, "/caption", body(GREEN), RAW)).status == 200

    asyncio.run(test())


def test_a_picture_is_never_written_to_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    large = encode(Image.effect_noise((950, 950), 100), "BMP")
    assert 900_000 < len(large) < 1_000_000
    assert post(client, large).status_code == 200


@pytest.mark.parametrize("lanes", [0, 2])
def test_32_clients_get_their_own_answers(lanes: int) -> None:
    searched: list[int] = []

    def slow(stage: str, size: int) -> None:
        time.sleep(0.0005)  # lets batches form
        if stage == "generate":
            searched.append(size)

    engine = FakeEngine(slow, lanes)
    rng = random.Random(0)

    async def test() -> None:
        async with running(create_app(Settings(max_pixels=1_000_000), engine)) as app:
            expected = {}
            for i in range(64):
                colour = (i % 8 * 30, i // 8 * 30, 7)
                data = plain(colour, "PNG", (8, 8))
                expected[data] = (await call(app, "/caption", body(data), RAW)).json()["caption"]
            assert len(set(expected.values())) == 64
            good, counts = list(expected), dict.fromkeys((200, 413, 422, 499, 500), 0)

            async def client() -> None:
                for _ in range(40):
                    data, gone, status = rng.choice(good), None, 200
                    chance = rng.random()
                    if chance < 0.05:
                        data, status = data[:50], 422
                    elif chance < 0.08:
                        data, status = bombs()["PNG"], 413
                    elif chance < 0.11:
                        data, status = plain(POISON), 500
                    elif chance < 0.18:
                        gone = asyncio.Event()
                        asyncio.get_running_loop().call_later(rng.random() * 0.01, gone.set)
                    reply = await call(app, "/caption", body(data, gone=gone), RAW)
                    counts[reply.status] += 1
                    if gone is None:
                        assert reply.status == status
                    if reply.status == 200:
                        assert reply.json()["caption"] == expected[data]

            await asyncio.gather(*(client() for _ in range(32)))
            assert sum(counts.values()) == 32 * 40
            assert min(counts.values()) > 0
            assert app.state.service.batcher.admitted == 0
        assert max(searched) > 1

    asyncio.run(test())


@pytest.mark.parametrize("ending", ["deadline", "hang-up", "broken"])
@pytest.mark.parametrize("path", ["/caption", "/captions"])
def test_what_failed_does_not_stay_in_memory(engine: FakeEngine, path: str, ending: str) -> None:
    size, times, go = 500_000, 8, threading.Event()
    engine.on_batch = lambda stage, number: assert_(go.wait(300))  # longer than `until` waits
    one = (b"" if ending == "broken" else GREEN) + bytes(size)
    part = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n'
    form = (part % (path[1:].replace("caption", "image").encode(), one)) * (2 if path == "/captions" else 1) + b"--b--"

    async def ask(app: FastAPI) -> int:
        gone = asyncio.Event()
        asking = asyncio.ensure_future(call(app, path, body(form, gone=gone), FORM))
        if ending == "hang-up":
            await until(lambda: app.state.service.batcher.admitted > 0)
            gone.set()
        return (await asking).status

    async def test() -> None:
        async with running(create_app(Settings(deadline=0.05 if ending == "deadline" else 60), engine)) as app:
            await ask(app)
            gc.collect()
            gc.disable()  # it looks after so many objects, however large
            tracemalloc.start()
            try:
                statuses = {await ask(app) for _ in range(times)}
                for _ in range(1000):  # what ends after its answer
                    if (held := tracemalloc.get_traced_memory()[0]) < 2 * size:
                        break
                    await asyncio.sleep(0.001)
            finally:
                gc.enable()
                go.set()  # or the application would wait for its engine
            assert held < 2 * size
            assert statuses == {{"deadline": 504, "hang-up": 499}.get(ending, 415 if path == "/caption" else 200)}

    try:
        asyncio.run(test())
    finally:
        tracemalloc.stop()  # once no thread decodes any more: beside one CPython before 3.13.2 may crash (gh-128679)
