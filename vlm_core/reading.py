"""Folders that are being read are not replaced: readers share a lock on OUT.run/.readers, and publishing takes it alone.

A writer works as long as it likes beside readers (its lease keeps other writers away); only the moment in which the new folder takes the place of the
old one needs nobody to read. Every wait ends after a while, so runs that read in a circle (a model scores pictures, the snapshot of these pictures trains
that model) are refused and never stuck. The kernel drops a lock when its process ends, also after kill -9.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from vlm_core.errors import OutputBusy

PUBLISH_WAIT_S = 3600.0  # $VLM_PUBLISH_WAIT_S
READ_WAIT_S = 60.0  # somebody puts a new folder in place: two renames and a removal
LOOK_EVERY_S = 0.1
NAME = ".readers"


@contextlib.contextmanager
def reading(inputs: Iterable[Path], own: Path) -> Iterator[None]:
    """Keep these files and folders, and what they lie in, from being replaced. Raises OutputBusy.

    Args:
        inputs: what a verb reads: published folders, files and folders in them, or anything else (which nobody here publishes).
        own: the record of the reader's own output, which it may replace.
    """
    records = {_resolved(record): record for path in inputs for record in _records(path)}
    records.pop(_resolved(own), None)
    with contextlib.ExitStack() as stack:
        for record in sorted(records.values()):
            if (stream := _open(record)) is not None:
                stack.enter_context(stream)
                stack.enter_context(_locked(stream, fcntl.LOCK_SH, READ_WAIT_S, _being_published(record)))
        yield


@contextlib.contextmanager
def unread(record: Path) -> Iterator[None]:
    """Wait until nobody reads an output folder, and keep readers away meanwhile. Raises OutputBusy after $VLM_PUBLISH_WAIT_S seconds (an hour)."""
    if not record.is_dir():  # no run ever wrote there, so no reader could have said that it reads
        yield
        return
    wait_s = float(os.environ.get("VLM_PUBLISH_WAIT_S", PUBLISH_WAIT_S))
    out = record.with_name(record.name.removesuffix(".run"))
    with (record / NAME).open("a+") as stream, _locked(stream, fcntl.LOCK_EX, wait_s, _being_read(out, stream)):
        yield


@contextlib.contextmanager
def _locked(stream: TextIO, kind: int, wait_s: float, busy: Iterator[str]) -> Iterator[None]:
    """`busy` yields a line for people who wait, then the sentence of the refusal."""
    until, said = time.monotonic() + wait_s, False
    while True:
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not said:
                print(next(busy), file=sys.stderr, flush=True)
                said = True
            if time.monotonic() >= until:
                raise OutputBusy(next(busy)) from None
            time.sleep(LOOK_EVERY_S)
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)  # closing alone would leave it to children that were forked meanwhile


def _being_read(out: Path, stream: TextIO) -> Iterator[str]:
    began = time.monotonic()
    yield f"[publish] {out} is read by {_holders(stream)}; the new one takes its place once that has ended"
    yield (
        f"Found {out} read by {_holders(stream)} for all of the {time.monotonic() - began:,.0f} s that this run waited to replace it, expected an end; "
        "give the same command again after that (VLM_PUBLISH_WAIT_S=SECONDS waits longer)."
    )


def _being_published(record: Path) -> Iterator[str]:
    out = record.with_name(record.name.removesuffix(".run"))
    yield f"[read] {out} is being replaced"
    yield f"Found {out} being replaced for {READ_WAIT_S:,.0f} s, expected that to take a moment; give the same command again, and look at the disk if it stays so."


def _records(path: Path) -> Iterator[Path]:
    """The record of the published folder that a path is or lies in, by its name and by what it links to."""
    for found in {path.absolute(), path.resolve()}:
        records = (folder.with_name(f"{folder.name}.run") for folder in (found, *found.parents) if folder.name)
        yield from [record for record in records if (record / ".lease").exists()][:1]


def _resolved(record: Path) -> Path:
    return record.absolute().resolve()


def _open(record: Path) -> TextIO | None:
    """The lock file, also where this process may only read; None where it may not even do that, or may not make it and nobody has."""
    for mode in ("a+", "r"):
        with contextlib.suppress(OSError):
            return (record / NAME).open(mode)
    return None


def _holders(stream: TextIO) -> str:
    """Who holds locks on a file, as the kernel lists them (Linux)."""
    inode, found = os.fstat(stream.fileno()).st_ino, set[int]()
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        found = {int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(inode)}
    return f"process {', '.join(map(str, sorted(found)))}" if found else "another process"
