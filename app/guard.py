"""Decodes suspicious pictures in a process of its own, with little memory, and ended when it takes too long.

Some decoders cannot be trusted in the server's process: an AVIF of 1 x 1 pixels may unpack to
16,384 x 16,384, a JPEG of 20 MB may hold 200,000 scans, and a thread cannot be stopped. The child has
no environment, opens no files, writes none, and dies with its parent. `python -m app.guard` is the child.
"""

from __future__ import annotations

import json
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from typing import IO

from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from app import images
from app.errors import BrokenImage, ServiceError, TooLarge, UnsupportedMedia
from model.config import PreprocessConfig, from_dict
from model.preprocess import to_pixels

HEADER = struct.Struct(">BIIII")  # outcome, bytes that follow, width, height, side of the pixels
ERRORS: tuple[type[ServiceError], ...] = (BrokenImage, TooLarge, UnsupportedMedia)  # outcomes 1, 2, 3; 0 is fine
MEGABYTE = 2**20


class Guard:
    """Starts the child when it is first needed, and a new one after each that had to be ended."""

    def __init__(self, preprocess: PreprocessConfig, max_pixels: int, seconds: float, memory_mb: int) -> None:
        self.arguments = json.dumps({"preprocess": asdict(preprocess), "max_pixels": max_pixels, "memory": memory_mb})
        self.seconds = seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def read(self, data: bytes) -> images.Picture:
        """As `images.read`, but `image` has the encoder's size already. Thread-safe, one picture at a time.

        Raises `BrokenImage` also for a picture that takes too long, or too much memory, to decode.
        """
        with self._lock:
            try:
                outcome, body, width, height, side = self._ask(data)
            except (OSError, EOFError, TimeoutError) as error:
                self.close()
                raise BrokenImage("the picture takes too much time or memory to decode") from error
        if outcome:
            raise ERRORS[outcome - 1](body.decode())
        return images.Picture(Image.frombytes("RGB", (side, side), body), width, height, images.sniff(data))

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                pipe.close()
            self._child = None

    def _ask(self, data: bytes) -> tuple[int, bytes, int, int, int]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = subprocess.Popen(
                [sys.executable, "-m", "app.guard", self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # No secrets; and one thread for NumPy's linear algebra, whose buffers would count as memory.
                env={"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            )
            _read(self._child.stdout, 1, time.monotonic() + 60)  # ready: starting is not the picture's time
        end = time.monotonic() + self.seconds
        _write(self._child.stdin, struct.pack(">I", len(data)) + data, end)
        outcome, length, width, height, side = HEADER.unpack(_read(self._child.stdout, HEADER.size, end))
        return outcome, _read(self._child.stdout, length, end), width, height, side


def _write(pipe: IO[bytes] | None, data: bytes, end: float) -> None:
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    left = memoryview(data)
    while left:
        _wait(pipe, select.POLLOUT, end)
        left = left[os.write(pipe.fileno(), left) :]


def _read(pipe: IO[bytes] | None, count: int, end: float) -> bytes:
    assert pipe is not None
    data = bytearray()
    while len(data) < count:
        _wait(pipe, select.POLLIN, end)
        chunk = os.read(pipe.fileno(), count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _wait(pipe: IO[bytes], event: int, end: float) -> None:
    """Until `pipe` is ready for `event`; raises `TimeoutError` at `end`, by `time.monotonic`."""
    poll = select.poll()  # select would refuse the file numbers of a busy server
    poll.register(pipe, event)
    if not poll.poll(max(end - time.monotonic(), 0) * 1000):
        raise TimeoutError


def _decode(data: bytes, preprocess: PreprocessConfig, max_pixels: int) -> bytes:
    """What the child answers for `data`."""
    try:
        picture = images.read(data, max_pixels, preprocess.size, guarded=True)
        body = to_pixels(picture.image, preprocess).tobytes()
    except ERRORS as error:
        outcome = ERRORS.index(type(error)) + 1
        body = error.detail.encode()
        return HEADER.pack(outcome, len(body), 0, 0, 0) + body
    return HEADER.pack(0, len(body), picture.width, picture.height, preprocess.size) + body


def _child(arguments: str) -> None:
    given = json.loads(arguments)
    preprocess = from_dict(PreprocessConfig, given["preprocess"])
    images.limit_pixels(given["max_pixels"])
    Image.preinit()  # like the imports above: every decoder there is use for, before files are forbidden
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    resource.setrlimit(resource.RLIMIT_AS, (given["memory"] * MEGABYTE,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sink.write(b"r")
    sink.flush()
    while len(header := source.read(4)) == 4:
        (length,) = struct.unpack(">I", header)
        sink.write(_decode(source.read(length), preprocess, given["max_pixels"]))
        sink.flush()


if __name__ == "__main__":
    _child(sys.argv[1])
