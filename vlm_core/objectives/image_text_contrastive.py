"""CLIP's loss: symmetric InfoNCE over the global batch (Radford et al., arXiv 2103.00020, figure 3).

Differs from open_clip in memory only: rows are scored in chunks that are made again in backward, so that the logits of a large batch never exist at once.
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, D joint width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlm_core.models.towers import Outputs
from vlm_core.objectives import config as menu
from vlm_core.objectives import gather
from vlm_core.objectives.base import Objective, full_precision


def clip_logits(rows_BD: Tensor, columns_ND: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled cosines (B, N) of unit-norm embeddings."""
    logits_BN = scale * rows_BD @ columns_ND.T
    return logits_BN if bias is None else logits_BN + bias


def clip_loss(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor | None = None, *,
    image_ND: Tensor | None = None, text_ND: Tensor | None = None, offset: int = 0, chunk_size: int = 0,
) -> Tensor:  # fmt: skip
    """Mean of the image-to-text and text-to-image cross-entropies.

    Args:
        image_BD: unit-norm embeddings of this rank.
        text_BD: the same of its texts; row i belongs to row i.
        scale: multiplies the cosine, > 0 (exp of the learnt log scale).
        bias: added to every logit; changes nothing here, but open_clip allows it.
        image_ND: what the texts are scored against, if more than image_BD.
        text_ND: what the images are scored against, if more than text_BD.
        offset: row i belongs to column offset + i.
        chunk_size: rows of logits that exist at a time; 0 is all. Same value, same gradient.

    Source: CLIP, arXiv 2103.00020. Checked by goldens `pretraining/clip_loss` and `pretraining/distributed_losses`.
    """
    image_ND = image_BD if image_ND is None else image_ND
    text_ND = text_BD if text_ND is None else text_ND
    forward = _cross_entropy(image_BD, text_ND, scale, bias, offset, chunk_size)
    return (forward + _cross_entropy(text_BD, image_ND, scale, bias, offset, chunk_size)) / 2


def _cross_entropy(rows_BD: Tensor, columns_ND: Tensor, scale: Tensor, bias: Tensor | None, offset: int, chunk_size: int) -> Tensor:
    if not 0 < chunk_size < len(rows_BD):
        return _chunk(rows_BD, columns_ND, scale, bias, offset) / len(rows_BD)
    total = rows_BD.new_zeros(())
    for begin in range(0, len(rows_BD), chunk_size):
        rows_KD = rows_BD[begin : begin + chunk_size]
        total = total + checkpoint(_chunk, rows_KD, columns_ND, scale, bias, offset + begin, use_reentrant=False, preserve_rng_state=False)
    return total / len(rows_BD)


def _chunk(rows_KD: Tensor, columns_ND: Tensor, scale: Tensor, bias: Tensor | None, offset: int) -> Tensor:
    labels_K = torch.arange(offset, offset + len(rows_KD), device=rows_KD.device)
    return F.cross_entropy(clip_logits(rows_KD, columns_ND, scale, bias), labels_K, reduction="sum")


class ImageTextContrastive(Objective):
    def __init__(self, config: menu.ImageTextContrastive) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            image_BD, text_BD, image_ND, text_ND, offset = gather.exchange(out.image_BD, out.text_BD, self.config.local_loss, self.config.gather_with_grad)
            chunk = self.config.chunk_size
            loss = clip_loss(image_BD, text_BD, out.scale, out.bias, image_ND=image_ND, text_ND=text_ND, offset=offset, chunk_size=chunk)
        return {"image_text_contrastive": loss}


def build(config: menu.ImageTextContrastive) -> Objective:
    return ImageTextContrastive(config)
