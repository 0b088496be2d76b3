"""Run one of our modules in a process of its own: it dies with us, and its output goes to a log whose place every error names."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vlm_core.errors import LaunchError, MissingInput
from vlm_core.stage import PACKAGE


def run_module(module: str, argument: Path, log: Path, python: str = "", watch: Callable[[], None] = lambda: None, allowed: tuple[int, ...] = (0,)) -> int:
    """The exit status, one of `allowed`. Raises LaunchError for any other, MissingInput for a wrong interpreter."""
    paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "VLM_PARENT_PID": str(os.getpid()), "PYTHONPATH": os.pathsep.join(path for path in paths if path), "MALLOC_ARENA_MAX": "2"}
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
    if process.returncode not in allowed:
        tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise LaunchError(f"Found {module} ended with status {process.returncode} ({tail[0][:200]}), expected 0; read {log}.")
    return process.returncode
