"""Charts for people: how one becomes a file, and counts as bars."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = 64  # a chart has few, and a third of the bytes does for them


def save(figure: "Figure", path: Path) -> None:
    """The figure as a PNG of at most 64 colours, rare ones kept; the same figure gives the same bytes. Not for photographs."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def bar_chart(counts: Mapping[str, float], title: str, path: Path) -> None:
    """Horizontal bars with their numbers, first one on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.3 * len(counts)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(counts), list(counts.values()))
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title)
    save(figure, path)
