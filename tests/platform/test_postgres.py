"""MLflow and Dagster on a real PostgreSQL (Debian's packages): what infra/ ships for a server."""

import json
import os
import pwd
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest

from pipelines import services
from tests.platform.conftest import ROOT, free_port
from tests.platform.test_launcher import run
from vlm_core.track import Registry, parent_run

pytestmark = pytest.mark.slow
ACCOUNT = "postgres"


def binary(name: str) -> str:
    found = shutil.which(name) or next((str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None)
    assert found, f"Found no {name}, expected PostgreSQL's programs; run apt-get install postgresql."
    return str(Path(found).resolve())


def as_account(*words: str) -> list[str]:
    """PostgreSQL refuses to run as root: then it gets an account of its own."""
    if os.getuid():
        return list(words)
    names = {entry.pw_name for entry in pwd.getpwall()}
    return ["runuser", "-u", ACCOUNT if ACCOUNT in names else "nobody", "--", *words]


def query(port: int, database: str, sql: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(host="127.0.0.1", port=port, user="vlm", dbname=database)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a fresh cluster with the databases that infra/postgres/init.sql makes."""
    folder, port = Path("/tmp") / f"vlm-postgres-{os.getpid()}", free_port()
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    data = folder / "data"
    subprocess.run(
        as_account(binary("initdb"), "-D", str(data), "-U", "vlm", "--auth=trust", "-E", "UTF8", "--no-sync"), check=True, capture_output=True, cwd=folder
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    control = [binary("pg_ctl"), "-D", str(data), "-w"]
    subprocess.run(as_account(*control, "-l", str(folder / "log"), "-o", options, "start"), check=True, stdout=subprocess.DEVNULL, cwd=folder)
    try:
        for statement in (ROOT / "infra/postgres/init.sql").read_text().split(";"):
            lines = [line for line in statement.splitlines() if line and not line.startswith("--")]
            if lines:
                query(port, "postgres", "\n".join(lines))
        yield port
    finally:
        subprocess.run(as_account(*control, "-m", "immediate", "stop"), check=True, stdout=subprocess.DEVNULL, cwd=folder)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_its_checks_and_its_model_live_in_postgresql(postgres: int, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    for name in ("MLFLOW", "CODE", "DAGSTER", "SEARCH"):
        monkeypatch.setenv(f"VLM_{name}_PORT", str(free_port()))
    monkeypatch.setenv("VLM_HOME", str(home))
    monkeypatch.setenv("VLM_MLFLOW_STORE", f"postgresql+psycopg2://vlm@127.0.0.1:{postgres}/mlflow")
    monkeypatch.setenv("DAGSTER_PG_URL", f"postgresql+psycopg2://vlm@127.0.0.1:{postgres}/dagster")
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    (home / "dagster").mkdir(parents=True)
    shutil.copy(ROOT / "infra/dagster/dagster-server.yaml", home / "dagster/dagster.yaml")
    table = services.services()
    started = [table["mlflow"]]
    try:
        services.start(table["mlflow"])
        with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
            result = run(project, uri=table["mlflow"].url, instance=instance)
            assert result.success
            version = result.get_asset_materialization_events()[0].materialization.tags["dagster/data_version"]
        for name in ("code", "dagster", "daemon"):
            started.append(table[name])
            services.start(table[name])
        body = json.dumps({"query": "{ runsOrError { ... on Runs { results { runId status } } } }"}).encode()
        request = urllib.request.Request(f"{table['dagster'].url}/graphql", body, {"Content-Type": "application/json"})
        seen = json.load(urllib.request.urlopen(request, timeout=60))["data"]["runsOrError"]["results"]
        assert seen == [{"runId": result.run_id, "status": "SUCCESS"}]
        model = tmp_path / "model"
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"weights")
        parent, _ = parent_run(table["mlflow"].url, result.run_id, "probe")
        Registry(table["mlflow"].url).register("vlm-base", {"": model}, {"weights_sha256": "w"}, {}, parent)
    finally:
        for service in reversed(started):
            services.stop(service)
    assert query(postgres, "dagster", "SELECT run_id, status FROM runs") == [(result.run_id, "SUCCESS")]
    (count,) = query(postgres, "dagster", f"SELECT count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION' AND event LIKE '%{version}%'")
    assert count == (1,)
    assert query(postgres, "mlflow", "SELECT value FROM latest_metrics WHERE key = 'loss'") == [(0.2,)]
    assert query(postgres, "mlflow", "SELECT name, version FROM model_versions") == [("vlm-base", 1)]
