"""Settings of the cuts by a score: what is ranked, and how much of it stays. Torch-free."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import Config


class ClipScore(Config):
    """Cosine of the image and text embedding."""

    kind: Literal["clip_score"] = "clip_score"


class MaskedClipScore(Config):
    """T-MARS (arXiv 2307.03132): cosine of the caption and the picture with its lettering painted over; `vlm embed` makes it with text_mask."""

    kind: Literal["masked_clip_score"] = "masked_clip_score"


class NegClipLoss(Config):
    """CLIP score less how well image and text fit everything else (arXiv 2405.19547)."""

    kind: Literal["neg_clip_loss"] = "neg_clip_loss"
    temperature: float = Field(0.01, gt=0, description="of the softmax; the scorer's own: 0.01 for OpenAI's models")
    batch: int = Field(32_768, ge=2, description="samples compared with each other")
    repeats: int = Field(10, ge=1, description="random batchings that are averaged")
    seed: int = Field(0, ge=0, description="seed of the batchings")


class NormSim(Config):
    """p-norm of the cosines with target images (arXiv 2405.19547)."""

    kind: Literal["norm_sim"] = "norm_sim"
    targets: str = Field(description="file of target image embeddings of the same scorer, .npy (T, D)")
    p: Literal["2", "inf"] = Field("inf", description="norm over the targets")


class Hype(Config):
    """HYPE (ICLR 2024): hyperbolic closeness and specificity; the embeddings must be a hyperbolic model's tangent vectors."""

    kind: Literal["hype"] = "hype"
    image_references: str = Field(description="file of reference image embeddings, .npy (M, D)")
    text_references: str = Field(description="file of reference text embeddings, .npy (M, D)")
    curvature: float = Field(1.0, gt=0, description="of the hyperbolic space")


class External(Config):
    """A score that somebody else's model gave, from a Parquet file."""

    kind: Literal["external"] = "external"
    file: str = Field(description="Parquet file with uid and the score")
    column: str = Field("score", description="column of the score")


ScoreConfig = Annotated[ClipScore | MaskedClipScore | NegClipLoss | NormSim | Hype | External, Field(discriminator="kind")]


class Cut(Config):
    """Keeps the best share by a score, or what reaches a threshold. A threshold belongs to one scorer; a fraction fits all."""

    score: ScoreConfig = Field(default=ClipScore(), description="what is ranked")
    fraction: float | None = Field(0.3, gt=0, le=1, description="share that stays; none: use the threshold")
    threshold: float | None = Field(None, description="score that must be reached; none: use the fraction")
    thresholds: dict[str, float] = Field(default={}, description="other thresholds, by language, source or domain (see within), such as en: 0.28")
    within: Literal["language", "source", "domain", "all"] = Field("language", description="rank inside each language, source or domain, or all together")
    over: Literal["remaining", "pool"] = Field(
        "remaining", description="the share is of what the rules before left, or of every sample with a score: then two cuts are an intersection"
    )
    mode: Literal["fixed", "reference"] = Field("fixed", description="exactly int(N f) with ties by uid, or DataComp's one more and all ties")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.fraction is None) == (self.threshold is None):
            raise ValueError(f"Found fraction {self.fraction} and threshold {self.threshold}, expected exactly one of them; set the other to null.")
        if self.thresholds and self.threshold is None:
            raise ValueError(f"Found thresholds {self.thresholds} without a threshold, expected one for everything else; set threshold, too.")
        if self.thresholds and self.within == "all":
            raise ValueError(f"Found thresholds {self.thresholds} with within 'all', expected what their names mean; set within to language, source or domain.")
        return self
