from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint import load_captioner
from model.vocabulary import Vocabulary
from tests.training import tiny
from tests.training.data.files import jpeg, write
from training import check
from training.commands.train import main
from training.data import CaptionData, Picture

GERMAN = ("Ein großer Hund, der über die Wiese läuft.", "Zwei Bären schlafen", "Eine Frau\nfährt Rad")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures with three German captions each, and one name without a picture."""
    lines = [f'Bär-{i}.JPG;"{caption}"' for i in range(12) for caption in GERMAN]
    write(tmp_path / "bilder" / "captions.csv", "\n".join(["Bild;Beschreibung", *lines, "fort.jpg;Weg", ""]))
    for i in range(12):
        write(tmp_path / "bilder" / "Fotos" / f"bär-{i}.jpg", jpeg(size=(40, 30)))
    write(tmp_path / "recipe.toml", """
        min_count = 1
        encoder_weights = "none"
        model = { preprocess = { size = 32 }, decoder = { embed_size = 8, hidden_size = 16 } }
        train = { epochs = 1, batch_size = 4, max_words = 7, precision = "fp32" }
        """)  # fmt: skip
    return tmp_path / "bilder"


def arguments(folder: Path) -> list[str]:
    here = folder.parent
    return ["--recipe", str(here / "recipe.toml"), "--data", str(folder), "--run", str(here / "run"),
            "--cache", str(here / "cache"), "--device", "cpu"]  # fmt: skip


def test_a_folder_of_pictures_and_a_german_csv_train_by_one_command(folder: Path) -> None:
    assert main(arguments(folder)) == 0
    captioner = load_captioner(folder.parent / "run" / "best")
    assert {"großer", "über", "läuft", "bären", "fährt"} <= set(captioner.vocabulary.words)


def test_check_says_what_a_run_would_be_and_runs_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "Fotos" / "bär-3.jpg", jpeg(size=(400, 300))[:600])
    assert main([*arguments(folder), "--check"]) == 0
    said = capsys.readouterr().out
    assert "bilder: 9 training, 2 validation and 0 test pictures, 33 captions" in said
    assert "left out: 1 with no picture, such as 'fort.jpg'" in said
    assert "left out: 1 with broken picture, such as 'Bär-3.JPG'" in said
    assert "training captions: 27, of 15 different words; 0.0% of all words are unknown" in said
    assert f"training captions: 9 are longer than train.max_words (7 words), such as {GERMAN[0]!r}" in said
    assert "disk: " in said
    assert "time: about " in said
    assert not (folder.parent / "run").exists()
    assert not (folder.parent / "cache").exists()


def test_check_of_what_cannot_run_fails_as_the_run_would(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(folder)
    given[3] = f"{folder}:val=0"
    assert main([*given, "--check"]) == 1
    assert "no val pictures in the data; hold some out with PATH:val=N (there are: 12 train)" in capsys.readouterr().err


def test_words_that_a_vocabulary_lacks_are_counted_and_named() -> None:
    vocabulary = Vocabulary.build(["a dog runs", "a cat"], 1)
    first, second = check.words(["A dog sleeps", "a dog, asleep, sleeps"], vocabulary, 3)
    assert "2, of 4 different words; 42.9% of all words are unknown to the vocabulary of 8 words" in first
    assert first.endswith("most often sleeps, asleep")
    assert second == "1 are longer than train.max_words (3 words), such as 'a dog, asleep, sleeps'"


def test_parts_are_counted_set_by_set() -> None:
    pictures = [Picture(f"{i}", ("a", "b"), split, source, Path("x"))
                for i, (source, split) in enumerate([("one", "train"), ("two", "val"), ("one", "train")])]  # fmt: skip
    assert check.parts(CaptionData(tuple(pictures), {})) == [
        "one: 2 training, 0 validation and 0 test pictures, 4 captions",
        "two: 0 training, 1 validation and 0 test pictures, 2 captions",
    ]


def test_disk_is_scaled_up_from_the_few_pictures_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.shapes(tmp_path, train=24, val=6)
    recipe = tiny.recipe()
    whole = check.measure(recipe, data, tiny.CPU, None, [])
    monkeypatch.setattr(check, "_TRIED", 8)
    some = check.measure(recipe, data, tiny.CPU, None, [])
    # 30 pictures of one cell of 320 float16 values, or of what enters the stage that makes them; and files' heads.
    assert some.cache == pytest.approx(whole.cache, rel=0.3)
    assert 30 * 80 * 2 <= whole.cache <= 30 * 320 * 2 + 3000
