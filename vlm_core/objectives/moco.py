"""Momentum contrast: a view finds the other view, made by a slow copy of the encoder, among a queue of earlier pictures (MoCo v2, arXiv 2003.04297).

Differs from the official code: batch norm in the head sees the rows of all ranks instead of shuffled ones, so nothing leaks and one process gives the
same numbers as several; the queue need not be a multiple of the batch.
"""

# B rows of this rank, K rows of the queue, D projected width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.models.momentum import Momentum
from vlm_core.models.towers import Outputs, TwoTower, unit, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.heads import projector
from vlm_core.objectives.queue import Queue


def moco_infonce(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float = 0.07) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy, logits (B, 1 + K) with the matching key first); all rows of unit norm, keys and queue without gradient.

    Source: MoCo, arXiv 1911.05722, equation 1. Checked by golden `pretraining/moco_infonce`.
    """
    matching_B1 = (query_BD * key_BD.detach()).sum(-1, keepdim=True)
    logits = torch.cat([matching_B1, query_BD @ queue_KD.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)), logits


class _Encoder(nn.Module):
    """Pixels -> projected features, to be copied as one."""

    def __init__(self, tower: nn.Module, project: nn.Module) -> None:
        super().__init__()
        self.tower, self.project = tower, project

    def forward(self, images_B3HW: Tensor) -> Tensor:
        out_BD: Tensor = self.project(widen(self.tower.features(images_B3HW)))  # type: ignore[operator]
        return out_BD


class Moco(Objective):
    def __init__(self, config: menu.Moco, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.project = projector([towers.image_width, config.hidden, config.width])
        self.slow = Momentum(_Encoder(towers.image, self.project))
        self.queue = Queue(config.queue, config.width)

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        if self.training:
            self.slow.update(self.config.momentum)  # before the keys are made
        query_BF, key_BD = out.views[0].features_BF, self.slow(batch["views"][1])
        with full_precision(query_BF.device):
            key_BD = unit(key_BD)
            loss, _ = moco_infonce(unit(self.project(widen(query_BF))), key_BD, self.queue.rows_KD.clone(), self.config.temperature)
            if self.training:
                self.queue.push(key_BD)
        return {"moco": loss}


def build(config: menu.Moco, towers: TwoTower) -> Objective:
    return Moco(config, towers)
