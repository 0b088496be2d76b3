"""Verbs in processes of their own that die with this one: several at a time, each on its share of the cores."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlm_core import errors
from vlm_core.config import Config
from vlm_core.errors import LaunchError, VlmError
from vlm_core.stage import Report, write_json


class Launcher:
    """Starts verbs from any thread, and can end all that run.

    A thread that calls `verb` waits for its process, so the kernel's signal at the death of the parent, which is the thread, comes in time.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = {**environment, "VLM_PARENT_PID": str(os.getpid())}
        self._running, self._ended, self._lock = set["subprocess.Popen[str]"](), False, threading.Lock()

    def verb(self, verb: str, recipe: str, config: Config, inputs: Mapping[str, Path], out: Path, who: str = "") -> Report:
        """`vlm VERB` with these settings and inputs. Raises the error that the verb ended with.

        Its lines are passed on as they come, `who` in front of each.
        """
        spec = {"verb": verb, "recipe": recipe, "config": config.model_dump(mode="json"), "inputs": {name: str(path) for name, path in inputs.items()}}
        with tempfile.TemporaryDirectory(prefix="vlm-part-") as tmp:
            write_json(Path(tmp) / "spec.json", spec)
            words = [sys.executable, "-W", "ignore", "-m", "vlm_core", verb, "--spec", str(Path(tmp) / "spec.json"), "--out", str(out), "--json"]
            with (Path(tmp) / "stdout").open("w+") as stdout:
                code, lines = self._wait(words, stdout.fileno(), who)
                stdout.seek(0)
                text = stdout.read()
        if code:
            raise _error(verb, code, lines, out)
        return Report.model_validate_json(text[text.index("{\n") :])

    def end(self) -> None:
        """Ask every process to stop, and start no other: their folders keep what the same command goes on from."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()

    def _wait(self, words: Sequence[str], stdout: int, who: str) -> tuple[int, list[str]]:
        """(exit code, the last lines of its stderr)."""
        with self._lock:
            if self._ended:
                return 130, []
            process = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace"
            )
            self._running.add(process)
        try:
            lines: list[str] = []
            for line in process.stderr or ():
                sys.stderr.write(f"{who}{line}")  # one write, so that lines of several processes do not mix
                sys.stderr.flush()
                lines = [*lines[-49:], line.rstrip("\n")]
            return process.wait(), lines
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            with self._lock:
                self._running.discard(process)


def environment_for(side_by_side: int, threads: int | None, parent: str = "") -> dict[str, str]:
    """That of this process, with a run's share of the cores as its number of threads; `parent` is the MLflow run under which runs are filed.

    A number of threads that the caller's environment already holds stands, unless the settings name one.
    """
    found = {**os.environ, **({"VLM_MLFLOW_PARENT": parent} if parent else {})}
    if threads is not None:
        found["OMP_NUM_THREADS"] = str(threads)
    elif side_by_side > 1:
        found.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // side_by_side, 1)))
    return found


def _error(verb: str, code: int, lines: Sequence[str], out: Path) -> BaseException:
    if code == 130:
        return KeyboardInterrupt()
    for line in reversed(lines):
        name, _, sentence = line.partition(": ")
        kind = getattr(errors, name, None) if name.isidentifier() else None
        if isinstance(kind, type) and issubclass(kind, VlmError):
            return kind(sentence)
    last = lines[-1] if lines else "it said nothing"
    return LaunchError(
        f"Found that 'vlm {verb}' for {out} ended with exit code {code} ({last}), expected 0; read its lines above and give the same command again."
    )
