"""Do this picture and this text belong together? The model's fusion decides, for the own pair and for its hardest others
(ALBEF, arXiv 2107.07651; FLAVA, 2112.04482; FIBER, 2206.07643).

Hard negatives are drawn within the rank's batch from the softmax of the contrastive similarities; a pair with the same caption or the same picture is never
one. Where a batch has nothing else for a pair, that pair is scored without negatives.
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
from vlm_core.objectives.gather import mean_over_ranks
from vlm_core.objectives.masks import IGNORED

LEAST = 1e-9  # added to the chance of every pair that may be drawn, as ALBEF does: at a high scale a softmax may leave nothing


def hard_negative_weights(similarity_BN: Tensor, valid: int, forbidden_BN: Tensor | None = None) -> Tensor:
    """Softmax over the first `valid` columns, 0 where a negative is forbidden (the own pair at least); rows do not sum to one, sampling needs no more.

    Source: ALBEF, arXiv 2107.07651. Checked by golden `pretraining/itc_queue_hard_negatives`.
    """
    weights_BN = similarity_BN[:, :valid].softmax(1)
    if forbidden_BN is None:
        forbidden_BN = torch.eye(len(weights_BN), valid, dtype=torch.bool, device=weights_BN.device)
    return weights_BN.masked_fill(forbidden_BN[:, :valid], 0)


def build_itm_batch(negative_text_B: Tensor, negative_image_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows of pictures, rows of texts, labels), each 3 B: own pairs, then each picture with a wrong text, then each text with a wrong picture.

    Where a pair has no negative (IGNORED) it meets itself, and the label is IGNORED.
    """
    own_B = torch.arange(len(negative_text_B), device=negative_text_B.device)
    wrong = [negative_B.where(negative_B != IGNORED, own_B) for negative_B in (negative_text_B, negative_image_B)]
    labels = [torch.ones_like(own_B), *(negative_B.where(negative_B == IGNORED, 0) for negative_B in (negative_text_B, negative_image_B))]
    return torch.cat([own_B, own_B, wrong[1]]), torch.cat([own_B, wrong[0], own_B]), torch.cat(labels)


@torch.no_grad()
def same_pairs(ids_BL: Tensor, picture_B: Tensor) -> Tensor:
    """(B, B), true where two pairs have the same words or the same picture, themselves included. Word by word, so that memory grows with B x B only.

    Args:
        ids_BL: of the texts.
        picture_B: a number per picture, equal for equal ones.
    """
    same_BB = torch.ones(len(ids_BL), len(ids_BL), dtype=torch.bool, device=ids_BL.device)
    for word_B in ids_BL.T:
        same_BB &= word_B[:, None] == word_B
    return same_BB | (picture_B[:, None] == picture_B)


@torch.no_grad()
def draw_negatives(similarity_BB: Tensor, forbidden_BB: Tensor) -> Tensor:
    """(B,) a column per row, by `hard_negative_weights`; IGNORED where all are forbidden."""
    weights_BB = hard_negative_weights(similarity_BB, len(similarity_BB), forbidden_BB) + LEAST * ~forbidden_BB
    none_B = forbidden_BB.all(1)
    return weights_BB.masked_fill(none_B[:, None], 1.0).multinomial(1)[:, 0].masked_fill(none_B, IGNORED)


class ImageTextMatching(Objective):
    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        towers, begun_BPE, begun_BLE, ids_BL = present(out.towers), present(out.begun_BPE), present(out.begun_BLE), batch["ids"]
        given = (batch["negative_text"], batch["negative_image"]) if "negative_text" in batch else self._negatives(out, batch)
        picture, text, labels = build_itm_batch(*given)
        fused = towers.fuse(begun_BPE[picture], begun_BLE[text], ids_BL[text])
        fusion: Fusion = present(towers.fusion)
        with full_precision(ids_BL.device):
            total = F.cross_entropy(fusion.match_logits(widen(fused.class_BW)), labels, reduction="sum", ignore_index=IGNORED)
            return {"image_text_matching": total / mean_over_ranks((labels != IGNORED).sum().to(total.dtype))}

    @torch.no_grad()
    def _negatives(self, out: Outputs, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """For each picture the row of a wrong text, for each text that of a wrong picture; the likelier, the more alike they look."""
        forbidden_BB = same_pairs(batch["ids"], batch["picture_ids"])
        similarity_BB = (out.scale * out.image_BD @ out.text_BD.T).float()
        return draw_negatives(similarity_BB, forbidden_BB), draw_negatives(similarity_BB.T, forbidden_BB)


def build(config: menu.ImageTextMatching, towers: TwoTower) -> Objective:
    return ImageTextMatching()
