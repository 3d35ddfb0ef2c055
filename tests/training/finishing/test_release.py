from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.caption import Caption
from model.checkpoint import METRICS, NEIGHBOURS, load_captioner, open_checkpoint, save_captioner, write_json
from model.config import RerankConfig, SearchConfig
from model.errors import CaptionModelError
from tests.training import tiny
from training.data import DataError, Picture
from training.finishing import release
from training.scoring.objects import ObjectReport

STAGES_OF = release.stages_of
EMBEDDED = Path(__file__).parents[3] / "model" / "weights" / "default"


def write_run(folder: Path, name: str, ciders: Sequence[float]) -> Path:
    history = [{"epoch": i, "val_cider": {"mine": cider, "other": -cider}} for i, cider in enumerate(ciders, 1)]
    folder.mkdir()
    write_json(folder / "recipe.json", {"name": name})
    write_json(folder / "history.json", history)
    return folder


def test_the_stages_are_the_runs_with_their_best_epoch(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "first", "a", [3.0, 9.0, 4.0]), write_run(tmp_path / "second", "b", [1.0])]
    stages = release.stages_of(runs)
    assert [(s["recipe"]["name"], s["epochs"], s["best_epoch"]) for s in stages] == [("a", 3, 2), ("b", 1, 1)]
    assert [len(s["history"]) for s in stages] == [3, 1]


def test_a_release_stands_for_the_runs_that_led_to_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "more", [5.0, 4.0])
    before = json.loads((EMBEDDED / "metrics.json").read_text(encoding="utf-8"))["training"]
    stages = release.stages_of([EMBEDDED, run])
    assert stages[:-1] == before
    assert stages[-1]["recipe"]["name"] == "more"


def test_the_size_is_that_of_all_parameters_and_of_the_encoders_work(tmp_path: Path) -> None:
    captioner = tiny.captioner(tiny.shapes(tmp_path)).eval()
    size = release.size_of(captioner)
    assert size["vocabulary"] == len(captioner.vocabulary)
    total = sum(p.numel() for p in captioner.parameters())
    assert size["parameters_millions"] == round(total / 1e6, 2)
    assert size["encoder_parameters_millions"] < size["parameters_millions"]
    assert 0 < size["encoder_gflops"] < 0.05  # of 0.8 with 224 pixels, 49 times as many as these


REFERENCES = ("a red dog runs home", "two men sit here", "the cat sleeps well")
TWO_RIGHT = ("nothing", *REFERENCES[1:])  # the better CIDEr
ALL_SHORT = ("red dog runs home", "two men sit", "the cat sleeps")  # the better sum of CIDEr and BLEU-4


@pytest.mark.parametrize(
    ("said_by", "expected"),
    [
        ({(3, 1.0): REFERENCES}, (3, 1.0)),  # clearly better: it wins
        ({(5, 1.0): REFERENCES, (3, 0.7): REFERENCES}, (3, 0.7)),  # as good with a smaller beam
        ({(3, 1.3): TWO_RIGHT, (5, 0.7): ALL_SHORT}, (5, 0.7)),  # CIDEr is not all
    ],
)
def test_the_search_is_the_smallest_of_the_best(
    said_by: dict[tuple[int, float], tuple[str, ...]], expected: tuple[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [Picture(f"{i}.png", (text,), "val", "mine", Path("none")) for i, text in enumerate(REFERENCES)]

    def candidates_of(engine: Any, pictures: Any, searches: Sequence[SearchConfig]) -> Any:
        def said(search_config: SearchConfig) -> list[list[Caption]]:
            texts = said_by.get(
                (search_config.beam_size, search_config.length_penalty), (REFERENCES[0], "nothing", "nothing")
            )
            return [[Caption(text, -1.0)] for text in texts]

        return [(pictures, None, [said(search_config) for search_config in searches])]

    config = SimpleNamespace(search=SearchConfig(), rerank=RerankConfig())
    monkeypatch.setattr(release, "load_engine", lambda *_: SimpleNamespace(config=config, reranker=None))
    monkeypatch.setattr(release, "candidates_of", candidates_of)
    search_config, ranking, tried, compared = release.choose_search(Path("none"), None, pictures, {"mine": 1.0})  # type: ignore[arg-type]
    assert (search_config.beam_size, search_config.length_penalty, search_config.num_captions) == (*expected, 1)
    assert ranking == config.rerank
    assert compared == []  # nothing ranks
    assert len(tried) == len(release.BEAMS) * len(release.LENGTH_PENALTIES) * len(release.BLOCKS)


def result_of(reliabilities: Sequence[float], said: Sequence[int], right: Sequence[int], source: str = "mine") -> Any:
    nothing = np.zeros(len(said), np.int64)
    objects = ObjectReport(np.array(said), np.array(right), nothing, nothing)
    captions = [Caption("a dog", 0.0, support=reliability) for reliability in reliabilities]
    return SimpleNamespace(source=source, objects=objects, captions=captions)


def test_above_the_threshold_enough_objects_are_right() -> None:
    reliabilities = np.linspace(0.9, 0.1, 20)
    right = [2] * 10 + [1] * 10  # of two objects each: from the eleventh on half are wrong
    threshold, facts = release.review_threshold([result_of(reliabilities, [2] * 20, right)])
    above = reliabilities >= threshold
    assert above.sum() == 12  # (10 * 2 + 2) / 24 are right, and with one more 23 of 26 were not enough
    expected = {"above": 60, "objects_right_above": round(100 * 22 / 24, 1), "objects_right_below": 50}
    assert facts == {"mine": expected}
    assert expected["objects_right_above"] >= release.RIGHT


def test_where_captions_are_right_enough_none_wants_a_review() -> None:
    sure = result_of([0.5, 0.1], [1, 1], [1, 1])
    assert release.review_threshold([sure])[0] == 0
    # Such a set is no guide for another one, and of several the most demanding decides.
    weak, weaker = result_of([0.5, 0.4], [1, 1], [1, 0], "weak"), result_of([0.6, 0.5], [1, 1], [1, 0], "weaker")
    assert release.review_threshold([sure, weak])[0] == release.review_threshold([weak])[0] == 0.5
    threshold, facts = release.review_threshold([sure, weak, weaker])
    assert threshold == 0.6
    assert facts["weaker"] == {"above": 50, "objects_right_above": 100, "objects_right_below": 0}


@pytest.fixture
def made(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A run, its data, and a release of before in the folder `to`; what takes minutes or Java is left out."""
    data = tiny.shapes(tmp_path)
    run = write_run(tmp_path / "run", "a", [1.0])
    save_captioner(tiny.captioner(data), run / "best", {})
    to = tmp_path / "to"
    to.mkdir()
    (to / "README.md").write_text("the release of before")
    (to / "graphs").mkdir()
    (to / "graphs" / "stale.xml").write_text("")

    def evaluate(_: Any, pictures: Sequence[Picture], searches: Sequence[SearchConfig]) -> list[Any]:
        names = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "repeated_bigrams")
        figures = {**dict.fromkeys(names, 1.0), "pictures": 1, "distinct_captions": 1, "mean_length": 1.0}
        result = result_of([1.0], [1], [1], "shapes")
        result.pictures, result.facts = pictures, lambda: figures
        return [result]

    monkeypatch.setattr(release, "require_java", lambda: None)
    monkeypatch.setattr(release, "export", lambda folder, pictures: None)
    monkeypatch.setattr(release, "load_engine", lambda *_: None)
    monkeypatch.setattr(
        release, "choose_search", lambda *_: (SearchConfig(), RerankConfig(release.FEATURE_SIZE), [], [])
    )
    monkeypatch.setattr(release, "evaluate", evaluate)
    monkeypatch.setattr(release, "stages_of", lambda _: [])
    notes = {"intended": "tests", "data": [], "terms": "none", "limits": [], "failures": []}
    data_folder = data.pictures[0].path.parent.parent
    return SimpleNamespace(
        run=run, to=to, data=data_folder,
        release=lambda options="", runs=(run,): release.release(
            runs, [f"{data_folder}{options}"], to, notes, "tiny", "2", cache=tmp_path_factory.mktemp("cache")
        ),
    )  # fmt: skip


def test_a_release_replaces_the_folder_as_a_whole(made: SimpleNamespace) -> None:
    (made.data / "Images" / "dev-0001.png").write_bytes(b"\x89PNG but no more")  # one broken picture is skipped
    made.release()
    assert made.to.joinpath("README.md").read_text().startswith("# tiny 2")
    assert open_checkpoint(made.to).config.version == "2"
    assert NEIGHBOURS in open_checkpoint(made.to).digests
    assert not (made.to / "graphs").exists()
    assert sorted(path.name for path in made.to.parent.iterdir()) == ["run", "shapes", "to"]  # and nothing beside it


def test_a_release_is_made_anew_from_itself(made: SimpleNamespace) -> None:
    made.release()
    before = load_captioner(made.to).state_dict()
    made.release(runs=(made.to,))
    again = load_captioner(made.to).state_dict()
    assert before.keys() == again.keys()
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_a_release_is_measured_again_and_stays_as_it_is(made: SimpleNamespace) -> None:
    made.release()
    before, figures = open_checkpoint(made.to), json.loads((made.to / METRICS).read_text())
    old = {**figures, "intended": "more tests", "test": {"shapes": {"CIDEr": 99.0}}, "review_below": 0.5}
    (made.to / METRICS).write_text(json.dumps(old))
    release.measure(made.to, [str(made.data)], {})
    assert json.loads((made.to / METRICS).read_text()) == {**figures, "intended": "more tests"}
    assert "more tests" in made.to.joinpath("README.md").read_text()
    after = open_checkpoint(made.to)
    assert (after.config, after.digests) == (before.config, before.digests)


@pytest.mark.parametrize("what", ["val", "test", "best", "recipe.json"])
def test_what_is_missing_is_found_before_anything_is_done(
    what: str, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("minutes of work")

    monkeypatch.setattr(release.evaluation, "teacher_force", never)
    if what in ("val", "test"):
        listing = made.data / f"Flickr_8k.{'dev' if what == 'val' else what}Images.txt"
        listing.write_text("")  # and with val=0 no training pictures are held out in their place
    elif what == "best":
        shutil.rmtree(made.run / "best")
    else:
        (made.run / what).unlink()
        monkeypatch.setattr(release, "stages_of", STAGES_OF)
    with pytest.raises(
        (DataError, CaptionModelError), match=rf"no {what} pictures|checkpoint folder|neither a finished"
    ):
        made.release(":val=0" if what == "val" else "")
    assert made.to.joinpath("README.md").read_text() == "the release of before"


def test_a_release_that_fails_late_leaves_the_folder_as_it_was(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise DataError("not one picture could be decoded")

    monkeypatch.setattr(release, "evaluate", failing)
    with pytest.raises(DataError):
        made.release()
    assert sorted(path.name for path in made.to.iterdir()) == ["README.md", "graphs"]
    assert sorted(path.name for path in made.to.parent.iterdir()) == ["run", "shapes", "to"]


def test_the_shipped_record_says_what_ran() -> None:
    """Runs that start from a checkpoint have its sizes."""
    shipped = open_checkpoint(EMBEDDED)
    for stage in shipped.metrics["training"]:
        if model := stage["recipe"].get("model"):
            wide = {"hidden_size": 512, "attention_heads": 8} if "wide" in stage["recipe"]["name"] else {}
            sizes = {**asdict(shipped.config.decoder), **wide, "dropout": model["decoder"]["dropout"]}
            assert model["encoder"] == asdict(shipped.config.encoder)
            assert model["preprocess"] == json.loads(json.dumps(asdict(shipped.config.preprocess)))
            assert model["decoder"] == {key: sizes[key] for key in model["decoder"]}
