from __future__ import annotations

import random
import struct

import pytest
from PIL import Image

from caption_client.payload import format_of, payload
from tests.pictures import encode, quarters

FORMATS = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "TIFF": "TIFF", "HEIF": "HEIF", "AVIF": "HEIF"}


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_is_no_payload_and_pixels_are(format: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "words"
    bare, described = encode(quarters(), format), encode(quarters(), format, exif=exif.tobytes())
    assert format_of(bare[:64]) == FORMATS[format]
    assert bare != described
    same = payload(bare) == payload(described)
    assert same or format in ("HEIF", "AVIF")  # whose writers number the items anew
    other = encode(quarters().transpose(Image.Transpose.FLIP_LEFT_RIGHT), format)
    assert payload(bare) != payload(other)
    assert payload(bare) == payload(bare)


def test_every_page_of_a_tiff_counts() -> None:
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    both = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert payload(both) == [page.tobytes() for page in pages]


def test_tables_of_a_jpeg_count_too() -> None:
    data = encode(quarters(), "JPEG")
    at = data.index(b"\xff\xdb") + 10  # a step of quantization
    assert payload(data) != payload(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("data", [b"", b"BM" + bytes(60), b"GIF89a" + bytes(60), b"RIFF\0\0\0\0AVI " + bytes(50)])
def test_other_formats_carry_no_text(data: bytes) -> None:
    assert format_of(data) is None
    with pytest.raises(ValueError, match="no format"):
        payload(data)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_refused_in_known_ways(format: str) -> None:
    data, dice = encode(quarters(), format), random.Random(0)
    for _ in range(100):
        damaged = bytearray(data[: dice.randrange(12, len(data))] if dice.random() < 0.5 else data)
        for _ in range(dice.randrange(4)):
            damaged[dice.randrange(12, len(damaged)) if len(damaged) > 12 else 0] = dice.randrange(256)
        try:
            payload(bytes(damaged))
        except (ValueError, LookupError, struct.error):
            continue
