"""The learning curve of a transfer run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vlm_core import charts


def draw_curve(path: Path, title: str, rows: Sequence[Mapping[str, Any]], zero_shot: float) -> None:
    """Accuracy over shots: points with the interval between test pictures, a band with the interval between seeds, a line for zero-shot."""
    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    at = list(range(len(rows)))
    value = [row["value"] for row in rows]
    below, above = ([abs(row[name] - row["value"]) for row in rows] for name in ("ci_low", "ci_high"))
    axes.errorbar(at, value, yerr=[below, above], marker="o", capsize=4, label="mean, 95 % over test pictures")
    band = [(i, row["seed_ci_low"], row["seed_ci_high"]) for i, row in enumerate(rows) if row["seed_ci_low"] is not None]
    if band:
        axes.fill_between([b[0] for b in band], [max(0, b[1]) for b in band], [min(1, b[2]) for b in band], alpha=0.2, label="95 % over seeds")
    axes.axhline(zero_shot, linestyle="--", color="grey", label="zero-shot, one template")
    axes.set_xticks(at, ["all" if row["shots"] == 0 and row["seed_ci_low"] is None and len(rows) > 1 else str(row["shots"]) for row in rows])
    axes.set_xlabel("labelled pictures per class")
    axes.set_ylabel("test accuracy")
    axes.set_title(title)
    axes.set_ylim(0, 1)
    axes.legend(fontsize="small")
    charts.save(figure, path)
