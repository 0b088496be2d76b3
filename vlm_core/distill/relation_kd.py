"""Contrastive relational distillation, CRD (CLIP-KD, Yang et al., CVPR 2024, arXiv 2307.12732, eq. 4).

Temperature 1, both directions, mean. Checked by golden `distillation/clip_kd_losses`.
"""
# B pairs, D joint width

import torch.nn.functional as F
from torch import Tensor

from vlm_core.distill.base import DistillTerm, Embeddings
from vlm_core.distill.config import RelationKd


def row_kl(student_BB: Tensor, teacher_BB: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax of each row, mean over rows."""
    return F.kl_div(F.log_softmax(student_BB, dim=1), F.softmax(teacher_BB, dim=1), reduction="batchmean")


def relation_kd_loss(student: Embeddings, teacher: Embeddings) -> Tensor:
    """KL of the B x B similarity rows, image to text and text to image, mean. Zero when student equals teacher."""
    own_BB = student.scale * student.image_BD @ student.text_BD.T
    wanted_BB = teacher.scale * teacher.image_BD @ teacher.text_BD.T
    return (row_kl(own_BB, wanted_BB) + row_kl(own_BB.T, wanted_BB.T)) / 2


class RelationKdTerm(DistillTerm):
    same_width = False

    def forward(self, student: Embeddings, teacher: Embeddings) -> dict[str, Tensor]:
        return {"relation_kd": relation_kd_loss(student, teacher)}


def build(config: RelationKd, width: int) -> RelationKdTerm:
    return RelationKdTerm()
