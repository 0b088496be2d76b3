"""Hidden words of the caption are guessed from the rest (15 % masking: BERT, arXiv 1810.04805; DeCLIP's text supervision, arXiv 2110.05208; FLAVA, 2112.04482).

CLIP's text tower is causal, so a word is guessed from those before it. The start token, which occurs nowhere else, stands in the place of a hidden word;
CLIP's byte pairs have no mask token of their own.
"""

# B texts, L tokens, E width of the text tower

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.heads import MaskedHead, masked_prediction_loss

PAD, IGNORED = 0, -100


def mask_tokens(
    ids: Tensor, special_ids: Collection[int], mask_id: int, share: float, select: Tensor, replace: Tensor, randomise: Tensor, words: Tensor
) -> tuple[Tensor, Tensor]:
    """(ids with hidden words, labels: the id where a word was chosen, else -100).

    Args:
        ids: of any shape; all tensors below have the same.
        special_ids: never chosen.
        mask_id: takes the place of 80 % of the chosen words; 10 % become another word, 10 % stay.
        share: of words that are chosen.
        select: uniform numbers; a word is chosen below `share`.
        replace: uniform numbers; below 0.8 the mask takes its place.
        randomise: uniform numbers; below 0.5 a word that is not masked becomes another one.
        words: those others.

    Source: DeCLIP, arXiv 2110.05208. Checked by golden `pretraining/mlm_masking`.
    """
    chosen = (select < share) & ~torch.isin(ids, torch.tensor(sorted(special_ids), device=ids.device))
    masked = chosen & (replace < 0.8)
    other = chosen & ~masked & (randomise < 0.5)
    return ids.where(~masked, ids.new_tensor(mask_id)).where(~other, words), ids.where(chosen, ids.new_tensor(IGNORED))


class MaskedLanguage(Objective):
    def __init__(self, config: menu.MaskedLanguage, towers: TwoTower) -> None:
        super().__init__()
        self.config, self.vocabulary = config, towers.config.text.vocab_size  # type: ignore[union-attr]  # text_mask: clip_transformer only
        self.head = MaskedHead(towers.text_width, self.vocabulary)

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        ids_BL = batch["ids"]
        select, replace, randomise = torch.rand(3, *ids_BL.shape, device=ids_BL.device)
        start, end = self.vocabulary - 2, self.vocabulary - 1  # where byte-pair vocabularies have them
        words_BL = torch.randint(1, start, ids_BL.shape, device=ids_BL.device)
        masked_BL, labels_BL = mask_tokens(ids_BL, (PAD, start, end), start, self.config.share, select, replace, randomise, words_BL)
        return {"masked_ids": masked_BL, "masked_labels": labels_BL}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        states_BLE = present(out.masked_BLE)
        with full_precision(states_BLE.device):
            return {"masked_language": masked_prediction_loss(widen(states_BLE), batch["masked_labels"], self.head, IGNORED)}


def build(config: menu.MaskedLanguage, towers: TwoTower) -> Objective:
    return MaskedLanguage(config, towers)
