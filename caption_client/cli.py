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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, get_args

from caption_client import answers, dataset, files, raw, watch
from caption_client.alt_text import AltText, AltTextError, TextFile
from caption_client.client import CHUNK_BYTES, CaptionClient, CaptionError
from caption_client.exiftool import ExifToolError
from caption_client.files import STDIN, Done, ForeignFileError, Kind
from caption_client.options import check, command_line, given
from caption_client.outcome import Outcome, map_ahead
from caption_client.summary import BESIDE, KEPT, NOTHING, REVIEW, SKIPPED, UNTAGGED, Summary, say
from caption_client.summary import FAILED as FAILURES
from caption_client.watch import LATER

if TYPE_CHECKING:
    from app.local import Explanations

REQUESTS = 3  # in flight to a server: enough to keep it busy, and most of its queue is left to others
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit statuses
ALIKE = (0, 401, 403, 404)  # statuses after which the next picture would fare no better
MARK = b'class="explained-file"'  # in every page that --explain wrote

Captioner = Callable[[Iterable[str]], Iterator[Outcome]]


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
    parser = command_line()
    options = parser.parse_args(arguments)
    check(parser, options)
    _stdin.cache_clear()
    if options.server:
        return _run(options, partial(_at_server, options=options, given=given(options)))
    with _model_needed("captioning without --server"):
        from app import local
    try:
        params = local.params(given(options))
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


def _in_process(stack: ExitStack, options: argparse.Namespace, params: Any) -> Captioner:
    from app import local
    from model.errors import CaptionModelError

    try:
        engine = local.engine(options.model, options.device, options.engine, options.threads)
        search_config = local.search_config(engine, params)
    except CaptionModelError as error:
        raise CannotStartError(str(error)) from error
    return lambda names: local.outcomes(names, _bytes, engine, search_config, params, options.max_pixels)


def _at_server(stack: ExitStack, options: argparse.Namespace, given: dict[str, Any]) -> Captioner:
    logging.getLogger("caption_client").addHandler(_handler())
    try:
        client = CaptionClient(options.server, options.api_key)
    except ValueError as error:
        raise CannotStartError(f"--server: {error}") from error
    stack.callback(client.close)
    # A wrong address or key is one message, not one for each picture.
    limits = client.model().get("limits", {})
    most, stop = int(limits.get("max_images", 1)), (*ALIKE, *LATER) if options.watch else ALIKE
    return lambda names: at_server(names, client, given, most, stop)


def at_server(
    names: Iterable[str], client: CaptionClient, given: dict[str, Any], most: int, stop: Sequence[int] = ALIKE
) -> Iterator[Outcome]:
    """Caption `names` with the service `client` talks to: `most` a request, several requests at a time.

    Raises `CaptionError` of the statuses to `stop` at; others are their pictures' errors.
    """

    def ask(group: Sequence[_Read]) -> list[Outcome]:
        good = [read.data for read in group if read.data is not None]
        try:
            results = iter(client.captions(good, **given))
        except CaptionError as error:
            if error.status in stop or error.code == "bad_parameter":
                raise
            return [Outcome(read.name, [], error=read.error or error.detail) for read in group]
        return [_outcome(read, results) for read in group]

    pool = ThreadPoolExecutor(REQUESTS)
    try:
        for outcomes in map_ahead(pool, ask, _groups(names, most), REQUESTS + 1):
            yield from outcomes
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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
        except (OSError, ExifToolError) as error:
            read = _Read(name, error=getattr(error, "strerror", None) or str(error))
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
    result = answer.result
    alt = result.alt or ("" if result.decorative else None)  # a service of before says none
    return Outcome(read.name, result.captions, result.image, None, alt, result.review, result.decorative, result.tags)


def _run(options: argparse.Namespace, load: Callable[[ExitStack], Captioner]) -> int:
    stopped: CaptionError | KeyboardInterrupt | None = None
    with ExitStack() as stack:
        run = _Run(options, stack)
        summary = run.summary
        found = 0 if options.watch else sum(1 for _ in run.find())
        names = filter(run.wanted, run.find(summary.not_looked_into, summary.no_picture))
        first = None if options.watch else next(names, None)
        if first is None and not options.watch:
            summary.report(options.dry_run)
            say("nothing left to do" if found else "no pictures found")
            return USAGE if not found else FAILED if summary.failed else OK
        caption = load(stack)
        run.open(several=found != 1)
        bar = stack.enter_context(_progress(found))
        try:
            if options.watch:
                look = partial(watch.find, [options.watch], run.suffixes, summary.not_looked_into)
                watch.watch(look, run.wanted, caption, run.handle, options.interval)
            for outcome in caption(chain([first] if first is not None else [], names)):
                run.handle(outcome)
                bar.update()
        except (CaptionError, KeyboardInterrupt) as error:
            if isinstance(error, CaptionError) and not summary.captioned:
                raise
            stopped = error  # what is done is kept
    summary.report(options.dry_run)
    if options.watch and isinstance(stopped, KeyboardInterrupt):  # that is how it is ended
        return FAILED if summary.failed else OK
    if stopped:
        why = "interrupted" if isinstance(stopped, KeyboardInterrupt) else f"stopped: {stopped}"
        say(f"{why}; --skip-existing goes on from here")
    if isinstance(stopped, KeyboardInterrupt):
        return INTERRUPTED
    return FAILED if summary.failed or stopped else OK


class _Run:
    """Which pictures are wanted, where their captions go, and what is to be said of it at the end."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self.options, self._stack = options, stack
        kinds: tuple[Kind, ...] = ("json", "csv", "imagefolder", "parquet")
        self.kind: Kind = next((kind for kind in kinds if getattr(options, kind)), "text")
        self.suffixes = files.SUFFIXES + (files.RAW if options.raw else ())
        self.summary = Summary(at_once=bool(options.watch))
        self._place: AltText | None = None
        if options.write_alt:
            self._place = stack.enter_context(AltText(options.write_alt, options.metadata, options.dry_run))
        self._done = _done(options, self.kind)
        self._page: Explanations | None = None
        self._writer: _Writer | None = None

    def find(
        self, trouble: files.Trouble = lambda path, why: None, other: Callable[[str], None] = lambda path: None
    ) -> Iterator[str]:
        """The pictures that the command names."""
        return files.find(self.options.pictures, trouble, other, self.suffixes)

    def open(self, several: bool) -> None:
        """Open what is written; from here on an old file may be replaced."""
        options = self.options
        if options.explain and not options.dry_run:
            self._page = self._stack.enter_context(_explanations(options))
        path: Path | None = None if options.dry_run else options.output
        go_on, force = options.skip_existing, options.force
        file = self._stack.enter_context(
            dataset.parquet(path, go_on=go_on, force=force)
            if path and self.kind == "parquet"
            else files.output(path, self.kind, sys.stdout, go_on=go_on, force=force)
        )
        self._writer = _Writer(file, self.kind, several)

    def wanted(self, name: str) -> bool:
        """False for what --skip-existing skips: everything that was asked for is there already."""
        options = self.options
        if not options.skip_existing:
            return True
        try:
            if options.output and self._row_name(name) not in self._done:
                return True
            there = self._place is None or self._place.read(Path(name)) is not None
        except (AltTextError, OSError, ValueError):
            return True  # captioning it says what is wrong
        if there:
            self.summary.add(SKIPPED, name)
        return not there

    def handle(self, outcome: Outcome) -> None:
        """Put `outcome` where it was asked for, or its error where errors go."""
        options, summary = self.options, self.summary
        row: dict[str, Any] = {}
        if outcome.error is None:
            try:
                row = self._row(outcome)
                if self._page:
                    self._page.add(outcome)
                self._keep(outcome)
            except (AltTextError, OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                outcome = replace(outcome, error=why)
        assert self._writer is not None
        self._writer.write(outcome, row)
        if outcome.error is not None:
            summary.add(FAILURES, outcome.name, outcome.error)
            return
        summary.captioned += 1
        if options.output:
            self._done.add(self._row_name(outcome.name))
        if outcome.review and (options.output or self._place):
            summary.add(REVIEW, outcome.name)
        if options.tags and outcome.tags is None:
            summary.add(UNTAGGED, outcome.name)

    def _keep(self, outcome: Outcome) -> None:
        """The text, with the picture."""
        options, summary = self.options, self.summary
        if self._place is None:
            return
        tags = self._tags(outcome)
        text = outcome.captions[0].text
        if options.write_alt != "txt":  # which is for training
            text = text if outcome.alt is None else outcome.alt
        if not text:
            summary.add(NOTHING, outcome.name)
            return
        if options.write_alt in get_args(TextFile):
            text = dataset.text_of(text, tags, options.prefix, options.suffix)
        where, kept, why = self._place.write(Path(outcome.name), text, options.force, tags)
        if kept:
            summary.add(KEPT, outcome.name)
        if why:
            summary.add(BESIDE, outcome.name, why)
        if where and options.dry_run:
            say(f"would write {where}")

    def _row(self, outcome: Outcome) -> dict[str, Any]:
        """Of a table to train on; raises `ValueError` for a picture that it cannot name."""
        if self.kind not in ("imagefolder", "parquet"):
            return {}
        options, best, tags = self.options, outcome.captions[0], self._tags(outcome)
        text = dataset.text_of(best.text, tags, options.prefix, options.suffix)
        row = {"file_name": self._row_name(outcome.name), "text": text, "confidence": best.confidence}
        return {**row, "tags": tags} if options.tags else row

    def _row_name(self, name: str) -> str:
        """What the output calls the picture."""
        return dataset.file_name(name, self.options.output) if self.kind in ("imagefolder", "parquet") else name

    def _tags(self, outcome: Outcome) -> list[str]:
        """Those that are asked for and likely enough."""
        if not self.options.tags:
            return []
        return [tag.text for tag in outcome.tags or () if tag.probability >= self.options.min_tag]


class _Writer:
    """Writes outcomes to `file` as text, as one JSON object a line, or as CSV."""

    def __init__(self, file: TextIO, kind: Kind, several: bool) -> None:
        self.file, self.kind, self.several = file, kind, several
        self.csv = csv.writer(file, lineterminator="\n")
        if kind == "csv" and not (file.seekable() and file.tell()):
            self.csv.writerow(files.HEADER)

    def write(self, outcome: Outcome, row: dict[str, Any]) -> None:
        """Write one outcome, or its `row`, and flush it: a run that is stopped keeps what it has done."""
        best = outcome.captions[0] if outcome.captions else None
        if self.kind in ("imagefolder", "parquet"):
            if outcome.error is None:
                print(json.dumps(row, ensure_ascii=False), file=self.file)
        elif self.kind == "json":
            made = {
                "path": outcome.name,
                "caption": best and best.text,
                "confidence": best and best.confidence,
                "captions": [answers.plain(caption) for caption in outcome.captions],
                "image": outcome.image and answers.plain(outcome.image),
                "alt": outcome.alt,
                "review": outcome.review,
                "decorative": outcome.decorative,
                "tags": [answers.plain(tag) for tag in outcome.tags or ()],
                "error": outcome.error,
            }
            print(json.dumps({k: v for k, v in made.items() if v}, ensure_ascii=False), file=self.file)
        elif self.kind == "csv":
            cells = (best.text, f"{best.confidence:.6f}") if best else ("", "")
            self.csv.writerow(map(files.to_cell, (outcome.name, *cells, outcome.error or "")))
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
        names = dataset.done(options.output) if kind == "parquet" else Done(options.output, kind).names
    except ForeignFileError:
        if not options.force:
            raise
        return set()
    return names if options.skip_existing else set()


def _bytes(name: str) -> bytes:
    if name.lower().endswith(files.RAW):
        return raw.preview(name)
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


if __name__ == "__main__":
    sys.exit(main())
