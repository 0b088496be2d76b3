"""What an objective is, and how the chosen ones are built."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu

T = TypeVar("T")


class Objective(nn.Module, ABC):
    """`forward(out, batch)` gives {name: unweighted scalar}; any number of named terms.

    Queues, slow copies and running means are buffers, so that a checkpoint holds them; they change in training mode only.
    """

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the towers shall see beside the pairs, or instead of them (masked or mixed inputs); laid over the batch before they run."""
        return {}

    def factor(self, term: str) -> float:
        """Of a named term in the objective's own sum, which the loop multiplies by its weight; terms are recorded without it."""
        return 1.0

    def scales(self) -> dict[str, Tensor]:
        """Logit scales of its own, by name; the loop records them beside the model's."""
        return {}

    def clamp_scale(self) -> None:
        """Keep them in their bounds; the loop calls this after every optimiser step (rule 2 of the pre-training sheet: not inside forward)."""

    @abstractmethod
    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]: ...


def build(config: menu.Objectives, towers: TwoTower) -> tuple[dict[str, Objective], dict[str, float]]:
    """(objectives, weights) by kind: `sigmoid` lives in `vlm_core/objectives/sigmoid.py`. The towers are read, never owned."""
    chosen = config.chosen()
    modules = {kind: importlib.import_module(f"vlm_core.objectives.{kind}").build(settings, towers) for kind, settings in chosen.items()}
    return modules, {kind: settings.weight for kind, settings in chosen.items()}


def present(value: T | None) -> T:
    """What the towers make because an objective's `needs` name it."""
    if value is None:
        raise ValueError("the towers did not make what this objective needs; settings that do not fit are refused before anything is built")
    return value


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Logits and softmax in float32 also where the towers run under autocast (rule 6 of the pre-training sheet)."""
    with torch.autocast(device.type, enabled=False):
        yield
