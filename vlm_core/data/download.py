"""Candidate pairs -> pictures, exactly one status for every pair. img2dataset works in a process of its own (`img2dataset_worker`).

OUT: status.parquet (schema DOWNLOADS, sorted by uid) and NNNNN.tar with <uid>.jpg and <uid>.json, sorted by uid, reproducible bytes.
A run that was killed goes on where it was: addresses that have an answer are not asked again.
"""

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from vlm_core.data import demo_web
from vlm_core.data.charts import bar_chart
from vlm_core.data.child import run_module
from vlm_core.data.crawl_config import Download
from vlm_core.data.ledger import Ledger, name_of
from vlm_core.data.pictures import contact_sheet
from vlm_core.data.sample import DOWNLOADS, STATUSES
from vlm_core.data.tar import TarWriter, members, read_member
from vlm_core.errors import ConfigError, LaunchError, MissingInput, NothingLeft, SchemaMismatch
from vlm_core.stage import PACKAGE, Report, Stage, write_json

if TYPE_CHECKING:
    from vlm_core.data import img2dataset_worker  # noqa: F401  runs in a process of its own; named here so that its code counts for reuse

Row = dict[str, Any]
RESTARTS, SHEET = 20, 64
FETCHED = ("url", "final_url", "status", "http_status", "detail", "bytes", "sha256", "mime", "phash", "pdq", "pdq_quality", "rights_rule", "rights_evidence")


def download(config: Download, stage: Stage) -> Report:
    """The verb. Raises NothingLeft when not one picture arrives."""
    pairs = _read_pairs(stage.input("pairs"))
    ledger = Ledger(stage.state)
    ledger.prepare()
    refused = {row["url"]: row["page_optout"] for row in pairs if row["page_optout"] and config.page_optouts}
    urls = {row["url"] for row in pairs}
    ledger.write_todo(sorted(urls - refused.keys()))
    if urls - refused.keys():
        with reachable(config) as reached:
            write_json(stage.state / "job.json", reached.model_dump(mode="json"))
            _fetch_all(config, stage, ledger, len(urls - refused.keys()))
    fetched = _by_url(ledger, urls, refused)
    _mark_placeholders(pairs, fetched, config.placeholder_captions)
    rows = _write(pairs, fetched, _Stored(ledger), stage.out, config.shard_size)
    report = _report(rows, fetched, stage)
    report.metrics["worker_peak_mb"] = ledger.peak_memory_mb()
    return report


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


def find(path: str) -> Path:
    """A file named in a recipe: from here, or else from the project."""
    given = Path(path)
    found = given if given.exists() else PACKAGE.parent / given
    if not path or not found.exists():
        raise MissingInput(f"Found nothing at {path!r}, expected a file or folder; give its path.")
    return found


def _read_pairs(folder: Path) -> list[Row]:
    file = folder / "pairs.parquet" if folder.is_dir() else folder
    if not file.is_file():
        raise MissingInput(f"Found no {file}, expected the table of candidate pairs; run 'vlm extract' first.")
    columns = ["uid", "url", "caption", "page_optout", "lang", "source", "page_url"]
    missing = [name for name in columns if name not in pq.read_schema(file).names]
    if missing:
        raise SchemaMismatch(f"Found no column {missing[0]!r} in {file}, expected the table that 'vlm extract' writes; run it first.")
    rows: list[Row] = pq.read_table(file, columns=columns).sort_by("uid").to_pylist()
    if not rows:
        raise NothingLeft(f"Found no candidate pair in {file}, expected at least one; look at the reasons in the report of 'vlm extract'.")
    return rows


def _fetch_all(config: Download, stage: Stage, ledger: Ledger, total: int) -> None:
    log = stage.state.parent / "img2dataset.log"
    log.unlink(missing_ok=True)

    said = -1

    def watch() -> None:
        nonlocal said
        done = sum(_count(file) for file in ledger.shards.glob("*_stats.json"))
        if done != said:
            said = done
            stage.progress("addresses done", done, total)

    for _ in range(RESTARTS):
        status = run_module("vlm_core.data.img2dataset_worker", stage.state / "job.json", log, config.python, watch, may_crash=True)
        if status == 0:
            return
        ledger.blame()
    raise LaunchError(f"Found the downloader killed {RESTARTS} times, expected it to end by itself; is there enough memory? Read {log}.")


def _count(stats: Path) -> int:
    try:
        return int(json.loads(stats.read_text())["count"])
    except ValueError:
        return 0  # being written


def _by_url(ledger: Ledger, urls: set[str], refused: dict[str, str]) -> dict[str, Row]:
    found: dict[str, Row] = {record["url"]: record for record in ledger.records()}
    for url, optout in refused.items():
        found[url] = {"url": url, "status": "optout_header", "detail": "its page opts out", "rights_rule": "page", "rights_evidence": optout}
    missing = sorted(urls - found.keys())
    if missing:
        raise LaunchError(f"Found no answer for {len(missing)} addresses (the first is {missing[0]}), expected one each; run the same command again.")
    return found


def _mark_placeholders(pairs: list[Row], fetched: dict[str, Row], most: int) -> None:
    """Equal bytes under many different captions are no picture of any of them."""
    captions: dict[str, set[str]] = defaultdict(set)
    for row in pairs:
        record = fetched[row["url"]]
        if record["status"] == "ok":
            captions[record["sha256"]].add(row["caption"])
    for record in fetched.values():
        many = len(captions.get(record.get("sha256", ""), ()))
        if record["status"] == "ok" and many >= most:
            record.update(status="placeholder", detail=f"one picture under {many} captions")


class _Stored:
    """Where img2dataset put each picture."""

    def __init__(self, ledger: Ledger) -> None:
        self.places: dict[str, tuple[Path, Any]] = {}
        for table in sorted(ledger.shards.glob("*.parquet")):
            rows = pq.read_table(table, columns=["key", "url", "status"]).to_pylist()
            urls = {f"{row['key']}.jpg": row["url"] for row in rows if row["status"] == "success"}
            tar = table.with_suffix(".tar")
            self.places.update({urls[member.name]: (tar, member) for member in members(tar) if member.name in urls})

    def read(self, url: str) -> bytes:
        tar, member = self.places[url]
        with tar.open("rb") as stream:
            return read_member(stream, member)


def _write(pairs: list[Row], fetched: dict[str, Row], stored: _Stored, out: Path, shard_size: int) -> list[Row]:
    """Tars and status table; one row per pair."""
    rows = [_status(row, fetched[row["url"]]) for row in pairs]
    good = [(row, pair) for row, pair in zip(rows, pairs, strict=True) if row["status"] == "ok"]
    if not good:
        counts = Counter(row["status"] for row in rows)
        raise NothingLeft(f"Found no picture among {len(rows)} pairs ({dict(counts.most_common(5))}), expected at least one; look at the statuses.")
    for begin in range(0, len(good), shard_size):
        name = f"{begin // shard_size:05d}.tar"
        with TarWriter(out / name) as tar:
            for row, pair in good[begin : begin + shard_size]:
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


def _report(rows: list[Row], fetched: dict[str, Row], stage: Stage) -> Report:
    counts, hosts = Counter(row["status"] for row in rows), defaultdict[str, Counter[str]](Counter)
    for row in rows:
        hosts[_host(row["url"])][row["status"]] += 1
    order = [status for status in STATUSES if counts[status]]
    bar_chart({status: counts[status] for status in order}, "pairs by status", stage.pictures / "statuses.png")
    contact_sheet(_sample(rows, stage.out), stage.pictures / "downloaded.png")
    times = [fetched[row["url"]].get("fetched_at") for row in rows]
    stamps = pa.array([datetime.fromisoformat(text) if text else None for text in times], pa.timestamp("us", tz="UTC"))
    table = pa.Table.from_pylist(rows, schema=DOWNLOADS).append_column("fetched_at", stamps)
    return Report(
        counts={"in": len(rows), "ok": counts["ok"], **{f"failed.{status}": counts[status] for status in order if status != "ok"}},
        metrics={"ok_share": counts["ok"] / len(rows), "fetched_mb": sum(record.get("bytes") or 0 for record in fetched.values()) / 1e6},
        tables={"status per host": [{"host": host, "pairs": found.total(), **{s: found[s] for s in order}} for host, found in sorted(hosts.items())]},
        pictures={"downloaded": "downloaded.png", "statuses": "statuses.png"},
        catalog={"downloads": table},
    )


def _sample(rows: list[Row], out: Path) -> list[tuple[bytes, str]]:
    """Pictures for the contact sheet: the same ones every time, spread over hosts."""
    chosen = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: name_of(row["url"]))[:SHEET]
    wanted = {f"{row['uid']}.jpg": row for row in chosen}
    found = []
    for shard in sorted({row["shard"] for row in chosen}):
        with (out / shard).open("rb") as stream:
            found += [(read_member(stream, member), _host(wanted[member.name]["url"])) for member in members(out / shard) if member.name in wanted]
    return found


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
