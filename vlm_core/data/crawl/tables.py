"""Lists of picture addresses and captions -> pairs: csv, tsv, json, jsonl, parquet with the column names of whoever made them, and Common Crawl's WAT.

Rows stream, so memory does not grow with the file. A row that cannot be read is counted by its reason and the next one is read.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vlm_core.data.crawl import rows as readers
from vlm_core.data.crawl.config import Columns, Extract
from vlm_core.data.crawl.html import clean_text
from vlm_core.data.crawl.pairs import Pair, Seen, make_pair
from vlm_core.data.crawl.places import places
from vlm_core.data.crawl.wat import extract_links
from vlm_core.errors import BadManifest, MissingInput, SchemaMismatch, did_you_mean

FOLDER = "tables"  # of the output of 'vlm crawl'
PATTERN = rf"\.({'|'.join(readers.FORMATS)})({'|'.join(readers.PACKED).replace('.', chr(92) + '.')})?$"
WHAT = f"table ({', '.join(readers.FORMATS)}; as it is or {', '.join(readers.PACKED)})"
FIELDS = ("url", "caption", "lang", "page_url", "licence", "credit", "sha256", "pdq")


class Preset(NamedTuple):
    """Our field -> the column of a known collection; what else is peculiar to it."""

    columns: dict[str, str]
    header: bool = True
    site: str = ""  # to which its page addresses are relative


PRESETS: dict[str, Preset] = {
    "plain": Preset({name: name for name in FIELDS}),
    "laion": Preset({"url": "URL", "caption": "TEXT", "lang": "LANGUAGE", "licence": "LICENSE"}),
    "datacomp": Preset({"url": "url", "caption": "text", "sha256": "sha256"}),
    "cc3m": Preset({"url": "1", "caption": "0"}, header=False),  # caption, address
    "cc12m": Preset({"url": "0", "caption": "1"}, header=False),  # address, caption
    "redcaps": Preset({"url": "url", "caption": "caption", "page_url": "permalink", "credit": "author"}, site="https://www.reddit.com"),
}


def pass_on(path: str, out: Path) -> int:
    """Copy the tables at a path or fsspec URL, so that what is read is a version of its own; returns their bytes."""
    size = 0
    for place in places(path, PATTERN, WHAT):
        copy = out / FOLDER / place.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with place.open() as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        except OSError as error:
            raise MissingInput(
                f"Found a table that cannot be read at {place.path} ({type(error).__name__}), expected its bytes; try again, or correct the path."
            ) from None
        size += copy.stat().st_size
    return size


def find_tables(given: Path) -> dict[str, Path]:
    """Name -> table, when the input is a table or the folder that 'vlm crawl' made of some."""
    if given.is_file():
        if readers.format_of(given.name) is None:
            raise MissingInput(f"Found {given}, expected a folder of pages or a {WHAT}; give one of them.")
        return {given.name: given}
    folder = given / FOLDER
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def read_pairs(tables: dict[str, Path], columns: Columns, batch: str, config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    """The pairs of all tables, in order.

    Raises SchemaMismatch when the address or the caption cannot be found, BadManifest when nothing at all can be read.
    """
    read = 0
    for name, file in tables.items():
        trouble = Counter[str]()
        found = _wat_pairs(file, batch + f"wat:{name}", config, dropped, trouble) if readers.format_of(name) == "wat" else \
            _table_pairs(file, columns, batch + f"table:{name}", config, dropped, trouble)  # fmt: skip
        for pair in found:
            read += 1
            if pair:
                yield pair
        dropped.update(trouble)
        if trouble[readers.DAMAGED] and not read and len(tables) == 1:
            raise BadManifest(f"Found a table that cannot be read at {file}, expected {PurePosixPath(name).suffix[1:]}; write it again.")


def choose_columns(names: list[str], wanted: Columns, file: Path) -> dict[str, str]:
    """Our field -> the table's column. Named columns must exist; those of a preset may be missing, except address and caption."""
    presets = PRESETS.values() if wanted.preset == "auto" else [PRESETS[wanted.preset]]
    known = next((preset.columns for preset in presets if {preset.columns["url"], preset.columns["caption"]} <= set(names)), {})
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


def _table_pairs(file: Path, columns: Columns, source: str, config: Extract, dropped: Counter[str], trouble: Counter[str]) -> Iterator[Pair | None]:
    preset = PRESETS.get(columns.preset, PRESETS["plain"])
    for place, row in readers.read(file, columns.header and preset.header, lambda names: choose_columns(names, columns, file), trouble):
        texts = row.pop("caption")
        words = {field: clean_text(_text(value)) for field, value in row.items() if field != "url"}
        page = words.pop("page_url", "")
        page = preset.site + page if page.startswith("/") else page
        captions = [(clean_text(_text(text)), "table") for text in (texts if isinstance(texts, list) else [texts])]
        yield make_pair(_text(row["url"]), captions, words.pop("lang", ""), config, dropped, Seen(page, source, str(place)), is_local=False, **words)


def _text(value: Any) -> str:
    """'' for null and for a NaN."""
    return str(value) if value is not None and value == value else ""  # noqa: PLR0124


def _wat_pairs(file: Path, source: str, config: Extract, dropped: Counter[str], trouble: Counter[str]) -> Iterator[Pair | None]:
    with file.open("rb") as stream:
        for link in extract_links(stream, trouble=trouble):
            yield make_pair(link.url, [(clean_text(link.alt), "alt")], "", config, dropped, Seen(link.page, source, str(link.offset)))
