"""Raw camera files: the JPEG that the camera put into them is what is captioned. ExifTool finds it."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess

from caption_client.exiftool import ExifToolError

PREVIEWS = ("JpgFromRaw", "PreviewImage", "OtherImage")


def preview(name: str) -> bytes:
    """The largest JPEG in the raw file, with the file's orientation. Raises `ExifToolError`, `OSError`."""
    program = shutil.which("exiftool")
    if program is None:
        raise ExifToolError("a raw file needs ExifTool (Debian: libimage-exiftool-perl)")
    with open(name, "rb") as file:  # ExifTool sees no name, which could be an option
        done = subprocess.run(
            [program, "-config", "", "-json", "-b", "-Orientation#", *(f"-{tag}" for tag in PREVIEWS), "-"],
            stdin=file, capture_output=True, check=False,
        )  # fmt: skip
    try:
        [tags] = json.loads(done.stdout)
    except ValueError as error:
        raise ExifToolError("ExifTool cannot read this raw file") from error
    found = [base64.b64decode(str(tags[tag]).removeprefix("base64:")) for tag in PREVIEWS if tag in tags]
    if not found:
        raise ExifToolError("a raw file without a JPEG in it")
    jpeg, orientation = max(found, key=len), tags.get("Orientation", 1)
    # What a camera puts there seldom says itself how it is turned.
    return jpeg if b"Exif\0\0" in jpeg[:64] else turned(jpeg, int(orientation))


def turned(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with EXIF of this orientation and nothing else, before its first segment."""
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
