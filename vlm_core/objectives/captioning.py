"""The caption is written word by word while looking at the picture (CoCa, arXiv 2205.01917, equation 2): the states of the causal text tower, which
has not seen the picture, go through a decoder that attends to the patches.

The decoder is this objective's own and is not part of the model folder. As in CoCa contrast and captioning share one pass through the towers; here the
text feature is the end token's state, where CoCa appends a class token, so the context needs no extra place.
"""

# B pairs, L tokens, E width of the text tower, P patches, K rows of a chunk, V vocabulary

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present

PAD = 0
WORDS = 512  # whose logits over the vocabulary exist at a time


def caption_loss(logits_BLV: Tensor, labels_BL: Tensor, pad_id: int = PAD) -> Tensor:
    """Mean cross-entropy over the labels that are not padding.

    Source: CoCa, arXiv 2205.01917 (open_clip). Checked by golden `pretraining/coca_loss`.
    """
    return F.cross_entropy(logits_BLV.flatten(0, -2), labels_BL.flatten(), ignore_index=pad_id)


class Captioning(Objective):
    def __init__(self, config: menu.Captioning, towers: TwoTower) -> None:
        super().__init__()
        width, heads = towers.text_width, towers.config.text.heads  # type: ignore[union-attr]  # tokens: clip_transformer only
        self.look = nn.Sequential(nn.Linear(towers.image_width, width), nn.LayerNorm(width))
        block = nn.TransformerDecoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.decode = nn.TransformerDecoder(block, config.layers, nn.LayerNorm(width))
        self.say = nn.Linear(width, towers.config.text.vocab_size)  # type: ignore[union-attr]

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        tokens_BLE, patches_BPE, ids_BL = present(out.tokens_BLE), present(out.patches_BPE), batch["ids"]
        ahead_LL = nn.Transformer.generate_square_subsequent_mask(ids_BL.shape[1] - 1, device=ids_BL.device)
        states_BLE = self.decode(tokens_BLE[:, :-1], self.look(patches_BPE), tgt_mask=ahead_LL.to(tokens_BLE.dtype), tgt_is_causal=True)
        with full_precision(states_BLE.device):
            real_BL = ids_BL[:, 1:] != PAD
            return {"captioning": self._words(widen(states_BLE)[real_BL], ids_BL[:, 1:][real_BL])}

    def _words(self, states_KE: Tensor, labels_K: Tensor) -> Tensor:
        """The same as `caption_loss` of all logits, which would be the largest tensor of the step: made a few words at a time, and again in backward."""
        total = states_KE.new_zeros(())
        for begin in range(0, len(labels_K), WORDS):
            part = states_KE[begin : begin + WORDS], labels_K[begin : begin + WORDS]
            total = total + checkpoint(self._chunk, *part, use_reentrant=False, preserve_rng_state=False)
        return total / len(labels_K)

    def _chunk(self, states_KE: Tensor, labels_K: Tensor) -> Tensor:
        return F.cross_entropy(self.say(states_KE), labels_K, reduction="sum")


def build(config: menu.Captioning, towers: TwoTower) -> Objective:
    return Captioning(config, towers)
