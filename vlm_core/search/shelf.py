"""What search answers from: one immutable view of the data folders, made anew when they change.

The index holds every embedded picture under its row of the metadata; which rows may be answered is a mask. A sample that the filter now keeps, or
one that was taken down, changes the mask only: neither costs an index.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlm_core.data.fetch.stored import Pictures
from vlm_core.data.lineage import tombstones
from vlm_core.data.shards.records import read_table
from vlm_core.errors import MissingInput, SchemaMismatch
from vlm_core.models.scorer import Scorer, load

MODALITIES = {"image": "img_emb", "text": "text_emb"}
NOWHERE = ""  # split of a sample that no shard holds
Mask = NDArray[np.bool_]


class Facet(NamedTuple):
    """A column of few values: row i has the value names[code_N[i]]."""

    names: list[str]
    code_N: NDArray[np.int64]

    @classmethod
    def of(cls, values: Iterable[str]) -> "Facet":
        names, code_N = np.unique(np.array(list(values), str), return_inverse=True)
        return cls(names.tolist(), code_N)

    def where(self, wanted: Iterable[str]) -> Mask:
        chosen = set(wanted)
        return np.isin(self.code_N, [code for code, name in enumerate(self.names) if name in chosen])

    def counts(self, mask: Mask) -> dict[str, int]:
        """Value -> rows of the mask, the commonest first."""
        found = dict(zip(self.names, np.bincount(self.code_N[mask], minlength=len(self.names)).tolist(), strict=True))
        return {name: n for name, n in sorted(found.items(), key=lambda item: (-item[1], item[0])) if n}


@dataclass(frozen=True)
class Embedded:
    """The embeddings folder: N rows of metadata, their vectors, the indexes over them, and the scorer that embeds a question."""

    table: pa.Table
    vectors: dict[str, NDArray[np.float16]]  # memory-mapped
    index: dict[str, Any]
    scorer: Scorer
    row_of: dict[str, int]
    lang: Facet
    host: Facet

    @classmethod
    def read(cls, folder: Path) -> "Embedded":
        import faiss

        table = read_table(
            folder / "metadata" / "metadata_0.parquet", ("uid", "url", "page_url", "caption", "lang", "sha256"), ("final_url", "pages")
        ).combine_chunks()
        vectors = {name: np.load(folder / part / f"{part}_0.npy", mmap_mode="r") for name, part in MODALITIES.items()}
        index = {name: faiss.read_index(str(folder / "index" / f"{name}.index")) for name in MODALITIES}
        sizes = {len(table), *(len(rows) for rows in vectors.values()), *(found.ntotal for found in index.values())}
        if len(sizes) != 1:
            raise SchemaMismatch(f"Found metadata, vectors and indexes of {sorted(sizes)} rows in {folder}, expected equal numbers; run 'vlm embed' again.")
        row_of = {uid: row for row, uid in enumerate(table["uid"].to_pylist())}
        hosts = (_host(url) for url in table["url"].to_pylist())
        return cls(table, vectors, index, load(folder), row_of, Facet.of(lang or "" for lang in table["lang"].to_pylist()), Facet.of(hosts))


@dataclass(frozen=True)
class Shelf:
    """Everything that one answer needs, of one moment."""

    signature: dict[str, tuple[Any, ...]]
    embedded: Embedded
    pictures: Pictures
    alive: Mask = field(repr=False)  # kept by the filter, and not taken down
    split: Facet
    removed: int = 0  # taken down while the filter's table still lists them

    @classmethod
    def read(cls, data: Path, home: Path, signature: dict[str, tuple[Any, ...]], before: "Shelf | None" = None) -> "Shelf":
        """Read what has changed since `before`. Raises VlmError."""
        _check(data)
        same = {name for name, sign in signature.items() if before is not None and before.signature.get(name) == sign}
        embedded = before.embedded if before is not None and "embeddings" in same else Embedded.read(data / "embeddings")
        pictures = before.pictures if before is not None and "images" in same else Pictures(data / "images")
        kept = set(pq.read_table(data / "filtered" / "kept.parquet", columns=["uid"])["uid"].to_pylist())
        alive = np.array([uid in kept for uid in embedded.row_of], bool)
        gone = _taken_down(embedded.table, alive, data, tombstones.load(home))
        alive[gone] = False
        splits = _splits(data / "shards" / "index.parquet")
        return cls(signature, embedded, pictures, alive, Facet.of(splits.get(uid, NOWHERE) for uid in embedded.row_of), len(gone))

    def row(self, uid: str) -> int | None:
        """Row of a sample that may be answered."""
        found = self.embedded.row_of.get(uid)
        return found if found is not None and self.alive[found] else None

    def record(self, row: int) -> dict[str, Any]:
        return self.records([row])[0]

    def records(self, rows: list[int]) -> list[dict[str, Any]]:
        found, split, host = self.embedded.table.take(pa.array(rows, pa.int64())).to_pylist(), self.split, self.embedded.host
        return [{**one, "split": split.names[split.code_N[row]], "host": host.names[host.code_N[row]]} for one, row in zip(found, rows, strict=True)]


def signature(data: Path, home: Path) -> dict[str, tuple[Any, ...]]:
    """What tells, without reading them, that folders have changed: publishing gives new files, a takedown adds one."""
    watched = {
        "embeddings": [data / "embeddings" / "metadata" / "metadata_0.parquet", *(data / "embeddings" / "index" / f"{name}.index" for name in MODALITIES)],
        "images": [data / "images" / "status.parquet"],
        "filtered": [data / "filtered" / "kept.parquet"],
        "shards": [data / "shards" / "index.parquet"],
        "takedowns": sorted([*(home / "catalog").glob("takedown*/*.parquet"), *(home / "catalog").glob("withdrawals/*.parquet")]),
    }
    return {name: tuple(_stamp(path) for path in paths) for name, paths in watched.items()}


def _stamp(path: Path) -> tuple[Any, ...]:
    try:
        stat = path.stat()
    except OSError:
        return (path.name,)
    return (path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _check(data: Path) -> None:
    indexes = [data / "embeddings" / "index" / f"{name}.index" for name in MODALITIES]
    for path in (data / "filtered" / "kept.parquet", *indexes, data / "images"):
        if not path.exists():
            raise MissingInput(f"Found nothing at {path}, expected what search answers from; run the main job first, or give --data DIR.")


def _taken_down(table: pa.Table, alive: Mask, data: Path, stones: tombstones.Tombstones) -> list[int]:
    """Rows that are alive by the filter and covered by a takedown."""
    if not stones:
        return []
    looks = dict[str, str]()
    if stones.pdqs:
        status = pq.read_table(data / "images" / "status.parquet", columns=["uid", "pdq"])
        looks = dict(zip(status["uid"].to_pylist(), status["pdq"].to_pylist(), strict=True))
    rows = np.flatnonzero(alive)
    records = table.take(pa.array(rows)).to_pylist()
    return [int(row) for row, record in zip(rows, records, strict=True) if stones.hit({**record, "pdq": looks.get(record["uid"])})]


def _splits(index: Path) -> dict[str, str]:
    """uid -> split in the shards that lie there; none when there are no shards yet."""
    if not index.exists():
        return {}
    table = pq.read_table(index, columns=["uid", "split"])
    return dict(zip(table["uid"].to_pylist(), table["split"].to_pylist(), strict=True))


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
