"""docs/scaling.md names what there is, and its table of sizes follows from what was measured."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "scaling.md").read_text()
RECORDS = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
RESULTS = next(record for record in RECORDS if "clients" in record and "start_up" in record)


def sizing(*arguments: str) -> list[list[str]]:
    """The cells of what scripts/sizing.py prints, without the rule."""
    command = [sys.executable, "scripts/sizing.py", *arguments]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()]
    return [rows[0], *rows[2:]]


def test_the_table_follows_from_the_measured_rate_of_a_core() -> None:
    each = max(row["captions_per_s"] for row in RESULTS["clients"]) / RESULTS["machine"]["cores"]
    _, *rows = sizing("--rates", "10", "1000")
    for rate, row in zip((10, 1000), rows, strict=True):
        cores = int(row[1].replace(",", ""))
        assert rate <= 0.7 * each * cores
        assert cores - 2 < max(rate / (0.7 * each), 2)
        assert float(row[5]) == pytest.approx(1e6 / (0.7 * each) / 3600, rel=0.01)


def test_a_price_is_multiplied_with_the_hours_of_cores() -> None:
    [_, row] = sizing("--rates", "10", "--core-hour", "2")
    assert float(row[-1]) == pytest.approx(2 * float(row[5]), rel=0.01)
    assert math.isfinite(float(row[-1]))


def test_files_that_it_names_exist() -> None:
    named = set(re.findall(r"\b(?:deploy|scripts)/[\w./-]+\w", TEXT))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", TEXT)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_commands_that_it_shows_have_the_options_that_it_shows() -> None:
    for command, module in (("caption-bulk", "app.bulk"), ("scripts/gpu-train pack", "training.gpu")):
        shown = {
            option
            for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
            for line in block.splitlines()
            if line.startswith(command)
            for option in re.findall(r"--[a-z-]+", line)
        }
        assert shown
        more = command.split()[1:]
        text = subprocess.run(
            [sys.executable, "-m", module, *more, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert [option for option in shown if option not in text] == []
