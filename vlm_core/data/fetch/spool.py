"""What is known about addresses whose shard is not finished: two files per process that only grow, because a file per address costs more than its request.

NAME.bodies holds the pictures as fetched, one after the other, NAME.jsonl a line per address: its record and where its bytes lie. Bytes are written before the
line that tells of them, and a line in one piece, so whatever moment a process dies at, a line that can be read is true. Both are emptied with every finished shard.
"""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Place(NamedTuple):
    """Where the bytes of an address lie."""

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises OSError when they are not there any more."""
        with self.file.open("rb") as stream:
            return os.pread(stream.fileno(), self.size, self.offset)


class Answer(NamedTuple):
    """What became of an address, and its bytes when it is a picture."""

    record: Row
    place: Place | None


class Spool:
    """Of this process; threads may write at once."""

    def __init__(self, folder: Path) -> None:
        name = f"{time.time_ns():020d}-{os.getpid()}"  # later processes come later in the order of names
        self._bodies, self._lines = folder / f"{name}.bodies", folder / f"{name}.jsonl"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        self._body_file, self._line_file = os.open(self._bodies, flags, 0o644), os.open(self._lines, flags | os.O_APPEND, 0o644)
        self._end, self._lock = 0, threading.Lock()

    def keep(self, data: bytes | memoryview) -> Place:
        """Write a picture down."""
        size = len(data)
        with self._lock:
            begin, self._end = self._end, self._end + size
        written = 0
        while written < size:
            written += os.pwrite(self._body_file, data[written:], begin + written)
        return Place(self._bodies, begin, size)

    def note(self, record: Mapping[str, Any], place: Place | None) -> None:
        """Remember what became of an address."""
        at = None if place is None else [place.file.name, place.offset, place.size]
        line = json.dumps({"record": dict(record), "at": at}).encode() + b"\n"
        with self._lock:
            if os.write(self._line_file, line) != len(line):
                raise OSError(f"a line of {len(line)} bytes could not be written to {self._lines}")

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            os.ftruncate(self._line_file, 0)
            os.ftruncate(self._body_file, 0)
            self._end = 0


def answers(folder: Path) -> dict[str, Answer]:
    """The last word of all spools about each address."""
    return {answer.record["url"]: answer for answer in _read(folder)}


def _read(folder: Path) -> Iterator[Answer]:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue  # the process died while it wrote this line
            name, offset, size = found["at"] or ("", 0, 0)
            yield Answer(found["record"], Place(folder / name, offset, size) if name else None)
