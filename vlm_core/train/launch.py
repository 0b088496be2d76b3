"""Several processes on one machine, one per device. They die with their parent, and the parent ends them all when one fails.

Lightning would start copies of the command line itself; a verb must not run twice, so the copies run one training function only.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_core import errors
from vlm_core.checkpoint import STEPS, step_of
from vlm_core.errors import LaunchError, VlmError
from vlm_core.stage import die_with_parent, write_json
from vlm_core.switches import switch_off
from vlm_core.train.fit import Reporter, read_rows

JOB, FAILURE = "job.json", "failure.json"


class Quiet:
    """The reporter of a rank whose parent tells its numbers on."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...
    def progress(self, what: str, done: int, total: int, every_s: float = 2.0) -> None: ...


def run_ranks(target: str, settings: Mapping[str, Any], folder: Path, devices: int, report: Reporter) -> None:
    """Run `module:function(settings, folder, reporter)` in `devices` processes and pass on what rank 0 writes into `folder`/metrics.jsonl.

    Raises the VlmError that a process ended with, else LaunchError with the place of its output.
    """
    write_json(folder / JOB, {"target": target, "settings": dict(settings)})
    (folder / FAILURE).unlink(missing_ok=True)
    common = {**os.environ, "VLM_PARENT_PID": str(os.getpid()), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(devices)}
    common.setdefault("GLOO_SOCKET_IFNAME", "lo")
    common.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // devices, 1)))
    ranks = list[subprocess.Popen[bytes]]()
    try:
        for rank in range(devices):
            with (folder / f"rank-{rank}.log").open("wb") as log:
                environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                ranks.append(subprocess.Popen([sys.executable, "-m", "vlm_core.train.launch", str(folder)], env=environment, stdout=log, stderr=log))
        _watch(ranks, folder, report)
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _watch(ranks: list[subprocess.Popen[bytes]], folder: Path, report: Reporter) -> None:
    told = max(map(step_of, (folder / "steps").glob(STEPS)), default=0)  # what lies before it was told by the run that goes on
    while True:
        ended = [process.poll() for process in ranks]
        for row in read_rows(folder):
            if row["step"] > told:
                told = int(row["step"])
                report.metrics({name: value for name, value in row.items() if name != "step"}, told)
        failed = next((rank for rank, code in enumerate(ended) if code), None)
        if failed is not None:
            raise _failure(folder, failed, ended[failed])
        if all(code == 0 for code in ended):
            return
        time.sleep(0.2)


def _failure(folder: Path, rank: int, code: int | None) -> VlmError:
    file = folder / FAILURE
    if file.exists():
        said = json.loads(file.read_text())
        found: VlmError = getattr(errors, said["class"])(said["message"])
        return found
    how = f"was ended by signal {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"
    return LaunchError(f"Found that training process {rank} {how}, expected it to finish; its output is in {folder / f'rank-{rank}.log'}.")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    switch_off()
    die_with_parent()
    folder = Path(sys.argv[1])
    job = json.loads((folder / JOB).read_text())
    module, _, name = job["target"].partition(":")
    try:
        getattr(importlib.import_module(module), name)(job["settings"], folder, Quiet())
    except VlmError as error:
        write_json(folder / FAILURE, {"class": type(error).__name__, "message": str(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
