"""The processes that decode pictures for the service: what they may use is limited, and they can be ended.

No decoder can be trusted in the server's process: a JPEG of 20 MB may hold 200,000 scans, an AVIF of 1 x 1
pixels may unpack to 16,384 x 16,384, a thread cannot be stopped. So `app.pictures.guard` starts
`python -m app.pictures.decoder` once, which loads every decoder and then forks a worker whenever it is asked to: that
takes milliseconds, and the workers share what was loaded. A worker has no environment, opens no files, writes none,
and ends with the server however that ends. It gets a file and gives pixels in memory shared with the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from app.decorative import is_decorative
from model import images
from model.config import PreprocessConfig, from_dict
from model.errors import BrokenImage, ImageError, TooCostly, TooLarge, UnsupportedMedia, UnsupportedVariant
from model.preprocess import to_pixels

# Between the server and the process that forks: FORK (with a worker's socket and memory) or REAP in, what came of it
# out; and READY out, first of all.
COMMAND = struct.Struct(">BI")  # what, process id
REPORT = struct.Struct(">Bii")  # what, process id or -1, the status it ended with as of waitpid
READY, FORK, REAP = range(3)
# Between the server and a worker.
REQUEST = struct.Struct(">QQ")  # bytes of the file, bytes of memory that decoding it may take
REPLY = struct.Struct(">BBIId?")  # outcome, index of the format, width, height, seconds, decorative; an error's text
DONE, FAILED = 0, 255  # outcomes; 1 and on are `ERRORS`
ERRORS: tuple[type[ImageError], ...] = (BrokenImage, TooLarge, UnsupportedMedia, UnsupportedVariant, TooCostly)
MAX_MESSAGE = 4096

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # may be sent to the whole group: the server decides
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the workers are told once."""

    preprocess: PreprocessConfig
    max_pixels: int
    seconds: float  # of CPU for one picture
    memory: int  # bytes that decoding one picture may ever take
    shared: int  # bytes of the memory shared with the server
    fast_resize: bool = False  # how pictures are resized (`model.preprocess.resize`)


def main(control: socket.socket, limits: Limits) -> None:
    """Fork and reap workers until the server is gone."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    _warm_up(limits)
    gc.collect()
    gc.freeze()  # or collections would touch, and so copy, what the workers share
    control.send(REPORT.pack(READY, 0, 0))
    while True:
        message, files, _, _ = socket.recv_fds(control, COMMAND.size, 2)
        if not message:
            return
        what, worker = COMMAND.unpack(message)
        status = 0
        if what == FORK:
            worker = _fork(control, files, limits)
        else:
            _, status = os.waitpid(worker, 0)
        control.send(REPORT.pack(what, worker, status))


def _warm_up(limits: Limits) -> None:
    """Use every decoder once: what they load later would have to be opened, and is not shared."""
    images.limit_pixels(limits.max_pixels)
    for format, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("AVIF", {"speed": 10}), ("GIF", {}), ("BMP", {}),
                            ("TIFF", {"compression": "tiff_lzw"}), ("MPO", {"save_all": True})):  # fmt: skip
        buffer, exif = io.BytesIO(), Image.Exif()
        exif[images.ORIENTATION] = 6
        profile = ImageCms.ImageCmsProfile(images.SRGB).tobytes()
        made: dict[str, Any] = {"exif": exif, "icc_profile": profile} if format not in ("GIF", "BMP") else {}
        Image.new("RGB", (16, 16)).save(buffer, format, **made, **options)
        picture = images.read(buffer.getvalue(), limits.max_pixels, limits.preprocess.size)
        is_decorative(to_pixels(picture.image, limits.preprocess, limits.fast_resize), 100, 1)
    with contextlib.suppress(BrokenImage):  # nothing here writes one that is whole
        images.read(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", limits.max_pixels)
    for encoding in ("ascii", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-8", "cp1252"):
        b"".decode(encoding)


def _fork(control: socket.socket, files: list[int], limits: Limits) -> int:
    """A new worker's process id, -1 if there can be none now. files: its end of the channel, and its memory."""
    parent, (channel, region) = os.getpid(), files
    try:
        worker = os.fork()
    except OSError:
        worker = -1
    if worker:
        os.close(channel)
        os.close(region)
        return worker
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return os._exit(0)
        control.close()
        _work(socket.socket(fileno=channel), region, limits)
    finally:
        os._exit(1)  # never back into the parent's loop


def _work(channel: socket.socket, file: int, limits: Limits) -> None:
    """Decode what comes, within limits."""
    shared = mmap.mmap(file, limits.shared)
    os.close(file)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libtiff writes there
    os.close(null)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # the first that the kernel ends when memory runs out
    with open("/proc/self/statm") as statm:
        own = int(statm.read().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    most = own + limits.memory
    while request := channel.recv(REQUEST.size):
        length, memory = REQUEST.unpack(request)
        resource.setrlimit(resource.RLIMIT_AS, (own + memory, most))
        signal.setitimer(signal.ITIMER_PROF, limits.seconds)  # by default its signal ends the process
        reply = _decode(shared, length, memory, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.send(reply)


def _decode(shared: mmap.mmap, length: int, memory: int, limits: Limits) -> bytes:
    start = time.perf_counter()
    try:
        picture = images.read(shared[:length], limits.max_pixels, limits.preprocess.size, memory)
        pixels = to_pixels(picture.image, limits.preprocess, limits.fast_resize)
        np.copyto(np.frombuffer(shared, np.uint8, pixels.size).reshape(pixels.shape), pixels)
        bare = is_decorative(pixels, picture.width, picture.height)
        seconds = time.perf_counter() - start
        return REPLY.pack(DONE, images.FORMATS.index(picture.format), picture.width, picture.height, seconds, bare)
    except ERRORS as error:
        outcome, text = 1 + ERRORS.index(type(error)), str(error)
    except MemoryError:
        outcome, text = 1 + ERRORS.index(TooCostly), "the picture needs too much memory to decode"
    except Exception as error:
        outcome, text = FAILED, repr(error)
    return REPLY.pack(outcome, 0, 0, 0, 0.0, False) + text.encode()[: MAX_MESSAGE - REPLY.size]


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    given["preprocess"] = from_dict(PreprocessConfig, given["preprocess"])
    main(socket.socket(fileno=int(sys.argv[1])), Limits(**given))
