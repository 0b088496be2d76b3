"""A leaderboard as people see it: a page of tables, and the differences with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm_core import charts
from vlm_core.evaluate.config import CompareModels

SCHEMA = pa.schema([
    ("suite", pa.string()), ("model", pa.string()), ("card_id", pa.string()), ("seeds", pa.int64()), ("n", pa.int64()), ("value", pa.float64()),
    ("ci_low", pa.float64()), ("ci_high", pa.float64()), ("difference", pa.float64()), ("difference_low", pa.float64()), ("difference_high", pa.float64()),
    ("by_seed", pa.list_(pa.float64())), ("p", pa.float64()), ("p_holm", pa.float64()), ("verdict", pa.string()), ("own_input", pa.bool_()),
])  # fmt: skip
VERDICTS = {
    "base": "the base", "better": "**beats the base**", "worse": "is worse than the base", "cannot_tell": "does not beat the base",
    "other_protocol": "another protocol card: not compared", "no_base": "the base has nothing of this",
    "not_paired": "not a mean over samples: not paired",
}  # fmt: skip
DETAILS = ("acc5", "recall_at_5")
# What the picture shows, in this order: (task, metric, of how many test sets, largest first)
DRAWN = (
    ("matching", "auc", 1), ("retrieval", "image_retrieval_recall_at_1", 1), ("retrieval", "text_retrieval_recall_at_1", 1),
    ("retrieval", "image_retrieval_recall_at_10", 1), ("retrieval", "text_retrieval_recall_at_10", 1), ("zero_shot_ensemble", "acc1", 2),
    ("linear_probe", "acc1", 2), ("segmentation", "scene_iou", 1), ("grounding", "recall_at_1", 1), ("caption_likelihood", "acc1", 1),
)  # fmt: skip
LEVEL = 0.05  # of p values
ACROSS = 5  # panels in a row
COLOURS = {"better": "tab:green", "worse": "tab:red"}
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
        "p (Holm)": row["p_holm"], "verdict": _verdict(row).replace("*", ""), "seeds": row["seeds"], "n": row["n"],
    }  # fmt: skip


def _may_be_chance(row: Row) -> bool:
    return row["verdict"] in ("better", "worse") and row["p_holm"] >= LEVEL


def _verdict(row: Row) -> str:
    return VERDICTS[row["verdict"]] + ("; not after Holm" if _may_be_chance(row) else "") + ("; own input" if row["own_input"] else "")


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
        "![Differences from the base](leaderboard.png)", "", *_notes(rows),
    ]  # fmt: skip
    for suite in suites:
        lines += [*_table(suite, [row for row in rows if row["suite"] == suite]), ""]
    return "\n".join([*lines, config.appendix])


def _notes(rows: Sequence[Row]) -> list[str]:
    """What needs a word where it occurs."""
    said = []
    if any(row["verdict"] == "cannot_tell" for row in rows):
        said += ["*Does not beat the base*: the interval of the difference holds 0, so neither a gain nor a loss is shown here.", ""]
    if any(map(_may_be_chance, rows)):
        said += [f"*Not after Holm*: the interval does not hold 0, but among so many comparisons that may be chance (p is not below {LEVEL}).", ""]
    if any(row["own_input"] for row in rows):
        said += [
            "*Own input*: the model reads pictures or texts in another way than the base (size, tokenizer, context); the samples and the task are the same.",
            "",
        ]
    if any(row["verdict"] == "not_paired" for row in rows):
        said += ["mIoU and AP are no means over samples, so they have no paired difference; the IoU of each scene and the recall of each phrase have one.", ""]
    return said


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
    return f"| {row['model']} | {row['value']:.3f} | {_interval(row['ci_low'], row['ci_high'], '')} | {difference} | {by_seed} | {p} | {_verdict(row)} |"


def drawn(rows: Sequence[Row], primary: str) -> list[str]:
    """The suites of the picture: the primary one, then those of DRAWN that have a difference."""
    samples = {row["suite"]: row["n"] for row in rows if row["difference"] is not None}
    found = [primary] if primary in samples else []
    for task, metric, most in DRAWN:
        suites = [suite for suite in samples if suite.split("/")[1:] == [task, metric]]
        found += sorted(suites, key=lambda suite: (-samples[suite], suite))[:most]
    return list(dict.fromkeys(found))


def draw(path: Path, config: CompareModels, rows: Sequence[Row]) -> None:
    """Differences from the base with their intervals, a panel per suite, models in the order of the primary suite; hollow points have an input of their own."""
    suites = drawn(rows, config.primary)
    names = [row["model"] for row in rows if row["suite"] == config.primary]
    across, down = min(max(len(suites), 1), ACROSS), max(-(-len(suites) // ACROSS), 1)
    figure = Figure(figsize=(2 + 2.4 * across, down * (1.2 + 0.17 * len(names))), dpi=110, layout="constrained")
    panels = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for axes, suite in zip(panels, suites, strict=False):
        _panel(axes, names, config.base, {row["model"]: row for row in rows if row["suite"] == suite and row["difference"] is not None})
        dataset, task, metric = suite.split("/")
        axes.set_title(f"{dataset}: {task.replace('_', ' ')}\n{metric.replace('_', ' ')}", fontsize=8)
    for axes in panels[len(suites) :]:
        axes.set_visible(False)
    charts.save(figure, path)


def _panel(axes: Axes, names: Sequence[str], base: str, found: Mapping[str, Row]) -> None:
    for place, name in enumerate(names):
        if row := found.get(name):
            colour = COLOURS.get(row["verdict"], "dimgrey")
            axes.plot([row["difference_low"], row["difference_high"]], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot([row["difference"]], [place], marker="o", markersize=4.5, color=colour, markerfacecolor="white" if row["own_input"] else colour)
    axes.axvline(0, color="black", linewidth=0.8)
    if base in names:
        axes.axhspan(names.index(base) - 0.5, names.index(base) + 0.5, color="tab:blue", alpha=0.15, linewidth=0)
        axes.plot([0], [names.index(base)], marker="D", markersize=5, color="tab:blue")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.set_yticks(range(len(names)), [f"{name} (base)" if name == base else name for name in names], fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
