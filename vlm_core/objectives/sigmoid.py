"""SigLIP's loss: a logistic question per pair, no softmax over the batch (Zhai et al., arXiv 2303.15343, algorithm 1).

Texts of other ranks come through one gather and are scored in chunks; the paper passes them around a ring. Same value, same gradient (golden
`pretraining/distributed_losses` holds the official ring, shift, reduce and gather variants).
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, D joint width

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives import gather
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import logits, over_rows


def siglip_loss(image_BD: Tensor, text_ND: Tensor, scale: Tensor, bias: Tensor, *, offset: int = 0, negative_only: bool = False, chunk_size: int = 0) -> Tensor:
    """Pairwise sigmoid loss over all image-text pairs, per image: -(1/B) sum log sigmoid(z (s v.t + b)), z = 1 for matching pairs, else -1.

    Args:
        image_BD: unit-norm embeddings of this rank, at least float32.
        text_ND: the same of the texts they are scored against.
        scale: multiplies the cosine, > 0 (exp of the learnt log scale).
        bias: added to every logit; starts at -10.
        offset: image i belongs to text offset + i.
        negative_only: no image has its text here (a block from another rank).
        chunk_size: rows of logits that exist at a time; 0 is all. Same value, same gradient.

    Source: SigLIP, arXiv 2303.15343. Checked by golden `pretraining/siglip_loss`.
    """
    return over_rows(_chunk, [image_BD], text_ND, scale, bias, None if negative_only else offset, chunk_size=chunk_size) / len(image_BD)


def _chunk(begin: int, image_KD: Tensor, text_ND: Tensor, scale: Tensor, bias: Tensor, offset: int | None) -> Tensor:
    logits_KN = logits(image_KD, text_ND, scale, bias)
    total = -F.logsigmoid(-logits_KN).sum()  # every pair as a negative; -log sigmoid(x) = -log sigmoid(-x) - x puts the positives right
    return total if offset is None else total - logits_KN.diagonal(offset + begin).sum()


class Sigmoid(Objective):
    def __init__(self, config: menu.Sigmoid) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            pairs = gather.exchange(out.image_BD, out.text_BD)
            loss = siglip_loss(pairs.image_BD, pairs.text_ND, out.scale, present(out.bias), offset=pairs.offset, chunk_size=self.config.chunk_size)
        return {"sigmoid": loss}


def build(config: menu.Sigmoid, towers: TwoTower) -> Objective:
    return Sigmoid(config)
