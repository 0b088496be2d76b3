"""The launcher: a verb in its own process, its exit code as Dagster's answer, its report as what the UI shows."""

import base64
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from PIL import Image

from assets.worker import metadata
from pipelines import resources
from pipelines.resources import Launcher
from tests.platform.conftest import ROOT
from tests.platform.probe import Probe


def run(
    project: Path, *, uri: str = "", instance: dg.DagsterInstance | None = None, chosen: dict[str, Any] | None = None, **settings: Any
) -> dg.ExecuteInProcessResult:
    @dg.asset
    def probed(context: dg.AssetExecutionContext, launcher: Launcher) -> dg.MaterializeResult:
        report = launcher.launch(context, "probe", "normal", Probe(**settings), {}, launcher.data("probed"))
        return dg.MaterializeResult(metadata=metadata(report, launcher), data_version=dg.DataVersion(report.data_version))

    given = {"root": str(project), "python": str(project / "python"), "mlflow_uri": uri}
    launcher = Launcher(**given)
    run_config = {"resources": {"launcher": {"config": {**given, **chosen}}}} if chosen else {}  # as the Launchpad sends it
    instance = instance or dg.DagsterInstance.ephemeral()
    return dg.materialize([probed], resources={"launcher": launcher}, instance=instance, raise_on_error=False, run_config=run_config)


def failure(result: dg.ExecuteInProcessResult) -> Any:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data


def calls(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_a_report_becomes_a_data_version_numbers_a_table_of_reasons_and_a_scaled_picture(project: Path) -> None:
    result = run(project)
    (event,) = result.get_asset_materialization_events()
    made = event.materialization
    listing = json.dumps([{"md5": hashlib.md5(b"the same bytes always").hexdigest(), "relpath": "x.txt"}])
    assert made.tags["dagster/data_version"] == hashlib.md5(listing.encode()).hexdigest() + ".dir"  # as DVC names a folder
    found = {name: value.value for name, value in made.metadata.items()}
    assert (found["in"], found["kept"], found["held R@1"], found["reused"]) == (10, 7, 0.5, False)
    assert [record.data for record in made.metadata["by reason"].records] == [
        {"reason": "dropped.small", "samples": 2},
        {"reason": "dropped.late", "samples": 1},
    ]
    assert [(column.name, column.type) for column in made.metadata["rows"].schema.columns] == [("name", "string"), ("n", "int"), ("share", "float")]
    assert found["made from"]["inputs"] == {}
    assert len(found["made from"]["run"]) == 32
    assert found["settings"]["ends"] == "well"
    data = found["a red picture"].split("base64,")[1].rstrip(")")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (1000, 250)
        assert image.convert("RGB").getpixel((5, 5)) == (200, 30, 30)


def test_the_same_settings_are_reused_and_other_settings_are_not(project: Path) -> None:
    log = project / "calls"
    versions = []
    for share in ({}, {}, {"good_from": 2}):
        (event,) = run(project, calls=str(log), **share).get_asset_materialization_events()
        versions.append((event.materialization.metadata["reused"].value, event.materialization.tags["dagster/data_version"]))
    assert [reused for reused, _ in versions] == [False, True, False]
    assert len({version for _, version in versions}) == 1  # the bytes are the same
    assert calls(log) == 2


def test_the_launchpad_says_where_ranges_are_done_and_the_environment_does_where_it_says_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_ENGINE", "processes:2")
    for chosen, expected in (({}, "processes:2"), ({"engine": "processes:3"}, "processes:3")):
        (event,) = run(project, shows=["VLM_ENGINE"], sleep_s=0.05 * len(chosen), chosen=chosen).get_asset_materialization_events()
        assert [record.data for record in event.materialization.metadata["environment"].records] == [{"name": "VLM_ENGINE", "value": expected}]


def test_exit_code_20_fails_once_with_the_sentence_of_the_verb(project: Path) -> None:
    log = project / "calls"
    said = failure(run(project, ends="refused", calls=str(log))).user_failure_data
    assert said.description == "ConfigError: Found 3 legs, expected 4; add a leg."
    assert said.metadata["exit code"].value == 20
    assert calls(log) == 1


def test_exit_code_10_is_tried_again_until_it_works(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PAUSE_S", 0.0)
    log = project / "calls"
    result = run(project, ends="busy", good_from=3, calls=str(log))
    assert result.success
    assert calls(log) == 3


def test_exit_code_10_fails_after_its_retries(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "PAUSE_S", 0.0)
    log = project / "calls"
    result = run(project, ends="busy", good_from=99, calls=str(log))
    assert not result.success
    assert calls(log) == 1 + resources.RETRIES


def test_a_killed_verb_is_named_as_such_and_not_tried_again(project: Path) -> None:
    log = project / "calls"
    said = failure(run(project, ends="killed", calls=str(log))).user_failure_data
    assert "SIGKILL" in said.description
    assert calls(log) == 1


def test_a_defect_of_ours_shows_its_last_lines(project: Path) -> None:
    said = failure(run(project, ends="defect")).user_failure_data
    assert said.description == "RuntimeError: a defect of ours"
    assert "something else" in said.metadata["last lines"].value


SLEEPER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.platform.test_launcher import run
run(Path({project!r}), calls={calls!r}, sleep_s=120)
"""


def sleeper(project: Path) -> "tuple[subprocess.Popen[bytes], psutil.Process]":
    """A run worker, and the process of its verb."""
    log = project / "calls"
    code = SLEEPER.format(root=str(ROOT), project=str(project), calls=str(log))
    worker = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if log.exists() and calls(log):
            break
        assert worker.poll() is None
        time.sleep(0.1)
    return worker, psutil.Process(int(next(log.iterdir()).name))


@pytest.mark.fault("F4")
def test_kill_9_of_the_run_worker_leaves_no_orphan_and_frees_the_output_folder(project: Path) -> None:
    worker, verb = sleeper(project)
    assert verb.is_running()
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert not psutil.wait_procs([verb], timeout=5)[1]
    assert run(project).success  # the lease is free, leftovers are swept
    assert sorted(path.name for path in (project / "data").iterdir()) == ["probed", "probed.run"]


@pytest.mark.fault("F4")
def test_terminating_the_run_ends_its_verb(project: Path) -> None:
    worker, verb = sleeper(project)
    worker.send_signal(signal.SIGINT)
    worker.wait(30)
    assert not psutil.wait_procs([verb], timeout=1)[1]


def test_a_run_is_one_mlflow_run_with_a_child_for_each_verb(project: Path, mlflow_server: str) -> None:
    from mlflow import MlflowClient

    result = run(project, uri=mlflow_server)
    client = MlflowClient(mlflow_server)
    (experiment,) = client.search_experiments(filter_string="name = 'vlm'")
    runs = {run.data.tags.get("role", "verb"): run for run in client.search_runs([experiment.experiment_id], f"tags.`dagster/run_id` = '{result.run_id}'")}
    child = runs["verb"]
    assert child.data.tags["mlflow.parentRunId"] == runs["job"].info.run_id
    assert child.info.status == "FINISHED"
    assert child.data.params["ends"] == "well"
    assert [metric.value for metric in client.get_metric_history(child.info.run_id, "loss")] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert child.data.metrics["count.dropped.small"] == 2
    assert child.data.metrics["held/R_at_1"] == 0.5
    assert [file.path for file in client.list_artifacts(child.info.run_id, "pictures")] == ["pictures/red.png"]
    (event,) = result.get_asset_materialization_events()
    assert (
        event.materialization.metadata["mlflow"].value
        == f"{mlflow_server}/#/experiments/{experiment.experiment_id}/runs/{child.info.run_id}?workflowType=machine_learning"
    )


def test_an_unreachable_mlflow_server_is_one_sentence_before_any_work(project: Path) -> None:
    log = project / "calls"
    result = run(project, uri="http://127.0.0.1:9", calls=str(log))
    assert not result.success
    error = failure(result).error
    assert "Found no MLflow server at http://127.0.0.1:9" in error.cause.message if error.cause else error.message
    assert not log.exists()
