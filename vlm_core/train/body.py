"""Everything that learns in a pre-training run: encode once, ask every chosen objective, take the weighted sum."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives.base import Objective

Batch = dict[str, Any]
Terms = dict[str, Tensor]


class Lesson(nn.Module, ABC):
    """What a batch teaches beside the objectives, as distillation does: `forward(out, batch)` gives {name: weighted scalar}."""

    @abstractmethod
    def forward(self, out: Outputs, batch: Batch) -> Terms: ...


class Body(nn.Module):
    """The towers, and whatever parameters objectives and the lesson have. `body(batch)` is (what is minimised, unweighted terms by name)."""

    def __init__(
        self, towers: TwoTower, objectives: Mapping[str, Objective], weights: Mapping[str, float], needs: frozenset[str], lesson: Lesson | None = None
    ) -> None:
        super().__init__()
        self.towers, self.objectives, self.lesson = towers, nn.ModuleDict(objectives), lesson
        self.weights, self.needs = dict(weights), needs
        self.seen: tuple[Tensor, Tensor] | None = None  # image and text embeddings of the last batch, for those who watch

    def ask(self, batch: Batch) -> Batch:
        """The batch with what objectives want the towers to see beside it, or instead."""
        return {**batch, **{name: value for objective in self.objectives.values() for name, value in objective.ask(batch).items()}}  # type: ignore[operator]

    def judge(self, out: Outputs, batch: Batch) -> tuple[Tensor, Terms]:
        self.seen = (out.image_BD.detach(), out.text_BD.detach())
        terms: dict[str, Terms] = {kind: objective(out, batch) for kind, objective in self.objectives.items()}
        total = sum((self.weight_of(name) * value for named in terms.values() for name, value in named.items()), torch.zeros((), device=out.scale.device))
        taught: Terms = self.lesson(out, batch) if self.lesson is not None else {}
        return sum(taught.values(), total), {name: value for named in (*terms.values(), taught) for name, value in named.items()}

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        batch = self.ask(batch)
        return self.judge(self.towers(batch, self.needs), batch)

    def clamp_scales(self) -> None:
        """Keep logit scales in their bounds: that of the towers, and those of objectives."""
        self.towers.clamp_scale()
        for objective in self.objectives.values():
            objective.clamp_scale()  # type: ignore[operator]

    def scales(self) -> dict[str, float]:
        """The logit scale under "scale", those of objectives under "scale.<name>"."""
        own = {f"scale.{name}": float(value) for objective in self.objectives.values() for name, value in objective.scales().items()}  # type: ignore[operator]
        return {"scale": float(self.towers.scale.detach()), **own}

    def weight_of(self, term: str) -> float:
        """The factor of a term in the sum; terms of a lesson come weighted."""
        kind = term.partition(".")[0]
        return self.weights[kind] * self.objectives[kind].factor(term) if kind in self.weights else 1.0  # type: ignore[operator]
