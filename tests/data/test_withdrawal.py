"""Takedowns in the filter, at promotion, in pages as crawled; and how one ends."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from tests.data.filter_world import World
from vlm_core.cli import main
from vlm_core.data.crawl.page_store import PAGES
from vlm_core.data.filter.config import Filter
from vlm_core.data.lineage import tombstones
from vlm_core.data.lineage.catalog import append, ask, open_catalog
from vlm_core.data.lineage.takedown import behind
from vlm_core.data.lineage.tombstones import Tombstones
from vlm_core.errors import ConfigError
from vlm_core.run import run
from vlm_core.stage import Report

MODEL, SNAPSHOT = "a" * 64, "5" * 32 + ".dir"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def take(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["takedown", *words, "--json"]) == 0
    return str(json.loads(capsys.readouterr().out)["takedown"][0]["takedown_id"])


def test_the_filter_refuses_it_by_uid_address_and_look_and_lets_it_in_again_when_withdrawn(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    uids = [world.add(f"caption {number}", number, url=f"http://{'gone' if number == 1 else 'host'}.test/{number}.png") for number in range(6)]
    inputs = world.write(tmp_path / "in")
    rows = {row["uid"]: row for row in pq.read_table(inputs["images"] / "status.parquet").to_pylist()}

    def filtered() -> Report:
        return run("filter", Filter(), inputs, tmp_path / "filtered")

    assert (filtered().counts["kept"], filtered().reused) == (6, True)
    first = take(capsys, "--uid", uids[0])
    take(capsys, "--domain", "gone.test")
    take(capsys, "--pdq", f"{int(rows[uids[2]]['pdq'], 16) ^ 7:064x}", "--radius", "5")
    report = filtered()
    assert not report.reused
    assert (report.counts["kept"], report.counts["dropped.taken_down"]) == (3, 3)
    trail = pq.read_table(tmp_path / "filtered" / "decisions.parquet").to_pylist()
    assert [row["detail"] for row in trail if row["uid"] == uids[0]][-1] == first

    assert main(["takedown", "--withdraw", first[:12], "--reason", "the author agreed after all"]) == 0
    assert (filtered().counts["kept"], filtered().counts["dropped.taken_down"]) == (4, 2)
    assert uids[0] in pq.read_table(tmp_path / "filtered" / "kept.parquet")["uid"].to_pylist()


def test_a_withdrawal_is_a_row_more_and_the_same_may_be_taken_down_again(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uid = "0" * 32
    append(home / "catalog", "shard_samples", pa.table({"shard_md5": ["s"], "uid": [uid]}), "r")
    append(home / "catalog", "shards", pa.table({"shard_md5": ["s"], "split": ["train"]}), "r")
    append(home / "catalog", "snapshot_shards", pa.table({"snapshot_md5": [SNAPSHOT], "shard_md5": ["s"]}), "r")
    one = take(capsys, "--uid", uid)
    assert main(["takedown", "--withdraw", one, "--reason", "a mistake"]) == 0
    assert main(["takedown", "--withdraw", one, "--reason", "again"]) == 0
    con = open_catalog(home / "catalog")
    assert [(row["takedown_id"], row["reason"]) for row in ask(con, "SELECT * FROM withdrawals")] == [(one, "a mistake")]
    assert len(ask(con, "SELECT * FROM takedowns")) == len(ask(con, "SELECT * FROM revocations")) == 1  # nothing is erased
    assert ask(con, "SELECT * FROM revocations_now") == []
    assert tombstones.load(home) == Tombstones()
    capsys.readouterr()
    assert main(["lineage", "why", uid, "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["taken down"]
    assert (said["takedown_id"], said["withdrawn_because"]) == (one, "a mistake")
    two = take(capsys, "--uid", uid)
    assert two != one
    assert tombstones.load(home).hit({"uid": uid}) == two


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--withdraw", "f" * 32], "Found no --reason, expected why"),
        (["--withdraw", "f" * 32, "--reason", "x"], "Found no takedowns for 'ffffffffffffffffffffffffffffffff', expected one"),
        (["--withdraw", "f" * 32, "--reason", "x", "--uid", "0" * 32], "expected exactly one"),
    ],
)
def test_a_withdrawal_that_makes_no_sense_is_one_sentence(home: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["takedown", *words]) == 20
    assert said in capsys.readouterr().err


def lineage(home: Path) -> str:
    """A sample in a training shard of a snapshot that MODEL learnt, and `child` began with MODEL's weights."""
    uid, catalog, child = "1" * 32, home / "catalog", "c" * 64
    tables: dict[str, list[dict[str, Any]]] = {
        "shard_samples": [{"shard_md5": "s", "uid": uid}, {"shard_md5": "h", "uid": "2" * 32}], "shards": [{"shard_md5": "s", "split": "train"}, {"shard_md5": "h", "split": "heldout"}],
        "snapshot_shards": [{"snapshot_md5": SNAPSHOT, "shard_md5": name} for name in "sh"], "snapshots": [{"snapshot_md5": SNAPSHOT}],
        "models": [{"model_id": MODEL, "name": "base", "snapshot_md5": SNAPSHOT}, {"model_id": child, "name": "child", "snapshot_md5": ""}],
        "model_parents": [{"model_id": child, "parent_model_id": MODEL, "relation": "initial"}],
    }  # fmt: skip
    for table, rows in tables.items():
        append(catalog, table, pa.Table.from_pylist(rows), "r")
    return uid


def test_what_a_model_stands_on_is_found_through_its_parents_and_not_in_held_out_shards(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uid, child = lineage(home), "c" * 64
    assert behind(home, MODEL) == []
    take(capsys, "--uid", "2" * 32)  # held out: nobody learnt it
    assert behind(home, MODEL) == []
    takedown = take(capsys, "--uid", uid)
    assert [(row["takedown_id"], row["how"], row["samples"]) for row in behind(home, MODEL)] == [(takedown, "direct", 1)]
    assert [(row["value"], row["how"]) for row in behind(home, child)] == [(uid, "initial")]
    assert behind(home, "d" * 64) == []
    assert main(["takedown", "--withdraw", takedown, "--reason", "a mistake"]) == 0
    assert behind(home, MODEL) == []


PAGE = b'<html><body><img src="/taken.png" alt="a picture that was taken down"><img src="/other.png" alt="another picture"></body></html>'


def warc(pages: dict[str, bytes]) -> bytes:
    stream = BytesIO()
    writer = WARCWriter(stream, gzip=True)
    for url, content in pages.items():
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
        writer.write_record(writer.create_warc_record(url, "response", payload=BytesIO(content), http_headers=headers))
    return stream.getvalue()


def test_a_scan_reads_the_text_of_pages_as_crawled_and_names_them_apart(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    take(capsys, "--url", "http://a.test/taken.png")
    folder = tmp_path / "pages"
    folder.mkdir()
    pages = {"http://a.test/one.html": PAGE, "http://a.test/two.html": PAGE.replace(b"taken", b"fine"), "http://b.test/three.html": PAGE}
    blank = dict.fromkeys(PAGES.names, "") | {"http_status": 200, "status": "ok", "content_type": "text/html"}
    pq.write_table(
        pa.Table.from_pylist([{**blank, "url": url, "final_url": url, "html": html} for url, html in pages.items()], PAGES), folder / "pages.parquet"
    )
    append(home / "catalog", "runs", pa.table({"run_id": ["r"], "path": [str(folder)]}), "r")
    archive = tmp_path / "crawl.warc.gz"
    archive.write_bytes(warc(pages))

    capsys.readouterr()
    assert main(["takedown", "--scan", "--json", "--also", str(archive)]) == 0  # products hold nothing of it
    proof = json.loads(capsys.readouterr().out)
    assert proof["pages_as_crawled"] == 6
    assert {hit["path"]: hit["pages"] for hit in proof["pages_that_show_it"]} == dict.fromkeys(
        (str(folder / "pages.parquet"), str(archive)), ["http://a.test/one.html"]
    )
    assert proof["found"] == []
    assert main(["takedown", "--scan"]) == 0
    assert "1  pages as crawled in" in capsys.readouterr().out


def test_a_withdrawal_needs_the_catalog_and_says_which_takedowns_hold(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vlm_core.data.lineage.takedown import withdraw

    held = take(capsys, "--domain", "example.org")
    with pytest.raises(ConfigError, match=rf"these hold: {held[:12]} \(domain example.org\)"):
        withdraw(home, "abc", "why not")
