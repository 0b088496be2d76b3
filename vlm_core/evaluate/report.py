"""What people look at: a table and a chart, both with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vlm_core import charts
from vlm_core.evaluate.results import Results


def markdown(model: str, results: Results) -> str:
    """All metrics of a model. Rows with the same card can be compared with other models, rows with different cards with nothing."""
    rows = [
        f"| {row['dataset']} | {row['task']} | {row['metric']} | {row['value']:.4f} | {row['ci_low']:.4f} to {row['ci_high']:.4f} | {row['n']:,} | {row['card_id'][:12]} |"
        for row in results.metrics
    ]
    head = f"# Evaluation of {model[:12]}\n\n95 % intervals from {results.resamples:,} bootstrap resamples of groups of test samples; seed {results.seed}.\n\n"
    return head + "| data | task | metric | value | 95 % interval | n | card |\n|---|---|---|---:|---|---:|---|\n" + "\n".join(rows) + "\n"


def draw_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every metric as a point with its interval, grouped by data and task."""
    figure = Figure(figsize=(9, 1 + 0.22 * len(rows)), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    names = [f"{row['dataset']} / {row['task']} / {row['metric']}" for row in rows]
    value = [row["value"] for row in rows]
    below, above = ([abs(row[name] - row["value"]) for row in rows] for name in ("ci_low", "ci_high"))
    axes.errorbar(value, range(len(rows)), xerr=[below, above], fmt="o", markersize=4, capsize=2)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    charts.save(figure, path)
