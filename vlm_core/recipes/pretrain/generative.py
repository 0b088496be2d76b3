"""Systems that also paint or write what they did not see."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_yfcc
from vlm_core.train.config import Pretrain


def mae_clip() -> Pretrain:
    """CLIP with MAE on the image tower (arXiv 2111.06377; KELIP pre-trains with it, SegCLIP adds it as here)."""
    return clip_yfcc().but("objectives.masked_autoencoder={width: 384, layers: 3, heads: 8}", "model.image.patch_size=16")


def mae_clip_tiny() -> Pretrain:
    """As clip_tiny, with MAE beside it, on normalised patches."""
    return clip_tiny().but("objectives.masked_autoencoder={width: 64, layers: 2, heads: 4, norm_pix: true}", "fit.epochs=12")


def coca() -> Pretrain:
    """CoCa ViT-B/32 (arXiv 2205.01917; open_clip's sizes): contrast, and captioning with weight 2."""
    return clip_yfcc().but("objectives.captioning={weight: 2, layers: 12}", "optim.weight_decay=0.01")


def coca_tiny() -> Pretrain:
    """As clip_tiny, with a captioning decoder of two blocks."""
    return clip_tiny().but("objectives.captioning={weight: 2, layers: 2}", "fit.epochs=5")
