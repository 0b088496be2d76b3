"""A catalog whose fragments were merged answers as before, whatever killed the merge and whoever reads or writes meanwhile."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_world import write_inputs
from vlm_core import stage as stages
from vlm_core.data.config import CatalogCompact, Shard
from vlm_core.data.lineage import compact, tombstones
from vlm_core.data.lineage.catalog import TABLES, VIEWS, append, ask, fragments, open_catalog
from vlm_core.data.lineage.takedown import take_down, withdraw
from vlm_core.data.shards.shards import read_index
from vlm_core.errors import OutputBusy
from vlm_core.run import run

CONFIG = CatalogCompact(min_fragments=2, keep_s=0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of real runs: three snapshots, a takedown and its withdrawal, and tables whose fragments lack columns or have more."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    inputs = write_inputs(tmp_path / "in")
    for seed in range(3):
        run("shard", Shard(held_out=0.3, samples_per_shard=12, seed=seed, grow=False), inputs, tmp_path / "shards")
    uids = read_index(tmp_path / "shards")["uid"].to_pylist()
    stone = take_down(tmp_path / "home", "uid", uids[0])["takedown"][0]
    withdraw(tmp_path / "home", stone["takedown_id"], "a mistake")
    take_down(tmp_path / "home", "uid", uids[1])
    catalog = tmp_path / "home" / "catalog"
    page = {"page_url": "http://a.test/", "source": "s", "place": None}
    append(catalog, "pairs", pa.table({"uid": uids[:5], "url": ["http://a.test/1.png"] * 5, "more": [1] * 5}), "one")
    append(catalog, "pairs", pa.Table.from_pylist([{"uid": uid, "url": None, "pages": [page]} for uid in uids[3:9]]), "two")
    append(catalog, "pairs", pa.table({"uid": uids[9:10], "pages": pa.nulls(1)}), "three")
    return tmp_path / "home"


def answers(home: Path) -> dict[str, list[str]]:
    """Every row of every table and view, as text and sorted."""
    con = open_catalog(home / "catalog")
    return {name: sorted(json.dumps(row, default=str, sort_keys=True) for row in ask(con, f"SELECT * FROM {name}")) for name in (*TABLES, *VIEWS)}


def merge_all(home: Path) -> int:
    return sum(compact.merge(home / "catalog" / name, CONFIG) for name in TABLES)


def test_every_table_and_view_answers_as_before_from_fewer_and_sorted_fragments(home: Path, tmp_path: Path) -> None:
    before, stones = answers(home), tombstones.load(home)
    report = run("catalog-compact", CONFIG, {}, tmp_path / "compacted")
    assert report.counts["merged"] > 10
    assert {name: len(fragments(home / "catalog" / name)) for name in ("pairs", "shard_samples", "takedowns")} == {"pairs": 1, "shard_samples": 1, "takedowns": 1}
    after = answers(home)
    assert {name for name in before if before[name] != after[name]} == {"runs", "run_order"}, "its own run is new"
    assert set(before["runs"]) < set(after["runs"])
    assert tombstones.load(home) == stones
    uids = pq.read_table(fragments(home / "catalog" / "shard_samples")[0])["uid"].to_pylist()
    assert uids == sorted(uids)
    assert len(uids) == 180
    again = run("catalog-compact", CONFIG, {}, tmp_path / "compacted")
    assert again.counts["removed"] == report.counts["merged"]
    assert answers(home)["pairs_now"] == before["pairs_now"]


def test_what_is_appended_later_counts_also_under_the_name_of_a_fragment_that_was_merged_and_removed(home: Path) -> None:
    catalog = home / "catalog"
    for number in range(2):
        append(catalog, "takedown_uids", pa.table({"takedown_id": ["t"], "uid": [str(number)]}), "t")
    merge_all(home)
    assert compact.sweep(catalog / "takedown_uids", 0) >= 2
    append(catalog, "takedown_uids", pa.table({"takedown_id": ["t"], "uid": ["2"]}), "t")
    rows = ask(open_catalog(catalog), "SELECT uid FROM takedown_uids WHERE takedown_id = 't' ORDER BY uid")
    assert [row["uid"] for row in rows] == ["0", "1", "2"]
    merge_all(home)
    assert len(ask(open_catalog(catalog), "SELECT uid FROM takedown_uids WHERE takedown_id = 't'")) == 3


@pytest.mark.parametrize(("where", "calls"), [("write_json", 1), ("write_json", 3), ("rename", 1), ("rename", 4), ("unlink", 1), ("unlink", 3)])
def test_a_kill_at_any_step_leaves_every_answer_as_it_was_and_the_next_run_goes_on(home: Path, where: str, calls: int) -> None:
    before = answers(home)
    if (child := os.fork()) == 0:
        done = 0

        def dies(real: Any) -> Any:
            def step(*args: Any, **more: Any) -> Any:
                nonlocal done
                done += 1
                if done == calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            return step

        if where == "write_json":
            stages.write_json = dies(stages.write_json)
        else:
            setattr(Path, where, dies(getattr(Path, where)))
        merge_all(home)
        for name in TABLES:
            compact.sweep(home / "catalog" / name, 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert answers(home) == before
    merge_all(home)
    for _ in range(2):
        for name in TABLES:
            compact.sweep(home / "catalog" / name, 0)
    assert answers(home) == before
    assert not list((home / "catalog").glob("*/.compact-*.tmp"))
    assert len(list((home / "catalog" / "shard_samples").glob("*.parquet"))) == 1


@pytest.mark.parametrize("round_", range(4))  # the names are random, and so is the order in which lists are swept
def test_what_was_merged_twice_before_anything_was_removed_never_comes_back(tmp_path: Path, round_: int) -> None:
    catalog = tmp_path / "catalog"
    for number in range(6):
        append(catalog, "takedown_uids", pa.table({"takedown_id": ["t"], "uid": [str(number)]}), f"r{number}")
        if number % 2:
            compact.merge(catalog / "takedown_uids", CONFIG)
    for _ in range(3):
        assert [row["uid"] for row in ask(open_catalog(catalog), "SELECT uid FROM takedown_uids ORDER BY uid")] == list("012345")
        compact.sweep(catalog / "takedown_uids", 0)
    assert len(list((catalog / "takedown_uids").iterdir())) <= 2


def test_a_reader_that_opened_the_catalog_before_goes_on_reading_and_only_one_compacts(home: Path, tmp_path: Path) -> None:
    con = open_catalog(home / "catalog")
    before = ask(con, "SELECT count(*) AS n FROM shard_samples")
    config = CONFIG.but("keep_s=3600")
    for _ in range(2):
        run("catalog-compact", config, {}, tmp_path / "compacted")
        assert ask(con, "SELECT count(*) AS n FROM shard_samples") == before
    with stages.lease(home / "catalog" / ".compact"), pytest.raises(OutputBusy):
        run("catalog-compact", config, {}, tmp_path / "other")
