"""Augmented feature distillation, AFD (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732, eq. 9).

Student and teacher embeddings are joined, projected and contrasted. The official code multiplies by the LOG of the scale;
we use the student's scale. Checked by golden `distillation/clip_kd_losses`.
"""
# B pairs, D joint width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_core.distill.base import DistillTerm, Embeddings
from vlm_core.distill.config import FusedKd


def fused_kd_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of fused, not yet normalised embeddings against the diagonal."""
    logits_BB = scale * F.normalize(image_BD, dim=-1) @ F.normalize(text_BD, dim=-1).T
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2


class FusedKdTerm(DistillTerm):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.image_fusion, self.text_fusion = nn.Linear(2 * width, width), nn.Linear(2 * width, width)

    def forward(self, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
        image_BD = self.image_fusion(torch.cat([student.image_BD, teacher.image_BD], dim=1))
        text_BD = self.text_fusion(torch.cat([student.text_BD, teacher.text_BD], dim=1))
        return {"fused_kd": fused_kd_loss(image_BD, text_BD, student.scale)}


def build(config: FusedKd, width: int) -> FusedKdTerm:
    return FusedKdTerm(width)
