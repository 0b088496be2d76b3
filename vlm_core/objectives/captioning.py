"""The caption is written word by word while looking at the picture (CoCa, arXiv 2205.01917, equation 2): the states of the causal text tower, which
has not seen the picture, go through the model's decoder (`models/caption_decoder.py`), which looks at it.

As in CoCa contrast and captioning share one pass through the towers; here the text feature is the end token's state, where CoCa appends a class token,
so the context needs no extra place, and no place of the caption sees it.
"""

# B pairs, L tokens

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.heads import word_loss

PAD = 0


def caption_loss(logits_BLV: Tensor, labels_BL: Tensor, pad_id: int = PAD) -> Tensor:
    """Mean cross-entropy over the labels that are not padding.

    Source: CoCa, arXiv 2205.01917 (open_clip). Checked by golden `pretraining/coca_loss`.
    """
    return F.cross_entropy(logits_BLV.flatten(0, -2), labels_BL.flatten(), ignore_index=pad_id)


class Captioning(Objective):
    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        decoder, labels_BL = present(present(out.towers).decoder), batch["ids"][:, 1:]
        states_BLE = decoder(decoder.see(present(out.patches_BPE)), present(out.tokens_BLE)[:, :-1])
        with full_precision(states_BLE.device):
            return {"captioning": word_loss(widen(states_BLE), labels_BL, labels_BL != PAD, decoder.say)}


def build(config: menu.Captioning, towers: TwoTower) -> Objective:
    return Captioning()
