"""Cross-attention inside the last blocks of both towers, each behind a learnt gate that starts at 0: with closed gates the fused pass is the dual encoder's.

Source: FIBER, arXiv 2206.07643. Both towers look at each other as they were behind the former block. FIBER adds what was seen between self-attention and
MLP of a block; here it is added in front of the block, which leaves the towers' own blocks as they are.
"""

# B pairs, P places of a picture, L tokens, E channels of the tower that looks, F of the one that is looked at

from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models.fusion import Fused, Fusion


class GatedCrossAttention(nn.Module):
    """x + alpha * attention(x, context), alpha from 0."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.ln_q, self.ln_kv = nn.LayerNorm(width), nn.LayerNorm(context)
        self.attend = nn.MultiheadAttention(width, heads, kdim=context, vdim=context, batch_first=True)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x_BLE: Tensor, context_BKF: Tensor, padding_BK: Tensor | None = None) -> Tensor:
        context_BKF = self.ln_kv(context_BKF)
        seen_BLE = self.attend(self.ln_q(x_BLE), context_BKF, context_BKF, key_padding_mask=padding_BK, need_weights=False)[0]
        out_BLE: Tensor = x_BLE + self.alpha.to(seen_BLE.dtype) * seen_BLE
        return out_BLE


class GatedFusion(Fusion):
    """The fused class state is [picture feature; text feature]."""

    def __init__(self, config: menu.GatedFusion, image_width: int, text_width: int, heads: tuple[int, int], layers: tuple[int, int]) -> None:
        super().__init__(image_width, text_width, image_width + text_width)
        self.first_image, self.first_text = (count - config.blocks for count in layers)
        self.image_looks = nn.ModuleList(GatedCrossAttention(image_width, text_width, heads[0]) for _ in range(config.blocks))
        self.text_looks = nn.ModuleList(GatedCrossAttention(text_width, image_width, heads[1]) for _ in range(config.blocks))

    def begin_image(self, image: Any, images_B3HW: Tensor, hidden_BP: Tensor | None = None, mask_E: Tensor | None = None) -> Tensor:
        out_BPE: Tensor = image.through(image.enter(images_B3HW, hidden_BP, mask_E), 0, self.first_image)
        return out_BPE

    def begin_text(self, text: Any, ids_BL: Tensor) -> Tensor:
        out_BLE: Tensor = text.through(text.enter(text.embed(ids_BL)), 0, self.first_text)
        return out_BLE

    def end_image(self, image: Any, begun_BPE: Tensor) -> Tensor:
        out_BPE: Tensor = image.leave(image.through(begun_BPE, self.first_image))
        return out_BPE

    def end_text(self, text: Any, begun_BLE: Tensor) -> Tensor:
        out_BLE: Tensor = text.leave(text.through(begun_BLE, self.first_text))
        return out_BLE

    def forward(self, image: Any, text: Any, image_BPE: Tensor, text_BLE: Tensor, ids_BL: Tensor) -> Fused:
        padding_BL = ids_BL == 0
        for place, (image_looks, text_looks) in enumerate(zip(self.image_looks, self.text_looks, strict=True)):
            seen_BPE, read_BLE = image_looks(image_BPE, text_BLE, padding_BL), text_looks(text_BLE, image_BPE)
            at_image, at_text = self.first_image + place, self.first_text + place
            image_BPE, text_BLE = image.through(seen_BPE, at_image, at_image + 1), text.through(read_BLE, at_text, at_text + 1)
        image_BPE, text_BLE = image.leave(image_BPE), text.leave(text_BLE)
        return Fused(image_BPE, text_BLE, torch.cat([image.pool(image_BPE), text.pool(text_BLE, ids_BL)], dim=-1))


def build(config: menu.GatedFusion, *, image: Any, text: Any) -> Fusion:
    """Args: image, text: the towers, whose widths, heads and depths are read."""
    stacks = image.transformer.resblocks, text.transformer.resblocks
    heads, layers = tuple(stack[0].attn.num_heads for stack in stacks), tuple(len(stack) for stack in stacks)
    return GatedFusion(config, int(image.features_width), int(text.features_width), heads, layers)  # type: ignore[arg-type]
