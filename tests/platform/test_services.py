"""`up` and `down` with a real server, and the ways in which they refuse."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from pipelines import services
from tests.platform.conftest import ROOT, free_port


@pytest.fixture
def ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Every service on a free port, with its home in a folder of this test."""
    found = {name: free_port() for name in ("MLFLOW", "CODE", "DAGSTER", "SEARCH")}
    for name, port in found.items():
        monkeypatch.setenv(f"VLM_{name}_PORT", str(port))
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return found


def cli(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pipelines.services", *words], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def test_a_service_answers_after_up_is_not_started_twice_and_is_gone_after_down(ports: dict[str, int]) -> None:
    up = cli("up", "mlflow")
    assert up.returncode == 0, up.stderr
    service = services.services()["mlflow"]
    process = services.running(service)
    assert process is not None
    family = [process, *process.children(recursive=True)]
    assert urllib.request.urlopen(f"{service.url}/health", timeout=10).status == 200
    listening = {c.laddr.ip for member in family for c in member.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert "runs already" in cli("up", "mlflow").stdout
    assert f"process {process.pid}" in cli("status", "mlflow").stdout
    assert "stopped" in cli("down", "mlflow").stdout
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert "was not running" in cli("down", "mlflow").stdout


def test_a_busy_port_is_one_sentence_and_starts_nothing(ports: dict[str, int], tmp_path: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", ports["MLFLOW"]))
        other.listen()
        done = cli("up", "mlflow")
    assert done.returncode == 20
    port = ports["MLFLOW"]
    assert done.stderr.strip() == (
        f"LaunchError: Found port {port} in use by another program, expected it free for mlflow; end that program or set VLM_MLFLOW_PORT to another port."
    )
    assert not (tmp_path / "home" / "services" / "mlflow.json").exists()


def test_down_never_ends_a_stranger_that_got_the_same_process_id(ports: dict[str, int]) -> None:
    service = services.services()["mlflow"]
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        service.record.parent.mkdir(parents=True)
        service.record.write_text(json.dumps({"pid": stranger.pid, "started": psutil.Process(stranger.pid).create_time() - 100}))
        assert services.running(service) is None
        assert not services.stop(service)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_service_that_dies_at_its_start_is_reported_with_its_last_line(ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_MLFLOW_STORE", "nonsense://nowhere")
    done = cli("up", "mlflow")
    assert done.returncode == 20
    assert "Found that mlflow ended at once with code 1" in done.stderr
    assert "mlflow.log" in done.stderr


def test_a_misspelt_service_or_port_is_refused(ports: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean 'mlflow'?" in cli("up", "mlflo").stderr
    monkeypatch.setenv("VLM_MLFLOW_PORT", "fifty")
    assert "Found 'fifty' in VLM_MLFLOW_PORT" in cli("status").stderr


def test_services_inherit_the_switches(ports: dict[str, int]) -> None:
    found = services.environment()
    assert found["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert found["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{ports['MLFLOW']}"
    assert (Path(found["DAGSTER_HOME"]) / "dagster.yaml").read_text() == (ROOT / "infra/dagster/dagster.yaml").read_text()
    assert os.path.isabs(found["VLM_HOME"])
