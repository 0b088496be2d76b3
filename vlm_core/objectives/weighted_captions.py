"""ALIP's loss: every picture meets its raw and its synthetic caption, weighted by how far the three agree (Yang et al., ICCV 2023, arXiv 2308.08428, eq. 9).

    L = mean_i W_s W_t l_i(picture, raw) + mean_i W_s W_c l_i(picture, synthetic),   l_i = half of row i of image-to-text plus row i of text-to-image

Where we differ from the reference: the running means are part of the checkpoint, and may start at the first batch instead of at 1 (from which every
sample counts as doubtful for some hundred steps). Needs `loader.second_caption`; a sample with one caption meets it twice. Checked by golden
`data/{alip_adaptive,alip_weights_warm}`.
"""

# B rows of this rank, N rows of all ranks, D joint width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.data.captions.alip import Means, Weights, alip_weights, weights_at
from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives import gather
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import logits, over_rows


def weighted_clip_loss(
    image_BD: Tensor, text_BD: Tensor, scale: Tensor, pair_B: Tensor, sample_B: Tensor, *,
    image_ND: Tensor | None = None, text_ND: Tensor | None = None, offset: int = 0, chunk_size: int = 0,
) -> Tensor:  # fmt: skip
    """Symmetric InfoNCE whose rows are weighted.

    Args:
        image_BD: unit-norm embeddings of this rank.
        text_BD: the same of its texts; row i belongs to row i.
        scale: multiplies the cosine, > 0.
        pair_B: weights of the pairs, without gradient.
        sample_B: weights of the samples, without gradient.
        image_ND: what the texts are scored against, if more than image_BD.
        text_ND: what the images are scored against, if more than text_BD.
        offset: row i belongs to column offset + i.
        chunk_size: rows of logits that exist at a time; 0 is all. Same value, same gradient.

    Source: ALIP, arXiv 2308.08428. Checked by golden `data/alip_adaptive`.
    """
    image_ND, text_ND = (image_BD if image_ND is None else image_ND), (text_BD if text_ND is None else text_ND)
    weight_B, sides = sample_B * pair_B, ((image_BD, text_ND), (text_BD, image_ND))
    total = [over_rows(_chunk, [rows_BD, weight_B], columns_ND, scale, offset, chunk_size=chunk_size) for rows_BD, columns_ND in sides]
    return (total[0] + total[1]) / (2 * len(image_BD))


def _chunk(begin: int, rows_KD: Tensor, weight_K: Tensor, columns_ND: Tensor, scale: Tensor, offset: int) -> Tensor:
    labels_K = torch.arange(offset + begin, offset + begin + len(rows_KD), device=rows_KD.device)
    return (weight_K * F.cross_entropy(logits(rows_KD, columns_ND, scale), labels_K, reduction="none")).sum()


class WeightedCaptions(Objective):
    """Keeps the running means of the three agreements in `means` (text, raw, caption); NaN until the first batch where they start with it."""

    def __init__(self, config: menu.WeightedCaptions) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("means", torch.full((3,), float("nan") if config.start is None else config.start))
        self.means: Tensor

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            caption_BD = out.text_BD if out.caption_BD is None else out.caption_BD
            raw = gather.exchange(out.image_BD, out.text_BD)
            caption_ND = caption_BD if gather.world()[1] == 1 else gather.gather(caption_BD)
            mine = slice(raw.offset, raw.offset + len(out.image_BD))
            sample_B, raw_B, caption_B = (weight_N[mine] for weight_N in self._weights(raw.image_ND, raw.text_ND, caption_ND))
            sizes: dict[str, Any] = {"image_ND": raw.image_ND, "offset": raw.offset, "chunk_size": self.config.chunk_size}
            loss_raw = weighted_clip_loss(out.image_BD, out.text_BD, out.scale, raw_B, sample_B, text_ND=raw.text_ND, **sizes)
            loss_caption = weighted_clip_loss(out.image_BD, caption_BD, out.scale, caption_B, sample_B, text_ND=caption_ND, **sizes)
        return {"weighted_captions.raw": loss_raw, "weighted_captions.caption": loss_caption}

    @torch.no_grad()
    def _weights(self, image_ND: Tensor, raw_ND: Tensor, caption_ND: Tensor) -> Weights:
        """Of the whole batch, so that they are the same on every rank. Only training moves the means."""
        old, config = Means(*self.means), self.config
        if not self.training:
            return weights_at(old, image_ND, raw_ND, caption_ND, config.gamma)
        fresh = bool(self.means.isnan().any())
        weights, new = alip_weights(
            image_ND, raw_ND, caption_ND, Means(*torch.zeros_like(self.means)) if fresh else old, config.gamma, 0.0 if fresh else config.momentum
        )
        self.means.copy_(torch.stack(new))
        return weights


def build(config: menu.WeightedCaptions, towers: TwoTower) -> Objective:
    return WeightedCaptions(config)
