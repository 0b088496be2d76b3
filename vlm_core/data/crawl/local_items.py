"""Pictures with their texts, out of a folder or out of tars that strangers made: what is odd is refused by itself and counted, the rest is read.

Reasons: `no_text`, `too_large`, `not_a_file` (links, devices, ...), `unsafe_name`, `duplicate_name`, `unreadable_text`, `damaged_tar` (its rest was not read).
Source: PLATFORM 10.2 A4.
"""

import contextlib
import gzip
import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from vlm_core.data.crawl import rows
from vlm_core.data.crawl.config import Folder
from vlm_core.data.crawl.places import Place, places
from vlm_core.data.shards.tar import NAME_BYTES
from vlm_core.errors import MissingInput, SchemaMismatch, did_you_mean

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "avif"})
PICTURE_BYTES, TEXT_BYTES, BUFFER = 64 * 2**20, 2**20, 2**20
TARS = r"\.(tar|tar\.gz|tgz)$"
TEXTS = {"caption": "table", "text": "table", "txt": "table", "alt": "alt", "alt_text": "alt", "title": "title"}  # key in a .json -> origin
FACTS = {name: name for name in ("url", "lang", "page_url", "licence", "credit")} | {"language": "lang", "license": "licence", "author": "credit"}
Texts = list[tuple[str, str]]  # text, origin
Parts = dict[str, bytes]  # extension -> bytes


class Item(NamedTuple):
    """A picture with its texts. `name` is its identity within the source, `place` where it lay."""

    name: str
    place: str
    data: bytes
    texts: Texts
    facts: dict[str, str]


def folder_items(root: Path, source: Folder, refused: Counter[str]) -> Iterator[Item]:
    """The pictures of a folder by name. Links are followed only if they stay inside it.

    Raises MissingInput or SchemaMismatch for a table of captions that is not as the settings say.
    """
    captions = _captions(root, source, refused) if source.captions else None
    inside = root.resolve()
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if file.suffix[1:].lower() not in PICTURES or any(part.startswith(".") for part in name.split("/")):
            continue
        if not file.is_file() or not file.resolve().is_relative_to(inside):
            refused["not_a_file"] += 1
        elif not name.isprintable():
            refused["unsafe_name"] += 1
        elif file.stat().st_size > PICTURE_BYTES:
            refused["too_large"] += 1
        else:
            parts = {} if captions is not None else _beside(file, inside, refused)
            texts, facts = read_texts(parts, refused)
            texts = [(text, "table") for text in captions.get(name, [])] if captions is not None else texts
            yield from _item(name, name, file.read_bytes(), texts, facts, refused)


def tar_items(path: str, refused: Counter[str]) -> Iterator[Item]:
    """The pictures of the tars at a path or fsspec URL, in their order; members of one name (up to the first dot) belong together.

    Raises MissingInput when there is no tar.
    """
    for tar in places(path, TARS, "tar (.tar, .tar.gz, .tgz)"):
        key, parts = "", Parts()
        for name, data in _members(tar, refused):
            stem, _, extension = name.rpartition("/")[2].partition(".")
            here = str(PurePosixPath(name).parent / stem)
            if here != key:
                yield from _sample(tar.name, key, parts, refused)
                key, parts = here, {}
            if extension.lower() in parts:
                refused["duplicate_name"] += 1
            parts.setdefault(extension.lower(), data)
        yield from _sample(tar.name, key, parts, refused)


def read_texts(parts: Parts, refused: Counter[str]) -> tuple[Texts, dict[str, str]]:
    """Texts in order of preference (.txt, then .json), and what a .json says beside."""
    texts, facts = Texts(), dict[str, str]()
    if "txt" in parts:
        texts.append((parts["txt"].decode("utf-8", "replace"), "table"))
    if "json" in parts:
        try:
            told: Any = json.loads(parts["json"])
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            refused["unreadable_text"] += 1
            return texts, facts
        for key, origin in TEXTS.items():
            texts += [(told[key], origin)] if isinstance(told.get(key), str) else []
        further = told.get("captions")
        texts += [(text, "table") for text in further if isinstance(text, str)] if isinstance(further, list) else []
        facts = {field: told[key] for key, field in FACTS.items() if isinstance(told.get(key), str)}
    return texts, facts


def _sample(tar: str, key: str, parts: Parts, refused: Counter[str]) -> Iterator[Item]:
    found = [extension for extension in parts if extension in PICTURES]
    if found:
        texts, facts = read_texts(parts, refused)
        yield from _item(f"{tar}/{key}.{found[0]}", f"{tar}:{key}", parts[found[0]], texts, facts, refused)


def _item(name: str, place: str, data: bytes, texts: Texts, facts: dict[str, str], refused: Counter[str]) -> Iterator[Item]:
    if not any(text.strip() for text, _ in texts):
        refused["no_text"] += 1
        return
    yield Item(name, place, data, texts, facts)


def _beside(file: Path, inside: Path, refused: Counter[str]) -> Parts:
    """The texts of a picture: files of its name."""
    parts: Parts = {}
    for extension in ("txt", "json"):
        text = file.with_suffix(f".{extension}")
        if not text.is_file():
            continue
        if text.stat().st_size > TEXT_BYTES or not text.resolve().is_relative_to(inside):
            refused["unreadable_text"] += 1
        else:
            parts[extension] = text.read_bytes()
    return parts


def _captions(root: Path, source: Folder, refused: Counter[str]) -> dict[str, list[str]]:
    """Picture -> captions, by the table inside the folder."""
    file, wanted = root / source.captions, {"file": source.file_column, "caption": source.caption_column}

    def choose(names: list[str]) -> dict[str, str]:
        for column in wanted.values():
            if column not in names:
                raise SchemaMismatch(f"Found no column {column!r} in {file}, expected file_column and caption_column there; {did_you_mean(column, names)}")
        return wanted

    if not file.is_file() or rows.format_of(file.name) in {None, "wat"}:
        raise MissingInput(f"Found no table at {file}, expected the captions of the folder (csv, tsv, json, jsonl, parquet); set source.captions.")
    found: dict[str, list[str]] = {}
    for _, row in rows.read(file, True, choose, refused):
        found.setdefault(str(row["file"]), []).append(str(row["caption"] or ""))
    return found


class _Header(tarfile.TarInfo):
    """A header that does not make tarfile read an arbitrary amount for a long name or an extended header."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        extended = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
        if header.type in extended and not 0 <= header.size <= TEXT_BYTES:
            raise tarfile.HeaderError(f"an extended header of {header.size:,} bytes")
        return header


@contextlib.contextmanager
def _opened(tar: Place) -> Iterator[IO[bytes]]:
    """The bytes of a tar, unpacked as they are read. Buffered, because tarfile steps one byte back before each header, and gzip would begin anew for that."""
    with tar.open() as stream:
        if tar.name.lower().endswith("gz"):
            with gzip.GzipFile(fileobj=stream) as unpacked, io.BufferedReader(unpacked, BUFFER) as buffered:
                yield buffered
        else:
            yield stream


def _members(tar: Place, refused: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the plain files of a tar that have a plain name. Nothing is ever written under a member's name."""
    try:
        with _opened(tar) as whole:
            with tarfile.open(fileobj=whole, mode="r:", tarinfo=_Header) as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or tarfile remembers them all
                    if member.isdir():
                        continue
                    reason, extension = _reason(member), member.name.rpartition(".")[2].lower()
                    if not reason and extension not in PICTURES | {"txt", "json"}:
                        continue
                    stream = archive.extractfile(member) if not reason else None
                    if stream is None:
                        refused[reason or "not_a_file"] += 1
                        continue
                    yield "/".join(part for part in member.name.split("/") if part != "."), stream.read()
                end = archive.offset
            whole.seek(end)  # tarfile takes a damaged header for the end of the archive, and says nothing
            if whole.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                refused["damaged_tar"] += 1
    except (tarfile.TarError, OSError, ValueError, EOFError, zlib.error):
        refused["damaged_tar"] += 1


def _reason(member: tarfile.TarInfo) -> str:
    name = member.name
    if not member.isreg() or member.issparse():
        return "not_a_file"
    odd = name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/") or not name.isprintable()
    if odd or len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES:
        return "unsafe_name"
    is_picture = name.rpartition(".")[2].lower() in PICTURES
    return "too_large" if member.size > (PICTURE_BYTES if is_picture else TEXT_BYTES) else ""
