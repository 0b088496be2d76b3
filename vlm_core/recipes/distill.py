"""Named settings of distillation: papers as compositions of terms."""

from vlm_core.distill.config import ContrastiveKd, FeatureKd, RelationKd, Terms
from vlm_core.recipes.pretrain.base import clip_tiny
from vlm_core.train.config import Distil

SMALL = ("model.image.layers=3", "model.text.layers=2", "fit.epochs=8", "crop_scale_min=0.9")


def clip_kd_tiny() -> Distil:
    """FD + ICL of CLIP-KD (arXiv 2307.12732) on two cores in about three minutes, the twin included: the teacher sees each picture once, FD weighs a tenth of the paper's 2000."""
    terms = Terms(feature_kd=FeatureKd(weight=200.0), contrastive_kd=ContrastiveKd())
    return Distil(student=clip_tiny().but(*SMALL), terms=terms, teacher_views="cached")


def clip_kd() -> Distil:
    """CLIP-KD as published: CRD + FD + ICL with its weights, the teacher on the student's own crops; for a student like clip_tiny."""
    return Distil(student=clip_tiny(), terms=Terms(relation_kd=RelationKd(), feature_kd=FeatureKd(weight=2000.0), contrastive_kd=ContrastiveKd()), twin=False)
