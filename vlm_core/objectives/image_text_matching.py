"""Do this picture and this text belong together? The model's fusion decides, for the own pair and for its hardest others
(ALBEF, arXiv 2107.07651; FLAVA, 2112.04482; FIBER, 2206.07643).

Hard negatives are drawn within the rank's batch from the softmax of the contrastive similarities; a pair with the same caption is never a negative.
The answer is the fusion's own (`Fusion.match_logits`, golden `pretraining/itm_flava`), so that a saved model can tell pairs as well.
"""

# B pairs of this rank, N pairs of the batch and a queue, L tokens

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.fusion import Fusion
from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present


def hard_negative_weights(similarity_BN: Tensor, valid: int, forbidden_BN: Tensor | None = None) -> Tensor:
    """Softmax over the first `valid` columns, 0 where a negative is forbidden (the own pair at least); rows do not sum to one, sampling needs no more.

    Source: ALBEF, arXiv 2107.07651. Checked by golden `pretraining/itc_queue_hard_negatives`.
    """
    weights_BN = similarity_BN[:, :valid].softmax(1)
    if forbidden_BN is None:
        forbidden_BN = torch.eye(len(weights_BN), valid, dtype=torch.bool, device=weights_BN.device)
    return weights_BN.masked_fill(forbidden_BN[:, :valid], 0)


def build_itm_batch(negative_text_B: Tensor, negative_image_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows of pictures, rows of texts, labels), each 3 B: own pairs, then each picture with a wrong text, then each text with a wrong picture."""
    own_B = torch.arange(len(negative_text_B), device=negative_text_B.device)
    labels = torch.cat([torch.ones_like(own_B), torch.zeros_like(own_B), torch.zeros_like(own_B)])
    return torch.cat([own_B, own_B, negative_image_B]), torch.cat([own_B, negative_text_B, own_B]), labels


class ImageTextMatching(Objective):
    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        towers, begun_BPE, begun_BLE, ids_BL = present(out.towers), present(out.begun_BPE), present(out.begun_BLE), batch["ids"]
        picture, text, labels = build_itm_batch(*self._negatives(out, ids_BL))
        fused = towers.fuse(begun_BPE[picture], begun_BLE[text], ids_BL[text])
        fusion: Fusion = present(towers.fusion)
        with full_precision(ids_BL.device):
            return {"image_text_matching": F.cross_entropy(fusion.match_logits(widen(fused.class_BW)), labels)}

    @torch.no_grad()
    def _negatives(self, out: Outputs, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """For each picture the row of a wrong text, for each text that of a wrong picture; the likelier, the more alike they look."""
        same_BB = (ids_BL[:, None] == ids_BL).all(-1)
        similarity_BB = (out.scale * out.image_BD @ out.text_BD.T).float()
        other_BB = (~torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device)).float()
        chosen = [
            torch.multinomial(hard_negative_weights(sims, len(sims), same_BB) + 1e-9 * other_BB, 1)[:, 0] for sims in (similarity_BB, similarity_BB.T)
        ]  # fmt: skip
        return chosen[0], chosen[1]


def build(config: menu.ImageTextMatching, towers: TwoTower) -> Objective:
    return ImageTextMatching()
