"""What people see of a filter run: counts as bars, the score with its cut, contact sheets of kept and dropped, precision and recall against a truth file."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.charts import bar_chart
from vlm_core.data.filter.config import Filter
from vlm_core.data.filter.decisions import REASONS, Trail
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.data.filter.quality import quality
from vlm_core.data.filter.withheld import INSTEAD, NO_PICTURE, NO_TEXT
from vlm_core.data.pictures import contact_sheet

SHEET = 48  # thumbnails on a sheet
PER_REASON = 8


def metrics(pool: Pool, trail: Trail, kept: pa.Table) -> dict[str, float]:
    """Scalars to watch over runs."""
    groups = np.unique(kept["group"].to_numpy(zero_copy_only=False).astype(str), return_counts=True)[1]
    scores = pool.clip[trail.rows]
    out = {"kept_share": len(trail.rows) / len(pool), "groups": float(len(groups)), "largest_group_share": float(groups.max() / len(trail.rows))}
    return {**out, "clip_score_mean": float(np.nanmean(scores))} if np.isfinite(scores).any() else out


def tables(config: Filter, pool: Pool, trail: Trail, decisions: Path) -> dict[str, list[dict[str, Any]]]:
    """Small tables for the UI; `decisions` is their file."""
    langs = np.unique(pool.lang[trail.rows].astype(str), return_counts=True)
    out = {
        "rules": _by_rule(trail),
        "languages": [{"lang": lang or "?", "kept": int(n)} for lang, n in zip(*map(np.ndarray.tolist, langs), strict=True)],
        "kept_examples": _kept_examples(pool, trail, *langs),
        "dropped_examples": _examples(pool, trail, decisions),
    }
    if "decontaminate" in trail.tally:
        out["contaminated"] = _by_eval_set(decisions)
    return {**out, **quality(Path(config.truth), pool, trail, decisions)} if config.truth else out


def _by_eval_set(decisions: Path) -> list[dict[str, Any]]:
    """How many samples went for which evaluation set, and what gave them away; the detail of a drop is SET/KEY: HOW."""
    details = pq.read_table(decisions, columns=["detail"], filters=[("reason", "==", "contaminated")])["detail"].to_pylist()
    found = Counter((detail.partition("/")[0], detail.rpartition(": ")[2]) for detail in details)
    return [{"set": name, "found by": how, "samples": count} for (name, how), count in sorted(found.items())]


def _by_rule(trail: Trail) -> list[dict[str, Any]]:
    """Per rule, in the order in which they ran: what came in, what stayed, why the rest went."""
    return [
        {
            "rule": rule, "version": trail.versions[rule], "in": counts.total(), "kept": counts[""],
            "reasons": ", ".join(f"{name} {count}" for name, count in counts.most_common() if name),
        }
        for rule, counts in trail.tally.items()
    ]  # fmt: skip


def _kept_examples(pool: Pool, trail: Trail, names: Column, sizes: Column) -> list[dict[str, Any]]:
    """A few captions of the five commonest languages, best and worst scores among them: a contact sheet cannot show every script."""
    rows = []
    for name in names[np.argsort(-sizes, kind="stable")][:5]:
        own = trail.rows[pool.lang[trail.rows] == name]
        rows += [{"lang": name or "?", "caption": pool.raw[row][:80], "score": round(float(np.nan_to_num(pool.clip[row])), 4), "url": pool.url[row]}
                 for row in _spread(own[np.argsort(-pool.clip[own], kind="stable")], 4)]  # fmt: skip
    return rows


def _examples(pool: Pool, trail: Trail, decisions: Path) -> list[dict[str, Any]]:
    """A few dropped captions per reason, spread over the uids; without the texts and addresses of what is withheld."""
    rows = [row for name in REASONS for row in _spread(trail.dropped(name), 3)]
    wanted = [("uid", "in", [pool.uid[row] for row in rows]), ("keep", "==", False)]
    drops = pq.read_table(decisions, columns=["uid", "detail"], filters=wanted) if rows else pa.table({"uid": [], "detail": []})
    detail = dict(zip(drops["uid"].to_pylist(), drops["detail"].to_pylist(), strict=True))
    return [
        {
            "reason": trail.reason_of(row),
            "caption": INSTEAD if trail.reason_of(row) in NO_TEXT else pool.raw[row][:80],
            "detail": detail[pool.uid[row]],
            "url": INSTEAD if trail.reason_of(row) in NO_PICTURE else pool.url[row],
        }
        for row in rows
    ]


def _spread(rows: Column, n: int) -> list[int]:
    return [int(row) for row in rows[np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int))]] if len(rows) else []


# ---------------------------------------------------------------- pictures


def pictures(pool: Pool, trail: Trail, decisions: Path, folder: Path) -> dict[str, str]:
    """Write the PNGs; title -> file."""
    counts = {name.removeprefix("dropped."): n for name, n in trail.counts().items() if name != "in"}
    bar_chart(counts, "samples kept, and dropped by reason", folder / "counts.png")
    out = {"kept and dropped by reason": "counts.png"}
    out |= _histograms(pool, decisions, folder)
    _sheet(pool, _spread(trail.rows, SHEET), lambda row: f"{_number(float(pool.clip[row]))} {pool.lang[row]} {pool.caption[row]}", folder / "kept.png")
    shown = [name for name in REASONS if name not in NO_PICTURE | {"not_downloaded"}]
    dropped = [row for name in shown for row in _spread(trail.dropped(name), PER_REASON)]
    _sheet(
        pool,
        dropped,
        lambda row: f"{trail.reason_of(row)}: {pool.caption[row] if trail.reason_of(row) not in NO_TEXT else ''}",
        folder / "dropped.png",
    )
    return {**out, "kept": "kept.png", "dropped, by reason": "dropped.png"}


def _number(score: float) -> str:
    return f"{score:.2f}" if np.isfinite(score) else ""


def _sheet(pool: Pool, rows: Iterable[int], label: Any, path: Path) -> None:
    order = list(rows)
    images = dict(pool.pictures(np.array(order, np.int64)))
    contact_sheet([(images[row], label(row)) for row in order], path)


def _histograms(pool: Pool, decisions: Path, folder: Path) -> dict[str, str]:
    """Every score that was cut, with its cut; the CLIP score of everything that has one, cut or not."""
    out = {}
    clip, has = np.asarray(pool.clip), np.isfinite(pool.clip)
    if has.any():
        marks = _marks(decisions, "clip_score")
        langs = np.where(pool.lang[has].astype(str) == "", "?", pool.lang[has].astype(str))
        _histogram(clip[has], langs, marks, f"cosine of image and text ({pool.scorer})", folder / "clip_score.png")
        out["CLIP score and its cut"] = "clip_score.png"
    for kind in sorted(_kinds(decisions) - {"clip_score"}):
        table = pq.read_table(decisions, columns=["rule", "detail", "score"], filters=[("rule", "in", ["cut", "second_cut"]), ("score", ">", -np.inf)])
        rows = [(name, score) for name, score in zip(table["detail"].to_pylist(), table["score"].to_pylist(), strict=True) if name.startswith(f"{kind} in ")]
        names = np.array([name.removeprefix(f"{kind} in ") for name, _ in rows])
        _histogram(np.array([score for _, score in rows]), names, _marks(decisions, kind), kind.replace("_", " "), folder / f"{kind}.png")
        out[f"{kind.replace('_', ' ')} and its cut"] = f"{kind}.png"
    return out


def _kinds(decisions: Path) -> set[str]:
    """Scores that a cut ranked; the detail of a cut begins with the kind of its score."""
    details = pq.read_table(decisions, columns=["detail"], filters=[("rule", "in", ["cut", "second_cut"])])["detail"].unique().to_pylist()
    return {detail.partition(" in ")[0] for detail in details}


def _marks(decisions: Path, kind: str) -> dict[str, float]:
    """Where each language, source or domain was cut."""
    wanted = [("rule", "in", ["cut", "second_cut"])]
    cuts = pq.read_table(decisions, columns=["detail", "threshold"], filters=wanted).group_by("detail").aggregate([("threshold", "min")])
    found = zip(cuts["detail"].to_pylist(), cuts["threshold_min"].to_pylist(), strict=True)
    return {detail.removeprefix(f"{kind} in "): mark for detail, mark in found if detail.startswith(f"{kind} in ") and mark is not None}


def _histogram(scores: Column, names: Column, marks: dict[str, float], label: str, path: Path) -> None:
    """Scores of the six commonest names, each with its cut; or of all with one cut."""
    from matplotlib.figure import Figure

    known, sizes = np.unique(names, return_counts=True)
    bins = np.linspace(scores.min(), scores.max() + 1e-6, 61)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(known[np.argsort(-sizes)][:6].tolist()):
        axes.hist(scores[names == name], bins=bins, histtype="step", color=f"C{number}", label=name)
        if name in marks:
            axes.axvline(marks[name], color=f"C{number}", linestyle="--", linewidth=1)
    if "all" in marks and "all" not in known:
        axes.axvline(marks["all"], color="black", linestyle="--", linewidth=1)
    axes.set_xlabel(f"{label}; dashed: the cut")
    axes.set_ylabel("samples")
    axes.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
