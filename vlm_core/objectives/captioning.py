"""The caption is written word by word while looking at the picture (CoCa, arXiv 2205.01917, equation 2): the states of the causal text tower, which
has not seen the picture, go through the model's decoder (`models/caption_decoder.py`), which looks at it.

As in CoCa contrast and captioning share one pass through the towers; here the text feature is the end token's state, where CoCa appends a class token,
so the context needs no extra place, and no place of the caption sees it.

Checked by golden `pretraining/coca_loss`.
"""

# B pairs, L tokens

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, present
from vlm_core.objectives.heads import word_loss

PAD = 0


class Captioning(Objective):
    def __init__(self, config: menu.Captioning) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        decoder, labels_BL = present(present(out.towers).decoder), batch["ids"][:, 1:]
        rows = present(out.patches_BPE), present(out.tokens_BLE)[:, :-1]

        def write(patches_BPE: Tensor, tokens_BLE: Tensor) -> Tensor:
            return decoder(decoder.see(patches_BPE), tokens_BLE)

        return {"captioning": word_loss(write, rows, labels_BL, labels_BL != PAD, decoder.say, chunk_size=self.config.chunk_size)}


def build(config: menu.Captioning, towers: TwoTower) -> Objective:
    return Captioning(config)
