"""Settings of the further views and texts that some objectives compare with. Torch-free."""

from typing import Self

from pydantic import Field, model_validator

from vlm_core.config import Config


class Views(Config):
    """Strong augmentation of a further view: MoCo v2's (arXiv 2003.04297, section 3), which SLIP and DeCLIP take over."""

    crop_scale_min: float = Field(0.2, gt=0, le=1, description="smallest share of a picture that its crop keeps")
    crop_scale_max: float = Field(1.0, gt=0, le=1, description="largest share of a picture that its crop keeps; small for local crops")
    jitter: float = Field(0.4, ge=0, le=1, description="largest relative change of brightness, contrast and saturation")
    hue: float = Field(0.1, ge=0, le=0.5, description="largest turn of the colour circle, in turns")
    jitter_share: float = Field(0.8, ge=0, le=1, description="of views whose colours change")
    gray_share: float = Field(0.2, ge=0, le=1, description="of views without colour")
    blur_share: float = Field(0.5, ge=0, le=1, description="of views that are blurred")
    flip: bool = Field(True, description="mirror half of them; off where captions say left and right")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.crop_scale_min > self.crop_scale_max:
            raise ValueError(f"Found views.crop_scale_min {self.crop_scale_min} above views.crop_scale_max {self.crop_scale_max}, expected it below; change one.")
        return self


class Superpixels(Config):
    """Felzenszwalb's segments of every picture (IJCV 2004), for objectives that group patches. Lengths are those of a picture of 224 x 224 pixels."""

    scale: float = Field(224, gt=0, description="how different neighbours may be; higher gives larger segments")
    sigma: float = Field(0.9, ge=0, description="deviation of the Gaussian blur beforehand, in pixels of 224 per side")
    min_size: int = Field(224, ge=1, description="pixels of the smallest segment, of 224 x 224")
