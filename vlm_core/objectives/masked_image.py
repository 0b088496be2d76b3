"""The visual tokens of hidden patches are guessed from the patches around them (BEiT, arXiv 2106.08254; FLAVA, arXiv 2112.04482; golden
`pretraining/{beit_block_masking,masked_prediction_loss}`).

A mask token stands in the place of a hidden patch in front of the image tower; a head says the token of every hidden place, and only those count. The
tokens are those of the whole picture in the same crop (`model.visual_tokens`).
"""

# B pictures, P patches, E width of the image tower

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.heads import MaskedHead, masked_prediction_loss
from vlm_core.objectives.masks import IGNORED, hide_patches


class MaskedImage(Objective):
    def __init__(self, config: menu.MaskedImage, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.rows: int = towers.config.image.image_size // towers.config.image.patch_size  # type: ignore[union-attr]  # visual_tokens: a grid of patches
        self.mask_E = nn.Parameter(torch.randn(towers.image_width) * towers.image_width**-0.5)
        self.head = MaskedHead(towers.image_width, present(towers.visual_tokens).vocab_size)

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {"masked_patches": hide_patches(len(batch["images"]), self.rows, self.config.share).to(batch["images"].device)}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        towers, hidden_BP = present(out.towers), batch["masked_patches"]
        labels_BP = present(towers.visual_tokens).encode(batch["images"]).masked_fill(~hidden_BP, IGNORED)
        states_BPE = towers.image.tokens(batch["images"], hidden_BP=hidden_BP, mask_E=self.mask_E)[:, 1:]  # type: ignore[operator]
        with full_precision(states_BPE.device):
            return {"masked_image": masked_prediction_loss(widen(states_BPE), labels_BP, self.head, IGNORED)}


def build(config: menu.MaskedImage, towers: TwoTower) -> Objective:
    return MaskedImage(config, towers)
