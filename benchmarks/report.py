"""docs/benchmarks.md and its plot, from docs/benchmarks.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import ROOT

BENCHMARKS = ROOT / "docs" / "benchmarks.json"
PLOT = ROOT / "docs" / "images" / "benchmarks.png"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns after the first are numbers."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value: float | None) -> str:
    """Three significant digits, without a trailing exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


KEPT = 0.97  # of the captions, by another way to decode a picture that could be taken
# Columns of a comparison; the last ones where a row has them.
COLUMNS = {"min_ms": "minimum, ms", "median_ms": "median, ms", "cpu_ms": "CPU, ms", "ratio": "times ours"}
MORE_COLUMNS = {
    "floor_ms": "floor, ms",
    "exact_ratio": "float32, times this",
    "per_s": "captions a second",
    "same": "same captions",
    "same_exact": "same in float32",
}


def contenders(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of one comparison."""
    columns = {**COLUMNS, **{key: name for key, name in MORE_COLUMNS.items() if any(key in row for row in rows)}}

    def cell(row: Mapping[str, Any], key: str) -> str:
        if key in ("same", "same_exact") and key in row:
            return f"{row[key]} of {row['of']}"
        return number(row.get(key))

    return table(["", *columns.values()], [[row["name"], *(cell(row, key) for key in columns)] for row in rows])


def worth_taking(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a large JPEG's ways to pixels come to: is any faster than the service's, which is first, and as good?"""
    mine, ways = rows[0], [row for row in rows[1:] if "same_exact" in row]
    taken = [row["name"] for row in ways if row["ratio"] < 1 and row["same_exact"] >= KEPT * row["of"]]
    at_best = max((row["same_exact"] for row in ways if row["same_exact"] < row["of"]), default=0)
    return (
        f"Faster than the service's way, with {100 * KEPT:g} % of the captions kept in float32: "
        f"{'; '.join(taken) or 'none'}. The service's keeps {100 * mine['same_exact'] / mine['of']:.3g} %, the best of "
        f"the others {100 * at_best / mine['of']:.3g} %."
    )


def processor(results: Mapping[str, Any]) -> tuple[str, str]:
    """What a record is of."""
    return results["machine"]["cpu"], results["machine"]["instructions"]


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """docs/benchmarks.md: of each processor, the last measured first, what its record holds."""
    head = (
        "# Benchmarks\n\n"
        "Printed by `scripts/bench`, a part for each processor; only within one may figures be compared. "
        "Contenders take turns within every round; *times ours* is the median over rounds of theirs to ours in the "
        "same round, which other load on the machine disturbs least. CPU time is that of all threads and processes. "
        "A turn of an engine or a server is a few pictures, after one that does not count."
    )
    parts = [head, *("\n\n".join(_measured(record)) for record in records)]
    if PLOT.exists():
        parts.append("![How the cost grows](images/benchmarks.png)")
    return "\n\n".join(parts) + "\n"


def _measured(results: Mapping[str, Any]) -> list[str]:
    """A processor's part: its machine, and the sections that its record has."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    cpu, instructions = processor(results)
    parts = [
        f"## {cpu}: {instructions}",
        f"{machine['cores']} cores; Python {machine['python']}, {packages}. Model {results['model']}; pictures: "
        f"{results['pictures']}; {results['tokens']} tokens a caption, beam {results['beam']}.",
    ]
    for key, section in SECTIONS.items():
        if key in results:
            parts += section(results)
    return parts


def _engines(results: Mapping[str, Any]) -> list[str]:
    return ["### One picture, engine alone", contenders(results["engines"])]


def _instructions(results: Mapping[str, Any]) -> list[str]:
    parts = [
        "### With fewer instructions, engine alone\n\n"
        "Processes limited by oneDNN's `ONEDNN_MAX_CPU_ISA`, which OpenVINO's kernels keep to; each in the numbers "
        "that it chooses, and in float32. The floor is that of the encoder and the search, see below."
    ]
    for title, rows in results["instructions"].items():
        parts += [f"#### {title}", contenders(rows)]
    return parts


def _servers(results: Mapping[str, Any]) -> list[str]:
    overhead = results["overhead"]
    return [
        "### Over HTTP, one client",
        contenders(results["one_client"]),
        f"The service takes {number(overhead['ratio_to_file'])} times its engine's own time for the same files, "
        f"{number(overhead['ratio'])} times what the engine takes once they are decoded "
        f"({number(overhead['http_ms'])} ms to {number(overhead['file_ms'])} and {number(overhead['engine_ms'])} "
        "ms a picture, in turns).",
        "### Over HTTP, 16 clients at once",
        "The time of the whole round divided by its requests; less is more throughput.",
        contenders(results["sixteen_clients"]),
        *([f"A server that took no time of its own would be {number(overhead['most'])} times as fast as LitServe "
           "around this engine."] if "most" in overhead else []),
    ]  # fmt: skip


def _parts(results: Mapping[str, Any]) -> list[str]:
    rows = [[r["name"], number(r["min_ms"]), number(r["median_ms"]), number(r["floor_ms"])] for r in results["parts"]]
    parts = [
        "### Where the time goes",
        "The floor is the larger of operations over the processor's measured rate (a large matrix product in the "
        "fastest format it has) and the weights it reads, as stored, over its measured memory bandwidth, which "
        "caches may beat. Of decoding and resizing it is the time of the fastest library at hand: OpenCV's "
        "libjpeg-turbo, and fast_image_resize.",
        table(["", "minimum, ms", "median, ms", "floor, ms"], rows),
    ]
    ratios = [number(row["min_ms"] / row["floor_ms"]) for row in results["parts"] if row["name"].startswith("sum")]
    if ratios:
        fast = f", resized fast {ratios[1]} times" if len(ratios) > 1 else ""
        parts.append(f"The sum of the minima is {ratios[0]} times that of the floors{fast}.")
    for row in results["parts"]:
        if "kernels_ms" in row:
            parts.append(
                f"The layers of the encoder take {number(row['kernels_ms'])} ms by OpenVINO's own clock, each layer's "
                f"least added up; of the {number(row['min_ms'])} ms here the rest is around them, and waiting for "
                "memory and threads that were at something else."
            )
    return parts


def _event_loop(results: Mapping[str, Any]) -> list[str]:
    parts = []
    for clients, loop in results["event_loop"].items():
        cells = [[r["name"], number(r["cpu_ms"])] for r in loop["rows"]]
        cells.append(["sum", number(sum(r["cpu_ms"] for r in loop["rows"]))])
        parts += [
            f"### CPU of a request, {'one client' if clients == '1' else f'{clients} clients at once'}",
            table(["", "CPU, ms a request"], cells),
            f"Medians over rounds, {loop['requests']} requests. All processes together used "
            f"{number(loop['whole_ms'])} ms a request, without the watch {number(loop['plain_ms'])} ms, in turns.",
        ]
    return parts


def _costs(results: Mapping[str, Any]) -> list[str]:
    titles = {
        "size": ("JPEG, decoded and captioned", "pixels"),
        "beam": ("Beam size", "beam"),
        "length": ("Longest caption allowed (decoding only)", "words"),
        "batch": ("Pictures in a batch", "batch"),
    }
    parts = []
    for key, (title, column) in titles.items():
        if key in results["costs"]:
            rows = results["costs"][key]
            first = next(iter(rows[0]))
            cells = [[r[first], number(r["min_ms"]), number(r["median_ms"]), number(r["cpu_ms"])] for r in rows]
            each = " a picture" if key == "batch" else ""
            header = [column, f"minimum, ms{each}", f"median, ms{each}", f"CPU, ms{each}"]
            parts += [f"### How the cost grows: {title}", table(header, cells)]
    return parts


def _clients(results: Mapping[str, Any]) -> list[str]:
    cells = [[r["clients"], number(r["p50_ms"]), number(r["p95_ms"]), r["captions_per_s"]] for r in results["clients"]]
    return [
        "### How the cost grows: clients at once",
        table(["clients", "p50, ms", "p95, ms", "captions a second"], cells),
    ]


def _large_jpeg(results: Mapping[str, Any]) -> list[str]:
    large = results["large_jpeg"]
    return [
        "### A 12-megapixel JPEG",
        contenders(large["rows"]),
        f"The file has {large['megabytes']} MB. Captions are those of {large['pictures']} pictures enlarged to as "
        "many pixels, and compared with those of the full decode with the same resize: by the engine as it is, and "
        "in float32.",
        *([worth_taking(large["rows"])] if sum("same_exact" in row for row in large["rows"]) > 2 else []),
    ]


def _start_up(results: Mapping[str, Any]) -> list[str]:
    start = results["start_up"]
    parts = [
        "### Start and memory",
        f"From process start to the first caption, over {start['starts']} starts: "
        f"{start['cpu_s']['median']} s of CPU (minimum {start['cpu_s']['min']} s), "
        f"{start['wall_s']['median']} s by the clock (minimum {start['wall_s']['min']} s).",
    ]
    if "memory" in start:
        rows = [[r["name"], str(r["rss_mb"]), str(r["pss_mb"] or "")] for r in start["memory"]]
        parts += [
            table(["memory", "resident in the process that captions, MB", "of all processes, MB"], rows),
            "Of all processes together what they share counts once. What several pictures at once need is compiled "
            "when they come.",
        ]
    else:  # of a record before there was this table
        parts += [
            f"Resident memory is {start['rss_mb']} MB after the first caption, {start['rss_after_100_mb']} MB after "
            f"100 requests and {start['rss_after_all_mb']} MB after {start['requests']} more.",
        ]
    if "protocols" in start:
        times = start["protocols"]
        parts += [
            "With other services' protocols, in turns with a service without them (`CAPTION_COMPAT=none`), a start "
            f"takes {times['cpu_s']} times the CPU, memory is {times['rss_mb']} times as much after it and "
            f"{times['rss_after_100_mb']} times after 100 requests, and half of those take at most "
            f"{times['p50_ms']} times as long.",
        ]
    return parts


# By the key of a record that says that a section was measured, in the order of the page.
SECTIONS = {
    "engines": _engines,
    "instructions": _instructions,
    "one_client": _servers,
    "parts": _parts,
    "event_loop": _event_loop,
    "costs": _costs,
    "clients": _clients,
    "large_jpeg": _large_jpeg,
    "start_up": _start_up,
}


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


def speed_block(results: Mapping[str, Any]) -> str:
    """README's speed figures, of one processor."""
    cpu, instructions = processor(results)
    parts = [
        f"On {results['machine']['cores']} cores of {cpu} ({instructions}), one picture at a time, beam "
        f"{results['beam']}:",
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
