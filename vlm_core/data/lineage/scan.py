"""Looks through files for what was taken down: every table, tar, shard and text of every live product, value by value.

A hit is a uid, SHA-256, address or PDQ hash of a tombstone. Arrays and indexes carry no names: their rows are those of the metadata beside them, which is
looked at, and their lengths must agree with it; pictures are known by their names and by the table beside them. What nobody here can read is said (`passed_over`). Pages as crawled (pages.parquet, WARC) are source material, which `vlm extract` refuses to read where it shows
something that was taken down: those that show a picture of a tombstone are counted and named apart.
"""

import json
import re
import sqlite3
import tarfile
import zlib
from lzma import LZMAError
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.crawl import html
from vlm_core.data.crawl.config import Crawl, Warc
from vlm_core.data.crawl.warc import read_warcs
from vlm_core.data.lineage.catalog import ask, open_catalog
from vlm_core.data.lineage.tombstones import Tombstones
from vlm_core.data.lineage.values import BY_NAME, NotLookedAt, by_bytes, kind_of, values
from vlm_core.errors import DataError
from vlm_core.stage import record_of

NAMES = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{32}\b")
ADDRESSES = re.compile(r"https?://[^\s\"'<>\\]+", re.IGNORECASE)
BROKEN = (DataError, OSError, ValueError, EOFError, zlib.error, LZMAError, tarfile.TarError, pa.ArrowException, sqlite3.Error)
NO_PROOF = "takedown-proof"  # runs of this verb name what was found, in other words


@dataclass
class Found:
    """What a scan saw."""

    files: int = 0
    values: int = 0
    hits: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)  # path: why nobody could look at it
    by_name: int = 0  # arrays, weights and pictures, which hold no names
    pages: int = 0
    shown: list[dict[str, Any]] = field(default_factory=list)  # {path, pages}: pages as crawled that show it


def products(home: Path) -> list[Path]:
    """Every folder that a run of a verb published and that is still there, with the record beside it."""
    con = open_catalog(home / "catalog")
    paths = {Path(row["path"]) for row in ask(con, "SELECT DISTINCT path FROM runs WHERE path <> '' AND kind IS DISTINCT FROM ?", NO_PROOF)}
    return sorted(folder for path in paths for folder in (path, record_of(path)) if folder.is_dir())


def scan(folders: list[Path], stones: Tombstones) -> Found:
    """Every file below the folders."""
    found = Found()
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file()):
            _look(path, kind_of(path), stones, found)
            _look_at_pages(path, stones, found)
        _same_length(folder, found)
    return found


def scan_cache(cache: Path, stones: Tombstones) -> tuple[list[Path], Found]:
    """The objects of a DVC cache that hold something of it, with the arrays and indexes that belong to such a table; and which could not be looked at."""
    found, held = Found(), dict[str, Path]()
    for path in sorted(path for path in cache.glob("??/*") if path.is_file() and path.suffix != ".dir"):
        _look(path, by_bytes(path), stones, found, named=False)
        if found.hits:
            held[path.parent.name + path.name] = path
            found.hits.clear()
    for listing in sorted(cache.glob("??/*.dir")):
        rows = {row["relpath"]: row["md5"] for row in json.loads(listing.read_bytes())}
        if any(md5 in held for name, md5 in rows.items() if name.startswith("metadata/")):
            for name, md5 in rows.items():
                if name.endswith((".npy", ".index")) and (path := cache / md5[:2] / md5[2:]).is_file():
                    held[md5] = path
    return [held[md5] for md5 in sorted(held)], found


def drop(path: Path) -> str:
    """Delete an object of the cache; gives its MD5. Objects are read-only, their folder is not."""
    path.unlink()
    return path.parent.name + path.name


def _look(path: Path, kind: str, stones: Tombstones, found: Found, *, named: bool = True) -> None:
    """Count the values of one file, its name among them, that a takedown covers."""
    found.files += 1
    found.by_name += kind in BY_NAME
    hits = int(named and covered(path.name, stones))
    try:
        for value in values(path, kind):
            found.values += 1
            hits += covered(value, stones)
    except NotLookedAt as error:
        found.passed_over.append(f"{path}: {error}")
    except BROKEN as error:
        found.unreadable.append(f"{path}: {error}")
    if hits:
        found.hits.append({"path": str(path), "hits": hits})


def _look_at_pages(path: Path, stones: Tombstones, found: Found) -> None:
    """Pages as crawled that show a picture that was taken down, by its whole address."""
    showing = []
    try:
        for row in _pages(path):
            found.pages += 1
            url = row["final_url"] or row["url"]
            page = html.read_page(html.decode_html(row["html"], row["content_type"] or ""), url)
            addresses = [url, *(picture.src for picture in page.pictures), *([page.shared[0]] if page.shared[0] else [])]
            showing += [url] if any(stones.address(address) for address in addresses) else []
    except BROKEN as error:
        if not any(said.startswith(f"{path}: ") for said in found.unreadable):
            found.unreadable.append(f"{path}: {error}")
    if showing:
        found.shown.append({"path": str(path), "pages": showing})


def _pages(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table of pages, or the pages of a web archive; of any other file none."""
    if path.name.endswith((".warc", ".warc.gz")):
        for row in read_warcs(str(path), Crawl(source=Warc(path=str(path)))):
            if row["status"] == "decode_error":
                raise DataError(f"{row['detail']} ({row['url']})")
            if row["status"] == "ok":
                yield row
    elif path.suffix == ".parquet" and "html" in pq.read_schema(path).names:
        for batch in pq.ParquetFile(path).iter_batches(64, columns=["url", "final_url", "content_type", "html"]):
            yield from (row for row in batch.to_pylist() if row["html"])


def covered(value: str, stones: Tombstones) -> bool:
    """A value that is, or a text that holds, something that was taken down."""
    if any(name in stones.uids or stones.hit({"sha256": name, "pdq": name if len(name) == 64 else ""}) for name in NAMES.findall(value)):
        return True
    value = value.replace("\\/", "/")  # as some write addresses in JSON
    return "://" in value and any(stones.address(address) for address in ADDRESSES.findall(value))


def _same_length(folder: Path, found: Found) -> None:
    """Embeddings in clip-retrieval's layout: as many rows as their metadata has."""
    for array in sorted(folder.rglob("*_emb/*_emb_*.npy")):
        metadata = array.parent.parent / "metadata" / f"metadata_{array.stem.rpartition('_')[2]}.parquet"
        rows = pq.read_metadata(metadata).num_rows if metadata.is_file() else 0
        if (extra := len(np.load(array, mmap_mode="r")) - rows) != 0:
            found.hits.append({"path": str(array), "hits": abs(extra)})

