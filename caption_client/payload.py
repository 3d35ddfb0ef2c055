"""What of a picture's file is not metadata: the bytes that must be the same after a text was written into it.

JPEG (ITU T.81), PNG, WebP (RIFF), TIFF 6 and HEIC/AVIF (ISO 14496-12, 23008-12) say where their pixels lie. Nothing
is decoded here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

Format = Literal["JPEG", "PNG", "WebP", "TIFF", "HEIF"]

PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME")
WEBP_METADATA = (b"VP8X", b"XMP ", b"EXIF")  # VP8X says which of the others there are
TIFF_DATA = {273: 279, 324: 325}  # where strips and tiles are -> how long
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes by type
SUB_IFDS = 330
HEIF_BRANDS = (b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"avif", b"avis")


def format_of(data: bytes) -> Format | None:
    """The format of a file that begins with `data` (64 bytes are enough), if a text can be written into it."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    return "HEIF" if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS else None


def payload(data: bytes) -> list[bytes]:
    """The pixels of a file, still encoded, and what is needed to decode them.

    Raises `ValueError`, `IndexError` or `struct.error` for a file that is not as its format says.
    """
    match format_of(data):
        case "JPEG":
            return list(_jpeg(data))
        case "PNG":
            return [chunk for kind, chunk in _png(data) if kind not in PNG_TEXTS]
        case "WebP":
            return [chunk for kind, chunk in _riff(data) if kind not in WEBP_METADATA]
        case "TIFF":
            return list(_tiff(data))
        case "HEIF":
            return list(_heif(data))
    raise ValueError("no format that carries a text")


def _jpeg(data: bytes) -> Iterator[bytes]:
    """Tables and frame headers, and from the first scan on all there is: the pixels, and what follows them."""
    at = 2
    while data[at : at + 2] != b"\xff\xda" and data[at : at + 1] == b"\xff":
        marker, size = data[at + 1], 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xFF:
            at += 1
            continue
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # applications' segments, and comments
            yield data[at : at + size]
        at += size
    yield data[at:]


def _png(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at : at + 12 + size]
        at += 12 + size


def _riff(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at < len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, data[at : at + 8 + size]
        at += 8 + size + size % 2


def _tiff(data: bytes) -> Iterator[bytes]:
    """The strips and tiles of every page, and of the pictures below it."""
    order = "<" if data.startswith(b"II") else ">"
    todo, seen = list(struct.unpack_from(f"{order}I", data, 4)), set[int]()
    while todo:
        at = todo.pop()
        if at == 0 or at in seen:
            continue
        seen.add(at)
        (count,) = struct.unpack_from(f"{order}H", data, at)
        fields: dict[int, tuple[int, ...]] = {}
        for n in range(count):
            entry = at + 2 + 12 * n
            tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
            if tag in (*TIFF_DATA, *TIFF_DATA.values(), SUB_IFDS):
                size = length * TIFF_SIZES[kind]
                where = entry + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, entry + 8)[0]
                fields[tag] = struct.unpack_from(f"{order}{length}{'H' if kind == 3 else 'I'}", data, where)
        for offsets, sizes in TIFF_DATA.items():
            for start, size in zip(fields.get(offsets, ()), fields.get(sizes, ()), strict=True):
                yield data[start : start + size]
        todo += [*fields.get(SUB_IFDS, ()), *struct.unpack_from(f"{order}I", data, at + 2 + 12 * count)]


def _heif(data: bytes) -> Iterator[bytes]:
    """The properties, and each item but EXIF's and XMP's: the pictures, their thumbnails and tiles."""
    for kind, body in _boxes(data):
        if kind == b"moov":
            raise ValueError("a sequence of pictures")
        if kind != b"meta":
            continue
        parts = dict(_boxes(body[4:]))
        yield parts.get(b"iprp", b"")
        yield parts.get(b"pitm", b"")
        texts = {item for item, what in _item_types(parts[b"iinf"]) if what in (b"Exif", b"mime")}
        for item, extents in _item_extents(parts[b"iloc"]):
            if item not in texts:
                for method, start, size in extents:
                    within = {0: data, 1: parts.get(b"idat", b"")}[method]
                    yield struct.pack(">I", item) + within[start : start + size or None]


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        size = size or len(data) - at
        if size < head:
            raise ValueError("a box that ends before it begins")
        yield kind, data[at + head : at + size]
        at += size


def _item_types(iinf: bytes) -> Iterator[tuple[int, bytes]]:
    for kind, infe in _boxes(iinf[6:] if iinf[0] == 0 else iinf[8:]):
        if kind != b"infe" or infe[0] < 2:
            raise ValueError("items without types")
        wide = infe[0] > 2
        yield int.from_bytes(infe[4 : 8 if wide else 6]), infe[10:14] if wide else infe[8:12]


def _item_extents(iloc: bytes) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Each item and its extents: (from where, 0 is the file and 1 `idat`; where it begins; how long it is)."""
    at, version = 6, iloc[0]
    offset_size, length_size, base_size, index_size = iloc[4] >> 4, iloc[4] & 15, iloc[5] >> 4, iloc[5] & 15

    def read_int(size: int) -> int:
        nonlocal at
        at += size
        if at > len(iloc):
            raise ValueError("a table of items that is cut off")
        return int.from_bytes(iloc[at - size : at])

    for _ in range(read_int(2 if version < 2 else 4)):
        item = read_int(2 if version < 2 else 4)
        method = read_int(2) & 15 if version else 0
        read_int(2)  # which file; 0 is this one
        base = read_int(base_size)
        extents = []
        for _ in range(read_int(2)):
            if version:
                read_int(index_size)
            extents.append((method, base + read_int(offset_size), read_int(length_size)))
        yield item, extents
