"""A 12-megapixel JPEG: reduced decoding against full, and whether the captions are the same."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import WEIGHTS
from benchmarks.pictures import drawn, jpeg, read_pictures
from benchmarks.subject import MAX_PIXELS, Subject
from benchmarks.timing import OURS, interleaved, rows, timed
from model import images
from model.runtime import load_engine


def run(subject: Subject) -> dict[str, Any]:
    """A 12-megapixel JPEG: reduced decoding against full, and whether the captions are the same.

    At 1/8 libjpeg computes one number for 64 pixels, so what is left is reading the file's codes. How
    often two ways to shrink the full decode get the same caption is the most that can be asked for; how
    often the engine in float32 does tells what is due to rounding.
    """

    def full(data: bytes, eighth: bool = False) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        if eighth:
            image.draft(None, (image.width // 8, image.height // 8))
        image.load()
        return image

    def plain(data: bytes) -> Any:
        return np.asarray(full(data).resize((subject.size, subject.size), Image.Resampling.BICUBIC))

    (picture,) = drawn(1, 4000, 3000)
    data = jpeg(picture)
    contenders: dict[str, Callable[[], object]] = {
        OURS: lambda: subject.prepare(data),
        "same resize": lambda: subject.engine.preprocess(full(data)),
        "plain": lambda: plain(data),
        "decode": lambda: images.read(data, MAX_PIXELS, subject.size),
        "codes": lambda: full(data, eighth=True),
        "full decode": lambda: full(data),
    }
    labels = {
        OURS: "as the service does it: decoded at 1/4, resized",
        "same resize": "decoded in full, the same resize",
        "plain": "decoded in full, plain bicubic resize",
        "decode": "only decoding, at 1/4",
        "codes": "only decoding, at 1/8: hardly more than reading the file's codes",
        "full decode": "only decoding, in full",
    }
    turns = {name: partial(timed, run) for name, run in contenders.items()}
    table = rows(interleaved(turns, max(3, subject.budget.rounds // 3)), labels)
    exact = load_engine(WEIGHTS, device="cpu", engine="openvino", precision="f32")
    same = same_exact = same_in_full = 0
    files = read_pictures(subject.source, subject.budget.agreement)
    for original in files:
        big = jpeg(Image.open(io.BytesIO(original)).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC))
        pixels = np.stack([subject.prepare(big), subject.engine.preprocess(full(big)), plain(big)])
        reduced, whole, other = (found[0].text for found in subject.caption(pixels))
        same += reduced == whole
        same_in_full += whole == other
        reduced, whole = (found[0].text for found in exact.caption(pixels[:2], subject.search))
        same_exact += reduced == whole
    return {
        "rows": table, "megabytes": round(len(data) / 1e6, 1), "pictures": len(files), "same_captions": same,
        "same_captions_exact": same_exact, "same_captions_in_full": same_in_full,
    }  # fmt: skip
