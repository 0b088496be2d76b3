"""Pages as they are read: a SQLite file that is whole after kill -9, and gives them back in order of address, a canonical page once."""

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from vlm_core.data.web.politeness import domain_of
from vlm_core.data.sample import canonical_url

# OUT/pages.parquet, sorted by url. `source` and `place`: archive and record, for pages that come from one.
PAGES = pa.schema([
    ("url", pa.string()), ("final_url", pa.string()), ("status", pa.string()), ("http_status", pa.int32()), ("content_type", pa.string()),
    ("lang", pa.string()), ("x_robots", pa.string()), ("tdm_reservation", pa.string()), ("detail", pa.string()), ("html", pa.binary()),
    ("canonical", pa.string()), ("source", pa.string()), ("place", pa.string()),
])  # fmt: skip
TABLES = """
CREATE TABLE IF NOT EXISTS answers (url TEXT PRIMARY KEY, status INT, headers TEXT, body BLOB);
CREATE TABLE IF NOT EXISTS pages (url TEXT PRIMARY KEY, final_url TEXT, status TEXT, http_status INT, content_type TEXT, lang TEXT, x_robots TEXT,
    tdm_reservation TEXT, detail TEXT, html BLOB, canonical TEXT, source TEXT, place TEXT);
CREATE TABLE IF NOT EXISTS archives (name TEXT PRIMARY KEY);
"""
Row = dict[str, Any]
_BLANK = dict.fromkeys(PAGES.names, "") | {"http_status": 0, "html": b""}


def open_store(path: str | Path) -> sqlite3.Connection:
    """Every statement is a transaction."""
    store = sqlite3.connect(path, isolation_level=None, timeout=30)
    store.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + TABLES)
    return store


def remember(store: sqlite3.Connection, **values: Any) -> None:
    """Keep a page; a later visit to the same address replaces an earlier one."""
    row = {**_BLANK, **values}
    row["html"] = zlib.compress(row["html"], 1) if row["html"] else b""
    store.execute(f"INSERT OR REPLACE INTO pages VALUES ({','.join('?' * len(PAGES))})", tuple(row[name] for name in PAGES.names))


def canonical_of(given: str, final_url: str) -> str:
    """The address that a page gives as its own, if that lies on the same site; else ''."""
    try:
        same = given.startswith(("http://", "https://")) and domain_of(urlsplit(given).hostname or "") == domain_of(urlsplit(final_url).hostname or "")
        return canonical_url(given) if same else ""
    except ValueError:
        return ""


def count(path: Path) -> int:
    """Pages so far; 0 before there is a store."""
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM pages").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return 0


def stored(path: Path) -> Iterator[Row]:
    """Every page by address. Of pages with one canonical address the first that was read stays; the others end as `duplicate_page`, without their text.

    The first is the one at that address, else one that was redirected there, else the first by address.
    """
    store = open_store(path)
    try:
        store.execute(
            """CREATE TEMP TABLE firsts AS SELECT canonical, coalesce(min(CASE WHEN url = canonical THEN url END),
            min(CASE WHEN final_url = canonical THEN url END), min(url)) AS url
            FROM (SELECT url, final_url, coalesce(nullif(canonical, ''), url) AS canonical FROM pages WHERE status = 'ok') GROUP BY 1"""
        )
        store.execute("CREATE INDEX temp.by_canonical ON firsts (canonical)")
        names, itself = ", ".join(f"p.{name}" for name in PAGES.names), "coalesce(nullif(p.canonical, ''), p.url)"
        for *values, first in store.execute(f"SELECT {names}, f.url FROM pages p LEFT JOIN firsts f ON f.canonical = {itself} ORDER BY p.url"):
            row = dict(zip(PAGES.names, values, strict=True))
            if row["status"] == "ok" and first != row["url"]:
                row |= {"status": "duplicate_page", "detail": f"the same page as {first}", "html": b""}
            yield {**row, "html": zlib.decompress(row["html"]) if row["html"] else b""}
    finally:
        store.close()
