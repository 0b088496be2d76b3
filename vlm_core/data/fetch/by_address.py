"""Where the stored picture of an address lies: in the last published OUT, or in the tars of passes that are not published yet."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.shards.tar import members, read_member


class Stored:
    """Picture bytes by address, for the addresses whose record says ok and whose bytes are there."""

    def __init__(self, published: Path, ledger: Ledger) -> None:
        self.published, self.ledger = published, ledger
        self._places: dict[str, tuple[Path, Any]] = {}

    def look(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Find the pictures that belong to these records."""
        self._places = {
            url: (tar, member)
            for url, tar, member, sha256 in (*self._published(), *self._passes())
            if url in state and state[url].get("stored_bytes") == member.size and sha256 in {"", state[url]["sha256"]}
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def read(self, url: str) -> bytes:
        tar, member = self._places[url]
        with tar.open("rb") as stream:
            return read_member(stream, member)

    def _published(self) -> Iterator[tuple[str, Path, Any, str]]:
        table = self.published / "status.parquet"
        if not table.exists():
            return
        rows = pq.read_table(table, columns=["uid", "url", "sha256", "shard"], filters=[("status", "=", "ok")]).to_pylist()
        wanted = {f"{row['uid']}.jpg": row for row in rows}
        for shard in sorted({row["shard"] for row in rows}):
            tar = self.published / shard
            for member in members(tar) if tar.exists() else ():
                if member.name in wanted:
                    row = wanted[member.name]
                    yield row["url"], tar, member, row["sha256"]

    def _passes(self) -> Iterator[tuple[str, Path, Any, str]]:
        for journal in sorted(self.ledger.passes.glob("*/*.jsonl")):
            tar = journal.with_suffix(".tar")
            rows = pq.read_table(journal.with_suffix(".parquet"), columns=["key", "url", "status"]).to_pylist()
            urls = {f"{row['key']}.jpg": row["url"] for row in rows if row["status"] == "success"}
            for member in members(tar):
                if member.name in urls:
                    yield urls[member.name], tar, member, ""
