"""`make demo`: the main job on the embedded corpus, one line per stage, and a table at the end.

The job runs in a process of its own against the real instance (.platform/dagster), so that `make up` shows this very run.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from pipelines import services
from pipelines.choices import ROOT
from pipelines.demo_table import table
from vlm_core.errors import LaunchError, VlmError
from vlm_core.stage import die_with_parent, home

JOB = "data_to_model"


class Memory(threading.Thread):
    """Largest total of proportional memory of this process and everything below it, and of the services."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0

    def run(self) -> None:
        while True:
            self.peak_mb = max(self.peak_mb, sum(_pss(process) for process in self._family()) / 1e6)
            time.sleep(5)

    @staticmethod
    def _family() -> set[psutil.Process]:
        roots = [psutil.Process(), *filter(None, (services.running(service) for service in services.services().values()))]
        return {process for root in roots for process in [root, *_children(root)]}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _pss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss)
    except (psutil.Error, AttributeError):
        return 0.0


def main() -> int:
    began = time.monotonic()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.default_int_handler)
    try:
        mlflow = services.services()["mlflow"]
        mine = services.start(mlflow)
        os.environ.update(services.environment())
        memory = Memory()
        memory.start()
        try:
            return _job(began, memory)
        finally:
            if mine:
                services.stop(mlflow)
    except VlmError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Cancelled: finished stages stay; 'make demo' goes on from there.", file=sys.stderr)
        return 130


def _job(began: float, memory: Memory) -> int:
    mark = uuid.uuid4().hex
    log = home() / "logs" / "demo.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "pipelines.demo",
        "job",
        "execute",
        "-m",
        "pipelines.definitions",
        "-j",
        JOB,
        "--tags",
        f'{{"demo": "{mark}"}}',
    ]
    print(f"Job {JOB}: crawl, filter, train, adapt, distil, evaluate, register (details: {log})", flush=True)
    with log.open("ab") as stream, dg.DagsterInstance.get() as instance:
        process = subprocess.Popen(
            words, cwd=ROOT, env={**os.environ, "VLM_PARENT_PID": str(os.getpid())}, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        try:
            run, made, kept = _follow(instance, process, mark)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        _close(run, run.status == dg.DagsterRunStatus.SUCCESS)
    if run.status != dg.DagsterRunStatus.SUCCESS:
        print(f"The job ended as {run.status.value}; what was finished stays, 'make demo' goes on from there. Its log: {log}", file=sys.stderr)
        return 20
    print(table(ROOT / "data"))
    print(
        f"whole job                 {(time.monotonic() - began) / 60:.1f} min, {kept} of {made} results unchanged and reused, peak memory {memory.peak_mb / 1000:.2f} GB with services"
    )
    print("\n".join(["=" * 100, *_addresses()]))
    return 0


def _close(run: dg.DagsterRun, is_good: bool) -> None:
    from vlm_core.track import end_runs  # late: MLflow takes two seconds to import

    end_runs(os.environ["MLFLOW_TRACKING_URI"], run.run_id, "FINISHED" if is_good else "FAILED")


def _follow(instance: dg.DagsterInstance, process: "subprocess.Popen[bytes]", mark: str) -> tuple[dg.DagsterRun, int, int]:
    """Print events as they come, until the run's process has ended: (run, results, reused ones). Raises LaunchError when no run ever appears."""
    seen, started, reused = 0, dict[str, float](), list[bool]()
    while True:
        over = process.poll() is not None
        runs = instance.get_runs(dg.RunsFilter(tags={"demo": mark}), limit=1)
        if runs:
            entries = list(instance.all_logs(runs[0].run_id))
            for entry in entries[seen:]:
                reused += _say(entry, started)
            seen = len(entries)
        if over:
            break
        time.sleep(1)
    if not runs:
        raise LaunchError(
            f"Found that the job ended (exit code {process.returncode}) before its run began, expected it to start; read {home() / 'logs' / 'demo.log'}."
        )
    return instance.get_run_by_id(runs[0].run_id) or runs[0], len(reused), sum(reused)


def _say(entry: dg.EventLogEntry, started: dict[str, float]) -> list[bool]:
    """Print what an event means; for a result, whether it was reused."""
    event = entry.dagster_event
    if event is None:
        return []
    kind, step = event.event_type_value, event.step_key or ""
    if kind == "STEP_START":
        started[step] = entry.timestamp
    elif kind == "ASSET_MATERIALIZATION":
        made = event.step_materialization_data.materialization
        name = made.asset_key.to_user_string() + (f" {made.partition}" if made.partition else "")
        found = {key: value.value for key, value in made.metadata.items()}
        _line("✓", name, _words(found), entry.timestamp - started.get(step, entry.timestamp))
        return [bool(found.get("reused"))]
    elif kind == "ASSET_CHECK_EVALUATION":
        check = event.asset_check_evaluation_data
        if not check.passed:
            _line("!", f"{check.asset_key.to_user_string()}: {check.check_name}", ", ".join(f"{k} {v.value}" for k, v in check.metadata.items()), 0)
    elif kind == "STEP_UP_FOR_RETRY":
        _line("…", step, "may succeed later; tried again", 0)
    elif kind == "STEP_FAILURE":
        failure = event.step_failure_data
        said = failure.user_failure_data.description if failure.user_failure_data else failure.error.message if failure.error else ""
        _line("✗", step, str(said).strip(), entry.timestamp - started.get(step, entry.timestamp))
    return []


def _words(found: Mapping[str, Any]) -> str:
    if "ledger" in found:
        return f"{found['snapshot']}: {found['ledger']}"
    if found.get("reused"):
        return "unchanged, reused"
    plain = [
        (name, value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in {"seconds", "peak memory (MB)"}
    ]
    return ", ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}" for name, value in plain[:5])


def _line(sign: str, name: str, said: str, seconds: float) -> None:
    print(f"  {sign} {name:36} {f'{seconds:6.1f} s' if seconds else '        '}  {said}"[:400], flush=True)


def _addresses() -> Iterator[str]:
    yield "'make up' serves:"
    for service in services.services().values():
        if service.health:
            yield f"  {service.url:24} {service.what}"


def dagster() -> None:
    """Dagster's own command line in a process that does not outlive the demo."""
    die_with_parent()
    runpy.run_module("dagster", run_name="__main__")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        dagster()
    Path(ROOT / "data").mkdir(exist_ok=True)
    sys.exit(main())
