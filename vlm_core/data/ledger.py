"""What is known about each address of a download job, on disk: survives kill -9 at any moment, because every file appears whole or not at all.

todo.parquet        the distinct addresses, in an order that mixes hosts
shards/             img2dataset's output; a shard with a _stats.json is done
urls/ab/<name>.json what became of an address; beside it <name>.body until its shard is done
robots/             robots.txt of each origin, asked for once
    memory/             largest resident size of each process
"""

import dataclasses
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.fetch import Fetched

STRIKES = 2  # processes that one picture may take down
_FIELDS = {field.name for field in dataclasses.fields(Fetched)}


def name_of(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Ledger:
    def __init__(self, root: Path) -> None:
        self.root, self.todo = root, root / "todo.parquet"
        self.shards, self.urls, self.robots, self.marks = root / "shards", root / "urls", root / "robots", root / "decoding"
        self.memory = root / "memory"

    def prepare(self) -> None:
        for folder in (self.urls, self.robots, self.memory):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.marks, ignore_errors=True)
        self.marks.mkdir()

    def write_todo(self, urls: list[str]) -> None:
        """Sorted by hash: deterministic, and every shard mixes hosts."""
        part = self.todo.with_suffix(".part")
        pq.write_table(pa.table({"url": pa.array(sorted(urls, key=name_of), pa.string())}), part)
        part.rename(self.todo)

    def body(self, url: str) -> Path:
        name = name_of(url)
        folder = self.urls / name[:2]
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.body"

    def known(self, url: str) -> Fetched | None:
        """The fetch that an earlier process finished, if its bytes are still there."""
        body = self.body(url)
        file = body.with_suffix(".json")
        if not file.exists():
            return None
        record = json.loads(file.read_text())
        if record["status"] == "ok" and not body.exists():
            return None
        return Fetched(**{name: value for name, value in record.items() if name in _FIELDS})

    def finish(self, fetched: Fetched, record: dict[str, Any]) -> None:
        """Remember what became of an address."""
        body = self.body(fetched.url)
        file = body.with_suffix(".json")
        part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.part")
        part.write_text(json.dumps(record))
        part.rename(file)

    def records(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self.urls.glob("*/*.json")):
            yield json.loads(file.read_text())

    def shard_done(self, shard: int) -> None:
        """Its pictures are in its tar now: drop the bytes as fetched."""
        table = pq.read_table(self.shards / f"{shard:05d}.parquet", columns=["url"])
        for url in table["url"].to_pylist():
            self.body(url).unlink(missing_ok=True)

    def note_memory(self, peak_mb: float) -> None:
        (self.memory / str(os.getpid())).write_text(f"{peak_mb:.0f}")

    def peak_memory_mb(self) -> float:
        """Largest resident size of a downloading process so far, in MB."""
        return max((float(file.read_text() or 0) for file in self.memory.iterdir()), default=0.0)

    # ------------------------------------------------------------ pictures that kill their process

    def mark(self, url: str) -> None:
        """This process now decodes that picture ('' = none)."""
        (self.marks / str(os.getpid())).write_text(url)

    def blame(self) -> None:
        """A process died: what it decoded gets a strike; at the second one the picture is given up."""
        for mark in self.marks.iterdir():
            url = mark.read_text()
            if not url:
                continue
            strikes = self.body(url).with_suffix(".strikes")
            count = int(strikes.read_text()) + 1 if strikes.exists() else 1
            strikes.write_text(str(count))
            fetched = self.known(url)
            if count >= STRIKES and fetched is not None:
                gone = dataclasses.replace(fetched, status="decode_error", detail="the decoder died")
                self.finish(gone, gone.json())
                self.body(url).unlink(missing_ok=True)
