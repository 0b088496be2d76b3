"""What people see of a filter run: counts as bars, the score with its cut, contact sheets of kept and dropped, precision and recall against a truth file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlm_core.data.charts import bar_chart
from vlm_core.data.filter_config import Filter
from vlm_core.data.decisions import REASONS, Trail
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.pool import Column, Pool
from vlm_core.errors import MissingInput

SHEET = 48  # thumbnails on a sheet
PER_REASON = 8

# Kind of dirt in a truth file -> reasons that are a right answer to it.
ANSWERS: dict[str, tuple[str, ...]] = {
    "page_optout": ("opted_out",),
    "useless_title": ("boilerplate", "frequent_caption", "file_name"),
    "email": ("email",),
    "exact_duplicate": ("exact_duplicate",),
    "near_duplicate": ("near_duplicate", "exact_duplicate"),
}
COPIES = ("exact_duplicate", "near_duplicate")


def metrics(pool: Pool, trail: Trail, kept: pa.Table) -> dict[str, float]:
    """Scalars to watch over runs."""
    groups = np.unique(kept["group"].to_numpy(zero_copy_only=False).astype(str), return_counts=True)[1]
    scores = pool.clip[trail.rows]
    out = {"kept_share": len(trail.rows) / len(pool), "groups": float(len(groups)), "largest_group_share": float(groups.max() / len(trail.rows))}
    return {**out, "clip_score_mean": float(np.nanmean(scores))} if np.isfinite(scores).any() else out


def tables(config: Filter, pool: Pool, trail: Trail, decisions: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Small tables for the UI."""
    langs = np.unique(pool.lang[trail.rows].astype(str), return_counts=True)
    out = {
        "rules": _by_rule(decisions),
        "languages": [{"lang": lang or "?", "kept": int(n)} for lang, n in zip(*map(np.ndarray.tolist, langs), strict=True)],
        "kept_examples": _kept_examples(pool, trail, *langs),
        "dropped_examples": _examples(pool, trail, decisions),
    }
    return {**out, "truth": against_truth(Path(config.truth), pool, trail)} if config.truth else out


def _by_rule(decisions: pa.Table) -> list[dict[str, Any]]:
    """Per rule, in the order in which they ran: what came in, what stayed, why the rest went."""
    totals = decisions.group_by(["rule", "version", "reason"]).aggregate([("seq", "min"), ("uid", "count")]).to_pylist()
    rows: dict[str, dict[str, Any]] = {}
    for item in sorted(totals, key=lambda item: item["seq_min"]):
        row = rows.setdefault(item["rule"], {"rule": item["rule"], "version": item["version"], "in": 0, "kept": 0, "reasons": ""})
        row["in"] += item["uid_count"]
        if item["reason"] == "ok":
            row["kept"] = item["uid_count"]
        else:
            row["reasons"] = ", ".join(filter(None, [row["reasons"], f"{item['reason']} {item['uid_count']}"]))
    return list(rows.values())


def _kept_examples(pool: Pool, trail: Trail, names: Column, sizes: Column) -> list[dict[str, Any]]:
    """A few captions of the five commonest languages, best and worst scores among them: a contact sheet cannot show every script."""
    rows = []
    for name in names[np.argsort(-sizes, kind="stable")][:5]:
        own = trail.rows[pool.lang[trail.rows] == name]
        rows += [{"lang": name or "?", "caption": pool.raw[row][:80], "score": round(float(np.nan_to_num(pool.clip[row])), 4), "url": pool.url[row]}
                 for row in _spread(own[np.argsort(-pool.clip[own], kind="stable")], 4)]  # fmt: skip
    return rows


def _examples(pool: Pool, trail: Trail, decisions: pa.Table) -> list[dict[str, Any]]:
    """A few dropped captions per reason, spread over the uids; personal data is not shown again."""
    drops = decisions.filter(pc.invert(decisions["keep"]))
    detail = dict(zip(drops["uid"].to_pylist(), drops["detail"].to_pylist(), strict=True))
    return [
        {
            "reason": name,
            "caption": "(withheld)" if name in {"email", "url", "phone"} else pool.raw[row][:80],
            "detail": detail[pool.uid[row]],
            "url": pool.url[row],
        }
        for name in REASONS
        for row in _spread(np.flatnonzero(trail.reason == name), 3)
    ]


def _spread(rows: Column, n: int) -> list[int]:
    return [int(row) for row in rows[np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int))]] if len(rows) else []


# ---------------------------------------------------------------- truth


def against_truth(path: Path, pool: Pool, trail: Trail) -> list[dict[str, Any]]:
    """Precision and recall per kind of dirt.

    The file has one JSON object per line: url, kind, status (of the download, where known), of (what a copy copies). `reached` are the dirty samples that
    the rule was shown (samples dropped before by another rule are not its business), `dropped` everything that went for one of the kind's reasons.
    Of two copies either one may go.
    """
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected what is dirty, as JSON lines with url and kind; correct the setting truth or leave it empty.")
    truth = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows_of: dict[str, list[int]] = {}
    for row, url in enumerate(pool.url.tolist()):
        rows_of.setdefault(url, []).append(row)
    named = {url: {row["status"] for row in truth if row["url"] == url and row.get("status")} for url in {row["url"] for row in truth}}
    known = [(row, url) for url in named if named[url] for row in rows_of.get(url, ())]
    right = sum(pool.status[row] in named[url] for row, url in known)
    out = [
        {
            "kind": "download status",
            "truth": len(known),
            "reached": len(known),
            "found": right,
            "dropped": None,
            "recall": _share(right, len(known)),
            "precision": None,
        }
    ]
    return out + [_one_kind(kind, [row for row in truth if row["kind"] == kind], truth, rows_of, trail) for kind in ANSWERS]


def _one_kind(kind: str, rows: list[dict[str, Any]], truth: list[dict[str, Any]], rows_of: dict[str, list[int]], trail: Trail) -> dict[str, Any]:
    answers = ANSWERS[kind]
    last = max(REASONS.index(answer) for answer in answers)
    reached = found = 0
    for row in rows:
        sides = [rows_of.get(url, []) for url in ({row["url"], row["of"]} if kind in COPIES else {row["url"]})]
        reasons = [trail.reason[place] for places in sides for place in places]
        shown = [reason for reason in reasons if not reason or REASONS.index(reason) >= last or reason in answers]
        if len(shown) == len(reasons) and all(sides):
            reached += 1
            found += any(reason in answers for reason in reasons)
    wanted = {url for row in truth if kind in COPIES and row["kind"] in COPIES or row["kind"] == kind for url in (row["url"], row["of"])}
    own = (kind,) if kind in COPIES else answers
    # two captions of one address are no dirt that a truth file could name
    dropped = [url for url, places in rows_of.items() if len(places) == 1 or kind not in COPIES for place in places if trail.reason[place] in own]
    right = sum(url in wanted for url in dropped)
    return {
        "kind": kind,
        "truth": len(rows),
        "reached": reached,
        "found": found,
        "dropped": len(dropped),
        "recall": _share(found, reached),
        "precision": _share(right, len(dropped)),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


# ---------------------------------------------------------------- pictures


def pictures(pool: Pool, trail: Trail, decisions: pa.Table, folder: Path) -> dict[str, str]:
    """Write the PNGs; title -> file."""
    counts = {name.removeprefix("dropped."): n for name, n in trail.counts().items() if name != "in"}
    bar_chart(counts, "samples kept, and dropped by reason", folder / "counts.png")
    out = {"kept and dropped by reason": "counts.png"}
    if np.isfinite(pool.clip).any():
        _histogram(pool, decisions, folder / "clip_score.png")
        out["CLIP score and its cut"] = "clip_score.png"
    _sheet(pool, _spread(trail.rows, SHEET), lambda row: f"{_number(float(pool.clip[row]))} {pool.lang[row]} {pool.caption[row]}", folder / "kept.png")
    dropped = [row for name in REASONS if name != "not_downloaded" for row in _spread(np.flatnonzero(trail.reason == name), PER_REASON)]
    _sheet(
        pool,
        dropped,
        lambda row: f"{trail.reason[row]}: {pool.caption[row] if trail.reason[row] not in {'email', 'url', 'phone'} else ''}",
        folder / "dropped.png",
    )
    return {**out, "kept": "kept.png", "dropped, by reason": "dropped.png"}


def _number(score: float) -> str:
    return f"{score:.2f}" if np.isfinite(score) else ""


def _sheet(pool: Pool, rows: Iterable[int], label: Any, path: Path) -> None:
    order = list(rows)
    images = dict(pool.pictures(np.array(order, np.int64)))
    contact_sheet([(images[row], label(row)) for row in order], path)


def _histogram(pool: Pool, decisions: pa.Table, path: Path) -> None:
    """Score of everything that has one, per language, with the threshold of the first cut in that language."""
    from matplotlib.figure import Figure

    rule = decisions.filter(pc.equal(decisions["rule"], "cut")).to_pandas().set_index("uid")
    lang_of = dict(zip(pool.uid.tolist(), pool.lang.tolist(), strict=True))
    has = np.isfinite(pool.clip)
    names, sizes = np.unique(pool.lang[has].astype(str), return_counts=True)
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    cuts = rule.groupby([lang_of[uid] for uid in rule.index])["threshold"].min() if len(rule) else {}
    for number, name in enumerate(names[np.argsort(-sizes)][:6]):
        colour = f"C{number}"
        axes.hist(pool.clip[has & (pool.lang == name)], bins=60, histtype="step", color=colour, label=str(name) or "?")
        if name in cuts and np.isfinite(cuts[name]) and str(rule["detail"].iloc[0]).startswith("clip_score"):
            axes.axvline(cuts[name], color=colour, linestyle="--", linewidth=1)
    axes.set_xlabel(f"cosine of image and text ({pool.scorer}); dashed: the cut")
    axes.set_ylabel("samples")
    axes.legend(title="language")
    figure.savefig(path, dpi=100)
