"""Run one of our modules in a process of its own: it dies with us, and its output goes to a log whose place every error names."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vlm_core.errors import LaunchError, MissingInput
from vlm_core.stage import PACKAGE

# Few arenas; and buffers of a usual picture are used again instead of going back to the kernel, whose fresh pages cost a fault each.
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20)}
CRASHED = 75  # a process that ends so lost a process of its own: run it again


def run_module(module: str, argument: Path, log: Path, python: str = "", watch: Callable[[], None] = lambda: None, may_crash: bool = False) -> int:
    """The exit status: 0, or with `may_crash` also that of a killed process (negative, or CRASHED).

    Raises LaunchError for any other, MissingInput for a wrong interpreter.
    """
    paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "VLM_PARENT_PID": str(os.getpid()), "PYTHONPATH": os.pathsep.join(path for path in paths if path), **MALLOC}
    with log.open("ab") as stream:
        try:
            process = subprocess.Popen([python or sys.executable, "-m", module, str(argument)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=env)
        except OSError as error:
            raise MissingInput(f"Found no interpreter {python!r} ({error.strerror}), expected one with our packages; set 'python' or leave it empty.") from None
        try:
            while process.poll() is None:
                watch()
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    crashed = process.returncode < 0 or process.returncode == CRASHED
    if process.returncode and not (may_crash and crashed):
        tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise LaunchError(f"Found {module} ended with status {process.returncode} ({tail[0][:200]}), expected 0; read {log}.")
    return process.returncode
