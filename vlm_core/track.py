"""Where numbers and pictures of a run go. The only module of vlm_core that may import MLflow (and it does so late)."""

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self


class Tracker(Protocol):
    """What a verb may say while it runs. All calls are cheap enough for a training loop that logs every N steps."""

    def params(self, values: Mapping[str, Any]) -> None: ...
    def tags(self, values: Mapping[str, str]) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None: ...
    def picture(self, name: str, path: Path) -> None: ...
    def artefact(self, path: Path, folder: str = "") -> None: ...
    def dataset(self, name: str, digest: str, uri: str, context: str) -> None: ...
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


def from_environment(verb: str, recipe: str) -> Tracker | None:
    """The tracker that the launcher asked for ($MLFLOW_TRACKING_URI, $VLM_MLFLOW_PARENT), or None for the default."""
    return None
