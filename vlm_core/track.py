"""Where numbers and pictures of a run go. The only module of vlm_core that may import MLflow (and it does so late)."""

import contextlib
import csv
import functools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from vlm_core.errors import ServiceError
from vlm_core.outbox import VALUES, Outbox, Word, is_refusal, read
from vlm_core.redact import redacted

EXPERIMENT = "vlm"
DAGSTER_RUN = "dagster/run_id"


class Tracker(Protocol):
    """What a verb may say while it runs. All calls are cheap enough for a training loop that logs every N steps."""

    def params(self, values: Mapping[str, Any]) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...
    def picture(self, name: str, path: Path) -> None: ...
    def artefact(self, path: Path, folder: str = "") -> None: ...
    def dataset(self, name: str, digest: str, uri: str, context: str) -> None: ...
    def trace(self, name: str, asked: Mapping[str, str], answered: str, seconds: float, facts: Mapping[str, Any]) -> str:
        """One call of a language model, just ended; gives the id of its trace, '' where none is kept."""
        ...

    def keep(self, record: Path) -> None:
        """Where words may lie that nobody takes: the record of the output folder, whose lease the caller holds."""
        ...

    def settle(self) -> str:
        """The end of the work: a sentence about what could not be said, or ''."""
        ...

    def child(self, name: str) -> Self:
        """A nested run; close it."""
        ...

    def close(self, status: str = "FINISHED") -> None: ...
    @property
    def url(self) -> str | None: ...


class NullTracker:
    """Says nothing to nobody."""

    url: str | None = None

    def params(self, values: Mapping[str, Any]) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...
    def picture(self, name: str, path: Path) -> None: ...
    def artefact(self, path: Path, folder: str = "") -> None: ...
    def dataset(self, name: str, digest: str, uri: str, context: str) -> None: ...
    def trace(self, name: str, asked: Mapping[str, str], answered: str, seconds: float, facts: Mapping[str, Any]) -> str:
        return ""

    def keep(self, record: Path) -> None: ...
    def settle(self) -> str:
        return ""

    def child(self, name: str) -> Self:
        return self

    def close(self, status: str = "FINISHED") -> None: ...


class CsvTracker(NullTracker):
    """Metrics as rows (time, run, step, name, value) in one file: what a machine without MLflow writes."""

    def __init__(self, path: Path, run: str = "") -> None:
        self.path, self.run = path, run
        path.parent.mkdir(parents=True, exist_ok=True)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a", newline="") as stream:
            csv.writer(stream).writerows([time.time(), self.run, step, name, value] for name, value in values.items())

    def child(self, name: str) -> Self:
        return type(self)(self.path, f"{self.run}/{name}".strip("/"))


class MlflowTracker:
    """One MLflow run, opened at the first word said to it: a stage that is reused leaves no empty run behind.

    Opening it needs the server (ServiceError: better before the work than after it). From then on nothing said here raises or blocks for long: what the
    server does not take waits, and is written to OUT.run/mlflow in the end; the next run of the same output sends it, and ends what a killed one left open.
    """

    def __init__(self, uri: str, name: str, *, parent: str | None = None, tags: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
        self.uri, self.name, self.parent = uri, name, parent
        self._tags, self._run, self._experiment = dict(tags or {}), "", ""
        self._folder = folder  # OUT.run/mlflow
        self._box = Outbox(self._send, f"MLflow at {uri}")
        self._traced = False

    @functools.cached_property
    def client(self) -> Any:
        return _client(self.uri)

    @property
    def run_id(self) -> str:
        if not self._run:
            with reaching(self.uri):
                self._experiment = _experiment(self.client)
                tags = {**self._tags, "mlflow.runName": self.name, "mlflow.source.name": "vlm", **({"mlflow.parentRunId": self.parent} if self.parent else {})}
                self._run = self.client.create_run(self._experiment, tags=tags, run_name=self.name).info.run_id
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / f"{self._run}.open").write_text(self.uri)
        return self._run

    @property
    def url(self) -> str | None:
        return run_url(self.uri, self._experiment, self._run) if self._run else None

    def keep(self, record: Path) -> None:
        """First what runs before this one left there: words are sent, and what they left RUNNING ends as KILLED (its process held the lease that is ours now)."""
        self._folder = record / "mlflow"
        for file in sorted(self._folder.glob("*.jsonl")):
            words = [word for word in read(file) if word["uri"] == self.uri]
            box = Outbox(self._send, f"MLflow at {self.uri}")
            box.waiting = words
            if words and box.send(now=True) and not box.refused:
                file.unlink()
                shutil.rmtree(file.with_suffix(".files"), ignore_errors=True)
        for file in self._folder.glob("*.open"):
            if file.read_text() == self.uri:
                with contextlib.suppress(Exception):  # away, or the run was deleted: the work does not need it
                    _end_killed(self.client, file.stem)
                    file.unlink()

    def params(self, values: Mapping[str, Any]) -> None:
        rows = [[_key(name), str(value)[:6000]] for name, value in values.items()]
        for start in range(0, len(rows), 100):
            self._say("params", values=rows[start : start + 100])

    def tags(self, values: Mapping[str, str]) -> None:
        self._say("tags", values=[[name, str(value)[:5000]] for name, value in values.items()])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        rows = [[_key(name), float(value), now, step or 0] for name, value in values.items()]
        for start in range(0, len(rows), VALUES):
            self._say("metrics", values=rows[start : start + VALUES])

    def _say(self, call: str, **what: Any) -> None:
        self._box.put({"call": call, "uri": self.uri, "run": self.run_id, **what})
        self._box.send(now=call != "metrics" and not self._box.is_away)

    def _send(self, word: Word) -> None:
        from mlflow import entities as e

        run, call, values = word["run"], word["call"], word.get("values", [])
        if call == "params":
            self.client.log_batch(run, params=[e.Param(*row) for row in values])
        elif call == "tags":
            self.client.log_batch(run, tags=[e.RunTag(*row) for row in values])
        elif call == "metrics":
            self.client.log_batch(run, metrics=[e.Metric(*row) for row in values])
        elif call == "dataset":
            found = e.Dataset(name=word["name"], digest=word["digest"], source_type="local", source=json.dumps({"uri": word["source"]}))
            self.client.log_inputs(run, [e.DatasetInput(dataset=found, tags=[e.InputTag("mlflow.data.context", word["context"])])])
        elif call == "file":
            self.client.log_artifact(run, word["path"], word["folder"])
        else:
            self.client.set_terminated(run, word["status"], word["at"])

    def flush(self) -> bool:
        """Send what waits; False when the server did not take it (it stays)."""
        return self._box.send(now=True)

    def settle(self) -> str:
        """Send what waits; a sentence about what was not taken and where it lies, or ''."""
        if not self._run or (self.flush() and not self._box.refused):
            return ""
        where = self._leave()
        kept = f"it lies in {where} and is sent by the next 'vlm' command for the same output" if where else "it is lost, because this run has no folder"
        refused = f"{len(self._box.refused)} refused, " if self._box.refused else ""
        return f"MLflow at {self.uri} did not take {refused}{self._box.said()} of run {self._run}; {kept}."

    def _leave(self) -> Path | None:
        if self._folder is None:
            return None
        file = self._folder / f"{self._run}.jsonl"
        self._box.write(file, file.with_suffix(".files"))
        return file

    def picture(self, name: str, path: Path) -> None:
        self.artefact(path, "pictures")

    def artefact(self, path: Path, folder: str = "") -> None:
        self._say("file", path=str(path.absolute()), folder=folder or None)
        if self._folder is not None:  # it may be moved or removed before it can be sent
            self._box.keep_files(self._folder / f"{self._run}.files")

    def dataset(self, name: str, digest: str, uri: str, context: str) -> None:
        self._say("dataset", name=name, digest=digest[:36], source=uri, context=context)

    def trace(self, name: str, asked: Mapping[str, str], answered: str, seconds: float, facts: Mapping[str, Any]) -> str:
        run_id = self.run_id  # also finds the experiment
        if self._box.is_away:
            return ""
        try:
            return self._trace(run_id, name, redacted(dict(asked)), redacted(answered), seconds, redacted(dict(facts)))
        except Exception as error:  # a trace is not worth a run
            print(f"MLflow at {self.uri} did not take a trace ({type(error).__name__})", file=sys.stderr)
            return ""

    def _trace(self, run_id: str, name: str, asked: Mapping[str, str], answered: str, seconds: float, facts: Mapping[str, Any]) -> str:
        import mlflow

        end, attributes = time.time_ns(), {key: str(value) for key, value in facts.items()}
        mlflow.set_tracking_uri(self.uri)  # traces go where this says, not where the client does
        with warnings.catch_warnings(action="ignore"):  # MLflow warns of type hints of its own
            span = self.client.start_trace(
                name, span_type="LLM", inputs=dict(asked), attributes=attributes, experiment_id=self._experiment, run_id=run_id,
                start_time_ns=end - int(seconds * 1e9),
            )  # fmt: skip
            if span.trace_id.startswith("MLFLOW_NO_OP"):  # it could not, and has said why: a trace is not worth a run
                return ""
            self._traced = True
            self.client.end_trace(span.trace_id, outputs=answered, end_time_ns=end)
        return str(span.trace_id)

    def model_metrics(self, model_id: str, values: Mapping[str, tuple[float, str]], dataset: tuple[str, str]) -> None:
        """Results of a LoggedModel: name -> (value, id of its protocol card), on the data that it was trained on (name, digest)."""
        from mlflow.entities import Metric

        now, (name, digest) = int(time.time() * 1000), dataset
        rows = [
            Metric(_key(key), value, now, 0, model_id=model_id, dataset_name=name, dataset_digest=digest[:36], run_id=self.run_id)
            for key, (value, _) in values.items()
        ]
        for start in range(0, len(rows), 1000):
            self.client.log_batch(self.run_id, metrics=rows[start : start + 1000])
        cards = {f"card/{_key(key)}"[:250]: card for key, (_, card) in values.items()}
        self.client.set_logged_model_tags(model_id, cards)

    def child(self, name: str) -> Self:
        return type(self)(self.uri, name, parent=self.run_id, tags=self._tags, folder=self._folder)

    def close(self, status: str = "FINISHED") -> None:
        if not self._run:
            return
        if self._traced and not self._box.is_away:
            import mlflow

            with contextlib.suppress(Exception):
                mlflow.flush_trace_async_logging()
        self._box.put({"call": "end", "uri": self.uri, "run": self._run, "status": status, "at": int(time.time() * 1000)})
        self.flush()
        if self._leave() is not None and self._folder is not None:
            (self._folder / f"{self._run}.open").unlink(missing_ok=True)


def _end_killed(client: Any, run_id: str) -> None:
    """End a run whose process is gone, and the runs nested in it, where MLflow still calls them RUNNING."""
    run = client.get_run(run_id)
    for child in client.search_runs([run.info.experiment_id], f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run_id}'"):
        _end_killed(client, child.info.run_id)
    if run.info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Where an answer of MLflow is needed: that it does not come, or is an error of the server, is one sentence. Raises ServiceError."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("mlflow") or is_refusal(error):
            raise
        raise ServiceError(
            f"Found no answer from MLflow at {uri} ({type(error).__name__}: {str(error)[:200]}), expected one; give the same command again once it runs."
        ) from error


def from_environment(verb: str, recipe: str) -> Tracker | None:
    """The tracker that the launcher asked for ($MLFLOW_TRACKING_URI, $VLM_MLFLOW_PARENT, $VLM_DAGSTER_RUN), or None for the default."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    dagster_run = os.environ.get("VLM_DAGSTER_RUN")
    tags = {DAGSTER_RUN: dagster_run} if dagster_run else {}
    return MlflowTracker(uri, f"{verb}/{recipe}" if recipe else verb, parent=os.environ.get("VLM_MLFLOW_PARENT") or None, tags=tags)


def parent_run(uri: str, dagster_run: str, name: str) -> tuple[str, str | None]:
    """(id, address) of the one MLflow run of a Dagster run, made at the first call."""
    client = _client(uri)
    experiment = _experiment(client)
    found = client.search_runs([experiment], f"tags.`{DAGSTER_RUN}` = '{dagster_run}' and tags.role = 'job'", max_results=1)
    run = found[0] if found else client.create_run(experiment, run_name=name, tags={DAGSTER_RUN: dagster_run, "role": "job"})
    return run.info.run_id, run_url(uri, experiment, run.info.run_id)


def end_runs(uri: str, dagster_run: str, status: str) -> int:
    """Close what a Dagster run left RUNNING in MLflow (a killed process cannot do it itself); how many were closed."""
    client = _client(uri)
    open_runs = client.search_runs([_experiment(client)], f"attributes.status = 'RUNNING' and tags.`{DAGSTER_RUN}` = '{dagster_run}'")
    for run in open_runs:
        client.set_terminated(run.info.run_id, status)
    return len(open_runs)


def open_runs(uri: str) -> dict[str, int]:
    """Dagster run id -> how many MLflow runs of it are RUNNING."""
    client = _client(uri)
    runs = client.search_runs([_experiment(client)], "attributes.status = 'RUNNING'")
    return dict(Counter(run.data.tags[DAGSTER_RUN] for run in runs if DAGSTER_RUN in run.data.tags))


class Registered(NamedTuple):
    """A version in the model registry."""

    name: str
    version: int
    model_id: str
    weights: str  # SHA-256 of model.safetensors
    tags: dict[str, str]


class Registry:
    """Models and their aliases in MLflow: one LoggedModel (folder of plain files, no pickle) per model, versions that point to it."""

    def __init__(self, uri: str) -> None:
        self.uri, self.client = uri, _client(uri)

    def versions(self, name: str) -> list[Registered]:
        """Oldest first."""
        found = self.client.search_model_versions(f"name = '{name}'")
        return sorted((self._read(version) for version in found), key=lambda version: version.version)

    def holder(self, name: str, alias: str) -> Registered | None:
        """The version that an alias points to."""
        from mlflow.exceptions import MlflowException

        try:
            return self._read(self.client.get_model_version_by_alias(name, alias))
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise

    def register(self, name: str, folders: Mapping[str, Path], tags: Mapping[str, str], params: Mapping[str, Any], run_id: str) -> Registered:
        """A new version: the model's folder at the top, further folders (its evaluation) below it."""
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        mlflow.set_tracking_uri(self.uri)  # a database store looks the LoggedModel of a version up where this says, not where the client does
        with contextlib.suppress(MlflowException):  # it exists
            self.client.create_registered_model(name)
        model = self.client.create_logged_model(
            _experiment(self.client),
            name=name,
            source_run_id=run_id,
            tags=dict(tags),
            params={_key(k): str(v)[:250] for k, v in params.items()},
            model_type="vlm",
        )
        for below, folder in folders.items():
            self.client.log_model_artifacts(model.model_id, str(folder)) if not below else self._upload(model.model_id, folder, below)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return self._read(self.client.create_model_version(name, f"models:/{model.model_id}", run_id, tags=dict(tags), model_id=model.model_id))

    def _upload(self, model_id: str, folder: Path, below: str) -> None:
        with tempfile.TemporaryDirectory() as tmp:
            shutil.copytree(folder, Path(tmp) / below)
            self.client.log_model_artifacts(model_id, tmp)

    def fetch(self, version: Registered, folder: Path) -> Path:
        """All files of a version, in a folder on this machine."""
        from mlflow.artifacts import download_artifacts

        folder.mkdir(parents=True, exist_ok=True)
        return Path(download_artifacts(f"models:/{version.model_id}", dst_path=str(folder), tracking_uri=self.uri))

    def point(self, alias: str, version: Registered) -> None:
        self.client.set_registered_model_alias(version.name, alias, version.version)

    @staticmethod
    def _read(version: Any) -> Registered:
        tags = dict(version.tags or {})
        return Registered(version.name, int(version.version), version.model_id or version.source.removeprefix("models:/"), tags.get("weights_sha256", ""), tags)


def run_url(uri: str, experiment: str, run_id: str) -> str | None:
    """The page of a run, on the side of MLflow's pages that shows training; a browser new to them shows language-model applications."""
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning" if uri.startswith("http") else None


def _key(name: str) -> str:
    """MLflow's names know letters, digits and _-./: only (R@1 becomes R_at_1)."""
    return re.sub(r"[^\w\-./: ]", "_", name.replace("@", "_at_"))[:250]


@functools.cache
def _client(uri: str) -> Any:
    """Raises ServiceError when nothing answers at an http address: better before the work than after it."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    if uri.startswith("http"):
        try:
            urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
        except OSError as error:
            raise ServiceError(f"Found no MLflow server at {uri} ({error}), expected one; start it with 'make up', or unset MLFLOW_TRACKING_URI.") from None
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: Any) -> str:
    """The id of the experiment, made at first use. Without a server its files lie beside the database."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    uri: str = client.tracking_uri
    beside = Path(uri.removeprefix("sqlite:///")).absolute().with_name("artifacts").as_uri() if uri.startswith("sqlite:") else None
    try:
        return str(client.create_experiment(EXPERIMENT, artifact_location=beside))
    except MlflowException:  # somebody else was faster
        return str(client.get_experiment_by_name(EXPERIMENT).experiment_id)
