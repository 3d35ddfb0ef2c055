from __future__ import annotations

from pathlib import Path

import pytest

from model.config import ModelConfig, PreprocessConfig
from model.errors import ConfigError
from training.config import RECIPES, Recipe, TrainConfig, read_recipe


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text)
    return file


def test_a_recipe_overrides_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, "views = 3\n[model.preprocess]\nsize = 96\n[train]\nepochs = 2\nclip = 1\n"))
    assert recipe == Recipe(
        name="mine",
        views=3,
        model=ModelConfig(preprocess=PreprocessConfig(size=96)),
        train=TrainConfig(epochs=2, clip=1),
    )


def test_a_recipe_can_build_on_another(tmp_path: Path) -> None:
    base = Recipe(name="base", views=7)
    recipe = read_recipe(write(tmp_path, "min_count = 2"), base)
    assert (recipe.name, recipe.views, recipe.min_count) == ("base", 7, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'; known keys: augment, .*train"),
        ("[train]\nepoch = 3", r"unknown key train\.'epoch'; known keys: .*epochs"),
        ("[model.decoder]\nhidden = 3", r"unknown key model\.decoder\.'hidden'"),
        ("[augment]\nflop = true", r"unknown key augment\.'flop'; known keys: flip, jitter, language, min_scale"),
        ("[train]\nobjective = 'cidr'", r"train\.objective must be 'likelihood' or 'cider', not 'cidr'"),
        ("[train]\nepochs = 'many'", r"train\.epochs must be int, not 'many'"),
        ("[train]\nobjective = 'cider'\nsamples = 1", r"train\.samples must be at least 2"),
        ("[visits]\nmine = -1", "visits must not be negative"),
        ("[visits]\nmine = 'often'", "visits must be Mapping, not"),
        ("[choose]\nmine = 0", "the weights in choose must not be negative, nor all 0"),
        ("[train]\nepochs = 0", r"train\.epochs must be at least 1, train\.min_steps and train\.warmup not negative"),
        ("[train]\nwarmup = -0.1", r"train\.warmup not negative"),
        ("[train", "mine.toml: "),
        ("views = 1\nviews = 2", "mine.toml: "),
    ],
)
def test_mistakes_are_errors(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(write(tmp_path, text))


def test_a_missing_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no recipe at .*nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_recipe_that_ships_is_valid(file: Path) -> None:
    assert read_recipe(file) != Recipe(name=file.stem)
