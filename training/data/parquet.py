"""Parquet tables (by pyarrow, where it is installed), whose pictures are bytes in a column or files elsewhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from training.data.errors import DataError
from training.data.listing import Entry, Place
from training.data.splits import split_in, split_of
from training.data.tables import columns_of, entries_of, texts_in


def read_parquet(file: Path) -> list[Entry]:
    """A row a picture with its captions, or a row a caption where the column of pictures holds names."""
    opened = _open(file)
    schema = opened.schema_arrow
    first = _first_of(opened)
    image, captions, split = columns_of(schema.names, first, str(file))
    columns = [*captions, *([split] if split else [])]
    whole = split_in(file.stem)
    if not _holds_bytes(first.get(image)):
        return entries_of(opened.read(columns=[image, *columns]).to_pylist(), str(file), whole)

    entries: list[Entry] = []
    for group in range(opened.num_row_groups):  # one at a time: the pictures of all may not fit into memory
        for record in opened.read_row_group(group, [image, *columns], use_threads=False).to_pylist():
            row, value = len(entries), record[image]
            path = value.get("path") if isinstance(value, dict) else None
            # A path is kept as well as it names the picture; the shard and the row make it unique.
            name = f"{file.stem}/{row:06}" + (f"-{Path(path).name}" if path else "")
            mine = [text for column in captions for text in texts_in(record[column])]
            place = Place(name, file, row, len(_bytes_of(value)))
            entries.append(Entry(name, mine, split_of(record[split]) if split else whole, place))
    return entries


def picture_in(file: Path, row: int) -> bytes:
    """The encoded picture of a row."""
    groups = _group_ends(file)
    group = next(number for number, end in enumerate(groups) if row < end)
    start = groups[group - 1] if group else 0
    return _pictures(file, group)[row - start]


@lru_cache(4)
def _group_ends(file: Path) -> list[int]:
    metadata = _open(file).metadata
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [sum(sizes[: group + 1]) for group in range(len(sizes))]


@lru_cache(2)  # pictures are read in order: two groups serve two threads
def _pictures(file: Path, group: int) -> list[bytes]:
    opened = _open(file)
    image, _, _ = columns_of(opened.schema_arrow.names, _first_of(opened), str(file))
    # No threads: those of pyarrow do not survive a fork.
    return [_bytes_of(value) for value in opened.read_row_group(group, [image], use_threads=False)[image].to_pylist()]


def _first_of(opened: Any) -> dict[str, Any]:
    """The first row; empty where there is none."""
    batch = next(opened.iter_batches(1, use_threads=False), None)
    return next(iter(batch.to_pylist()), {}) if batch is not None else {}


def _holds_bytes(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _bytes_of(value: Any) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content or b""


def _open(file: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{file}: reading Parquet needs pyarrow (pip install pyarrow)") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}") from error
