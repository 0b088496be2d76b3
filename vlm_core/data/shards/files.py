"""One shard file, tar or Parquet, with reproducible bytes; and the bytes of any sample of it by offset and size, whichever of the two it is.

    written = write_shard(path, [(key, jpeg, json), ...])        the ending of the path says which
    for key, jpeg, text in read_shard(path): ...

Parquet: columns key, jpg, json, neither compressed nor coded by a dictionary, row groups of at most 64 MB. So the bytes of a picture lie in the file as
they are, and one `pread` gets them, as from a tar.
"""

import hashlib
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.shards.tar import BLOCK, Member, TarWriter, members, read_member
from vlm_core.errors import BadManifest, MissingInput

ROW_GROUP_BYTES = 64 * 10**6
SCHEMA = pa.schema([("key", pa.string()), ("jpg", pa.binary()), ("json", pa.binary())])

Part = tuple[str, bytes, bytes]  # key, picture, record as JSON


class Place(NamedTuple):
    """Where the bytes of a sample lie in its shard."""

    jpg_offset: int
    jpg_size: int
    json_offset: int
    json_size: int


class Written(NamedTuple):
    bytes: int
    md5: str
    sha256: str
    places: list[Place]


def stored_bytes(jpg: int, text: int) -> int:
    """Size of a sample in a tar, with headers and padding."""
    return sum(BLOCK + size + -size % BLOCK for size in (jpg, text))


def write_shard(path: Path, parts: Iterable[Part]) -> Written:
    """Write a whole shard; equal parts in equal order give equal bytes."""
    return _write_parquet(path, parts) if path.suffix == ".parquet" else _write_tar(path, parts)


def read_shard(path: Path) -> Iterator[Part]:
    """Every sample of a shard, in its order. Raises BadManifest."""
    return _read_parquet(path) if path.suffix == ".parquet" else _read_tar(path)


# ---------------------------------------------------------------- tar


def _write_tar(path: Path, parts: Iterable[Part]) -> Written:
    places = []
    with TarWriter(path) as tar:
        for key, jpeg, text in parts:
            first, second = tar.add(f"{key}.jpg", jpeg), tar.add(f"{key}.json", text)
            places.append(Place(first.offset, first.size, second.offset, second.size))
    return Written(tar.bytes, tar.md5, tar.sha256, places)


def _read_tar(path: Path) -> Iterator[Part]:
    picture: tuple[str, Member] | None = None
    listed = members(path)
    first = next(listed, None)
    with path.open("rb") as stream:
        for member in [] if first is None else [first, *listed]:
            key, _, ending = member.name.rpartition(".")
            if ending == "jpg":
                picture = (key, member)
            elif ending == "json" and picture is not None and picture[0] == key:
                yield key, read_member(stream, picture[1]), read_member(stream, member)
            else:
                raise BadManifest(f"Found {member.name!r} out of place in {path}, expected KEY.jpg, then KEY.json; make the shards again.")


# ---------------------------------------------------------------- Parquet


def _write_parquet(path: Path, parts: Iterable[Part]) -> Written:
    with pq.ParquetWriter(path, SCHEMA, compression="NONE", use_dictionary=False, write_statistics=False) as writer:
        for group in _groups(parts):
            columns = [pa.array(column, kind) for column, kind in zip(zip(*group, strict=True), SCHEMA.types, strict=True)]
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=len(group))
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for begin in range(0, len(data), 2**20):
            md5.update(data[begin : begin + 2**20])
            sha256.update(data[begin : begin + 2**20])
        return Written(len(data), md5.hexdigest(), sha256.hexdigest(), _places(path, data))


def _groups(parts: Iterable[Part]) -> Iterator[list[Part]]:
    group, size = list[Part](), 0
    for part in parts:
        if group and size + len(part[1]) + len(part[2]) > ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part[1]) + len(part[2])
    if group:
        yield group


def _places(path: Path, data: mmap.mmap) -> list[Place]:
    """Where each value lies. Found by its own bytes from the last one on, so a place is right or this raises."""
    file, places = pq.ParquetFile(path), list[Place]()
    for number in range(file.num_row_groups):
        group, found = file.read_row_group(number), list[list[tuple[int, int]]]()
        for column in ("jpg", "json"):
            at = file.metadata.row_group(number).column(SCHEMA.get_field_index(column)).data_page_offset
            spots = []
            for value in group[column].to_pylist():
                at = _find(data, value, at, path)
                spots.append((at, len(value)))
                at += len(value)
            found.append(spots)
        places += [Place(*jpg, *text) for jpg, text in zip(*found, strict=True)]
    return places


def _find(data: mmap.mmap, value: bytes, begin: int, path: Path) -> int:
    at = data.find(value, begin)
    if at < 0:
        raise BadManifest(f"Found {path} without the bytes of a sample after byte {begin}, expected them as they were written; is the disk sound?")
    return at


def _read_parquet(path: Path) -> Iterator[Part]:
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected a shard; run the stage that makes it first.")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(64, columns=SCHEMA.names):
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BadManifest(f"Found a shard that cannot be read at {path} ({error}), expected whole Parquet with key, jpg, json; make it again.") from None
