"""EfficientNet-Lite0 as an image tower: ImageNet-1k weights from a package under a head of ours (LiT, arXiv 2111.07991).

With `names` the trunk also speaks the language of MiniLM: the probability-weighted text vectors of the five likeliest ImageNet names.
That is knowledge of ImageNet's classes and not zero-shot learning: call such numbers "name-bridged".
"""

# B images, F trunk features, C ImageNet classes, E width of MiniLM

import torch
from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models import packaged
from vlm_core.models.headed import Head, Headed

LIKELIEST = 5


class Trunk(nn.Module):
    def __init__(self, network: nn.Module, names_CE: Tensor | None, precision: str) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.names_CE: Tensor | None
        self.register_buffer("names_CE", names_CE)
        self.in_bf16 = precision == "bf16" or (precision == "auto" and has_bf16())

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """(B, 1280), or (B, 1280 + E) with the vector of the likeliest names at the end."""
        images_B3HW = images_B3HW.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images_B3HW.device.type, torch.bfloat16, enabled=self.in_bf16):
            features_BF: Tensor = self.network.features(images_B3HW)  # type: ignore[operator]
        features_BF = features_BF.float()
        if self.names_CE is None:
            return features_BF
        return torch.cat([features_BF, bridge(self.network._fc(features_BF), self.names_CE)], dim=-1)  # type: ignore[operator]

    def cells(self, images_B3HW: Tensor) -> Tensor:
        """The last map, (B, 1280, H / 32, W / 32); its mean is the feature of the picture."""
        with torch.autocast(images_B3HW.device.type, torch.bfloat16, enabled=self.in_bf16):
            map_BFhw: Tensor = self.network.extract_features(images_B3HW.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        return map_BFhw.float()

    def classes(self, features_BF: Tensor) -> Tensor:
        """ImageNet logits (.., 1000) of features, or of cells (B, C, 1280)."""
        logits_BK: Tensor = self.network._fc(features_BF)  # type: ignore[operator]
        return logits_BK


def bridge(logits_BC: Tensor, names_CE: Tensor) -> Tensor:
    """Unit-norm mean of the text vectors of the likeliest classes, weighted by their probability: (B, E)."""
    return packaged.name_bridge(logits_BC, names_CE, LIKELIEST)


def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; then the locked trunk is 2.5 to 4.6 times faster and its features agree to a cosine of .999."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def build(config: menu.EfficientnetLite0, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the learnt part of the joint embedding; activation: not used, this tower has ReLU6."""
    names_CE = None
    if config.names:
        names_CE = torch.zeros(packaged.EFFICIENTNET_CLASSES, packaged.MINILM_WIDTH)
        if fresh:
            tokenizer, model, _ = packaged.minilm()
            names_CE = packaged.sentence_vectors(tokenizer, model, packaged.imagenet_names())
    own = packaged.MINILM_WIDTH if config.names else 0
    trunk = Trunk(packaged.efficientnet_lite0(), names_CE, config.precision if config.lock else "32")
    return Headed(trunk, Head(config, packaged.EFFICIENTNET_WIDTH + own, width, own), config.lock)
