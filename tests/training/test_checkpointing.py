from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from training.checkpointing import Progress, restore_state


def test_a_run_that_an_older_release_began_goes_on() -> None:
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    wanted = Progress(epoch=1, step=2, loss=3.0, metric=4.0, history=[{"epoch": 1, "figure": 5.0}])
    progress = asdict(wanted)
    progress["figure"] = progress.pop("metric")  # as release 2.0 saved it
    content: dict[str, Any] = {
        "model": module.state_dict(), "optimizer": optimizer.state_dict(), "average": None,
        "rng": torch.get_rng_state(), "cuda_rng": None, "progress": progress,
    }  # fmt: skip
    assert restore_state(content, module, optimizer, None) == wanted  # type: ignore[arg-type]


def test_an_epoch_is_recorded_with_its_metric_by_name() -> None:
    progress = Progress()
    for loss, metric in ((1.0, 10.0), (3.0, 20.0)):
        progress.end_step(loss, metric, gradient_norm=0.5)
    assert progress.means("perplexity") == {"loss": 2.0, "perplexity": 15.0}
    record = progress.end_epoch("perplexity", 0.1, {"val_loss": 4.0})
    assert record == {
        "epoch": 1, "train_loss": 2.0, "perplexity": 15.0, "learning_rate": 0.1, "gradient_norm": 0.5, "val_loss": 4.0
    }  # fmt: skip
    assert (progress.epoch, progress.step, progress.metric, progress.history) == (1, 0, 0.0, [record])
