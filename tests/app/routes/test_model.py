from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import FakeEngine


def test_model_says_what_is_served(client: TestClient, engine: FakeEngine, settings: Settings) -> None:
    answer = client.get("/model").json()
    assert (answer["name"], answer["version"], answer["engine"], answer["device"]) == ("fake", "1", "fake", "cpu")
    assert answer["precision"] == "f32"
    assert answer["search"] == json.loads(json.dumps(asdict(engine.config.search)))
    assert answer["card"] == engine.card
    assert answer["limits"] == {
        "max_upload_bytes": 1_000_000,
        "max_batch_bytes": 2_000_000,
        "max_images": settings.max_images,
        "max_pixels": settings.max_pixels,
    }


def test_model_says_which_software_serves_it(engine: FakeEngine) -> None:
    for commit in ("", "0a1b2c3"):
        with TestClient(create_app(Settings(commit=commit), engine)) as client:
            service = client.get("/model").json()["service"]
        assert service == {"version": metadata.version("caption-service"), "commit": commit or None}


def test_metrics_are_prometheus_text(client: TestClient) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    [info] = families["caption_model_info"].samples
    assert info.labels == {"name": "fake", "version": "1", "engine": "fake", "device": "cpu"}
    assert info.value == 1
