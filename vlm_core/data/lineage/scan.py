"""Looks through files for what was taken down: every table, tar, shard and text of every live product, value by value.

A hit is a uid, SHA-256, address or PDQ hash of a tombstone. Arrays and indexes carry no names: their rows are those of the metadata beside them, which is
looked at, and their lengths must agree with it. Pages as crawled (pages.parquet, WARC) are source material, which `vlm extract` refuses to read where it shows
something that was taken down: those that show a picture of a tombstone are counted and named apart.
"""

import contextlib
import json
import re
import sqlite3
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
from vlm_core.data.shards.tar import members, read_member
from vlm_core.errors import DataError
from vlm_core.stage import record_of

NAMES = re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{32}\b")
ADDRESSES = re.compile(r"https?://[^\s\"'<>\\]+", re.IGNORECASE)
TEXTS = {".json", ".jsonl", ".csv", ".tsv", ".md", ".txt", ".html", ".log", ".yaml"}
SOURCE_COLUMNS = {"html"}
TEXT_BYTES = 64 * 2**20
MAGIC = {b"PAR1": ".parquet", b"\x93NUM": ".npy"}


@dataclass
class Found:
    """What a scan saw."""

    files: int = 0
    values: int = 0
    hits: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    pages: int = 0
    shown: list[dict[str, Any]] = field(default_factory=list)  # {path, pages}: pages as crawled that show it


def products(home: Path) -> list[Path]:
    """Every folder that a run of a verb published and that is still there, with the record beside it."""
    con = open_catalog(home / "catalog")
    paths = {Path(row["path"]) for row in ask(con, "SELECT DISTINCT path FROM runs WHERE path <> ''")}
    return sorted(folder for path in paths for folder in (path, record_of(path)) if folder.is_dir())


def scan(folders: list[Path], stones: Tombstones) -> Found:
    """Every file below the folders."""
    found = Found()
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file()):
            _look(path, path.suffix, stones, found)
            _look_at_pages(path, stones, found)
        _same_length(folder, found)
    return found


def scan_cache(cache: Path, stones: Tombstones) -> list[Path]:
    """The objects of a DVC cache that hold something of it, with the arrays and indexes that belong to such a table."""
    found, held = Found(), dict[str, Path]()
    for path in sorted(path for path in cache.glob("??/*") if path.is_file() and path.suffix != ".dir"):
        _look(path, _kind(path), stones, found)
        if found.hits:
            held[path.parent.name + path.name] = path
            found.hits.clear()
    for listing in sorted(cache.glob("??/*.dir")):
        rows = {row["relpath"]: row["md5"] for row in json.loads(listing.read_bytes())}
        if any(md5 in held for name, md5 in rows.items() if name.startswith("metadata/")):
            for name, md5 in rows.items():
                if name.endswith((".npy", ".index")) and (path := cache / md5[:2] / md5[2:]).is_file():
                    held[md5] = path
    return [held[md5] for md5 in sorted(held)]


def drop(path: Path) -> str:
    """Delete an object of the cache; gives its MD5. Objects are read-only, their folder is not."""
    path.unlink()
    return path.parent.name + path.name


def _look(path: Path, kind: str, stones: Tombstones, found: Found) -> None:
    """Count the values of one file that a takedown covers."""
    found.files += 1
    try:
        hits = 0
        for value in _values(path, kind):
            found.values += 1
            hits += covered(value, stones)
    except (DataError, OSError, ValueError, pa.ArrowException, sqlite3.Error) as error:
        found.unreadable.append(f"{path}: {error}")
        return
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
    except (DataError, OSError, ValueError, pa.ArrowException) as error:
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
    return "://" in value and any(stones.address(address) for address in ADDRESSES.findall(value))


def _values(path: Path, kind: str) -> Iterator[str]:
    if kind == ".parquet":
        yield from _table_values(path)
    elif kind == ".tar":
        yield from _tar_values(path)
    elif kind == ".sqlite":
        yield from _database_values(path)
    elif kind in TEXTS and path.stat().st_size <= TEXT_BYTES:
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield from lines


def _table_values(path: Path) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(16_384):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if name not in SOURCE_COLUMNS:
                    yield from _texts(column)


def _database_values(path: Path) -> Iterator[str]:
    """Every text of an SQLite file, such as the answers of language models beside the captions."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            quoted = table.replace('"', '""')
            for row in connection.execute(f'SELECT * FROM "{quoted}"'):
                yield from (value for value in row if isinstance(value, str))


def _texts(column: pa.Array) -> Iterator[str]:
    """The distinct strings of a column; records as bytes are text too, pictures are not."""
    if pa.types.is_struct(column.type):
        for inner in column.flatten():
            yield from _texts(inner)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        yield from _texts(column.flatten())
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        yield from (value for value in column.unique().to_pylist() if value)
    elif pa.types.is_binary(column.type):
        yield from (value.decode(errors="replace") for value in column.to_pylist() if value and value[:1] == b"{")


def _tar_values(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for member in members(path):
            yield member.name
            if member.name.endswith((".json", ".txt")):
                yield read_member(stream, member).decode(errors="replace")


def _same_length(folder: Path, found: Found) -> None:
    """Embeddings in clip-retrieval's layout: as many rows as their metadata has."""
    for array in sorted(folder.rglob("*_emb/*_emb_*.npy")):
        metadata = array.parent.parent / "metadata" / f"metadata_{array.stem.rpartition('_')[2]}.parquet"
        rows = pq.read_metadata(metadata).num_rows if metadata.is_file() else 0
        if (extra := len(np.load(array, mmap_mode="r")) - rows) != 0:
            found.hits.append({"path": str(array), "hits": abs(extra)})


def _kind(path: Path) -> str:
    """What an object of the cache is, by its first bytes: it has no name."""
    with path.open("rb") as stream:
        head = stream.read(512)
    if head[257:262] == b"ustar":
        return ".tar"
    return MAGIC.get(head[:4], ".json" if b"\0" not in head else "")
