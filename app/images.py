"""Bytes from anywhere -> an RGB picture, or an error that says why not. The bytes are never trusted.

A picture's format is told by its first bytes (a file's name and content type are not believed) and
its number of pixels is read from its header before anything is decoded. Files that may cost more than
their header says are left to the guarded process of `app.guard`; docs/security.md has the figures.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.errors import BrokenImage, TooLarge, UnsupportedMedia
from model.preprocess import reduction

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
GUARDED = frozenset({"WEBP", "AVIF", "TIFF"})  # a lying header, or a codec inside a codec
LARGE = 12_000_000  # pixels held in full
PLAIN_SCANS = 4  # a photograph's own scan, and those of the previews in it
MAX_SCANS = 64  # of one JPEG; encoders write about 10, and each one costs a walk over the whole picture
ORIENTATION = 0x0112  # EXIF tag

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


class NeedsGuard(Exception):
    """This picture may cost too much time or memory to be decoded in the server's own process."""


def read(data: bytes, max_pixels: int, size: int, guarded: bool = False) -> Picture:
    """The first frame of `data` as RGB: upright (EXIF), alpha over white, 16 bits and floats scaled to 8.

    size: the encoder's input, in pixels; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where it
        would be shrunk as much anyway (`reduction`), which saves most of a large photograph's cost.
    guarded: whether time and memory are bounded from outside; if not, `NeedsGuard` is raised for
        pictures of more than `LARGE` pixels in memory, and for those whose header proves nothing.
    Raises `UnsupportedMedia` for what is none of `FORMATS`, `TooLarge` for more than `max_pixels`,
    `BrokenImage` for what cannot be decoded to its end. Thread-safe.
    """
    format = sniff(data)
    if format in GUARDED and not guarded:
        raise NeedsGuard
    try:
        image = Image.open(io.BytesIO(data), formats=[format])
        width, height = image.size
        if width * height > max_pixels:
            raise TooLarge(f"the picture has {width} x {height} pixels; the limit is {max_pixels} pixels in all")
        if format == "JPEG":
            factor = reduction(width, height, size)
            image.draft(None, (width // factor, height // factor))
        if not guarded:
            _check_cost(data, image, width * height)
        image.load()
        orientation = 1 if format == "TIFF" else _orientation(image)  # Pillow turns a TIFF itself
        rgb = _to_rgb(image)
        for turn in TURNS.get(orientation, ()):
            rgb = rgb.transpose(turn)
    except (TooLarge, NeedsGuard):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture has too many pixels; the limit is {max_pixels} in all") from error
    except MemoryError as error:
        raise TooLarge("the picture needs too much memory to decode") from error
    except Exception as error:  # decoders raise almost anything on hostile bytes, and none of it is our fault
        raise BrokenImage(f"the {format} picture is damaged or cut off and cannot be decoded") from error
    if orientation >= 5:
        width, height = height, width
    return Picture(rgb, width, height, format)


def sniff(data: bytes) -> str:
    """The format of `data` by its first bytes; raises `UnsupportedMedia` for what is not read here."""
    if not data:
        raise BrokenImage("the picture is empty (0 bytes)")
    for format, signature in SIGNATURES:
        if signature.match(data):
            return format
    raise UnsupportedMedia(f"not a picture in a format that is read here: {', '.join(FORMATS)}")


def _check_cost(data: bytes, image: Image.Image, pixels: int) -> None:
    """Raise `NeedsGuard` for many scans of a JPEG, or many pixels at once in memory."""
    in_memory = image.width * image.height  # a JPEG's, at its reduced size
    if image.format in ("JPEG", "MPO"):
        scans = data.count(b"\xff\xda")  # also finds those of thumbnails, and a few by chance: no harm
        if scans > MAX_SCANS:
            raise NeedsGuard
        if scans > PLAIN_SCANS or image.info.get("progressive"):
            in_memory = pixels  # several scans are collected at full size before they are reduced
    if in_memory > LARGE:
        raise NeedsGuard


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that makes sense."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith(("I", "F")):
        return _scaled_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


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
