from __future__ import annotations

import io
import random
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.errors import of_image
from model import images
from model.config import PreprocessConfig
from model.errors import BrokenImage, TooLarge, UnsupportedMedia, UnsupportedVariant
from model.images import Picture
from model.preprocess import to_pixels
from tests.pictures import CONTENT_TYPES, FORMATS, bombs, encode, plain, png, quarters

LIMIT = 50_000_000
# What lossy codecs may change, in levels; palettes of 256 web colours are coarser.
TOLERANCE = {"JPEG": 4, "WEBP": 6, "AVIF": 6, "HEIF": 6}


@pytest.fixture(autouse=True)
def pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", LIMIT)


def read(data: bytes, max_pixels: int = LIMIT, size: int = 224) -> Picture:
    return images.read(data, max_pixels, size)


def colour(image: Image.Image) -> tuple[float, ...]:
    return tuple(np.asarray(image, np.float64).reshape(-1, 3).mean(axis=0))


@pytest.mark.parametrize("format", FORMATS)
def test_reads_every_format(format: str) -> None:
    picture = read(plain((200, 40, 90), format))
    assert (picture.width, picture.height, picture.format) == (24, 16, format)
    assert picture.image.mode == "RGB"
    assert colour(picture.image) == pytest.approx((200, 40, 90), abs=TOLERANCE.get(format, 0))


@pytest.mark.parametrize(
    ("mode", "value", "format", "expected"),
    [
        ("1", 1, "PNG", (255, 255, 255)),
        ("1", 1, "TIFF", (255, 255, 255)),
        ("L", 70, "PNG", (70, 70, 70)),
        ("L", 70, "JPEG", (70, 70, 70)),
        ("L", 70, "AVIF", (70, 70, 70)),
        ("L", 70, "BMP", (70, 70, 70)),
        ("LA", (70, 255), "PNG", (70, 70, 70)),
        ("LA", (70, 0), "PNG", (255, 255, 255)),
        ("LA", (70, 0), "TIFF", (255, 255, 255)),
        ("RGBA", (200, 40, 90, 255), "PNG", (200, 40, 90)),
        ("RGBA", (200, 40, 90, 0), "PNG", (255, 255, 255)),
        ("RGBA", (200, 40, 90, 0), "WEBP", (255, 255, 255)),
        ("RGBA", (200, 40, 90, 0), "AVIF", (255, 255, 255)),
        ("RGBA", (200, 40, 90, 0), "TIFF", (255, 255, 255)),
        ("RGBA", (200, 40, 90, 51), "PNG", (244, 212, 222)),
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "TIFF", (255, 0, 0)),
        ("YCbCr", (76, 85, 255), "JPEG", (254, 0, 0)),
        ("I;16", 0x8040, "PNG", (128, 128, 128)),
        ("I;16", 0x8040, "TIFF", (128, 128, 128)),
        ("I;16B", 0x8040, "TIFF", (128, 128, 128)),
        ("I", 0x8040, "TIFF", (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, value: object, format: str, expected: tuple[int, int, int]) -> None:
    picture = read(encode(Image.new(mode, (24, 16), value), format))  # type: ignore[arg-type]
    assert picture.image.mode == "RGB"
    assert colour(picture.image) == pytest.approx(expected, abs=max(2, TOLERANCE.get(format, 0)))


def test_palette_with_and_without_transparency() -> None:
    image = quarters().quantize(4)
    assert colour(read(encode(image, "PNG")).image) == pytest.approx(colour(quarters()), abs=1)
    red = image.getpixel((0, 0))
    for format in ("PNG", "GIF"):
        upright = np.asarray(read(encode(image, format, transparency=red)).image)
        assert upright[0, 0].tolist() == [255, 255, 255]
        assert upright[-1, -1].tolist() == [255, 255, 0]


def test_16_bit_colour_keeps_its_scale() -> None:
    row = b"\0" + struct.pack(">HHH", 0x8040, 0x2040, 0xFFFF) * 8
    assert colour(read(png(8, 8, 16, 2, row * 8)).image) == (128, 32, 255)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.5, 7.25), (0.0, 100_000.0)])
def test_floats_are_stretched_from_black_to_white(low: float, high: float) -> None:
    values = np.linspace(low, high, 32 * 8, dtype=np.float32).reshape(8, 32)
    upright = np.asarray(read(encode(Image.fromarray(values), "TIFF")).image)
    assert upright[0, 0].tolist() == [0, 0, 0]
    assert upright[-1, -1].tolist() == [255, 255, 255]
    assert (np.diff(upright[..., 0].ravel().astype(int)) >= 0).all()


def test_floats_that_are_not_numbers_are_read_all_the_same() -> None:
    values = np.full((8, 8), np.nan, np.float32)
    values[0, 0], values[0, 1] = np.inf, 1.0
    assert read(encode(Image.fromarray(values), "TIFF")).image.size == (8, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone(format: str, orientation: int) -> None:
    # What a camera held that way stores: the picture turned by the inverse of what the tag asks for.
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = quarters()
    for turn in images.TURNS.get(orientation, ()):
        stored = stored.transpose(inverse.get(orientation, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    picture = read(encode(stored, format, exif=exif, **options))
    assert (picture.width, picture.height) == picture.image.size == (48, 32)
    upright = np.asarray(picture.image, int)
    for x, y, expected in ((8, 8, "red"), (40, 8, "green"), (8, 24, "blue"), (40, 24, "yellow")):
        assert np.abs(upright[y, x] - Image.new("RGB", (1, 1), expected).getpixel((0, 0))).max() < 24


def test_nonsense_in_the_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert read(encode(quarters(), "PNG", exif=exif)).image.size == (48, 32)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (24, 16), c) for c in ((250, 10, 10), (10, 250, 10), (10, 10, 250))]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as check:
        assert check.n_frames == 3  # type: ignore[attr-defined]
    assert colour(read(data).image) == pytest.approx((250, 10, 10), abs=6)


def test_a_large_photograph_is_decoded_small_and_looks_the_same() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
    picture = images.read(encode(photo, "JPEG", quality=90), LIMIT, 224)
    assert (picture.width, picture.height) == (4000, 3000)
    assert picture.image.size == (1000, 750)  # 1/4: at 1/8 the height would be less than twice 224
    small, full = (to_pixels(i, PreprocessConfig(size=224)).astype(int) for i in (picture.image, photo))
    assert np.abs(small - full).mean() < 2


@pytest.mark.parametrize(("width", "height"), [(4000, 3000), (1000, 2999), (961, 480), (3003, 2001), (479, 9000)])
def test_the_encoder_sees_the_same_however_much_of_a_jpeg_is_decoded(width: int, height: int) -> None:
    few = np.random.default_rng(1).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    data = encode(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=90)
    reduced, full = images.read(data, LIMIT, 240).image, Image.open(io.BytesIO(data))
    assert (reduced.size == full.size) == (min(width, height) < 960)
    one, other = (to_pixels(picture, PreprocessConfig(size=240)).astype(int) for picture in (reduced, full))
    assert np.abs(one - other).mean() < 0.3
    assert np.abs(one - other).max() <= 5


@pytest.mark.parametrize(
    "data",
    [
        b"hello, world",
        b"<!doctype html><title>x</title>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        b"%PDF-1.7\n",
        b"PK\x03\x04\x14\0\0\0\0\0",
        b"\x7fELF\x02\x01\x01",
        b"8BPS\0\x01",
        b"P6 1 1 255\n\xff\xff\xff",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0\0\x01\0\x01\0\x10\x10",
    ],
)
def test_what_is_no_picture_or_of_another_format_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        read(data + bytes(100))


def test_nothing_is_broken_not_unsupported() -> None:
    with pytest.raises(BrokenImage, match="0 bytes"):
        read(b"")


@pytest.mark.parametrize("format", FORMATS)
def test_every_prefix_is_refused_or_read(format: str) -> None:
    data = encode(quarters((16, 12)), format)
    refused = 0
    for length in range(len(data)):
        try:
            picture = read(data[:length])
        except (BrokenImage, UnsupportedMedia, UnsupportedVariant):
            refused += 1
        else:  # some formats end with bytes that hold no pixels
            assert picture.image.size == (16, 12)
    assert refused > 0.75 * len(data)


@pytest.mark.parametrize("format", FORMATS)
def test_flipped_bytes_are_refused_or_read(format: str) -> None:
    rng = random.Random(format)
    data = encode(quarters((16, 12)), format)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        try:
            picture = read(bytes(damaged), max_pixels=1_000_000)
        except (BrokenImage, TooLarge, UnsupportedMedia, UnsupportedVariant):
            refused += 1
        else:
            assert picture.image.mode == "RGB"
            assert picture.image.width * picture.image.height <= 1_000_000
    assert refused > 0


@pytest.mark.parametrize("format", FORMATS)
def test_a_header_with_too_many_pixels_is_refused(format: str) -> None:
    with pytest.raises((TooLarge, BrokenImage)) as caught:
        read(bombs()[format])
    assert isinstance(caught.value, TooLarge) or format in ("AVIF", "HEIF")  # they refuse before they tell a size


@pytest.mark.parametrize("format", FORMATS)
def test_the_limit_is_exact(format: str) -> None:
    data = plain((1, 2, 3), format, (20, 10))
    assert read(data, max_pixels=200).width == 20
    with pytest.raises(TooLarge, match="20 x 10"):
        read(data, max_pixels=199)


def test_content_types_name_every_format() -> None:
    assert set(CONTENT_TYPES) == set(images.FORMATS)


def tiff(photometric: int, bits: tuple[int, ...], pixels: bytes, size: tuple[int, int] = (4, 4), *more: Any) -> bytes:
    """An uncompressed little-endian TIFF written by hand; `more` are entries (tag, type, value)."""
    width, height = size
    entries = {256: (4, width), 257: (4, height), 259: (3, 1), 262: (3, photometric), 277: (3, len(bits)),
               278: (4, height), 279: (4, len(pixels)), **{tag: rest for tag, *rest in more}}  # fmt: skip
    count = len(entries) + 2
    depths_at = 8 + 2 + 12 * count + 4
    depths = struct.pack(f"<{len(bits)}H", *bits)
    entries[273] = (4, depths_at + 8)
    packed = {tag: struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in entries.items()}
    packed[258] = struct.pack("<HHII", 258, 3, len(bits), bits[0] if len(bits) == 1 else depths_at)
    if len(bits) == 2:  # they fit into the entry itself
        packed[258] = struct.pack("<HHIHH", 258, 3, 2, *bits)
    directory = struct.pack("<H", count) + b"".join(packed[tag] for tag in sorted(packed)) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + depths.ljust(8, b"\0") + pixels


@pytest.mark.parametrize(("photometric", "expected"), [(0, 255 - 0x80), (1, 0x80)])
def test_white_is_zero_is_never_read_as_a_negative(photometric: int, expected: int) -> None:
    for bits, pixels in ((8, b"\x80" * 16), (16, b"\x40\x80" * 16)):
        assert colour(read(tiff(photometric, (bits,), pixels)).image) == (expected,) * 3


def test_white_is_zero_floats() -> None:
    values = struct.pack("<16f", *range(16))
    upright = np.asarray(read(tiff(0, (32,), values, (4, 4), (339, 3, 3))).image)
    assert upright[0, 0].tolist() == [255] * 3
    assert upright[-1, -1].tolist() == [0] * 3


def test_12_bits_keep_their_scale() -> None:
    assert colour(read(tiff(1, (12,), b"\x80\x48\x04" * 8)).image) == pytest.approx((128,) * 3, abs=1)


def test_premultiplied_grey_is_read() -> None:
    data = tiff(1, (8, 8), b"\x40\x80" * 16, (4, 4), (338, 3, 1))  # half of it covered, and that half grey
    assert colour(read(data).image) == pytest.approx((191,) * 3, abs=2)


@pytest.mark.parametrize(
    "data",
    [
        tiff(2, (32, 32, 32), bytes(16 * 12), (4, 4), (339, 3, 3)),
        tiff(1, (16, 16), bytes(64), (4, 4), (338, 3, 1)),
        tiff(32803, (16,), bytes(32)),
        tiff(2, (8,) * 3, bytes(48), (4, 4), (50706, 1, 1)),
        tiff(2, (8,) * 3, bytes(48), (4, 4), (254, 4, 1), (330, 4, 8)),
        tiff(1, (8,), bytes(16), (4, 4), (259, 3, 34712)),
        b"BM" + struct.pack("<IHHI", 130, 0, 0, 66)
        + struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 32, 3, 64, 0, 0, 0, 0)
        + struct.pack("<III", 0x3FF00000, 0xFFC00, 0x3FF) + bytes(64),
    ],
    ids=["floats", "16 bits with alpha", "sensor", "DNG", "raw with a preview", "JPEG 2000 inside", "BMP bit fields"],
)  # fmt: skip
def test_a_sound_picture_that_is_not_read_here_is_not_called_damaged(data: bytes) -> None:
    with pytest.raises(UnsupportedVariant) as caught:
        read(data)
    error = of_image(caught.value)
    assert (error.status, error.code) == (415, "unsupported_variant")


@pytest.mark.parametrize(("format", "box"), [("AVIF", b"ispe"), ("AVIF", b"pitm"), ("HEIF", b"pitm")])
def test_what_may_be_sound_is_not_only_called_damaged(format: str, box: bytes) -> None:
    """Without `pitm` none of its pictures is the first one: a sequence, perhaps."""
    whole = plain((200, 40, 90), format).replace(box, b"abcd")
    with pytest.raises(UnsupportedVariant, match=f"damaged, or a variant of {format} that is not read here"):
        read(whole)
    boxes = plain((200, 40, 90), format)
    ends = (boxes.index(b"meta") - 4, boxes.index(b"mdat") - 4)
    for cut in (whole[:-20], boxes[:-20], *(boxes[:end] for end in ends)):  # also where a box ends
        with pytest.raises(BrokenImage, match="damaged or cut off"):
            read(cut)


def test_run_lengths_that_end_early_are_not_damage() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, 1, 4, 0, 0, 2, 2) + bytes(8)
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(header) + 4, 0, 0, 14 + len(header)) + header + b"\4\1\0\1"
    with pytest.raises(UnsupportedVariant, match="damaged, or a variant of BMP"):
        read(bmp)
    with pytest.raises(BrokenImage):
        read(bmp[:-2])


@pytest.mark.parametrize("brand", [b"heis", b"hevs"])
def test_layered_pictures_are_a_variant(brand: bytes) -> None:
    heif = plain((200, 40, 90), "HEIF")
    with pytest.raises(UnsupportedVariant, match="a variant of HEIF that is not read here"):
        read(heif[:8] + brand + heif[12:].replace(b"hvcC", b"lhvC"))


def test_a_text_that_begins_with_bm_is_no_picture() -> None:
    with pytest.raises(UnsupportedMedia):
        read(b"BMI stands for body mass index, which is a number.\n" * 9)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"msf1"])
def test_heic_is_told_from_avif_by_the_compatible_brands(brand: bytes) -> None:
    heif, avif = plain((200, 40, 90), "HEIF"), plain((200, 40, 90), "AVIF")
    picture = read(heif[:8] + brand + heif[12:])
    assert (picture.format, picture.width, picture.height) == ("HEIF", 24, 16)
    assert colour(picture.image) == pytest.approx((200, 40, 90), abs=6)
    if brand != b"heic":
        assert read(avif[:8] + brand + avif[12:]).format == "AVIF"


def p3() -> bytes:
    """A profile with Display P3's primaries and a gamma of 2.2, written by hand."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 3) + b"P3\0" + bytes(78),
        b"wtpt": b"XYZ \0\0\0\0" + number(0.9642) + number(1.0) + number(0.8249),
        b"rXYZ": b"XYZ \0\0\0\0" + number(0.5151) + number(0.2412) + number(-0.0011),
        b"gXYZ": b"XYZ \0\0\0\0" + number(0.2920) + number(0.6922) + number(0.0419),
        b"bXYZ": b"XYZ \0\0\0\0" + number(0.1571) + number(0.0666) + number(0.7841),
        **{name: b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(2.2 * 256), 0) for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data = data.ljust(-(-len(data) // 4) * 4, b"\0")
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12)
    head += b"acsp" + bytes(28) + number(0.9642) + number(1.0) + number(0.8249)
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_colours_of_a_profile_become_srgb(format: str) -> None:
    image = Image.new("RGB", (24, 16), (100, 200, 100))
    converted = colour(read(encode(image, format, icc_profile=p3())).image)
    assert converted[0] < 75  # a P3 green is a purer one in sRGB
    assert converted[1] == pytest.approx(202, abs=6)
    assert colour(read(encode(image, format)).image) == pytest.approx((100, 200, 100), abs=6)


@pytest.mark.parametrize("profile", [b"broken", p3()[:200], p3().replace(b"RGB ", b"CMYK")])
def test_a_profile_that_is_broken_or_of_other_colours_is_ignored(profile: bytes) -> None:
    image = Image.new("RGB", (24, 16), (100, 200, 100))
    assert colour(read(encode(image, "PNG", icc_profile=profile)).image) == (100, 200, 100)


def test_lab_becomes_srgb() -> None:
    lab = Image.new("LAB", (8, 8), (255, 128, 128))
    assert colour(read(encode(lab, "TIFF")).image) == pytest.approx((255, 255, 255), abs=2)


def test_folder_scans_know_the_suffixes_of_every_format() -> None:
    assert {".jfif", ".jpe", ".mpo", ".dib", ".heic", ".heif"} <= set(images.SUFFIXES)
    assert {f".{format.lower()}" for format in images.FORMATS} <= set(images.SUFFIXES)
