"""The menu of distillation terms: combine as many as wanted, each with its weight. Torch-free."""

from pydantic import Field

from vlm_core.config import Config


class FeatureKd(Config):
    """FD: mean squared error between unit embeddings of student and teacher (CLIP-KD, arXiv 2307.12732)."""

    weight: float = Field(2000.0, ge=0, description="multiplies the term; the paper's value is 2000")


class ContrastiveKd(Config):
    """ICL: the student's embeddings contrast with the teacher's of the other modality (CLIP-KD, arXiv 2307.12732)."""

    weight: float = Field(1.0, ge=0, description="multiplies the term")
    scale: float | None = Field(None, gt=1, le=100, description="fixed multiplier of the cosine; absent: the student's own logit scale")


class RelationKd(Config):
    """CRD: the student's matrix of similarities follows the teacher's, row by row (CLIP-KD, arXiv 2307.12732)."""

    weight: float = Field(1.0, ge=0, description="multiplies the term")


class GradientKd(Config):
    """GD: the student's contrastive gradients follow the teacher's (CLIP-KD, arXiv 2307.12732)."""

    weight: float = Field(1e8, ge=0, description="multiplies the term, whose values are tiny")


class FusedKd(Config):
    """AFD: embeddings of student and teacher, joined and projected, are contrasted (CLIP-KD, arXiv 2307.12732)."""

    weight: float = Field(1.0, ge=0, description="multiplies the term")


class Terms(Config):
    """What the student learns from the teacher. An absent term is off."""

    feature_kd: FeatureKd | None = FeatureKd()
    contrastive_kd: ContrastiveKd | None = ContrastiveKd()
    relation_kd: RelationKd | None = None
    gradient_kd: GradientKd | None = None
    fused_kd: FusedKd | None = None

    def chosen(self) -> dict[str, FeatureKd | ContrastiveKd | RelationKd | GradientKd | FusedKd]:
        """kind -> settings of what is on."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
