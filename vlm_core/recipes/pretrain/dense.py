"""Systems that also learn what lies where in a picture: visual tokens of hidden patches, and patches that gather into segments."""

from vlm_core.recipes.pretrain.base import clip_tiny, clip_yfcc
from vlm_core.train.config import Pretrain


def beit_clip() -> Pretrain:
    """CLIP with BEiT's masked image modelling beside it (arXiv 2106.08254), as FLAVA has it on its image encoder; tokens are patch clusters of the snapshot."""
    return clip_yfcc().but("objectives.masked_image={}", "model.visual_tokens={kind: patch_clusters}", "model.image.patch_size=16")


def beit_clip_tiny() -> Pretrain:
    """As clip_tiny, with masked image modelling over 512 patch clusters; patches of 8 pixels, since rectangles in a grid of 4 x 4 leave little to guess from."""
    return clip_tiny().but(
        "objectives.masked_image={}", "model.visual_tokens={kind: patch_clusters, vocabulary: 512, patches: 40000}", "model.image.patch_size=8", "fit.epochs=8",
    )  # fmt: skip


def segclip() -> Pretrain:
    """SegCLIP ViT-B/16 (arXiv 2211.14813): CLIP, MAE through the centres and superpixel KL, 10 epochs. The paper starts from CLIP's weights,
    which learn at a thousandth of the rate: give them as the input initial, and optim.rates."""
    return clip_yfcc().but(
        "model.image={kind: vit_grouping}", "model.text.context_length=32", "objectives.patch_grouping={}",
        "objectives.masked_autoencoder={width: 384, layers: 3, heads: 8}", "loader.batch_size=768", "loader.workers=8", "optim.weight_decay=0.05",
        "optim.warmup_share=0.15", "fit.epochs=10", "crop_scale_min=0.5",
    )  # fmt: skip


def segclip_tiny() -> Pretrain:
    """As clip_tiny, with a tower of four blocks whose last sees eight centres, on patches of 8 pixels."""
    return clip_tiny().but(
        "model.image={kind: vit_grouping, image_size: 64, patch_size: 8, width: 128, layers: 4, last: 1, heads: 4}", "objectives.patch_grouping={}",
        "objectives.masked_autoencoder={width: 64, layers: 2, heads: 4}", "fit.epochs=6",
    )  # fmt: skip
