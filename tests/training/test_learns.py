from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from caption_client import CaptionClient
from model.checkpoint import load_captioner
from model.runtime import load_engine
from model.runtime.engine import CaptionEngine
from tests.conftest import Once
from tests.page.browser import chromium, open_browser
from tests.page.live import serving
from tests.training import small
from tests.training.shapes import in_language, write_shapes
from training.commands import train as train_command
from training.config import RECIPES
from training.data import read

HELD_OUT = 100  # pictures
# The recipe of the shapes, around an encoder that takes a fifth of the time and bears larger steps.
FROM_NOTHING = (RECIPES / "shapes.toml").read_text()
for theirs, ours in (("resnet18", small.NAME), ("train_stages = 5", "train_stages = 4"),
                     ("rate = 2e-3", "rate = 4e-3"), ("rate = 1e-3", "rate = 2e-3")):  # fmt: skip
    assert theirs in FROM_NOTHING
    FROM_NOTHING = FROM_NOTHING.replace(theirs, ours)


@pytest.fixture(scope="module")
def folder(once: Once) -> Path:
    """The shapes, a run from nothing on them, and its exported model: `shapes`, `run`, `cache`."""

    def fill(folder: Path) -> None:
        write_shapes(folder / "shapes", train=3000, val=60, test=HELD_OUT, size=48)
        (folder / "shapes.toml").write_text(FROM_NOTHING)
        _train(str(folder / "shapes.toml"), folder / "shapes", folder / "run", folder / "cache")

    return once("learns", fill)


def test_from_nothing_to_captions_of_pictures_it_never_saw(folder: Path) -> None:
    """The whole chain: data, training, checkpoint, export, serving engine."""
    _, said, captions = _speak(folder / "shapes", folder / "run")
    _assert_right(said, [f"{caption.capitalize()}." for caption in captions])


RECIPE = """
encoder_weights = "{weights}"
min_count = 1
[model]
name = "shapes-in-words"
[model.preprocess]
size = 48
[model.encoder]
name = "resnet_small"
[model.decoder]
embed_size = 32
hidden_size = 64
dropout = 0.0
[model.search]
block_ngram = 0
[train]
epochs = 3
captions_per_picture = 1
learning_rate = 4e-3
warmup = 30
label_smoothing = 0.0
precision = "fp32"
"""


@pytest.mark.parametrize("language", ["zh", "de", "ar", "hi"])
def test_other_languages_are_learnt_served_and_shown(language: str, folder: Path, tmp_path: Path) -> None:
    """The encoder is the one that learnt in English; the page is looked at in a browser."""
    torch.save(load_captioner(folder / "run" / "best").encoder.state_dict(), tmp_path / "encoder.pt")
    (tmp_path / "words.toml").write_text(RECIPE.format(weights=tmp_path / "encoder.pt"))

    shapes = tmp_path / "shapes"  # the same pictures, so their features are the same
    shutil.copytree(folder / "shapes", shapes, copy_function=os.link)
    lines = [line.partition(",") for line in (shapes / "captions.txt").read_text().splitlines()[1:]]
    text = "".join(f"{name},{in_language(caption, language)}\n" for name, _, caption in lines)
    (shapes / "captions.txt").unlink()
    # German as some editors write it, umlauts in two parts.
    text = unicodedata.normalize("NFD" if language == "de" else "NFC", text)
    (shapes / "captions.txt").write_text(f"image,caption\n{text}")
    _train(str(tmp_path / "words.toml"), shapes, tmp_path / "run", folder / "cache")
    engine, said, captions = _speak(shapes, tmp_path / "run")
    _assert_right(said, [unicodedata.normalize("NFC", caption) for caption in captions])
    _look(engine, shapes / "Images" / "test-0000.png", said[0], language == "ar")


def test_a_folder_of_german_captions_is_trained_and_served(tmp_path: Path) -> None:
    """One table, pictures beside it, no parts named: one command, and what the service says is German."""
    write_shapes(tmp_path, train=60, val=0, test=0, size=32)
    for file in tmp_path.glob("*.txt"):
        if file.name != "captions.txt":
            file.unlink()
    rows = [line.partition(",") for line in (tmp_path / "captions.txt").read_text().splitlines()[1:]]
    (tmp_path / "captions.txt").unlink()
    captions = [in_language(caption, "de") for _, _, caption in rows]
    lines = ("Bild;Beschreibung", *(f'{name};"{text}"' for (name, _, _), text in zip(rows, captions, strict=True)))
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    recipe = RECIPE.format(weights="none").replace("size = 48", "size = 32").replace("epochs = 3", "epochs = 1")
    (tmp_path / "small.toml").write_text(recipe)
    _train(str(tmp_path / "small.toml"), tmp_path, tmp_path / "run", tmp_path / "cache")
    with serving(load_engine(tmp_path / "run" / "served", "cpu", "openvino")) as url, CaptionClient(url) as client:
        said = client.caption(tmp_path / "Images" / "train-0000.png").caption
    written = {word for caption in captions for word in caption.removesuffix(".").split()}
    assert said.endswith(".")
    assert set(said.removesuffix(".").split()[1:]) <= written | {"ein"}  # "Kreis", not "kreis"


def _train(recipe: str, data: Path, run: Path, cache: Path) -> None:
    folders = ["--data", str(data), "--run", str(run), "--cache", str(cache)]
    assert train_command.main(["--recipe", recipe, *folders, "--device", "cpu", "--export"]) == 0


def _speak(data: Path, run: Path) -> tuple[CaptionEngine, list[str], list[str]]:
    """The served engine, what it says of pictures it never saw, and what is true."""
    engine = load_engine(run / "served", "cpu", "openvino")
    pictures = read(data).split("test")
    assert len(pictures) == HELD_OUT
    pixels = np.stack([engine.preprocess(picture.open()) for picture in pictures])
    return engine, [found[0].text for found in engine.caption(pixels)], [p.captions[0] for p in pictures]


def _assert_right(said: list[str], true: list[str]) -> None:
    right = sum(a == b for a, b in zip(said, true, strict=True))
    assert right >= 0.9 * HELD_OUT, [pair for pair in zip(said, true, strict=True) if pair[0] != pair[1]][:10]


def _look(engine: CaptionEngine, picture: Path, caption: str, right_to_left: bool) -> None:
    """The page shows the caption as it is written, each word a button, in reading order."""
    path = chromium()
    if path is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium here: apt-get install chromium")
    assert path, "CI must install Chromium: apt-get install chromium"
    with serving(engine) as url, open_browser(path) as browser:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.set_input_files("#file", picture)
        sentence = page.locator("#stage .sentence")
        expect(sentence.locator(".word").first).to_be_visible(timeout=60_000)
        assert sentence.text_content() == caption
        direction = "getComputedStyle(document.querySelector('#stage .sentence')).direction"
        assert page.evaluate(direction) == ("rtl" if right_to_left else "ltr")
        first, second = (page.locator("#stage .word").nth(i).bounding_box() for i in (0, 1))
        assert first
        assert second
        assert (first["x"] > second["x"]) == right_to_left
        page.locator("#stage .word").first.focus()
        page.keyboard.press("ArrowLeft" if right_to_left else "ArrowRight")
        expect(page.locator("#stage .word").nth(1)).to_be_focused()
