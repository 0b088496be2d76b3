"""Trunks of timm as image towers: its network, its pooling, and a projection without bias.

Every trunk of the menu halves the picture five times, so a patch is one place of the last map: 32 x 32 pixels.
"""

# B images, C channels of the trunk, P places of the last map, D joint width

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.checkpoint import fill, read_weights
from vlm_core.models import config as menu
from vlm_core.models.headed import Headed
from vlm_core.models.open_clip_parts import create_model


class TimmTrunk(Headed):
    """`head(features(images))` is `forward(images)`; `tokens` are the pooled feature and every place of the last map."""

    def __init__(self, trunk: Any, width: int, dropout: float, lock: bool) -> None:
        super().__init__(trunk, nn.Sequential(nn.Dropout(dropout), nn.Linear(trunk.num_features, width, bias=False)), lock)

    @property
    def features_width(self) -> int:
        return int(self.trunk.num_features)  # type: ignore[arg-type]

    def tokens(self, images_B3HW: Tensor) -> Tensor:
        """States (B, 1 + P, C): what `features` gives, then the places row by row."""
        trunk: Any = self.trunk
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.lock):
            seen = trunk.forward_features(images_B3HW)
            pooled_BC = trunk.forward_head(seen, pre_logits=True)
        places_BPC = seen.flatten(1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else seen.flatten(2).transpose(1, 2)
        return torch.cat([pooled_BC[:, None], places_BPC], dim=1)

    def pool(self, tokens_BPC: Tensor) -> Tensor:
        return tokens_BPC[:, 0]


def build(config: menu.TimmTrunk, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the joint embedding; activation: not used, trunks keep their own; fresh: read config.weights."""
    sized: dict[str, Any] = {"img_size": config.image_size} if config.name.startswith(("swin", "coatnet")) else {}  # the others take any size
    trunk: Any = create_model(config.name, pretrained=False, num_classes=0, **sized)
    if config.name.startswith("vgg"):
        trunk.pre_logits = nn.Identity()  # two layers of ImageNet's classifier, 120 M weights
    if fresh and config.weights:
        classifier = tuple(f"{name}." for name in ("pre_logits", *_names(trunk.default_cfg.get("classifier", ()))))
        state = read_weights(Path(config.weights))
        fill(trunk, {name: value for name, value in state.items() if not name.startswith(classifier)}, config.weights)
    return TimmTrunk(trunk, width, config.dropout, config.lock)


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
