"""Tracking: what a stage says reaches MLflow, and MLflow's troubles do not reach the stage."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm_core import track
from vlm_core.errors import ServiceError
from vlm_core.track import CsvTracker, MlflowTracker, from_environment

SNAPSHOT = "0123456789abcdef" * 2 + ".dir"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def run(uri: str) -> Iterator[MlflowTracker]:
    tracker = MlflowTracker(uri, "pretrain/tiny")
    yield tracker
    tracker.close()


def test_a_stage_that_says_nothing_leaves_no_run_behind(uri: str) -> None:
    tracker = MlflowTracker(uri, "reused")
    tracker.close()
    client = track._client(uri)
    assert not client.search_runs([track._experiment(client)], "attributes.run_name = 'reused'")


def test_metrics_keep_their_steps_and_names_that_mlflow_refuses_are_respelt(run: MlflowTracker) -> None:
    for step in (0, 5, 10):
        run.metrics({"loss": 1 - step / 10, "held/R@1": step / 10}, step=step)
    assert run.flush()
    history = run.client.get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (5, 0.5), (10, 0.0)]
    assert run.client.get_run(run.run_id).data.metrics["held/R_at_1"] == 1.0


def test_more_values_than_one_request_takes_arrive_all(run: MlflowTracker) -> None:
    run.params({f"p{i}": i for i in range(250)})
    run.metrics({f"m{i}": float(i) for i in range(2500)})
    assert run.flush()
    data = run.client.get_run(run.run_id).data
    assert len(data.params) == 250
    assert {name: value for name, value in data.metrics.items() if name.startswith("m")} == {f"m{i}": float(i) for i in range(2500)}


def test_a_run_is_found_by_the_hash_of_the_snapshot_it_read(run: MlflowTracker) -> None:
    run.dataset("shards", SNAPSHOT, "data/shards", "pretrain")
    found = run.client.search_runs([track._experiment(run.client)], f"dataset.digest = '{SNAPSHOT}'")
    assert [item.info.run_id for item in found] == [run.run_id]
    (entry,) = found[0].inputs.dataset_inputs
    assert (entry.dataset.name, [tag.value for tag in entry.tags]) == ("shards", ["pretrain"])


def test_children_are_nested_and_carry_the_run_of_dagster(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, _ = track.parent_run(uri, "dagster-run-1", "data_to_model")
    assert track.parent_run(uri, "dagster-run-1", "data_to_model")[0] == parent
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("VLM_MLFLOW_PARENT", parent)
    monkeypatch.setenv("VLM_DAGSTER_RUN", "dagster-run-1")
    verb = from_environment("transfer", "coop")
    assert isinstance(verb, MlflowTracker)
    seed = verb.child("seed 1")
    seed.metrics({"acc": 0.5})
    seed.close()
    verb.close()
    tags = [tracker.client.get_run(tracker.run_id).data.tags for tracker in (verb, seed)]
    assert [tag["mlflow.parentRunId"] for tag in tags] == [parent, verb.run_id]
    assert [tag["dagster/run_id"] for tag in tags] == ["dagster-run-1"] * 2
    assert verb.name == "transfer/coop"


def test_runs_that_a_killed_process_left_open_are_closed_by_their_dagster_run(uri: str) -> None:
    left, other = (MlflowTracker(uri, name, tags={track.DAGSTER_RUN: name}) for name in ("killed", "alive"))
    left.tags({"a": "b"})
    other.tags({"a": "b"})
    assert track.open_runs(uri)["killed"] == 1
    assert track.end_runs(uri, "killed", "FAILED") == 1
    assert track.end_runs(uri, "killed", "FAILED") == 0
    statuses = [left.client.get_run(tracker.run_id).info.status for tracker in (left, other)]
    assert statuses == ["FAILED", "RUNNING"]
    other.close()


@pytest.mark.fault("F7")
def test_metrics_wait_while_the_server_is_away_and_arrive_when_it_is_back(run: MlflowTracker, capsys: pytest.CaptureFixture[str]) -> None:
    run.metrics({"loss": 1.0}, step=1)
    run.flush()
    real = run.client

    class Away:
        def log_batch(self, *args: object, **kwargs: object) -> None:
            raise ConnectionError("refused")

    run.client = Away()
    run.metrics({"loss": 0.5}, step=2)
    assert not run.flush()
    assert "did not take 1 metrics (ConnectionError); kept for later" in capsys.readouterr().err
    run.client = real
    assert run.flush()
    assert [metric.step for metric in real.get_metric_history(run.run_id, "loss")] == [1, 2]


def test_an_address_where_nothing_answers_is_one_sentence() -> None:
    with pytest.raises(ServiceError, match=r"Found no MLflow server at http://127\.0\.0\.1:9 .*start it with 'make up'"):
        MlflowTracker("http://127.0.0.1:9", "x").tags({"a": "b"})


def test_without_mlflow_metrics_are_rows_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert from_environment("shard", "x") is None
    tracker = CsvTracker(tmp_path / "metrics.csv")
    tracker.child("seed 1").metrics({"acc": 0.25}, step=3)
    (row,) = (tmp_path / "metrics.csv").read_text().splitlines()
    assert row.split(",")[1:] == ["seed 1", "3", "acc", "0.25"]
