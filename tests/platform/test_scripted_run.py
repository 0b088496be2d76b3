"""The whole job as a program would drive it: services up, launch over GraphQL, read the answers back; and DVC without Dagster."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.ledger import lock_version
from tests.platform.conftest import ROOT, free_port
from vlm_core.switches import switch_off

pytestmark = pytest.mark.slow
SMALL = {"loader": {"batch_size": 32}, "fit": {"epochs": 2}}
PARAMS: dict[str, Any] = {
    "crawl": {"demo_crawl": {"max_pages": 40}},
    "embed": {"offline_embed": {"scorer": {"fit_pairs": 200, "fit_epochs": 5}}},
    "recaption": {"offline_recaption": {"rewrite": {"captions": 4}}},
    "eval-sets": {"demo_eval_sets": {"datasets": ["emoji_groups"]}},
    "pretrain": {"lit_packaged": SMALL, "clip_tiny": SMALL},
    "transfer": {"zero_shot": {"resamples": 1000}, "tip_adapter": {"resamples": 1000, "shots": [1], "seeds": [1, 2]}},
    "distil": {"clip_kd_tiny": {"student": SMALL}},
}


def project(folder: Path) -> Path:
    """A project folder of its own, with the whole code and a small choice of settings."""
    folder.mkdir()
    chosen = yaml.safe_load((ROOT / "params.yaml").read_text()) | PARAMS
    (folder / "params.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False))
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copytree(ROOT / "vlm_core", folder / "vlm_core", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "infra").symlink_to(ROOT / "infra")
    (folder / ".gitignore").write_text("/data/\n/.platform/\n")
    shutil.copy(ROOT / ".dvcignore", folder)
    for words in (["git", "init", "-q", "."], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc/config")
    return folder


class Platform:
    """The services over one project folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.ports = root, {name: free_port() for name in ("MLFLOW", "CODE", "DAGSTER", "SEARCH")}
        ports = {f"VLM_{name}_PORT": str(port) for name, port in self.ports.items()}
        self.environment = {**os.environ, **ports, "VLM_ROOT": str(root), "VLM_HOME": str(root / ".platform"), "PYTHONPATH": str(ROOT)}
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        self.environment.pop("DAGSTER_HOME", None)

    def run(self, *words: str) -> str:
        done = subprocess.run([sys.executable, "-W", "ignore", *words], cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['DAGSTER']}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert not found.get("errors"), found
        return found["data"]

    def launch(self) -> str:
        mutation = """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
        selector = {"repositoryLocationName": "vlm", "repositoryName": "__repository__", "jobName": "data_to_model"}
        answer = self.ask(mutation, p={"selector": selector, "mode": "default", "runConfigData": "{}"})["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def wait(self, run_id: str) -> str:
        for _ in range(1800):
            status = str(self.ask("query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }", id=run_id)["runOrError"]["status"])
            if status in {"SUCCESS", "FAILURE", "CANCELED"}:
                return status
            time.sleep(1)
        raise AssertionError("the run did not end within half an hour")

    def materializations(self, run_id: str) -> dict[str, dict[str, Any]]:
        """asset (and partition) -> metadata."""
        query = """query($id: ID!) { runOrError(runId: $id) { ... on Run { assetMaterializations { partition assetKey { path }
            metadataEntries { label ... on IntMetadataEntry { intValue } ... on BoolMetadataEntry { boolValue } ... on UrlMetadataEntry { url } ... on TextMetadataEntry { text } } } } } }"""
        rows = self.ask(query, id=run_id)["runOrError"]["assetMaterializations"]
        return {
            "/".join(row["assetKey"]["path"]) + (f" {row['partition']}" if row["partition"] else ""): {e["label"]: e for e in row["metadataEntries"]}
            for row in rows
        }


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    switch_off()
    found = Platform(project(tmp_path_factory.mktemp("scripted") / "project"))
    try:
        found.run("-m", "pipelines.services", "up", "mlflow", "code", "dagster", "daemon")
        yield found
    finally:
        found.run("-m", "pipelines.services", "down")


@pytest.mark.timeout(2400)
def test_one_launch_over_graphql_makes_everything_and_the_answers_can_be_read_back(platform: Platform, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run_id = platform.launch()
    assert platform.wait(run_id) == "SUCCESS"
    made = platform.materializations(run_id)
    assert {name for name in made if name.startswith("transferred")} == {f"transferred emoji_groups|{method}" for method in ("zero_shot", "tip_adapter")}
    assert len(made) == 9 + 1 + 2 + 1 + 2 + 1 + 4 + 3
    snapshot = made["snapshot"]["snapshot"]["text"]

    client = MlflowClient(f"http://127.0.0.1:{platform.ports['MLFLOW']}")
    experiment = client.get_experiment_by_name("vlm")
    readers = client.search_runs([experiment.experiment_id], f"dataset.digest = '{snapshot}'")
    assert {"pretrain/lit_packaged", "pretrain/clip_tiny", "distil/clip_kd_tiny"} <= {run.info.run_name for run in readers}
    (parent,) = client.search_runs([experiment.experiment_id], f"tags.`dagster/run_id` = '{run_id}' and tags.role = 'job'")
    assert {run.data.tags["mlflow.parentRunId"] for run in readers} == {parent.info.run_id}
    champion = client.get_model_version_by_alias("vlm-base", "champion")
    assert champion.tags["snapshot"] == snapshot

    said = platform.run("-m", "vlm_core", "lineage", "samples", "vlm-base@champion", "--limit", "100000", "--json")
    uids = [row["uid"] for row in json.loads(said)["samples"]]
    manifest = json.loads((platform.root / "data/shards/manifest.json").read_text())
    assert len(uids) == sum(entry["samples"] for entry in manifest["shards"] if entry["split"] == "train")
    platform.run("-m", "vlm_core", "lineage", "bytes", "vlm-base@champion", "--out", str(tmp_path / "bytes"))
    for entry in manifest["shards"]:
        assert (tmp_path / "bytes" / snapshot / entry["name"]).read_bytes() == (platform.root / "data/shards" / entry["name"]).read_bytes()
    assert "shard" in platform.run("-m", "vlm_core", "lineage", "why", uids[0])


@pytest.mark.timeout(2400)
def test_a_second_launch_reuses_everything_that_has_not_changed(platform: Platform) -> None:
    run_id = platform.launch()
    assert platform.wait(run_id) == "SUCCESS"
    made = platform.materializations(run_id)
    fresh = {name for name, entries in made.items() if not entries["reused"]["boolValue"]}
    assert fresh == {"registry/clip_tiny", "registry/lit_packaged", "registry/student"}  # the registry is asked again each time
    assert all(made[name]["new"]["intValue"] == 0 for name in fresh)


@pytest.mark.timeout(2400)
def test_the_daemon_retrains_once_when_the_sensor_sees_a_new_snapshot(platform: Platform) -> None:
    version = "f" * 32 + ".dir"  # the models stand on the snapshot that is there, so the sensor would ask for nothing
    report = f"dg.DagsterInstance.get().report_runless_asset_event(dg.AssetMaterialization('snapshot', tags={{'dagster/data_version': '{version}'}}))"
    platform.run("-c", f"import os, dagster as dg; os.environ['DAGSTER_HOME'] = {str(platform.root / '.platform' / 'dagster')!r}; {report}")
    selector = {"repositoryLocationName": "vlm", "repositoryName": "__repository__", "sensorName": "new_data"}
    started = platform.ask("mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }", s=selector)
    assert started["startSensor"]["__typename"] == "Sensor"
    query = """{ runsOrError(filter: {tags: [{key: "trigger", value: "new_data"}]}) { ... on Runs { results { runId jobName tags { key value } } } } }"""
    for _ in range(180):
        runs = platform.ask(query)["runsOrError"]["results"]
        if runs:
            break
        time.sleep(1)
    (run,) = runs
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    assert run["jobName"] == "retrain"
    assert tags["snapshot"] == version
    assert tags["dagster/asset_partition_range_start"] == "emoji_groups|zero_shot"
    assert platform.wait(run["runId"]) == "SUCCESS"
    assert len(platform.ask(query)["runsOrError"]["results"]) == 1


@pytest.mark.timeout(2400)
def test_dvc_repro_without_dagster_gives_the_same_hash(platform: Platform, tmp_path: Path) -> None:
    version = lock_version(platform.root, "shard", "data/shards")
    assert version.endswith(".dir")
    alone = project(tmp_path / "alone")
    environment = {**os.environ, "VLM_HOME": str(alone / ".platform")}
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q", "shard"], cwd=alone, env=environment, check=True, capture_output=True)
    assert lock_version(alone, "shard", "data/shards") == version
    again = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "shard"], cwd=platform.root, env=platform.environment, check=True, capture_output=True, text=True
    )
    assert "Stage 'shard' didn't change, skipping" in again.stdout
