"""Softened InfoNCE across levels (PyramidCLIP, arXiv 2204.14095): regions found in the picture with summary and original text, the whole picture and a local crop
with the names of what was found. The peer level is `hierarchical`; what finds regions is `vlm_core/models/roi_features.py`.

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


class CrossLevel(Objective):
    def __init__(self, config: menu.CrossLevel) -> None:
        super().__init__()
        self.config = config

    def factor(self, term: str) -> float:
        return self.config.regions if term == "cross_level.regions" else 1 - self.config.regions

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        regions_BD, names_BD, summary_BD = present(out.regions_BD), present(out.attributes_BD), present(out.caption_BD)
        settings: dict[str, Any] = {"scale": out.scale, "alpha": self.config.alpha, "chunk_size": self.config.chunk_size}
        with full_precision(out.image_BD.device):
            return {
                "cross_level.regions": over_pairs((regions_BD, summary_BD), (regions_BD, out.text_BD), **settings),
                "cross_level.names": over_pairs((out.image_BD, names_BD), (out.views[0].image_BD, names_BD), **settings),
            }


def build(config: menu.CrossLevel, towers: TwoTower) -> Objective:
    return CrossLevel(config)
