"""Pictures that came with a source of this machine, taken in as if they had been fetched: the part of `vlm download` that opens no connection.

An address is never turned into a path. The download looks it up in the lists that `vlm crawl` wrote beside its copies (`local_source`), and reads the
copy, whose hash the list holds. Pages and tables cannot name `local` addresses (`pairs.make_pair` refuses them), so nothing that a stranger writes
opens a file here.
"""

import hashlib
import io
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from vlm_core.data.crawl.config import Download
from vlm_core.data.crawl.local_source import LIST, ROWS
from vlm_core.data.crawl.pairs import LOCAL
from vlm_core.data.fetch.fetch import Fetched
from vlm_core.data.fetch.hash_lists import HashLists
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.picture import Limits, probe
from vlm_core.data.shards.tar import members, read_member
from vlm_core.data.web.address import FetchFailed
from vlm_core.data.web.c2pa import c2pa_decision
from vlm_core.data.web.rights import ALLOWED
from vlm_core.errors import BadManifest, MissingInput

Row = dict[str, Any]


class Copy(NamedTuple):
    """Where the bytes of an address lie, and which they are."""

    tar: Path
    sha256: str


def copies_of(folders: Iterable[Path], wanted: Collection[str]) -> dict[str, Copy]:
    """The wanted addresses whose pictures lie in these outputs of `vlm crawl`; the first folder that has one counts.

    Raises MissingInput when a picture of this machine lies in none of them.
    """
    found: dict[str, Copy] = {}
    for folder in folders:
        if not (folder / LIST).is_file():
            continue
        for rows in pq.ParquetFile(folder / LIST).iter_batches(ROWS, columns=["url", "sha256", "tar"]):
            for row in rows.to_pylist():
                if row["url"] in wanted:
                    found.setdefault(row["url"], Copy(folder / row["tar"], row["sha256"]))
    lost = [url for url in wanted if url.startswith(f"{LOCAL}:") and url not in found]
    if lost:
        raise MissingInput(f"Found {len(lost)} pictures of this machine without their bytes (the first is {lost[0]}), expected the folder that 'vlm crawl' "
                           "made of their source; add --in pages=DIR, or --in pages.NAME=DIR for a further batch.")  # fmt: skip
    return found


def believed(state: Mapping[str, Row], copies: Mapping[str, Copy], config: Download) -> dict[str, Row]:
    """What is known about addresses, without those whose copy now has other bytes, or whose bytes no list of MD5 hashes has seen."""
    unseen = needs_md5(config)
    return {
        url: record for url, record in state.items()
        if (url not in copies or copies[url].sha256 == record.get("sha256")) and not (unseen and record["status"] == "ok" and not record.get("md5"))
    }  # fmt: skip


def ingest(copies: Mapping[str, Copy], todo: Iterable[str], ledger: Ledger, config: Download, lists: HashLists) -> None:
    """Answer addresses that have a copy. The budgets of a picture, lists of hashes and the opt-out inside it hold; decoding, resizing, hashes are the usual code.

    Lists of PDQ hashes are asked once it is decoded, before anything is published: the copy lies on this machine anyway.

    Raises BadManifest when a copy is not what its list says.
    """
    known = ledger.unfinished()
    wanted = sorted(todo, key=lambda url: copies[url].tar)
    for tar, urls in groupby(wanted, key=lambda url: copies[url].tar):
        places = {member.name: member for member in members(tar)}
        with tar.open("rb") as stream:
            for url in urls:
                if url not in known:
                    member = places.get(copies[url].sha256)
                    _answer(url, read_member(stream, member) if member else b"", copies[url], ledger, config, lists)


def _answer(url: str, data: bytes, copy: Copy, ledger: Ledger, config: Download, lists: HashLists) -> None:
    if hashlib.sha256(data).hexdigest() != copy.sha256:
        raise BadManifest(
            f"Found other bytes than it says for {copy.sha256} in {copy.tar}, expected the picture of {url}; run 'vlm crawl' for its source again."
        )
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest() if needs_md5(config) else ""
    known: dict[str, Any] = {"bytes": len(data), "sha256": copy.sha256, "md5": md5, "fetched_at": datetime.now(UTC).isoformat(timespec="milliseconds")}
    fetch, place = config.fetch, None
    try:
        if (found := lists.blocked(copy.sha256, md5)) is not None:
            raise FetchFailed("blocked_hash", f"its bytes are on the list {found!r}")
        if len(data) > fetch.max_bytes:
            raise FetchFailed("too_large", f"{len(data):,} bytes, at most {fetch.max_bytes:,} allowed")
        header = probe(io.BytesIO(data), Limits(fetch.max_pixels, fetch.max_decoded_mb, fetch.min_side, fetch.max_aspect))
        said = c2pa_decision(io.BytesIO(data)) if config.network.optouts.c2pa else ALLOWED
        if said.allowed:
            fetched, place = Fetched(url, "ok", mime=header.mime, width=header.width, height=header.height, **known), ledger.keep(data)
        else:
            fetched = Fetched(url, "optout_header", said.evidence, rights_rule=said.rule, rights_evidence=said.evidence, **known)
    except FetchFailed as failed:
        fetched = Fetched(url, failed.status, failed.detail, **known)
    ledger.finish(fetched, place)


def needs_md5(config: Download) -> bool:
    return any(one.kind == "md5" for one in config.hash_lists.values())
