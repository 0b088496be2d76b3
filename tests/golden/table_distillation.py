"""Distillation: official arrays against vlm_core.distill."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from tests.golden.check import Arrays, Check, Entry, gradient, tensor
from vlm_core.distill.base import Embeddings
from vlm_core.distill.contrastive_kd import contrastive_kd_loss, interactive_logits
from vlm_core.distill.feature_kd import feature_kd_loss
from vlm_core.distill.fused_kd import fused_kd_loss
from vlm_core.distill.gradient_kd import gradient_kd_loss
from vlm_core.distill.relation_kd import relation_kd_loss, row_kl
from vlm_core.objectives.image_text_contrastive import clip_loss


def clip_kd_losses(arrays: Arrays) -> Iterator[Check]:
    """winycg/CLIP-KD: every term and its gradient with respect to the student's raw image features."""
    a = {name: tensor(array, dtype=torch.float64) for name, array in arrays.items()}
    raw = a["student_image"].requires_grad_()
    student = Embeddings(F.normalize(raw, dim=-1), F.normalize(a["student_text"], dim=-1), a["student_scale"])
    teacher = Embeddings(a["teacher_image"], a["teacher_text"], a["teacher_scale"])
    from_image, from_text = interactive_logits(student, teacher, a["cross_logit_scale"])
    teacher_logits = teacher.scale * teacher.image_BD @ teacher.text_BD.T
    fused = [
        F.linear(torch.cat([mine, theirs], dim=1), a[f"param.{side}_fusion_proj.weight"], a[f"param.{side}_fusion_proj.bias"])
        for side, mine, theirs in (("visual", student.image_BD, teacher.image_BD), ("text", student.text_BD, teacher.text_BD))
    ]
    losses = {
        "task": clip_loss(student.image_BD, student.text_BD, student.scale),
        "ckd_crd": relation_kd_loss(student, teacher),
        "icl": contrastive_kd_loss(student, teacher, a["cross_logit_scale"]),
        "cross_kd": (row_kl(from_image, teacher_logits) + row_kl(from_text, teacher_logits.T)) / 2,
        "fd": feature_kd_loss(student.image_BD, student.text_BD, teacher.image_BD, teacher.text_BD),
        "gd": gradient_kd_loss(student, teacher, reference=True),
        "afd": fused_kd_loss(*fused, a["fusion_logit_scale"]),
    }
    for name, loss in losses.items():
        yield Check(f"loss_{name}", loss, arrays[f"loss_{name}"], atol=1e-9)
        yield Check(f"grad_image_{name}", gradient(loss, raw), arrays[f"grad_image_{name}"], atol=1e-9 if name == "gd" else 1e-6)


TABLE: dict[str, Entry] = {"clip_kd_losses": clip_kd_losses}
