"""Candidate pairs -> pictures, exactly one status for every pair. img2dataset works in a process of its own (`img2dataset_worker`).

OUT: status.parquet (schema DOWNLOADS, sorted by uid) and NNNNN.tar with <uid>.jpg and <uid>.json, sorted by uid, reproducible bytes.
OUT.run/fetch (`ledger`) keeps the state of every address between runs: the next run asks only for what is new, gone or due, also after kill -9.
OUT says how each address ended, nothing about when and how often it was asked: equal answers, equal bytes.
"""

import contextlib
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core import ranges
from vlm_core.config import canonical_json
from vlm_core.data.child import run_module
from vlm_core.data.crawl import demo_web
from vlm_core.data.crawl.config import Download
from vlm_core.data.crawl.places import find
from vlm_core.data.fetch import local, recheck
from vlm_core.data.fetch import ranges as fetch_ranges
from vlm_core.data.fetch.by_address import Stored
from vlm_core.data.fetch.hash_lists import HashLists
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.outage import our_fault
from vlm_core.data.fetch.page_rules import PageRules, unvisited
from vlm_core.data.fetch.report import make_report
from vlm_core.data.fetch.schedule import passing, pauses
from vlm_core.data.fetch.verify import check_hash, mark_placeholders
from vlm_core.data.lineage import scan, tombstones
from vlm_core.data.sample import DOWNLOADS
from vlm_core.data.shards.tar import TarWriter
from vlm_core.errors import ConfigError, LaunchError, MissingInput, NothingLeft, SchemaMismatch, ServiceError
from vlm_core.stage import Report, Stage, home, write_json

if TYPE_CHECKING:
    from vlm_core.data.fetch import img2dataset_worker  # noqa: F401  runs in a process of its own; named here so that its code counts for reuse

Row = dict[str, Any]
RESTARTS, LOOK_S = 20, 1.0
PIXELS = "1"  # raise it when the bytes of stored pictures change: what was fetched before is then fetched again
FETCHED = ("url", "final_url", "status", "http_status", "detail", "bytes", "sha256", "mime", "phash", "pdq", "pdq_quality", "rights_rule", "rights_evidence")


def download(config: Download, stage: Stage) -> Report:
    """The verb. Raises NothingLeft when not one picture arrives, ServiceError when that may be otherwise later."""
    pairs, begin = _read_pairs(stage.input("pairs")), datetime.now(UTC)
    lists = HashLists({name: (one.kind, find(one.path)) for name, one in config.hash_lists.items()})
    ledger = Ledger(stage.state.parent / "fetch")
    ledger.keep_only(made_by(config))
    if (stage.state / "passes").exists():  # a crash came before OUT was published
        shutil.rmtree(ledger.passes, ignore_errors=True)
        (stage.state / "passes").rename(ledger.passes)
    ledger.prepare()
    refused = {row["url"]: row["page_optout"] for row in pairs if row["page_optout"] and config.network.optouts.page_tags}
    urls = sorted({row["url"] for row in pairs} - refused.keys())
    copies = local.copies_of(stage.inputs.values(), set(urls))
    stored, state = Stored(stage.final, ledger), local.believed(ledger.state(), copies, config)
    stored.look(state)
    ledger.keep_quiet({host: begin.timestamp() + rest for host, rest in pauses(state.values(), begin).items()})
    barred = _barred_by_pages(pairs, copies, config, stage, ledger) if config.network.optouts.page_robots else {}
    urls = [url for url in urls if url not in barred]
    lost = _recheck(frozenset(stored).intersection(urls) - copies.keys(), state, config, stage, ledger)
    if lost is not None:
        stored.look(state := local.believed(ledger.state(), copies, config))
    if todo := ledger.due(urls, state, stored, begin, config.retry, config.give_up_after):
        here, away = [url for url in todo if url in copies], [url for url in todo if url not in copies]
        if here:  # no connection, and never in another place than the copies
            local.ingest(copies, here, ledger, config, lists)
            write_json(ledger.root / "job.json", config.model_dump(mode="json"))
            fetch_here(config, stage, ledger, here)
        if away:
            with reachable(config) as reached:
                write_json(ledger.root / "job.json", reached.model_dump(mode="json"))
                fetch = fetch_ranges.fetch_all if ranges.elsewhere() else fetch_here
                fetch(reached, stage, ledger, away)
        stored.look(state := ledger.state())
    records = _answers(urls, state)
    _obey(records, ledger)
    ledger.settle(records, config.retry, config.give_up_after)
    fetched = {**records, **barred, **{url: _refused(url, said, begin) for url, said in refused.items()}}  # what follows is this output's, not the ledger's
    _block(fetched, lists)
    mark_placeholders(pairs, fetched, config.placeholder_captions)
    rows = _write(pairs, fetched, stored, stage.out, config)
    report = make_report(rows, fetched, len(todo), stage)
    report.metrics |= {} if lost is None else {"withdrawn": float(lost)}
    report.metrics["worker_peak_mb"] = ledger.peak_memory_mb()
    ledger.passes.rename(stage.state / "passes")  # the state folder goes when OUT is published, and not before
    return report


def made_by(config: Download) -> str:
    """Digest of the settings that decide what an address gives; with others, every address is asked again."""
    fetch = config.fetch.model_dump(exclude={"retries", "retry_wait_s", "decode_s"})
    picture = config.model_dump(include={"image_size", "resize_mode", "only_if_bigger", "jpeg_quality", "full_decode", "demo"})
    network = {"agent": config.network.agent, "https_to_http": config.network.https_to_http, "optouts": config.network.optouts.model_dump()}
    return hashlib.sha256(canonical_json([PIXELS, fetch, picture, network]).encode()).hexdigest()


@contextlib.contextmanager
def reachable(config: Download) -> Iterator[Download]:
    """The config with the demo web up and allowed, or as it is. Raises ConfigError when strangers could not reach the user."""
    if config.demo:
        with demo_web.serve(find(config.demo)) as hosts:
            yield config.merged({"network": {"hosts": {**hosts, **config.network.hosts}}})
        return
    require_contact(config.network.contact, bool(config.network.hosts))
    yield config


def require_contact(contact: str, private: bool) -> None:
    if not contact and not private:
        raise ConfigError("Found no network.contact, expected an address at which site owners can reach you; set network.contact=https://... or mailto:...")


def _read_pairs(folder: Path) -> list[Row]:
    file = folder / "pairs.parquet" if folder.is_dir() else folder
    if not file.is_file():
        raise MissingInput(f"Found no {file}, expected the table of candidate pairs; run 'vlm extract' first.")
    columns, there = ["uid", "url", "caption", "page_optout", "lang", "source", "page_url", "pages"], pq.read_schema(file).names
    missing = [name for name in columns if name not in there]
    if missing:
        raise SchemaMismatch(f"Found no column {missing[0]!r} in {file}, expected the table that 'vlm extract' writes; run it first.")
    hashes = [name for name in ("sha256", "pdq") if name in there]
    rows: list[Row] = pq.read_table(file, columns=[*columns, *hashes]).sort_by("uid").to_pylist()
    if not rows:
        raise NothingLeft(f"Found no candidate pair in {file}, expected at least one; look at the reasons in the report of 'vlm extract'.")
    return rows


def _barred_by_pages(pairs: list[Row], copies: Mapping[str, Any], config: Download, stage: Stage, ledger: Ledger) -> dict[str, Row]:
    """Record of each picture address whose page may not be read; origins are asked once a day at most, and only about pages that are new or due."""
    pages = unvisited(pairs, copies)
    rules = PageRules(ledger, timedelta(days=config.recheck_after_days) if config.recheck_after_days else None)
    if todo := rules.due({page for several in pages.values() for page in several}):
        with reachable(config) as reached:
            rules.ask(todo, reached, lambda done, total: stage.progress("origins of pages", done, total))
    if stones := tombstones.load(home()):
        rules.forget(lambda text: scan.covered(text, stones))
    return rules.refused(pages)


def _recheck(urls: Iterable[str], state: Mapping[str, Row], config: Download, stage: Stage, ledger: Ledger) -> int | None:
    """Look again at those addresses whose picture was last asked for too long ago: how many are to be used no more; None when none was due."""
    old = recheck.due(state, urls, timedelta(days=config.recheck_after_days)) if config.recheck_after_days else []
    if not old:
        return None
    with reachable(config) as reached:
        return recheck.ask(old, reached, ledger, lambda done, total: stage.progress("addresses looked at again", done, total))


def fetch_here(config: Download, stage: Stage, ledger: Ledger, todo: list[str]) -> None:
    """Ask the addresses of `todo`, in a process of its own that may be killed. Raises ServiceError, LaunchError."""
    log, before = stage.state.parent / "img2dataset.log", set(ledger.passes.iterdir())
    log.unlink(missing_ok=True)
    said, looked, left = -1, 0.0, todo

    def watch() -> None:
        nonlocal said, looked
        if time.monotonic() - looked < LOOK_S:
            return
        looked = time.monotonic()
        done = sum(_count(file) for file in ledger.passes.glob("*/*_stats.json") if file.parent not in before)
        if done != said:
            said = done
            stage.progress("addresses done", min(done, len(todo)), len(todo))

    for _ in range(RESTARTS):
        ledger.write_todo(left)
        status = run_module("vlm_core.data.fetch.img2dataset_worker", ledger.root / "job.json", log, config.python, watch, may_crash=True)
        if why := ledger.stopped():
            raise ServiceError(our_fault(why))
        if status == 0:
            return
        ledger.blame()
        answered = {event["url"] for event in ledger.events(sorted(set(ledger.passes.iterdir()) - before))}
        left = [url for url in todo if url not in answered]
    raise LaunchError(f"Found the downloader killed {RESTARTS} times, expected it to end by itself; is there enough memory? Read {log}.")


def _count(stats: Path) -> int:
    try:
        return int(json.loads(stats.read_text())["count"])
    except ValueError:
        return 0  # being written


def _answers(urls: list[str], state: Mapping[str, Row]) -> dict[str, Row]:
    missing = [url for url in urls if url not in state]
    if missing:
        raise LaunchError(f"Found no answer for {len(missing)} addresses (the first is {missing[0]}), expected one each; run the same command again.")
    return {url: state[url] for url in urls}


def _refused(url: str, said: str, at: datetime) -> Row:
    return {
        "url": url, "status": "optout_header", "detail": "its page opts out", "rights_rule": "page", "rights_evidence": said,
        "fetched_at": at.isoformat(timespec="milliseconds"),
    }  # fmt: skip


def _obey(records: Mapping[str, Row], ledger: Ledger) -> None:
    """A picture that was taken down does not come back under another address; what it looked like, and what its site said, is not kept either."""
    stones = tombstones.load(home())
    if not stones:
        return
    for record in records.values():
        if record["status"] == "ok" and (takedown := stones.hit(record)):
            record.update(status="taken_down", detail=f"takedown {takedown}", sha256="", md5="", phash="", pdq="", pdq_quality=None)
    ledger.todo.unlink(missing_ok=True)  # all of it is done
    for file in sorted(ledger.origins.iterdir()):
        if scan.covered(file.read_text(), stones):
            file.unlink()


def _block(fetched: Mapping[str, Row], lists: HashLists) -> None:
    """Lists grow: what was fetched before is looked up again."""
    for record in fetched.values():
        found = lists.blocked(record["sha256"], record.get("md5", ""), record["pdq"]) if record["status"] == "ok" else None
        if found is not None:
            record.update(status="blocked_hash", detail=f"its bytes are on the list {found!r}", sha256="", md5="", phash="", pdq="", pdq_quality=None)


def _write(pairs: list[Row], fetched: Mapping[str, Row], stored: Stored, out: Path, config: Download) -> list[Row]:
    """Tars and status table; one row per pair."""
    rows = [_status(row, check_hash(row, fetched[row["url"]], config.verify_hash)) for row in pairs]
    good = [(row, pair) for row, pair in zip(rows, pairs, strict=True) if row["status"] == "ok"]
    if not good:
        said = dict(Counter(row["status"] for row in rows).most_common(5))
        if all(passing(record, config.retry) for record in fetched.values()):
            raise ServiceError(f"Found no picture among {len(rows)} pairs ({said}), expected at least one; all of that may pass: run the same command later.")
        raise NothingLeft(f"Found no picture among {len(rows)} pairs ({said}), expected at least one; look at the statuses.")
    for begin in range(0, len(good), config.shard_size):
        name = f"{begin // config.shard_size:05d}.tar"
        with TarWriter(out / name) as tar:
            for row, pair in good[begin : begin + config.shard_size]:
                tar.add(f"{row['uid']}.jpg", stored.read(row["url"]))
                tar.add(f"{row['uid']}.json", _sidecar(row, pair))
                row["shard"] = name
    pq.write_table(pa.Table.from_pylist(rows, schema=DOWNLOADS), out / "status.parquet")
    return rows


def _status(pair: Row, record: Row) -> Row:
    ok = record["status"] == "ok"
    row = {name: record.get(name) or None for name in FETCHED}
    sizes = {"width": record.get("stored_width"), "height": record.get("stored_height")} if ok else {"width": None, "height": None}
    original = {"original_width": record.get("width") or None, "original_height": record.get("height") or None}
    return {"uid": pair["uid"], **row, **sizes, **original, "shard": None}


def _sidecar(row: Row, pair: Row) -> bytes:
    names = ("uid", "url", "sha256", "mime", "width", "height", "original_width", "original_height", "phash", "pdq", "pdq_quality")
    more = {name: pair[name] for name in ("caption", "lang", "page_url", "source")}
    return json.dumps({**{name: row[name] for name in names}, **more}, sort_keys=True, ensure_ascii=False).encode()
