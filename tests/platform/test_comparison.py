"""The job `compare_pretraining` as the UI would launch it: its own settings in run config, MLflow on loopback, results in Dagster, on disk and in MLflow."""

from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from pipelines.definitions import defs
from pipelines.resources import Launcher
from tests.race.test_compare import CHANGES, EVALUATE
from tests.train.tiny import make_shards
from tests.train.transfer_world import labelled_set

RECIPES = ["clip_tiny", "siglip_tiny", "unicl_tiny"]
COMPARISON: dict[str, Any] = {"recipes": RECIPES, "samples": 320, "seeds": 2, "changes": CHANGES, "evaluate": EVALUATE}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A project with shards and test sets, as the main job leaves them."""
    make_shards(tmp_path / "shapes")
    labelled_set(tmp_path / "data" / "eval_sets")
    (tmp_path / "data" / "shards").symlink_to(tmp_path / "shapes" / "out", target_is_directory=True)
    return tmp_path


def launch(world: Path, job: str, asset: str, settings: dict[str, Any], uri: str = "", partition: str | None = None) -> dg.ExecuteInProcessResult:
    resolved = defs.resolve_job_def(job)
    with dg.DagsterInstance.ephemeral() as instance:
        return resolved.execute_in_process(
            run_config={"ops": {asset: {"config": settings}}}, resources={"launcher": Launcher(root=str(world), mlflow_uri=uri)},
            instance=instance, raise_on_error=False, partition_key=partition,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_recipes_and_two_seeds_go_through_the_job_and_a_second_launch_trains_nothing(
    world: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("VLM_HOME", str(world / "home"))
    result = launch(world, "compare_pretraining", "comparison", COMPARISON, mlflow_server)
    assert result.success
    (event,) = result.get_asset_materialization_events()
    found = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (found["models"], found["runs"], found["failed"]) == (3, 6, 0)
    assert "data:image/png;base64," in found["Differences from the base with 95 % intervals"]
    table = [record.data for record in event.materialization.metadata["heldout matching auc"].records]
    assert {row["model"] for row in table} == set(RECIPES)
    assert {row["seeds"] for row in table} == {2}
    rows = pq.read_table(world / "data" / "comparison" / "leaderboard.parquet").to_pylist()
    assert {row["model"]: row["value"] for row in rows if row["suite"] == "heldout/matching/auc"} == {row["model"]: row["value"] for row in table}

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("vlm").experiment_id
    runs = client.search_runs([experiment], f"tags.`dagster/run_id` = '{result.run_id}'")
    (mine,) = [run for run in runs if run.info.run_name.startswith("compare-pretraining")]
    children = [run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId") == mine.info.run_id]
    assert sorted(children) == sorted([f"pretrain/{name}" for name in RECIPES for _ in range(2)] + ["evaluate"] * 6)
    assert {name for name in mine.data.metrics if name.startswith("gain/heldout/matching/auc/")} == {
        f"gain/heldout/matching/auc/{name}" for name in RECIPES[1:]
    }
    assert [file.path for file in client.list_artifacts(mine.info.run_id) if file.path.endswith(".md")] == ["leaderboard.md"]

    again = launch(world, "compare_pretraining", "comparison", COMPARISON, mlflow_server)
    (event,) = again.get_asset_materialization_events()
    assert event.materialization.metadata["parts_reused"].value == 12
    assert pq.read_table(world / "data" / "comparison" / "leaderboard.parquet").to_pylist() == rows


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_recipe_is_trained_as_a_partition_and_a_papers_size_is_refused_with_what_it_needs(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_HOME", str(world / "home"))
    changes = {"changes": [*CHANGES, "fit.samples=128"]}
    made = launch(world, "pretrain_recipes", "pretrained_recipes", changes, partition="unicl_tiny")
    assert made.success
    (event,) = made.get_asset_materialization_events()
    assert event.materialization.partition == "unicl_tiny"
    assert event.materialization.metadata["recipe"].value == "unicl_tiny"
    assert (world / "data" / "pretrained_recipes" / "unicl_tiny" / "model.safetensors").exists()

    refused = launch(world, "pretrain_papers", "pretrained_papers", {}, partition="clip_vit_b32")
    assert not refused.success
    (failed,) = [event for event in refused.all_events if event.is_step_failure]
    said = failed.step_failure_data.user_failure_data.description
    assert said.startswith("Incompatible: Found 256 training pairs in the snapshot data/shards for loader.batch_size 32768 (512 on each of 64 processes)")
