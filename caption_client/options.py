"""What can be said on the command line of `caption`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, get_args

from caption_client import __version__, alt_text, watch
from caption_client.alt_text import TextFile
from caption_client.files import STDIN
from caption_client.metadata import DEFAULT, STANDARDS, Standard


def command_line() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="caption",
        description="Say in a sentence what each picture shows. `caption serve` starts the HTTP service instead, "
        "`caption mcp` the Model Context Protocol over standard input and output.",
        epilog="Exit status: 0 when every picture that was not skipped got its caption, 1 when any failed, a folder "
        "was not looked into or the run stopped early, 2 when nothing could start, 130 when it was interrupted.",
    )
    _add_outputs(made)
    _add_search(made)
    _add_engine(made)
    made.add_argument("--version", action="version", version=f"caption {__version__}")
    return made


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """Which pictures, and where their captions go."""
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


def _add_search(parser: argparse.ArgumentParser) -> None:
    """How captions are found; what is not given is the model's, or the server's, to choose."""
    add = parser.add_argument
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


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
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


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
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


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The captioning parameters that were given; the others are the model's, or the server's, to choose."""
    names = ("num_captions", "beam_size", "max_length", "min_length", "avoid", "start_with", "wording", "strategy",
             "temperature", "top_p", "seed")  # fmt: skip
    made = {name: value for name in names if (value := getattr(options, name)) is not None}
    return {**made, "explain": True} if options.explain else made


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


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
