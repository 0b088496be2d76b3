"""What people see of a filter run: counts as bars, the score with its cut, contact sheets of kept and dropped, precision and recall against a truth file."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm_core.charts import bar_chart
from vlm_core.data.filter.config import Filter
from vlm_core.data.filter.decisions import REASONS, Trail
from vlm_core.data.filter.histograms import histograms
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.data.filter.quality import quality
from vlm_core.data.filter.withheld import INSTEAD, NO_PICTURE, NO_TEXT
from vlm_core.data.pictures import contact_sheet

SHEET = 48  # thumbnails on a sheet
PER_REASON = 8


def metrics(pool: Pool, trail: Trail, groups: pa.Array) -> dict[str, float]:
    """Scalars to watch over runs; `groups` are the names of the kept samples' groups."""
    sizes = pc.value_counts(groups).field("counts").to_numpy()
    scores = pool.clip[trail.rows]
    out = {"kept_share": len(trail.rows) / len(pool), "groups": float(len(sizes)), "largest_group_share": float(sizes.max() / len(trail.rows))}
    return {**out, "clip_score_mean": float(np.nanmean(scores))} if np.isfinite(scores).any() else out


def tables(config: Filter, pool: Pool, trail: Trail, decisions: Path) -> dict[str, list[dict[str, Any]]]:
    """Small tables for the UI; `decisions` is their file."""
    langs = pool.lang.arrow(trail.rows)
    sizes = np.bincount(langs.indices.to_numpy(), minlength=len(langs.dictionary))
    names = langs.dictionary.to_pylist()
    out = {
        "rules": _by_rule(trail),
        "languages": [{"lang": name or "?", "kept": int(n)} for name, n in sorted(zip(names, sizes.tolist(), strict=True)) if n],
        "kept_examples": _kept_examples(pool, trail, langs, sizes),
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


def _kept_examples(pool: Pool, trail: Trail, langs: pa.DictionaryArray, sizes: Column) -> list[dict[str, Any]]:
    """A few captions of the five commonest languages, best and worst scores among them: a contact sheet cannot show every script."""
    rows = []
    for code in [code for code in np.argsort(-sizes, kind="stable")[:5].tolist() if sizes[code]]:
        own = trail.rows[langs.indices.to_numpy() == code]
        rows += [{"lang": langs.dictionary[code].as_py() or "?", "caption": pool.raw[row][:80], "score": round(float(np.nan_to_num(pool.clip[row])), 4), "url": pool.url[row]}
                 for row in _spread(own[np.argsort(-pool.clip[own], kind="stable")], 4)]  # fmt: skip
    return rows


def _examples(pool: Pool, trail: Trail, decisions: Path) -> list[dict[str, Any]]:
    """A few dropped captions per reason, the first by uid; without the texts and addresses of what is withheld."""
    rows = [row for name in REASONS for row in trail.dropped(name)[:3].tolist()]
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
    """Write the PNGs; title -> file. Sheets show the first by uid: a uid is a hash, so they are a draw like any other, and lie together in few tars."""
    counts = {name.removeprefix("dropped."): n for name, n in trail.counts().items() if name != "in"}
    bar_chart(counts, "samples kept, and dropped by reason", folder / "counts.png")
    out = {"kept and dropped by reason": "counts.png", **histograms(pool, decisions, folder)}
    kept = trail.rows[:SHEET]
    shown = [name for name in REASONS if name not in NO_PICTURE | {"not_downloaded"}]
    dropped = np.concatenate([trail.dropped(name)[:PER_REASON] for name in shown])
    images = dict(pool.pictures(np.concatenate([kept, dropped])))
    fits = {row: f"{score:.2f} " if np.isfinite(score) else "" for row, score in zip(kept.tolist(), pool.clip[kept].tolist(), strict=True)}
    _sheet(images, {row: f"{fit}{pool.lang[row]} {pool.caption[row]}" for row, fit in fits.items()}, folder / "kept.png")
    reasons = {row: trail.reason_of(row) for row in dropped.tolist()}
    _sheet(images, {row: f"{why}: {'' if why in NO_TEXT else pool.caption[row]}" for row, why in reasons.items()}, folder / "dropped.png")
    return {**out, "kept": "kept.png", "dropped, by reason": "dropped.png"}


def _sheet(images: dict[int, bytes], labels: dict[int, str], path: Path) -> None:
    contact_sheet([(images[row], label) for row, label in labels.items()], path)
