"""Picture and text looked at together: what every kind of fusion offers, so that objectives and evaluators do not know the kind.

image_BPE, text_BLE = towers.begin(images, ids)          # states where fusion begins: made once, used for many pairings
fused = towers.fuse(image_BPE[rows], text_BLE[others], words_BL[others])
"""

# B pairs, P places of a picture (the class token first), L tokens, E channels of a tower, W channels of fused states

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Fused(NamedTuple):
    """States of pairs that have seen each other."""

    image_BPW: Tensor  # the class token first
    text_BLW: Tensor
    class_BW: Tensor  # of the pair as a whole


class Fusion(nn.Module, ABC):
    """Has its own weights only; the towers it works on are handed to it.

    Args:
        image_width: channels of `Fused.image_BPW`; text_width, class_width alike.
    """

    def __init__(self, image_width: int, text_width: int, class_width: int) -> None:
        super().__init__()
        self.image_width, self.text_width, self.class_width = image_width, text_width, class_width
        self.pool, self.decide = nn.Linear(class_width, class_width), nn.Linear(class_width, 2)

    def begin_image(self, image: Any, images_B3HW: Tensor, hidden_BP: Tensor | None = None, mask_E: Tensor | None = None) -> Tensor:
        """States where fusion begins (B, 1 + P, E); see `Vit.tokens` about hidden patches."""
        out_BPE: Tensor = image.tokens(images_B3HW) if hidden_BP is None else image.tokens(images_B3HW, hidden_BP=hidden_BP, mask_E=mask_E)
        return out_BPE

    def begin_text(self, text: Any, ids_BL: Tensor) -> Tensor:
        out_BLE: Tensor = text.states(text.embed(ids_BL), ids_BL)
        return out_BLE

    def end_image(self, image: Any, begun_BPE: Tensor) -> Tensor:
        """What the tower alone makes of these states: `tokens` of the picture."""
        return begun_BPE

    def end_text(self, text: Any, begun_BLE: Tensor) -> Tensor:
        return begun_BLE

    @abstractmethod
    def forward(self, image: Any, text: Any, image_BPE: Tensor, text_BLE: Tensor, ids_BL: Tensor) -> Fused:
        """Fuse states where fusion begins; tokens of id 0 are padding and seen by nobody."""

    def match_logits(self, class_BW: Tensor) -> Tensor:
        """(B, 2): do picture and text not belong together, or do they?"""
        return itm_logits(class_BW, self.pool, self.decide)


def itm_logits(class_BW: Tensor, pool: nn.Module, decide: nn.Module) -> Tensor:
    """(B, 2) from the first state of the fused pair: tanh of a linear layer, then another (FLAVA, arXiv 2112.04482).

    Checked by golden `pretraining/itm_flava`.
    """
    out_B2: Tensor = decide(torch.tanh(pool(class_BW)))
    return out_B2
