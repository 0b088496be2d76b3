"""What people see of embeddings: the score's histogram by language, and the best and worst pairs."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlm_core import charts
from vlm_core.data.pictures import contact_sheet
from vlm_core.models.scorer import Scorer

SHEET = 32  # thumbnails on a sheet
LANGUAGES = 6  # in the histogram


def pictures(samples: pa.Table, scores: NDArray[np.float32], read: Callable[[str], bytes], folder: Path) -> dict[str, str]:
    """Histogram and two contact sheets; title -> file name."""
    folder.mkdir(parents=True, exist_ok=True)
    histogram(scores, samples["lang"].to_pylist(), folder / "scores.png")
    rows = samples.select(["uid", "caption"]).to_pylist()
    order = np.argsort(-scores, kind="stable")
    for name, chosen in (("best", order[:SHEET]), ("worst", order[::-1][:SHEET])):
        contact_sheet(((read(rows[row]["uid"]), f"{scores[row]:.2f} {rows[row]['caption']}") for row in chosen), folder / f"{name}.png")
    return {"image-text score": "scores.png", "best pairs": "best.png", "worst pairs": "worst.png"}


def tables(samples: pa.Table, scores: NDArray[np.float32], scorer: Scorer) -> dict[str, list[dict[str, Any]]]:
    """The scorer, and quantiles of its score by language."""
    langs = np.array(samples["lang"].to_pylist(), object)
    by_language = [
        {"lang": lang, "samples": count, **{f"p{share}": round(float(np.percentile(scores[langs == lang], share)), 3) for share in (10, 50, 90)}}
        for lang, count in sorted(Counter(langs.tolist()).items(), key=lambda item: (-item[1], item[0]))
    ]
    return {"scorer": [{"scorer": scorer.name, "version": scorer.version[:12], "width": scorer.dim}], "score by language": by_language}


def histogram(scores: NDArray[np.float32], langs: list[str], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(float(scores.min()), float(scores.max()) + 1e-6, 60).tolist()
    column = np.array(langs, object)
    for lang, _ in Counter(langs).most_common(LANGUAGES):
        axes.hist(scores[column == lang], bins=bins, histtype="step", label=lang or "unknown")
    axes.set_xlabel("image-text score")
    axes.set_ylabel("samples")
    axes.legend()
    charts.save(figure, path)
