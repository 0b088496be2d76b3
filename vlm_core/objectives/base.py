"""What an objective is, and how the chosen ones are built."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models.towers import Outputs
from vlm_core.objectives import config as menu


class Objective(nn.Module, ABC):
    """`forward(out, batch)` gives {name: unweighted scalar}; any number of named terms."""

    @abstractmethod
    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]: ...


def build(config: menu.Objectives) -> tuple[dict[str, Objective], dict[str, float]]:
    """(objectives, weights) by kind: `sigmoid` lives in `vlm_core/objectives/sigmoid.py`."""
    chosen = config.chosen()
    modules = {kind: importlib.import_module(f"vlm_core.objectives.{kind}").build(settings) for kind, settings in chosen.items()}
    return modules, {kind: settings.weight for kind, settings in chosen.items()}


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Logits and softmax in float32 also where the towers run under autocast (rule 6 of the pre-training sheet)."""
    with torch.autocast(device.type, enabled=False):
        yield
