"""Why a sample stayed or went: one row per sample and rule that looked at it, and a law that the counts obey.

    in = kept + sum of dropped.<reason>

The reasons are a closed list, so that a query over years of runs does not meet a new spelling. While rules run a reason is its number in that list (uint8),
and details are not yet put together: both become text when the decisions are read.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vlm_core.data.blocks import BLOCK, Stored
from vlm_core.data.sample import DECISIONS
from vlm_core.errors import NothingLeft

Reason = Literal[
    "not_downloaded", "taken_down",
    "listed", "not_listed",
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
_WORDS = np.array(["", *REASONS], dtype=object)  # by code; 0: it stays
_CODES: dict[str, int] = {name: code for code, name in enumerate(_WORDS)}
_NAMES = pa.array(["ok", *REASONS], pa.string())
Codes = NDArray[np.uint8]
PLACES = 256  # rules that a run may have; seq = row * PLACES + place, so that it does not depend on how rows were cut into blocks


class Joined(NamedTuple):
    """Details, row by row, not put together yet: texts and columns, one after the other."""

    parts: tuple[str | pa.Array, ...]


def joined(*parts: Any) -> Joined:
    """Details of texts and of columns of texts or numbers."""
    return Joined(tuple(part if isinstance(part, str | pa.Array) else pa.array(part) for part in parts))


class Verdict(NamedTuple):
    """What a rule says about the rows that it was shown, in their order."""

    reason: Codes  # why a row goes, as `first_reason` and `reason_codes` give it; 0 when it stays
    score: NDArray[Any] | None = None  # what was measured
    threshold: NDArray[Any] | float | None = None  # what it was compared with
    detail: Sequence[str] | pa.Array | Joined | None = None
    version: str = "1"

    @property
    def keep(self) -> NDArray[np.bool_]:
        return np.asarray(self.reason == 0, bool)


def first_reason(n: int, *checks: tuple[Reason, NDArray[Any]]) -> Codes:
    """Per row the code of the first check whose mask (True: goes) holds, or 0."""
    reason = np.zeros(n, np.uint8)
    for name, mask in reversed(checks):
        np.copyto(reason, _code(name), where=np.asarray(mask, bool))
    return reason


def reason_codes(names: Iterable[str]) -> Codes:
    """The codes of reasons, '' for a row that stays."""
    return np.array([_code(name) for name in names], np.uint8)


def reason_names(codes: Codes) -> NDArray[Any]:
    """The reasons as texts, '' for a row that stays."""
    return np.asarray(_WORDS[codes])


def _code(name: str) -> int:
    if name not in _CODES:  # a programming error: the list in this file is the contract
        raise ValueError(f"a rule gave the reason {name!r}, which is not in REASONS")
    return _CODES[name]


class _Spool:
    """The verdicts of one rule, in the order of the rows: in memory, or in a file that is read once, from its beginning."""

    def __init__(self, place: int, file: Path | None) -> None:
        self.place, self.version, self.threshold = place, "1", float("nan")  # a threshold that all rows share is not a column
        self._file, self._tables = file, list[pa.Table]()
        self._writer: Any = None
        self._form: list[str | None] = []  # the parts of the details: texts, and None for a column

    def add(self, rows: NDArray[Any], verdict: Verdict) -> None:
        columns: dict[str, Any] = {"row": rows, "reason": verdict.reason}
        if verdict.score is not None:
            columns["score"] = np.asarray(verdict.score, np.float64)
        if isinstance(verdict.threshold, np.ndarray) and verdict.threshold.ndim:
            columns["threshold"] = verdict.threshold
        elif verdict.threshold is not None:
            self.threshold = float(verdict.threshold)
        parts = verdict.detail.parts if isinstance(verdict.detail, Joined) else () if verdict.detail is None else (_texts(verdict.detail),)
        self.version, self._form = verdict.version, [part if isinstance(part, str) else None for part in parts]
        columns |= {f"detail{number}": part for number, part in enumerate(parts) if not isinstance(part, str)}
        table = pa.table(columns)
        if self._file is None:
            self._tables.append(table)
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._file), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def until(self) -> Generator[pa.Table | None, int, None]:
        """Send a row: what was added about the rows before it and not given yet, or None."""
        tables = self._read() if self._writer is not None else iter(self._tables)
        rest, found = next(tables, None), None
        while True:
            stop, parts = (yield found), []
            while rest is not None and rest["row"][-1].as_py() < stop:
                parts.append(rest)
                rest = next(tables, None)
            if rest is not None and (passed := int(np.searchsorted(rest["row"].to_numpy(), stop))):
                parts.append(rest.slice(0, passed))
                rest = rest.slice(passed)
            found = pa.concat_tables(parts) if parts else None

    def _read(self) -> Iterator[pa.Table]:
        with pa.OSFile(str(self._file), "rb") as source, pa.ipc.open_stream(source) as stream:
            yield from (pa.Table.from_batches([batch]) for batch in stream)

    def columns(self, table: pa.Table) -> dict[str, Any]:
        """What was added, in the columns of DECISIONS but for the uid and the rule."""
        n, names = len(table), table.schema.names
        numbers = {
            name: table[name].cast(pa.float64()) if name in names else pa.repeat(given, n) for name, given in (("score", np.nan), ("threshold", self.threshold))
        }
        parts = [said if said is not None else table[f"detail{number}"].cast(pa.string()) for number, said in enumerate(self._form)]
        detail = pc.binary_join_element_wise(*(pa.scalar(part) if isinstance(part, str) else part for part in parts), "") if parts else pa.repeat("", n)
        return {"row": table["row"], "place": pa.repeat(self.place, n), "reason": table["reason"], **numbers, "detail": detail if len(parts) != 1 else parts[0]}


def _texts(detail: Sequence[str] | pa.Array) -> pa.Array:
    return detail if isinstance(detail, pa.Array) else pa.array(detail, pa.string())


class Trail:
    """Collects verdicts rule by rule; knows who is still in. With a scratch folder decisions lie there until they are read, else in memory."""

    def __init__(self, uids: Sequence[str] | Stored, scratch: Path | None = None) -> None:
        self.uids = uids if isinstance(uids, Stored) else np.asarray(uids, dtype=object)
        self.rows = np.arange(len(uids))
        self.codes: Codes = np.zeros(len(uids), np.uint8)  # of the one drop, if any
        self.tally: dict[str, Counter[str]] = {}  # rule -> reason ('' for those that stay) -> samples, in the order of the rules
        self._scratch, self._spools = scratch, dict[str, _Spool]()

    @property
    def reason(self) -> NDArray[Any]:
        """Per sample the reason of its one drop, or ''."""
        return reason_names(self.codes)

    def reason_of(self, row: int) -> str:
        return str(_WORDS[self.codes[row]])

    def dropped(self, reason: str) -> NDArray[np.int64]:
        """The rows that went for this reason."""
        return np.flatnonzero(self.codes == _code(reason))

    @property
    def versions(self) -> dict[str, str]:
        return {rule: spool.version for rule, spool in self._spools.items()}

    def add(self, rule: str, verdict: Verdict) -> None:
        """Record a verdict on all rows that are still in. Raises NothingLeft when it leaves none."""
        with self.segment():
            self.look(rule, self.rows, verdict)

    @contextmanager
    def segment(self) -> Iterator[None]:
        """Rules that run together, each on some of the rows that are still in: `look` inside. Raises NothingLeft when a rule leaves none."""
        before, ran = len(self.rows), set(self.tally)
        try:
            yield
        finally:
            for rule in self._spools.keys() - ran:
                self._spools[rule].close()
        self.rows = self.rows[self.codes[self.rows] == 0]
        if before and not len(self.rows):
            rule, counts = next((rule, counts) for rule, counts in self.tally.items() if rule not in ran and not counts[""])
            why = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts) if name)
            raise NothingLeft(
                f"Found no sample left after the rule {rule!r}: it dropped all {counts.total():,} that reached it ({why}) of {len(self.uids):,}, "
                f"expected it to keep some; loosen that rule or look at its input."
            )

    def look(self, rule: str, rows: NDArray[Any], verdict: Verdict) -> NDArray[Any]:
        """Record a verdict on ascending rows; the rows that stay."""
        if rule not in self._spools:
            place = len(self._spools)
            self._spools[rule] = _Spool(place, self._scratch / f"decisions-{place}.arrow" if self._scratch else None)
        found = np.bincount(verdict.reason, minlength=len(_WORDS))
        self.tally.setdefault(rule, Counter()).update({_WORDS[code]: int(found[code]) for code in np.flatnonzero(found)})
        if len(rows):
            self._spools[rule].add(rows, verdict)
        if found[0] == len(rows):
            return rows
        self.codes[rows] = verdict.reason
        stay: NDArray[Any] = rows[verdict.reason == 0]
        return stay

    def decisions(self) -> pa.Table:
        """All rows by uid, and for one uid in the order in which the rules ran."""
        return pa.concat_tables([DECISIONS.empty_table(), *self.tables()]).combine_chunks()

    def tables(self) -> Iterator[pa.Table]:
        """`decisions`, a block of samples at a time."""
        streams = [(spool, spool.until()) for spool in self._spools.values()]
        for _, stream in streams:
            next(stream)
        for start in range(0, len(self.uids), BLOCK):
            stop = min(start + BLOCK, len(self.uids))
            found = [(spool, stream.send(stop)) for spool, stream in streams]
            yield self._named([spool.columns(table) for spool, table in found if table is not None], start, stop)

    def _named(self, parts: list[dict[str, Any]], start: int, stop: int) -> pa.Table:
        """Spooled rows in the words of DECISIONS."""
        table = pa.concat_tables(pa.table(part) for part in parts)
        seq = table["row"].to_numpy() * PLACES + table["place"].to_numpy()
        order = np.argsort(seq, kind="stable")
        table, seq = table.take(order), seq[order]
        row, place, reason = seq // PLACES - start, seq % PLACES, table["reason"]
        uids = self.uids.arrow(np.arange(start, stop)) if isinstance(self.uids, Stored) else pa.array(self.uids[start:stop], pa.string())
        numbers = {name: pc.if_else(pc.is_nan(table[name]), None, table[name]) for name in ("score", "threshold")}
        rules, versions = (pa.array(list(names), pa.string()) for names in (self._spools, self.versions.values()))
        columns = {
            "seq": pa.array(seq.astype(np.uint64)), "uid": uids.take(pa.array(row)), "rule": rules.take(pa.array(place)), "version": versions.take(pa.array(place)),
            **numbers, "keep": pc.equal(reason, 0), "reason": _NAMES.take(reason), "detail": table["detail"],
        }  # fmt: skip
        return pa.table({name: columns[name] for name in DECISIONS.names}, schema=DECISIONS)

    def counts(self) -> dict[str, int]:
        """in, kept, dropped.<reason>. They add up, or this is a bug worth stopping for."""
        found = np.bincount(self.codes, minlength=len(_WORDS))
        dropped = {f"dropped.{name}": int(found[_CODES[name]]) for name in REASONS if found[_CODES[name]]}
        counts = {"in": len(self.uids), "kept": len(self.rows), **dropped}
        if counts["in"] != counts["kept"] + sum(dropped.values()):
            raise RuntimeError(f"the counts do not add up: {counts}")
        return counts
