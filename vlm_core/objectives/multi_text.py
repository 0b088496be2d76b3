"""Every picture meets two of its captions in one step, CLIP's loss averaged over them (LaCLIP-MT, arXiv 2305.20088, section 5; `loader.second_caption`).

Checked by hand in `tests/objectives/test_properties.py`.
"""

# B rows of this rank, D joint width

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import over_pairs


class MultiText(Objective):
    def __init__(self, config: menu.MultiText) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        texts = out.text_BD, present(out.caption_BD)
        with full_precision(out.image_BD.device):
            return {"multi_text": over_pairs(*((out.image_BD, text_BD) for text_BD in texts), scale=out.scale, chunk_size=self.config.chunk_size)}


def build(config: menu.MultiText, towers: TwoTower) -> Objective:
    return MultiText(config)
