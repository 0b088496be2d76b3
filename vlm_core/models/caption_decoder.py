"""Words said so far and a picture -> the next word: blocks of causal self-attention, a look at the picture and an MLP, on the states of the text tower,
which has not seen the picture.

Source: CoCa, arXiv 2205.01917. With `queries` the picture is first summed up by learnt queries (CoCa's captioning pooler); CoCa takes its contrastive
feature from a pooler of one query on top of these, here the image tower has its own pooling beside them.
"""

# B pairs, L tokens, E channels of the text tower, P places of a picture, V vocabulary

import torch
from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models.open_clip_parts import AttentionalPooler


class CaptionDecoder(nn.Module):
    def __init__(self, config: menu.CaptionDecoder, *, image_width: int, width: int, vocabulary: int) -> None:
        super().__init__()
        pooler = None if config.queries is None else AttentionalPooler(width, image_width, config.heads, config.queries)
        self.look: nn.Module = pooler or nn.Linear(image_width, width)
        self.norm_image, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.say = nn.Linear(width, vocabulary)

    def see(self, image_BPE: Tensor) -> Tensor:
        """What captions look at (B, K, E): the queries, or every place of the picture."""
        out_BKE: Tensor = self.norm_image(self.look(image_BPE))
        return out_BKE

    def forward(self, seen_BKE: Tensor, text_BLE: Tensor) -> Tensor:
        """States (B, L, E), of which `say` makes logits of the next word."""
        ahead_LL = torch.ones(text_BLE.shape[1], text_BLE.shape[1], dtype=torch.bool, device=text_BLE.device).triu(1)
        for block in self.blocks:
            text_BLE = block(text_BLE, seen_BKE, tgt_mask=ahead_LL, tgt_is_causal=True)
        out_BLE: Tensor = self.norm(text_BLE)
        return out_BLE
