"""Do this picture and this text belong together? A small fusion Transformer over patches and words decides, for the own pair and for its hardest others
(ALBEF, arXiv 2107.07651; FLAVA, 2112.04482; FIBER, 2206.07643).

Hard negatives are drawn within the rank's batch from the softmax of the contrastive similarities; a pair with the same caption is never a negative.
The fusion is this objective's own and is not part of the model folder.
"""

# B pairs of this rank, K rows of a queue, L tokens, P patches, D joint width, W width of the fusion

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present


def itm_logits(state_BW: Tensor, pool: nn.Linear, decide: nn.Linear) -> Tensor:
    """(B, 2) from the first state of the fused pair: tanh of a linear layer, then another. Checked by golden `pretraining/itm_flava`."""
    out_B2: Tensor = decide(torch.tanh(pool(state_BW)))
    return out_B2


def itc_queue_loss(image_BD: Tensor, text_BD: Tensor, image_KD: Tensor, text_KD: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, image-to-text and text-to-image similarities (B, B + K)): InfoNCE of rows against the batch and queues, which get no gradient.

    Source: FIBER, arXiv 2206.07643. Checked by golden `pretraining/itc_queue_hard_negatives`.
    """
    sims = [
        rows @ torch.cat([columns.detach(), queue]).T / temperature for rows, columns, queue in ((image_BD, text_BD, text_KD), (text_BD, image_BD, image_KD))
    ]
    labels_B = torch.arange(len(image_BD), device=image_BD.device)
    return (F.cross_entropy(sims[0], labels_B) + F.cross_entropy(sims[1], labels_B)) / 2, sims[0], sims[1]


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


class Fusion(nn.Module):
    """[class; patches; words] through one Transformer -> state of the class token (B, W)."""

    def __init__(self, image_width: int, text_width: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(image_width, width), nn.Linear(text_width, width)
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, patches_BPE: Tensor, tokens_BLE: Tensor, words_BL: Tensor) -> Tensor:
        image_BPW, text_BLW = self.image(patches_BPE), self.text(tokens_BLE)
        x = torch.cat([self.class_embedding.to(image_BPW.dtype).expand(len(image_BPW), -1, -1), image_BPW, text_BLW], dim=1)
        padding = F.pad(~words_BL, (1 + image_BPW.shape[1], 0), value=False)
        out_BW: Tensor = self.blocks(x, src_key_padding_mask=padding)[:, 0]
        return out_BW


class ImageTextMatching(Objective):
    def __init__(self, config: menu.ImageTextMatching, towers: TwoTower) -> None:
        super().__init__()
        self.fuse = Fusion(towers.image_width, towers.text_width, config.width, config.layers, config.heads)
        self.pool, self.decide = nn.Linear(config.width, config.width), nn.Linear(config.width, 2)

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        patches_BPE, tokens_BLE, ids_BL = present(out.patches_BPE), present(out.tokens_BLE), batch["ids"]
        texts, images = self._negatives(out, ids_BL)
        picture, text, labels = build_itm_batch(texts, images)
        state = self.fuse(patches_BPE[picture], tokens_BLE[text], ids_BL[text] != 0)
        with full_precision(state.device):
            return {"image_text_matching": F.cross_entropy(itm_logits(widen(state), self.pool, self.decide), labels)}

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
    return ImageTextMatching(config, towers)
