"""Whether a folder holds something that was taken down since it was made: no verb reads pictures from it to train, to measure or to hand on.

    revoked(home, folder, version)     -> Revoked, or None; asked by `vlm_core.run` of every input and every snapshot that a setting names
    find(home, version)                -> [{takedown, reason, at, ...}] of a snapshot by its hash alone, for pages and reports

A snapshot counts as revoked when a takedown marked it, or when its index names a uid of a tombstone (a run that was under way when the takedown came is
marked by nobody); a folder of test sets, when one of its pictures was taken down by its bytes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vlm_core.config import WAIVER
from vlm_core.data.lineage.tombstones import load, read_rows


class Revoked(NamedTuple):
    """A folder that holds what was taken down: how many of its samples are known to be covered, and the takedowns as `kind value (id)`."""

    name: str
    folder: Path
    version: str
    samples: int
    takedowns: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.takedowns) - 3} more" if len(self.takedowns) > 3 else ""
        held = f"{self.samples} samples" if self.samples else "samples"
        return f"{self.folder} ({self.version[:12]}) with {held} that were taken down: {', '.join(self.takedowns[:3])}{more}"

    def record(self) -> dict[str, Any]:
        """What a run that read it all the same keeps."""
        return {"input": self.name, "version": self.version, "samples": self.samples, "takedowns": ", ".join(self.takedowns)}


def revoked(home: Path, name: str, folder: Path, version: str) -> Revoked | None:
    """The finding about one folder, or None. Costs three small tables, and the folder's index when anything was ever taken down."""
    stones = load(home)
    if not stones:
        return None
    held = {uid: takedown for uid in _uids(folder) if (takedown := stones.uids.get(uid))}
    bytes_held = [takedown for sha in _pictures(folder) if (takedown := stones.hit({"sha256": sha}))]
    marked = {row["takedown_id"] for row in find(home, version)}
    if not (held or bytes_held or marked):
        return None
    said = _named(home)
    takedowns = sorted(said[takedown] for takedown in {*held.values(), *bytes_held, *marked} if takedown in said)
    return Revoked(name, folder, version, len(held) + len(bytes_held), takedowns)


def find(home: Path, version: str) -> list[dict[str, Any]]:
    """The takedowns that marked a snapshot and were not withdrawn, oldest first."""
    catalog = home / "catalog"
    withdrawn = {row["takedown_id"] for row in read_rows(catalog / "withdrawals")}
    marked = {row["takedown_id"] for row in read_rows(catalog / "revocations") if row["snapshot_md5"] == version} - withdrawn
    found = [row for row in read_rows(catalog / "takedowns") if row["takedown_id"] in marked]
    return [{name: row.get(name) for name in ("takedown_id", "kind", "value", "reason", "at")} for row in sorted(found, key=lambda row: str(row.get("at")))]


def waived(settings: Mapping[str, Any]) -> str:
    """The name of a waiver that is set among flat settings, or ''."""
    return next((name for name, value in settings.items() if name.rpartition(".")[2] == WAIVER and value is True), "")


def waiver_of(settings: Mapping[str, Any]) -> str:
    """The name of the waiver that these settings know, or ''."""
    return next((name for name in settings if name.rpartition(".")[2] == WAIVER), "")


def _named(home: Path) -> dict[str, str]:
    return {row["takedown_id"]: f"{row['kind']} {row['value'][:80]} ({row['takedown_id'][:12]})" for row in read_rows(home / "catalog" / "takedowns")}


def _uids(folder: Path) -> Iterator[str]:
    """uids of the samples of a folder of shards; of any other folder none."""
    if (folder / "manifest.json").is_file() and (index := folder / "index.parquet").is_file():
        import pyarrow.parquet as pq

        yield from pq.read_table(index, columns=["uid"])["uid"].to_pylist()


def _pictures(folder: Path) -> Iterator[str]:
    """SHA-256 of the pictures of a folder of test sets, or of their features."""
    for about in sorted(folder.glob("*/dataset.json")):
        import pyarrow.parquet as pq

        if (table := about.with_name("table.parquet")).is_file() and "sha256" in pq.read_schema(table).names:
            yield from pq.read_table(table, columns=["sha256"])["sha256"].to_pylist()
