"""After a takedown no verb reads the old snapshot, unless a setting says so: real shards, the real verbs."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import ledger
from tests.data.small_world import write_inputs
from tests.train.tiny import SMALL, make_shards, small
from vlm_core.cli import main
from vlm_core.data.config import Shard
from vlm_core.data.lineage.catalog import append
from vlm_core.data.lineage.revoked import revoked
from vlm_core.data.lineage.takedown import take_down, withdraw
from vlm_core.data.shards.shards import read_index
from vlm_core.errors import TakenDown
from vlm_core.evaluate.config import Evaluate
from vlm_core.race.cells import cell, settings
from vlm_core.race.config import ComparePretraining
from vlm_core.run import VERBS, run
from vlm_core.stage import data_version
from vlm_core.train.config import Distil, Transfer

SHARD = Shard(held_out=0.3, samples_per_shard=12)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A platform of its own with one snapshot, made before anything was taken down."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run("shard", SHARD, write_inputs(tmp_path / "in"), tmp_path / "shards")
    return tmp_path


def take(root: Path, folder: str = "shards", row: int = 0) -> str:
    uid = read_index(root / folder, "train")["uid"][row].as_py()
    return str(take_down(root / "home", "uid", uid)["takedown"][0]["takedown_id"])


def test_training_refuses_the_old_snapshot_in_one_sentence_and_takes_the_new_one(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    takedown, uid = take(made), read_index(made / "shards", "train")["uid"][0].as_py()
    words = ["pretrain", "--recipe", "clip_tiny", *(word for change in SMALL for word in ("--set", change)), "--in", "shards=shards", "--out", "model"]
    assert main(words) == 20
    said = capsys.readouterr().err
    assert f"TakenDown: Found 'shards' of 'vlm pretrain', shards ({data_version(made / 'shards')[:12]}) with 1 samples" in said
    assert f"uid {uid} ({takedown[:12]}); expected nothing of the kind; run the job 'data'" in said
    assert "or set loader.despite_takedowns=true, which stays on record" in said
    assert not (made / "model").exists()
    run("shard", SHARD, {name: made / "in" / name for name in ("pairs", "images", "filtered", "captions")}, made / "shards")
    assert revoked(made / "home", "shards", made / "shards", data_version(made / "shards")) is None
    assert main([*words, "--dry-run"]) == 0


@pytest.mark.parametrize("verb", ["distil", "evaluate", "compare-pretraining"])
def test_every_other_verb_that_reads_pictures_of_shards_refuses_them_too(made: Path, verb: str) -> None:
    take(made)
    config = {"distil": Distil(), "evaluate": Evaluate(), "compare-pretraining": ComparePretraining()}[verb]
    (made / "other").mkdir()
    with pytest.raises(TakenDown, match="despite_takedowns=true"):
        run(verb, config, {name: made / ("shards" if name == "shards" else "other") for name in VERBS[verb].inputs}, made / "out")


def test_a_snapshot_that_training_mixes_in_is_looked_at_like_the_main_one(made: Path) -> None:
    shutil.copytree(made / "shards", made / "web")
    take(made)
    run("shard", SHARD, {name: made / "in" / name for name in ("pairs", "images", "filtered", "captions")}, made / "shards")
    mixed = small("loader.mix={web: {shards: web}}")
    with pytest.raises(TakenDown, match=r"Found 'loader.mix.web.shards' of 'vlm pretrain', web \("):
        run("pretrain", mixed, {"shards": made / "shards"}, made / "model")


def test_a_setting_lets_it_through_and_the_record_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    shards = make_shards(tmp_path / "shapes", copies=2)
    uid = read_index(shards, "train")["uid"][3].as_py()
    takedown = str(take_down(tmp_path / "home", "uid", uid)["takedown"][0]["takedown_id"])  # the catalog does not know this snapshot: its own index tells
    report = run("pretrain", small("fit.epochs=1", "loader.batch_size=32", "loader.despite_takedowns=true"), {"shards": shards}, tmp_path / "model")
    wanted = [{"input": "shards", "version": data_version(shards), "samples": 1, "takedowns": f"uid {uid} ({takedown[:12]})"}]
    assert report.provenance["despite_takedowns"] == wanted
    assert json.loads((tmp_path / "model.run" / "spec.json").read_text())["despite_takedowns"] == wanted
    assert json.loads((tmp_path / "model" / "config.json").read_text())["training"]["loader"]["despite_takedowns"] is True


def test_the_waiver_of_a_comparison_reaches_its_training_runs() -> None:
    for asked in (False, True):
        race = ComparePretraining(evaluate=Evaluate(despite_takedowns=asked))
        assert settings(race, cell(race, "clip_tiny", Path("shards")), 0, 100).flat()["loader.despite_takedowns"] is asked


def test_a_snapshot_that_only_the_catalog_marks_is_revoked_until_the_takedown_is_withdrawn(made: Path) -> None:
    version = data_version(made / "shards")
    stone = {"takedown_id": "7" * 32, "kind": "domain", "value": "x.test", "radius": 0, "reason": "asked"}
    append(made / "home" / "catalog", "takedowns", pa.Table.from_pylist([stone]), "t")
    append(made / "home" / "catalog", "revocations", pa.Table.from_pylist([{"snapshot_md5": version, "takedown_id": "7" * 32}]), "t")
    held = revoked(made / "home", "shards", made / "shards", version)
    assert held is not None
    assert (held.samples, held.takedowns) == (0, ["domain x.test (777777777777)"])
    assert [row["value"] for row in ledger.revoked(made / "home", version)] == ["x.test"]
    withdraw(made / "home", "7" * 32, "a mistake")
    assert revoked(made / "home", "shards", made / "shards", version) is None
    assert ledger.revoked(made / "home", version) == []


def test_test_sets_and_features_that_hold_a_picture_taken_down_by_its_bytes_are_refused(made: Path) -> None:
    sets = made / "eval_sets" / "emoji_groups"
    sets.mkdir(parents=True)
    (sets / "dataset.json").write_text("{}")
    pq.write_table(pa.table({"sha256": ["a" * 64, "b" * 64]}), sets / "table.parquet")
    inputs = {"features": made / "eval_sets", "model": made / "shards", "eval_sets": made / "eval_sets"}
    take_down(made / "home", "sha256", "b" * 64)
    with pytest.raises(TakenDown, match=r"Found 'eval_sets' of 'vlm transfer'.*run the job 'data' \(or the stage that makes it\)\.$"):
        run("transfer", Transfer(), inputs, made / "out")


def test_verify_says_that_a_whole_snapshot_is_revoked(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "shards"]) == 0
    assert "revoked" not in capsys.readouterr().out
    take(made)
    take(made, row=1)
    assert main(["verify", "shards"]) == 0
    assert "revoked: shards (" in (said := capsys.readouterr().out)
    assert "with 2 samples that were taken down" in said


def test_what_only_compares_and_what_leaves_it_out_itself_is_not_stopped(made: Path) -> None:
    take(made)
    assert VERBS["embed"].compared == ("trained_on", "eval_sets")
    assert all(VERBS[verb].obeys for verb in ("extract", "download", "filter", "shard", "eval-sets", "report"))
    report = run("shard", SHARD, {name: made / "in" / name for name in ("pairs", "images", "filtered", "captions")}, made / "shards")
    assert report.counts["dropped.taken_down"] == 1
