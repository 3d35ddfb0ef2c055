"""Writes the documents that are made from the code and from measured figures; --check only compares.

docs/configuration.md from app/settings.py, docs/benchmarks.md from docs/benchmarks.json, the picture in
docs/architecture.md from the imports, and the marked blocks of README.md and docs/scaling.md from all these and
from the embedded model's metrics.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sizing  # noqa: E402
from imports import mermaid  # noqa: E402

from app.settings import Settings, markdown  # noqa: E402
from benchmarks import report  # noqa: E402
from benchmarks.report import BENCHMARKS, table  # noqa: E402

README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
SCALING = ROOT / "docs" / "scaling.md"
METRICS = ROOT / "model" / "weights" / "default" / "metrics.json"
SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
COMMON_SETTINGS = ("model", "device", "threads", "max_upload_mb", "queue_size", "deadline", "api_keys", "cors_origins")

CONFIGURATION = """# Configuration

Every setting is an environment variable; an empty one is as if it were not set. An impossible value stops the service
at start with a line that says which, and so does a `CAPTION_` variable that is not in this table. `scripts/serve` has
flags for the first few.

"""


def quality_block(metrics: Mapping[str, Any]) -> str:
    """README's quality figures, of the test pictures, and of validation pictures where a set has no test part."""
    columns = dict(metrics["test"])
    columns |= {f"{name}, validation": facts for name, facts in metrics["validation"].items() if name not in columns}

    def score(facts: Mapping[str, Any], name: str) -> str:
        low, high = facts["intervals"].get(name, (None, None))
        return f"{facts[name]:.1f}" + ("" if low is None else f" ({low:.1f} to {high:.1f})")

    rows = [[name, *(score(facts, name) for facts in columns.values())] for name in SCORES]
    objects = {
        "objects_right": "of the objects named, those there",
        "objects_found": "of the objects there, those named",
    }
    rows += [
        [text, *(score(facts, name) for facts in columns.values())]
        for name, text in objects.items()
        if all(name in facts for facts in columns.values())
    ]
    rows += [
        [name.replace("_", " "), *(facts[name] for facts in columns.values())]
        for name in ("pictures", "distinct_captions")
    ]
    return "\n\n".join(
        [
            f"{metrics['name']} {metrics['version']} on pictures it was not trained on, decoded as the service does "
            f"({metrics['search']}), scored by coco-caption, percent (95 % intervals in brackets); "
            "settings were chosen on validation pictures, nothing on test pictures:",
            table(["", *columns], rows),
            "Printed by `python -m training.commands.evaluate --data SET --split test`; the "
            "[model card](model/weights/default/README.md) has the recipe, the limits and the validation figures.",
        ]
    )


def settings_block() -> str:
    """README's table of the most used settings."""
    lines = markdown().splitlines()
    wanted = {f"| `CAPTION_{name.upper()}` " for name in COMMON_SETTINGS}
    assert set(COMMON_SETTINGS) <= set(Settings.model_fields)
    return "\n".join([*lines[:2], *(line for line in lines[2:] if any(line.startswith(start) for start in wanted))])


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """`text` with each `<!-- name -->` ... `<!-- end -->` block replaced."""
    for name, content in blocks.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        assert found, f"there is no block named {name}"
        text = before + start + content + "\n" + end + rest.partition(end)[2]
    return text


def documents() -> dict[Path, str]:
    """Every generated document as it should be."""
    blocks = {"settings": settings_block(), "quality": quality_block(json.loads(METRICS.read_text()))}
    made = {ROOT / "docs" / "configuration.md": CONFIGURATION + markdown() + "\n"}
    if BENCHMARKS.exists():
        records = json.loads(BENCHMARKS.read_text())
        made[ROOT / "docs" / "benchmarks.md"] = report.markdown(records)
        blocks["speed"] = report.speed_block(next(record for record in records if "engines" in record))
        made[SCALING] = filled(SCALING.read_text(), {"sizing": sizing.block(sizing.measured(records))})
    made[README] = filled(README.read_text(), blocks)
    made[ARCHITECTURE] = filled(ARCHITECTURE.read_text(), {"imports": mermaid()})
    return made


def write() -> None:
    """Write them all."""
    for path, text in documents().items():
        path.write_text(text)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/docs.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something is out of date")
    if not parser.parse_args().check:
        write()
        return 0
    stale = [path for path, text in documents().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is out of date: run python scripts/docs.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
