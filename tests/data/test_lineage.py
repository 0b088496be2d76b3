"""From any sample to the models that saw it and back, with real runs of `vlm shard`, and bytes out of a real DVC cache."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_world import write_inputs
from vlm_core import stage as stages
from vlm_core.cli import main
from vlm_core.data.lineage.catalog import TABLES, append, open_catalog
from vlm_core.data.lineage.diff import diff
from vlm_core.data.config import Shard
from vlm_core.data.shards.shards import read_index
from vlm_core.run import run

TEACHER, STUDENT, READER, PACKAGED, CAPTIONER = (
    hashlib.sha256(name.encode()).hexdigest() for name in ("teacher", "student", "reader", "packaged", "captioner")
)
DVC = Path(sys.executable).parent / "dvc"


class World(NamedTuple):
    root: Path
    a: Path  # 60 samples; the teacher and the captioner learnt on it
    b: Path  # 90 samples, other rewrites; the student learnt on its train split
    c: Path  # 90 samples with captions written by the captioner; the reader learnt on it
    snapshot: dict[str, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three snapshots and five models, one of them from a package."""
    root = tmp_path_factory.mktemp("lineage")
    before = os.environ.get("VLM_HOME")
    os.environ["VLM_HOME"] = str(root / "home")
    try:
        snapshots = {}
        for name, n, generator in (("a", 60, "smollm2"), ("b", 90, "smollm2"), ("c", 90, "captioner")):
            inputs = write_inputs(root / "in" / name, n)
            captions = pq.read_table(inputs["captions"] / "captions.parquet")
            place = captions.column_names.index("generator")
            pq.write_table(captions.set_column(place, "generator", pa.array([generator] * len(captions))), inputs["captions"] / "captions.parquet")
            snapshots[name] = run("shard", Shard(held_out=0.3, samples_per_shard=12), inputs, root / name).data_version
    finally:
        os.environ.pop("VLM_HOME") if before is None else os.environ.update(VLM_HOME=before)
    remember(root, snapshots)
    return World(root, root / "a", root / "b", root / "c", snapshots)


def remember(root: Path, snapshots: dict[str, str]) -> None:
    """What the verbs of the other stages append."""

    def put(table: str, *rows: dict[str, Any]) -> None:
        append(root / "home" / "catalog", table, pa.Table.from_pylist(list(rows), schema=TABLES[table]), f"other-{table}")

    pairs = pq.read_table(root / "in" / "b" / "pairs" / "pairs.parquet")
    status = pq.read_table(root / "in" / "b" / "images" / "status.parquet")
    dropped = {"uid": "d" * 32, "url": "http://emoji.demo.test/tiny.png", "caption": "tiny", "source": "demo"}
    put("pairs", *pairs.to_pylist(), dropped)
    put("downloads", *status.to_pylist(), {**dropped, "status": "ok", "sha256": "f" * 64, "width": 2, "height": 2})
    put("decisions", *({"seq": 1, "uid": uid, "rule": "words", "keep": True, "reason": "ok"} for uid in pairs["uid"].to_pylist()),
        {"seq": 1, "uid": "d" * 32, "rule": "words", "keep": True, "reason": "ok", "score": 2.0, "threshold": 1.0},
        {"seq": 2, "uid": "d" * 32, "rule": "min_side", "keep": False, "reason": "too_small", "score": 2.0, "threshold": 16.0, "detail": "2x2"})  # fmt: skip
    put("models",
        {"model_id": TEACHER, "name": "clip_tiny", "role": "pretrained", "snapshot_md5": snapshots["a"]},
        {"model_id": STUDENT, "name": "small", "role": "student", "snapshot_md5": snapshots["b"]},
        {"model_id": READER, "name": "reader", "role": "pretrained", "snapshot_md5": snapshots["c"]},
        {"model_id": CAPTIONER, "name": "captioner", "role": "pretrained", "snapshot_md5": snapshots["a"]},
        {"model_id": PACKAGED, "name": "minilm", "role": "packaged", "snapshot_md5": ""})  # fmt: skip
    put(
        "model_parents",
        {"model_id": STUDENT, "parent_model_id": TEACHER, "relation": "teacher"},
        {"model_id": TEACHER, "parent_model_id": PACKAGED, "relation": "initial"},
    )
    at = datetime(2026, 1, 1, tzinfo=UTC)
    put("promotions", {"model_id": TEACHER, "name": "vlm-base", "version": "1", "alias": "champion", "at": at},
        {"model_id": READER, "name": "vlm-base", "version": "2", "alias": "champion", "at": at + timedelta(days=1)})  # fmt: skip


@pytest.fixture(autouse=True)
def _home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(world.root / "home"))


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["lineage", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["lineage", *words]) == 20
    return capsys.readouterr().err


def train(path: Path) -> set[str]:
    return set(read_index(path, "train")["uid"].to_pylist())


# ---------------------------------------------------------------- why


def test_why_tells_the_whole_trail_of_a_kept_sample(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in read_index(world.b, "train").to_pylist() if row["uid"] in train(world.a))
    answer = ask(capsys, "why", row["uid"][:12])
    [source] = answer["sample"]
    assert source["uid"] == row["uid"]
    assert source["page_url"].startswith("http://photos.demo.test/page")
    assert (source["licence"], source["status"]) == ("CC0", "ok")
    assert answer["fate"] == [{"kept": True, "reason": "ok", "last_rule": "words"}]
    assert {s["snapshot_md5"] for s in answer["snapshots"]} == set(world.snapshot.values())
    found = next(s for s in answer["snapshots"] if s["snapshot_md5"] == world.snapshot["b"])
    assert (found["shard"], found["key"], found["split"]) == (row["shard"], row["key"], "train")
    assert found["shard_md5"] == stages.file_md5(world.b / row["shard"])
    assert {(m["name"], m["how"]) for m in answer["models"]} == {
        ("clip_tiny", "direct"), ("captioner", "direct"), ("small", "direct"), ("small", "teacher"), ("reader", "direct"), ("reader", "captions"),
    }  # fmt: skip


def test_why_says_which_rule_dropped_a_sample_and_by_what_number(capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "why", "d" * 32)
    assert answer["fate"] == [{"kept": False, "reason": "too_small", "last_rule": "min_side"}]
    assert [(d["rule"], d["keep"], d["score"], d["threshold"]) for d in answer["decisions"]] == [("words", True, 2.0, 1.0), ("min_side", False, 2.0, 16.0)]
    assert answer["snapshots"] == answer["models"] == []
    assert main(["lineage", "why", "d" * 32]) == 0
    text = capsys.readouterr().out
    assert "too_small" in text
    assert "2x2" in text


def test_why_answers_for_a_sample_that_only_a_shard_knows(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    report = run("shard", Shard(held_out=0.3), write_inputs(tmp_path / "in"), tmp_path / "shards")
    [row] = read_index(tmp_path / "shards").slice(0, 1).to_pylist()
    answer = ask(capsys, "why", row["uid"])
    assert [found["snapshot_md5"] for found in answer["snapshots"]] == [report.data_version]
    assert answer["sample"] == answer["models"] == []


# ---------------------------------------------------------------- samples


def test_the_samples_of_a_student_are_its_own_and_its_teachers_and_never_held_out(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = ask(capsys, "samples", "small", "--csv", str(tmp_path / "all.csv"), "--limit", "3")
    assert answer["model"] == [{"model_id": STUDENT, "samples": len(train(world.a) | train(world.b))}]
    assert [(w["how"], w["snapshot_md5"], w["samples"]) for w in answer["ways"]] == [
        ("direct", world.snapshot["b"], len(train(world.b))), ("teacher", world.snapshot["a"], len(train(world.a))),
    ]  # fmt: skip
    assert len(answer["samples"]) == 3
    with (tmp_path / "all.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["uid"] for row in rows} == train(world.a) | train(world.b)
    assert len(rows) == len({row["uid"] for row in rows})
    assert all(row["url"].startswith("http://photos.demo.test/") for row in rows)


def test_a_model_is_found_by_folder_digits_alias_version_and_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"student")
    for name, expected in [
        (str(tmp_path), STUDENT),
        (STUDENT, STUDENT),
        (TEACHER[:8], TEACHER),
        ("vlm-base@champion", READER),
        ("vlm-base:1", TEACHER),
        ("captioner", CAPTIONER),
    ]:
        assert ask(capsys, "samples", name, "--limit", "0")["model"][0]["model_id"] == expected
    assert "the catalog knows: captioner" in refused(capsys, "samples", "nobody")
    assert "Found no models for 'vlm-base@latest'" in refused(capsys, "samples", "vlm-base@latest")


def test_a_model_of_packaged_weights_has_no_samples_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "samples", "minilm")["model"] == [{"model_id": PACKAGED, "samples": 0}]
    assert "Found no snapshot behind the model" in refused(capsys, "bytes", "minilm", "--out", "x")


# ---------------------------------------------------------------- models


def test_models_are_found_by_address_domain_picture_and_uid(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    only_b = sorted(train(world.b) - set(read_index(world.a)["uid"].to_pylist()))[0]
    source = next(row for row in pq.read_table(world.root / "in" / "b" / "pairs" / "pairs.parquet").to_pylist() if row["uid"] == only_b)
    picture = next(row["sha256"] for row in pq.read_table(world.root / "in" / "b" / "images" / "status.parquet").to_pylist() if row["uid"] == only_b)
    for words in (["--url", source["url"]], ["--sha256", picture.upper()], ["--uid", only_b]):
        answer = ask(capsys, "models", *words)
        assert {(m["name"], m["how"], m["samples"]) for m in answer["models"]} == {("small", "direct", 1), ("reader", "direct", 1)}
        assert (answer["selected"][0]["samples"], answer["selected"][0]["models"]) == (1, 2)
    for domain in ("demo.test", "photos.demo.test", "PHOTOS.demo.test"):
        answer = ask(capsys, "models", "--domain", domain)
        direct = {m["name"]: m["samples"] for m in answer["models"] if m["how"] == "direct"}
        n = {"a": len(train(world.a)), "b": len(train(world.b)), "c": len(train(world.c))}
        assert direct == {"clip_tiny": n["a"], "captioner": n["a"], "small": n["b"], "reader": n["c"]}
        assert {(m["name"], m["how"], m["samples"]) for m in answer["models"] if m["how"] != "direct"} == {
            ("small", "teacher", n["a"]),
            ("reader", "captions", n["a"]),
        }
    assert ask(capsys, "models", "--domain", "emoji.demo.test")["models"] == []


def test_a_selector_without_samples_or_two_of_them_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Found no sample with domain 'hotos.demo.test' in the catalog" in refused(capsys, "models", "--domain", "hotos.demo.test")
    assert "Found 2 of --url, --domain, --sha256, --uid, expected exactly one" in refused(capsys, "models", "--uid", "a", "--url", "b")
    assert "Found no sample of the catalog whose uid begins with 'zz'" in refused(capsys, "why", "zz")
    assert "ConfigError: Argument QUESTION: invalid choice" in refused(capsys, "who")


# ---------------------------------------------------------------- bytes


def test_bytes_come_back_from_the_live_folders_of_the_model_and_its_teacher(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = ask(capsys, "bytes", "small", "--out", str(tmp_path / "out"))
    assert {(row["snapshot_md5"], row["from"]) for row in answer["snapshots"]} == {(world.snapshot["a"], str(world.a)), (world.snapshot["b"], str(world.b))}
    for name in "ab":
        assert stages.data_version(tmp_path / "out" / world.snapshot[name]) == world.snapshot[name]


def test_bytes_come_back_from_the_dvc_cache_after_the_folder_is_gone_or_changed(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, home = tmp_path / "project", tmp_path / "home"
    shutil.copytree(world.root / "home", home)
    monkeypatch.setenv("VLM_HOME", str(home))
    project.mkdir()
    shutil.copytree(world.c, project / "shards")
    for words in (["init", "--no-scm", "-q"], ["config", "cache.dir", "../store"], ["add", "-q", "shards"]):
        subprocess.run([DVC, *words], cwd=project, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=True, capture_output=True)
    moved = world.c.with_name("c.away")
    world.c.rename(moved)
    monkeypatch.chdir(project)
    try:
        append(
            home / "catalog", "runs", pa.Table.from_pylist([{"run_id": "later", "output": world.snapshot["c"], "path": str(world.b)}]), "later"
        )  # a live folder with other bytes
        answer = ask(capsys, "bytes", READER[:10], "--out", "again")
        assert {(row["from"], row["how"]) for row in answer["snapshots"]} == {("DVC cache", "direct"), (str(world.a), "captions")}
        rebuilt = project / "again" / world.snapshot["c"]
        assert {p.name: p.read_bytes() for p in rebuilt.iterdir()} == {p.name: p.read_bytes() for p in moved.iterdir()}
        md5 = stages.file_md5(moved / "train-00000.tar")
        cached = tmp_path / "store" / "files" / "md5" / md5[:2] / md5[2:]
        cached.chmod(0o644)
        cached.write_bytes(b"rot")
        assert "BadManifest: Found bytes with the hash" in refused(capsys, "bytes", "reader", "--out", "third")
        assert not (project / "third" / world.snapshot["c"]).exists()
        cached.unlink()
        sentence = refused(capsys, "bytes", "reader", "--out", "third")
        assert sentence.startswith("MissingInput: Found no ")
        assert Path(sentence.split()[3].rstrip(",")).resolve() == cached
        monkeypatch.chdir(tmp_path)
        assert "MissingInput: Found no .dvc folder" in refused(capsys, "bytes", "reader", "--out", "third")
    finally:
        moved.rename(world.c)


def test_a_cache_that_points_outside_its_folder_is_refused(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cache = tmp_path / "md5"
    name = world.snapshot["c"]
    (cache / name[:2]).mkdir(parents=True)
    (cache / name[:2] / name[2:]).write_text(json.dumps([{"md5": "0" * 32, "relpath": "../escape"}]))
    moved = world.c.with_name("c.away")
    world.c.rename(moved)
    try:
        assert "Found the unsafe name '../escape'" in refused(capsys, "bytes", "reader", "--out", str(tmp_path / "o"), "--cache", str(cache))
    finally:
        moved.rename(world.c)


# ---------------------------------------------------------------- diff


def test_the_difference_of_two_snapshots_counts_what_came_and_went(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (set(read_index(path)["uid"].to_pylist()) for path in (world.a, world.b))
    answer = ask(capsys, "diff", world.snapshot["a"][:10], "small")
    counted = {(row["change"], row["reason"]): row["samples"] for row in answer["changes"]}
    assert counted == {("added", "not seen before"): len(b - a), ("unchanged", ""): len(a & b)}
    assert next(row["example"] for row in answer["changes"] if row["change"] == "added") in b - a
    back = ask(capsys, "diff", world.snapshot["b"], world.snapshot["a"])
    assert {(row["change"], row["reason"]): row["samples"] for row in back["changes"]} == {("removed", "no longer found"): 30, ("unchanged", ""): len(a & b)}


def test_every_change_between_two_snapshots_has_the_reason_that_made_it(tmp_path: Path) -> None:
    """One sample for each way to differ; all but the first four stay. dropped_later was dropped by the filter first and taken down afterwards."""
    catalog, noon = tmp_path / "catalog", datetime(2026, 1, 1, 12, tzinfo=UTC)
    a, b = ("1" * 32 + ".dir", "2" * 32 + ".dir")
    names = ["same", "moved", "picture", "captions", "record", "back", "new", "dropped", "dropped_later", "taken", "lost"]
    uid = {name: f"{number:032x}" for number, name in enumerate(names)}
    held = {"a": {*names} - {"back", "new"}, "b": {*names} - {"dropped", "dropped_later", "taken", "lost"}}
    rows = [
        {"shard_md5": f"{side}-{'heldout' if (name, side) == ('moved', 'b') else 'train'}", "uid": uid[name],
         "jpg_md5": f"{side if name == 'picture' else ''}j", "json_md5": f"{side if name in {'picture', 'captions', 'record'} else ''}n", "captions_md5": f"{side if name == 'captions' else ''}c"}
        for side, mine in held.items() for name in sorted(mine)
    ]  # fmt: skip
    judged = {"a": {"back": "too_small"}, "b": {"dropped": "clip_score_below", "dropped_later": "watermark", "lost": "", "taken": ""}}
    decisions = [
        {"seq": 1, "uid": uid[name], "rule": "r", "keep": reason == "", "reason": reason or "ok", "run_id": f"filter-{side}"}
        for side, said in judged.items() for name, reason in said.items() if name != "lost"
    ]  # fmt: skip
    tables = {
        "shard_samples": rows, "decisions": decisions, "takedown_uids": [{"takedown_id": "t", "uid": uid[name]} for name in ("dropped_later", "taken")],
        "shards": [{"shard_md5": f"{side}-{split}", "split": split, "bytes": 10**6} for side in "ab" for split in ("train", "heldout")],
        "snapshot_shards": [{"snapshot_md5": md5, "shard_md5": f"{side}-{split}"} for side, md5 in (("a", a), ("b", b)) for split in ("train", "heldout")],
        "snapshots": [{"snapshot_md5": md5, "run_id": f"shard-{side}"} for side, md5 in (("a", a), ("b", b))],
        "run_inputs": [{"run_id": f"shard-{side}", "name": "filtered", "ref": f"filtered-{side}"} for side in "ab"],
        "runs": [{"run_id": f"filter-{side}", "kind": "filter", "output": f"filtered-{side}", "ended_at": noon} for side in "ab"],
    }  # fmt: skip
    for table, some in tables.items():
        append(catalog, table, pa.Table.from_pylist(some), "r")
    found = {(row["change"], row["reason"]): row["example"] for row in diff(open_catalog(catalog), a, b)["changes"]}
    assert found == {
        ("unchanged", ""): uid["same"], ("moved to heldout", ""): uid["moved"], ("other picture", ""): uid["picture"], ("other captions", ""): uid["captions"],
        ("other record", ""): uid["record"], ("added", "before: too_small"): uid["back"], ("added", "not seen before"): uid["new"],
        ("removed", "clip_score_below"): uid["dropped"], ("removed", "watermark"): uid["dropped_later"], ("removed", "taken_down"): uid["taken"],
        ("removed", "no longer found"): uid["lost"],
    }  # fmt: skip


def test_models_of_a_site_are_those_of_every_picture_that_any_of_its_pages_shows(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Pages merged into one pair count, also where the picture lies elsewhere and another page is the first."""
    shutil.copytree(world.root / "home", tmp_path / "home")
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    shown, other = sorted(train(world.a) & train(world.b))[:2]
    pages = [{"page_url": f"https://{host}/post.html", "source": "demo", "place": ""} for host in ("first.test", "Blog.Second.test")]
    rows = [{"uid": shown, "url": "http://cdn.test/1.png", "page_url": pages[0]["page_url"], "pages": pages}, {"uid": other, "url": "http://cdn.test/2.png", "page_url": pages[0]["page_url"], "pages": pages[:1]}]
    append(tmp_path / "home" / "catalog", "pairs", pa.Table.from_pylist(rows, schema=pa.schema([TABLES["pairs"].field(name) for name in rows[0]])), "later")
    for words, samples in ((("--domain", "second.test"), 1), (("--domain", "first.test"), 2), (("--url", "https://blog.second.test/post.html"), 1), (("--url", "https://first.test/post.html"), 2), (("--url", "http://cdn.test/2.png"), 1)):
        answer = ask(capsys, "models", *words)
        assert answer["selected"][0]["samples"] == samples, words
        direct = {(row["name"], row["samples"]) for row in answer["models"] if row["how"] == "direct" and row["name"] in ("clip_tiny", "small")}
        assert direct == {("clip_tiny", samples), ("small", samples)}
    assert "Found no sample with domain 'cond.test'" in refused(capsys, "models", "--domain", "cond.test")
