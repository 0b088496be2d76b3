"""CLIP's loss on augmented picture embeddings (RA-CLIP, Xie et al., CVPR 2023; no official code): pairs of the reference set that resemble a picture are mixed
into its embedding, so that less has to be remembered. Texts stay as they are. The module is the model's (`vlm_core/models/retrieval.py`).

Source: methods/pretraining.md 4.11.

Checked by hand in `tests/train/test_references.py`.
"""

# B rows of this rank, K neighbours, D joint width

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower, unit
from vlm_core.objectives import config as menu
from vlm_core.objectives import gather
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import both_ways


class RetrievalAugmented(Objective):
    def __init__(self, config: menu.RetrievalAugmented) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with full_precision(out.image_BD.device):
            augmented_BD = unit(present(present(out.towers).retrieval)(out.image_BD, batch["neighbours"]))
            pairs = gather.exchange(augmented_BD, out.text_BD)
            return {"retrieval_augmented": both_ways(pairs, out.scale, out.bias, chunk_size=self.config.chunk_size)}


def build(config: menu.RetrievalAugmented, towers: TwoTower) -> Objective:
    return RetrievalAugmented(config)
