"""A 12-megapixel JPEG: ways from the file to the encoder's pixels, and whether the captions stay the same."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image

from benchmarks import WEIGHTS
from benchmarks.pictures import drawn, jpeg, read_pictures
from benchmarks.subject import MAX_PIXELS, Subject, same_captions
from benchmarks.timing import OURS, PROGRESS, interleaved, rows, timed
from model import images
from model.preprocess import resize
from model.runtime import load_engine

Way = Callable[[bytes], NDArray[np.uint8]]
FULL = "same resize"  # what the others' captions are compared with
LABELS = {
    OURS: "as the service does it: decoded at 1/4, resized",
    "draft 1/8": "decoded at 1/8, resized",
    "draft 1/2": "decoded at 1/2, the same resize",
    FULL: "decoded in full, the same resize",
    "plain": "decoded in full, plain bicubic resize",
    "fast_image_resize": "decoded in full, bicubic resize by fast_image_resize (SIMD)",
    "vips": "libvips, thumbnail with shrink-on-load",
    "opencv 1/8": "OpenCV, decoded at 1/8, resized by area",
    "opencv 1/4": "OpenCV, decoded at 1/4, resized by area",
    "decode": "only decoding, at 1/4",
    "codes": "only decoding, at 1/8: hardly more than reading the file's codes",
    "full decode": "only decoding, in full",
}


def run(subject: Subject) -> dict[str, Any]:
    """A 12-megapixel JPEG: reduced decoding against full, and whether the captions are the same.

    At 1/8 libjpeg computes one number for 64 pixels, so what is left is reading the file's codes. How
    often two ways to shrink the full decode get the same caption is the most that can be asked for; how
    often the engine in float32 does tells what is due to rounding.
    """
    (picture,) = drawn(1, 4000, 3000)
    data = jpeg(picture)
    to_pixels = ways(subject)
    contenders: dict[str, Callable[[], object]] = {
        **{name: partial(way, data) for name, way in to_pixels.items()},
        "decode": lambda: images.read(data, MAX_PIXELS, subject.size),
        "codes": lambda: decoded(data, 8),
        "full decode": lambda: decoded(data),
    }
    turns = {name: partial(timed, run) for name, run in contenders.items()}
    table = rows(interleaved(turns, max(3, subject.budget.rounds // 3)), LABELS)
    exact = load_engine(WEIGHTS, device="cpu", engine="openvino", precision="f32")
    texts: dict[str, list[str]] = {name: [] for name in to_pixels}
    exact_texts: dict[str, list[str]] = {name: [] for name in to_pixels}
    files = read_pictures(subject.source, subject.budget.agreement)
    for number, original in enumerate(files):
        image = Image.open(io.BytesIO(original)).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
        big = jpeg(image, quality=90)
        pixels = np.stack([way(big) for way in to_pixels.values()])
        for mine, engine in ((texts, subject.engine), (exact_texts, exact)):
            for name, found in zip(to_pixels, engine.caption(pixels, subject.search), strict=True):
                mine[name].append(found[0].text)
        if number % 20 == 0:
            print(".", end="", file=PROGRESS, flush=True)
    print(file=PROGRESS)
    same, same_exact = same_captions(texts, FULL), same_captions(exact_texts, FULL)
    by_label = {
        LABELS[name]: {"same": same[name], "same_exact": same_exact[name], "of": len(files)} for name in to_pixels
    }
    return {
        "rows": [row | by_label.get(row["name"], {}) for row in table],
        "megabytes": round(len(data) / 1e6, 1),
        "pictures": len(files),
    }


def ways(subject: Subject) -> Mapping[str, Way]:
    """From a file to the encoder's pixels."""
    size = subject.size

    def plain(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(decoded(data).resize((size, size), Image.Resampling.BICUBIC))

    def by_fast_image_resize(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(resize(decoded(data), size, fast=True))

    def vips(data: bytes) -> NDArray[np.uint8]:
        small = pyvips.Image.thumbnail_buffer(data, size, height=size, size="force")
        pixels: NDArray[np.uint8] = small.numpy()
        return pixels

    def opencv(data: bytes, flag: int) -> NDArray[np.uint8]:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
        return np.asarray(
            cv2.cvtColor(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        )

    preprocess = subject.engine.preprocess
    return {
        OURS: subject.prepare,
        "draft 1/8": lambda data: preprocess(decoded(data, 8)),
        "draft 1/2": lambda data: preprocess(decoded(data, 2)),
        FULL: lambda data: preprocess(decoded(data)),
        "plain": plain,
        "fast_image_resize": by_fast_image_resize,
        "vips": vips,
        "opencv 1/8": partial(opencv, flag=cv2.IMREAD_REDUCED_COLOR_8),
        "opencv 1/4": partial(opencv, flag=cv2.IMREAD_REDUCED_COLOR_4),
    }


def decoded(data: bytes, part: int = 1) -> Image.Image:
    """A JPEG at 1/`part` of its size."""
    image = Image.open(io.BytesIO(data))
    if part > 1:
        image.draft(None, (image.width // part, image.height // part))
    image.load()
    return image
