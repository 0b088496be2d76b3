"""What assets need from the machine they run on: the launcher that runs one verb in a process of its own.

A deployment differs only here and in its environment ($VLM_ROOT, $VLM_HOME, $MLFLOW_TRACKING_URI); assets never ask where they are.
"""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import dagster as dg
from pydantic import Field

from pipelines.choices import CODE, ROOT
from vlm_core.config import Config
from vlm_core.stage import Report, record_of, write_json
from vlm_core.switches import switch_off

RETRIES = 2
PAUSE_S = 15.0
LINE_EVERY_S = 5.0  # at most so often one line of a verb becomes an event: each costs the event log some 30 ms


class Launcher(dg.ConfigurableResource):
    """Runs `vlm <verb>` in its own process, forwards its lines, and turns its exit code into what Dagster should do.

    Its defaults are this deployment's: what a run's config leaves out falls back to them, and not to what an instance was given.
    """

    root: str = Field(str(ROOT), description="project folder: params.yaml, dvc.yaml and data/ lie there")
    mlflow_uri: str = Field(os.environ.get("MLFLOW_TRACKING_URI", ""), description="where runs are tracked; empty: only the files beside each output")
    python: str = Field(sys.executable, description="interpreter of the verbs")
    processes: int = Field(2, description="verbs at once where one asset stands for many cells")
    engine: str = Field(
        "", description="where the ranges of a verb are done: processes:N, ray or ray:HOST:PORT; empty: as $VLM_ENGINE says, or in the verb's own process"
    )

    def data(self, *parts: str) -> Path:
        """Where an asset's output lies, seen from the project folder."""
        return Path("data", *parts)

    def at(self, path: Path) -> Path:
        return Path(self.root) / path

    def home(self) -> Path:
        """Where catalog, services and caches lie, for this process and for the verbs."""
        return Path(os.environ.get("VLM_HOME", str(self.at(Path(".platform")))))

    def launch(
        self,
        context: dg.AssetExecutionContext,
        verb: str,
        recipe: str,
        config: Config,
        inputs: Mapping[str, Path],
        out: Path,
        *,
        force: bool = False,
        is_one_of_many: bool = False,
    ) -> Report:
        """Run one verb. Raises RetryRequested for exit code 10, Failure with the verb's own sentence for the others."""
        spec = {"verb": verb, "recipe": recipe, "config": config.model_dump(mode="json"), "inputs": {name: str(path) for name, path in inputs.items()}}
        with tempfile.TemporaryDirectory(prefix="vlm-spec-") as tmp:
            write_json(Path(tmp) / "spec.json", spec)
            words = [self.python, "-m", "vlm_core", verb, "--spec", str(Path(tmp) / "spec.json"), "--out", str(out), "--json", *(["--force"] if force else [])]
            with (Path(tmp) / "stdout").open("w+") as stdout:
                code, lines = self._run(context, words, self._environment(context, is_one_of_many), stdout)
                stdout.seek(0)
                text = stdout.read()
        if code:
            _fail(verb, code, lines, self.at(record_of(out)))
        return Report.model_validate_json(text[text.index("{\n") :])

    def launch_all(self, jobs: Mapping[str, Callable[[], Report]]) -> Iterator[tuple[str, Report]]:
        """Several launches, `processes` at a time, as they finish. The first failure ends the others and is raised."""
        with ThreadPoolExecutor(self.processes) as pool:
            futures: dict[Future[Report], str] = {pool.submit(job): name for name, job in jobs.items()}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(_running):
                    process.terminate()
                raise

    def _run(self, context: dg.AssetExecutionContext, words: Sequence[str], environment: Mapping[str, str], stdout: IO[str]) -> tuple[int, list[str]]:
        process = subprocess.Popen(
            words, cwd=self.root, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        lines: list[str] = []
        said = 0.0
        with _ended_with(process):
            for line in _lines(process):
                print(line, file=sys.stderr)
                lines = [*lines[-49:], line]
                if line.startswith("[") and time.monotonic() - said > LINE_EVERY_S:
                    said = time.monotonic()
                    context.log.info(line)
            return process.wait(), lines

    def _environment(self, context: dg.AssetExecutionContext, is_one_of_many: bool) -> dict[str, str]:
        switch_off()
        found = {
            **os.environ,
            "VLM_PARENT_PID": str(os.getpid()),
            "VLM_DAGSTER_RUN": context.run_id,
            "VLM_HOME": str(self.home()),
        }
        found["PYTHONPATH"] = os.pathsep.join(part for part in (str(CODE), os.environ.get("PYTHONPATH", "")) if part)
        if is_one_of_many:  # they share the cores; a user's own number stays
            found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.processes)))
        if self.engine:
            found["VLM_ENGINE"] = self.engine
        if self.mlflow_uri:
            found |= {"MLFLOW_TRACKING_URI": self.mlflow_uri, "VLM_MLFLOW_PARENT": self.parent(context)[0]}
        return found

    def parent(self, context: dg.AssetExecutionContext) -> tuple[str, str | None]:
        """(id, address) of the MLflow run that stands for this Dagster run; ("", None) without MLflow."""
        return _parent(self.mlflow_uri, context.run_id, context.job_name) if self.mlflow_uri else ("", None)


_once = threading.Lock()
_running: "set[subprocess.Popen[str]]" = set()


def _parent(uri: str, run_id: str, job: str) -> tuple[str, str | None]:
    with _once:
        return _parent_of(uri, run_id, job)


@functools.lru_cache(maxsize=64)
def _parent_of(uri: str, run_id: str, job: str) -> tuple[str, str | None]:
    from vlm_core.track import parent_run  # late: MLflow takes two seconds to import

    return parent_run(uri, run_id, "single assets" if job.startswith("__") else job)


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    for line in process.stderr or ():
        if line.strip():
            yield line.rstrip("\n")


@contextmanager
def _ended_with(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Whatever ends this block early (Dagster's termination too) ends the process: first politely, then not."""
    _running.add(process)
    try:
        yield
    finally:
        _running.discard(process)
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _fail(verb: str, code: int, lines: list[str], record: Path) -> NoReturn:
    sentence = next((line for line in reversed(lines) if ": " in line and line.split(":")[0].isidentifier()), lines[-1] if lines else "it said nothing")
    said = {
        "verb": verb,
        "exit code": code,
        "last lines": dg.MetadataValue.md("```\n" + "\n".join(lines[-40:]) + "\n```"),
        "record": dg.MetadataValue.path(str(record)),
    }
    if code == 10:
        print(f"vlm {verb} may succeed later: {sentence}", file=sys.stderr)
        raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=PAUSE_S) from dg.Failure(sentence, said)
    if code == 130:
        raise dg.Failure(f"'vlm {verb}' was cancelled; the same command goes on from where it was.", said, allow_retries=False)
    if code < 0 or code > 128:
        name = signal.Signals(-code if code < 0 else code - 128).name
        raise dg.Failure(f"'vlm {verb}' was ended by {name} (too little memory gives SIGKILL); materialise it again to go on.", said, allow_retries=False)
    raise dg.Failure(sentence, said, allow_retries=False)


def deployment() -> dict[str, Any]:
    """The resources that assets ask for by name."""
    return {"launcher": Launcher()}
