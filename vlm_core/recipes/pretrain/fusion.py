"""Systems that look at picture and text together: two-leg models."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_yfcc
from vlm_core.train.config import Pretrain


def albef() -> Pretrain:
    """CLIP's loss and matching with hard negatives in a fusion of six blocks (ALBEF, arXiv 2107.07651, without its momentum distillation)."""
    return clip_yfcc().but("objectives.image_text_matching={}", "model.image.patch_size=16", "objectives.masked_language={}")


def albef_tiny() -> Pretrain:
    """As clip_tiny, with matching in a fusion of two blocks, and masked words."""
    return clip_tiny().but("objectives.image_text_matching={width: 128, layers: 2, heads: 4}", "objectives.masked_language={}", "fit.epochs=5")
