"""Fetching cut into ranges (`vlm_core.ranges`): every site belongs to one range, so its pace and its robots.txt are kept by one process.

A range has a ledger of its own, in which a process that takes it over finds what the one before had fetched; at the end its passes go to the job's ledger.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlm_core import ranges
from vlm_core.data.crawl.config import Download
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.schedule import host_of
from vlm_core.data.web.politeness import domain_of
from vlm_core.stage import Stage, write_json
from vlm_core.track import NullTracker

RANGES = 64  # by a hash of the site: many enough to be even, few enough to be worth a process each
FetchAll = Callable[[Download, Stage, Ledger, list[str]], None]


def fetch_all(config: Download, stage: Stage, ledger: Ledger, todo: list[str]) -> None:
    """Ask all addresses of `todo`, range by range. Raises ServiceError, LaunchError."""
    parts: list[list[str]] = [[] for _ in range(RANGES)]
    for url in todo:
        parts[range_of(url)].append(url)
    parts = [part for part in parts if part]
    folder = stage.state / f"fetch-{hashlib.sha256(json.dumps(todo).encode()).hexdigest()[:12]}"
    job = {"config": config.model_dump(mode="json") | {"processes": 1}, "folder": str(folder.absolute()), "urls": parts, "quiet": ledger.quiet()}
    files = ranges.work(folder, f"{__name__}:worker", job, len(parts), 1, stage.progress)
    for file in files:
        for made in json.loads(file.read_bytes()):
            if Path(made).exists():  # a run that was killed here has moved some already
                target = ledger.new_pass()
                target.rmdir()
                Path(made).rename(target)


def range_of(url: str) -> int:
    return hashlib.sha256(domain_of(host_of(url)).encode()).digest()[0] % RANGES


# ---------------------------------------------------------------- in the process that does a range


def worker(job: Mapping[str, Any]) -> ranges.Worker:
    from vlm_core.data.fetch.download import fetch_here

    config = Download.read(job["config"])

    def work(begin: int, end: int) -> bytes:
        made = []
        for number in range(begin, end):
            made += _one(config, Path(job["folder"]) / f"sites-{number:04d}", job["urls"][number], job["quiet"], fetch_here)
        return json.dumps(made).encode()

    return work


def _one(config: Download, folder: Path, urls: list[str], quiet: Mapping[str, float], fetch: FetchAll) -> list[str]:
    """The passes that fetched these addresses; what a process before us has fetched is not fetched again."""
    ledger, state = Ledger(folder / "fetch"), folder / "state"
    state.mkdir(parents=True, exist_ok=True)
    ledger.prepare()
    ledger.keep_quiet(quiet)
    write_json(ledger.root / "job.json", config.model_dump(mode="json"))
    known = {event["url"] for event in ledger.events()}
    if left := [url for url in urls if url not in known]:
        fetch(config, Stage("download", {}, folder, state, folder, NullTracker(), ""), ledger, left)
    return [str(made) for made in sorted(ledger.passes.iterdir())]
