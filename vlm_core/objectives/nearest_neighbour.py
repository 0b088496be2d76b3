"""A picture also meets the text that is nearest to its own among earlier ones (DeCLIP's nearest-neighbour supervision, arXiv 2110.05208, equation 8).

Differs from the official code: texts of all ranks enter the bank, which goes on at the front when it is full instead of dropping the rest of the batch,
and is part of the checkpoint. Only pictures learn here: the bank has no gradient.
"""

# B rows of this rank, K rows of the bank, D joint width

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import cross_entropy
from vlm_core.objectives.gather import gather, world
from vlm_core.objectives.queue import Queue

LOOKED_UP = 1024  # rows that are compared with the bank at a time


@torch.no_grad()
def nearest(bank_KD: Tensor, query_BD: Tensor) -> Tensor:
    """The bank's row with the highest dot product for each query, unit norm: (B, D). Checked by golden `pretraining/nn_supervision`."""
    best_B = torch.cat([(part_BD @ bank_KD.T).argmax(1) for part_BD in query_BD.split(LOOKED_UP)])
    return F.normalize(bank_KD[best_B], dim=-1, eps=1e-10)


def nn_supervision_loss(images: Sequence[Tensor], neighbours: Sequence[Tensor], scale: Tensor, *, chunk_size: int = 0) -> Tensor:
    """Mean over views (B, D) and neighbours (B, D) of the cross-entropy of finding the own text's neighbour; rows of this rank.

    Source: DeCLIP, arXiv 2110.05208. Checked by golden `pretraining/nn_supervision`.
    """
    rank = world()[0]
    losses = [
        cross_entropy(image_BD, gather(text_BD, with_grad=False), scale, offset=rank * len(image_BD), chunk_size=chunk_size)
        for image_BD in images for text_BD in neighbours
    ]  # fmt: skip
    return torch.stack(losses).mean()


class NearestNeighbour(Objective):
    def __init__(self, config: menu.NearestNeighbour, width: int) -> None:
        super().__init__()
        self.config = config
        self.bank = Queue(config.bank, width)

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images, text_BD, augmented_BD = (out.image_BD, out.views[0].image_BD), out.text_BD, present(out.augmented_BD)
        with full_precision(text_BD.device):
            of_text_BD = nearest(self.bank.rows_KD, text_BD)
            of_augmented_BD = nearest(self.bank.rows_KD, augmented_BD)
            if self.training:
                self.bank.push(augmented_BD)
                self.bank.push(text_BD)
            return {"nearest_neighbour": nn_supervision_loss(images, (of_text_BD, of_augmented_BD), out.scale, chunk_size=self.config.chunk_size)}


def build(config: menu.NearestNeighbour, towers: TwoTower) -> Objective:
    return NearestNeighbour(config, towers.joint_width)
