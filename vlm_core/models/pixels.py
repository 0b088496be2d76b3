"""How an image tower wants its pictures."""

from vlm_core.data.shards.augment import Transform
from vlm_core.models import config as menu


def pixels_of(config: menu.ImageTower, crop_scale_min: float = 0.5) -> Transform:
    """How an image tower wants its pictures: CLIP's statistics, or those that the packaged weights were trained with."""
    if isinstance(config, menu.EfficientnetLite0):
        return Transform(config.image_size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, crop_scale_min=crop_scale_min)
    return Transform(config.image_size, crop_scale_min=crop_scale_min)
