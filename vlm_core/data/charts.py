"""Counts as a picture, for people."""

from collections.abc import Mapping
from pathlib import Path


def bar_chart(counts: Mapping[str, float], title: str, path: Path) -> None:
    """Horizontal bars with their numbers, first one on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.3 * len(counts)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(counts), list(counts.values()))
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
