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

from caption_client import __version__, alt_text, answers, dataset, files, raw, watch
from caption_client.alt_text import AltText, AltTextError, TextFile
from caption_client.client import CHUNK_BYTES, CaptionClient, CaptionError
from caption_client.exiftool import ExifToolError
from caption_client.files import STDIN, Done, ForeignFileError, Kind
from caption_client.metadata import DEFAULT, STANDARDS, Standard
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
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
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


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a message for options that do not go together."""
    where = options.output or options.write_alt
    if not (options.pictures or options.watch):
        parser.error("the following arguments are required: PICTURE")
    if options.skip_existing and not where:
        parser.error("--skip-existing needs --output or --write-alt: where to look for what exists")
    if options.watch and not where:
        parser.error("--watch needs --output or --write-alt: where to keep what it makes")
    if options.watch and (options.pictures or options.dry_run or options.explain):
        parser.error("--watch goes without PICTURE, --dry-run and --explain")
    if options.output and not (options.json or options.csv or options.imagefolder or options.parquet):
        parser.error("--output needs --json, --csv, --imagefolder or --parquet")
    if options.parquet and not options.output:
        parser.error("--parquet needs --output")
    if options.write_alt and STDIN in options.pictures:
        parser.error("--write-alt has no place to write to for standard input")
    in_text = options.write_alt in get_args(TextFile) or options.imagefolder or options.parquet
    if (options.prefix or options.suffix) and not in_text:
        parser.error("--prefix and --suffix need --write-alt txt or sidecar, --imagefolder or --parquet")
    if options.parquet:
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            parser.error("--parquet needs pyarrow, which is not installed here: pip install pyarrow")
    if options.watch and not os.path.isdir(options.watch):
        parser.error(f"--watch: {options.watch} is no folder")
    options.pictures = options.pictures or [options.watch]
    options.skip_existing |= bool(options.watch)


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


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The captioning parameters that were given; the others are the model's, or the server's, to choose."""
    names = ("num_captions", "beam_size", "max_length", "min_length", "avoid", "start_with", "wording", "strategy",
             "temperature", "top_p", "seed")  # fmt: skip
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return {**given, "explain": True} if options.explain else given


def _metadata(text: str) -> tuple[Standard, ...]:
    names = tuple(text.lower().split(","))
    chosen = tuple(standard for standard in STANDARDS if standard in names)
    if not chosen or len(chosen) != len(names):
        raise argparse.ArgumentTypeError(f"some of {','.join(STANDARDS)}")
    return chosen


def _probability(text: str) -> float:
    if not 0 <= (number := float(text)) <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return number


def _seconds(text: str) -> float:
    if not 0 < (number := float(text)) < 86400:
        raise argparse.ArgumentTypeError("must be above 0, and less than a day")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caption",
        description="Say in a sentence what each picture shows. `caption serve` starts the HTTP service instead, "
        "`caption mcp` the Model Context Protocol over standard input and output.",
        epilog="Exit status: 0 when every picture that was not skipped got its caption, 1 when any failed, a folder "
        "was not looked into or the run stopped early, 2 when nothing could start, 130 when it was interrupted.",
    )
    add = parser.add_argument
    add("pictures", nargs="*", metavar="PICTURE", help="a file, a folder, a glob in quotes, or - for standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--csv", action="store_true", help="path, caption, confidence, error")
    form.add_argument("--imagefolder", action="store_true", help="file_name, text, confidence: rows of metadata.jsonl")
    form.add_argument("--parquet", action="store_true", help="the same as a Parquet file")
    add("-o", "--output", type=Path, metavar="FILE", help="write these there")
    add("--explain", type=Path, metavar="FILE.html", help="also write one self-contained page that shows why")
    add(
        "--write-alt",
        choices=alt_text.PLACES,
        help="keep it with the picture: in PICTURE.jpg.txt (sidecar), in PICTURE.txt (txt), in the picture's own "
        "metadata or, where that is not to be had, an XMP file (xmp), in PICTURE.jpg.xmp (xmp-sidecar) or PICTURE.xmp "
        "(xmp-stem); a text that a person wrote there is kept",
    )
    add(
        "--metadata",
        type=_metadata,
        default=DEFAULT,
        metavar="xmp,iptc,exif",
        help="what --write-alt xmp writes: some of these; default: xmp",
    )
    add("--tags", action="store_true", help="keep tags too: as keywords in metadata, after the text in text files")
    add("--min-tag", type=_probability, default=0.5, metavar="P", help="only tags at least this likely; default: 0.5")
    add("--prefix", default="", metavar="TEXT", help="before the caption in text files and rows to train on")
    add("--suffix", default="", metavar="TEXT", help="behind it")
    add("--raw", action="store_true", help="take raw camera files in folders too; needs ExifTool")
    add("--watch", metavar="FOLDER", help="caption what arrives there, until Ctrl-C; skips as --skip-existing does")
    add("--interval", type=_seconds, default=watch.INTERVAL, metavar="S", help="seconds between two looks; default: 2")
    add("--dry-run", action="store_true", help="say what would be written, and write nothing")
    add("--skip-existing", action="store_true", help="leave out what --output or --write-alt has already")
    add("--force", action="store_true", help="let --output, --explain and --write-alt replace what others wrote")
    add("-n", "--num-captions", type=int, metavar="N", help="captions for each picture, 1 to 5")
    add("--beam-size", type=int, metavar="N", help="beams to search with; 1 is greedy")
    add("--max-length", type=int, metavar="N", help="most words of a caption")
    add("--min-length", type=int, metavar="N", help="fewest words of a caption")
    add("--avoid", metavar="WORDS", help="words that no caption has, between commas")
    add("--start-with", metavar="WORDS", help="words that every caption begins with, such as 'a photo of'")
    add("--wording", choices=("as-said", "gender-neutral"), help="gender-neutral: 'a person' and 'their' for guesses")
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
        type=positive,
        default=os.environ.get("CAPTION_MAX_PIXELS", "50000000"),
        metavar="N",
        help="most pixels of a picture; default: $CAPTION_MAX_PIXELS or 50000000",
    )
    add("--version", action="version", version=f"caption {__version__}")
    return parser


def positive(text: str) -> int:
    """An argument that is a number of 1 or more."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
