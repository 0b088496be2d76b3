"""Trunks with open weights under heads of ours, which learn."""

# B pictures or texts, D joint width, F trunk features

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.models import config as menu


class Headed(nn.Module):
    """A trunk with open weights under a head of ours. Locked: the trunk stays as it is, in eval mode, and its features may be computed once."""

    def __init__(self, trunk: nn.Module, head: nn.Module, lock: bool) -> None:
        super().__init__()
        self.trunk, self.head, self.lock = trunk, head, lock
        if lock:
            trunk.requires_grad_(False)

    def train(self, mode: bool = True) -> "Headed":
        super().train(mode)
        if self.lock:
            self.trunk.eval()
        return self

    @property
    def features_width(self) -> int:
        width: int = self.head.features_width  # type: ignore[assignment]
        return width

    def features(self, x: Tensor) -> Tensor:
        """Trunk features (B, F), without gradient where the trunk is locked."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.lock):
            out_BF: Tensor = self.trunk(x)
        return out_BF

    def forward(self, x: Tensor) -> Tensor:
        out_BD: Tensor = self.head(self.features(x))
        return out_BD


class Head(nn.Module):
    """Trunk features (B, F) -> raw embedding (B, D + own): a learnt projection, and beside it `own` channels that the trunk already speaks.

    Both parts have unit norm, so a dot product of two such embeddings is the mean of the two cosines once the whole is normalised.
    """

    def __init__(self, config: menu.EfficientnetLite0 | menu.Minilm, features: int, width: int, own: int) -> None:
        super().__init__()
        self.own, self.features_width = own, features
        if config.head == "linear":
            self.project: nn.Module = nn.Linear(features, width)
        else:
            layers = nn.Linear(features, config.hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(config.hidden, width)
            self.project = nn.Sequential(nn.LayerNorm(features), *layers)

    def forward(self, features_BF: Tensor) -> Tensor:
        learnt_BD: Tensor = self.project(features_BF)
        if not self.own:
            return learnt_BD
        return torch.cat([F.normalize(features_BF[:, -self.own :], dim=-1), F.normalize(learnt_BD, dim=-1)], dim=-1)
