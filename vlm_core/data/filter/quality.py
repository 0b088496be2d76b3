"""How right the rules are, against a truth file: precision and recall per kind of dirt, and how well each score parts the dirty from the clean."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from vlm_core.data.filter.decisions import Trail
from vlm_core.data.filter.pool import Pool
from vlm_core.errors import MissingInput

Truth = list[dict[str, Any]]
Places = dict[str, list[int]]  # address -> rows of the pool

# Kind of dirt in a truth file -> the rules whose business it is, and the reasons that are a right answer to it.
ANSWERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "page_optout": (("rights",), ("opted_out",)),
    "empty_title": (("text",), ("no_caption", "too_few_words", "too_few_chars")),
    "useless_title": (("titles",), ("boilerplate", "frequent_caption", "file_name")),
    "email": (("personal",), ("email",)),
    "no_language": (("quality",), ("mostly_digits", "mostly_punctuation", "repeated_words", "repeated_ngrams", "markup")),
    "too_small": (("image",), ("too_small",)),
    "aspect_ratio": (("image",), ("aspect_ratio",)),
    "other_language": (("language",), ("language",)),
    "unsafe": (("safety",), ("unsafe",)),
    "exact_duplicate": (("exact_duplicates",), ("exact_duplicate",)),
    "near_duplicate": (("exact_duplicates", "near_duplicates"), ("near_duplicate", "exact_duplicate")),
}
COPIES = ("exact_duplicate", "near_duplicate")
FEWEST = 5  # samples on either side for an AUC that says something


def quality(path: Path, pool: Pool, trail: Trail, decisions: Path) -> dict[str, list[dict[str, Any]]]:
    """The tables `truth` and `scores`. The file has one JSON object per line: url, kind, status (of the download, where known), of (what a copy copies)."""
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected what is dirty, as JSON lines with url and kind; correct the setting truth or leave it empty.")
    truth = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows_of: Places = {}
    for row, url in enumerate(pool.url.tolist()):
        rows_of.setdefault(url, []).append(row)
    return {"truth": by_kind(truth, rows_of, pool, trail), "scores": by_score(truth, rows_of, pool, decisions)}


def by_score(truth: Truth, rows_of: Places, pool: Pool, decisions: Path) -> list[dict[str, Any]]:
    """Per rule with a score and per kind of dirt that reached it: the chance that a clean sample scores higher than a dirty one (0.5: the score is blind)."""
    kinds = {kind: {pool.uid[row] for item in truth if item["kind"] == kind for row in rows_of.get(item["url"], ())} for kind in {row["kind"] for row in truth}}
    dirty = set().union(*kinds.values())
    table = pq.read_table(decisions, columns=["rule", "uid", "score"], filters=[("score", ">=", -float("inf"))]).to_pandas()
    out = []
    for rule, rows in table.groupby("rule", sort=False):
        clean = rows["score"][~rows["uid"].isin(dirty)].to_numpy()
        for kind in sorted(kinds):
            found = rows["score"][rows["uid"].isin(kinds[kind])].to_numpy()
            if min(len(found), len(clean)) >= FEWEST:
                out.append({"score of": rule, "kind": kind, "dirty": len(found), "clean": len(clean), "auc": round(area(clean, found), 4)})
    return out


def area(higher: Iterable[float], lower: Iterable[float]) -> float:
    """Area under the ROC curve: the share of pairs in which the first scores higher, ties counted half."""
    from scipy.stats import rankdata

    first, second = np.asarray(higher), np.asarray(lower)
    ranks = rankdata(np.concatenate([first, second]))[: len(first)]
    return float((ranks.sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second)))


def by_kind(truth: Truth, rows_of: Places, pool: Pool, trail: Trail) -> list[dict[str, Any]]:
    """Precision and recall per kind of dirt.

    `reached` are the dirty samples that the rule was shown (samples dropped before by another rule are not its business), `dropped` everything that went
    for one of the kind's reasons. Of two copies either one may go.
    """
    named = {url: {row["status"] for row in truth if row["url"] == url and row.get("status")} for url in {row["url"] for row in truth}}
    known = [(row, url) for url in named if named[url] for row in rows_of.get(url, ())]
    right = sum(pool.status[row] in named[url] for row, url in known)
    out = [
        {
            "kind": "download status",
            "rule": "(download)",
            "truth": len(known),
            "reached": len(known),
            "found": right,
            "dropped": None,
            "recall": _share(right, len(known)),
            "precision": None,
        }
    ]
    named_kinds = {row["kind"] for row in truth}
    ran = [kind for kind, (rules, _) in ANSWERS.items() if kind in named_kinds and set(rules) <= set(trail.tally)]
    return out + [_one_kind(kind, [row for row in truth if row["kind"] == kind], truth, rows_of, trail) for kind in ran]


def _one_kind(kind: str, rows: list[dict[str, Any]], truth: list[dict[str, Any]], rows_of: Places, trail: Trail) -> dict[str, Any]:
    rules, answers = ANSWERS[kind]
    order = list(trail.tally)
    gone_before = {reason for rule in order[: max(map(order.index, rules))] for reason in trail.tally[rule]} - {"", *answers}
    reached = found = 0
    for row in rows:
        sides = [rows_of.get(url, []) for url in ({row["url"], row["of"]} if kind in COPIES else {row["url"]})]
        reasons = [trail.reason_of(place) for places in sides for place in places]
        if all(sides) and not gone_before.intersection(reasons):
            reached += 1
            found += any(reason in answers for reason in reasons)
    wanted = {url for row in truth if kind in COPIES and row["kind"] in COPIES or row["kind"] == kind for url in (row["url"], row["of"])}
    own = (kind,) if kind in COPIES else answers
    # two captions of one address are no dirt that a truth file could name
    dropped = [url for url, places in rows_of.items() if len(places) == 1 or kind not in COPIES for place in places if trail.reason_of(place) in own]
    right = sum(url in wanted for url in dropped)
    return {
        "kind": kind,
        "rule": rules[-1],
        "truth": len(rows),
        "reached": reached,
        "found": found,
        "dropped": len(dropped),
        "recall": _share(found, reached),
        "precision": _share(right, len(dropped)),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
