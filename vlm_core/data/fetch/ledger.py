"""What is known about each address, on disk beside OUT: it outlives the run, a kill -9 at any moment and other pairs, because every file appears whole.

addresses.parquet   url, status, runs, due_at, record (JSON): the state after the last run that ended
rechecked.jsonl     how addresses with a picture were found when they were looked at again (`recheck`), until the run ends
passes/NN/          todo.parquet, img2dataset's tars and tables, and NNNNN.jsonl: what became of the addresses of a finished shard
urls/               of each process: the addresses whose shard is not finished, with their bytes (`spool`); strikes of pictures that a process died of
origins/            robots.txt, tdmrep.json and ai.txt of each origin; page_rules.parquet: what they say about pages that nobody of ours visited
sites.slots         the token buckets of this run (`politeness.Sites`); quiet.json: until when hosts wanted to be left alone before it began
decoding/, memory/  of each process: the picture that it decodes, its largest resident size
stopped             why this run asks no further
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data.fetch.fetch import Fetched
from vlm_core.data.fetch.schedule import due_at, host_of, mixed, name_of, pauses
from vlm_core.data.fetch.spool import Place, Spool, answers
from vlm_core.data.web.politeness import Politeness, Sites, domain_of

BLOCK = 4_096  # records that are read or written at once
STRIKES = 2  # processes that one picture may take down
_FIELDS = {field.name for field in dataclasses.fields(Fetched)}
ADDRESSES = pa.schema([
    ("url", pa.string()), ("status", pa.string()), ("runs", pa.int32()), ("due_at", pa.timestamp("us", tz="UTC")), ("record", pa.string()),
])  # fmt: skip
Row = dict[str, Any]


class Ledger:
    def __init__(self, root: Path) -> None:
        self.root, self.passes, self.urls, self.origins = root, root / "passes", root / "urls", root / "origins"
        self.marks, self.memory, self.stop_file, self.addresses = root / "decoding", root / "memory", root / "stopped", root / "addresses.parquet"
        self.todo, self.rechecked = root / "todo.parquet", root / "rechecked.jsonl"
        self._mark = -1  # file of this process
        self._spool: Spool | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Make the folders; forget what belonged to the processes of a former run, but not the addresses that they had answers for and wrote no shard of."""
        for folder in (self.marks, self.memory):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (self.passes, self.urls, self.origins, self.marks, self.memory):
            folder.mkdir(parents=True, exist_ok=True)
        self.stop_file.unlink(missing_ok=True)

    def keep_only(self, settings: str) -> None:
        """Forget everything if pictures were made, or addresses refused, by other settings."""
        file = self.root / "settings"
        if not (file.exists() and file.read_text() == settings):
            shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True, exist_ok=True)
        file.write_text(settings)

    # ------------------------------------------------------------ what is to do

    def write_todo(self, urls: Iterable[str]) -> None:
        """Addresses of the next pass, in an order that mixes sites, and a fresh table of sites, in which the pauses go on that hosts asked for."""
        order = mixed(urls)
        part = self.todo.with_suffix(".part")
        pq.write_table(pa.table({"url": pa.array(order, pa.string())}), part)
        part.rename(self.todo)
        hosts = {host_of(url) for url in order}
        quiet = {host: until - time.time() for host, until in self.quiet().items()}
        for host, rest in pauses((*self.events(), *(fetched.json() for fetched, _ in self.unfinished().values())), datetime.now(UTC)).items():
            quiet[host] = max(rest, quiet.get(host, 0.0))
        Sites.create(self.root / "sites.slots", len(hosts | quiet.keys()) + len({domain_of(host) for host in (*hosts, *quiet)}))
        politeness = Politeness(1.0, 1, 1, 0.0, Sites(self.root / "sites.slots"))
        for host, rest in quiet.items():
            politeness.keep_quiet(host, rest)

    def keep_quiet(self, until: Mapping[str, float]) -> None:
        """Hosts that want to be left alone, until when (seconds since 1970)."""
        (self.root / "quiet.json").write_text(json.dumps(dict(until)))

    def quiet(self) -> dict[str, float]:
        file = self.root / "quiet.json"
        found: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        return {host: until for host, until in found.items() if until > time.time()}

    def read_todo(self) -> list[str]:
        found: list[str] = pq.read_table(self.todo)["url"].to_pylist()
        return found

    def new_pass(self) -> Path:
        """Passes are numbered on and on: their order, not the clock, says which answer is the last."""
        folder = self.passes / f"{max([self._settled(), *(int(path.name) for path in self.passes.iterdir())]) + 1:04d}"
        folder.mkdir()
        return folder

    # ------------------------------------------------------------ addresses of unfinished shards

    def unfinished(self) -> dict[str, tuple[Fetched, Place | None]]:
        """What earlier processes learnt and wrote no shard of."""
        if not any(self.urls.glob("*.jsonl")):
            return {}
        told = {(event["url"], event["fetched_at"]) for event in self.events()}
        found = {url: answer for url, answer in answers(self.urls).items() if (url, answer.record["fetched_at"]) not in told}
        return {url: (_fetched(answer.record), answer.place) for url, answer in found.items() if answer.place or answer.record["status"] != "ok"}

    def keep(self, data: bytes | memoryview) -> Place:
        """Write the bytes of an address down."""
        return self._own().keep(data)

    def finish(self, fetched: Fetched, place: Place | None = None) -> None:
        """Remember what became of an address, and where its bytes are."""
        self._own().note(fetched.json(), place)

    def _own(self) -> Spool:
        with self._lock:
            if self._spool is None:
                self._spool = Spool(self.urls)
            return self._spool

    def shard_done(self, folder: Path, shard: int, records: Mapping[str, Row]) -> None:
        """Its pictures are in its tar now: write down its records, drop the bytes as fetched."""
        journal = folder / f"{shard:05d}.jsonl"
        part = journal.with_suffix(".part")
        part.write_text("".join(json.dumps(record) + "\n" for record in records.values()))
        part.rename(journal)
        if self._spool is not None:
            self._spool.clear()

    # ------------------------------------------------------------ the state of all addresses

    def events(self, passes: Iterable[Path] | None = None) -> Iterator[Row]:
        """The records of finished shards, oldest first."""
        for folder in sorted(self.passes.iterdir()) if passes is None else passes:
            for journal in sorted(folder.glob("*.jsonl")):
                with journal.open() as lines:
                    yield from _read(lines)

    def state(self) -> dict[str, Row]:
        """The record of every address that was ever asked; `runs` counts the ended runs in which it failed."""
        found: dict[str, Row] = {}
        if self.addresses.exists():
            blocks = pq.ParquetFile(self.addresses).iter_batches(BLOCK, columns=["record"])
            found = {record["url"]: record for block in blocks for record in _read(block["record"].to_pylist())}
        for url, at, record in self._rechecks():
            if url in found and found[url]["status"] == "ok":
                counts = {name: found[url][name] for name in ("runs", "attempts")}
                found[url] = {**record, **counts} if record else {**found[url], "checked_at": at}
        for event in self.events(self._unsettled()):
            old = found.get(event["url"], {"runs": 0, "attempts": 0})
            pause_s = max(event["pause_s"], _still_asked(old, event))
            found[event["url"]] = {**event, "runs": old["runs"], "attempts": old["attempts"] + event.get("asked", True), "pause_s": pause_s}
        return found

    def note_recheck(self, url: str, at: str, record: Row) -> None:
        """How an address with a picture was found just now: its new record, or {} when nothing speaks against the picture."""
        with self.rechecked.open("a") as stream:
            stream.write(json.dumps([url, at, record]) + "\n")

    def _rechecks(self) -> Iterator[tuple[str, str, Row]]:
        for line in self.rechecked.read_text().splitlines() if self.rechecked.exists() else ():
            with contextlib.suppress(ValueError):  # the process died while it wrote this line
                url, at, record = json.loads(line)
                yield url, at, record

    def _settled(self) -> int:
        """The last pass that the state of all addresses holds; -1 before there is one. A crash may leave passes that are in it."""
        metadata = pq.read_schema(self.addresses).metadata if self.addresses.exists() else None
        return int((metadata or {}).get(b"settled", b"-1"))

    def _unsettled(self) -> list[Path]:
        last = self._settled()
        return [folder for folder in sorted(self.passes.iterdir()) if int(folder.name) > last]

    def settle(self, records: Mapping[str, Row], retry: Mapping[str, float], give_up_after: int) -> None:
        """A run ends: write the state of its addresses; those that were asked in it and failed have failed in one more run."""
        fresh = self._unsettled()
        asked = {event["url"] for event in self.events(fresh)}

        def row(url: str) -> Row:
            record = records[url]
            failed = record["status"] != "ok" and url in asked and record.get("asked", True)
            record = {**record, "runs": record["runs"] + failed}
            return {"url": url, "status": record["status"], "runs": record["runs"], "due_at": due_at(record, retry, give_up_after), "record": json.dumps(record)}

        part, urls = self.addresses.with_suffix(".part"), sorted(records)
        settled = str(max([self._settled(), *(int(folder.name) for folder in fresh)]))
        schema = ADDRESSES.with_metadata({"settled": settled})
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for begin in range(0, len(urls), BLOCK):
                writer.write_table(pa.Table.from_pylist([row(url) for url in urls[begin : begin + BLOCK]], schema=schema))
        part.rename(self.addresses)
        self.rechecked.unlink(missing_ok=True)
        shutil.rmtree(self.urls)  # every address has its answer

    def due(self, urls: Iterable[str], state: Mapping[str, Row], stored: Iterable[str], now: datetime, retry: Mapping[str, float], give_up: int) -> list[str]:
        """Addresses never asked, whose picture is gone, or that failed in a way that may have passed by now."""
        there, wanted = frozenset(stored), []
        for url in urls:
            record = state.get(url)
            if record is None or (record["status"] == "ok" and url not in there):
                wanted.append(url)
            elif record["status"] != "ok":
                at = due_at(record, retry, give_up)
                if at is not None and at <= now:
                    wanted.append(url)
        return wanted

    # ------------------------------------------------------------ processes

    def stop(self, why: str) -> None:
        self.stop_file.write_text(why)

    def stopped(self) -> str:
        """Why this run asks no further; '' while it does."""
        return self.stop_file.read_text() if self.stop_file.exists() else ""

    def note_memory(self, peak_mb: float) -> None:
        (self.memory / str(os.getpid())).write_text(f"{peak_mb:.0f}")

    def peak_memory_mb(self) -> float:
        """Largest resident size of a downloading process so far, in MB."""
        return max((float(file.read_text() or 0) for file in self.memory.iterdir()), default=0.0)

    def mark(self, url: str) -> None:
        """This process now decodes that picture ('' = none)."""
        if self._mark < 0:
            self._mark = os.open(self.marks / str(os.getpid()), os.O_CREAT | os.O_WRONLY)
        text = url.encode()
        os.pwrite(self._mark, len(text).to_bytes(4, "big") + text, 0)

    def blame(self) -> None:
        """A process died: what it decoded gets a strike; at the second one the picture is given up."""
        for mark in self.marks.iterdir():
            data = mark.read_bytes()
            url = data[4 : 4 + int.from_bytes(data[:4], "big")].decode()
            if not url:
                continue
            strikes = self.urls / f"{name_of(url)}.strikes"
            count = int(strikes.read_text()) + 1 if strikes.exists() else 1
            strikes.write_text(str(count))
            if count >= STRIKES:
                fetched, _ = self.unfinished().get(url, (Fetched(url, "ok", fetched_at=datetime.now(UTC).isoformat(timespec="milliseconds")), None))
                self.finish(dataclasses.replace(fetched, status="decode_error", detail="the decoder died or took too long"))
        shutil.rmtree(self.marks)
        self.marks.mkdir()
        self._mark = -1


def _read(texts: Iterable[str]) -> Iterator[Row]:
    """The records of JSON texts, a block at a time, for then its records share their keys."""
    left = iter(texts)
    while block := list(itertools.islice(left, BLOCK)):
        yield from json.loads(f"[{','.join(block)}]")


def _fetched(record: Row) -> Fetched:
    return Fetched(**{name: value for name, value in record.items() if name in _FIELDS})


def _still_asked(old: Row, event: Row) -> float:
    """What is left of the pause that a host asked for earlier."""
    if not old.get("pause_s"):
        return 0.0
    gone = datetime.fromisoformat(event["fetched_at"]) - datetime.fromisoformat(old["fetched_at"])
    return float(old["pause_s"] - max(0.0, gone.total_seconds()))  # the clock may have been set back
