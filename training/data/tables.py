"""Tables of captions: CSV in its kinds, JSON lines, and whatever else is rows with named columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.errors import DataError
from training.data.listing import Entry, json_of, text_of
from training.data.places import PICTURE_SUFFIXES, is_picture
from training.data.splits import split_in, split_of

# Names of columns, without case, digits, spaces and signs ("caption_2" is a caption); earlier ones win.
IMAGE = ("filename", "filepath", "imagename", "imagepath", "imagefile", "imagefilename", "image", "img", "imgpath",
         "path", "file", "picture", "photo", "bild", "bilddatei", "datei", "dateiname")  # fmt: skip
CAPTION = ("caption", "captions", "comment", "sentence", "sentences", "title", "raw", "description", "text",
           "beschreibung", "bildbeschreibung", "bildunterschrift")  # fmt: skip
SPLIT = ("split", "subset", "partition")
_DELIMITERS = ",;\t|"
_KNOWN = "a column of pictures (such as image, file_name, filepath) and one of captions (such as caption, title, text)"
# A row that a quote swallowed: the name of a picture after a line end.
_SWALLOWED = re.compile(rf"\n[^\n]{{0,200}}({'|'.join(map(re.escape, sorted(PICTURE_SUFFIXES)))})\"?[{_DELIMITERS}]")


def read_table(file: Path) -> list[Entry]:
    """Rows of a CSV (comma, semicolon, tab or bar; header or not), of a captions.txt, or of JSON lines."""
    split = split_in(file.stem)
    if file.suffix == ".jsonl":
        lines = enumerate(text_of(file).split("\n"), 1)
        records = [json_of(line, f"{file}, line {number}") for number, line in lines if line.strip()]
        return entries_of(records, str(file), split)
    text = text_of(file)
    if not text.strip():
        return []
    delimiter, header = _heading(file, text)
    rows = _rows(file, text, delimiter, header)
    names = header or ([str(i) for i in range(len(rows[0]))] if rows else [])
    return entries_of([dict(zip(names, row, strict=True)) for row in rows], str(file), split)


def columns_of(names: Sequence[str], first: Mapping[str, Any], where: str) -> tuple[str, list[str], str | None]:
    """The columns of pictures, captions and splits. `first` is a row: a value like "a.jpg" tells pictures too."""
    plain = {name: re.sub(r"[\W_\d]+", "", name.casefold()) for name in names}
    image = next((name for word in IMAGE for name in names if plain[name] == word), None)
    image = image or next((name for name in names if is_picture(str(first.get(name)))), None)
    split = next((name for word in SPLIT for name in names if plain[name] == word), None)
    word = next((word for word in CAPTION for name in names if plain[name] == word and name != image), None)
    captions = [name for name in names if plain[name] == word]
    if not captions and image:  # with two columns the other one needs no name
        captions = [name for name in names if name not in (image, split)]
    if image is None or (word is None and len(captions) != 1):
        raise DataError(f"{where}: looked for {_KNOWN} among the columns {', '.join(map(repr, names)) or '(none)'}")
    return image, captions, split


def entries_of(records: Sequence[Any], where: str, split: str | None = None) -> list[Entry]:
    """Entries of records, one a caption or one a picture; `split` is that of the whole file where no column is."""
    if not records:
        return []
    if not all(isinstance(record, Mapping) for record in records):
        raise DataError(f"{where}: expected an object a record, with {_KNOWN}")
    names = list(dict.fromkeys(str(name) for record in records for name in record))
    image, columns, split_column = columns_of(names, records[0], where)
    captions: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    for number, record in enumerate(records, 1):
        name = record.get(image)
        if not isinstance(name, str | int) or not str(name).strip():
            raise DataError(f"{where}, record {number}: no name of a picture in {image!r}: {str(record)[:80]}")
        name = str(name).strip()
        captions.setdefault(name, []).extend(caption for column in columns for caption in texts_in(record.get(column)))
        mine = split_of(record.get(split_column)) if split_column else split
        if splits.setdefault(name, mine) != mine:
            raise DataError(f"{where}, record {number}: {name} is already in the split {splits[name]}")
    return [Entry(name, mine, splits[name]) for name, mine in captions.items()]


def texts_in(value: Any) -> Iterable[str]:
    """The captions in a field: a text, a list of texts, such a list as JSON, or Karpathy's sentences."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = json_of(value, "")
        except DataError:
            return [value]
    if isinstance(value, Mapping):
        value = value.get("raw")
    if value is None:
        return []
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [text for inner in value for text in texts_in(inner)]
    return [str(value)]


def _heading(file: Path, text: str) -> tuple[str, list[str] | None]:
    """The delimiter, and the header where there is one."""
    lines = [line for line in text.split("\n", 20)[:20] if line.strip()][:2]
    parted = {mark: [[cell.strip() for cell in next(csv.reader([line], delimiter=mark))] for line in lines]
              for mark in _DELIMITERS}  # fmt: skip
    for mark, rows in parted.items():  # names of columns that are known
        plain = {re.sub(r"[\W_\d]+", "", name.casefold()) for name in rows[0]}
        if plain & {*IMAGE} and plain & {*CAPTION}:
            return mark, rows[0]
    for mark, rows in parted.items():  # no header: the first line already holds a picture
        if len(rows[0]) > 1 and any(map(is_picture, rows[0])):
            return mark, None
    for mark, rows in parted.items():  # a header in another language, then a picture
        if len(rows[0]) > 1 and any(any(map(is_picture, row)) for row in rows[1:]):
            return mark, rows[0]
    raise DataError(f"{file}: looked for {_KNOWN}, parted by comma, semicolon, tab or bar; it begins {lines[0][:80]!r}")


def _rows(file: Path, text: str, delimiter: str, header: Sequence[str] | None) -> list[list[str]]:
    """The cells of every row. Where it is no strict CSV, a row is a line, and the last cell is all that is left of it.

    The usual copies of Flickr8k and many files made by hand have captions with commas and quotes, but no quotes
    around them.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [row for row in reader if any(cell.strip() for cell in row)]
        width = len(rows[0])
        odd = next((row for row in rows if len(row) != width), None)
        swallowed = any(_SWALLOWED.search(cell) for row in rows for cell in row if "\n" in cell)
        reason = f"{odd} has not {width} cells" if odd else "a quote is never closed" if swallowed else ""
    except csv.Error as error:
        reason = f"line {reader.line_num}: {error}"
    if not reason:
        return rows[1:] if header else rows

    width = len(header) if header else 2
    expected = delimiter.join(header or ("image", "caption"))
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or (number == 1 and header):
            continue
        cells = [_unquote(cell.strip()) for cell in line.split(delimiter, width - 1)]
        if len(cells) != width:
            raise DataError(f"{file}, line {number}: expected {expected!r}, not {line[:80]!r} (as CSV: {reason})")
        rows.append(cells)
    return rows


def _unquote(cell: str) -> str:
    """A cell written by a CSV library: in quotes, its own quotes doubled. Any other is left as it is."""
    inside = cell[1:-1]
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if quoted else cell
