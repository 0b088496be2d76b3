"""A leaderboard as people see it: a page of tables, and the differences with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlm_core.evaluate.config import CompareModels

SCHEMA = pa.schema([
    ("suite", pa.string()), ("model", pa.string()), ("card_id", pa.string()), ("seeds", pa.int64()), ("n", pa.int64()), ("value", pa.float64()),
    ("ci_low", pa.float64()), ("ci_high", pa.float64()), ("difference", pa.float64()), ("difference_low", pa.float64()), ("difference_high", pa.float64()),
    ("by_seed", pa.list_(pa.float64())), ("p", pa.float64()), ("p_holm", pa.float64()), ("verdict", pa.string()),
])  # fmt: skip
VERDICTS = {
    "base": "the base", "better": "**beats the base**", "worse": "is worse than the base", "cannot_tell": "does not beat the base here (the interval holds 0)",
    "other_protocol": "another protocol card: not compared", "no_base": "the base has nothing of this",
    "not_paired": "not a mean over samples: not paired",
}  # fmt: skip
DETAILS = ("acc5", "recall_at_1", "recall_at_5")
Row = Mapping[str, Any]


def is_shown(suite: str, primary: str = "") -> bool:
    """Whether a suite is one of those that people look at first; all are in the Parquet file."""
    _, task, metric = suite.split("/")
    return suite == primary or not (task == "zero_shot_single" or metric.endswith(DETAILS))


def plain(row: Row) -> dict[str, Any]:
    """A row for a table of the UI."""
    return {
        "model": row["model"], "value": row["value"], "95 % interval": _interval(row["ci_low"], row["ci_high"], ""),
        "difference": row["difference"], "95 % interval of it": "" if row["difference"] is None else _interval(row["difference_low"], row["difference_high"], "+"),
        "p (Holm)": row["p_holm"], "verdict": VERDICTS[row["verdict"]].replace("*", ""), "seeds": row["seeds"], "n": row["n"],
    }  # fmt: skip


def _interval(low: float, high: float, sign: str) -> str:
    return f"{low:{sign}.3f} to {high:{sign}.3f}"


def markdown(config: CompareModels, rows: Sequence[Row]) -> str:
    """The page: the primary suite first, then every other that is shown."""
    suites = list(dict.fromkeys(row["suite"] for row in rows if is_shown(row["suite"], config.primary)))
    first = [row for row in rows if row["suite"] == config.primary]
    better = [row["model"] for row in first if row["verdict"] == "better"]
    seeds = sorted({row["seeds"] for row in first})
    lines = [
        f"# {config.title}", "", *([config.conditions, ""] if config.conditions else []),
        f"Base: `{config.base}`. {len(first)} models, {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds each. Values are means over seeds; differences are paired by test sample "
        "and by seed. Intervals are 95 %, over groups of test samples and over training seeds (variances added, Welch-Satterthwaite); with one seed they hold for "
        "these weights only. p values are Holm's over the models of a table" + (f", and over all {config.candidates} that the search began with." if config.candidates else "."), "",
        f"On `{config.primary}` {len(better)} of {max(len(first) - 1, 0)} beat the base" + (f": {', '.join(better)}." if better else "."), "",
        "![Differences from the base](leaderboard.png)", "",
    ]  # fmt: skip
    for suite in suites:
        lines += [*_table(suite, [row for row in rows if row["suite"] == suite]), ""]
    return "\n".join(lines)


def _table(suite: str, rows: Sequence[Row]) -> list[str]:
    head = [
        f"## {suite.replace('/', ' ')}",
        "",
        "| model | value | 95 % interval | difference | 95 % interval | by seed | p | verdict |",
        "|---|---:|---|---:|---|---|---:|---|",
    ]
    return [*head, *(_line(row) for row in rows), "", f"n = {rows[0]['n']:,}; protocol {', '.join(dict.fromkeys(row['card_id'][:12] for row in rows))}"]


def _line(row: Row) -> str:
    compared = row["difference"] is not None
    difference = f"{row['difference']:+.3f} | {_interval(row['difference_low'], row['difference_high'], '+')}" if compared else " | "
    by_seed = ", ".join(f"{value:+.3f}" for value in row["by_seed"])
    p = f"{row['p_holm']:.3g}" if compared else ""
    return f"| {row['model']} | {row['value']:.3f} | {_interval(row['ci_low'], row['ci_high'], '')} | {difference} | {by_seed} | {p} | {VERDICTS[row['verdict']]} |"


def draw(path: Path, config: CompareModels, rows: Sequence[Row]) -> None:
    """Differences from the base, a column per suite, models in the order of the primary suite."""
    suites = list(dict.fromkeys(row["suite"] for row in rows if row["difference"] is not None and is_shown(row["suite"], config.primary)))[:6]
    names = [row["model"] for row in rows if row["suite"] == config.primary and row["model"] != config.base]
    figure = Figure(figsize=(3 + 2.4 * max(len(suites), 1), 1.6 + 0.24 * max(len(names), 1)), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, suite in zip(figure.subplots(1, max(len(suites), 1), sharey=True, squeeze=False)[0], suites, strict=False):
        found = {row["model"]: row for row in rows if row["suite"] == suite and row["difference"] is not None}
        for place, name in enumerate(names):
            if name in found:
                row = found[name]
                colour = {"better": "tab:green", "worse": "tab:red"}.get(row["verdict"], "grey")
                axes.plot([row["difference_low"], row["difference_high"]], [place, place], color=colour, linewidth=1.5)
                axes.plot([row["difference"]], [place], marker="o", markersize=4, color=colour)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(suite.replace("/", "\n"), fontsize=7)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_ylim(len(names) - 0.5, -0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
