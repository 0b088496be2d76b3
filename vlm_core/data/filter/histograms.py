"""Scores of a filter run as curves, each with its cut. Counted a block at a time, so that memory does not grow with the rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlm_core import charts
from vlm_core.data.blocks import pieces
from vlm_core.data.filter.pool import Pool

BINS, CURVES = 60, 6
ALL = "all"


class Scored(NamedTuple):
    """A block of scores and what each was ranked among."""

    names: pa.DictionaryArray
    scores: NDArray[np.float64]


def histograms(pool: Pool, decisions: Path, folder: Path) -> dict[str, str]:
    """Every score that was cut, with its cut; the CLIP score of everything that has one, cut or not. Title -> file."""
    marks, out = _marks(decisions), dict[str, str]()
    if _draw(lambda: _clip_scores(pool), marks.pop("clip_score", {}), f"cosine of image and text ({pool.scorer})", folder / "clip_score.png"):
        out["CLIP score and its cut"] = "clip_score.png"
    for kind, cuts in sorted(marks.items()):
        if _draw(lambda kind=kind: _cut_scores(decisions, kind), cuts, kind.replace("_", " "), folder / f"{kind}.png"):
            out[f"{kind.replace('_', ' ')} and its cut"] = f"{kind}.png"
    return out


def _clip_scores(pool: Pool) -> Iterator[Scored]:
    for rows in pieces(np.arange(len(pool))):
        scores = pool.clip[rows]
        has = np.isfinite(scores)
        yield Scored(pool.lang.arrow(rows[has]), scores[has])


def _cut_rows(decisions: Path, *columns: str) -> Iterator[pa.Table]:
    """What cuts said. The detail of a cut is "KIND in NAME": the score that it ranked, and among what."""
    for batch in pq.ParquetFile(decisions).iter_batches(columns=["rule", *columns]):
        table = pa.Table.from_batches([batch])
        table = table.filter(is_cut(table["rule"]))
        if len(table):
            yield table


def is_cut(rules: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.starts_with(rules, "cuts.")


def _marks(decisions: Path) -> dict[str, dict[str, float]]:
    """Kind of score -> name -> where it was cut (the lowest, if there were several)."""
    found: dict[str, dict[str, float]] = {}
    for table in _cut_rows(decisions, "detail", "threshold"):
        lowest = table.group_by("detail").aggregate([("threshold", "min")])
        for detail, mark in zip(lowest["detail"].to_pylist(), lowest["threshold_min"].to_pylist(), strict=True):
            kind, _, name = detail.partition(" in ")
            cuts = found.setdefault(kind, {})
            if mark is not None:
                cuts[name] = min(mark, cuts.get(name, np.inf))
    return found


def _cut_scores(decisions: Path, kind: str) -> Iterator[Scored]:
    for table in _cut_rows(decisions, "detail", "score"):
        table = table.filter(pc.and_(pc.starts_with(table["detail"], f"{kind} in "), pc.is_valid(table["score"])))
        if len(table):
            names = pc.replace_substring(table["detail"].combine_chunks(), f"{kind} in ", "", max_replacements=1)
            yield Scored(names.dictionary_encode(), table["score"].to_numpy())


def _draw(blocks: Any, marks: Mapping[str, float], label: str, path: Path) -> bool:
    """Scores of the six commonest names, each with its cut; or of all with one cut. False when there is no score."""
    from matplotlib.figure import Figure

    ends = [(block.scores.min(), block.scores.max()) for block in blocks() if len(block.scores)]
    if not ends:
        return False
    edges = np.linspace(min(low for low, _ in ends), max(high for _, high in ends) + 1e-6, BINS + 1)
    counts = _counts(blocks(), edges)
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(sorted(counts, key=lambda name: (-counts[name].sum(), name))[:CURVES]):
        axes.stairs(counts[name], edges, color=f"C{number}", label=name or "?")
        if (name or "?") in marks:
            axes.axvline(marks[name or "?"], color=f"C{number}", linestyle="--", linewidth=1)
    if ALL in marks and ALL not in counts:
        axes.axvline(marks[ALL], color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"{label}; dashed: the cut")
    axes.set_ylabel("samples")
    axes.legend()
    charts.save(figure, path)
    return True


def _counts(blocks: Iterator[Scored], edges: NDArray[np.float64]) -> dict[str, NDArray[np.int64]]:
    found: dict[str, NDArray[np.int64]] = {}
    for names, scores in blocks:
        codes, width = names.indices.to_numpy(), len(edges) - 1
        bins = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, width - 1)
        table = np.bincount(codes * width + bins, minlength=len(names.dictionary) * width).reshape(-1, width)
        for code in np.unique(codes).tolist():
            name = names.dictionary[code].as_py()
            found[name] = found.get(name, 0) + table[code]
    return found
