"""Pictures that lie on this machine, as `vlm crawl` copies them and `vlm extract` makes pairs of them: a folder with texts, or WebDataset tars.

A picture's address is `local://NAME/relative/name`, or the http address that its tar tells.

OUT/local.parquet (schema LOCAL, in the order of the source) and OUT/local-NNNNN.tar with each picture's bytes once, named by their hash.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.crawl.config import Extract, Folder, WebDataset
from vlm_core.data.crawl.html import clean_text
from vlm_core.data.crawl.local_items import TARS, Item, folder_items, tar_items
from vlm_core.data.crawl.pairs import LOCAL as SCHEME
from vlm_core.data.crawl.pairs import Pair, Seen, is_address, make_pair
from vlm_core.data.crawl.places import find
from vlm_core.data.sample import CAPTION, canonical_url
from vlm_core.data.shards.tar import TarWriter
from vlm_core.errors import MissingInput

LIST = "local.parquet"
LOCAL = pa.schema([
    ("url", pa.string()), ("name", pa.string()), ("place", pa.string()), ("sha256", pa.string()), ("bytes", pa.int64()), ("tar", pa.string()),
    ("lang", pa.string()), ("captions", pa.list_(CAPTION)), ("page_url", pa.string()), ("licence", pa.string()), ("credit", pa.string()),
])  # fmt: skip
TAR_PICTURES, TAR_BYTES, ROWS = 10_000, 512 * 2**20, 4_096


# ---------------------------------------------------------------- vlm crawl


def copy(source: Folder | WebDataset, out: Path) -> Counter[str]:
    """Copy the pictures of a source and list them; returns how many, and how many of what were refused.

    Raises MissingInput when the source is not there, BadManifest or SchemaMismatch for its table of captions.
    """
    root, counts = Path(urlsplit(source.path).path) if "://" in source.path else find(source.path), Counter[str]()
    name = source.name or _host(root)
    items = folder_items(find(source.path), source, counts) if isinstance(source, Folder) else tar_items(source.path, counts)
    with _Copies(out) as copies, pq.ParquetWriter(out / LIST, LOCAL) as writer:
        rows = []
        for item in items:
            counts["pictures"] += 1
            rows.append(_row(item, name, *copies.add(item)))
            if len(rows) == ROWS:
                writer.write_table(pa.Table.from_pylist(rows, LOCAL))
                rows = []
        writer.write_table(pa.Table.from_pylist(rows, LOCAL))
    if not counts["pictures"]:
        raise MissingInput(f"Found no picture at {source.path} ({dict(counts)}), expected some with texts; give the folder or the tars.")
    return counts


def _host(root: Path) -> str:
    said = root.name.partition(".")[0] if re.search(TARS, root.name, re.I) else root.stem if root.is_file() else root.name
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in said.lower())
    return name.strip("-") or "folder"


def _row(item: Item, name: str, sha256: str, tar: str) -> dict[str, object]:
    told = item.facts.get("url", "")
    is_web = told.startswith(("http://", "https://")) and is_address(told)
    url = canonical_url(told if is_web else f"{SCHEME}://{name}/{quote(item.name)}")
    captions = [{"text": text, "origin": origin, "lang": item.facts.get("lang", "")} for text, origin in item.texts]
    facts = {field: item.facts.get(field, "") for field in ("lang", "page_url", "licence", "credit")}
    return {"url": url, "name": name, "place": item.place, "sha256": sha256, "bytes": len(item.data), "tar": tar, "captions": captions, **facts}


class _Copies:
    """Tars with each picture once."""

    def __init__(self, out: Path) -> None:
        self.out, self.pictures, self.number = out, 0, 0
        self.tar: TarWriter | None = None
        self.known: dict[str, str] = {}

    def add(self, item: Item) -> tuple[str, str]:
        """(hash, name of the tar that holds it)."""
        sha256 = hashlib.sha256(item.data).hexdigest()
        if sha256 in self.known:
            return sha256, self.known[sha256]
        if self.tar is None or self.pictures >= TAR_PICTURES or self.tar.bytes > TAR_BYTES:
            self.close()
            self.tar, self.pictures = TarWriter(self.out / f"local-{self.number:05d}.tar"), 0
            self.number += 1
        self.tar.add(sha256, item.data)
        self.pictures += 1
        self.known[sha256] = self.tar.path.name
        return sha256, self.known[sha256]

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()

    def __enter__(self) -> "_Copies":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# ---------------------------------------------------------------- vlm extract


def read_pairs(folder: Path, batch: str, config: Extract, dropped: Counter[str]) -> Iterator[Pair]:
    """The pairs of the pictures that `copy` listed."""
    for rows in pq.ParquetFile(folder / LIST).iter_batches(ROWS):
        for row in rows.to_pylist():
            captions = [(clean_text(caption["text"]), caption["origin"]) for caption in row["captions"]]
            seen = Seen(row["page_url"], f"{batch}{SCHEME}:{row['name']}", row["place"])
            facts = {"licence": clean_text(row["licence"]), "credit": clean_text(row["credit"]), "sha256": row["sha256"]}
            pair = make_pair(row["url"], captions, row["lang"], config, dropped, seen, is_local=True, **facts)
            if pair is not None:
                yield pair
