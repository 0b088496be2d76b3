"""Patches of one superpixel should gather at the same centre of a grouping tower (SegCLIP, arXiv 2211.14813, equation 7)."""

# B pictures, C centres, L patches, S superpixels

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present


def superpixel_means(assigned_BLC: Tensor, superpixels_BL: Tensor) -> Tensor:
    """For each patch the mean assignment of its superpixel (B, L, C)."""
    same_BLS = F.one_hot(superpixels_BL, int(superpixels_BL.max()) + 1).to(assigned_BLC.dtype)
    means_BSC = same_BLS.transpose(1, 2) @ assigned_BLC / same_BLS.sum(1).clamp(min=1)[..., None]
    return same_BLS @ means_BSC


def superpixel_kl(assigned_BLC: Tensor, superpixels_BL: Tensor) -> Tensor:
    """Symmetric KL between the softmax of each patch's assignment and that of its superpixel's mean, per patch and centre.

    The softmax of what is one-hot already is the official code's, kept for parity. Source: SegCLIP, arXiv 2211.14813. Checked by golden
    `pretraining/segclip_superpixel_kl`.
    """
    own, mean = assigned_BLC.log_softmax(-1), superpixel_means(assigned_BLC, superpixels_BL).log_softmax(-1)
    both = F.kl_div(own, mean, reduction="sum", log_target=True) + F.kl_div(mean, own, reduction="sum", log_target=True)
    return both / (2 * own.numel())


class PatchGrouping(Objective):
    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        assigned_BCL = present(out.groups_BCP)
        with full_precision(assigned_BCL.device):
            return {"patch_grouping": superpixel_kl(assigned_BCL.transpose(1, 2), batch["superpixels"])}


def build(config: menu.PatchGrouping, towers: TwoTower) -> Objective:
    return PatchGrouping()
