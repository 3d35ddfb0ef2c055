from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.captioner import Captioner
from model.checkpoint import load_captioner, open_checkpoint, save_captioner
from model.config import EncoderConfig, SearchConfig
from model.encoder import fold_norms
from model.errors import ConfigError
from model.vocabulary import Vocabulary
from tests.training import tiny
from tests.training.shapes import write_shapes
from training import batching, objectives, process, validation
from training.config import Recipe, find_recipe
from training.data import CaptionData, DataError, read
from training.initialisation import inherited, initial_captioner
from training.language.sides import mirrored
from training.loop import train
from training.optimisation import TrainingDiverged, parameter_groups
from training.validation import FEWEST, Evaluation, best_epoch, chosen_by

ALWAYS, NEVER = -1.0, 1e9  # save_every: after each step, or only after each epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CaptionData:
    return tiny.shapes(tmp_path_factory.mktemp("data"), val=FEWEST)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def run(
    recipe: Recipe,
    data: CaptionData,
    folder: Path,
    cache: Path,
    init: Path | None = None,
    teachers: Sequence[Path] = (),
) -> Path:
    return train(recipe, data, folder, cache, tiny.CPU, init, teachers)


def result(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind but its clock times."""
    state = torch.load(folder / "state.pt", weights_only=True)
    best = load_captioner(folder / "best")
    return {
        "model": state["model"],
        "optimizer": state["optimizer"]["state"],
        "average": state["average"],
        "progress": state["progress"],
        "history": json.loads((folder / "history.json").read_text()),
        "best": best.state_dict(),
        "metrics": dict(open_checkpoint(folder / "best").metrics["validation"]),
    }


def assert_same(mine: Any, other: Any) -> None:
    """Equal to the last bit, in nested containers of tensors."""
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, other)
    elif isinstance(mine, dict):
        assert mine.keys() == other.keys()
        for key in mine:
            assert_same(mine[key], other[key])
    elif isinstance(mine, list):
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            assert_same(a, b)
    else:
        assert mine == other


class Killed(BaseException):
    """Raised where a run is to die; nothing in the program catches it."""


def dying(call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`call`, but its `at`-th call kills."""
    count = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise Killed
        return call(*arguments, **named)

    return counted


# --- a whole run -----------------------------------------------------------------------------------


def test_a_run_leaves_a_checkpoint_a_log_and_its_history(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe()
    best = run(recipe, data, tmp_path / "run", cache)
    opened = open_checkpoint(best)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert all(entry["val_cider"].keys() == {"shapes"} for entry in history)
    assert history[1]["train_loss"] < history[0]["train_loss"]
    top = max(history, key=lambda entry: entry["val_cider"]["shapes"])
    assert opened.metrics["validation"] == top
    assert opened.metrics["recipe"] == json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert opened.metrics["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert opened.config.name == "tiny"
    assert set(opened.vocabulary.words[4:]) == {w for p in data.split("train") for c in p.captions for w in c.split()}
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    load_captioner(best)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    data: CaptionData, cache: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tiny.recipe(seed=seed, epochs=1), data, tmp_path / name, cache)
    same, again, other = (result(tmp_path / name) for name in "abc")
    assert_same(same, again)
    assert same["history"] != other["history"]


def test_the_best_checkpoint_is_of_the_best_epoch_and_a_run_without_progress_stops(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 5.0, 4.0, 4.9, 4.8, 9.0])
    weights = []

    def evaluate(captioner: Any, *_: Any) -> Evaluation:
        weights.append(captioner.decoder.output.weight.detach().clone())
        return Evaluation([["a"]], {"shapes": np.array([next(scores)]), "more": np.array([100.0])}, 1.0, 0.0)

    monkeypatch.setattr(validation, "evaluate", evaluate)
    best = run(tiny.recipe(epochs=50, patience=3, average=0.0), data, tmp_path, cache)
    assert len(weights) == 5  # 3 epochs after the best one
    assert load_captioner(best).state_dict()["decoder.output.weight"].equal(weights[1].half().float())
    assert open_checkpoint(best).metrics["validation"]["epoch"] == 2


def test_validated_and_saved_is_the_average_trained_on_are_the_weights(
    data: CaptionData, cache: Path, tmp_path: Path
) -> None:
    best = load_captioner(run(tiny.recipe(epochs=1), data, tmp_path, cache)).state_dict()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    shadow = dict(zip((name for name in best if name.startswith("decoder.")), state["average"]["shadow"], strict=False))
    name = "decoder.output.weight"
    index = [n for n, _ in load_captioner(tmp_path / "best").decoder.named_parameters()].index("output.weight")
    assert shadow
    assert torch.equal(best[name], state["average"]["shadow"][index].half().float())
    assert not torch.equal(best[name], state["model"][name].half().float())


def test_only_what_the_recipe_trains_changes(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    for stages in (0, 2):
        recipe = replace(tiny.recipe(epochs=1), train_stages=stages)
        fresh = tiny.captioner(data, recipe)  # not the run's own start, but the same frozen shape
        best = load_captioner(run(recipe, data, tmp_path / str(stages), cache))
        names = {name.rpartition(".")[0] for name, p in best.encoder.stages[:-1].named_parameters() if p.ndim}
        assert names
        state = torch.load(tmp_path / str(stages) / "state.pt", weights_only=True)
        moved = {int(i) for i in state["optimizer"]["state"]}
        groups = parameter_groups(fresh, len(fresh.encoder.stages) - stages, recipe.train)
        assert len(moved) == sum(len(group["params"]) for group in groups)
        assert len(groups) == (2 if stages == 0 else 6)


def test_a_small_set_gets_more_epochs_and_as_much_more_patience(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 steps an epoch: 7 epochs in place of 2, and a patience of 3.5 in place of 1."""
    scores = iter([9.0, 5.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr(
        validation, "evaluate", lambda *_: Evaluation([["a"]], {"shapes": np.array([next(scores)])}, 1.0, 0.0)
    )
    run(tiny.recipe(epochs=2, min_steps=20, patience=2, warmup=0.5), data, tmp_path / "whole", cache)
    history = json.loads((tmp_path / "whole" / "history.json").read_text())
    rates = [entry["learning_rate"] for entry in history]
    assert len(history) == 7
    assert max(rates) == rates[3] == pytest.approx(1e-2, rel=0.1)  # the warm-up is half of these 21 steps
    scores = iter([9.0, 5.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    run(tiny.recipe(epochs=2, min_steps=20, patience=1), data, tmp_path / "stopped", cache)
    assert len(json.loads((tmp_path / "stopped" / "history.json").read_text())) == 5
    scores = iter([9.0, 5.0])
    run(tiny.recipe(epochs=2, min_steps=5), data, tmp_path / "large", cache)
    assert len(json.loads((tmp_path / "large" / "history.json").read_text())) == 2


def test_of_too_few_validation_pictures_the_loss_chooses_the_best_epoch(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    some = (*data.split("train"), *data.split("val")[:1])
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(
        validation, "evaluate", lambda *_: Evaluation([["a"]], {"shapes": np.zeros(1)}, next(losses), 0.0)
    )
    best = run(tiny.recipe(epochs=3), CaptionData(some, {}), tmp_path, cache)
    assert open_checkpoint(best).metrics["validation"]["epoch"] == 2
    assert best_epoch(json.loads((tmp_path / "history.json").read_text()))["epoch"] == 2
    assert f"shapes has fewer than {FEWEST} validation pictures" in caplog.text


def test_what_is_cut_is_counted_before_training(
    data: CaptionData, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny.recipe(epochs=1, max_words=7), data, tmp_path / "short", cache)
    longer = sum(len(p.captions[0].split()) > 7 for p in data.split("train"))
    assert 0 < longer < 22
    assert f"{longer} of 22 captions are longer than train.max_words (7)" in caplog.text
    caplog.clear()
    run(tiny.recipe(epochs=1), data, tmp_path / "long", cache)
    assert "longer than" not in caplog.text


def test_rates_norms_and_speed_are_logged(
    data: CaptionData, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    caplog.set_level("INFO", "training")
    run(tiny.recipe(), data, tmp_path, cache)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("learning_rate", "gradient_norm", "learnt_per_second"):
        assert [event.step for event in events.Scalars(name)] == [1, 2]
        assert all(event.value > 0 for event in events.Scalars(name))
    assert len(re.findall(r'"learning_rate": .*"gradient_norm": .* a second', caplog.text)) == 2


def test_bf16_is_for_processors_that_have_it(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the record says which it was."""
    for has, expected in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr(process, "_cpu_has_bf16", lambda has=has: has)
        best = run(tiny.recipe(epochs=1, precision="auto"), data, tmp_path / expected, cache)
        assert open_checkpoint(best).metrics["recipe"]["train"]["precision"] == expected


# --- resume ----------------------------------------------------------------------------------------

FULL = {"scheduled_sampling": 0.5, "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def unbroken(data: CaptionData, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    run(tiny.recipe(**FULL), data, folder, cache)
    return result(folder)


@pytest.mark.parametrize(
    ("save_every", "at"), [*((ALWAYS, at) for at in range(1, 9)), *((NEVER, at) for at in (2, 4, 6, 8))]
)
def test_a_run_killed_at_any_step_or_validation_ends_like_one_never_killed(
    save_every: float, at: int, unbroken: dict[str, Any], data: CaptionData, cache: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """3 steps and a validation, twice; each calls `likelihood_loss` once."""
    recipe = tiny.recipe(save_every=save_every, **FULL)
    with monkeypatch.context() as patch:
        patch.setattr(objectives, "likelihood_loss", dying(objectives.likelihood_loss, at))
        with pytest.raises(Killed):
            run(recipe, data, tmp_path, cache)
    run(recipe, data, tmp_path, cache)
    assert_same(result(tmp_path), unbroken)


@pytest.mark.parametrize("at", [2, 3, 4, 5, 6, 7])
def test_a_run_killed_while_it_writes_ends_like_one_never_killed(
    at: int, unbroken: dict[str, Any], data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any of the renames that put a file in place: of weights, figures, config, history and state."""
    recipe = tiny.recipe(**FULL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying(os.replace, at))
        with pytest.raises(Killed):
            run(recipe, data, tmp_path, cache)
    run(recipe, data, tmp_path, cache)
    assert_same(result(tmp_path), unbroken)


def test_self_critical_training_resumes_too(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(objective="cider", epochs=1, samples=3, save_every=ALWAYS)
    run(recipe, data, tmp_path / "whole", cache)
    with monkeypatch.context() as patch:
        patch.setattr(objectives, "cider_loss", dying(objectives.cider_loss, 3))
        with pytest.raises(Killed):
            run(recipe, data, tmp_path / "broken", cache)
    run(recipe, data, tmp_path / "broken", cache)
    assert_same(result(tmp_path / "broken"), result(tmp_path / "whole"))


def test_a_process_that_was_killed_goes_on(
    unbroken: dict[str, Any], data: CaptionData, cache: Path, tmp_path: Path
) -> None:
    """SIGKILL, from which no handler can save anything, in the middle of the fifth step."""
    program = f"""
import os, signal, sys
from pathlib import Path
from tests.model.tiny import liven
from tests.training import tiny
from tests.training.test_loop import FULL
from training import objectives
from training.data import read
from training.loop import train
loss, calls = objectives.likelihood_loss, []
def dying(*arguments):
    calls.append(1)
    if len(calls) == 6:  # the fourth was the validation
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
objectives.likelihood_loss = dying
train(tiny.recipe(**FULL), read({str(data.pictures[0].path.parent.parent)!r}), Path({str(tmp_path)!r}),
      Path({str(cache)!r}), tiny.CPU, None)
"""
    root = Path(__file__).parents[2]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums of other parts would differ in the last bit
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, env=os.environ | threads, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "state.pt").is_file()
    run(tiny.recipe(**FULL), data, tmp_path, cache)
    assert_same(result(tmp_path), unbroken)


def test_a_finished_run_is_not_run_again(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(epochs=1)
    best = run(recipe, data, tmp_path, cache)
    before = result(tmp_path)
    monkeypatch.setattr(objectives, "likelihood_loss", dying(objectives.likelihood_loss, 1))
    assert run(recipe, data, tmp_path, cache) == best
    assert_same(result(tmp_path), before)


def test_a_folder_of_another_run_is_refused_and_what_differs_is_named(
    data: CaptionData, cache: Path, tmp_path: Path
) -> None:
    recipe, folder = tiny.recipe(epochs=1), tmp_path / "run"
    init = run(recipe, data, tmp_path / "first", cache)
    other_init = run(tiny.recipe(epochs=1, seed=5), data, tmp_path / "second", cache)
    run(recipe, data, folder, cache, init)
    train_pictures, val_pictures = data.split("train"), data.split("val")
    one = replace(train_pictures[0], captions=("a red circle",))
    taught = replace(recipe, train=replace(recipe.train, teacher_share=0.5))

    def refusal(recipe: Recipe, pictures: Sequence[Any], init: Path = init, teachers: Sequence[Path] = ()) -> str:
        with pytest.raises(DataError, match=r"holds another run, with other .*; take another --run folder") as raised:
            run(recipe, CaptionData(tuple(pictures), {}), folder, cache, init, teachers)
        return re.findall(r"with other (.*); take", str(raised.value))[0]

    assert refusal(tiny.recipe(epochs=2, clip=1.0), data.pictures) == (
        "train.clip of the recipe (5.0 there, 1.0 here), train.epochs of the recipe (1 there, 2 here)"
    )
    assert refusal(recipe, [one, *train_pictures[1:], *val_pictures]) == "training captions"
    assert refusal(recipe, [*train_pictures[1:], *val_pictures]) == "training pictures, training captions"
    assert refusal(recipe, [*train_pictures, *val_pictures[1:]]) == "validation pictures, validation captions"
    assert refusal(recipe, data.pictures, other_init) == "init"
    assert refusal(taught, data.pictures, init, [init]).startswith("teachers, train.teacher_share of the recipe")
    changed = tmp_path / "changed.png"  # the same name and captions, another picture
    changed.write_bytes(train_pictures[1].read_bytes())
    in_place = replace(train_pictures[0], path=changed, size=changed.stat().st_size)
    assert refusal(recipe, [in_place, *train_pictures[1:], *val_pictures]) == "training pictures"
    run(tiny.recipe(epochs=1, save_every=5.0), data, folder, cache, init)  # how often it saves makes no difference


def test_a_folder_with_another_vocabulary_is_refused(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    run(tiny.recipe(epochs=1), data, tmp_path, cache)
    with pytest.raises(DataError, match=r"with other vocabulary, min_count of the recipe \(1 there, 9 here\)"):
        run(replace(tiny.recipe(epochs=1), min_count=9), data, tmp_path, cache)


# --- from a checkpoint -----------------------------------------------------------------------------


def test_training_goes_on_from_a_checkpoint(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    first = run(tiny.recipe(), data, tmp_path / "first", cache)
    before = load_captioner(first)
    recipe = tiny.recipe(epochs=1, learning_rate=0.0, weight_decay=0.0, average=0.0)
    recipe = replace(recipe, model=replace(recipe.model, name="second", search=SearchConfig(beam_size=5)))
    second = run(recipe, data, tmp_path / "second", cache, init=first)
    after = load_captioner(second)
    assert_same(after.state_dict(), before.state_dict())  # at a learning rate of 0
    assert after.vocabulary.words == before.vocabulary.words
    assert after.config == replace(before.config, name="second", search=SearchConfig(beam_size=5))


def test_a_fitted_temperature_is_not_kept_when_the_weights_change(
    data: CaptionData, cache: Path, tmp_path: Path
) -> None:
    captioner = tiny.captioner(data)
    captioner.config = replace(captioner.config, temperature=1.7)
    save_captioner(captioner, tmp_path / "init", {})
    best = run(tiny.recipe(epochs=1), data, tmp_path / "run", cache, init=tmp_path / "init")
    assert open_checkpoint(best).config.temperature == 1.0


def test_a_decoder_learns_to_look_at_tags_and_the_tags_stay(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    released = tiny.as_released(data, tmp_path / "init")
    recipe = tiny.recipe(epochs=1)
    recipe = replace(recipe, model=replace(recipe.model, decoder=replace(recipe.model.decoder, tag_slots=3)))
    with pytest.raises(ConfigError, match="tag_slots is 3, of 0 tags; it takes a checkpoint that has been given"):
        run(recipe, data, tmp_path / "fresh", cache)
    best = load_captioner(run(recipe, data, tmp_path / "run", cache, init=tmp_path / "init"))
    torch.manual_seed(recipe.train.seed)
    before = initial_captioner(recipe, data, tmp_path / "init")
    assert released.tags is not None
    after = best.state_dict()
    changed = {name for name, value in before.state_dict().items() if not torch.allclose(value, after[name], atol=1e-3)}
    assert {"decoder.tag.weight", "decoder.embedding.weight"} <= changed
    assert all(name.startswith("decoder.") for name in changed)


def test_words_that_the_captions_add_are_learnt_with_extend_only(
    data: CaptionData, cache: Path, tmp_path: Path
) -> None:
    first = run(tiny.recipe(epochs=1), data, tmp_path / "first", cache)
    folder = write_shapes(tmp_path / "new", train=12, val=4, test=2, size=32)
    text = (folder / "captions.txt").read_text().replace("circle", "disc")
    (folder / "captions.txt").write_text(text)
    known = open_checkpoint(first).vocabulary.words
    for extend in (False, True):
        recipe = replace(tiny.recipe(epochs=1), extend=extend)
        best = run(recipe, read(folder), tmp_path / str(extend), cache, init=first)
        assert open_checkpoint(best).vocabulary.words == (*known, *(("disc",) if extend else ()))


def test_sets_have_weights_in_the_choice_of_the_best_epoch(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen_by({"a": 3.0, "b": 9.0}, {}) == 3.0  # the first decides
    assert chosen_by({"a": 3.0, "b": 9.0}, {"a": 1, "b": 2}) == pytest.approx(7)
    scores = iter([(9.0, 1.0), (1.0, 5.0), (2.0, 2.0)])

    def evaluate(*_: Any) -> Evaluation:
        a, b = next(scores)
        return Evaluation([["a"]], {"shapes": np.array([a]), "more": np.array([b])}, 1.0, 0.0)

    both = (*data.pictures, *(replace(picture, source="more") for picture in data.split("val")))
    recipe = replace(tiny.recipe(epochs=3), choose={"shapes": 0.2, "more": 0.8})
    monkeypatch.setattr(validation, "evaluate", evaluate)
    best = run(recipe, CaptionData(both, {}), tmp_path, cache)
    assert open_checkpoint(best).metrics["validation"]["epoch"] == 2
    assert best_epoch(json.loads((tmp_path / "history.json").read_text()))["epoch"] == 2


@pytest.mark.parametrize("key", ["visits", "choose"])
def test_a_set_that_is_not_there_is_named(key: Any, data: CaptionData, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{key} names nonesuch; the sets with .* pictures are: shapes"):
        run(replace(tiny.recipe(), **{key: {"nonesuch": 1.0}}), data, tmp_path, cache)


def test_what_a_checkpoint_gives_is_written_down_as_what_ran(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    first = run(tiny.recipe(epochs=1), data, tmp_path / "first", cache)
    file = tmp_path / "more.toml"
    file.write_text("""
[model]
name = "more"
decoder.dropout = 0.1
[train]
epochs = 1
precision = "fp32"
""")
    recipe = find_recipe(str(file), inherited(first))
    best = run(recipe, data, tmp_path / "more", cache, first)
    written = json.loads((tmp_path / "more" / "recipe.json").read_text())
    assert written == open_checkpoint(best).metrics["recipe"]
    model = written["model"]
    assert model == json.loads(json.dumps(asdict(open_checkpoint(best).config)))
    assert (model["encoder"]["name"], model["preprocess"]["size"]) == (tiny.ENCODER, 32)
    assert (model["decoder"]["hidden_size"], model["decoder"]["dropout"], model["name"]) == (16, 0.1, "more")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model.decoder.hidden_size = 512", r"model\.decoder\.hidden_size is 512, there 16; leave these keys out"),
        ("model.encoder.name = 'efficientnet_lite1'", "model.encoder.name is 'efficientnet_lite1', there"),
        ("model.preprocess.size = 224", "model.preprocess.size is 224, there 32"),
        ("vocabulary = 'pieces'", "vocabulary is 'pieces', there 'words'"),
    ],
)
def test_a_key_that_conflicts_with_the_checkpoint_is_an_error(
    text: str, message: str, data: CaptionData, tmp_path: Path
) -> None:
    """Also where it is set to what would have been the default (512, 224)."""
    save_captioner(tiny.captioner(data), tmp_path / "init", {})
    (tmp_path / "mine.toml").write_text(text)
    recipe = find_recipe(str(tmp_path / "mine.toml"), inherited(tmp_path / "init"))
    with pytest.raises(ConfigError, match=message):
        run(recipe, data, tmp_path / "run", tmp_path / "cache", tmp_path / "init")
    assert not (tmp_path / "run").exists()


# --- from teachers ---------------------------------------------------------------------------------


def test_what_is_taught_is_learnt(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    teacher = run(tiny.recipe(), data, tmp_path / "teacher", cache)
    alone = run(tiny.recipe(seed=1), data, tmp_path / "alone", cache, teacher)
    taught = run(tiny.recipe(seed=1, teacher_share=0.5), data, tmp_path / "taught", cache, teacher, [teacher, alone])
    assert load_captioner(taught).vocabulary.words == load_captioner(teacher).vocabulary.words
    with pytest.raises(AssertionError):
        assert_same(load_captioner(taught).state_dict(), load_captioner(alone).state_dict())
    again = run(tiny.recipe(seed=1, teacher_share=0.5), data, tmp_path / "again", cache, teacher, [teacher, alone])
    assert_same(load_captioner(again).state_dict(), load_captioner(taught).state_dict())


def test_teachers_that_do_not_fit_are_refused(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    mine = tiny.captioner(data)
    other, folded = copy.deepcopy(mine), copy.deepcopy(mine)
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1)
    fold_norms(folded.encoder)
    preprocess = replace(mine.config.preprocess, size=mine.config.preprocess.size + 32)
    captioners = {
        "mine": mine,
        "wordy": Captioner(mine.config, Vocabulary.build(["quite another language"], 1)),
        "larger": Captioner(replace(mine.config, preprocess=preprocess), mine.vocabulary),
        "other": other,
        "another": Captioner(replace(mine.config, encoder=EncoderConfig("efficientnet_lite1")), mine.vocabulary),
        "folded": folded,  # as in a release: other numbers, the same function
    }
    for name, captioner in captioners.items():
        save_captioner(captioner, tmp_path / name, {})
    taught = tiny.recipe(teacher_share=0.5)
    run(taught, data, tmp_path / "learnt", cache, tmp_path / "mine", [tmp_path / "folded"])
    stages = "the first 8 encoder stages"
    messages = {"wordy": "another vocabulary", "larger": "takes other pixels", "other": stages, "another": stages}
    for name, message in messages.items():
        with pytest.raises(DataError, match=message):
            run(taught, data, tmp_path / "run", cache, tmp_path / "mine", [tmp_path / name])
    for recipe, teachers in ((taught, []), (tiny.recipe(), [tmp_path / "mine"])):
        with pytest.raises(ConfigError, match=r"train\.teacher_share above 0 come together"):
            run(recipe, data, tmp_path / "run", cache, tmp_path / "mine", teachers)


def test_likelihood_is_added_to_the_self_critical_loss(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run(tiny.recipe(), data, tmp_path / "alone", cache)
    monkeypatch.setattr(objectives, "draw", lambda *_: torch.ones(1, 1, 2, dtype=torch.int64))
    monkeypatch.setattr(objectives, "cider_loss", lambda *_: (torch.zeros(()), 0.0))
    added = run(tiny.recipe(objective="cider", likelihood_weight=1.0), data, tmp_path / "added", cache)
    assert_same(load_captioner(added).state_dict(), load_captioner(alone).state_dict())


def test_rewards_of_mirrored_pictures_come_from_mirrored_captions(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shapes(tmp_path / "set", train=12, val=4, test=2, size=32)
    text = (folder / "captions.txt").read_text().replace("above", "right of")
    (folder / "captions.txt").write_text(text)
    data = read(folder)
    recipe = tiny.recipe(objective="cider", epochs=1, samples=2, batch_size=12)
    recipe = replace(recipe, train_stages=9, augment=replace(recipe.augment, flip=True))
    seen: list[tuple[batching.Batch, list[list[str]]]] = []
    memory_of = objectives.memory_of
    batches: list[batching.Batch] = []

    def watched(captioner: Any, inputs: torch.Tensor, frozen: int) -> Any:
        return memory_of(captioner, inputs, frozen)

    def cider_loss(captioner: Any, memory: Any, pictures: list[int], reward: Any, *_: Any) -> Any:
        references = []
        vocabulary: Vocabulary = captioner.vocabulary
        for picture in pictures:
            # The reference itself earns the most; find it among all captions by its reward.
            known = [c for p in data.pictures for c in p.captions]
            known += [mirrored(c) or "" for c in known]
            ids = [[*vocabulary.encode(c), 2] for c in known]
            scores = reward(ids, [picture] * len(ids))
            references.append([c for c, s in zip(known, scores, strict=True) if s == max(scores)])
        seen.append((batches[-1], references))
        return memory.start.sum() * 0, 0.0

    make = batching.CaptionSource._batch

    def batch(self: Any, *arguments: Any) -> batching.Batch:
        batches.append(make(self, *arguments))
        return batches[-1]

    monkeypatch.setattr(objectives, "memory_of", watched)
    monkeypatch.setattr(objectives, "cider_loss", cider_loss)
    monkeypatch.setattr(batching.CaptionSource, "_batch", batch)
    run(recipe, data, tmp_path / "run", cache)
    ((made, references),) = seen
    assert True in made.flipped
    assert False in made.flipped
    pictures = data.split("train")
    for row, flip, found in zip(made.rows, made.flipped, references, strict=True):
        own = pictures[row].captions[0]
        assert (mirrored(own) if flip else own) in found


# --- mistakes --------------------------------------------------------------------------------------


def test_divergence_stops_with_advice_and_keeps_the_last_save(
    data: CaptionData, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(save_every=ALWAYS)
    loss, calls = objectives.likelihood_loss, []

    def diverging(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return loss(*arguments) * (float("nan") if len(calls) == 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(objectives, "likelihood_loss", diverging)
        with pytest.raises(TrainingDiverged, match=r"lower train\.learning_rate"):
            run(recipe, data, tmp_path, cache)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_part_of_the_data_that_is_missing_is_named(data: CaptionData, cache: Path, tmp_path: Path) -> None:
    for split, advice in (("train", "hold fewer out"), ("val", "hold some out with PATH:val=N")):
        some = CaptionData(tuple(p for p in data.pictures if p.split != split), {})
        with pytest.raises(DataError, match=rf"no {split} pictures in the data; {advice}"):
            run(tiny.recipe(), some, tmp_path, cache)


@pytest.mark.parametrize("stages", [-1, 10])
def test_more_stages_than_there_are_is_an_error(stages: int, data: CaptionData, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"train_stages is {stages}, the encoder has 9"):
        run(replace(tiny.recipe(), train_stages=stages), data, tmp_path, cache)
