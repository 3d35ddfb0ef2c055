"""Bytes from anywhere -> an RGB picture, or an error that says why not. The bytes are never trusted.

A picture's format is told by its first bytes (a file's name and content type are not believed) and
its number of pixels is read from its header before anything is decoded. What a file costs none of that
tells: the service calls this in processes with limits (`app.pictures.decoder`); docs/security.md has the figures.
Training reads its pictures with it too, so that what was measured is what is served.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageCms, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from model.errors import BrokenImage, ImageError, TooCostly, TooLarge, UnsupportedMedia, UnsupportedVariant
from model.preprocess import reduction

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".heic", ".heif", ".hif"),
    *(".gif", ".bmp", ".dib", ".tif", ".tiff"),
)  # of files that folder scans take for pictures
DEAREST = 20  # bytes that a decoder may need for a pixel
ORIENTATION = 0x0112  # EXIF tag
BITS_PER_SAMPLE, PHOTOMETRIC, SUB_IFDS, DNG_VERSION = 258, 262, 330, 50706  # TIFF tags
SRGB = ImageCms.createProfile("sRGB")
SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # mode -> what an ICC profile for it is of

HEVC = rb"(?:heic|heix|heim|heis|hevc|hevx|hevm|hevs)"
SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    # A brand that names the codec, the file's own or a compatible one; mif1 and msf1 name none.
    ("AVIF", re.compile(rb"....ftyp(?:avif|avis)", re.DOTALL)),
    ("HEIF", re.compile(rb"....ftyp" + HEVC, re.DOTALL)),
    ("AVIF", re.compile(rb"....ftyp(?:mif1|msf1|miaf|1pic|MiHB)....(?:.{4}){0,30}?(?:avif|avis)", re.DOTALL)),
    ("HEIF", re.compile(rb"....ftyp(?:mif1|msf1|mif2|miaf|1pic|MiHB)", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    # The second header's size too: two letters are too few to tell a picture from a text.
    ("BMP", re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),
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
# How decoders word it that a file may be sound and still is not for them; the numbers are TIFF's compressions.
NOT_OURS = re.compile(
    r"unsupported|not supported|not implemented|unknown (pixel mode|data organization|compression)"
    r"|cannot handle|samples per pixel|no codec available|has not been built in|invalid palette size|^\d+$",
    re.IGNORECASE,
)
# AVIF and HEIF are boxes of boxes, of standards that grow: an unknown kind is not told from one with wrong bytes. Many
# files are sound nevertheless: sequences without a still picture, or cropped ones, which libheif takes for liars. And a
# BMP's run lengths may end early, which leaves the rest as it is.
UNSURE = re.compile(
    r"decode image: (?:BMFF parsing failed|Missing or empty image item)|Security limit exceeded: Image size"
    r"|^Invalid input: (?!.*(?:end of file|File size too small))|not enough image data"
)
ITEM_SIZE = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)  # width and height of an AVIF's or HEIF's item, as its box says
LAYERED = re.compile(rb"....ftyp(?:heim|heis|hevm|hevs)", re.DOTALL)  # HEVC of several layers

OUT_OF_MEMORY = re.compile(r"out of memory|memory allocation error(?!: security limit)", re.IGNORECASE)

pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
Image.preinit()
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


def read(data: bytes, max_pixels: int, size: int = 0, memory: float = float("inf")) -> Picture:
    """The first frame of `data` as sRGB: upright (EXIF), alpha over white, 16 bits and floats scaled to 8.

    size: the encoder's input, in pixels; what is much larger comes at 1/2, 1/4, ... of its size
        (`reduction`), a JPEG decoded so, which saves most of a large photograph's cost. 0: at full size.
    memory: bytes that the process may take for it; it tells what failed for want of them from what is damaged.
    Raises `UnsupportedMedia` for what is none of `FORMATS`, `UnsupportedVariant` for what Pillow cannot
    read of them, `TooLarge` for more than `max_pixels`, `TooCostly` when memory runs out, `BrokenImage`
    for what cannot be decoded to its end. Thread-safe. Time and memory are bounded by the caller, if at all.
    """
    format = sniff(data)
    width, height = _webp_size(data) if format == "WEBP" else (0, 0)  # its decoder takes memory while it opens
    try:
        _check_size(width, height, max_pixels)
        image = _open(data, format)
        width, height = image.size
        _check_size(width, height, max_pixels)
        if format == "JPEG" and size:
            factor = reduction(width, height, size)
            image.draft(None, (width // factor, height // factor))
        image.load()
        orientation = 1 if format == "TIFF" else _orientation(image)  # Pillow turns a TIFF itself
        rgb = _to_srgb(image, size)
        for turn in TURNS.get(orientation, ()):
            rgb = rgb.transpose(turn)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture has too many pixels; the limit is {max_pixels} in all") from error
    except MemoryError as error:
        raise TooCostly("the picture needs too much memory to decode") from error
    except Exception as error:  # decoders raise almost anything on hostile bytes, and none of it is our fault
        if OUT_OF_MEMORY.search(str(error)) or width * height * DEAREST > memory:  # not all of them say so
            raise TooCostly("the picture needs too much memory to decode") from error
        if NOT_OURS.search(str(error)) or LAYERED.match(data):
            raise UnsupportedVariant(f"a variant of {format} that is not read here") from error
        for said in ITEM_SIZE.findall(data) if format in ("AVIF", "HEIF") else ():  # refused before it told its size
            width, height = struct.unpack(">II", said)
            _check_size(width, height, max_pixels)
        if UNSURE.search(str(error)) and _is_whole(data, format):
            raise UnsupportedVariant(f"damaged, or a variant of {format} that is not read here") from error
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


def _is_whole(data: bytes, format: str) -> bool:
    """Whether a file is as long as it says: a BMP in its header, the boxes of an AVIF or HEIF together."""
    if format == "BMP":
        return 0 < int.from_bytes(data[2:6], "little") <= len(data)
    if format not in ("AVIF", "HEIF"):
        return False
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:
            return size == 0  # the last box, which goes on to the end
        at += size
    return at == len(data)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooLarge(f"the picture has {width} x {height} pixels; the limit is {max_pixels} pixels in all")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by a WebP's header, of each of its three kinds; (0, 0) without one."""
    head = data[12:30].ljust(18, b"\0")
    if head.startswith(b"VP8X"):
        return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(head[15:18], "little")
    if head.startswith(b"VP8L"):
        bits = int.from_bytes(head[9:13], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[14:16], "little") & 0x3FFF, int.from_bytes(head[16:18], "little") & 0x3FFF


def _open(data: bytes, format: str) -> Image.Image:
    """The picture with its header read; `Image.open` would not say what a decoder does not like."""
    factory, _ = Image.OPEN[format]
    image = factory(io.BytesIO(data), "")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        # A camera's raw file is a TIFF that begins with a small preview, or says what it is.
        if DNG_VERSION in tags or data[8:10] == b"CR" or (SUB_IFDS in tags and tags.get(254, 0) & 1):
            raise UnsupportedVariant("a camera's raw file, which is not read here")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that makes sense."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_srgb(image: Image.Image, size: int) -> Image.Image:
    """Any mode and colour space -> sRGB, shrunk by the `reduction` for `size`, if that is not 0."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _scaled_to_8_bits(image)
    elif image.has_transparency_data:
        image = _over_white(image)
    elif image.mode not in (*SPACES, "LAB"):
        image = image.convert("RGB")
    if size and (factor := reduction(*image.size, size)) > 1:
        image = image.reduce(factor)  # before its colours are converted: that costs much
    if image.mode == "LAB":
        profile = b""  # the mode says it all
    if isinstance(profile, bytes) and (transform := _from_profile(profile, image.mode)):
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


@lru_cache(8)
def _from_profile(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What turns pixels of an ICC profile into sRGB; None where they are that, or the profile is no use."""
    try:
        if mode == "LAB":
            return ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, mode, "RGB")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != SPACES[mode]:
            return None
        if (source.profile.profile_description or "").startswith("sRGB"):
            return None
        return ImageCms.buildTransform(source, SRGB, mode, "RGB")
    except MemoryError:
        raise
    except Exception:  # a broken profile says nothing about the pixels
        return None


def _scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits, or of floats -> 8 bits. `convert` would clip at 255 instead.

    Integers of up to 16 bits keep their full scale; for wider ones and floats, whose scale nobody
    states, the darkest value becomes black and the brightest white.
    """
    values: NDArray[np.generic] = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = min(tags.get(BITS_PER_SAMPLE, (16,))[0], 16)
    if image.mode.startswith("I;16") or (
        image.mode == "I" and values.size and values.min() >= 0 and 255 < values.max() <= 65535
    ):
        scaled = (values >> (bits - 8)).astype(np.uint8)
    else:
        floats = np.nan_to_num(values.astype(np.float32), posinf=0, neginf=0)
        low, high = float(floats.min()), float(floats.max())
        scaled = ((floats - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow sees to for 8 bits and fewer only
        scaled = 255 - scaled
    return Image.fromarray(scaled)
