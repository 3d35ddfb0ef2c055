"""What an ablation gave, for its readers: docs/ablation.md or another table's page, and its plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from training.studies.ablate import SECTIONS, Result, Row, Table
from training.validation import chosen_by


def facts(table: Table, results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """The table's lines, of the rows that have a result, the base first."""

    def decisive(name: str) -> float:
        return chosen_by(results[name].best["val_cider"], table.rows[0].recipe.choose)

    return [
        {
            "row": row.name, "section": table.section(row), "change": row.change + _share(results[row.name].best),
            "cider": dict(results[row.name].best["val_cider"]),
            "to_base": decisive(row.name) - decisive("base"), "interval": results[row.name].interval,
            "loss": results[row.name].best["val_loss"], "distinct": results[row.name].best["distinct"],
            "repeated": results[row.name].best["val_repeated"], "epoch": results[row.name].best["epoch"],
            "pictures": results[row.name].pictures, "seconds": results[row.name].seconds,
        }
        for row in table.rows if row.name in results
    ]  # fmt: skip


def spread(table: Table, lines: Iterable[Mapping[str, Any]]) -> float | None:
    """How far the base recipe's seeds lie apart on the first set, in CIDEr percent; None with one seed."""
    names = {row.name for row in table.seeds()}
    ciders = [line["to_base"] for line in lines if line["row"] in names]
    return max(ciders) - min(ciders) if len(ciders) > 1 else None


def page(table: Table, results: Mapping[str, Result], name: str) -> str:
    """The page, such as docs/ablation.md. name: its own, and its plot's, without ending."""
    lines = facts(table, results)
    recipe, base = table.rows[0].recipe, lines[0]
    paired = any(line["interval"] is not None for line in lines)
    interval_of = ", its interval over pictures where both rows' captions lay on one machine" if paired else ""
    scored = ", ".join(f"{count} of {source}" for source, count in results["base"].scored.items())
    apart = spread(table, lines)
    noise = (
        f"Two runs of the base that differ in their seed alone are {apart:.1f} CIDEr apart: smaller differences mean "
        "nothing."
        if apart is not None
        else "One seed only, so nothing tells how much of a difference is chance."
    )
    small = (
        "On so small a budget what learns quickly looks best: rows show directions, not what a full run reaches. "
        if "train" in table.limits
        else ""
    )
    text = [
        f"# {table.title}",
        "",
        f"Written by `python -m training.commands.ablate`; change that, not this. Budget of a row: "
        f"{recipe.train.epochs} epochs "
        f"on {base['pictures']} pictures, {recipe.train.captions_per_picture} captions each, decoder "
        f"{recipe.model.decoder.hidden_size} wide on {recipe.model.encoder.name}; "
        f"{sum(line['seconds'] for line in lines) / 60:.0f} minutes for all rows here together, run in one sitting or "
        "in several, perhaps on several machines. Every row is the base recipe with one thing changed, and its figures "
        f"are of the epoch, or between two rows of the share, with the best validation CIDEr. {small}{noise}",
        "",
        f"![Change in validation CIDEr against the base, and CIDEr by epoch](images/{name}.png)",
        "",
    ]
    for section, title in SECTIONS.items():
        if mine := [line for line in lines if line["section"] == section]:
            text += [f"## {title}", "", *_rows(mine if base in mine else [base, *mine], paired), ""]
    text += [
        f"CIDEr: percent, free-running search on validation pictures ({scored}; `training.scoring.cider`). "
        f"To base: the change {_decisive(table)}{interval_of}. "
        "Loss: cross-entropy a token under teacher forcing; that of word pieces "
        "is of other tokens. Distinct: different captions. Repeats: captions with a bigram said twice. "
        "Share: how much of the second row's weights, the rest being the first's. "
        "Seconds: wall-clock on the machine that ran the row, with the features that no earlier row had cached: "
        "compare them roughly.",
        "",
    ]
    return "\n".join(text)


def _rows(lines: Sequence[Mapping[str, Any]], paired: bool) -> list[str]:
    """Lines as a table. paired: whether any has an interval."""
    sources = list(lines[0]["cider"])
    return [
        f"| row | change | {' | '.join(f'CIDEr {s}' for s in sources)} | to base |"
        f"{' 95 % interval |' * paired} loss | distinct | repeats | pictures | seconds |",
        f"|{'---|' * (len(sources) + 8 + paired)}",
    ] + [
        f"| {line['row']} | {line['change'] or '-'} | "
        f"{' | '.join(format(line['cider'][source], '.1f') for source in sources)} | "
        f"{line['to_base']:+.1f} |{_between(line['interval']) * paired} {line['loss']:.3f} | {line['distinct']} | "
        f"{100 * line['repeated']:.1f} % | {line['pictures']} | {line['seconds']:.0f} |"
        for line in lines
    ]


def curve(table: Table, row: Row, result: Result) -> tuple[list[int], list[float]]:
    """Epochs and the decisive CIDEr of each; none of a row that trains nothing."""
    if table.speaking(row) or row.between:
        return [], []
    return [epoch["epoch"] for epoch in result.history], [
        chosen_by(epoch["val_cider"], table.rows[0].recipe.choose) for epoch in result.history
    ]


def plot(table: Table, results: Mapping[str, Result], file: Path) -> None:
    """Two panels: each row's change against the base with the seeds' spread behind it, and CIDEr by epoch."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    lines = facts(table, results)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 2 + 0.24 * len(lines)), layout="constrained")
    shown = sorted(lines[1:], key=lambda line: float(line["to_base"]))
    colours = dict(zip(SECTIONS, ("#0072b2", "#cc79a7", "#009e73", "#d55e00"), strict=True))  # told apart by everyone
    left.barh([line["row"] for line in shown], [line["to_base"] for line in shown],
              color=[colours[line["section"]] for line in shown])  # fmt: skip
    apart = spread(table, lines) or 0.0
    left.axvspan(-apart, apart, color="black", alpha=0.1, linewidth=0)
    left.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel="validation CIDEr, change against the base; grey: two seeds", ylim=(-0.6, max(len(shown), 1) - 0.4))
    for line in lines:
        epochs, ciders = curve(table, table.named(line["row"]), results[line["row"]])
        base, colour = line is lines[0], colours[line["section"]]
        # Of some rows the record knows the best epoch alone: a dot, no line.
        right.plot(epochs, ciders, "." if len(epochs) == 1 else "-", color="black" if base else colour,
                   linewidth=2.5 if base else 0.8, markersize=12 if base else 6, zorder=3 if base else 2,
                   label="base" if base else None)  # fmt: skip
    right.set(xlabel="epoch of the row; a dot alone: its best", ylabel="validation CIDEr")
    right.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _decisive(table: Table) -> str:
    """What decides, in words."""
    weights = table.rows[0].recipe.choose
    shares = (f"{name} {weight / sum(weights.values()):.2g}" for name, weight in weights.items())
    return f"in the sets' mean ({', '.join(shares)})" if weights else "on the first set"


def _between(interval: Sequence[float] | None) -> str:
    return " - |" if interval is None else f" {interval[0]:+.1f} to {interval[1]:+.1f} |"


def _share(epoch: Mapping[str, Any]) -> str:
    """Of weights in between: how much of the second row's."""
    return f", share {epoch['share']:g}" if "share" in epoch else ""
