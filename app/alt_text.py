"""Keeps a caption with its picture: in a text file beside it, or in a JPEG's XMP. The pixels are never touched.

In XMP it is written as `dc:description` and as IPTC's alt text (`Iptc4xmpCore:AltTextAccessibility`).
All other metadata, EXIF included, stays byte for byte.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

Place = Literal["sidecar", "xmp"]

XMP = b"http://ns.adobe.com/xap/1.0/\0"  # how the APP1 segment of a JPEG that holds XMP begins
EXIF = b"Exif\0\0"
NAMES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "dc": "http://purl.org/dc/elements/1.1/",
    "Iptc4xmpCore": "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/",
}
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
PROPERTIES = ("dc:description", "Iptc4xmpCore:AltTextAccessibility")
EMPTY = f'<x:xmpmeta xmlns:x="{NAMES["x"]}"><rdf:RDF xmlns:rdf="{NAMES["rdf"]}"/></x:xmpmeta>'.encode()


class AltTextError(Exception):
    """This picture cannot carry a text where it was asked to."""


def sidecar(path: Path) -> Path:
    """photo.jpg -> photo.jpg.txt."""
    return path.with_name(f"{path.name}.txt")


def read(path: Path, place: Place) -> str | None:
    """The text kept with the picture at `path`, None without one. Raises `AltTextError`, `OSError`."""
    if place == "sidecar":
        return sidecar(path).read_text("utf-8").strip() if sidecar(path).is_file() else None
    packet = _find_xmp(path.read_bytes())[2]
    if packet is None:
        return None
    found = (_parse(packet).find(f".//{_tag(name)}//{_tag('rdf:li')}") for name in reversed(PROPERTIES))
    return next((item.text for item in found if item is not None and item.text), None)


def write(path: Path, text: str, place: Place) -> None:
    """Keep `text` with the picture at `path`, in place of an older one; all or nothing. Raises as `read`."""
    if place == "sidecar":
        _replace(sidecar(path), f"{text}\n".encode())
        return
    path = path.resolve()  # a link stays a link
    data = path.read_bytes()
    start, end, packet = _find_xmp(data)
    segment = XMP + _with_text(packet or EMPTY, text)
    if len(segment) + 2 > 0xFFFF:
        raise AltTextError("the picture's XMP is too large to add to; use --write-alt sidecar")
    _replace(path, data[:start] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment + data[end:])


def _find_xmp(data: bytes) -> tuple[int, int, bytes | None]:
    """Where the XMP segment of a JPEG starts and ends, and its packet; where it belongs, where there is none."""
    if data[:3] != b"\xff\xd8\xff":
        raise AltTextError("only a JPEG can carry the text in its XMP; use --write-alt sidecar")
    at = insert = 2
    while data[at : at + 1] == b"\xff" and (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        body = data[at + 4 : end]
        if data[at + 1] == 0xE1 and body.startswith(XMP):
            return at, end, body[len(XMP) :]
        if data[at + 1] == 0xE0 or (data[at + 1] == 0xE1 and body.startswith(EXIF)):
            insert = end  # JFIF and EXIF want to be first
        at = end
    return insert, insert, None


def _parse(packet: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(packet.strip(b"\0 \r\n\t"))
    except ElementTree.ParseError as error:
        raise AltTextError("the picture's XMP is damaged; use --write-alt sidecar") from error


def _with_text(packet: bytes, text: str) -> bytes:
    """`packet` with `text` in both properties."""
    root = _parse(packet)
    for _, (prefix, uri) in ElementTree.iterparse(io.BytesIO(packet.strip(b"\0 \r\n\t")), ["start-ns"]):
        if prefix and not (prefix.startswith("ns") and prefix[2:].isdigit()):  # those are ElementTree's own
            ElementTree.register_namespace(prefix, uri)
    for prefix, uri in NAMES.items():
        ElementTree.register_namespace(prefix, uri)
    rdf = root if root.tag == _tag("rdf:RDF") else root.find(_tag("rdf:RDF"))
    if rdf is None:
        raise AltTextError("the picture's XMP is damaged; use --write-alt sidecar")
    for description in rdf.findall(_tag("rdf:Description")):
        for name in PROPERTIES:
            for old in description.findall(_tag(name)):
                description.remove(old)
    about = rdf.find(_tag("rdf:Description"))
    subject = about.get(_tag("rdf:about"), "") if about is not None else ""
    description = ElementTree.SubElement(rdf, _tag("rdf:Description"), {_tag("rdf:about"): subject})
    for name in PROPERTIES:
        alternatives = ElementTree.SubElement(ElementTree.SubElement(description, _tag(name)), _tag("rdf:Alt"))
        item = ElementTree.SubElement(alternatives, _tag("rdf:li"), {LANGUAGE: "x-default"})
        item.text = text
    begin = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    return f'{begin}{ElementTree.tostring(root, "unicode")}<?xpacket end="w"?>'.encode()


def _tag(name: str) -> str:
    prefix, local = name.split(":")
    return f"{{{NAMES[prefix]}}}{local}"


def _replace(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, then put it in its place in one step, with the old file's permissions."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if path.exists():
            shutil.copymode(path, name)
        else:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
