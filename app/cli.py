"""`caption`: captions for pictures, folders, globs and standard input, with the model in this process or a server.

A run of any length needs constant memory: pictures are read a little ahead of the engine, in batches,
and every result is written as it comes. What comes out is in the order the pictures were found.
"""

from __future__ import annotations

import argparse
import csv
import glob
import io
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from app import alt_text, images
from app.client import CaptionClient, CaptionError
from app.errors import ServiceError
from app.explain_html import SIDE, ExplanationFile
from app.schemas import CaptionOut, CaptionParams, ImageOut, caption_out
from app.settings import DEFAULT_MODEL, Settings
from model.config import SearchConfig
from model.errors import CaptionModelError
from model.runtime.engine import CaptionEngine, load_engine

STDIN = "-"
BATCH = 16  # pictures the engine takes at once
DECODERS = 2  # threads
REQUESTS = 8  # in flight to a server
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit statuses

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One picture's captions, best first, or why there are none."""

    name: str
    captions: list[CaptionOut]
    image: ImageOut | None = None
    error: str | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 if any picture failed, 2 if it could not start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["serve"]:
        from app.__main__ import main as serve

        return serve(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.skip_existing and not (options.output or options.write_alt):
        parser.error("--skip-existing needs --output or --write-alt: where to look for what exists")
    if options.output and not (options.json or options.csv):
        parser.error("--output needs --json or --csv")
    if options.write_alt and STDIN in options.pictures:
        parser.error("--write-alt has no place to write to for standard input")
    _stdin.cache_clear()
    try:
        params = _params(options)
    except ValidationError as error:
        parser.error("; ".join(f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}" for e in error.errors()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names are bytes, not always UTF-8
    try:
        return _run(options, params)
    except (CaptionModelError, CaptionError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `caption ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        print(f"caption: {error}", file=sys.stderr)
        return USAGE


def find(paths: Iterable[str]) -> Iterator[str]:
    """Every picture that `paths` name: files, `-`, folders (all below them, by suffix) and globs, in order."""
    for path in paths:
        if path == STDIN or os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            yield from _below(path)
        elif glob.has_magic(path):
            yield from sorted(match for match in glob.iglob(path, recursive=True) if os.path.isfile(match))
        else:
            yield path  # opening it says what is wrong


def _below(folder: str) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(images.SUFFIXES) and not name.startswith("."):
                yield os.path.join(where, name)


def in_process(
    names: Iterable[str], engine: CaptionEngine, params: CaptionParams, max_pixels: int
) -> Iterator[Outcome]:
    """Caption `names` with `engine`: pictures are decoded in threads while the engine works on a batch."""
    search = params.search(engine.config.search)
    size = engine.config.preprocess.size

    def decode(name: str) -> tuple[str, NDArray[np.uint8] | None, ImageOut | None, str | None]:
        try:
            picture = images.read(_bytes(name), max_pixels, size)  # without limits: the user can stop this process
        except (ServiceError, OSError) as error:
            return name, None, None, _message(error)
        about = ImageOut(width=picture.width, height=picture.height, format=picture.format)
        return name, engine.preprocess(picture.image), about, None

    with ThreadPoolExecutor(DECODERS) as pool:
        decoded = _ahead(pool, decode, names, 2 * BATCH)
        while batch := list(islice(decoded, BATCH)):
            good = [pixels for _, pixels, _, _ in batch if pixels is not None]
            captions = iter(_captions(engine, good, search, params.explain))
            for name, pixels, image, error in batch:
                if pixels is None:
                    yield Outcome(name, [], error=error)
                    continue
                made = next(captions)
                yield Outcome(name, made, image, error=None if made else "the model failed on this picture")


def _captions(
    engine: CaptionEngine, pixels: list[NDArray[np.uint8]], search: SearchConfig, explain: bool
) -> list[list[CaptionOut]]:
    """Captions for each picture; none for one that the engine fails on, which must not fail its neighbours."""
    if not pixels:
        return []
    try:
        found = engine.caption(np.stack(pixels), search, explain)
    except Exception as error:
        if len(pixels) == 1:
            print(f"caption: the model failed: {error!r}", file=sys.stderr)
            return [[]]
        return [_captions(engine, [one], search, explain)[0] for one in pixels]
    return [[caption_out(caption) for caption in captions] for captions in found]


def at_server(names: Iterable[str], client: CaptionClient, params: CaptionParams) -> Iterator[Outcome]:
    """Caption `names` with the service `client` talks to, several requests at a time."""
    query = params.model_dump(exclude_unset=True)

    def ask(name: str) -> Outcome:
        try:
            answer = client.caption(_bytes(name), **query)
        except (CaptionError, OSError) as error:
            return Outcome(name, [], error=_message(error))
        return Outcome(name, answer.captions, answer.image)

    with ThreadPoolExecutor(REQUESTS) as pool:
        yield from _ahead(pool, ask, names, 2 * REQUESTS)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], window: int) -> Iterator[B]:
    """As `map`, in order, but never more than `window` items ahead of what was asked for."""
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) == window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _run(options: argparse.Namespace, params: CaptionParams) -> int:
    settings = Settings()
    images.limit_pixels(settings.max_pixels)
    kind = "json" if options.json else "csv" if options.csv else "text"
    done = _done(options.output, kind) if options.output and options.skip_existing else set()
    wanted = partial(_wanted, options=options, done=done)
    total = sum(1 for _ in filter(wanted, find(options.pictures)))
    if not total:
        everything = any(True for _ in find(options.pictures))
        print("caption: nothing left to do" if everything else "caption: no pictures found", file=sys.stderr)
        return OK if everything else USAGE
    failed: list[tuple[str, str]] = []
    with ExitStack() as stack:
        names = filter(wanted, find(options.pictures))
        if options.server:
            client = stack.enter_context(CaptionClient(options.server, options.api_key))
            client.model()  # a wrong address or key is one message, not one for each picture
            outcomes = at_server(names, client, params)
        else:
            engine = load_engine(options.model, options.device, options.engine, options.threads)
            outcomes = in_process(names, engine, params, settings.max_pixels)
        writer = _Writer(stack.enter_context(_output(options)), kind, several=total > 1)
        explained = stack.enter_context(ExplanationFile(options.explain)) if options.explain else None
        bar = stack.enter_context(tqdm(total=total, unit=" pictures", disable=total < 2 or not sys.stderr.isatty()))
        interrupted = False
        try:
            for outcome in outcomes:
                outcome = _keep(outcome, explained, options.write_alt, settings.max_pixels)
                with tqdm.external_write_mode(sys.stdout):
                    writer.write(outcome)
                if outcome.error is not None:
                    failed.append((outcome.name, outcome.error))
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
    if failed:
        print(f"caption: {len(failed)} of {total} pictures failed:", file=sys.stderr)
        for name, error in failed:
            print(f"  {name}: {error}", file=sys.stderr)
    if interrupted:
        print("caption: interrupted; --skip-existing goes on from here", file=sys.stderr)
        return INTERRUPTED
    return FAILED if failed else OK


def _keep(
    outcome: Outcome, explained: ExplanationFile | None, place: alt_text.Place | None, max_pixels: int
) -> Outcome:
    """Put `outcome` where else it was asked for; what goes wrong there is the picture's error."""
    if outcome.error is not None or outcome.image is None:
        return outcome
    best = outcome.captions[0]
    try:
        if explained:
            picture = images.read(_bytes(outcome.name), max_pixels, SIDE // 2)
            explained.add(outcome.name, picture.image, (outcome.image.width, outcome.image.height), best)
        if place:
            alt_text.write(Path(outcome.name), best.text, place)
    except (alt_text.AltTextError, ServiceError, OSError) as error:
        return Outcome(outcome.name, outcome.captions, outcome.image, _message(error))
    return outcome


class _Writer:
    """Writes outcomes to `file` as text, as one JSON object a line, or as CSV."""

    def __init__(self, file: TextIO, kind: str, several: bool) -> None:
        self.file, self.kind, self.several = file, kind, several
        self.csv = csv.writer(file, lineterminator="\n")
        if kind == "csv" and not (file.seekable() and file.tell()):
            self.csv.writerow(("path", "caption", "confidence", "error"))

    def write(self, outcome: Outcome) -> None:
        """Write one outcome, and flush it: a run that is stopped keeps what it has done."""
        best = outcome.captions[0] if outcome.captions else None
        if self.kind == "json":
            made = {
                "path": outcome.name,
                "caption": best and best.text,
                "confidence": best and best.confidence,
                "captions": [caption.model_dump(exclude_none=True) for caption in outcome.captions],
                "image": outcome.image and outcome.image.model_dump(),
                "error": outcome.error,
            }
            print(json.dumps({k: v for k, v in made.items() if v}, ensure_ascii=False), file=self.file)
        elif self.kind == "csv":
            row = (best.text, f"{best.confidence:.6f}") if best else ("", "")
            self.csv.writerow((outcome.name, *row, outcome.error or ""))
        else:
            for caption in outcome.captions:
                print(f"{outcome.name}: {caption.text}" if self.several else caption.text, file=self.file)
        self.file.flush()


def _output(options: argparse.Namespace) -> TextIO | nullcontext[TextIO]:
    if options.output is None:
        return nullcontext(sys.stdout)
    mode = "a" if options.skip_existing else "w"
    path: Path = options.output
    return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")  # type: ignore[return-value]


def _done(output: Path, kind: str) -> set[str]:
    """The pictures `output` has captions for; a last line that an interruption cut off is removed."""
    if not output.exists():
        return set()
    with output.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
    with output.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines) if kind == "csv" else map(json.loads, lines)
        try:
            return {row["path"] for row in rows if not row.get("error")}
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(f"{output} was not written by caption --{kind}; choose another --output") from error


def _wanted(name: str, options: argparse.Namespace, done: set[str]) -> bool:
    """False for what --skip-existing skips: everything that was asked for is there already."""
    if not options.skip_existing:
        return True
    if options.output and name not in done:
        return True
    try:
        return bool(options.write_alt) and alt_text.read(Path(name), options.write_alt) is None
    except (alt_text.AltTextError, OSError):
        return True  # captioning it says what is wrong


def _bytes(name: str) -> bytes:
    return _stdin() if name == STDIN else Path(name).read_bytes()


@cache
def _stdin() -> bytes:
    return sys.stdin.buffer.read()


def _message(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def _params(options: argparse.Namespace) -> CaptionParams:
    names = ("num_captions", "beam_size", "max_length", "strategy", "temperature", "top_p", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.explain:
        given["explain"] = True
    return CaptionParams(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caption",
        description="Say in a sentence what each picture shows. `caption serve` starts the HTTP service instead.",
        epilog="Exit status: 0 when every picture got its caption, 1 when any failed, 2 when nothing could start.",
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="a file, a folder, a glob in quotes, or - for standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--csv", action="store_true", help="path, caption, confidence, error")
    add("-o", "--output", type=Path, metavar="FILE", help="write the JSON or CSV there")
    add("--explain", type=Path, metavar="FILE.html", help="also write one self-contained page that shows why")
    add("--write-alt", choices=("sidecar", "xmp"), help="keep it with the picture: PICTURE.txt, or a JPEG's XMP")
    add("--skip-existing", action="store_true", help="leave out what --output or --write-alt has already")
    add("-n", "--num-captions", type=int, metavar="N", help="captions for each picture, 1 to 5")
    add("--beam-size", type=int, metavar="N", help="beams to search with; 1 is greedy")
    add("--max-length", type=int, metavar="N", help="most words of a caption")
    add("--strategy", choices=("beam", "sample"), help="the likeliest caption, or one that is drawn")
    add("--temperature", type=float, metavar="T", help="when drawing: above 1 more varied, below 1 safer")
    add("--top-p", type=float, metavar="P", help="when drawing: only from the likeliest words of this mass")
    add("--seed", type=int, metavar="N", help="when drawing: the same seed draws the same captions")
    add("--server", metavar="URL", help="ask a running service instead of loading the model here")
    add("--api-key", default=os.environ.get("CAPTION_API_KEY"), help="the server's key; default: $CAPTION_API_KEY")
    add("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="checkpoint; default: the one inside")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--engine", choices=("auto", "torch", "openvino"), default="auto")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes as many as there are")
    return parser


if __name__ == "__main__":
    sys.exit(main())
