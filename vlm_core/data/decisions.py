"""Why a sample stayed or went: one row per sample and rule that looked at it, and a law that the counts obey.

    in = kept + sum of dropped.<reason>

The reasons are a closed list, so that a query over years of runs does not meet a new spelling.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlm_core.data.sample import DECISIONS
from vlm_core.errors import NothingLeft

Reason = Literal[
    "not_downloaded",
    "opted_out", "refused_licence", "no_licence",
    "no_caption", "too_few_words", "too_few_chars", "too_many_words",
    "file_name", "boilerplate", "frequent_caption",
    "email", "url", "phone",
    "too_small", "aspect_ratio",
    "language",
    "exact_duplicate", "near_duplicate", "semantic_duplicate",
    "unsafe",
    "off_target", "no_embedding", "low_score",
    "no_entry", "thinned",
]  # fmt: skip
REASONS: tuple[str, ...] = get_args(Reason)


class Verdict(NamedTuple):
    """What a rule says about the rows that it was shown, in their order."""

    reason: NDArray[Any]  # of str: why a row goes, '' when it stays
    score: NDArray[Any] | None = None  # what was measured
    threshold: NDArray[Any] | float | None = None  # what it was compared with
    detail: Sequence[str] | None = None
    version: str = "1"

    @property
    def keep(self) -> NDArray[np.bool_]:
        return np.asarray(self.reason == "", bool)


def first_reason(n: int, *checks: tuple[Reason, NDArray[Any]]) -> NDArray[Any]:
    """Per row the reason of the first check whose mask (True: goes) holds, or ''."""
    reason = np.full(n, "", dtype=object)
    for name, mask in reversed(checks):
        reason[np.asarray(mask, bool)] = name
    return reason


class Trail:
    """Collects verdicts rule by rule; knows who is still in."""

    def __init__(self, uids: Sequence[str]) -> None:
        self.uids = np.asarray(uids, dtype=object)
        self.rows = np.arange(len(self.uids))
        self.reason = np.full(len(self.uids), "", dtype=object)  # of the one drop, if any
        self._tables: list[pa.Table] = []
        self._seq = 0

    def add(self, rule: str, verdict: Verdict) -> None:
        """Record a verdict on the rows that are still in. Raises NothingLeft when it leaves none."""
        rows, keep = self.rows, verdict.keep
        unknown = set(verdict.reason[~keep]) - set(REASONS)
        if unknown:  # a programming error: the list in this file is the contract
            raise ValueError(f"rule {rule} gave the reasons {sorted(unknown)}, which are not in REASONS")
        self._tables.append(self._table(rule, verdict, rows))
        self.reason[rows] = verdict.reason
        self.rows = rows[keep]
        if not len(self.rows):
            names, counts = np.unique(verdict.reason.astype(str), return_counts=True)
            why = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
            raise NothingLeft(
                f"Found no sample left after the rule {rule!r}: it dropped all {len(rows):,} that reached it ({why}) of {len(self.uids):,}, "
                f"expected it to keep some; loosen that rule or look at its input."
            )

    def _table(self, rule: str, verdict: Verdict, rows: NDArray[Any]) -> pa.Table:
        n = len(rows)
        seq = np.arange(self._seq, self._seq + n, dtype=np.uint64)
        self._seq += n
        threshold = np.broadcast_to(np.asarray(np.nan if verdict.threshold is None else verdict.threshold, np.float64), n)
        score = np.full(n, np.nan) if verdict.score is None else np.asarray(verdict.score, np.float64)
        columns = {
            "seq": seq, "uid": self.uids[rows], "rule": [rule] * n, "version": [verdict.version] * n,
            "score": pa.array(score, from_pandas=True), "threshold": pa.array(threshold, from_pandas=True),
            "keep": verdict.keep, "reason": np.where(verdict.keep, "ok", verdict.reason), "detail": list(verdict.detail or [""] * n),
        }  # fmt: skip
        return pa.table({name: pa.array(values, DECISIONS.field(name).type) for name, values in columns.items()}, schema=DECISIONS)

    def decisions(self) -> pa.Table:
        """All rows by uid, and for one uid in the order in which the rules ran."""
        return pa.concat_tables(self._tables).sort_by([("uid", "ascending"), ("seq", "ascending")]).combine_chunks()

    def counts(self) -> dict[str, int]:
        """in, kept, dropped.<reason>. They add up, or this is a bug worth stopping for."""
        dropped = {f"dropped.{name}": int((self.reason == name).sum()) for name in REASONS if (self.reason == name).any()}
        counts = {"in": len(self.uids), "kept": len(self.rows), **dropped}
        if counts["in"] != counts["kept"] + sum(dropped.values()):
            raise RuntimeError(f"the counts do not add up: {counts}")
        return counts
