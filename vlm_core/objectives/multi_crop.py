"""CLIP's loss of the picture and of two further crops of it with the caption, averaged over the three (KELIP, arXiv 2203.14463; training code was not released).

The paper takes two large crops and several small ones; here the picture's own crop is the large one, and `views.crop_scale_max` says how small the others are.
They have the side of the large one, so that one tower sees all with the same positions.

Checked by hand in `tests/objectives/test_properties.py`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import over_pairs


class MultiCrop(Objective):
    def __init__(self, config: menu.MultiCrop) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        crops = (out.image_BD, *(view.image_BD for view in out.views))
        with full_precision(out.image_BD.device):
            return {"multi_crop": over_pairs(*((crop_BD, out.text_BD) for crop_BD in crops), scale=out.scale, chunk_size=self.config.chunk_size)}


def build(config: menu.MultiCrop, towers: TwoTower) -> Objective:
    return MultiCrop(config)
