"""Hidden words of the caption are guessed from the rest (15 % masking: BERT, arXiv 1810.04805; DeCLIP's text supervision, arXiv 2110.05208; FLAVA, 2112.04482).

CLIP's text tower is causal, so there a word is guessed from those before it. Which words are hidden: `masks.hide_words`, golden `pretraining/mlm_masking`.
"""

# B texts, L tokens, E width of the text tower

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.tokenizer import Special
from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.heads import MaskedHead, masked_prediction_loss
from vlm_core.objectives.masks import IGNORED, hide_words


class MaskedLanguage(Objective):
    def __init__(self, config: menu.MaskedLanguage, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.special: Special = towers.text.special  # type: ignore[assignment]
        self.head = MaskedHead(towers.text_width, self.special.vocabulary)

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        masked_BL, labels_BL = hide_words(batch["ids"], self.special, self.config.share)
        return {"masked_ids": masked_BL, "masked_labels": labels_BL}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        states_BLE = present(out.masked_BLE)
        with full_precision(states_BLE.device):
            return {"masked_language": masked_prediction_loss(widen(states_BLE), batch["masked_labels"], self.head, IGNORED)}


def build(config: menu.MaskedLanguage, towers: TwoTower) -> Objective:
    return MaskedLanguage(config, towers)
