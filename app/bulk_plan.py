"""What a bulk run captions, and in which pieces: written down once, so that a run that is stopped can go on.

A plan is a Parquet file of which each row group is a shard: up to `SHARD` pictures that one worker captions into one
file of answers, named after the shard. So an answer has one place, whoever writes it and however often: nothing is
written twice. A shard without its file is still to be done: nothing is lost. Pictures that come later get a plan of
their own.

Folders, globs, files and URLs (whatever pyarrow.fs or fsspec opens) are looked into; in them, pictures, tars in
WebDataset's layout, and Parquet tables that hold pictures or say where they are.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import posixpath
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from caption_client import files
from model.errors import CaptionModelError

SHARD = 500  # pictures: some seconds of a core, which is what a worker that dies loses
PLANS, RUN = "_plan", "_plan/run.json"  # readers of Parquet folders pass over names that begin so
SCHEMA = pa.schema(
    [("name", pa.string()), ("file", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("row", pa.int64())]
)
BYTES = ("image", "bytes", "picture", "jpg", "jpeg", "png", "webp", "content", "data")  # columns, likeliest first
PATHS = ("path", "image", "file", "file_name", "filename", "image_path", "url", "uri")
NAMES = ("name", "path", "key", "__key__", "id", "file_name", "filename", "url")
WHOLE_WRITES = ("s3", "gcs", "abfs")  # stores in which a file appears when it is complete
Trouble = Callable[[str, str], None]  # is told what could not be looked into, and why


class BulkError(CaptionModelError):
    """The run cannot start, or go on; the message says what to do."""


class Item(NamedTuple):
    """A picture: a file, some bytes of a file (a tar's member), or a row of a Parquet table."""

    name: str
    file: str
    offset: int = -1
    size: int = -1
    row: int = -1


class Place:
    """A folder or file, local or at a URL."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.remote = "://" in location
        if not self.remote:
            self.filesystem: pa.fs.FileSystem = pa.fs.LocalFileSystem()
            self.path = os.path.abspath(location)
            return
        try:
            self.filesystem, self.path = pa.fs.FileSystem.from_uri(location)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            import fsspec

            try:
                opened, self.path = fsspec.core.url_to_fs(location)
            except (ImportError, ValueError) as error:
                raise BulkError(f"{location} cannot be opened: {error}") from error
            self.filesystem = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(opened))

    def __truediv__(self, name: str) -> Place:
        return Place(self.url(f"{self.path.rstrip('/')}/{name}") if self.remote else os.path.join(self.location, name))

    def url(self, path: str) -> str:
        """What is at `path`, in or below this folder, as a location of its own; options of a URL (`?`) stay."""
        folder, mark, options = self.location.partition("?")
        return f"{folder.rstrip('/')}{path.removeprefix(self.path.rstrip('/'))}{mark}{options}"

    def kind(self) -> pa.fs.FileType:
        return self.filesystem.get_file_info(self.path).type

    def exists(self) -> bool:
        return bool(self.kind() != pa.fs.FileType.NotFound)

    def open(self) -> IO[bytes]:
        """For reading at any place of it."""
        opened: IO[bytes] = self.filesystem.open_input_file(self.path)
        return opened

    def read(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            content: bytes = stream.read()
        return content

    @contextmanager
    def written(self) -> Iterator[IO[bytes]]:
        """A stream; what is written to it is there under this name when the block ends well, whole or not at all."""
        parent = posixpath.dirname(self.path)
        self.filesystem.create_dir(parent, recursive=True)
        if self.filesystem.type_name in WHOLE_WRITES:
            with self.filesystem.open_output_stream(self.path) as stream:
                yield stream
            return
        aside = f"{parent}/_aside-{uuid.uuid4().hex}"
        try:
            with self.filesystem.open_output_stream(aside) as stream:
                yield stream
            self.filesystem.move(aside, self.path)
        except BaseException:
            if self.filesystem.get_file_info(aside).type != pa.fs.FileType.NotFound:
                self.filesystem.delete_file(aside)
            raise

    def names(self) -> list[str]:
        """What is in this folder, without what is below."""
        selector = pa.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self.filesystem.get_file_info(selector))


# --- what there is -----------------------------------------------------------------------------------


def find(inputs: Iterable[str], column: str | None, trouble: Trouble) -> Iterator[Item]:
    """Every picture that `inputs` name, in order. column: of Parquet tables; None takes the likeliest."""
    for location in inputs:
        found = False
        for file in _files(location, trouble):
            for item in _items(file, column, trouble):
                found = True
                if any("\ud800" <= letter <= "\udfff" for letter in item.name):
                    trouble(item.name, "its name is not UTF-8, which tables hold")
                    continue
                yield item
        if not found:
            trouble(location, "no picture there")


def _files(location: str, trouble: Trouble) -> Iterator[str]:
    """Files that are pictures or hold some."""
    if "://" not in location:
        if not os.path.isdir(location) and not glob.has_magic(location):
            yield location
            return
        yield from files.find([location], trouble)
        if os.path.isdir(location):
            for suffix in ("tar", "parquet"):
                yield from sorted(glob.iglob(os.path.join(glob.escape(location), "**", f"*.{suffix}"), recursive=True))
        return
    base, pattern = _split_pattern(location)
    place = Place(base)
    if place.kind() == pa.fs.FileType.File:
        yield location
        return
    if not place.exists():
        trouble(location, "there is no such file or folder")
        return
    for path in _below(place.filesystem, place.path):
        if not pattern or fnmatch.fnmatch(path.removeprefix(place.path).lstrip("/"), pattern):
            yield place.url(path)


def _split_pattern(location: str) -> tuple[str, str]:
    """s3://bucket/a/*/b.jpg -> s3://bucket/a, */b.jpg."""
    scheme, _, path = location.partition("://")
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return f"{scheme}://{'/'.join(parts[:first])}", "/".join(parts[first:])


def _below(filesystem: pa.fs.FileSystem, folder: str) -> Iterator[str]:
    """Files in and below a folder, a folder at a time: a library of millions is never listed at once."""
    entries = sorted(filesystem.get_file_info(pa.fs.FileSelector(folder)), key=lambda info: info.base_name)
    for info in entries:
        if info.base_name.startswith((".", "_")):
            continue
        if info.type == pa.fs.FileType.Directory:
            yield from _below(filesystem, info.path)
        elif info.base_name.lower().endswith((*files.SUFFIXES, ".tar", ".parquet")):
            yield info.path


def _items(file: str, column: str | None, trouble: Trouble) -> Iterator[Item]:
    plain = (file.partition("?")[0] if "://" in file else file).lower()
    try:
        if plain.endswith(".tar"):
            yield from _of_tar(file)
        elif plain.endswith(".parquet"):
            yield from _of_table(file, column)
        else:
            yield Item(file, file)
    except (OSError, tarfile.TarError, pa.ArrowException) as error:
        trouble(file, str(error))


def _of_tar(file: str) -> Iterator[Item]:
    with Place(file).open() as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # which it would keep
            if member.isfile() and member.name.lower().endswith(files.SUFFIXES):
                yield Item(f"{file}/{member.name}", file, member.offset_data, member.size)


def _of_table(file: str, column: str | None) -> Iterator[Item]:
    with Place(file).open() as raw:
        table = pq.ParquetFile(raw)
        schema = table.schema_arrow
        _, path_column = _picture_column(schema, column, file)
        named = next((n for n in NAMES if n in schema.names and _is_text(schema.field(n).type)), None)
        column = path_column or named
        row = 0
        if column is None:
            yield from (Item(f"{file}#{row}", file, row=row) for row in range(table.metadata.num_rows))
            return
        for batch in table.iter_batches(10_000, columns=[column]):
            for name in batch.column(0).to_pylist():
                if path_column:
                    yield Item(name or "", _beside(file, name or ""))
                else:
                    yield Item(name or f"{file}#{row}", file, row=row)
                row += 1


def _beside(table: str, path: str) -> str:
    """Where a path in a table leads: as it is where it says so itself, else from the table's own folder."""
    return path if "://" in path or os.path.isabs(path) else posixpath.join(posixpath.dirname(table), path)


def _picture_column(schema: pa.Schema, wanted: str | None, file: str) -> tuple[str | None, str | None]:
    """The column that holds pictures, or the one that says where they are."""
    names = [wanted] if wanted else schema.names
    holding = [n for n in names if n in schema.names and _holds_bytes(schema.field(n).type)]
    leading = [n for n in names if n in schema.names and _is_text(schema.field(n).type)]
    for likely, found in ((BYTES, holding), (PATHS, leading)):
        best = sorted((n for n in found if wanted or n in likely), key=lambda n: likely.index(n) if n in likely else -1)
        if best:
            return (best[0], None) if found is holding else (None, best[0])
    if len(holding) == 1:
        return holding[0], None
    raise BulkError(f"{file} has no column of pictures or paths that is known; name one of {schema.names} by --column")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # as Hugging Face's data sets have it: {bytes, path}
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def read(items: Sequence[Item], column: str | None) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Each item with a function that reads its bytes, which raises `OSError`; rows of a table come as they are read."""
    for item in items:
        if item.row >= 0:
            break
        yield item, (lambda item=item: _bytes_of(item))  # type: ignore[misc]
    tables: dict[str, list[Item]] = {}
    for item in items:
        if item.row >= 0:
            tables.setdefault(item.file, []).append(item)
    for file, mine in tables.items():
        yield from _rows(file, mine, column)


def _bytes_of(item: Item) -> bytes:
    if item.offset < 0:
        return Place(item.file).read()
    with Place(item.file).open() as raw:
        raw.seek(item.offset)
        return raw.read(item.size)


def _rows(file: str, items: Sequence[Item], column: str | None) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Of a table only the row groups that are needed, some rows at a time."""
    wanted = {item.row: item for item in items}
    with Place(file).open() as raw:
        table = pq.ParquetFile(raw)
        holding, _ = _picture_column(table.schema_arrow, column, file)
        first = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if any(first <= row < first + count for row in wanted):
                row = first
                for batch in table.iter_batches(16, row_groups=[group], columns=[holding]):
                    for value in batch.column(0):
                        if row in wanted:
                            content = value.as_py()
                            content = content.get("bytes") if isinstance(content, dict) else content
                            yield wanted[row], (lambda content=content: content or b"")  # type: ignore[misc]
                        row += 1
            first += count


# --- the plan ----------------------------------------------------------------------------------------


class Shard(NamedTuple):
    """A row group of a plan."""

    plan: str
    group: int
    pictures: int

    @property
    def answers(self) -> str:
        """The name of the file that its answers are written to."""
        return f"part-{self.plan}-{self.group:06d}.parquet"


class Plan:
    """What is to be done for the answers in the folder `output`."""

    def __init__(self, output: Place) -> None:
        self.output = output

    def check(self, run: dict[str, Any]) -> None:
        """Write down what decides the answers; raises `BulkError` where the folder holds answers of another run."""
        place = self.output / RUN
        if place.exists():
            there = json.loads(place.read())
            if other := [key for key in run if there.get(key) != run[key]]:
                said = "; ".join(f"{key} was {there.get(key)!r}, now {run[key]!r}" for key in other)
                raise BulkError(f"{self.output.location} holds answers of another run ({said}); take another folder")
            return
        if any(name.endswith(".parquet") for name in self.output.names()):
            raise BulkError(f"{self.output.location} holds other Parquet files; take another folder")
        with place.written() as stream:
            stream.write(json.dumps(run).encode())

    def extend(self, items: Iterable[Item], shard: int = SHARD) -> int:
        """Add to the plan what is not in it yet; returns how many pictures that are."""
        known = np.sort(np.concatenate([_digests(items) for items in self._planned()] or [np.empty(0, np.uint64)]))
        name = f"{len(self.plans()) + 1:04d}"
        count = 0
        fresh = _unknown(items, known)
        rows = list(islice(fresh, shard))
        if not rows:
            return 0
        with (self.output / f"{PLANS}/{name}.parquet").written() as stream, pq.ParquetWriter(stream, SCHEMA) as writer:
            while rows:
                writer.write_table(pa.Table.from_pylist([row._asdict() for row in rows], SCHEMA), shard)
                count += len(rows)
                rows = list(islice(fresh, shard))
        return count

    def plans(self) -> list[str]:
        return [name.removesuffix(".parquet") for name in (self.output / PLANS).names() if name.endswith(".parquet")]

    def shards(self) -> Iterator[Shard]:
        """All of them, done or not."""
        for name in self.plans():
            with (self.output / f"{PLANS}/{name}.parquet").open() as raw:
                metadata = pq.ParquetFile(raw).metadata
                yield from (Shard(name, g, metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups))

    def left(self) -> list[Shard]:
        """The shards without answers."""
        there = set(self.output.names())
        return [shard for shard in self.shards() if shard.answers not in there]

    def items(self, shard: Shard) -> list[Item]:
        with (self.output / f"{PLANS}/{shard.plan}.parquet").open() as raw:
            return _of(pq.ParquetFile(raw).read_row_group(shard.group))

    def _planned(self) -> Iterator[list[Item]]:
        for name in self.plans():
            with (self.output / f"{PLANS}/{name}.parquet").open() as raw:
                table = pq.ParquetFile(raw)
                for group in range(table.num_row_groups):
                    yield _of(table.read_row_group(group))


def _of(table: pa.Table) -> list[Item]:
    return [Item(**row) for row in table.to_pylist()]


def _digests(items: Sequence[Item]) -> NDArray[np.uint64]:
    """Eight bytes an item: ten million are 80 MB. Of so many, one in 200,000 runs would take a new one for known."""
    digests = [hashlib.blake2b(repr(tuple(item)).encode(errors="replace"), digest_size=8).digest() for item in items]
    return np.frombuffer(b"".join(digests), np.uint64)


def _unknown(items: Iterable[Item], known: NDArray[np.uint64]) -> Iterator[Item]:
    iterator = iter(items)
    while chunk := list(islice(iterator, 1000)):
        digests = _digests(chunk)
        at = np.searchsorted(known, digests)
        there = np.zeros(len(chunk), bool) if not len(known) else known[np.minimum(at, len(known) - 1)] == digests
        yield from (item for item, is_known in zip(chunk, there, strict=True) if not is_known)
