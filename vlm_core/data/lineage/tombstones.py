"""What was taken down, for ever: obeyed by every verb that could let it in again (`obeys` in `vlm_core.run.VERBS`), and by search.

    stones = load(home())           of no takedown at all: empty
    stones.hit(row)                 the id of the takedown that covers a row with uid, url, final_url, page_url, pages, sha256 or pdq; '' when none does
    stones.uids                     every uid that was named or that the catalog knew when its takedown came
    stones.digest                   '' or a name of this list: the same settings and inputs under another list are another run

`vlm takedown` appends to the catalog's tables `takedowns`, `takedown_uids` and `withdrawals`; nothing ever leaves them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlm_core.config import canonical_json
from vlm_core.data.sample import canonical_url

KINDS = ("uid", "url", "domain", "sha256", "pdq")
PDQ_RADIUS = 31  # of 256 bits: what PDQ's authors take for the same picture
ADDRESSES = ("url", "final_url", "page_url")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Tombstones:
    """Value -> id of the takedown, by kind."""

    uids: Mapping[str, str] = field(default_factory=dict)
    urls: Mapping[str, str] = field(default_factory=dict)
    domains: Mapping[str, str] = field(default_factory=dict)
    sha256s: Mapping[str, str] = field(default_factory=dict)
    pdqs: tuple[tuple[int, int, str], ...] = ()  # bits, radius, id
    digest: str = ""

    def __bool__(self) -> bool:
        return bool(self.digest)

    @property
    def ids(self) -> set[str]:
        """The takedowns that hold."""
        return {*self.uids.values(), *self.urls.values(), *self.domains.values(), *self.sha256s.values(), *(found for _, _, found in self.pdqs)}

    def hit(self, row: Row) -> str:
        """The first takedown that covers the row, or ''. Columns that the row lacks are not asked."""
        return self._named(row) or self._address(row) or self._near(str(row.get("pdq") or ""))

    def _named(self, row: Row) -> str:
        return self.uids.get(str(row.get("uid") or ""), "") or self.sha256s.get(str(row.get("sha256") or "").lower(), "")

    def _address(self, row: Row) -> str:
        if not (self.urls or self.domains):
            return ""
        addresses = [str(row.get(name) or "") for name in ADDRESSES] + [str(page["page_url"] or "") for page in row.get("pages") or ()]
        return next((found for address in addresses if address and (found := self.address(address))), "")

    def address(self, url: str) -> str:
        """The takedown of an address or of its domain, or ''."""
        return self.urls.get(_address(url), "") or next((self.domains[name] for name in _parents(url) if name in self.domains), "")

    def _near(self, pdq: str) -> str:
        if not (pdq and self.pdqs):
            return ""
        bits = int(pdq, 16)
        return next((found for stone, radius, found in self.pdqs if (bits ^ stone).bit_count() <= radius), "")


def load(home: Path) -> Tombstones:
    """Every takedown of a platform home that was not withdrawn. Reads three small tables; imports nothing heavy when there is none."""
    catalog = home / "catalog"
    withdrawn = {row["takedown_id"] for row in read_rows(catalog / "withdrawals")}
    rows = [row for row in read_rows(catalog / "takedowns") if row["takedown_id"] not in withdrawn]
    if not rows:
        return Tombstones()
    of: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for row in rows:
        of[row["kind"]].setdefault(row["value"], row["takedown_id"])
    for row in read_rows(catalog / "takedown_uids"):
        if row["takedown_id"] not in withdrawn:
            of["uid"].setdefault(row["uid"], row["takedown_id"])
    pdqs = tuple((int(row["value"], 16), int(row["radius"]), row["takedown_id"]) for row in rows if row["kind"] == "pdq")
    named = sorted({(row["kind"], row["value"], int(row["radius"] or 0)) for row in rows})
    digest = hashlib.sha256(canonical_json(named).encode()).hexdigest()
    return Tombstones(of["uid"], of["url"], of["domain"], of["sha256"], pdqs, digest)


def standard(kind: str, value: str) -> str:
    """The one spelling under which a value is kept and compared."""
    match kind:
        case "url":
            return _address(value)
        case "domain":
            return (urlsplit(value).hostname or "" if "//" in value else value).strip().strip(".").lower()
        case _:
            return value.strip().lower()


def _address(url: str) -> str:
    try:
        return canonical_url(url)
    except ValueError:  # no address at all: equal text is all there is
        return url


def _parents(url: str) -> Iterable[str]:
    """a.b.org, b.org, org of an address on a.b.org."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return
    while host:
        yield host
        host = host.partition(".")[2]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    from vlm_core.data.lineage.catalog import fragments

    files = fragments(folder)
    if not files:
        return []
    import pyarrow.parquet as pq

    return [row for file in files for row in pq.read_table(file).to_pylist()]
