"""Pages, or a table of addresses -> candidate pairs: picture address, raw caption, further captions, page, language, licence.

OUT/pairs.parquet has the schema PAIRS, sorted by uid. A pair that occurs on several pages is one pair; what the others add (captions, an opt-out) is merged.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data import html, rights, tables
from vlm_core.data.charts import bar_chart
from vlm_core.data.crawl_config import Extract
from vlm_core.data.pairs import Pair, add, make_pair
from vlm_core.data.sample import PAIRS
from vlm_core.errors import NothingLeft, SchemaMismatch
from vlm_core.stage import Report, Stage


def extract(config: Extract, stage: Stage) -> Report:
    """The verb. Raises NothingLeft when there is no pair at all."""
    given, dropped = stage.input("pages"), Counter[str]()
    table = tables.find_table(given)
    found = tables.read_pairs(table, config, dropped) if table else _pages(given / "pages.parquet", config, dropped)
    seen, pairs = 0, dict[str, Pair]()
    for pair in found:
        seen += 1
        add(pairs, pair)
        stage.progress("pairs", seen)
    if not pairs:
        raise NothingLeft(f"Found no picture with a text in {given} ({dict(dropped)}), expected at least one; give other pages or another table.")
    rows = [pairs[uid] for uid in sorted(pairs)]
    out = pa.Table.from_pylist(rows, schema=PAIRS)
    pq.write_table(out, stage.out / "pairs.parquet")
    return _report(rows, out, seen, dropped, stage)


def pairs_of_page(row: dict[str, Any], config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    """The pairs of one row of pages.parquet."""
    url = row["final_url"] or row["url"]
    page = html.read_page(html.decode_html(row["html"], row["content_type"] or ""), url)
    decision = rights.meta_decision(page.metas, config.network_agent)
    if decision.allowed and row["x_robots"]:
        decision = rights.headers_decision(row["x_robots"].split("\n"), [], config.network_agent)
    for picture in page.pictures:
        captions = [(picture.alt, "alt")]
        captions += [(picture.figcaption, "figcaption")] if config.figcaptions else []
        captions += [(picture.title, "title")] if config.titles else []
        pair = make_pair(
            picture.src, captions, picture.lang, config, dropped,
            page_url=url, source=f"page:{urlsplit(url).hostname}", licence=picture.licence, credit=picture.credit, page_optout=decision.evidence,
        )  # fmt: skip
        if pair is not None:
            yield pair


def _pages(file: Path, config: Extract, dropped: Counter[str]) -> Iterable[Pair]:
    columns = ["url", "final_url", "status", "content_type", "x_robots", "html"]
    if not file.is_file() or set(columns) - set(pq.read_schema(file).names):
        raise SchemaMismatch(f"Found no table of pages at {file}, expected one with {', '.join(columns)}; run 'vlm crawl', or give a table of addresses.")
    for batch in pq.ParquetFile(file).iter_batches(256, columns=columns):
        for row in batch.to_pylist():
            if row["status"] == "ok" and row["html"]:
                yield from pairs_of_page(row, config, dropped)


def _report(rows: list[Pair], table: pa.Table, seen: int, dropped: Counter[str], stage: Stage) -> Report:
    langs, hosts = Counter(row["lang"] or "?" for row in rows), Counter(urlsplit(row["url"]).hostname or "?" for row in rows)
    bar_chart(dict(langs.most_common(12)), "pairs by language of the page", stage.pictures / "languages.png")
    sample = [{"caption": row["caption"], "lang": row["lang"], "url": row["url"]} for row in rows[:: max(1, len(rows) // 20)][:20]]
    merged = seen - len(rows)
    return Report(
        counts={
            "in": seen + dropped.total(),
            "pairs": len(rows),
            "merged": merged,
            **{f"dropped.{reason}": count for reason, count in sorted(dropped.items())},
        },
        metrics={"captions_per_pair": sum(len(row["captions"]) for row in rows) / len(rows)},
        tables={"hosts": [{"host": host, "pairs": count} for host, count in hosts.most_common(50)], "a look at the pairs": sample},
        pictures={"languages": "languages.png"},
        catalog={"pairs": table},
    )
