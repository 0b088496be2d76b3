"""Every picture meets two of its captions in one step, CLIP's loss averaged over them (LaCLIP-MT, arXiv 2305.20088, section 5; `loader.second_caption`).

Checked by hand in `tests/objectives/test_properties.py`.
"""

# B rows of this rank, D joint width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import both_ways
from vlm_core.objectives.gather import exchange


class MultiText(Objective):
    def __init__(self, config: menu.MultiText) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        texts = out.text_BD, present(out.caption_BD)
        with full_precision(out.image_BD.device):
            losses = [both_ways(exchange(out.image_BD, text_BD), out.scale, chunk_size=self.config.chunk_size) for text_BD in texts]
            return {"multi_text": torch.stack(losses).mean()}


def build(config: menu.MultiText, towers: TwoTower) -> Objective:
    return MultiText(config)
