"""InfoNCE of pictures and texts against the batch and a queue of earlier pairs; neither gets a gradient as a column (FIBER, arXiv 2206.07643).

As in FIBER the queue holds what the towers themselves made of earlier batches, not what a slow copy makes (ALBEF). Columns are those of all ranks.
Until the queue is full its free places are not looked at.
"""

# B pairs of this rank, N pairs of all ranks, K rows of the queue, D joint width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import cross_entropy
from vlm_core.objectives.gather import gather, world
from vlm_core.objectives.queue import Queue


def itc_queue_loss(
    image_BD: Tensor, text_BD: Tensor, image_KD: Tensor, text_KD: Tensor, scale: Tensor | float,
    *, image_ND: Tensor | None = None, text_ND: Tensor | None = None, offset: int = 0, chunk_size: int = 0,
) -> Tensor:  # fmt: skip
    """InfoNCE of rows against the batch and queues, which get no gradient: mean of both directions.

    All rows have unit norm; K are those of the queue, N those of all ranks, of which row i belongs to column offset + i (the rows themselves if not given).

    Source: FIBER, arXiv 2206.07643. Checked by golden `pretraining/itc_queue_hard_negatives`.
    """
    sides = (image_BD, text_BD if text_ND is None else text_ND, text_KD), (text_BD, image_BD if image_ND is None else image_ND, image_KD)
    ways = [
        cross_entropy(rows, torch.cat([columns.detach(), queue]), scale, offset=offset, chunk_size=chunk_size) for rows, columns, queue in sides
    ]  # fmt: skip
    return (ways[0] + ways[1]) / 2


class QueuedContrastive(Objective):
    def __init__(self, config: menu.QueuedContrastive, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.images, self.texts = (Queue(config.queue, towers.joint_width) for _ in range(2))
        self.filled: Tensor
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            image_ND, text_ND = (gather(rows.detach(), with_grad=False) for rows in (out.image_BD, out.text_BD))
            image_KD, text_KD = (queue.rows_KD[: int(self.filled)].clone() for queue in (self.images, self.texts))
            offset = world()[0] * len(out.image_BD)
            sizes: dict[str, Any] = {"offset": offset, "chunk_size": self.config.chunk_size}
            loss = itc_queue_loss(out.image_BD, out.text_BD, image_KD, text_KD, out.scale, image_ND=image_ND, text_ND=text_ND, **sizes)
        if self.training:
            self.images.push(out.image_BD)
            self.texts.push(out.text_BD)
            self.filled.add_(len(image_ND)).clamp_(max=len(self.images.rows_KD))
        return {"queued_contrastive": loss}


def build(config: menu.QueuedContrastive, towers: TwoTower) -> Objective:
    return QueuedContrastive(config, towers)
