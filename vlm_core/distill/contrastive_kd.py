"""Interactive contrastive learning, ICL (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732, eq. 8), and its KL relative.

The official code multiplies by the LOG of the scale (2.659, no exp): `scale=ln(1/0.07)` reproduces it.
We use the student's own scale unless a fixed one is set. Checked by golden `distillation/clip_kd_losses`.
"""
# B pairs, D joint width

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_core.distill.base import DistillTerm, Embeddings
from vlm_core.distill.config import ContrastiveKd


def interactive_logits(student: Embeddings, teacher: Embeddings, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(student image x teacher text, student text x teacher image), each (B, B)."""
    return scale * student.image_BD @ teacher.text_BD.T, scale * student.text_BD @ teacher.image_BD.T


def contrastive_kd_loss(student: Embeddings, teacher: Embeddings, scale: Tensor) -> Tensor:
    """Cross-entropy of both cross-model logit matrices against the diagonal, mean of the two."""
    from_image_BB, from_text_BB = interactive_logits(student, teacher, scale)
    own_B = torch.arange(len(from_image_BB), device=from_image_BB.device)
    return (F.cross_entropy(from_image_BB, own_B) + F.cross_entropy(from_text_BB, own_B)) / 2


class ContrastiveKdTerm(DistillTerm):
    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.fixed_scale = scale

    def forward(self, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
        scale = student.scale if self.fixed_scale is None else student.scale.new_tensor(self.fixed_scale)
        return {"contrastive_kd": contrastive_kd_loss(student, teacher, scale)}


def build(config: ContrastiveKd, width: int) -> ContrastiveKdTerm:
    return ContrastiveKdTerm(config.scale)
