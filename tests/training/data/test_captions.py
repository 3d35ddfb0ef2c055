from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.training.data.files import image, jpeg, karpathy, write, write_tar
from training.data import read

# A red picture of 64 x 48 as a telephone writes it.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAAB4AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5j"
    "bHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBp"
    "eGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAACZtZGF0AAAAGigBrxOA+BDhp//8TSj/+nXPD9PMe/OikM+A"
)


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
def test_heic_and_avif(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (64, 48), "red")
    if suffix == ".avif":
        image.save(buffer, "AVIF")
        content = buffer.getvalue()
    else:
        content = HEIC
    write(tmp_path / f"a{suffix}", content)
    write(tmp_path / "captions.csv", f"image,caption\na{suffix},A dog\n")
    picture = read(tmp_path, check_pictures=True).pictures[0].open()
    assert picture.size == (64, 48)
    red, green, blue = picture.getpixel((30, 30))  # type: ignore[misc]
    assert red > 230 > 40 > max(green, blue)


def test_pictures_in_tars_are_read_in_place(tmp_path: Path) -> None:
    contents = {f"Images/{i}.jpg": jpeg(size=(i + 1, 2)) for i in range(5)}
    write_tar(tmp_path / "images.tar", contents)
    write(tmp_path / "dataset.json", karpathy(*(image(f"{i}.jpg") for i in range(5))))
    data = read(tmp_path, check_pictures=True)
    assert [p.read_bytes() for p in data.pictures] == list(contents.values())
    assert [p.open().size for p in data.pictures] == [(i + 1, 2) for i in range(5)]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_pictures_open_upright_and_opaque(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    write(tmp_path / "a.jpg", jpeg(size=(8, 6), exif=exif))
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "b.png")
    write(tmp_path / "dataset.json", karpathy(image("a.jpg"), image("b.png")))
    turned, clear = (picture.open() for picture in read(tmp_path).pictures)
    assert (turned.mode, turned.size) == ("RGB", (6, 8))
    assert (clear.mode, clear.getpixel((0, 0))) == ("RGB", (255, 255, 255))
