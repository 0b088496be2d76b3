"""The menu of pre-training objectives: one optional field each, absent = off. Torch-free."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from vlm_core.config import Config
from vlm_core.errors import Incompatible


class ImageTextContrastive(Config):
    """Symmetric InfoNCE over all pairs of the global batch (CLIP, arXiv 2103.00020)."""

    weight: float = Field(1.0, gt=0, description="factor in the sum of all terms")
    chunk_size: int = Field(0, ge=0, description="rows of logits made at a time and made again in backward; 0: all at once")
    local_loss: bool = Field(True, description="each rank scores only its own rows against all others: n x N logits instead of N x N")
    gather_with_grad: bool = Field(True, description="gradients flow back to the rank an embedding came from; off: gradients are N / n times too small")

    needs_bias: ClassVar[bool] = False

    @model_validator(mode="after")
    def _exact(self) -> Self:
        if self.local_loss and not self.gather_with_grad:
            raise Incompatible(
                "Found local_loss=true with gather_with_grad=false, expected another pair, since that one gives gradients of a wrong direction; "
                "set gather_with_grad=true (exact), or local_loss=false."
            )
        return self


class Sigmoid(Config):
    """Every pair of the global batch is its own yes-or-no question (SigLIP, arXiv 2303.15343)."""

    weight: float = Field(1.0, gt=0, description="factor in the sum of all terms")
    chunk_size: int = Field(0, ge=0, description="rows of logits made at a time and made again in backward; 0: all at once")

    needs_bias: ClassVar[bool] = True


class WeightedCaptions(Config):
    """Raw and synthetic caption of each picture, weighted by how far the three agree (ALIP, arXiv 2308.08428)."""

    weight: float = Field(1.0, gt=0, description="factor in the sum of all terms")
    gamma: float = Field(2.0, gt=0, description="how sharply disagreement lowers a weight")
    momentum: float = Field(0.99, ge=0, lt=1, description="of the running means of the three agreements")
    start: float | None = Field(1.0, ge=-1, le=1, description="first value of the running means (ALIP: 1); none: those of the first batch")

    needs_bias: ClassVar[bool] = False


class Objectives(Config):
    """What pre-training minimises: the weighted sum of what is not null."""

    image_text_contrastive: ImageTextContrastive | None = None
    sigmoid: Sigmoid | None = None
    weighted_captions: WeightedCaptions | None = None

    def chosen(self) -> dict[str, ImageTextContrastive | Sigmoid | WeightedCaptions]:
        """kind -> settings of what is on."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
