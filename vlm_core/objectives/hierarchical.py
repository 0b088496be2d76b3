"""Softened InfoNCE between levels of picture and text that match (PyramidCLIP, arXiv 2204.14095): the whole picture G with a summary S, a local crop Lc with
the original text O. The paper's cross level is `cross_level`; its weights are 1/3 here, 1/3 for regions and 1/3 for attributes there.

The official repository holds inference code only; the equations (4 to 8) are the paper's. Our summary is the second caption (`loader.second_caption`), our
local crop the second view. Checked by golden `pretraining/pyramidclip_soft_infonce` (a term) and by hand in `tests/objectives/test_properties.py` (the levels).
"""

# B rows of this rank, D joint width

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import over_pairs


class Hierarchical(Objective):
    def __init__(self, config: menu.Hierarchical) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        coarse, fine = (out.image_BD, present(out.caption_BD)), (out.views[0].image_BD, out.text_BD)
        with full_precision(out.image_BD.device):
            return {"hierarchical": over_pairs(coarse, fine, scale=out.scale, alpha=self.config.alpha, chunk_size=self.config.chunk_size)}


def build(config: menu.Hierarchical, towers: TwoTower) -> Objective:
    return Hierarchical(config)
