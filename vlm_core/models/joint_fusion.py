"""[class; picture states, their class token first; text states] through one Transformer behind both towers.

Source: FLAVA, arXiv 2112.04482 (facebookresearch/multimodal): in the joint sequence picture states begin at 1 (the patches at 2), texts are the last L.
ALBEF (arXiv 2107.07651) lets texts attend to pictures instead; both kinds of model fuse behind the towers, and this one serves for both.
"""

# B pairs, P places of a picture, L tokens, E channels of a tower, W channels of the fusion

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.models import config as menu
from vlm_core.models.fusion import Fused, Fusion


class JointFusion(Fusion):
    def __init__(self, config: menu.JointFusion, image_width: int, text_width: int) -> None:
        width = config.width
        super().__init__(width, width, width)
        self.see, self.read = nn.Linear(image_width, width), nn.Linear(text_width, width)
        self.class_embedding = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Any, text: Any, image_BPE: Tensor, text_BLE: Tensor, ids_BL: Tensor) -> Fused:
        image_BPW, text_BLW = self.see(image_BPE), self.read(text_BLE)
        x_BSW = torch.cat([self.class_embedding.to(image_BPW.dtype).expand(len(image_BPW), -1, -1), image_BPW, text_BLW], dim=1)
        seen = image_BPW.shape[1]
        padding_BS = F.pad(ids_BL == 0, (1 + seen, 0), value=False)
        for block in self.blocks:
            x_BSW = block(x_BSW, src_key_padding_mask=padding_BS)
        x_BSW = self.norm(x_BSW)
        return Fused(x_BSW[:, 1 : 1 + seen], x_BSW[:, 1 + seen :], x_BSW[:, 0])


def build(config: menu.JointFusion, *, image: Any, text: Any) -> Fusion:
    """Args: image, text: the towers, whose widths are read."""
    return JointFusion(config, int(image.features_width), int(text.features_width))
