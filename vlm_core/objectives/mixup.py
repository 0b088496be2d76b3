"""Mixed pairs: per step a coin decides whether pictures or text embeddings are mixed with those of the batch in reverse (ZeroVL, arXiv 2112.09331, section 3.3).

Pictures are mixed as pixels, texts behind the projection and before unit norm. The partner of row i is row n - 1 - i of the same rank. It changes the
pictures that the towers see, so it stands alone. Differs from the official code: all ranks throw the same coin.
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, D joint width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower, unit
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import logits, over_rows
from vlm_core.objectives.gather import Pairs, exchange, of_first


def coin_flip_mixup(beta: float = 0.1) -> tuple[bool, float]:
    """(whether pictures are mixed rather than texts, share of a row in its own mixture), from torch's generator; the same on every rank."""
    share = torch.distributions.Beta(beta, beta).sample()
    drawn = of_first(torch.stack([torch.rand(()), share]).double())
    return bool(drawn[0] > 0.5), float(drawn[1])


def mix(x: Tensor, share: float) -> Tensor:
    """share x row + (1 - share) x the row as far from the end. Checked by golden `pretraining/zerovl_mixup`."""
    return share * x + (1 - share) * x.flip(0)


def mixup_infonce(pairs: Pairs, share: float, scale: Tensor | float, *, chunk_size: int = 0) -> Tensor:
    """Mean of both directions of share x CE(own column) + (1 - share) x CE(the mixing partner's column).

    Source: ZeroVL, arXiv 2112.09331. Checked by golden `pretraining/zerovl_mixup`.
    """
    count = len(pairs.image_BD)
    partner_B = pairs.offset + torch.arange(count - 1, -1, -1, device=pairs.image_BD.device)
    sides = (pairs.image_BD, pairs.text_ND), (pairs.text_BD, pairs.image_ND)
    totals = [over_rows(_chunk, [rows, partner_B], columns, scale, share, pairs.offset, chunk_size=chunk_size) for rows, columns in sides]
    return (totals[0] + totals[1]) / (2 * count)


def _chunk(begin: int, rows_KD: Tensor, partner_K: Tensor, columns_ND: Tensor, scale: Tensor | float, share: float, offset: int) -> Tensor:
    logits_KN = logits(rows_KD, columns_ND, scale)
    own_K = torch.arange(offset + begin, offset + begin + len(rows_KD), device=rows_KD.device)
    return share * F.cross_entropy(logits_KN, own_K, reduction="sum") + (1 - share) * F.cross_entropy(logits_KN, partner_K, reduction="sum")


class Mixup(Objective):
    def __init__(self, config: menu.Mixup) -> None:
        super().__init__()
        self.config = config

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        of_images, share = coin_flip_mixup(self.config.beta) if self.training else (False, 1.0)
        return {"images": mix(batch["images"], share) if of_images else batch["images"], "mixed": (of_images, share)}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        of_images, share = batch["mixed"]
        with full_precision(out.image_BD.device):
            text_BD = out.text_BD if of_images else unit(mix(present(out.raw_text_BD), share))
            loss = mixup_infonce(exchange(out.image_BD, text_BD), share, out.scale, chunk_size=self.config.chunk_size)
        return {"mixup": loss}


def build(config: menu.Mixup, towers: TwoTower) -> Objective:
    return Mixup(config)
