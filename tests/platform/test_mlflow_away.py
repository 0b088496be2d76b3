"""MLflow goes away while a verb works, and a verb dies while MLflow watches: nothing that was made is lost, and the records come right in the end."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.platform.conftest import free_port, serving_mlflow
from vlm_core.outbox import Outbox


def command(project: Path, uri: str, out: str, **settings: Any) -> "subprocess.Popen[str]":
    words = [str(project / "python"), "-m", "vlm_core", "probe", "--out", out, *(f"--set={name}={value}" for name, value in settings.items())]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "VLM_HOME": str(project / ".platform"), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment.pop("VLM_DAGSTER_RUN", None)
    return subprocess.Popen(words, cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until_it_works(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    assert "sleeping" in process.stderr.readline()


def runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("vlm")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


@pytest.mark.fault("F7")
def test_a_stage_that_ends_while_mlflow_is_away_is_whole_and_its_run_is_completed_by_the_next_command(project: Path) -> None:
    from mlflow import MlflowClient

    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    with serving_mlflow(project, port) as server:
        verb = command(project, uri, "out", sleep_s=3)
        until_it_works(verb)
        os.killpg(server.pid, signal.SIGKILL)
        said, warned = verb.communicate(timeout=120)
    assert verb.returncode == 0, warned
    assert "Traceback" not in warned
    record = json.loads((project / "out.run" / "result.json").read_text())
    assert (record["counts"]["kept"], record["reused"]) == (7, False)
    (warning,) = record["warnings"]
    assert warning in warned
    assert f"MLflow at {uri} did not take" in warning
    (unsent,) = (project / "out.run" / "mlflow").glob("*.jsonl")
    assert str(unsent) in warning
    with serving_mlflow(project, port):
        again = command(project, uri, "out", sleep_s=3)
        assert "unchanged, reused" in again.communicate(timeout=120)[0]
        (run,) = runs(uri)
        client = MlflowClient(uri)
        assert run.info.status == "FINISHED"
        assert run.data.tags["data_version"] == record["data_version"]
        assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "slept")] == [(step, (step + 1) / 20) for step in range(60)]
        assert run.data.metrics["count.kept"] == 7
        assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/red.png"]
    assert not list((project / "out.run" / "mlflow").iterdir())


@pytest.mark.fault("F7")
def test_a_verb_killed_outside_dagster_is_ended_in_mlflow_by_the_next_run_of_its_output(project: Path, mlflow_server: str) -> None:
    earlier = {run.info.run_id for run in runs(mlflow_server)}
    victim = command(project, mlflow_server, "killed", sleep_s=60)
    until_it_works(victim)
    other = command(project, mlflow_server, "alive", sleep_s=60)
    until_it_works(other)
    victim.kill()
    victim.communicate()
    began = {run.info.run_id: run.info.status for run in runs(mlflow_server) if run.info.run_id not in earlier and run.info.status == "RUNNING"}
    assert len(began) == 2  # MLflow believes in both
    done = command(project, mlflow_server, "killed")
    assert done.wait(120) == 0
    done.communicate()
    left = [run.info.status for run in runs(mlflow_server) if run.info.run_id in began]
    other.kill()
    other.communicate()
    assert sorted(left) == ["KILLED", "RUNNING"]


@pytest.mark.fault("F7")
@pytest.mark.parametrize("answers", [True, False])
def test_a_slow_or_silent_server_takes_a_twentieth_of_the_time_at_most(answers: bool) -> None:
    spent, sent = [], []

    def send(word: dict[str, Any]) -> None:
        time.sleep(0.02)
        spent.append(0.02)
        if not answers:
            raise TimeoutError("no answer")
        sent.extend(word["values"])

    box, step = Outbox(send, "a slow server"), 0
    until = time.monotonic() + 3
    while time.monotonic() < until:
        box.put({"call": "metrics", "run": "r", "values": [step]})
        box.send()
        step += 1
        time.sleep(0.001)
    assert sum(spent) <= 3 / 20 + 0.02
    assert box.send(now=True) == answers
    assert sent == (list(range(step)) if answers else [])
    assert sum(len(word["values"]) for word in box.waiting) == (0 if answers else step)


def test_a_word_that_the_server_refuses_does_not_hold_up_the_next_one() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    sent = []

    def send(word: dict[str, Any]) -> None:
        if word["call"] == "tags":
            raise MlflowException("no such tag", error_code=INVALID_PARAMETER_VALUE)
        sent.append(word["call"])

    box = Outbox(send, "a server")
    for call in ("params", "tags", "file"):
        box.put({"call": call, "run": "r"})
    assert box.send()
    assert sent == ["params", "file"]
    assert [word["why"] for word in box.refused] == ["no such tag"]
