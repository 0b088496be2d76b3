"""Pairs of one class, which is an equal caption, are all right for each other: contrast in the space of images, texts and labels (UniCL, arXiv 2204.03610, algorithm 1).

The official repository does not hold the loss; it is the paper's algorithm. A pair without a class (label 0) is right for itself only. In training
equal captions are one class: the text of labelled data is its class name, and a web snapshot repeats captions, which plain CLIP sets against each other.
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, D joint width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import logits, over_rows
from vlm_core.objectives.gather import Pairs, exchange, gather


def own_labels(labels_B: Tensor, offset: int = 0) -> Tensor:
    """Labels in which every 0 (no class) became a negative number of its own; offset keeps those of other ranks apart."""
    return torch.where(labels_B == 0, -(torch.arange(len(labels_B), device=labels_B.device) + offset + 1), labels_B)


def unicl_targets(labels_B: Tensor) -> Tensor:
    """(B, B), 1 where two pairs belong together. Checked by golden `pretraining/unicl_loss`."""
    own_B = own_labels(labels_B)
    return (own_B[:, None] == own_B).double()


def unicl_loss(pairs: Pairs, scale: Tensor, labels_B: Tensor, labels_N: Tensor, *, chunk_size: int = 0) -> Tensor:
    """Mean of both directions of the cross-entropy with the mean over all right columns as target; labels as `own_labels` gives them.

    Source: UniCL, arXiv 2204.03610. Checked by golden `pretraining/unicl_loss`.
    """
    forward = over_rows(_chunk, [pairs.image_BD, labels_B], pairs.text_ND, labels_N, scale, chunk_size=chunk_size)
    return (forward + over_rows(_chunk, [pairs.text_BD, labels_B], pairs.image_ND, labels_N, scale, chunk_size=chunk_size)) / (2 * len(labels_B))


def _chunk(begin: int, rows_KD: Tensor, labels_K: Tensor, columns_ND: Tensor, labels_N: Tensor, scale: Tensor) -> Tensor:
    right_KN = labels_K[:, None] == labels_N
    log_KN = logits(rows_KD, columns_ND, scale).log_softmax(1)
    return -(log_KN.where(right_KN, log_KN.new_zeros(())).sum(1) / right_KN.sum(1)).sum()


class ImageTextLabel(Objective):
    def __init__(self, config: menu.ImageTextLabel) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            pairs = exchange(out.image_BD, out.text_BD)
            labels_B = own_labels(batch["labels"], pairs.offset)
            loss = unicl_loss(pairs, out.scale, labels_B, gather(labels_B, with_grad=False), chunk_size=self.config.chunk_size)
        return {"image_text_label": loss}


def build(config: menu.ImageTextLabel, towers: TwoTower) -> Objective:
    return ImageTextLabel(config)
