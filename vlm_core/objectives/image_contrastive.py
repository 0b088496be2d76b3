"""Two views of one picture find each other among all other pictures: NT-Xent (SimCLR, arXiv 2002.05709, equation 1), as SLIP adds it to CLIP (arXiv 2112.12750).

Differs from SLIP's code: the self-pair is left out of the softmax instead of lowered by 1e9, and batch norm in the head sees the rows of all ranks.
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, D projected width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower, unit, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import over_rows
from vlm_core.objectives.gather import Pairs, exchange
from vlm_core.objectives.heads import projector


def image_contrastive_loss(one_BD: Tensor, two_BD: Tensor, temperature: float = 0.1, *, chunk_size: int = 0) -> Tensor:
    """NT-Xent of two views of a batch; row i of one belongs to row i of the other. Normalises its inputs.

    Source: SimCLR, arXiv 2002.05709, as in facebookresearch/SLIP. Checked by goldens `pretraining/{image_contrastive_simclr,slip_loss}`.
    """
    one_BD, two_BD = F.normalize(one_BD, dim=-1), F.normalize(two_BD, dim=-1)
    return nt_xent(Pairs(one_BD, two_BD, one_BD, two_BD, 0), temperature, chunk_size)


def nt_xent(views: Pairs, temperature: float, chunk_size: int = 0) -> Tensor:
    """The same for unit-norm rows of this rank against those of all: what `gather.exchange` gives for two views."""
    one_BD, two_BD, one_ND, two_ND, offset = views
    total = over_rows(_chunk, [one_BD], two_ND, one_ND, temperature, offset, chunk_size=chunk_size)
    return (total + over_rows(_chunk, [two_BD], one_ND, two_ND, temperature, offset, chunk_size=chunk_size)) / (2 * len(one_BD))


def _chunk(begin: int, rows_KD: Tensor, other_ND: Tensor, same_ND: Tensor, temperature: float, offset: int) -> Tensor:
    """Cross-entropy of finding the other view among all other views and all pictures of the same view but itself."""
    labels_K = torch.arange(offset + begin, offset + begin + len(rows_KD), device=rows_KD.device)
    scaled_KD = rows_KD / temperature
    same_KN = (scaled_KD @ same_ND.T).scatter(1, labels_K[:, None], float("-inf"))
    return F.cross_entropy(torch.cat([scaled_KD @ other_ND.T, same_KN], dim=1), labels_K, reduction="sum")


class ImageContrastive(Objective):
    def __init__(self, config: menu.ImageContrastive, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.project = projector([towers.image_width, config.hidden, config.hidden, config.width])

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        one_BF, two_BF = (view.features_BF for view in out.views[:2])
        with full_precision(one_BF.device):
            views = exchange(unit(self.project(widen(one_BF))), unit(self.project(widen(two_BF))))
            return {"image_contrastive": nt_xent(views, self.config.temperature, self.config.chunk_size)}


def build(config: menu.ImageContrastive, towers: TwoTower) -> Objective:
    return ImageContrastive(config, towers)
