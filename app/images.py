"""Bytes from anywhere -> an RGB picture, or an error that says why not. The bytes are never trusted.

What is checked before Pillow decodes anything: the format by its first bytes (a file's name and
content type are not believed), the number of pixels in the header, and for JPEG the number of
scans. docs/security.md has the reasons and the measurements.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from app.errors import BrokenImage, TooLarge, UnsupportedMedia

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
MAX_SCANS = 64  # of one JPEG; encoders write about 10, and each one costs a walk over the whole picture
LARGE = 12_000_000  # pixels held in full; larger pictures are decoded one at a time
ORIENTATION = 0x0112  # EXIF tag
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags

# Each needs the whole first 12 bytes, except where a shorter signature is the format's own.
SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftyp(avif|avis|mif1|msf1)", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("BMP", re.compile(rb"BM")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
)
TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}

# Pillow only warns between one and two times its limit, and about metadata it cannot read.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("error", Image.DecompressionBombWarning)

_one_large_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture; `width` and `height` are the file's, `image` may be smaller (see `read`)."""

    image: Image.Image
    width: int
    height: int
    format: str


def limit_pixels(pixels: int) -> None:
    """Make Pillow itself refuse pictures of more than `pixels`: some decoders allocate while they open."""
    Image.MAX_IMAGE_PIXELS = pixels


def read(data: bytes, max_pixels: int, size: int) -> Picture:
    """The first frame of `data` as RGB: upright (EXIF), alpha over white, 16 bits and floats scaled to 8.

    size: the encoder's input, in pixels; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size while
        that leaves at least twice this, which saves most of a large photograph's cost.
    Raises `UnsupportedMedia` for what is none of `FORMATS`, `TooLarge` for more than `max_pixels`,
    `BrokenImage` for what cannot be decoded to its end. Thread-safe.
    """
    if not data:
        raise BrokenImage("the picture is empty (0 bytes)")
    format = sniff(data)
    try:
        image = Image.open(io.BytesIO(data), formats=[format])
        width, height = image.size
        if width * height > max_pixels:
            raise TooLarge(f"the picture has {width} x {height} pixels; the limit is {max_pixels} pixels in all")
        _check_structure(data, image, max_pixels)
        if format == "JPEG":
            image.draft(None, (2 * size, 2 * size))
        with _one_large_at_a_time if image.width * image.height > LARGE else nullcontext():
            image.load()
            orientation = 1 if format == "TIFF" else _orientation(image)  # Pillow turns a TIFF itself
            rgb = _to_rgb(image)
            for turn in TURNS.get(orientation, ()):
                rgb = rgb.transpose(turn)
        if orientation >= 5:
            width, height = height, width
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture has too many pixels; the limit is {max_pixels} in all") from error
    except (TooLarge, BrokenImage):
        raise
    except Exception as error:  # decoders raise almost anything on hostile bytes, and none of it is our fault
        raise BrokenImage(f"the {format} picture is damaged or cut off and cannot be decoded") from error
    return Picture(rgb, width, height, format)


def sniff(data: bytes) -> str:
    """The format of `data` by its first bytes; raises `UnsupportedMedia` for what is not read here."""
    for format, signature in SIGNATURES:
        if signature.match(data):
            return format
    raise UnsupportedMedia(f"not a picture in a format that is read here: {', '.join(FORMATS)}")


def _check_structure(data: bytes, image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Refuse small files that make a decoder work or allocate out of all proportion to the picture."""
    if image.format in ("JPEG", "MPO") and image.info.get("progressive") and count_scans(data) > MAX_SCANS:
        raise BrokenImage(f"the JPEG has more than {MAX_SCANS} scans")
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if int(tags.get(TILE_WIDTH, 1)) * int(tags.get(TILE_LENGTH, 1)) > max(max_pixels // 4, 1024 * 1024):
            raise TooLarge("the TIFF's tiles are too large")


def count_scans(data: bytes) -> int:
    """Scans of the JPEG `data`, up to its end-of-image marker; what follows that is no part of the picture."""
    scans, at = 0, 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return scans  # not a marker: the decoder will say so
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:  # end of image
            return scans
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA:  # start of scan: its header, then data up to the next marker
            scans += 1
            if scans > MAX_SCANS:
                return scans
            found = _MARKER.search(data, at)
            if found is None:
                return scans
            at = found.start()
    return scans


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in scan data, FF00 is a byte and FFD0-D7 restart it


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that makes sense."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _scaled_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")  # returns a copy where it is RGB already


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits, or of floats -> 8 bits. `convert` would clip at 255 instead.

    16 bits keep their full scale; for wider integers and floats, whose scale nobody states, the
    darkest value becomes black and the brightest white.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "I" and values.size and values.min() >= 0 and 255 < values.max() <= 65535:
        return Image.fromarray((values >> 8).astype(np.uint8))
    values = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
