"""Pages of the demo web, of sites, or of a web archive; or a table of addresses, passed on.

OUT/pages.parquet, sorted by url: url, final_url, status, http_status, content_type, lang, x_robots, detail, html. Or OUT/table.<suffix>.
"""

import shutil
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data import demo_web, html, tables
from vlm_core.data.charts import bar_chart
from vlm_core.data.child import run_module
from vlm_core.data.crawl_config import Crawl, DemoWeb, Site, Table, Warc
from vlm_core.data.download import find, require_contact
from vlm_core.errors import BadManifest, ConfigError, MissingInput, NothingLeft
from vlm_core.stage import Report, Stage, write_json

if TYPE_CHECKING:
    from vlm_core.data import spider  # noqa: F401  runs in a process of its own; named here so that its code counts for reuse

PAGES = pa.schema([
    ("url", pa.string()), ("final_url", pa.string()), ("status", pa.string()), ("http_status", pa.int32()), ("content_type", pa.string()),
    ("lang", pa.string()), ("x_robots", pa.string()), ("detail", pa.string()), ("html", pa.binary()),
])  # fmt: skip
BATCH = 256
Row = dict[str, Any]


def crawl(config: Crawl, stage: Stage) -> Report:
    """The verb. Raises NothingLeft when not one page could be read."""
    source = config.source
    match source:
        case DemoWeb():
            with demo_web.serve(find(source.corpus)) as hosts:
                allowed = config.merged({"network": {"hosts": {**hosts, **config.network.hosts}}})
                return _visit(allowed, list(demo_web.START_URLS), list(hosts), stage)
        case Site():
            return _site(config, source, stage)
        case Warc():
            return _publish(_merged(read_warcs(find(source.path), config)), stage)
        case Table():
            return _pass_on(find(source.path), stage)


def _site(config: Crawl, source: Site, stage: Stage) -> Report:
    if not source.start_urls:
        raise ConfigError("Found no source.start_urls, expected at least one page to begin with; set source.start_urls=[https://...].")
    require_contact(config.network.contact, bool(config.network.hosts))
    hosts = source.stay_on or [urlsplit(url).hostname or "" for url in source.start_urls]
    return _visit(config, source.start_urls, hosts, stage)


def _visit(config: Crawl, starts: list[str], hosts: list[str], stage: Stage) -> Report:
    store, job, log = stage.state / "crawl.sqlite", stage.state / "job.json", stage.state.parent / "scrapy.log"
    log.unlink(missing_ok=True)
    write_json(job, {"config": config.model_dump(mode="json"), "starts": starts, "stay_on": hosts, "store": str(store)})

    def watch() -> None:
        if store.exists():
            stage.progress("pages", _count(store))

    run_module("vlm_core.data.spider", job, log, config.python, watch)
    return _publish(_stored(store), stage)


def _count(store: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
        try:
            return int(connection.execute("SELECT count(*) FROM pages").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return 0  # not made yet


def _stored(store: Path) -> Iterator[Row]:
    connection = sqlite3.connect(store)
    try:
        for values in connection.execute(f"SELECT {', '.join(PAGES.names)} FROM pages ORDER BY url"):
            row = dict(zip(PAGES.names, values, strict=True))
            yield {**row, "html": zlib.decompress(row["html"]) if row["html"] else b""}
    finally:
        connection.close()


def read_warcs(path: Path, config: Crawl) -> Iterator[Row]:
    """The HTML pages of response records, in the order of the archive. What was read before a damaged record is kept."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    files = sorted(file for file in path.rglob("*") if ".warc" in file.name) if path.is_dir() else [path]
    if not files:
        raise MissingInput(f"Found no .warc or .warc.gz in {path}, expected at least one; give the archive's path.")
    for file in files:
        with file.open("rb") as stream:
            try:
                for record in ArchiveIterator(stream):
                    if record.rec_type == "response" and (row := _page(record, config)) is not None:
                        yield row
            except (ArchiveLoadFailed, EOFError, OSError, zlib.error) as error:
                yield {"url": f"damaged:{file.name}", "status": "decode_error", "detail": f"{type(error).__name__}: the rest of the archive was not read"}


def _page(record: Any, config: Crawl) -> Row | None:
    headers, url = record.http_headers, record.rec_headers.get_header("WARC-Target-URI") or ""
    if headers is None or not url:
        return None
    status, kind = int(headers.get_statuscode() or 0), headers.get_header("Content-Type") or ""
    if status != 200 or not kind.strip().lower().startswith(("text/html", "application/xhtml+xml")):
        return None
    x_robots = "\n".join(value for name, value in headers.headers if name.lower() == "x-robots-tag")
    known = {"url": url, "final_url": url, "http_status": status, "content_type": kind, "x_robots": x_robots}
    body = record.content_stream().read(config.max_page_kb * 1024 + 1)
    if len(body) > config.max_page_kb * 1024:
        return {**known, "status": "too_large", "detail": "larger than a page may be"}
    return {**known, "status": "ok", "html": body, "lang": html.read_page(html.decode_html(body, kind), url).lang}


def _merged(rows: Iterable[Row]) -> Iterator[Row]:
    """Sorted by url, the last capture of each."""
    found = {row["url"]: row for row in rows}
    yield from (found[url] for url in sorted(found))


def _publish(rows: Iterable[Row], stage: Stage) -> Report:
    statuses, langs, hosts = Counter[str](), Counter[str](), Counter[str]()
    blank = dict.fromkeys(PAGES.names, "") | {"http_status": 0, "html": b""}
    with pq.ParquetWriter(stage.out / "pages.parquet", PAGES) as writer:
        batch: list[Row] = []
        for row in rows:
            full = {**blank, **row}
            statuses[full["status"]] += 1
            if full["status"] == "ok":
                langs[full["lang"] or "?"] += 1
                hosts[urlsplit(full["url"]).hostname or "?"] += 1
            batch.append(full)
            if len(batch) == BATCH:
                writer.write_table(pa.Table.from_pylist(batch, schema=PAGES))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=PAGES))
    if not statuses["ok"]:
        raise NothingLeft(f"Found no page that could be read ({dict(statuses)}), expected at least one; check the start pages and what robots.txt allows.")
    bar_chart(dict(statuses.most_common()), "pages by status", stage.pictures / "statuses.png")
    return Report(
        counts={"pages": statuses.total(), "ok": statuses["ok"], **{f"failed.{name}": n for name, n in sorted(statuses.items()) if name != "ok"}},
        tables={
            "hosts": [{"host": host, "pages": n} for host, n in hosts.most_common(50)],
            "languages": [{"lang": lang, "pages": n} for lang, n in langs.most_common()],
        },
        pictures={"pages by status": "statuses.png"},
    )


def _pass_on(file: Path, stage: Stage) -> Report:
    """A table needs no pages: it becomes a version of its own, and extract reads it."""
    suffix = next((suffix for suffix in tables.SUFFIXES if file.name.lower().endswith(suffix)), "")
    if not suffix:
        raise BadManifest(f"Found {file.name}, expected a table ({', '.join(tables.SUFFIXES)}); give one of those.")
    shutil.copyfile(file, stage.out / f"table{suffix}")
    return Report(counts={"tables": 1}, metrics={"table_mb": file.stat().st_size / 1e6})
