"""`python -m pipelines.services up|down|status`: MLflow, Dagster (code server, webserver, daemon) and search, on loopback only.

Each service runs in a session of its own; its process id lies in `.platform/services/NAME.json` together with the time at which
that process started, so that `down` never ends a stranger that got the same number. Ports: $VLM_MLFLOW_PORT and so on.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from pipelines.choices import CODE, ROOT
from vlm_core.errors import ConfigError, LaunchError, VlmError, did_you_mean
from vlm_core.stage import home, write_json
from vlm_core.switches import switch_off

HOST = "127.0.0.1"
WAIT_S = 120.0


class Service(NamedTuple):
    """One long-running process."""

    name: str
    port: int
    command: Callable[["Service"], list[str]]
    health: str  # path that answers when it is ready; '' for a service without a port
    what: str

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def record(self) -> Path:
        return home() / "services" / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return home() / "logs" / f"{self.name}.log"


def _port(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ConfigError(f"Found {text!r} in {name}, expected a port from 1 to 65535; unset it or give another.")
    return int(text)


def services() -> dict[str, Service]:
    """All of them, in the order in which they start."""
    mlflow, code = _port("VLM_MLFLOW_PORT", 5000), _port("VLM_CODE_PORT", 4266)
    dagster, search = _port("VLM_DAGSTER_PORT", 3000), _port("VLM_SEARCH_PORT", 7600)
    found = [
        Service("mlflow", mlflow, _mlflow, "/health", "experiments and model registry, under 'Model training'"),
        Service("code", code, _code, "", "Dagster's view of the assets"),
        Service("dagster", dagster, _webserver, "/server_info", "assets, runs, schedules"),
        Service("daemon", 0, _daemon, "", "schedules, sensors, queue"),
        Service("search", search, _search, "/health", "search in the filtered set"),
    ]
    return {service.name: service for service in found}


def _mlflow(me: Service) -> list[str]:
    store = home() / "mlflow"
    store.mkdir(parents=True, exist_ok=True)
    return [
        sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(me.port), "--workers", "1",
        "--backend-store-uri", os.environ.get("VLM_MLFLOW_STORE", f"sqlite:///{store / 'mlflow.db'}"), "--artifacts-destination", str(store / "artifacts"),
        "--allowed-hosts", f"{HOST}:{me.port},localhost:{me.port}", "--cors-allowed-origins", f"http://{HOST}:{me.port},http://localhost:{me.port}",
    ]  # fmt: skip


def _code(me: Service) -> list[str]:
    return [sys.executable, "-m", "dagster", "code-server", "start", "-h", HOST, "-p", str(me.port), "-m", "pipelines.definitions", "--location-name", "vlm"]


def _webserver(me: Service) -> list[str]:
    return [sys.executable, "-m", "dagster_webserver", "-h", HOST, "-p", str(me.port), "-w", str(_workspace())]


def _daemon(me: Service) -> list[str]:
    return [str(Path(sys.executable).with_name("dagster-daemon")), "run", "-w", str(_workspace())]


def _search(me: Service) -> list[str]:
    return [sys.executable, "-m", "vlm_core", "serve", "--port", str(me.port), "--data", str(ROOT / "data")]


def _workspace() -> Path:
    return CODE / "infra" / "dagster" / "workspace.yaml"


def dagster_home() -> Path:
    """The instance folder, with the settings for one machine unless somebody put other ones there."""
    folder = Path(os.environ.get("DAGSTER_HOME", home() / "dagster"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dagster.yaml").exists():
        shutil.copy(CODE / "infra" / "dagster" / "dagster.yaml", folder / "dagster.yaml")
    return folder


def environment() -> dict[str, str]:
    """What every service and every run sees."""
    switch_off()
    table = services()
    return {
        **os.environ, "VLM_HOME": str(home()), "DAGSTER_HOME": str(dagster_home()), "MLFLOW_TRACKING_URI": table["mlflow"].url,
        "VLM_CODE_HOST": HOST, "VLM_CODE_PORT": str(table["code"].port), "PYTHONPATH": str(CODE), "PYTHONUNBUFFERED": "1", "VLM_ROOT": str(ROOT),
    }  # fmt: skip


def running(service: Service) -> psutil.Process | None:
    """The process that the record names, if it still is that process."""
    try:
        said = json.loads(service.record.read_text())
        process = psutil.Process(said["pid"])
        same = process.create_time() == said["started"] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return process if same else None


def start(service: Service) -> bool:
    """Start it unless it runs, and wait until it answers; whether it was started. Raises LaunchError."""
    if running(service) is not None:
        return False
    if service.port and _busy(service.port):
        raise LaunchError(
            f"Found port {service.port} in use by another program, expected it free for {service.name}; end that program or set VLM_{service.name.upper()}_PORT to another port."
        )
    service.log.parent.mkdir(parents=True, exist_ok=True)
    service.record.parent.mkdir(parents=True, exist_ok=True)
    with service.log.open("ab") as log:
        process = subprocess.Popen(
            service.command(service), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    write_json(service.record, {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "port": service.port, "url": service.url})
    _wait(service, process)
    return True


def _busy(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False


def _wait(service: Service, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _ready(service):
            return
        time.sleep(0.3)
    how = f"did not answer within {WAIT_S:.0f} s" if process.poll() is None else f"ended at once with code {process.returncode}"
    last = (service.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1].strip()
    stop(service)
    raise LaunchError(f"Found that {service.name} {how} ({last}), expected it to start; read {service.log}.")


def _ready(service: Service) -> bool:
    if service.health:
        try:
            with urllib.request.urlopen(service.url + service.health, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
    if service.port:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((HOST, service.port)) == 0
    return "daemon" in service.log.read_text(errors="replace").lower() if service.log.exists() else False


def stop(service: Service, patience_s: float = 20.0) -> bool:
    """End the service's whole session; whether there was one."""
    process = running(service)
    service.record.unlink(missing_ok=True)
    if process is None:
        return False
    members = _session(process.pid)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for member in members:
            try:
                member.send_signal(sign)
            except psutil.NoSuchProcess:
                continue
        _, members = psutil.wait_procs(members, timeout=patience_s)
        if not members:
            break
    return True


def _session(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader:
                found.append(process)
        except OSError:
            continue
    return found


def up(names: Sequence[str]) -> None:
    for service in (services()[name] for name in names):
        if service.name == "search" and not (ROOT / "data" / "filtered").exists():
            print("search     waits for data: run 'make demo', then 'make up' again")
            continue
        began = time.monotonic()
        fresh = start(service)
        how = f"started in {time.monotonic() - began:.1f} s" if fresh else "runs already"
        print(f"{service.name:10} {service.url if service.health else '':24} {service.what}; {how}", flush=True)


def down(names: Sequence[str]) -> None:
    for service in reversed([services()[name] for name in names]):
        print(f"{service.name:10} {'stopped' if stop(service) else 'was not running'}", flush=True)


def status(names: Sequence[str]) -> None:
    for service in (services()[name] for name in names):
        process = running(service)
        memory = sum(_memory(member) for member in _session(process.pid)) / 1e6 if process else 0
        print(f"{service.name:10} {f'process {process.pid}, {memory:,.0f} MB' if process else 'not running':32} {service.url if service.health else ''}")


def _memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return 0.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.services", description="Start and stop the services on this machine.")
    actions: Mapping[str, Any] = {"up": up, "down": down, "status": status}
    parser.add_argument("action", choices=list(actions))
    parser.add_argument("names", nargs="*", help=f"all, or some of: {', '.join(services())}")
    args = parser.parse_args(argv)
    try:
        unknown = [name for name in args.names if name not in services()]
        if unknown:
            raise ConfigError(f"Found the service {unknown[0]!r}, expected a known one; {did_you_mean(unknown[0], services())}")
        actions[args.action](args.names or list(services()))
    except VlmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
