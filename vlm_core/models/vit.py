"""CLIP's Vision Transformer: open_clip's own module, so that weights move between the two without renaming.

Source: CLIP, arXiv 2103.00020; golden `pretraining/clip_vit`.
"""

from torch import nn

from vlm_core.models import config as menu
from vlm_core.models.open_clip_parts import QuickGELU, VisionTransformer

ACTIVATIONS: dict[menu.Activation, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def build(config: menu.Vit, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the joint embedding."""
    return VisionTransformer(
        image_size=config.image_size, patch_size=config.patch_size, width=config.width, layers=config.layers, heads=config.heads,
        mlp_ratio=config.mlp_ratio, pool_type=config.pool, patch_dropout=config.patch_dropout, output_dim=width, act_layer=ACTIVATIONS[activation],
    )  # fmt: skip
