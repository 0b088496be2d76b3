"""Fragments are whole or absent, many processes may append, and the views say what a person computes by hand."""

import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlm_core.data.lineage.catalog import TABLES, VIEWS, append, open_catalog
from vlm_core.errors import SchemaMismatch

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def put(root: Path, table: str, run_id: str, *rows: dict[str, Any]) -> None:
    append(root, table, pa.Table.from_pylist(list(rows)), run_id)


def ask(root: Path, query: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = open_catalog(root).execute(query).fetchall()
    return found


def test_an_empty_catalog_has_every_table_and_view_with_its_columns(tmp_path: Path) -> None:
    con = open_catalog(tmp_path / "nothing yet, it's new")
    for name in [*TABLES, *VIEWS]:
        assert con.execute(f"SELECT count(*) FROM {name}").fetchall() == [(0,)]
    columns = [row[0] for row in con.execute("DESCRIBE decisions").fetchall()]
    assert columns == [*TABLES["decisions"].names, "run_id"]
    assert not list(tmp_path.iterdir()), "asking writes nothing"


def test_fragments_with_fewer_or_more_columns_and_other_integer_widths_are_read_together(tmp_path: Path) -> None:
    put(tmp_path, "downloads", "r1", {"uid": "a", "url": "http://x/a", "status": "ok"})
    append(tmp_path, "downloads", pa.table({"uid": ["b"], "http_status": pa.array([404], pa.int64()), "taste": ["sweet"]}), "r2")
    assert ask(tmp_path, "SELECT uid, url, http_status, taste, run_id FROM downloads ORDER BY uid") == [
        ("a", "http://x/a", None, None, "r1"),
        ("b", None, 404, "sweet", "r2"),
    ]


def test_a_second_fragment_of_one_run_does_not_replace_the_first(tmp_path: Path) -> None:
    one, two = (append(tmp_path, "pairs", pa.table({"uid": [uid]}), "r") for uid in "ab")
    assert (one.name, two.name) == ("r-0.parquet", "r-1.parquet")
    assert ask(tmp_path, "SELECT uid FROM pairs ORDER BY uid") == [("a",), ("b",)]


def test_unknown_tables_and_rows_without_their_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match="Found the catalog table 'decision', expected a known one; did you mean 'decisions'?"):
        put(tmp_path, "decision", "r", {"uid": "a"})
    with pytest.raises(SchemaMismatch, match="Found no column 'model_id' in rows for the catalog table 'metrics' .value., expected it"):
        put(tmp_path, "metrics", "r", {"value": 1.0})


def test_nobody_can_reach_the_file_system_or_a_network_extension_by_settings(tmp_path: Path) -> None:
    import duckdb

    con = open_catalog(tmp_path)
    assert con.execute("SELECT current_setting('autoinstall_known_extensions'), current_setting('autoload_known_extensions')").fetchall() == [(False, False)]
    with pytest.raises(duckdb.Error, match="lock"):
        con.execute("SET autoinstall_known_extensions = true")


APPEND = """
import sys, pathlib, pyarrow as pa
from vlm_core.data.lineage.catalog import append
for number in range(200):
    append(pathlib.Path(sys.argv[1]), "pairs", pa.table({"uid": [f"{sys.argv[2]}-{number}-{k}" for k in range(500)]}), f"{sys.argv[2]}-{number}")
    print(number, flush=True)
"""


def test_readers_see_whole_fragments_only_while_processes_write_and_die(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(tmp_path), name], stdout=subprocess.PIPE, text=True) for name in ("w1", "w2")]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    for _ in range(5):
        assert {count for (count,) in ask(tmp_path, "SELECT count(*) FROM pairs GROUP BY run_id")} == {500}
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert {count for (count,) in ask(tmp_path, "SELECT count(*) FROM pairs GROUP BY run_id")} == {500}


def test_of_several_runs_over_the_same_samples_the_last_one_counts(tmp_path: Path) -> None:
    for hours, run_id, keep, uids in ((0, "z-first", True, "ab"), (1, "a-second", False, "a")):
        put(tmp_path, "runs", run_id, {"run_id": run_id, "kind": "filter", "ended_at": NOON + timedelta(hours=hours)})
        put(
            tmp_path, "decisions", run_id, *({"seq": 1, "uid": uid, "rule": "words", "keep": keep, "reason": "ok" if keep else "too_few_words"} for uid in uids)
        )
    assert ask(tmp_path, "SELECT uid, kept, reason FROM sample_fate ORDER BY uid") == [("a", False, "too_few_words"), ("b", True, "ok")]


def test_the_fate_of_a_sample_is_its_first_refusal_and_its_trail_is_in_order(tmp_path: Path) -> None:
    put(tmp_path, "decisions", "r", *(
        {"seq": seq, "uid": "a", "rule": rule, "keep": keep, "reason": reason, "score": 1.5} for seq, rule, keep, reason in
        [(30, "score", False, "clip_score"), (10, "words", True, "ok"), (20, "aspect", False, "aspect_ratio")]
    ))  # fmt: skip
    [(kept, reason, trail)] = ask(tmp_path, "SELECT kept, reason, trail FROM sample_fate")
    assert (kept, reason, [step["rule"] for step in trail]) == (False, "aspect_ratio", ["words", "aspect", "score"])


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://emoji.demo.test/a.png", "emoji.demo.test"), ("https://User:pw@Big.Example:8443/x?y@z", "big.example"),
        ("http://example.org?x=http://other", "example.org"), ("ftp://h/", "h"), ("mailto:a@b", ""),
    ],
)  # fmt: skip
def test_the_host_is_taken_from_the_address(tmp_path: Path, url: str, host: str) -> None:
    put(tmp_path, "pairs", "r", {"uid": "a", "url": url})
    assert ask(tmp_path, "SELECT host FROM sample_seen") == [(host,)]


def test_ancestry_follows_every_kind_of_parent_and_ends_in_a_circle(tmp_path: Path) -> None:
    put(tmp_path, "models", "r", *({"model_id": name, "name": name} for name in ("student", "teacher", "base", "x", "y")))
    put(tmp_path, "model_parents", "r", {"model_id": "student", "parent_model_id": "teacher", "relation": "teacher"},
        {"model_id": "teacher", "parent_model_id": "base", "relation": "initial"}, {"model_id": "x", "parent_model_id": "y", "relation": "initial"},
        {"model_id": "y", "parent_model_id": "x", "relation": "initial"})  # fmt: skip
    assert ask(tmp_path, "SELECT ancestor, depth, how FROM model_ancestry WHERE model_id = 'student' ORDER BY depth") == [
        ("student", 0, "direct"), ("teacher", 1, "teacher"), ("base", 2, "teacher > initial"),
    ]  # fmt: skip
    assert ask(tmp_path, "SELECT DISTINCT ancestor FROM model_ancestry WHERE model_id = 'x' ORDER BY 1") == [("x",), ("y",)]


def test_a_model_without_a_stated_snapshot_has_that_of_its_run_but_packaged_weights_have_none(tmp_path: Path) -> None:
    put(tmp_path, "snapshots", "r0", {"snapshot_md5": "5.dir"})
    put(tmp_path, "run_inputs", "r", {"run_id": "r", "name": "shards", "ref": "5.dir"}, {"run_id": "r", "name": "initial", "ref": "6.dir"})
    put(tmp_path, "models", "r", {"model_id": "mine", "name": "mine"})
    put(tmp_path, "models", "r", {"model_id": "packaged", "name": "minilm", "snapshot_md5": ""})
    assert ask(tmp_path, "SELECT * FROM model_snapshot") == [("mine", "5.dir")]


def test_a_snapshot_that_was_made_twice_lists_its_samples_once(tmp_path: Path) -> None:
    for run_id in ("r1", "r2"):
        put(tmp_path, "shards", run_id, {"shard_md5": "s", "split": "train"})
        put(tmp_path, "snapshot_shards", run_id, {"snapshot_md5": "5.dir", "shard_md5": "s", "relpath": "train-00000.tar"})
        put(tmp_path, "shard_samples", run_id, *({"shard_md5": "s", "uid": uid, "key": uid, "pos": 0} for uid in "ab"))
    assert ask(tmp_path, "SELECT uid, relpath, split FROM snapshot_samples ORDER BY uid") == [
        ("a", "train-00000.tar", "train"),
        ("b", "train-00000.tar", "train"),
    ]
