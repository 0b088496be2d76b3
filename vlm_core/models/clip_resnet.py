"""CLIP's image ResNet (ResNet-D stem, blur pooling, attention pooling): open_clip's own module.

Source: CLIP, arXiv 2103.00020; goldens `pretraining/clip_resnet_bottleneck` and `pretraining/attention_pool2d`.
"""

from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models.open_clip_parts import ModifiedResNet


class ClipResnet(ModifiedResNet):
    """Attention pooling goes straight to the joint width, so features are the raw embedding."""

    @property
    def features_width(self) -> int:
        return int(self.output_dim)

    def features(self, images_B3HW: Tensor) -> Tensor:
        out_BD: Tensor = self(images_B3HW)
        return out_BD

    def head(self, features_BD: Tensor) -> Tensor:
        return features_BD


def build(config: menu.ClipResnet, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the joint embedding; activation: not used, this tower has ReLU only."""
    return ClipResnet(layers=config.layers, output_dim=width, heads=config.heads, image_size=config.image_size, width=config.width)
