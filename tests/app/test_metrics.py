from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from app.metrics import Metrics
from tests.app.fakes import POISON, FakeEngine
from tests.pictures import plain


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_add_up(client: TestClient, engine: FakeEngine) -> None:
    sent = [plain((1, 2, 3)), plain((4, 5, 6), "JPEG"), b"text", plain((1, 2, 3))[:50], plain(POISON)] * 3
    statuses: Counter[int] = Counter(client.post("/caption", files={"image": data}).status_code for data in sent)
    client.get("/nowhere/else")
    client.request("BREW", "/caption")
    assert statuses == {200: 6, 415: 3, 422: 3, 500: 3}
    found = samples(client.get("/metrics").text)
    for status, count in statuses.items():
        assert found["caption_http_requests_total", ("POST", "/caption", str(status))] == count
    assert found["caption_http_requests_total", ("GET", "other", "404")] == 1
    assert found["caption_http_requests_total", ("other", "/caption", "405")] == 1
    assert found["caption_http_request_duration_seconds_count", ("/caption",)] == len(sent) + 1
    assert found["caption_pictures_total", ("PNG",)] == found["caption_pictures_total", ("JPEG",)] == 3
    assert found["caption_batch_size_pictures_count", ()] == found["caption_batch_size_pictures_sum", ()] == 6
    # decode: all that could be read; encode, generate and queue: all that were captioned
    stages = {name: found["caption_stage_duration_seconds_count", (name,)] for name in ("decode", "encode", "generate")}
    assert stages == {"decode": 9, "encode": 6, "generate": 6}
    assert found["caption_admitted_pictures", ()] == found["caption_upload_bytes", ()] == 0


def test_names_follow_the_conventions() -> None:
    names = {family.name for family in text_string_to_metric_families(Metrics().render().decode())}
    ours = {name for name in names if not name.startswith("process_")}
    assert all(re.fullmatch(r"caption_[a-z_]+", name) for name in ours)
    assert all(name.endswith("_seconds") for name in ours if "duration" in name)
    assert "process_resident_memory_bytes" in names


SCRIPT = """
import sys
from app.metrics import Metrics
metrics = Metrics()
metrics.requests.labels("POST", "/caption", "200").inc(int(sys.argv[1]))
metrics.admitted.set(int(sys.argv[1]))
if sys.argv[2:]:
    print(metrics.render().decode())
"""


@pytest.mark.parametrize("alive", [True, False])
def test_workers_share_their_counts_and_the_dead_leave_no_gauges(tmp_path: Path, alive: bool) -> None:
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    first = subprocess.Popen(
        [sys.executable, "-c", f"{SCRIPT}\nprint('up', flush=True)\nsys.stdin.read()", "3"],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "up\n"
        if not alive:
            first.kill()
            first.wait()
        text = subprocess.run(
            [sys.executable, "-c", SCRIPT, "4", "show"], env=env, capture_output=True, text=True, check=True
        ).stdout
    finally:
        first.kill()
        first.communicate()
    found = samples(text)
    assert found["caption_http_requests_total", ("POST", "/caption", "200")] == 7
    assert found["caption_admitted_pictures", ()] == (7 if alive else 4)
