"""Registration and promotion against a real MLflow store, with evaluations whose outcome is known."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlm_core.data.lineage.catalog import append, open_catalog
from vlm_core.data.lineage.takedown import take_down, withdraw
from vlm_core.errors import ConfigError, MissingInput
from vlm_core.evaluate.card import ProtocolCard
from vlm_core.evaluate.config import Promote
from vlm_core.evaluate.registry import rollback
from vlm_core.evaluate.results import Results
from vlm_core.run import run
from vlm_core.stage import Report
from vlm_core.track import MlflowTracker, Registry

N = 400
CONFIG = Promote(primary="heldout/matching/auc", resamples=1000)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    return uri


def model(folder: Path, name: str, weights: bytes) -> Path:
    """A model folder as far as the registry looks into it."""
    place = folder / name
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(weights)
    (place / "config.json").write_text(json.dumps({"recipe": name, "snapshot_md5": "5" * 32 + ".dir", "seed": 0}))
    (place / "card.md").write_text(f"# {name}\n")
    return place


def evaluation(folder: Path, name: str, right: int, *, guard: int = 300, shots: int | None = None) -> Path:
    """Per-sample results: the first `right` of 400 samples are correct."""
    results = Results(model=name, resamples=1000)
    ids = [f"{i:03d}" for i in range(N)]
    for dataset, count in (("heldout", right), ("emoji", guard)):
        card = ProtocolCard(task="matching", dataset=dataset, dataset_version="v1", split="heldout", split_sha256="s", n=N, shots=shots)
        results.per_sample(card, "auc", ids, (np.arange(N) < count).astype(float))
    place = folder / f"{name}-evaluation"
    place.mkdir(parents=True)
    results.write(place)
    return place


def promote(tmp_path: Path, store: str, name: str, right: int, **more: int) -> Report:
    folder = tmp_path / "made"
    inputs = {"model": model(folder, name, name.encode()), "evaluation": evaluation(folder, name, right, **more)}
    tracker = MlflowTracker(store, f"promote/{name}")
    report = run("promote", CONFIG, inputs, tmp_path / "out" / name, tracker, force=True)
    tracker.close()
    return report


def holders(store: str) -> dict[str, str]:
    registry = Registry(store)
    found = {alias: registry.holder("vlm-base", alias) for alias in ("champion", "challenger", "previous")}
    return {alias: version.tags["recipe"] for alias, version in found.items() if version is not None}


def test_the_first_measured_model_is_champion_and_its_folder_comes_back_byte_for_byte(tmp_path: Path, store: str) -> None:
    report = promote(tmp_path, store, "first", 200)
    assert report.counts == {"version": 1, "new": 1, "worse": 0, "promoted": 1}
    assert holders(store) == {"champion": "first", "challenger": "first"}
    registry = Registry(store)
    champion = registry.holder("vlm-base", "champion")
    assert champion is not None
    back = registry.fetch(champion, tmp_path / "back")
    assert (back / "model.safetensors").read_bytes() == b"first"
    assert sorted(path.name for path in back.iterdir()) == ["card.md", "config.json", "evaluation", "model.safetensors"]
    assert champion.tags["snapshot"] == "5" * 32 + ".dir"


def test_a_better_challenger_becomes_champion_and_a_worse_one_does_not(tmp_path: Path, store: str) -> None:
    promote(tmp_path, store, "first", 200)
    better = promote(tmp_path, store, "better", 240)  # 40 of 400 more, none fewer: the paired interval is above zero
    assert better.counts["promoted"] == 1
    assert holders(store) == {"champion": "better", "challenger": "better", "previous": "first"}
    worse = promote(tmp_path, store, "worse", 180)
    assert (worse.counts["promoted"], worse.counts["worse"]) == (0, 1)
    assert holders(store) == {"champion": "better", "challenger": "worse", "previous": "first"}
    (row,) = (row for row in worse.tables["challenger - champion"] if row["suite"] == "heldout/matching/auc")
    assert row["difference"] == pytest.approx(-60 / 400)


def test_a_gain_that_breaks_a_guard_is_not_promoted(tmp_path: Path, store: str) -> None:
    promote(tmp_path, store, "first", 200)
    report = promote(tmp_path, store, "greedy", 240, guard=240)
    assert report.counts["promoted"] == 0
    assert "guards lose more than 0.02: emoji/matching/auc" in report.tables["registry"][0]["reason"]


def test_results_under_another_protocol_card_are_refused_as_evidence(tmp_path: Path, store: str) -> None:
    promote(tmp_path, store, "first", 200)
    report = promote(tmp_path, store, "other", 400, shots=16)
    assert report.counts["promoted"] == 0
    assert "protocol cards that differ in shots" in report.tables["registry"][0]["reason"]


def test_the_same_bytes_are_registered_once(tmp_path: Path, store: str) -> None:
    promote(tmp_path / "a", store, "first", 200)
    again = promote(tmp_path / "b", store, "first", 200)
    assert again.counts == {"version": 1, "new": 0, "worse": 0, "promoted": 0}  # nothing moved: it was the champion before
    assert again.tables["registry"][0]["reason"] == "This version is the champion already."
    assert holders(store) == {"champion": "first", "challenger": "first"}
    assert len(Registry(store).versions("vlm-base")) == 1


def taken_down_after_training(tmp_path: Path, weights: bytes) -> str:
    """A sample in a training shard of the snapshot that the weights learnt is taken down; gives the takedown's id."""
    catalog, model_id = tmp_path / "home" / "catalog", hashlib.sha256(weights).hexdigest()
    rows: dict[str, dict[str, object]] = {
        "shard_samples": {"shard_md5": "s", "uid": "1" * 32}, "shards": {"shard_md5": "s", "split": "train"}, "snapshots": {"snapshot_md5": "5" * 32 + ".dir"},
        "snapshot_shards": {"snapshot_md5": "5" * 32 + ".dir", "shard_md5": "s"}, "models": {"model_id": model_id, "snapshot_md5": "5" * 32 + ".dir"},
    }  # fmt: skip
    for table, row in rows.items():
        append(catalog, table, pa.Table.from_pylist([row]), f"made-{model_id[:8]}")
    return str(take_down(tmp_path / "home", "uid", "1" * 32)["takedown"][0]["takedown_id"])


def test_a_model_that_learnt_what_was_taken_down_is_registered_and_not_promoted_unless_asked_for_or_withdrawn(tmp_path: Path, store: str) -> None:
    takedown = taken_down_after_training(tmp_path, b"first")
    report = promote(tmp_path, store, "first", 200)
    assert (report.counts["new"], report.counts["promoted"]) == (1, 0)
    said = report.tables["registry"][0]
    assert said["outcome"] == "refused"
    assert f"1 samples of uid {'1' * 32} (direct, takedown {takedown[:12]})" in said["reason"]
    assert holders(store) == {"challenger": "first"}

    inputs = {"model": tmp_path / "made" / "first", "evaluation": tmp_path / "made" / "first-evaluation"}
    report = run("promote", CONFIG.but("despite_takedowns=true"), inputs, tmp_path / "out" / "despite", MlflowTracker(store, "promote/despite"), force=True)
    assert report.counts["promoted"] == 1
    assert "Despite takedowns, as asked: it stands on 1 samples" in report.tables["registry"][0]["reason"]

    withdraw(tmp_path / "home", takedown, "a mistake")
    report = promote(tmp_path, store, "better", 240)
    assert (report.counts["promoted"], holders(store)["champion"]) == (1, "better")


def test_rollback_points_back_once_and_the_catalog_remembers_every_move(tmp_path: Path, store: str) -> None:
    promote(tmp_path, store, "first", 200)
    promote(tmp_path, store, "better", 240)
    assert rollback("vlm-base") == "vlm-base: version 1 is champion again (was 2)"
    assert rollback("vlm-base") == "vlm-base: version 1 is the champion already"
    assert holders(store)["champion"] == "first"
    moves = open_catalog(tmp_path / "home" / "catalog").execute('SELECT version, alias, decision FROM promotions ORDER BY "at"').fetchall()
    assert moves[-1] == ("1", "champion", "rolled back")
    assert ("2", "champion", "promoted") in moves
    assert ("1", "previous", "replaced") in moves


def test_metrics_of_a_registered_model_carry_their_dataset_and_card(tmp_path: Path, store: str) -> None:
    promote(tmp_path, store, "first", 200)
    registry = Registry(store)
    version = registry.holder("vlm-base", "champion")
    assert version is not None
    logged = registry.client.get_logged_model(version.model_id)
    metric = next(metric for metric in logged.metrics if metric.key == "heldout/matching/auc")
    assert (metric.value, metric.dataset_digest) == (0.5, "5" * 32 + ".dir")
    assert len(logged.tags["card/heldout/matching/auc"]) == 64
    assert registry.client.search_logged_models([logged.experiment_id], datasets=[{"dataset_name": "shards", "dataset_digest": "5" * 32 + ".dir"}])


def test_without_a_registry_or_without_weights_it_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    inputs = {"model": model(tmp_path, "m", b"w"), "evaluation": evaluation(tmp_path, "m", 200)}
    with pytest.raises(ConfigError, match="Found no MLFLOW_TRACKING_URI"):
        run("promote", CONFIG, inputs, tmp_path / "out")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(MissingInput, match="expected the weights of a model"):
        run("promote", CONFIG, inputs, tmp_path / "out")
