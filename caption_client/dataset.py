"""Tables of captions to train on: `metadata.jsonl` of the ImageFolder of `datasets`, and the same in Parquet.

A row has `file_name`, relative to the table's folder, `text`, `confidence` and, if asked for, `tags`. Parquet cannot be
added to: its rows stand in a file of JSON lines beside it until the run ends, and a run that was killed goes on there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from caption_client import files
from caption_client.files import Done, ForeignFileError

MAKER = {b"made_by": b"caption-service"}  # in the Parquet file's own metadata
ROWS = 10_000  # of a row group


def file_name(name: str, table: Path | None) -> str:
    """The picture's path from the table's folder; raises `ValueError` where it is not below that, or not UTF-8."""
    folder = os.path.abspath(table.parent if table else ".")
    relative = os.path.relpath(os.path.abspath(name), folder)
    if relative == os.pardir or relative.startswith(os.pardir + os.sep):
        raise ValueError(f"not below {folder}, where the table is: its file_name would lead nowhere")
    try:
        relative.encode()
    except UnicodeEncodeError as error:
        raise ValueError("its name is not UTF-8, as a table's text has to be") from error
    return relative


def text_of(caption: str, tags: list[str], prefix: str, suffix: str) -> str:
    """A caption as training tools want it: with words before and behind it, and tags after commas."""
    text = f"{prefix}{caption}{suffix}"
    return ", ".join([text.removesuffix("."), *tags]) if tags else text


def journal(path: Path) -> Path:
    """Where the rows of an unfinished Parquet file stand."""
    return path.with_name(f"{path.name}.jsonl")


def done(path: Path) -> set[str]:
    """The `file_name`s that a Parquet file of ours and its journal hold. Raises `ForeignFileError`."""
    names = set(Done(journal(path), "imagefolder").names)
    if path.is_file() and path.stat().st_size:
        parquet = _ours(path)
        for batch in parquet.iter_batches(columns=["file_name"]):
            names |= set(batch.column(0).to_pylist())
    return names


@contextmanager
def parquet(path: Path, *, go_on: bool, force: bool) -> Iterator[TextIO]:
    """Takes rows as JSON lines, which become the Parquet file at the end.

    go_on: behind the rows that are there. force: in place of a file that is not ours; else `ForeignFileError`.
    """
    before: Path | None = None
    if path.is_file() and path.stat().st_size:
        try:
            _ours(path)
            before = path if go_on else None
        except ForeignFileError:
            if not force:
                raise
    with files.output(journal(path), "imagefolder", None, go_on=go_on, force=force) as rows:
        yield rows
    with files.written_aside(path) as aside:
        _write(aside, before, journal(path))
    journal(path).unlink()


def _write(path: Path, before: Path | None, rows: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile, ParquetWriter

    columns = {"file_name": pa.string(), "text": pa.string(), "confidence": pa.float64(), "tags": pa.list_(pa.string())}
    schema = pa.schema(columns, metadata=MAKER)
    with ParquetWriter(path, schema) as writer, rows.open(encoding="utf-8") as lines:
        if before is not None:
            for batch in ParquetFile(before).iter_batches(ROWS):
                writer.write_table(pa.Table.from_batches([batch]).cast(schema))
        while group := [json.loads(line) for line in islice(lines, ROWS)]:
            writer.write_table(pa.Table.from_pylist(group, schema))


def _ours(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        opened = ParquetFile(path)
    except pa.ArrowInvalid:
        opened = None
    if opened is None or not MAKER.items() <= (opened.schema_arrow.metadata or {}).items():
        raise ForeignFileError(
            f"{path} was not written by caption --parquet; choose another file, or --force to replace it"
        )
    return opened
