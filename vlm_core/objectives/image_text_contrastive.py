"""CLIP's loss: symmetric InfoNCE over the global batch (Radford et al., arXiv 2103.00020, figure 3).

Differs from open_clip in memory only: rows are scored in chunks that are made again in backward, so that the logits of a large batch never exist at once.
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, D joint width

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives import gather
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import both_ways


def clip_loss(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor | None = None, *,
    image_ND: Tensor | None = None, text_ND: Tensor | None = None, offset: int = 0, chunk_size: int = 0, label_smoothing: float = 0.0,
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
        label_smoothing: share of a target that is spread evenly over all columns (ALIGN, arXiv 2102.05918: 0.1).

    Source: CLIP, arXiv 2103.00020. Checked by goldens `pretraining/clip_loss` and `pretraining/distributed_losses`.
    """
    pairs = gather.Pairs(image_BD, text_BD, image_BD if image_ND is None else image_ND, text_BD if text_ND is None else text_ND, offset)
    return both_ways(pairs, scale, bias, chunk_size=chunk_size, label_smoothing=label_smoothing)


class ImageTextContrastive(Objective):
    def __init__(self, config: menu.ImageTextContrastive) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        config = self.config
        with full_precision(out.image_BD.device):
            pairs = gather.exchange(out.image_BD, out.text_BD, config.local_loss, config.gather_with_grad)
            loss = both_ways(pairs, out.scale, out.bias, chunk_size=config.chunk_size, label_smoothing=config.label_smoothing)
        return {"image_text_contrastive": loss}


def build(config: menu.ImageTextContrastive, towers: TwoTower) -> Objective:
    return ImageTextContrastive(config)
