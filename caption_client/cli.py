"""`caption`: captions for pictures, folders, globs and standard input, with the model in this process or a server.

A run of any length needs constant memory: pictures are read a little ahead of the engine, in batches,
and every result is written as it comes. What comes out is in the order the pictures were found.
A server is asked with httpx alone; the model is imported only where there is no server to ask.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, TypeVar

from caption_client import __version__, alt_text, answers, files
from caption_client.alt_text import AltText, AltTextError
from caption_client.answers import Caption, Image
from caption_client.client import CHUNK_BYTES, CaptionClient, CaptionError
from caption_client.files import STDIN, Done, ForeignFileError, Kind

if TYPE_CHECKING:
    from app.local import Explanations

REQUESTS = 3  # in flight to a server: enough to keep it busy, and most of its queue is left to others
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit statuses
ALIKE = (0, 401, 403, 404)  # statuses after which the next picture would fare no better
MARK = b'class="explained-file"'  # in every page that --explain wrote

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One picture's captions, best first, or why there are none."""

    name: str
    captions: list[Caption]
    image: Image | None = None
    error: str | None = None


class CannotStartError(Exception):
    """What was asked for is not to be had; the message says why, and what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 if any picture failed, 2 if it could not start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names are bytes, not always UTF-8
    try:
        if arguments[:1] == ["serve"]:
            with _model_needed("caption serve"):
                from app.__main__ import main as serve

            return serve(arguments[1:])
        if arguments[:1] == ["mcp"]:
            with _model_needed("caption mcp"):
                from app.compat.mcp import main as mcp

            return mcp(arguments[1:])
        return _main(arguments)
    except BrokenPipeError:  # `caption ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print("caption: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (CannotStartError, CaptionError, AltTextError, ForeignFileError, OSError) as error:
        print(f"caption: {error}", file=sys.stderr)
        return USAGE


def _main(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.skip_existing and not (options.output or options.write_alt):
        parser.error("--skip-existing needs --output or --write-alt: where to look for what exists")
    if options.output and not (options.json or options.csv):
        parser.error("--output needs --json or --csv")
    if options.write_alt and STDIN in options.pictures:
        parser.error("--write-alt has no place to write to for standard input")
    _stdin.cache_clear()
    if options.server:
        return _run(options, partial(_at_server, options=options, given=_given(options)))
    with _model_needed("captioning without --server"):
        from app import local
    try:
        params = local.params(_given(options))
    except ValueError as error:
        parser.error(str(error))
    return _run(options, partial(_in_process, options=options, params=params))


@contextmanager
def _model_needed(what: str) -> Iterator[None]:
    """Says what to install where only the client is."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CannotStartError(
            f"{what} needs the model, and {error.name} is not installed here: install caption-service, "
            "or ask a service with --server URL"
        ) from error


def _in_process(names: Iterable[str], options: argparse.Namespace, params: Any) -> Iterator[Outcome]:
    from app import local
    from model.errors import CaptionModelError

    try:
        engine = local.engine(options.model, options.device, options.engine, options.threads)
    except CaptionModelError as error:
        raise CannotStartError(str(error)) from error
    return local.outcomes(names, _bytes, engine, params, options.max_pixels)


def _at_server(names: Iterable[str], options: argparse.Namespace, given: dict[str, Any]) -> Iterator[Outcome]:
    logging.getLogger("caption_client").addHandler(_handler())
    try:
        client = CaptionClient(options.server, options.api_key)
    except ValueError as error:
        raise CannotStartError(f"--server: {error}") from error
    # A wrong address or key is one message, not one for each picture.
    limits = client.model().get("limits", {})
    return at_server(names, client, given, int(limits.get("max_images", 1)))


def at_server(names: Iterable[str], client: CaptionClient, given: dict[str, Any], most: int) -> Iterator[Outcome]:
    """Caption `names` with the service `client` talks to: `most` a request, several requests at a time."""

    def ask(group: Sequence[_Read]) -> list[Outcome]:
        good = [read.data for read in group if read.data is not None]
        try:
            results = iter(client.captions(good, **given))
        except CaptionError as error:
            if error.status in ALIKE or error.code == "bad_parameter":
                raise
            return [Outcome(read.name, [], error=read.error or error.detail) for read in group]
        return [_outcome(read, results) for read in group]

    pool = ThreadPoolExecutor(REQUESTS)
    try:
        for outcomes in ahead(pool, ask, _groups(names, most), REQUESTS + 1):
            yield from outcomes
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        client.close()


class _Read(NamedTuple):
    name: str
    data: bytes | None = None
    error: str | None = None


def _groups(names: Iterable[str], most: int) -> Iterator[list[_Read]]:
    """The pictures' bytes, as many together as go into one request."""
    group: list[_Read] = []
    size = 0
    for name in names:
        try:
            read = _Read(name, _bytes(name))
        except OSError as error:
            read = _Read(name, error=error.strerror or str(error))
        size += len(read.data or b"")
        if group and (len(group) == most or size > CHUNK_BYTES):
            yield group
            group, size = [], len(read.data or b"")
        group.append(read)
    if group:
        yield group


def _outcome(read: _Read, results: Iterator[answers.Result]) -> Outcome:
    if read.data is None:
        return Outcome(read.name, [], error=read.error)
    answer = next(results)
    if answer.result is None:
        return Outcome(read.name, [], error=answer.error.detail if answer.error else "the service said nothing of it")
    return Outcome(read.name, answer.result.captions, answer.result.image)


def ahead(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], window: int) -> Iterator[B]:
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


def _run(options: argparse.Namespace, start: Callable[[Iterable[str]], Iterator[Outcome]]) -> int:
    kind: Kind = "json" if options.json else "csv" if options.csv else "text"
    failed: list[tuple[str, str]] = []  # pictures, and why
    unseen: list[tuple[str, str]] = []  # folders and globs, and why
    kept = 0
    stopped: CaptionError | KeyboardInterrupt | None = None
    with ExitStack() as stack:
        place = stack.enter_context(AltText(options.write_alt)) if options.write_alt else None
        wanted = partial(_wanted, options=options, done=_done(options, kind), place=place)
        total = sum(1 for _ in filter(wanted, files.find(options.pictures)))
        names = filter(wanted, files.find(options.pictures, lambda *trouble: unseen.append(trouble)))
        if not total:
            list(names)
            _tell("not looked into:", unseen)
            everything = any(True for _ in files.find(options.pictures))
            print("caption: nothing left to do" if everything else "caption: no pictures found", file=sys.stderr)
            return USAGE if not everything else FAILED if unseen else OK
        page = stack.enter_context(_explanations(options)) if options.explain else None
        outcomes = start(names)
        file = stack.enter_context(
            files.output(options.output, kind, sys.stdout, go_on=options.skip_existing, force=options.force)
        )
        writer = _Writer(file, kind, several=total > 1)
        bar = stack.enter_context(_progress(total))
        try:
            for outcome in outcomes:
                outcome, left_alone = _keep(outcome, page, place, options.force)
                kept += left_alone
                writer.write(outcome)
                if outcome.error is not None:
                    failed.append((outcome.name, outcome.error))
                bar.update()
        except (CaptionError, KeyboardInterrupt) as error:
            if isinstance(error, CaptionError) and not bar.n:
                raise
            stopped = error  # what is done is kept
    if kept:
        print(f"caption: {kept} of {total} pictures kept another text; --force replaces it", file=sys.stderr)
    _tell("not looked into:", unseen)
    _tell(f"{len(failed)} of {total} pictures failed:", failed)
    if stopped:
        why = "interrupted" if isinstance(stopped, KeyboardInterrupt) else f"stopped: {stopped}"
        print(f"caption: {why}; --skip-existing goes on from here", file=sys.stderr)
    if isinstance(stopped, KeyboardInterrupt):
        return INTERRUPTED
    return FAILED if failed or unseen or stopped else OK


def _tell(what: str, of: Sequence[tuple[str, str]]) -> None:
    if of:
        print(f"caption: {what}", *(f"  {name}: {why}" for name, why in of), sep="\n", file=sys.stderr)


def _keep(outcome: Outcome, page: Explanations | None, place: AltText | None, force: bool) -> tuple[Outcome, bool]:
    """Put `outcome` where else it was asked for, its own error if that goes wrong; and whether a text was kept."""
    if outcome.error is not None or outcome.image is None:
        return outcome, False
    try:
        if page:
            page.add(outcome)
        kept = place is not None and not place.write(Path(outcome.name), outcome.captions[0].text, force)
    except (AltTextError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Outcome(outcome.name, outcome.captions, outcome.image, why), False
    return outcome, kept


class _Writer:
    """Writes outcomes to `file` as text, as one JSON object a line, or as CSV."""

    def __init__(self, file: TextIO, kind: Kind, several: bool) -> None:
        self.file, self.kind, self.several = file, kind, several
        self.csv = csv.writer(file, lineterminator="\n")
        if kind == "csv" and not (file.seekable() and file.tell()):
            self.csv.writerow(files.HEADER)

    def write(self, outcome: Outcome) -> None:
        """Write one outcome, and flush it: a run that is stopped keeps what it has done."""
        best = outcome.captions[0] if outcome.captions else None
        if self.kind == "json":
            made = {
                "path": outcome.name,
                "caption": best and best.text,
                "confidence": best and best.confidence,
                "captions": [answers.plain(caption) for caption in outcome.captions],
                "image": outcome.image and answers.plain(outcome.image),
                "error": outcome.error,
            }
            print(json.dumps({k: v for k, v in made.items() if v}, ensure_ascii=False), file=self.file)
        elif self.kind == "csv":
            row = (best.text, f"{best.confidence:.6f}") if best else ("", "")
            self.csv.writerow(map(files.to_cell, (outcome.name, *row, outcome.error or "")))
        else:
            for caption in outcome.captions:
                print(f"{outcome.name}: {caption.text}" if self.several else caption.text, file=self.file)
        self.file.flush()


@contextmanager
def _explanations(options: argparse.Namespace) -> Iterator[Explanations]:
    """The page of --explain, which takes its place when all is written."""
    with _model_needed("--explain"):
        from app.local import Explanations
    path: Path = options.explain
    if path.is_file() and path.stat().st_size and not options.force and MARK not in path.read_bytes():
        raise ForeignFileError(f"{path} was not written by caption --explain; choose another file, or --force")
    with files.written_aside(path) as aside, closing(Explanations(aside, _bytes, options.max_pixels)) as page:
        yield page


def _done(options: argparse.Namespace, kind: Kind) -> set[str]:
    """The pictures that need not be captioned for --output again."""
    if not options.output:
        return set()
    try:
        done = Done(options.output, kind)
    except ForeignFileError:
        if not options.force:
            raise
        return set()
    return done.names if options.skip_existing else set()


def _wanted(name: str, options: argparse.Namespace, done: set[str], place: AltText | None) -> bool:
    """False for what --skip-existing skips: everything that was asked for is there already."""
    if not options.skip_existing:
        return True
    if options.output and name not in done:
        return True
    try:
        return place is not None and place.read(Path(name)) is None
    except (AltTextError, OSError):
        return True  # captioning it says what is wrong


def _bytes(name: str) -> bytes:
    return _stdin() if name == STDIN else Path(name).read_bytes()


@cache
def _stdin() -> bytes:
    return sys.stdin.buffer.read()


class _NoBar:
    """Counts; for where no progress is shown."""

    n = 0

    def update(self) -> None:
        self.n += 1


def _progress(total: int) -> AbstractContextManager[Any]:
    """A context of tqdm's bar on a terminal, if tqdm is installed, which the client does not ask for."""
    if total > 1 and sys.stderr.isatty() and not sys.stdout.isatty():
        with suppress(ModuleNotFoundError):
            from tqdm import tqdm

            return tqdm(total=total, unit=" pictures")
    return nullcontext(_NoBar())


@cache
def _handler() -> logging.Handler:
    """Shows on standard error what the client waits for."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(f"caption: {record.getMessage()}", file=sys.stderr)

    return Handler()


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The captioning parameters that were given; the others are the model's, or the server's, to choose."""
    names = ("num_captions", "beam_size", "max_length", "strategy", "temperature", "top_p", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return {**given, "explain": True} if options.explain else given


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caption",
        description="Say in a sentence what each picture shows. `caption serve` starts the HTTP service instead, "
        "`caption mcp` the Model Context Protocol over standard input and output.",
        epilog="Exit status: 0 when every picture got its caption, 1 when any failed or a folder was not looked into, "
        "2 when nothing could start.",
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="a file, a folder, a glob in quotes, or - for standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--csv", action="store_true", help="path, caption, confidence, error")
    add("-o", "--output", type=Path, metavar="FILE", help="write the JSON or CSV there")
    add("--explain", type=Path, metavar="FILE.html", help="also write one self-contained page that shows why")
    add(
        "--write-alt",
        choices=alt_text.PLACES,
        help="keep it with the picture: in PICTURE.jpg.txt (sidecar), in PICTURE.txt (txt), or in a JPEG's XMP (xmp); "
        "a text that a person wrote there is kept",
    )
    add("--skip-existing", action="store_true", help="leave out what --output or --write-alt has already")
    add("--force", action="store_true", help="let --output, --explain and --write-alt replace what others wrote")
    add("-n", "--num-captions", type=int, metavar="N", help="captions for each picture, 1 to 5")
    add("--beam-size", type=int, metavar="N", help="beams to search with; 1 is greedy")
    add("--max-length", type=int, metavar="N", help="most words of a caption")
    add("--strategy", choices=("beam", "sample"), help="the likeliest caption, or one that is drawn")
    add("--temperature", type=float, metavar="T", help="when drawing: above 1 more varied, below 1 safer")
    add("--top-p", type=float, metavar="P", help="when drawing: only from the likeliest words of this mass")
    add("--seed", type=int, metavar="N", help="when drawing: the same seed draws the same captions")
    add("--server", metavar="URL", help="ask a running service instead of loading the model here")
    add("--api-key", default=os.environ.get("CAPTION_API_KEY"), help="the server's key; default: $CAPTION_API_KEY")
    add("--model", type=Path, metavar="FOLDER", help="checkpoint; default: the one inside")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--engine", choices=("auto", "torch", "openvino"), default="auto")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads; 0 takes as many as there are")
    add(
        "--max-pixels",
        type=_positive,
        default=os.environ.get("CAPTION_MAX_PIXELS", "50000000"),
        metavar="N",
        help="most pixels of a picture; default: $CAPTION_MAX_PIXELS or 50000000",
    )
    add("--version", action="version", version=f"caption {__version__}")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
