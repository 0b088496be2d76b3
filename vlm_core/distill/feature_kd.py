"""Feature distillation, FD (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732, eq. 5).

The strongest single term of the paper. Checked by golden `distillation/clip_kd_losses`.
"""
# B pairs, D joint width

import torch.nn.functional as F
from torch import Tensor

from vlm_core.distill.base import DistillTerm, Embeddings
from vlm_core.distill.config import FeatureKd


def feature_kd_loss(student_image_BD: Tensor, student_text_BD: Tensor, teacher_image_BD: Tensor, teacher_text_BD: Tensor) -> Tensor:
    """Mean squared error of unit embeddings, image plus text. Zero when student equals teacher."""
    return F.mse_loss(student_image_BD, teacher_image_BD) + F.mse_loss(student_text_BD, teacher_text_BD)


class FeatureKdTerm(DistillTerm):
    def forward(self, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
        return {"feature_kd": feature_kd_loss(student.image_BD, student.text_BD, teacher.image_BD, teacher.text_BD)}


def build(config: FeatureKd, width: int) -> FeatureKdTerm:
    return FeatureKdTerm()
