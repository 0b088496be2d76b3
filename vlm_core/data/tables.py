"""Lists of picture addresses and captions: parquet, csv, tsv, json, jsonl with the column names of whoever made them, and Common Crawl's WAT files."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.crawl_config import Columns, Extract
from vlm_core.data.html import clean_text
from vlm_core.data.pairs import Pair, make_pair
from vlm_core.data.wat import extract_links
from vlm_core.errors import BadManifest, MissingInput, SchemaMismatch, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".wat", ".wat.gz")
FIELDS = ("url", "caption", "lang", "page_url", "licence", "credit")
PRESETS: dict[str, dict[str, str]] = {
    "plain": {"url": "url", "caption": "caption", "lang": "lang", "page_url": "page_url", "licence": "licence", "credit": "credit"},
    "laion": {"url": "URL", "caption": "TEXT", "lang": "LANGUAGE", "licence": "LICENSE"},
    "datacomp": {"url": "url", "caption": "text"},
    "cc3m": {"url": "1", "caption": "0"},  # a tsv without header: caption, address
}


def find_table(given: Path) -> Path | None:
    """The table, when the input is one or is a folder that 'vlm crawl' made of one."""
    if given.is_file():
        if not given.name.lower().endswith(SUFFIXES):
            raise MissingInput(f"Found {given}, expected a folder of pages or a table ({', '.join(SUFFIXES)}); give one of them.")
        return given
    found = [given / f"table{suffix}" for suffix in SUFFIXES if (given / f"table{suffix}").is_file()]
    return found[0] if found else None


def read_pairs(file: Path, config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    """The pairs of a table. Raises SchemaMismatch when the address or the caption cannot be found."""
    if file.name.lower().endswith((".wat", ".wat.gz")):
        yield from _wat_pairs(file, config, dropped)
        return
    columns: dict[str, str] = {}
    row_number = 0
    for rows in _batches(file, config.columns.preset == "cc3m"):
        columns = columns or choose_columns([str(name) for name in rows.column_names], config.columns, file)
        for row in rows.select(list(dict.fromkeys(columns.values()))).to_pylist():
            row_number += 1
            values = {field: clean_text(str(row[name])) if row[name] is not None else "" for field, name in columns.items()}
            pair = make_pair(
                str(row[columns["url"]] or ""), [(values["caption"], "table")], values.get("lang", ""), config, dropped,
                page_url=values.get("page_url", ""), source=f"table:{row_number - 1}",
                licence=values.get("licence", ""), credit=values.get("credit", ""), page_optout="",
            )  # fmt: skip
            if pair is not None:
                yield pair


def choose_columns(names: list[str], wanted: Columns, file: Path) -> dict[str, str]:
    """Our field -> the table's column. Named columns must exist; those of a preset may be missing, except address and caption."""
    presets = PRESETS if wanted.preset == "auto" else {wanted.preset: PRESETS[wanted.preset]}
    known = next((found for found in presets.values() if {found["url"], found["caption"]} <= set(names)), {})
    chosen = {field: known[field] for field in FIELDS if known.get(field) in names}
    for field in FIELDS:
        name = getattr(wanted, field)
        if name and name not in names:
            raise SchemaMismatch(f"Found no column {name!r} in {file} for columns.{field}; {did_you_mean(name, names)}")
        if name:
            chosen[field] = name
    for field in ("url", "caption"):
        if field not in chosen:
            raise SchemaMismatch(f"Found the columns {', '.join(names)} in {file}, expected one for the {field}; name it with columns.{field}=NAME.")
    return chosen


def _batches(file: Path, headless: bool) -> Iterator[pa.Table]:
    try:
        if file.suffix.lower() == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(65_536):
                yield pa.Table.from_batches([batch])
            return
        for frame in _frames(file, headless):
            yield pa.Table.from_pandas(frame.rename(columns=str), preserve_index=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadManifest(f"Found a table that cannot be read at {file} ({str(error)[:200]}), expected {file.suffix[1:]}; write it again.") from None


def _frames(file: Path, headless: bool) -> "Iterator[pd.DataFrame]":
    import pandas as pd

    suffix = file.suffix.lower()
    if suffix in {".csv", ".tsv"}:
        separator = "," if suffix == ".csv" else "\t"
        with pd.read_csv(file, sep=separator, header=None if headless else "infer", chunksize=65_536, dtype=str, keep_default_na=False) as reader:
            yield from reader
    elif suffix == ".jsonl":
        with pd.read_json(file, lines=True, chunksize=65_536, dtype=False) as reader:
            yield from reader
    else:
        yield pd.read_json(file, dtype=False)


def _wat_pairs(file: Path, config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    with file.open("rb") as stream:
        for link in extract_links(stream):
            pair = make_pair(
                link.url, [(clean_text(link.alt), "alt")], "", config, dropped,
                page_url=link.page, source=f"wat:{file.name}", licence="", credit="", page_optout="",
            )  # fmt: skip
            if pair is not None:
                yield pair
