"""Symmetric InfoNCE whose other pairs get a small even share of the target, as web captions fit other pictures too (PyramidCLIP, arXiv 2204.14095, section 3.3)."""

# B rows of this rank, N rows of all ranks, D joint width

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import softened
from vlm_core.objectives.gather import Pairs, exchange


def soft_infonce(image_BD: Tensor, text_BD: Tensor, scale: Tensor, alpha: float = 0.2, *, chunk_size: int = 0) -> Tensor:
    """Mean of both directions; the own pair has target 1 - alpha, each other one alpha / (N - 1).

    Source: PyramidCLIP, arXiv 2204.14095. Checked by golden `pretraining/pyramidclip_soft_infonce`.
    """
    return softened(Pairs(image_BD, text_BD, image_BD, text_BD, 0), scale, alpha, chunk_size=chunk_size)


class SoftTarget(Objective):
    def __init__(self, config: menu.SoftTarget) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            pairs = exchange(out.image_BD, out.text_BD)
            return {"soft_target": softened(pairs, out.scale, self.config.alpha, chunk_size=self.config.chunk_size)}


def build(config: menu.SoftTarget, towers: TwoTower) -> Objective:
    return SoftTarget(config)
