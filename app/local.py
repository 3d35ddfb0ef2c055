"""Captions for the command line, with the model in this process: no server, and nothing sent anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from app.alt import alt_text
from app.decorative import is_decorative
from app.explain_html import SIDE, ExplanationFile
from app.schemas import CaptionOut, CaptionParams, captions_out, tags_out
from app.settings import DEFAULT_MODEL
from caption_client import answers
from caption_client.answers import Caption, Image, Tag
from caption_client.exiftool import ExifToolError
from caption_client.outcome import Outcome, map_ahead
from model import images
from model.config import SearchConfig
from model.errors import ImageError
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine

BATCH = 16  # pictures the engine takes at once
DECODERS = 2  # threads

Read = Callable[[str], bytes]
Decoded = tuple[str, NDArray[np.uint8] | None, Image | None, str | None]


def params(given: dict[str, Any]) -> CaptionParams:
    """What was `given` on the command line; raises `ValueError` with the options that are wrong."""
    try:
        return CaptionParams(**given)
    except ValidationError as error:
        wrong = (f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}" for e in error.errors())
        raise ValueError("; ".join(wrong)) from error


def engine(model: Path | None, device: str, name: str, threads: int) -> CaptionEngine:
    """The engine the options describe; raises `CaptionModelError`."""
    return load_engine(model or DEFAULT_MODEL, device, name, threads)  # type: ignore[arg-type]  # argparse has checked


def search_config(engine: CaptionEngine, params: CaptionParams) -> SearchConfig:
    """The search that `params` ask of `engine`; raises `ConfigError` for words that it does not know, among others."""
    made = params.search_config(engine.config.search)
    engine.constraints(made)
    return made


def outcomes(
    names: Iterable[str],
    read: Read,
    engine: CaptionEngine,
    search_config: SearchConfig,
    params: CaptionParams,
    max_pixels: int,
) -> Iterator[Outcome]:
    """Caption `names` with `engine`: pictures are decoded in threads while the engine works on a batch."""
    size = engine.config.preprocess.size
    images.limit_pixels(max_pixels)

    def decode(name: str) -> Decoded:
        try:
            picture = images.read(read(name), max_pixels, size)  # without limits: the user can stop this process
        except (ImageError, OSError, ExifToolError) as error:
            return name, None, None, message(error)
        about = Image(picture.width, picture.height, picture.format)
        return name, engine.preprocess(picture.image), about, None

    pool = ThreadPoolExecutor(DECODERS)
    try:
        decoded = map_ahead(pool, decode, names, 2 * BATCH)
        while batch := list(islice(decoded, BATCH)):
            good = [pixels for _, pixels, _, _ in batch if pixels is not None]
            answered = iter(engine.answers(good, search_config, params.explain))
            for name, pixels, image, error in batch:
                if pixels is None or image is None:
                    yield Outcome(name, [], error=error)
                    continue
                answer = next(answered)
                if isinstance(answer, Exception):
                    print(f"caption: the model failed: {answer!r}", file=sys.stderr)
                    yield Outcome(name, [], image, "the model failed on this picture")
                    continue
                found, likely = answer
                captions = [answers.read(Caption, one.model_dump()) for one in captions_out(found, params.wording)]
                out = tags_out(engine.config.tags, likely, params.num_tags, params.wording)
                tags = None if out is None else [Tag(tag.text, tag.probability) for tag in out]
                bare = is_decorative(pixels, image.width, image.height)
                review = bare or engine.wants_review(found[0])
                alt = "" if bare else alt_text(captions[0].text)
                yield Outcome(name, captions, image, None, alt, review, bare, tags)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Explanations:
    """The page of `--explain`, with the pictures in it."""

    def __init__(self, path: Path, read: Read, max_pixels: int) -> None:
        self._file, self._read, self._max_pixels = ExplanationFile(path), read, max_pixels

    def add(self, outcome: Outcome) -> None:
        """Add a picture that has captions; raises `OSError`, which also says what cannot be decoded."""
        assert outcome.image is not None
        try:
            picture = images.read(self._read(outcome.name), self._max_pixels, SIDE // 2)
        except ImageError as error:
            raise OSError(str(error)) from error
        caption = CaptionOut.model_validate(answers.plain(outcome.captions[0]))
        self._file.add(outcome.name, picture.image, (outcome.image.width, outcome.image.height), caption)

    def close(self) -> None:
        self._file.close()


def message(error: Exception) -> str:
    """What to tell the user of it, without the file name that stands beside it anyway."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
