"""What the processes that decode may use."""

from __future__ import annotations

import random
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from PIL import Image

from app.errors import (
    BrokenImage,
    ServiceError,
    TooCostly,
    TooLarge,
    UnsupportedMedia,
    UnsupportedVariant,
)
from model import images
from model.config import PreprocessConfig
from model.errors import ImageError
from tests.app.pictures.test_guard import run, running
from tests.pictures import encode, plain, quarters

PREPROCESS = PreprocessConfig(size=64)


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_a_lying_header_cannot_take_more_memory_than_allowed() -> None:
    # 1 x 1 pixels by its container, 3000 x 3000 by the video frame inside: libavif decodes all of it.
    data = encode(Image.new("RGB", (3000, 3000)), "AVIF")
    at = data.index(b"ispe") + 8
    data = data[:at] + b"\0\0\0\1\0\0\0\1" + data[at + 8 :]

    async def test() -> None:
        async with running(memory_mb=256) as guard:
            pids = [worker.pid for worker in guard._running]
            with suppress(ServiceError):  # a libavif that notices
                await guard.read(data)
            for pid in pids:
                with suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240
                    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
                    assert peak < 256 * 1024

    run(test)


def test_workers_have_no_secrets_no_files_and_are_ended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_API_KEYS", "secret")

    async def test() -> None:
        async with running() as guard:
            await guard.read(plain((1, 2, 3)))
            assert guard._process is not None
            workers = children(guard._process.pid)
            assert len(workers) == 2
            for worker in (*workers, psutil.Process(guard._process.pid)):
                assert set(worker.environ()) <= {"PYTHONPATH", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
                assert worker.net_connections("inet") == []
            assert {worker.num_fds() for worker in workers} == {5}  # three to nowhere, its channel and its memory
            worker = workers[0]
            loaded = Path(f"/proc/{worker.pid}/maps").read_text()  # noqa: ASYNC240
            assert not [name for name in ("openvino", "libtorch", "uvloop", "pydantic") if name in loaded]
            assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "1000"  # noqa: ASYNC240
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                for one in (*workers, psutil.Process(guard._process.pid)):
                    one.send_signal(number)
            assert (await guard.read(plain((1, 2, 3)))).width == 24
            assert {one.pid for one in workers} == {worker.pid for worker in guard._running}

    run(test)


def test_what_decoders_write_to_stderr_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    tiff = encode(quarters((300, 200)), "TIFF", compression="tiff_adobe_deflate")
    damaged = [tiff[:at] + b"\x55" + tiff[at + 1 :] for at in range(8, len(tiff), 16)]
    for data in damaged[:2]:
        with suppress(ImageError):
            images.read(data, 50_000_000)
    assert capfd.readouterr().err != ""  # libtiff's

    async def test() -> None:
        async with running() as guard:
            for data in damaged:
                with suppress(ServiceError):
                    await guard.read(data)

    run(test)
    assert capfd.readouterr().err == ""


def test_flipped_bytes_never_end_a_worker_unnoticed() -> None:
    async def test() -> None:
        async with running() as guard:
            rng = random.Random(1)
            for format in ("WEBP", "AVIF", "HEIF", "TIFF"):
                data = encode(quarters((16, 12)), format)
                for _ in range(30):
                    damaged = bytearray(data)
                    damaged[rng.randrange(len(data))] = rng.randrange(256)
                    with suppress(BrokenImage, TooLarge, TooCostly, UnsupportedMedia, UnsupportedVariant):
                        await guard.read(bytes(damaged))
            assert (await guard.read(plain((9, 9, 9), "WEBP"))).pixels.shape == (64, 64, 3)

    run(test)
