"""`python -m app`, around the model that ships with it."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app.settings import DEFAULT_MODEL
from tests.app.live import ROOT, Start
from tests.pictures import plain

SERVE = ["-m", "app", "--device", "cpu"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def test_a_missing_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    done = run("--port", "0", "--model", str(tmp_path / "nothing"))
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nothing" in line


def test_with_workers_it_is_one_line_too_and_no_address(tmp_path: Path) -> None:
    done = run("--port", "0", "--workers", "3", "--model", str(tmp_path / "nothing"))
    assert done.returncode != 0
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nothing" in line


def test_a_variable_that_is_no_setting_stops_the_start() -> None:
    done = run(CAPTION_API_KEY="secret", CAPTION_PRT="9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: CAPTION_API_KEY is no setting of the service; CAPTION_API_KEYS is",
        "error: CAPTION_PRT is no setting of the service; CAPTION_PORT is",
    ]


def test_the_version_is_told_with_the_commit_where_it_is_known() -> None:
    assert run("--version").stdout == "caption-service 0.1.0\n"
    assert run("--version", CAPTION_COMMIT="0a1b2c3").stdout == "caption-service 0.1.0 (0a1b2c3)\n"


def test_an_empty_host_is_not_every_interface() -> None:
    done = run("--host", "")
    assert done.returncode == 2
    assert done.stderr.startswith("error: CAPTION_HOST: ")


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: cannot listen on 127.0.0.1 port {port}: Address already in use"]


def test_an_impossible_setting_is_named() -> None:
    done = run(CAPTION_WORKERS="0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: CAPTION_WORKERS: ")


@pytest.mark.skipif(not DEFAULT_MODEL.is_dir(), reason="no embedded model")
def test_the_embedded_model_captions_the_sample(start: Start, sample: bytes) -> None:
    server = start(SERVE)
    answer = httpx.post(
        f"{server.url}/caption?num_captions=3&explain=true", files={"image": ("sample.jpg", sample)}, timeout=60
    ).json()
    assert len({caption["text"] for caption in answer["captions"]}) == 3
    for caption in answer["captions"]:
        assert caption["text"][0].isupper()
        assert caption["text"].endswith(".")
        assert 0 < caption["confidence"] < 1
        total = sum(math.log(token["probability"]) for token in caption["tokens"])
        assert caption["log_probability"] == pytest.approx(total, abs=1e-3)
        for token in caption["tokens"]:
            grid = token["attention"]
            assert len(grid["weights"]) == grid["rows"] * grid["columns"]
            assert sum(grid["weights"]) + grid["sentinel"] == pytest.approx(1, abs=1e-2)
            assert token["gates"]
            assert token["alternatives"]
    model = httpx.get(f"{server.url}/model").json()
    assert (model["engine"], model["device"]) == ("openvino", "cpu")
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    # Neither torch nor torchvision: their import would cost seconds and hundreds of megabytes.
    assert "torch" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert server.terminate() == 0


@pytest.mark.skipif(not DEFAULT_MODEL.is_dir(), reason="no embedded model")
def test_batched_answers_are_the_single_ones(start: Start, sample: bytes) -> None:
    server = start(SERVE)
    pictures = [sample, *(plain((40 * i, 200 - 30 * i, 90), "PNG", (64, 48)) for i in range(5))]
    with httpx.Client(base_url=server.url, timeout=60) as client:
        alone = [client.post("/caption", files={"image": data}).json() for data in pictures]
        together = client.post("/captions", files=[("images", data) for data in pictures]).json()["results"]
    for one, shared in zip(alone, together, strict=True):
        assert shared["result"]["caption"] == one["caption"]
        assert shared["result"]["captions"][0]["log_probability"] == pytest.approx(
            one["captions"][0]["log_probability"], rel=0.05
        )


def test_serving_imports_no_training_and_no_torch() -> None:
    code = (
        "import sys, app.__main__, app.main, app.serving.server, app.pictures.guard\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('torch', 'torchvision', 'training', 'scipy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
