"""Pages of the demo web, of sites, or of web archives; or what needs no pages, copied: tables of addresses, pictures of this machine.

OUT/pages.parquet (schema PAGES, sorted by url), OUT/tables/..., or OUT/local.parquet with its tars: each is a version of its own, and extract reads any.
"""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.crawl import common_crawl
from vlm_core.data.crawl import demo_web
from vlm_core.data.crawl import local_source
from vlm_core.data.crawl import page_store
from vlm_core.data.crawl import tables
from vlm_core.charts import bar_chart
from vlm_core.data.child import run_module
from vlm_core.data.crawl.config import CommonCrawl, Crawl, DemoWeb, Folder, Site, Table, Warc, WebDataset
from vlm_core.data.fetch.download import require_contact
from vlm_core.data.crawl.page_store import PAGES, Row
from vlm_core.data.crawl.places import Place, find, places
from vlm_core.data.crawl.warc import PATTERN, WHAT, read_warc
from vlm_core.errors import ConfigError, NothingLeft
from vlm_core.stage import Report, Stage, write_json

if TYPE_CHECKING:
    from vlm_core.data.crawl import spider  # noqa: F401  runs in a process of its own; named here so that its code counts for reuse

BATCH = 256


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
            return _archives(config, places(source.path, PATTERN, WHAT), stage)
        case CommonCrawl():
            return _common_crawl(config, source, stage)
        case Table():
            size = tables.pass_on(source.path, stage.out)
            return Report(counts={"tables": len(tables.find_tables(stage.out))}, metrics={"table_mb": size / 1e6})
        case Folder() | WebDataset():
            counts = local_source.copy(source, stage.out)
            pictures = counts.pop("pictures")
            return Report(counts={"in": pictures + counts.total(), "pictures": pictures, **{f"dropped.{name}": n for name, n in sorted(counts.items())}})


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
            stage.progress("pages", page_store.count(store))

    run_module("vlm_core.data.crawl.spider", job, log, config.python, watch)
    return _publish(page_store.stored(store), stage)


def _common_crawl(config: Crawl, source: CommonCrawl, stage: Stage) -> Report:
    counts = Counter[str]()
    chosen = common_crawl.choose(source, counts)
    if common_crawl.are_wat(chosen):
        size = common_crawl.copy(chosen, stage, counts)
        report = Report(counts={"tables": len(tables.find_tables(stage.out))}, metrics={"table_mb": size / 1e6})
    else:
        report = _archives(config, chosen, stage)
    report.counts |= {"archives": len(chosen), **{name if name == "listed" else f"failed.{name}": n for name, n in sorted(counts.items())}}
    return report


def _archives(config: Crawl, archives: list[Place], stage: Stage) -> Report:
    """Pages go to disk as they are read: an archive of any size takes little memory. After a kill -9, archives that were read to their end are not read again."""
    file = stage.state / "archive.sqlite"
    store, number = page_store.open_store(file), 0
    try:
        for place in archives:
            if store.execute("SELECT 1 FROM archives WHERE name = ?", (place.name,)).fetchone():
                continue
            store.execute("BEGIN")
            for number, row in enumerate(read_warc(place, config), number + 1):
                page_store.remember(store, **row)
                stage.progress("pages", number)
            store.execute("INSERT INTO archives VALUES (?)", (place.name,))
            store.execute("COMMIT")
    finally:
        store.close()
    return _publish(page_store.stored(file), stage)


def _publish(rows: Iterator[Row], stage: Stage) -> Report:
    statuses, langs, hosts = Counter[str](), Counter[str](), Counter[str]()
    with pq.ParquetWriter(stage.out / "pages.parquet", PAGES) as writer:
        batch: list[Row] = []
        for row in rows:
            statuses[row["status"]] += 1
            if row["status"] == "ok":
                langs[row["lang"] or "?"] += 1
                hosts[urlsplit(row["url"]).hostname or "?"] += 1
            batch.append(row)
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
