"""Every text of one file, whatever its kind and size, in a streaming way: what a scan for something that was taken down looks at.

    for value in values(path, kind_of(path)): ...        Raises NotLookedAt for a kind that nobody here can read

Kinds: Parquet, SQLite, tar, text (by its ending, or by its first bytes), and each of them packed as gzip, bzip2, xz or Zstandard. Arrays, weights and
pictures hold no names (BY_NAME): of them only the file's own name is looked at, and lists of uids and texts among arrays.
"""

import bz2
import contextlib
import gzip
import lzma
import re
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.shards.tar import members, read_member

TEXTS = {".json", ".jsonl", ".csv", ".tsv", ".md", ".txt", ".html", ".log", ".yaml"}
ARRAYS, WEIGHTS, PICTURES = {".npy", ".npz"}, {".index", ".safetensors"}, {".jpg", ".jpeg", ".png", ".webp", ".gif"}
BY_NAME = ARRAYS | WEIGHTS | PICTURES | {".slots"}  # .slots: rates by the hash of a site (`data/web/politeness.py`)
PACKED = {".gz", ".bz2", ".xz", ".zst"}
PAGES, NOTHING = ".warc", "-"  # web archives: their pages are read apart; a file that is read with another
SOURCE_COLUMNS = {"html"}
UID_PAIR = np.dtype("u8,u8")  # of DataComp's lists of uids
FAISS = re.compile(rb"I[xwH][A-Za-z0-9]{2}")  # how an index begins
HEAD, PIECE, OVERLAP = 8192, 2**20, 4096  # bytes
MAGIC = {
    b"PAR1": ".parquet", b"\x93NUM": ".npy", b"SQLite format 3\0": ".sqlite", b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst",
    b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png",
}  # fmt: skip


class NotLookedAt(Exception):
    """A kind of file that is read by nobody here."""


def kind_of(path: Path) -> str:
    """The ending of a file whose kind is known by it, else what its first bytes say; '' for neither."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if PAGES in endings:
        return PAGES
    last = endings[-1] if endings else ""
    if last.startswith(".sqlite-"):  # the journal of a database, which is read with it
        return NOTHING
    return last if last in {".parquet", ".tar", ".sqlite", *TEXTS, *PACKED, *BY_NAME} else by_bytes(path)


def by_bytes(path: Path) -> str:
    """What a file is, by its first bytes: an object of a cache has no name."""
    with path.open("rb") as stream:
        return _told(stream.read(HEAD))


def values(path: Path, kind: str) -> Iterator[str]:
    """The texts of a file. Raises NotLookedAt, and whatever its reader raises for a broken one."""
    if kind == ".parquet":
        yield from _table_values(path)
    elif kind == ".tar":
        yield from _tar_values(path)
    elif kind == ".sqlite":
        yield from _database_values(path)
    elif kind in ARRAYS and path.suffix in ARRAYS:
        yield from _array_values(path)
    elif kind in TEXTS:
        with path.open("rb") as stream:
            yield from _lines(stream)
    elif kind in PACKED:
        with contextlib.closing(_unpacked(path, kind)) as stream:
            yield from _inside(stream, path)
    elif kind not in {PAGES, NOTHING, *BY_NAME}:
        raise NotLookedAt(f"no reader for {path.suffix or 'this kind of file'}")


def _told(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return ".tar"
    if found := next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), ""):
        return found
    if FAISS.match(head) and b"\0" in head:
        return ".index"
    if head[8:9] == b"{" and b"dtype" in head:
        return ".safetensors"
    return ".txt" if _is_text(head) else ""


def _is_text(head: bytes) -> bool:
    try:
        head[:-3].decode()  # the last character may be cut
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 8 and b"\0" not in head
    return b"\0" not in head


# ---------------------------------------------------------------- text


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Line by line; of a line longer than a megabyte pieces that end where a word does."""
    rest = b""
    while block := stream.read(PIECE):
        block = rest + block
        cut = block.rfind(b"\n") + 1 or max(block.rfind(mark) for mark in (b'"', b" ", b",")) + 1
        if not cut and len(block) < 4 * PIECE:
            rest = block
            continue
        whole, rest = (block[:cut], block[cut:]) if cut else (block, block[-OVERLAP:])
        yield from whole.decode(errors="replace").split("\n")
    if rest:
        yield rest.decode(errors="replace")


def _unpacked(path: Path, kind: str) -> IO[bytes]:
    match kind:
        case ".gz":
            return cast("IO[bytes]", gzip.open(path))
        case ".bz2":
            return cast("IO[bytes]", bz2.open(path))
        case ".xz":
            return cast("IO[bytes]", lzma.open(path))
    return cast("IO[bytes]", pa.input_stream(str(path), compression="zstd"))


def _inside(stream: IO[bytes], path: Path) -> Iterator[str]:
    """What a packed file holds: text or a tar, read as it comes."""
    head = _Ahead(stream)
    kind = _told(head.peek(HEAD))
    if kind == ".txt":
        yield from _lines(cast("IO[bytes]", head))
    elif kind == ".tar":
        with tarfile.open(fileobj=cast("IO[bytes]", head), mode="r|") as tar:
            for member in tar:
                yield member.name
                if member.isfile() and (content := tar.extractfile(member)) is not None:
                    yield from _member_values(member.name, content.read)
    elif kind not in PICTURES:
        raise NotLookedAt(f"no reader for what is packed in a {path.suffix or 'file'}")


class _Ahead:
    """A stream whose first bytes can be seen before they are read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.head = stream, b""

    def peek(self, size: int) -> bytes:
        while len(self.head) < size and (more := self.stream.read(size - len(self.head))):
            self.head += more
        return self.head

    def read(self, size: int) -> bytes:
        taken, self.head = self.head[:size], self.head[size:]
        return taken + self.stream.read(size - len(taken)) if len(taken) < size else taken


# ---------------------------------------------------------------- tables, databases, arrays, tars


def _table_values(path: Path) -> Iterator[str]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(16_384):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if name not in SOURCE_COLUMNS:
                    yield from _texts(column)


def _texts(column: pa.Array) -> Iterator[str]:
    """The distinct strings of a column; records as bytes are text too, pictures are not."""
    kind = column.type
    if pa.types.is_struct(kind):
        for inner in column.flatten():
            yield from _texts(inner)
    elif pa.types.is_map(kind):
        yield from _texts(column.keys)
        yield from _texts(column.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _texts(column.flatten())
    elif pa.types.is_dictionary(kind):
        yield from _texts(column.dictionary)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from (value for value in column.unique().to_pylist() if value)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield from (value.decode(errors="replace") for value in column.to_pylist() if value and value[:1] in b"{[")
    elif not (pa.types.is_primitive(kind) or pa.types.is_null(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind)):
        raise NotLookedAt(f"no reader for a column of {kind}")


def _database_values(path: Path) -> Iterator[str]:
    """Every text of an SQLite file, such as the answers of language models beside the captions."""
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            quoted = table.replace('"', '""')
            for row in connection.execute(f'SELECT * FROM "{quoted}"'):
                yield from (value if isinstance(value, str) else value.decode(errors="replace") for value in row if isinstance(value, str | bytes))


def _array_values(path: Path) -> Iterator[str]:
    """The uids of a list of uids, and the texts of an array of texts; numbers are no names."""
    arrays = np.load(path, mmap_mode="r", allow_pickle=False) if path.suffix == ".npy" else np.load(path, allow_pickle=False)
    for array in [arrays] if isinstance(arrays, np.ndarray) else (arrays[name] for name in arrays.files):
        if array.dtype == UID_PAIR:
            yield from (f"{int(high):016x}{int(low):016x}" for high, low in array.ravel())
        elif array.dtype.kind in "US":
            yield from (text if isinstance(text, str) else text.decode(errors="replace") for text in array.ravel().tolist())


def _tar_values(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for member in members(path):
            yield member.name
            yield from _member_values(member.name, partial(read_member, stream, member))


def _member_values(name: str, read: Callable[[], bytes]) -> Iterator[str]:
    """The text of a member of a tar; of a picture or an array its name is all there is."""
    if PurePosixPath(name).suffix.lower() in BY_NAME:
        return
    content = read()
    if not _is_text(content[:HEAD]):
        raise NotLookedAt(f"no reader for the member {name[:80]!r}")
    yield content.decode(errors="replace")
