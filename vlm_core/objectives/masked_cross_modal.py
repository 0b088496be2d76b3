"""Hidden words and the visual tokens of hidden patches are guessed from what is left of the pair (FLAVA, arXiv 2112.04482, masked multimodal modelling;
golden `pretraining/{masked_prediction_loss,beit_block_masking,mlm_masking}`).

Every pair of a batch belongs together here (wrong pairs exist only inside image-text matching), so none has to be left out as in the official code.
"""

# B pairs, P patches, L tokens, E width of the image tower

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models.tokenizer import Special
from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.heads import MaskedHead, masked_prediction_loss
from vlm_core.objectives.masks import IGNORED, hide_patches, hide_words


class MaskedCrossModal(Objective):
    def __init__(self, config: menu.MaskedCrossModal, towers: TwoTower) -> None:
        super().__init__()
        self.config, fusion = config, present(towers.fusion)
        self.special: Special = towers.text.special  # type: ignore[assignment]
        self.rows: int = towers.config.image.image_size // towers.config.image.patch_size  # type: ignore[union-attr]  # visual_tokens: a grid of patches
        self.mask_E = nn.Parameter(torch.randn(towers.image_width) * towers.image_width**-0.5)
        self.of_patches = MaskedHead(fusion.image_width, present(towers.visual_tokens).vocab_size)
        self.of_words = MaskedHead(fusion.text_width, self.special.vocabulary)

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if "hidden_words" in batch:
            return {}
        hidden_BL, labels_BL = hide_words(batch["ids"], self.special, self.config.text_share)
        hidden_BP = hide_patches(len(hidden_BL), self.rows, self.config.image_share)
        return {"hidden_words": hidden_BL, "hidden_word_labels": labels_BL, "hidden_patches": hidden_BP.to(hidden_BL.device)}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        towers, ids_BL, hidden_BP = present(out.towers), batch["hidden_words"], batch["hidden_patches"]
        fusion, tokens = present(towers.fusion), present(towers.visual_tokens)
        begun_BPE = fusion.begin_image(towers.image, batch["images"], hidden_BP, self.mask_E)
        fused = towers.fuse(begun_BPE, fusion.begin_text(towers.text, ids_BL), ids_BL)
        labels_BP = tokens.encode(batch["images"]).where(hidden_BP, torch.tensor(IGNORED, device=hidden_BP.device))
        with full_precision(ids_BL.device):
            patches = masked_prediction_loss(widen(fused.image_BPW[:, 1:]), labels_BP, self.of_patches, IGNORED)
            words = masked_prediction_loss(widen(fused.text_BLW), batch["hidden_word_labels"], self.of_words, IGNORED)
        return {"masked_cross_modal.patches": patches, "masked_cross_modal.words": words}


def build(config: menu.MaskedCrossModal, towers: TwoTower) -> Objective:
    return MaskedCrossModal(config, towers)
