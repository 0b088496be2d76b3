"""Tar files with reproducible bytes, and a reader that trusts nothing: the one place where the data half touches tar.

    with TarWriter(path) as tar:              for name, data in read_tar(path): ...
        tar.add("000001.jpg", jpeg)
    tar.md5, tar.sha256, tar.bytes

Equal members in equal order give equal bytes: time 0, owner 0, mode 0644, USTAR headers (PAX only for a name that USTAR cannot hold).
"""

import hashlib
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from vlm_core.errors import BadManifest, MissingInput

BLOCK = tarfile.BLOCKSIZE
NAME_BYTES = 255  # longest member name, as in a file system
MEMBER_BYTES = 256 * 2**20  # nothing we write comes near it


class Member(NamedTuple):
    """A file inside a tar, and where its bytes lie."""

    name: str
    offset: int
    size: int


class TarWriter:
    """Writes regular files only, and hashes while writing. The caller adds members in the order that it wants to be reproducible."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes, self.md5, self.sha256 = path, 0, "", ""
        self._stream = path.open("wb")
        self._md5, self._sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        self._names: set[str] = set()

    def add(self, name: str, data: bytes) -> Member:
        """Append a file. Raises BadManifest for a name that no reader should accept."""
        _check(self.path, name, len(data), self._names)
        header = tarfile.TarInfo(name)
        header.size, header.mtime, header.mode = len(data), 0, 0o644
        self._put(header.tobuf(tarfile.PAX_FORMAT))
        member = Member(name, self.bytes, len(data))
        self._put(data)
        self._put(bytes(-len(data) % BLOCK))
        return member

    def close(self) -> None:
        if not self._stream.closed:
            self._put(bytes(2 * BLOCK))
            self._put(bytes(-self.bytes % tarfile.RECORDSIZE))
            self._stream.close()
            self.md5, self.sha256 = self._md5.hexdigest(), self._sha256.hexdigest()

    def _put(self, data: bytes) -> None:
        self._stream.write(data)
        self._md5.update(data)
        self._sha256.update(data)
        self.bytes += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close() if kind is None else self._stream.close()


def members(path: Path) -> Iterator[Member]:
    """The files of an uncompressed tar in their order. Raises BadManifest for anything but plain files with plain names, and for a damaged or cut-off tar."""
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected a tar; run the stage that makes it first.")
    names: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or tarfile remembers them all
                if not member.isreg() or member.issparse():
                    raise BadManifest(
                        f"Found {member.name!r} in {path}, which is a link, device, folder or sparse file, expected plain files only; refuse this tar."
                    )
                _check(path, member.name, member.size, names)
                yield Member(member.name, member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise BadManifest(f"Found a tar that cannot be read at {path} ({error}), expected a whole one; make it again.") from None
    with path.open("rb") as stream:  # tarfile takes a damaged header for the end of the archive, and says nothing
        stream.seek(end)
        if stream.read(BLOCK) != bytes(BLOCK):
            raise BadManifest(f"Found {path} damaged or cut off at byte {end}, expected the end mark of a tar there; make it again.")


def read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file, in their order. Raises BadManifest, as `members` does."""
    listed = members(path)
    first = next(listed, None)
    if first is None:
        return
    with path.open("rb") as stream:
        yield first.name, read_member(stream, first)
        for member in listed:
            yield member.name, read_member(stream, member)


def read_member(stream: BinaryIO, member: Member) -> bytes:
    """The bytes of one file of an open tar. Raises BadManifest when the tar ends before."""
    stream.seek(member.offset)
    data = stream.read(member.size)
    if len(data) != member.size:
        raise BadManifest(f"Found {stream.name} cut off inside {member.name!r} ({len(data)} of {member.size} bytes), expected a whole tar; make it again.")
    return data


def _check(path: Path, name: str, size: int, names: set[str]) -> None:
    """A name that is safe to join to a folder on any system, seen once (in any normal form of its letters), of a sane length and size."""
    parts, key = name.split("/"), unicodedata.normalize("NFC", name)
    if key in names:
        what = f"the name {name!r} twice"
    elif not name.isprintable() or "\\" in name or ":" in name or any(part in {"", ".", ".."} for part in parts):
        what = f"the unsafe name {name!r}"
    elif len(name.encode("utf-8", "surrogateescape")) > NAME_BYTES:
        what = f"a name of {len(name)} characters ({name[:20]!r}..)"
    elif size > MEMBER_BYTES:
        what = f"{name!r} of {size:,} bytes"
    else:
        names.add(key)
        return
    raise BadManifest(
        f"Found {what} in {path}, expected relative names without '..', each once, of at most {NAME_BYTES} bytes, and files of at most {MEMBER_BYTES:,} bytes; refuse this tar."
    )
