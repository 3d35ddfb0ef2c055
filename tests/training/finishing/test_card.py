from __future__ import annotations

import json
from pathlib import Path

from training.finishing.card import card

EMBEDDED = Path(__file__).parents[3] / "model" / "weights" / "default"


def test_the_shipped_card_is_what_its_metrics_say() -> None:
    facts = json.loads((EMBEDDED / "metrics.json").read_text(encoding="utf-8"))
    shown = card(facts)
    assert shown == (EMBEDDED / "README.md").read_text(encoding="utf-8")
    for stage in facts["training"]:
        assert f"`{stage['recipe']['name']}`: {stage['epochs']} epochs, best {stage['best_epoch']}" in shown
    facts["test"]["flickr8k"]["CIDEr"] = 12.34
    assert "| 12.3 |" in card(facts)
