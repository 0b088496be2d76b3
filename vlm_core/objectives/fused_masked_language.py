"""Hidden words of the caption are guessed while looking at the picture (ALBEF, arXiv 2107.07651; FIBER, 2206.07643; golden `pretraining/mlm_masking`).

The picture is the whole one; picture and text with hidden words go through the model's fusion.
"""

# B pairs, L tokens

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.tokenizer import Special
from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.heads import MaskedHead, masked_prediction_loss
from vlm_core.objectives.masks import IGNORED, hide_words


class FusedMaskedLanguage(Objective):
    def __init__(self, config: menu.FusedMaskedLanguage, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.special: Special = towers.text.special  # type: ignore[assignment]
        self.head = MaskedHead(present(towers.fusion).text_width, self.special.vocabulary)

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if "fused_ids" in batch:
            return {}
        hidden_BL, labels_BL = hide_words(batch["ids"], self.special, self.config.share)
        return {"fused_ids": hidden_BL, "fused_labels": labels_BL}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        towers, ids_BL = present(out.towers), batch["fused_ids"]
        fusion = present(towers.fusion)
        fused = towers.fuse(present(out.begun_BPE), fusion.begin_text(towers.text, ids_BL), ids_BL)
        with full_precision(ids_BL.device):
            return {"fused_masked_language": masked_prediction_loss(widen(fused.text_BLW), batch["fused_labels"], self.head, IGNORED)}


def build(config: menu.FusedMaskedLanguage, towers: TwoTower) -> Objective:
    return FusedMaskedLanguage(config, towers)
