"""Settings of composited scenes, on which region objectives train. Torch-free."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vlm_core.config import Config


class Scenes(Config):
    """Pictures of a batch, cut out and put together on one canvas, so that the box of each is known to the pixel."""

    share: float = Field(1.0, gt=0, le=4, description="scenes per pair of a batch; under 1 costs less")
    objects_min: int = Field(1, ge=1, le=16, description="objects of a scene, at least")
    objects_max: int = Field(4, ge=1, le=16, description="objects of a scene, at most; fewer where no free place is left")
    smallest: float = Field(0.25, gt=0, le=1, description="longest side of an object / side of the canvas, at least")
    largest: float = Field(0.6, gt=0, le=1, description="longest side of an object / side of the canvas, at most")
    overlap: float = Field(0.1, ge=0, lt=1, description="share of the smaller of two boxes that may lie in the other")
    ground: Literal["white", "colours"] = Field("colours", description="of the canvas: white, or one light colour per scene")
    negatives: int = Field(8, ge=0, le=256, description="phrases asked for beside those of the scene's own objects; GLIP 85, DetCLIP up to 150 in all")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in (("objects_min", "objects_max"), ("smallest", "largest")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"Found {low} {getattr(self, low)} above {high} {getattr(self, high)}, expected at most as much; change one of them.")
        return self
