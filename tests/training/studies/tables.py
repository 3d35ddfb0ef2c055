from __future__ import annotations

from pathlib import Path

from tests.training.tiny import CPU, shapes
from training.data import CaptionData
from training.studies.ablate import Bench, Result, Row, Table, read_table

TABLE = """
[pictures]
train = 20
val = 5
[base]
encoder_weights = "none"
min_count = 1
[base.model.preprocess]
size = 32
[base.model.encoder]
name = "efficientnet_lite_tiny"
[base.model.decoder]
embed_size = 8
hidden_size = 8
[base.train]
epochs = 1
captions_per_picture = 1
precision = "fp32"
[rows."second seed"]
train.seed = 1
[rows."fed pieces"]
vocabulary = "pieces"
pieces = 30
model.decoder = {feed_attention = true, tied = false}
[rows."left alone"]
train_sets = ["left"]
[rows."more"]
init = "base"
[rows."pupil"]
init = "more"
teachers = ["base", "more"]
train.teacher_share = 0.5
[rows."in between"]
between = ["base", "more"]
[rows."from there"]
init = "in between"
[rows."together"]
ensemble = ["base", "in between"]
[rows."greedy"]
model.search.beam_size = 1
"""


def write(folder: Path, text: str = TABLE) -> Path:
    file = folder / "ablation.toml"
    file.write_text(text)
    return file


def bench_of(folder: Path, runs: str = "runs", data: CaptionData | None = None) -> Bench:
    table, data = read_table(write(folder)), data or shapes(folder)
    return Bench(table, data, folder / runs, folder / "cache", CPU, folder / "ablation.json")


def result_of(table: Table, row: Row, *ciders: float) -> Result:
    epoch = {"val_loss": 1.0, "distinct": 2, "val_repeated": 0.0}
    history = [{**epoch, "epoch": i, "val_cider": {"a": cider, "b": 1.0}} for i, cider in enumerate(ciders, 1)]
    return Result(history, 9, {"a": 3}, 1.0, table.of(row))
