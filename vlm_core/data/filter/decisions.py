"""Why a sample stayed or went: one row per sample and rule that looked at it, and a law that the counts obey.

    in = kept + sum of dropped.<reason>

The reasons are a closed list, so that a query over years of runs does not meet a new spelling.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlm_core.data.blocks import BLOCK, Blocks, Stored
from vlm_core.data.sample import DECISIONS
from vlm_core.errors import NothingLeft

Reason = Literal[
    "not_downloaded",
    "opted_out", "refused_licence", "no_licence",
    "domain",
    "no_caption", "too_few_words", "too_few_chars", "too_many_words",
    "mostly_digits", "mostly_punctuation", "repeated_words", "repeated_ngrams", "markup",
    "file_name", "boilerplate", "frequent_caption",
    "blocked_word",
    "email", "url", "iban", "card", "national_id", "ip_address", "phone",
    "too_small", "aspect_ratio", "too_few_bytes", "format",
    "language",
    "off_vocabulary",
    "exact_duplicate", "near_duplicate", "semantic_duplicate",
    "contaminated",
    "unsafe",
    "faces", "watermark", "aesthetic",
    "off_target", "no_embedding", "no_score", "low_score",
    "domain_cap",
    "no_entry", "thinned",
]  # fmt: skip
REASONS: tuple[str, ...] = get_args(Reason)


class Verdict(NamedTuple):
    """What a rule says about the rows that it was shown, in their order."""

    reason: NDArray[Any]  # of str: why a row goes, '' when it stays
    score: NDArray[Any] | None = None  # what was measured
    threshold: NDArray[Any] | float | None = None  # what it was compared with
    detail: Sequence[str] | pa.Array | None = None
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


_SPOOLED = pa.schema([
    ("row", pa.int64()), ("place", pa.int64()), ("version", pa.string()), ("score", pa.float64()), ("threshold", pa.float64()), ("reason", pa.uint8()), ("detail", pa.string()),
])  # fmt: skip
_CODES = {name: code for code, name in enumerate(("ok", *REASONS))}
_NAMES = pa.array(list(_CODES), pa.string())
PLACES = 256  # rules that a run may have; seq = row * PLACES + place, so that it does not depend on how rows were cut into blocks


def joined(*parts: Any) -> pa.Array:
    """Details, row by row: texts and columns of texts or numbers, one after the other."""
    return pc.binary_join_element_wise(*(pa.scalar(part) if isinstance(part, str) else pa.array(part).cast(pa.string()) for part in parts), "")


class Trail:
    """Collects verdicts rule by rule; knows who is still in. With a scratch folder decisions lie there until they are read, else in memory."""

    def __init__(self, uids: Sequence[str] | Stored, scratch: Path | None = None) -> None:
        self.uids = uids if isinstance(uids, Stored) else np.asarray(uids, dtype=object)
        self.rows = np.arange(len(uids))
        self.reason = np.full(len(uids), "", dtype=object)  # of the one drop, if any
        self.tally: dict[str, Counter[str]] = {}  # rule -> reason ('' for those that stay) -> samples, in the order of the rules
        self.versions: dict[str, str] = {}
        self._scratch, self._spools = scratch, list[Blocks]()

    def add(self, rule: str, verdict: Verdict) -> None:
        """Record a verdict on all rows that are still in. Raises NothingLeft when it leaves none."""
        with self.segment():
            self.look(rule, self.rows, verdict)

    @contextmanager
    def segment(self) -> Iterator[None]:
        """Rules that run together, each on some of the rows that are still in: `look` inside. Raises NothingLeft when a rule leaves none."""
        before, ran = len(self.rows), set(self.tally)
        path = self._scratch / f"decisions-{len(self._spools)}.arrow" if self._scratch else None
        with Blocks(_SPOOLED, path) as spool:
            self._spools.append(spool)
            yield
        self.rows = self.rows[self.reason[self.rows] == ""]
        if before and not len(self.rows):
            rule, counts = next((rule, counts) for rule, counts in self.tally.items() if rule not in ran and not counts[""])
            why = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts) if name)
            raise NothingLeft(
                f"Found no sample left after the rule {rule!r}: it dropped all {counts.total():,} that reached it ({why}) of {len(self.uids):,}, "
                f"expected it to keep some; loosen that rule or look at its input."
            )

    def look(self, rule: str, rows: NDArray[Any], verdict: Verdict) -> NDArray[Any]:
        """Record a verdict on ascending rows; the rows that stay."""
        codes, names = factorize(verdict.reason)
        if unknown := set(names) - {"", *REASONS}:  # a programming error: the list in this file is the contract
            raise ValueError(f"rule {rule} gave the reasons {sorted(unknown)}, which are not in REASONS")
        counts = self.tally.setdefault(rule, Counter())
        counts.update(dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True)))
        self.versions[rule] = verdict.version
        place, n = list(self.tally).index(rule), len(rows)
        threshold = np.broadcast_to(np.asarray(np.nan if verdict.threshold is None else verdict.threshold, np.float64), n)
        score = np.full(n, np.nan) if verdict.score is None else np.asarray(verdict.score, np.float64)
        reason = np.array([_CODES[name or "ok"] for name in names], np.uint8)[codes] if n else np.zeros(0, np.uint8)
        columns = {
            "row": rows, "place": np.full(n, place), "version": pa.repeat(verdict.version, n), "score": score, "threshold": threshold,
            "reason": reason, "detail": pa.repeat("", n) if verdict.detail is None else verdict.detail,
        }  # fmt: skip
        self._spools[-1].add(pa.table({name: pa.array(values, _SPOOLED.field(name).type) for name, values in columns.items()}, schema=_SPOOLED))
        gone = reason > 0
        self.reason[rows[gone]] = verdict.reason[gone]
        stay: NDArray[Any] = rows[~gone]
        return stay

    def decisions(self) -> pa.Table:
        """All rows by uid, and for one uid in the order in which the rules ran."""
        return pa.concat_tables([DECISIONS.empty_table(), *self.tables()]).combine_chunks()

    def tables(self) -> Iterator[pa.Table]:
        """`decisions`, a block of samples at a time."""
        streams = [_until(spool.tables()) for spool in self._spools]
        for stream in streams:
            next(stream)
        for start in range(0, len(self.uids), BLOCK):
            stop = min(start + BLOCK, len(self.uids))
            rows = pa.concat_tables([stream.send(stop) for stream in streams])
            yield self._named(rows, start, stop)

    def _named(self, table: pa.Table, start: int, stop: int) -> pa.Table:
        """Spooled rows in the words of DECISIONS."""
        row, place = table["row"].to_numpy(), table["place"].to_numpy()
        seq = row * PLACES + place
        order = np.argsort(seq, kind="stable")
        table = table.take(order)
        uids, reason = pa.array(np.asarray(self.uids[np.arange(start, stop)], dtype=object), pa.string()), table["reason"]
        numbers = {name: pc.if_else(pc.is_nan(table[name]), None, table[name]) for name in ("score", "threshold")}
        columns = {
            "seq": pa.array(seq[order].astype(np.uint64)), "uid": uids.take(pa.array(row[order] - start)), "rule": pa.array(list(self.tally)).take(table["place"]),
            "version": table["version"], **numbers, "keep": pc.equal(reason, 0), "reason": _NAMES.take(reason), "detail": table["detail"],
        }  # fmt: skip
        return pa.table({name: columns[name] for name in DECISIONS.names}, schema=DECISIONS)

    def counts(self) -> dict[str, int]:
        """in, kept, dropped.<reason>. They add up, or this is a bug worth stopping for."""
        codes, names = factorize(self.reason)
        found = dict(zip(names, np.bincount(codes, minlength=len(names)).tolist(), strict=True))
        dropped = {f"dropped.{name}": found[name] for name in REASONS if name in found}
        counts = {"in": len(self.uids), "kept": len(self.rows), **dropped}
        if counts["in"] != counts["kept"] + sum(dropped.values()):
            raise RuntimeError(f"the counts do not add up: {counts}")
        return counts


def factorize(values: NDArray[Any]) -> tuple[NDArray[np.int64], list[str]]:
    """(number of each value, the values by number)."""
    known = pa.array(values, pa.string()).dictionary_encode()
    return known.indices.to_numpy().astype(np.int64), known.dictionary.to_pylist()


def _until(tables: Iterator[pa.Table]) -> Generator[pa.Table, int, None]:
    """Send a row: the tables' rows before it that were not given yet."""
    rest = _SPOOLED.empty_table()
    stop = yield rest
    while True:
        parts = [rest]
        while not len(parts[-1]) or parts[-1]["row"][-1].as_py() < stop:
            more = next(tables, None)
            if more is None:
                break
            parts.append(more)
        whole = pa.concat_tables(parts)
        passed = int(np.searchsorted(whole["row"].to_numpy(), stop))
        rest = whole.slice(passed)
        stop = yield whole.slice(0, passed)
