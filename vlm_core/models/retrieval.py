"""Retrieval-augmented picture embeddings: what a picture resembles in a reference set is mixed into it (RA-CLIP, Xie et al., CVPR 2023; no official code).

The reference set is part of the model: features of pairs that no step trains on, by two frozen encoders, saved with the weights. Differs from the paper in
the encoders: EfficientNet-Lite0 (ImageNet-1k) in the place of DINO and MiniLM in that of Sentence-T5, which packages carry.
Source: methods/pretraining.md 4.11.
"""

# B pictures, R references, K neighbours, D joint width, F features of the frozen image encoder, S of the frozen text encoder

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.models import config as menu
from vlm_core.models import packaged
from vlm_core.models.efficientnet_lite0 import Trunk
from vlm_core.models.pixels import pixels_of

BLOCK = 65_536  # references that are compared with a batch at a time


@torch.no_grad()
def nearest(query_BF: Tensor, keys_RF: Tensor, count: int) -> Tensor:
    """Rows (B, K) of the highest cosines, best first; both sides have unit norm. The keys are widened a block at a time."""
    best_BK, rows_BK = query_BF.new_empty(len(query_BF), 0), torch.empty(len(query_BF), 0, dtype=torch.long, device=query_BF.device)
    for begin in range(0, len(keys_RF), BLOCK):
        cosine_BR = query_BF @ keys_RF[begin : begin + BLOCK].float().T
        here_BR = torch.arange(begin, begin + cosine_BR.shape[1], device=query_BF.device).expand_as(cosine_BR)
        all_BR, of_BR = torch.cat([best_BK, cosine_BR], 1), torch.cat([rows_BK, here_BR], 1)
        best_BK, at_BK = all_BR.topk(min(count, all_BR.shape[1]), dim=1)
        rows_BK = of_BR.gather(1, at_BK)
    return rows_BK


class Retrieval(nn.Module):
    """`forward(image_BD, rows_BK)` mixes neighbours into embeddings; `look_up(images_B3HW)` finds the neighbours of any pictures.

    The references are frozen parameters: a model folder has them, step checkpoints and the optimiser do not. The encoder is read from its package when the
    first picture is looked up.

    Args:
        config: of the reference set.
        image: the image tower's; what it sees is turned back into pixels for the frozen encoder.
        width: of the joint space.
    """

    def __init__(self, config: menu.Retrieval, image: menu.ImageTower, width: int) -> None:
        super().__init__()
        self.config, self.pixels = config, pixels_of(image)
        features, sentence = packaged.EFFICIENTNET_WIDTH, packaged.MINILM_WIDTH
        self.text_by_image = nn.MultiheadAttention(width, config.heads, kdim=features, vdim=sentence, batch_first=True)
        self.image_by_text = nn.MultiheadAttention(width, config.heads, kdim=sentence, vdim=features, batch_first=True)
        self._encoder: Trunk | None = None
        self.image_RF = _frozen(config.references, features)
        self.text_RS = _frozen(config.references, sentence)

    @torch.no_grad()
    def keep(self, image_RF: Tensor, text_RS: Tensor) -> None:
        """Take these unit-norm features for the reference set."""
        self.image_RF.copy_(image_RF)
        self.text_RS.copy_(text_RS)

    def digest(self) -> str:
        """SHA-256 of the reference set."""
        held = b"".join(value.detach().cpu().contiguous().numpy().tobytes() for value in (self.image_RF, self.text_RS))
        return hashlib.sha256(held).hexdigest()

    @torch.no_grad()
    def features(self, images_B3HW: Tensor) -> Tensor:
        """Unit-norm features (B, F) of pictures as the image tower sees them."""
        mean, std = (images_B3HW.new_tensor(values).view(3, 1, 1) for values in (self.pixels.mean, self.pixels.std))
        side = self.config.image_size
        shown_B3SS = F.interpolate((images_B3HW * std + mean).clamp(0, 1) * 255, (side, side), mode="bicubic", antialias=True).clamp(0, 255)
        encoder = self._encoder or Trunk(packaged.efficientnet_lite0(), None, "auto")
        object.__setattr__(self, "_encoder", encoder)  # no part of this module: it is neither trained nor saved
        return F.normalize(encoder.to(shown_B3SS.device)(packaged.pixels(shown_B3SS)), dim=-1)

    def look_up(self, images_B3HW: Tensor) -> Tensor:
        """Rows (B, K) of the references that resemble the pictures most, best first."""
        return nearest(self.features(images_B3HW), self.image_RF, self.config.neighbours)

    def forward(self, image_BD: Tensor, rows_BK: Tensor) -> Tensor:
        """e' = e + MHA(e, pictures, texts) + MHA(e, texts, pictures), not yet normalised.

        Args:
            image_BD: unit-norm embeddings.
            rows_BK: of their neighbours among the references.
        """
        image_BKF, text_BKS = self.image_RF[rows_BK].to(image_BD.dtype), self.text_RS[rows_BK].to(image_BD.dtype)
        query_B1D = image_BD[:, None]
        texts_B1D, _ = self.text_by_image(query_B1D, image_BKF, text_BKS, need_weights=False)
        images_B1D, _ = self.image_by_text(query_B1D, text_BKS, image_BKF, need_weights=False)
        out_BD: Tensor = image_BD + texts_B1D[:, 0] + images_B1D[:, 0]
        return out_BD


def _frozen(rows: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rows, width, dtype=torch.float16), requires_grad=False)
