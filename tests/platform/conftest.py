"""Real neighbours for the platform tests: an MLflow server on loopback, a project folder, and a verb that does what it is told."""

import os
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vlm_core.switches import switch_off

ROOT = Path(__file__).parent.parent.parent

# A stand-in for `python`: the real command line with one more verb, `probe`, whose settings say how it should end.
PYTHON = f"""#!{sys.executable} -Wignore
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.platform.probe import PROBE
from vlm_core import cli, run
run.VERBS["probe"] = PROBE
assert sys.argv[1:3] == ["-m", "vlm_core"], sys.argv
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an interpreter that knows the verb `probe`."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "data").mkdir()
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving_mlflow(folder: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """A real server over the store in a folder, in a process group of its own."""
    switch_off()
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("a") as log:
        server = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, start_new_session=True, env=dict(os.environ))
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(30)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real server with an empty store."""
    port = free_port()
    with serving_mlflow(tmp_path_factory.mktemp("mlflow"), port):
        yield f"http://127.0.0.1:{port}"
