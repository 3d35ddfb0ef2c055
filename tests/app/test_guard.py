from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from app import images
from app.errors import BrokenImage, TooLarge, UnsupportedMedia
from app.guard import Guard
from model.config import PreprocessConfig
from model.preprocess import to_pixels
from tests.app.pictures import FORMATS, bombs, encode, many_scans, plain, quarters

PREPROCESS = PreprocessConfig(size=64)


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    made = Guard(PREPROCESS, max_pixels=50_000_000, seconds=60, memory_mb=512)
    yield made
    made.close()


@pytest.mark.parametrize("format", FORMATS)
def test_gives_what_reading_here_gives(guard: Guard, format: str) -> None:
    data = encode(quarters((300, 200)), format)
    here = images.read(data, 50_000_000, PREPROCESS.size, guarded=True)
    there = guard.read(data)
    assert (there.width, there.height, there.format) == (here.width, here.height, here.format)
    assert (np.asarray(there.image) == to_pixels(here.image, PREPROCESS)).all()


def test_errors_come_through(guard: Guard) -> None:
    with pytest.raises(UnsupportedMedia, match="not a picture"):
        guard.read(b"hello")
    with pytest.raises(TooLarge, match="limit is 50000000"):
        guard.read(bombs()["WEBP"])
    with pytest.raises(BrokenImage, match="damaged"):
        guard.read(plain((1, 2, 3), "AVIF")[:-20])
    assert guard.read(plain((1, 2, 3), "WEBP")).format == "WEBP"


def test_a_picture_that_takes_too_long_is_ended_and_the_next_one_is_read() -> None:
    guard = Guard(PREPROCESS, max_pixels=50_000_000, seconds=60, memory_mb=512)
    try:
        guard.read(plain((1, 2, 3)))
        first = guard._child
        guard.seconds = 0.5
        with pytest.raises(BrokenImage, match="time or memory"):
            guard.read(many_scans(2000, 50_000))  # minutes
        assert first is not None
        assert first.poll() is not None
        guard.seconds = 60
        assert guard.read(plain((1, 2, 3))).width == 24
    finally:
        guard.close()


def test_a_picture_that_needs_too_much_memory_is_refused_and_the_next_one_is_read() -> None:
    guard = Guard(PREPROCESS, max_pixels=50_000_000, seconds=60, memory_mb=256)
    lossless = encode(Image.new("RGBA", (5000, 5000)), "WEBP", lossless=True, quality=0, method=0)
    try:
        assert len(lossless) < 100
        with pytest.raises((BrokenImage, TooLarge)):
            guard.read(lossless)
        assert guard.read(plain((1, 2, 3), "WEBP")).width == 24
    finally:
        guard.close()


def test_a_lying_header_cannot_take_more_memory_than_allowed(guard: Guard) -> None:
    # 1 x 1 pixels by its container, 3000 x 3000 by the video frame inside: libavif decodes all of it.
    data = encode(Image.new("RGB", (3000, 3000)), "AVIF")
    at = data.index(b"ispe") + 8
    data = data[:at] + b"\0\0\0\1\0\0\0\1" + data[at + 8 :]
    with pytest.raises(images.NeedsGuard):
        images.read(data, 50_000_000, PREPROCESS.size)
    with contextlib.suppress(BrokenImage):  # a libavif that notices
        assert guard.read(data).width == 1
    assert guard._child is not None
    status = Path(f"/proc/{guard._child.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak"))
    assert peak <= 512 * 1024


def test_a_child_that_died_is_replaced(guard: Guard) -> None:
    guard.read(plain((1, 2, 3)))
    assert guard._child is not None
    os.kill(guard._child.pid, signal.SIGKILL)
    guard._child.wait()
    assert guard.read(plain((1, 2, 3))).width == 24


def test_the_child_has_no_secrets_and_no_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_API_KEYS", "secret")
    guard = Guard(PREPROCESS, max_pixels=1000, seconds=60, memory_mb=512)
    try:
        guard.read(plain((1, 2, 3)))
        assert guard._child is not None
        child = psutil.Process(guard._child.pid)
        assert set(child.environ()) <= {"PYTHONPATH", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
        assert child.num_fds() == 3
        assert child.net_connections() == []
    finally:
        guard.close()


def test_the_child_ends_with_its_parent() -> None:
    guard = Guard(PREPROCESS, max_pixels=1000, seconds=60, memory_mb=512)
    guard.read(plain((1, 2, 3)))
    child = guard._child
    assert child is not None
    assert child.stdin is not None
    child.stdin.close()  # what the parent's end does to it
    assert child.wait(timeout=60) == 0
    guard.close()


def test_answers_never_cross_between_threads(guard: Guard) -> None:
    rng = random.Random(0)
    colours = [(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(200)]

    def ask(colour: tuple[int, int, int]) -> bool:
        if colour[0] < 30:  # every eighth is broken
            with pytest.raises(BrokenImage):
                guard.read(plain(colour)[:-30])
            return True
        return guard.read(plain(colour)).image.getpixel((9, 9)) == colour

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, colours))


def test_flipped_bytes_never_end_the_child_unnoticed(guard: Guard) -> None:
    rng = random.Random(1)
    for format in ("WEBP", "AVIF", "TIFF"):
        data = encode(quarters((16, 12)), format)
        for _ in range(60):
            damaged = bytearray(data)
            damaged[rng.randrange(len(data))] = rng.randrange(256)
            try:
                guard.read(bytes(damaged))
            except (BrokenImage, TooLarge, UnsupportedMedia):
                continue
    assert guard.read(plain((9, 9, 9), "WEBP")).image.size == (64, 64)
