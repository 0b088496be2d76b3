"""Pages, tables of addresses, pictures of this machine -> candidate pairs: picture address, raw caption, further captions, page, language, licence.

OUT/pairs.parquet has the schema PAIRS, sorted by uid. A pair that occurs on several pages or in several batches is one pair with all captions and all
places; an opt-out on one of them holds. Memory does not grow with the number of pairs.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.crawl import html
from vlm_core.data.crawl import local_source
from vlm_core.data.web import rights
from vlm_core.data.crawl import tables
from vlm_core.data.lineage import tombstones
from vlm_core.charts import bar_chart
from vlm_core.data.crawl.config import Extract, OptOuts
from vlm_core.data.crawl.pairs import Merger, Pair, Seen, make_pair
from vlm_core.data.sample import PAIRS
from vlm_core.errors import ConfigError, NothingLeft, SchemaMismatch, did_you_mean
from vlm_core.stage import Report, Stage, home

ROWS, LOOK = 8_192, 20


def extract(config: Extract, stage: Stage) -> Report:
    """The verb. Raises NothingLeft when there is no pair at all."""
    batches = {name.partition(".")[2]: path for name, path in sorted(stage.inputs.items())}  # "pages" is '', "pages.NAME" is a further batch
    if unknown := sorted(config.columns_of.keys() - batches.keys()):
        raise ConfigError(f"Found columns_of.{unknown[0]}, but no batch of that name; {did_you_mean(unknown[0], [name for name in batches if name])}")
    dropped, found = Counter[str](), Counter[str]()
    merger, stones = Merger(stage.state / "pairs", config.max_pages_per_pair), tombstones.load(home())
    for batch, folder in batches.items():
        for pair in _pairs_of(folder, batch, config, dropped):
            if stones and stones.hit(pair):
                dropped["taken_down"] += 1
                continue
            found[batch] += 1
            merger.add(pair)
            stage.progress("pairs", found.total())
    if not found:
        raise NothingLeft(
            f"Found no picture with a text in {', '.join(map(str, batches.values()))} ({dict(dropped)}), expected at least one; give other pages or tables."
        )
    report = _report(_write(merger.sorted(), stage.out / "pairs.parquet"), found, dropped, stage)
    report.counts |= {"places_not_kept": merger.surplus} if merger.surplus else {}
    return report


def _pairs_of(folder: Path, batch: str, config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    """The pairs of one output of `vlm crawl`, or of one table."""
    prefix = f"{batch}/" if batch else ""
    found = tables.find_tables(folder)
    if found:
        yield from tables.read_pairs(found, config.columns_of.get(batch, config.columns), prefix, config, dropped)
    elif (folder / local_source.LIST).is_file():
        yield from local_source.read_pairs(folder, prefix, config, dropped)
    else:
        yield from _pages(folder / "pages.parquet", prefix, config, dropped)


def pairs_of_page(row: dict[str, Any], prefix: str, config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    """The pairs of one row of pages.parquet."""
    url = row["final_url"] or row["url"]
    page = html.read_page(html.decode_html(row["html"], row["content_type"] or ""), url)
    decision = rights.meta_decision(page.metas, config.network_agent, config.directives)
    if decision.allowed and (row["x_robots"] or row["tdm_reservation"]):
        said = [(row[name] or "").split("\n") for name in ("x_robots", "tdm_reservation")]
        decision = rights.headers_decision(said[0], [value for value in said[1] if value], config.network_agent, OptOuts(directives=config.directives))
    seen = Seen(row["canonical"] or url, prefix + (row["source"] or f"page:{urlsplit(url).hostname}"), row["place"] or "")
    optout = "" if decision.allowed else decision.evidence
    for picture in page.pictures:
        captions = [(picture.alt, "alt")]
        captions += [(picture.figcaption, "figcaption")] if config.figcaptions else []
        captions += [(picture.title, "title")] if config.titles else []
        pair = make_pair(picture.src, captions, picture.lang, config, dropped, seen, licence=picture.licence, credit=picture.credit, page_optout=optout)
        if pair is not None:
            yield pair
    address, text = page.shared
    if config.open_graph and text and address not in {picture.src for picture in page.pictures}:
        pair = make_pair(address, [(text, "og")], page.lang, config, dropped, seen, page_optout=optout)
        if pair is not None:
            yield pair


def _pages(file: Path, prefix: str, config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    columns = ["url", "final_url", "status", "content_type", "x_robots", "tdm_reservation", "html", "canonical", "source", "place"]
    if not file.is_file() or set(columns) - set(pq.read_schema(file).names):
        raise SchemaMismatch(f"Found no table of pages at {file}, expected one with {', '.join(columns)}; run 'vlm crawl', or give a table of addresses.")
    for batch in pq.ParquetFile(file).iter_batches(64, columns=columns):
        for row in batch.to_pylist():
            if row["status"] == "ok" and row["html"]:
                yield from pairs_of_page(row, prefix, config, dropped)


class _Written(NamedTuple):
    """What was written, for the report."""

    file: Path
    langs: Counter[str]
    hosts: Counter[str]
    captions: int
    look: list[Pair]


def _write(pairs: Iterator[Pair], file: Path) -> _Written:
    written = _Written(file, Counter(), Counter(), 0, [])
    with pq.ParquetWriter(file, PAIRS) as writer:
        while rows := list(islice(pairs, ROWS)):
            written.langs.update(row["lang"] or "?" for row in rows)
            written.hosts.update(urlsplit(row["url"]).hostname or "?" for row in rows)
            written.look.extend(rows[: LOOK - len(written.look)])  # in order of uid, which is a hash: as good as drawn by lot
            written = written._replace(captions=written.captions + sum(len(row["captions"]) for row in rows))
            writer.write_table(pa.Table.from_pylist(rows, PAIRS))
    return written


def _report(written: _Written, found: Counter[str], dropped: Counter[str], stage: Stage) -> Report:
    bar_chart(dict(written.langs.most_common(12)), "pairs by language of the page", stage.pictures / "languages.png")
    table, seen = pq.ParquetFile(written.file), found.total()
    pairs = table.metadata.num_rows
    batches = [{"batch": batch or "pages", "pairs": count} for batch, count in found.items()] if len(stage.inputs) > 1 else []
    return Report(
        counts={
            "in": seen + dropped.total(),
            "pairs": pairs,
            "merged": seen - pairs,
            **{f"dropped.{reason}": count for reason, count in sorted(dropped.items())},
        },
        metrics={"captions_per_pair": written.captions / pairs},
        tables={
            "hosts": [{"host": host, "pairs": count} for host, count in written.hosts.most_common(50)],
            "a look at the pairs": [{"caption": row["caption"], "lang": row["lang"], "url": row["url"]} for row in written.look],
            "batches": batches,
        },
        pictures={"languages": "languages.png"},
        catalog={"pairs": pa.RecordBatchReader.from_batches(PAIRS, table.iter_batches(ROWS))},
    )
