"""Writes the documents that are made from the code and from measured figures; --check only compares.

docs/configuration.md from app/settings.py, docs/benchmarks.md from docs/benchmarks.json, and the
marked blocks of README.md and docs/scaling.md from both and from the embedded model's metrics.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import sizing  # noqa: E402

from app.settings import Settings, markdown  # noqa: E402

README = ROOT / "README.md"
SCALING = ROOT / "docs" / "scaling.md"
METRICS = ROOT / "model" / "weights" / "default" / "metrics.json"
BENCHMARKS = ROOT / "docs" / "benchmarks.json"
PLOT = ROOT / "docs" / "images" / "benchmarks.png"
SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
COMMON_SETTINGS = ("model", "device", "threads", "max_upload_mb", "queue_size", "deadline", "api_keys", "cors_origins")

CONFIGURATION = """# Configuration

Every setting is an environment variable; an empty one is as if it were not set. An impossible value stops the service
at start with a line that says which, and so does a `CAPTION_` variable that is not in this table. `scripts/serve` has
flags for the first few.

"""


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns after the first are numbers."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value: float | None) -> str:
    """Three significant digits, without a trailing exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def contenders(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of one comparison."""
    cells = [
        [r["name"], number(r["min_ms"]), number(r["median_ms"]), number(r["cpu_ms"]), number(r["ratio"])] for r in rows
    ]
    return table(["", "minimum, ms", "median, ms", "CPU, ms", "times ours"], cells)


def benchmarks_markdown(results: Mapping[str, Any]) -> str:
    """docs/benchmarks.md; only what `results` holds."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parts = [
        "# Benchmarks",
        f"Printed by `scripts/bench`. {machine['cores']} cores of {machine['cpu']}; Python {machine['python']}, "
        f"{packages}. Model {results['model']}; pictures: {results['pictures']}; {results['tokens']} tokens a caption, "
        f"beam {results['beam']}.\n\n"
        "Contenders take turns within every round; *times ours* is the median over rounds of theirs to ours in the "
        "same round, which other load on the machine disturbs least. CPU time is that of all threads and processes. "
        "A turn of an engine or a server is a few pictures, after one that does not count.",
    ]
    if "engines" in results:
        parts += ["## One picture, engine alone", contenders(results["engines"])]
    if "one_client" in results:
        overhead = results["overhead"]
        parts += [
            "## Over HTTP, one client",
            contenders(results["one_client"]),
            f"The service takes {number(overhead['ratio_to_file'])} times its engine's own time for the same files, "
            f"{number(overhead['ratio'])} times what the engine takes once they are decoded "
            f"({number(overhead['http_ms'])} ms to {number(overhead['file_ms'])} and {number(overhead['engine_ms'])} "
            "ms a picture, in turns).",
            "## Over HTTP, 16 clients at once",
            "The time of the whole round divided by its requests; less is more throughput.",
            contenders(results["sixteen_clients"]),
        ]
    if "parts" in results:
        rows = [
            [r["name"], number(r["min_ms"]), number(r["median_ms"]), number(r["floor_ms"])] for r in results["parts"]
        ]
        parts += [
            "## Where the time goes",
            "The floor is the larger of operations over the processor's measured rate (a large matrix product in the "
            "fastest format it has) and the weights it reads, as stored, over its measured memory bandwidth, which "
            "caches may beat.",
            table(["", "minimum, ms", "median, ms", "floor, ms"], rows),
        ]
    titles = {
        "size": ("JPEG, decoded and captioned", "pixels"),
        "beam": ("Beam size", "beam"),
        "length": ("Longest caption allowed (decoding only)", "words"),
        "batch": ("Pictures in a batch", "batch"),
    }
    for key, (title, column) in titles.items():
        if key in results.get("costs", {}):
            rows = results["costs"][key]
            first = next(iter(rows[0]))
            cells = [[r[first], number(r["min_ms"]), number(r["median_ms"]), number(r["cpu_ms"])] for r in rows]
            each = " a picture" if key == "batch" else ""
            header = [column, f"minimum, ms{each}", f"median, ms{each}", f"CPU, ms{each}"]
            parts += [f"## How the cost grows: {title}", table(header, cells)]
    if "clients" in results:
        cells = [
            [r["clients"], number(r["p50_ms"]), number(r["p95_ms"]), r["captions_per_s"]] for r in results["clients"]
        ]
        parts += [
            "## How the cost grows: clients at once",
            table(["clients", "p50, ms", "p95, ms", "captions a second"], cells),
        ]
    if "large_jpeg" in results:
        large = results["large_jpeg"]
        parts += [
            "## A 12-megapixel JPEG",
            contenders(large["rows"]),
            f"The file has {large['megabytes']} MB. Of {large['pictures']} pictures "
            f"{large['same_captions_exact']} get the same caption as from the full decode by the engine in float32, "
            f"{large['same_captions']} by the engine as it is; two resizers of one full decode agree on "
            f"{large['same_captions_in_full']}.",
        ]
    if "start_up" in results:
        start = results["start_up"]
        parts += [
            "## Start and memory",
            f"From process start to the first caption, over {start['starts']} starts: "
            f"{start['cpu_s']['median']} s of CPU (minimum {start['cpu_s']['min']} s), "
            f"{start['wall_s']['median']} s by the clock (minimum {start['wall_s']['min']} s). "
            f"Resident memory is {start['rss_mb']} MB after the first caption, {start['rss_after_100_mb']} MB after "
            f"100 requests and {start['rss_after_all_mb']} MB after {start['requests']} more.",
        ]
    if PLOT.exists():
        parts.append("![How the cost grows](images/benchmarks.png)")
    return "\n\n".join(parts) + "\n"


def plot(results: Mapping[str, Any]) -> None:
    """docs/images/benchmarks.png: the five cost tables."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(results.get("costs", {}).get(key), key) for key in ("size", "beam", "length", "batch")]
    panels.append((results.get("clients"), "clients"))
    titles = {
        "size": "JPEG size, pixels",
        "beam": "beam size",
        "length": "longest caption, words (decoding only)",
        "batch": "batch (time a picture)",
        "clients": "clients at once (p50)",
    }
    shown = [(rows, key) for rows, key in panels if rows]
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 2.8), squeeze=False, layout="constrained")
    for axis, (rows, key) in zip(axes[0], shown, strict=True):
        first = next(iter(rows[0]))
        axis.plot(
            [str(r[first]) for r in rows], [r.get("median_ms", r.get("p50_ms")) for r in rows], "o-", color="#2a6f97"
        )
        axis.set_title(titles[key], fontsize=9)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=8, axis="x", rotation=30 if key == "size" else 0)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("milliseconds (median)", fontsize=9)
    figure.savefig(PLOT, dpi=110)


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
            "Printed by `python -m training.evaluate --data SET --split test`; the "
            "[model card](model/weights/default/README.md) has the recipe, the limits and the validation figures.",
        ]
    )


def speed_block(results: Mapping[str, Any]) -> str:
    """README's speed figures."""
    machine = results["machine"]
    parts = [
        f"On {machine['cores']} cores of {machine['cpu']}, one picture at a time, beam {results['beam']}:",
        contenders(results["engines"]),
    ]
    if "overhead" in results:
        ratio = number(results["overhead"]["ratio_to_file"])
        parts.append(f"Over HTTP a caption takes {ratio} times the engine's own time for the same file.")
    parts.append(
        "Printed by `scripts/bench`; [docs/benchmarks.md](docs/benchmarks.md) has other servers, many clients, "
        "start-up, memory, and how the cost grows."
    )
    return "\n\n".join(parts)


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
        assert found, f"README.md has no block named {name}"
        text = before + start + content + "\n" + end + rest.partition(end)[2]
    return text


def documents() -> dict[Path, str]:
    """Every generated document as it should be."""
    blocks = {"settings": settings_block(), "quality": quality_block(json.loads(METRICS.read_text()))}
    made = {ROOT / "docs" / "configuration.md": CONFIGURATION + markdown() + "\n"}
    if BENCHMARKS.exists():
        results = json.loads(BENCHMARKS.read_text())
        made[ROOT / "docs" / "benchmarks.md"] = benchmarks_markdown(results)
        blocks["speed"] = speed_block(results)
        made[SCALING] = filled(SCALING.read_text(), {"sizing": sizing.block(results)})
    made[README] = filled(README.read_text(), blocks)
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
