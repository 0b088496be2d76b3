"""Gradient distillation, GD (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732, eq. 7).

The closed-form gradients of the contrastive loss with respect to the embeddings are matched. The official code divides
by the logit scale where the loss multiplies; `reference=True` keeps that. Checked by golden `distillation/clip_kd_losses`.
"""
# B pairs, D joint width

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_core.distill.base import DistillTerm, Embeddings
from vlm_core.distill.config import GradientKd


def contrastive_gradients(query_BD: Tensor, key_BD: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of mean CE(scale * query @ key.T, diagonal) with respect to query and to key, each (B, D)."""
    residual_BB = F.softmax(scale * query_BD @ key_BD.T, dim=1) - torch.eye(len(query_BD), dtype=query_BD.dtype, device=query_BD.device)
    return scale * residual_BB @ key_BD / len(query_BD), scale * residual_BB.T @ query_BD / len(query_BD)


def gradient_kd_loss(student: Embeddings, teacher: Embeddings, reference: bool = False) -> Tensor:
    """Sum of the four mean squared errors between student and teacher gradients (image -> text and text -> image, query and key)."""
    own, wanted = (
        [
            gradient
            for query_BD, key_BD in ((side.image_BD, side.text_BD), (side.text_BD, side.image_BD))
            for gradient in contrastive_gradients(query_BD, key_BD, 1 / side.scale if reference else side.scale)
        ]
        for side in (student, teacher)
    )
    return torch.stack([F.mse_loss(mine, target) for mine, target in zip(own, wanted, strict=True)]).sum()


class GradientKdTerm(DistillTerm):
    def forward(self, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
        return {"gradient_kd": gradient_kd_loss(student, teacher)}


def build(config: GradientKd, width: int) -> GradientKdTerm:
    return GradientKdTerm()
