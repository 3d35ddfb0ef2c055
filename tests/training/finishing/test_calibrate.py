from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.captioner import Captioner
from model.config import DecoderConfig, ModelConfig, PreprocessConfig
from model.vocabulary import END, PAD, SPECIAL, START, UNKNOWN, Vocabulary
from training.data import DataError, Picture, read
from training.evaluation import confidence, teacher_force
from training.finishing.calibrate import fit_temperature
from training.scoring.metrics import expected_calibration_error

WORDS = ("a", "dog", "cat", "runs", "sits", "red", "ball")


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(0)
    config = ModelConfig(preprocess=PreprocessConfig(size=32), decoder=DecoderConfig(embed_size=16, hidden_size=16))
    captioner = Captioner(config, Vocabulary((*SPECIAL, *WORDS))).eval()
    with torch.no_grad():
        captioner.decoder.embedding.weight.mul_(8)  # opinions strong enough to be too strong
    return captioner


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Picture]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("set")
    captions = {"one": ["A dog runs.", "A red dog"], "two": ["A zebra"], "three": ["a cat sits", "cat", "A red ball!"]}
    images = []
    for name, texts in captions.items():
        Image.new("RGB", (20, 20), "green").save(folder / f"{name}.png")
        images.append({"filename": f"{name}.png", "split": "val", "sentences": [{"raw": text} for text in texts]})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return read(folder).split("val")


def test_teacher_forcing_gives_every_reference_word_once(captioner: Captioner, pictures: list[Picture]) -> None:
    outputs, targets = teacher_force(captioner, pictures, batch_size=2)
    words = [captioner.vocabulary.words[i] for i in targets.tolist()]
    expected = "a dog runs . a red dog . a <unk> . a cat sits . cat . a red ball .".replace(".", "<end>")
    assert words == expected.split()
    assert len(outputs) == len(targets)


def test_broken_pictures_are_skipped_and_counted(
    captioner: Captioner, pictures: list[Picture], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG but no more")
    bad = replace(pictures[0], path=tmp_path / "bad.png", size=16)
    _, expected = teacher_force(captioner, pictures)
    for batch_size in (1, 2, 32):
        caplog.clear()
        outputs, targets = teacher_force(captioner, [bad, *pictures, bad], batch_size)
        assert len(outputs) == len(targets)
        assert torch.equal(targets, expected)
        assert "2 of 5 pictures cannot be decoded and were skipped" in caplog.text
    with pytest.raises(DataError, match="not one picture could be decoded"):
        teacher_force(captioner, [bad])


def test_teacher_forcing_equals_the_model_run_on_one_caption(captioner: Captioner, pictures: list[Picture]) -> None:
    outputs, targets = teacher_force(captioner, pictures)
    pixels = torch.full((1, 32, 32, 3), 0, dtype=torch.uint8)
    pixels[..., 1] = 128  # Pillow's green
    ids = captioner.vocabulary.encode("a dog runs")
    with torch.inference_mode():
        logits = captioner(pixels, torch.tensor([[[START, *ids]]]))[0, 0]
        torch.testing.assert_close(captioner.decoder.logits(outputs[:4]), logits, atol=1e-4, rtol=1e-4)
    assert targets[:4].tolist() == [*ids, END]


def test_the_temperature_that_made_the_words_is_found(captioner: Captioner) -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = torch.tanh(torch.randn(20_000, 16, generator=generator))
    for true in (0.5, 1.7):
        with torch.inference_mode():
            chances = captioner.decoder.log_probabilities(captioner.decoder.logits(outputs), true).exp()
        targets = torch.multinomial(chances, 1, generator=generator)[:, 0]
        assert not set(targets.tolist()) & {PAD, START, UNKNOWN}
        assert fit_temperature(captioner, outputs, targets) == pytest.approx(true, rel=0.05)
        at = {t: expected_calibration_error(*confidence(captioner, outputs, targets, t)) for t in (true, 3 * true)}
        assert at[true] < 0.02 < at[3 * true]


def test_unknown_reference_words_count_as_wrong(captioner: Captioner) -> None:
    """What the model would have said there was not what a person said: it should be less sure."""
    outputs = torch.tanh(torch.randn(500, 16, generator=torch.Generator().manual_seed(2)))
    _, right = confidence(captioner, outputs, torch.full((500,), UNKNOWN), 1.0)
    assert not right.any()
    with torch.inference_mode():
        best = captioner.decoder.log_probabilities(captioner.decoder.logits(outputs), 1.0).argmax(-1)
    mixed = torch.where(torch.arange(500) % 5 == 0, UNKNOWN, best)
    sure, less_sure = (fit_temperature(captioner, outputs, targets) for targets in (best, mixed))
    assert sure < less_sure
