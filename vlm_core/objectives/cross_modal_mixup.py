"""Picture, text, and a sequence of some patches and some words of both: three views of one pair in one Transformer, each finds the other two
(OneR, arXiv 2211.11153).

Our choice where no code is public: the mixed sequence keeps a share of the patches and the rest of the words, drawn anew in every step, so it is also the
masked context of OneR's invariance contrast; there is no slow teacher.

Checked by hand in `tests/objectives/test_cross_modal_mixup.py`.
"""

# B pairs of this rank, D joint width

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from vlm_core.models.shared_text import SharedText
from vlm_core.models.towers import Outputs, TwoTower, unit
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import both_ways
from vlm_core.objectives.gather import exchange


def three_views_loss(image_BD: Tensor, text_BD: Tensor, mixed_BD: Tensor, scale: Tensor, chunk_size: int = 0) -> Tensor:
    """Mean of CLIP's loss over the three pairs of views; rows are exchanged between ranks."""
    sides = (image_BD, text_BD), (image_BD, mixed_BD), (text_BD, mixed_BD)
    return torch.stack([both_ways(exchange(*side), scale, chunk_size=chunk_size) for side in sides]).mean()


class CrossModalMixup(Objective):
    def __init__(self, config: menu.CrossModalMixup, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.patches: int = (towers.config.image.image_size // towers.config.image.patch_size) ** 2  # type: ignore[union-attr]  # one_tower: a ViT

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        least, ids_BL = self.config.least, batch["ids"]
        share = least + (1 - 2 * least) * float(torch.rand(()))
        noise_BP, noise_BL = torch.rand(len(ids_BL), self.patches, device=ids_BL.device), torch.rand(ids_BL.shape, device=ids_BL.device)
        return {"mixture_share": share, "mixture_patches": noise_BP, "mixture_words": noise_BL}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        drawn = batch["mixture_share"], batch["mixture_patches"], batch["mixture_words"]
        mixed_BD = unit(cast(SharedText, present(out.towers).text).mixed(batch["images"], batch["ids"], *drawn))
        with full_precision(mixed_BD.device):
            return {"cross_modal_mixup": three_views_loss(out.image_BD, out.text_BD, mixed_BD, out.scale, self.config.chunk_size)}


def build(config: menu.CrossModalMixup, towers: TwoTower) -> Objective:
    return CrossModalMixup(config, towers)
