"""Reader of the embedded corpus (`infra/demo/corpus.tar`): a plain tar with `meta.jsonl.gz` first and the pictures after it.

The tar is opened once; pictures are read by position, from any thread.
"""

import gzip
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from vlm_core.config import Config
from vlm_core.errors import BadManifest, MissingInput

PROJECT = Path(__file__).parents[3]
META = "meta.jsonl.gz"


class Picture(Config):
    """What `meta.jsonl` says about one picture."""

    key: str
    file: str  # member of the tar
    source: str  # noto, twemoji, openclipart, gcompris, mirror
    style: str  # noto, twemoji, clipart, photo
    captions: dict[str, str]  # language -> text, as found
    description: str = ""
    tags: list[str] = []
    labels: dict[str, str] = {}
    licence: str
    credit: str
    author: str = ""
    url: str = ""  # address in the demo web; empty: not linked from anywhere
    pages: list[str] = []  # host/language/section where it is shown
    serve: str = ""  # how the server treats it, where that is not plain
    dirt: dict[str, str] = {}  # kind of dirt -> address or key that it copies, or ""


def find(path: str) -> Path:
    """The archive named in a setting: from here, or else from the project."""
    return Path(path) if Path(path).exists() else PROJECT / path


class Corpus:
    """Pictures in the order of the tar, and their bytes."""

    def __init__(self, path: Path) -> None:
        """Raises MissingInput or BadManifest."""
        if not path.is_file():
            raise MissingInput(f"Found no file {path}, expected the embedded corpus; check out infra/demo/corpus.tar or run infra/demo/build_corpus.py.")
        try:
            with tarfile.open(path, "r:") as tar:
                self._where = {member.name: (member.offset_data, member.size) for member in tar}
            self._file = os.open(path, os.O_RDONLY)
            self.pictures = tuple(Picture.read(row) for row in self._rows())
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, KeyError, json.JSONDecodeError) as error:
            raise BadManifest(f"Found {path} unreadable ({type(error).__name__}: {error}), expected a tar with {META}; check it out again.") from None
        missing = [picture.file for picture in self.pictures if picture.file not in self._where]
        if missing:
            raise BadManifest(f"Found no {missing[0]!r} in {path} ({len(missing)} pictures are missing), expected all that {META} lists; check it out again.")

    def _rows(self) -> Iterator[Any]:
        for line in gzip.decompress(self.read(META)).splitlines():
            yield json.loads(line)

    def read(self, file: str) -> bytes:
        offset, size = self._where[file]
        return os.pread(self._file, size, offset)

    def size(self, file: str) -> int:
        return self._where[file][1]

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
