"""Batch -> embeddings: the two-tower model, and what every tower has in common."""

# B pairs, D joint width, F trunk features, E text tower width, L tokens

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.config import build as build_part
from vlm_core.models import config as menu


class Outputs(NamedTuple):
    """What the towers made of a batch; every objective reads from here."""

    image_BD: Tensor  # unit norm, float32
    text_BD: Tensor  # unit norm, float32; row i belongs to row i of the images
    scale: Tensor  # multiplies the cosine, > 0
    bias: Tensor | None  # added to every logit
    caption_BD: Tensor | None = None  # unit norm, float32: of second captions, where the batch has them


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
        self.own = own
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


class TwoTower(nn.Module):
    """Image and text tower with a shared logit scale. `.image(images_B3HW)` and `.text(ids_BL)` give raw embeddings (B, D).

    Args:
        fresh: read the packaged weights; False where a model folder is loaded over them anyway.
    """

    def __init__(self, config: menu.TwoTower, fresh: bool = True) -> None:
        super().__init__()
        self.config = config
        self.image: nn.Module = build_part(config.image, width=config.width, activation=config.activation, fresh=fresh)
        self.text: nn.Module = build_part(config.text, width=config.width, activation=config.activation, fresh=fresh)
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale.init)))
        self.bias = None if config.scale.bias is None else nn.Parameter(torch.tensor(config.scale.bias))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    def forward(self, batch: Mapping[str, Any]) -> Outputs:
        """Encode a batch: `images` (B,3,H,W, normalised) or cached `image_features`; `ids` or cached `text_features`."""
        image_BD = self.image.head(batch["image_features"]) if "image_features" in batch else self.image(batch["images"])  # type: ignore[operator]
        text_BD = self._texts(batch, "text_features", "ids")
        caption_BD = unit(self._texts(batch, "caption_features", "caption_ids")) if {"caption_features", "caption_ids"} & batch.keys() else None
        return Outputs(unit(image_BD), unit(text_BD), self.scale, self.bias, caption_BD)

    def _texts(self, batch: Mapping[str, Any], features: str, ids: str) -> Tensor:
        out_BD: Tensor = self.text.head(batch[features]) if features in batch else self.text(batch[ids])  # type: ignore[operator]
        return out_BD

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the logit scale in its bounds; the loop calls this after every optimiser step."""
        self.log_scale.clamp_(math.log(self.config.scale.min), math.log(self.config.scale.max))


def unit(x_BD: Tensor) -> Tensor:
    """Unit-norm rows in at least float32, whatever the precision of the towers."""
    return F.normalize(widen(x_BD), dim=-1)


def widen(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
