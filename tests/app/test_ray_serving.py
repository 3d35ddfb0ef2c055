"""The application on Ray Serve: a local Ray in a process of its own, asked over HTTP; it starts once."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: .[ray]"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own, when it is imported
]
WAIT = 300.0  # seconds that a busy machine gets

RUN = """
import sys, time
import ray
from ray import serve
from app.ray_serving import Arguments, build
from scripts.ray_cluster import patiently

ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
http = {"host": "127.0.0.1", "port": int(sys.argv[1])}
patiently(lambda: serve.start(proxy_location="HeadOnly", http_options=http))
for name, split in (("whole", False), ("split", True)):
    arguments = Arguments(split=split, settings={"max_upload_mb": 1, "decode_workers": 2})
    patiently(lambda: serve.run(build(arguments), name=name, route_prefix=f"/{name}"))
print("serving", ray.nodes()[0]["MetricsExportPort"], flush=True)
sys.stdin.read()
serve.shutdown()
"""


@dataclass(frozen=True)
class Running:
    """Where applications and metrics are."""

    url: str
    exporter: str


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.ray_serving:problems",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_raylet_start_wait_time_s": "300",  # a busy machine
        "RAY_worker_register_timeout_seconds": "300",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_worker_niceness": "0",  # or whatever else runs here comes first
        "NO_PROXY": "*",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(port)], env=environment, cwd=ROOT, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said.startswith("serving "):
            process.kill()
            pytest.fail(process.communicate()[1][-3000:])
        yield Running(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{said.split()[1]}/metrics")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Ray's own processes end when they lose this one
        process.communicate()


@pytest.fixture(params=["whole", "split"])
def client(request: pytest.FixtureRequest, running: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{running.url}/{request.param}", timeout=WAIT, trust_env=False) as made:
        yield made


def test_a_replica_captions_as_the_engine_does(client: httpx.Client, sample: bytes) -> None:
    from PIL import Image

    from app.settings import DEFAULT_MODEL
    from model.runtime import load_engine

    engine = load_engine(DEFAULT_MODEL, device="cpu", threads=1)
    with Image.open(ROOT / "app" / "static" / "sample.jpg") as image:
        [[caption]] = engine.caption(engine.preprocess(image)[None])
    answer = client.post("/caption", content=sample, headers={"X-Request-ID": "mine"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["caption"] == caption.text
    assert answer.json()["request_id"] == "mine"
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert client.get("/model").json()["name"] == engine.config.name


def test_errors_are_the_applications_own_problems(client: httpx.Client) -> None:
    answer = client.post("/caption", content=b"no picture")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    answer = client.post("/caption", content=bytes(2_000_000))
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_replica_is_ready_and_counts(client: httpx.Client, sample: bytes) -> None:
    assert client.get("/health/ready").status_code == 200
    files = [("images", ("a.jpg", sample)), ("images", ("b.jpg", sample))]
    results = client.post("/captions", files=files, params={"num_captions": 2}).json()["results"]
    assert [len(result["result"]["captions"]) for result in results] == [2, 2]
    counted = re.search(r'^caption_pictures_total\{format="JPEG"\} (\S+)', client.get("/metrics").text, re.MULTILINE)
    assert counted is not None
    assert float(counted[1]) >= 2


def test_our_metrics_are_in_rays_exporter(running: Running, sample: bytes) -> None:
    httpx.post(f"{running.url}/whole/caption", content=sample, timeout=WAIT, trust_env=False)
    wanted = re.compile(r'^ray_caption_pictures_total\{.*format="JPEG".*\} [1-9]', re.MULTILINE)
    end = time.monotonic() + WAIT
    while not wanted.search(text := httpx.get(running.exporter, timeout=WAIT, trust_env=False).text):
        assert time.monotonic() < end, sorted(set(re.findall(r"^ray_caption_\w+", text, re.MULTILINE)))
        time.sleep(1)
    names = set(re.findall(r"^ray_(caption_\w+)", text, re.MULTILINE))
    assert {"caption_admitted_pictures", "caption_stage_duration_seconds_bucket"} <= names


# --- without a cluster ---------------------------------------------------------------------------


def test_serve_yaml_is_what_ray_accepts_and_the_code_says() -> None:
    from ray.serve.schema import ServeDeploySchema

    from app.ray_serving import Arguments, Captions

    content = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    ServeDeploySchema.model_validate(content)
    [application] = content["applications"]
    assert application["import_path"] == "app.ray_serving:build"
    Arguments.model_validate(application["args"])
    [deployment] = application["deployments"]
    assert deployment["name"] == Captions.name  # type: ignore[attr-defined]
    config = Captions._deployment_config.model_dump()  # type: ignore[attr-defined]
    for key, value in deployment.items():
        if isinstance(value, dict) and key != "ray_actor_options":
            assert value == {name: config[key][name] for name in value}, key
        elif key in config:
            assert value == config[key], key


def test_the_proxy_waits_longer_than_the_service() -> None:
    from app.settings import Settings

    options = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())["http_options"]
    assert options["request_timeout_s"] > Settings().body_timeout + Settings().deadline
    assert options["keep_alive_timeout_s"] >= Settings().keep_alive


async def ask(status: int, content_type: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """What `Problems` makes of an answer of the application or the proxy."""
    from app.ray_serving import Problems

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", content_type.encode()), (b"x-request-id", b"one"), (b"X-Request-ID", b"one")]
        await send({"type": "http.response.start", "status": status, "headers": [(k.lower(), v) for k, v in headers]})
        await send({"type": "http.response.body", "body": body})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Problems(app)({"type": "http", "path": "/caption"}, None, send)  # type: ignore[arg-type]
    assert len(sent) == 2
    headers = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    assert len(headers) == len(dict(headers))
    return sent[0]["status"], dict(headers), sent[1]["body"]


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "made", "code"), [(503, 503, "overloaded"), (408, 504, "deadline_exceeded")])
async def test_what_the_proxy_says_becomes_a_problem(status: int, made: int, code: str) -> None:
    got, headers, body = await ask(status, "text/plain", b"Request dropped due to backpressure")
    assert (got, headers["content-type"], json.loads(body)["code"]) == (made, "application/problem+json", code)
    assert int(headers["content-length"]) == len(body)
    assert json.loads(body)["request_id"] == "one"
    assert ("retry-after" in headers) == (made == 503)


@pytest.mark.anyio
async def test_what_the_application_says_stays() -> None:
    assert (await ask(503, "application/problem+json", b"{}"))[2] == b"{}"
    assert (await ask(200, "text/html", b"<html>"))[2] == b"<html>"


def test_a_replica_whose_engine_hangs_is_unhealthy() -> None:
    from types import SimpleNamespace

    from app.errors import EngineHangs
    from app.ray_serving import Engine

    cls = Engine.func_or_class  # type: ignore[attr-defined]
    replica = cls.__new__(cls)
    replica.settings = SimpleNamespace(hang=60.0)
    replica.batcher = SimpleNamespace(engine_seconds=61.0)
    with pytest.raises(EngineHangs):
        replica.check_health()
    replica.batcher.engine_seconds = 59.0
    replica.check_health()


@pytest.mark.anyio
async def test_so_is_one_that_cannot_decode_but_not_one_that_starts() -> None:
    from types import SimpleNamespace

    from app.errors import EngineHangs, NotReady
    from app.ray_serving import Captions

    state = SimpleNamespace()
    replica = SimpleNamespace(application=SimpleNamespace(state=state))  # a real one ends by a coroutine, in Ray alone
    check_health = Captions.func_or_class.check_health  # type: ignore[attr-defined]
    await check_health(replica)
    state.service = SimpleNamespace(
        ready=True,
        guard=SimpleNamespace(ready=True),
        batcher=SimpleNamespace(engine_seconds=0.0),
        settings=SimpleNamespace(hang=60.0),
    )
    await check_health(replica)
    state.service.guard.ready = False
    with pytest.raises(NotReady):
        await check_health(replica)
    state.service.batcher.engine_seconds = 61.0
    with pytest.raises(EngineHangs):
        await check_health(replica)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
