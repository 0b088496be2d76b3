"""Patches gather at learnt centres, and patches of one superpixel should gather at the same one (SegCLIP, arXiv 2211.14813, equations 2 and 7)."""

# B pictures, C centres, L patches, E width, S superpixels

import torch
from torch import Tensor
from torch.nn import functional as F


def center_assign(scores_BCL: Tensor, gumbel_BCL: Tensor | None = None, tau: float = 0.9) -> Tensor:
    """One centre per patch (B, C, L), 1 or 0; the gradient is that of the softmax over centres.

    Args:
        scores_BCL: how well each patch fits each centre.
        gumbel_BCL: noise that is added while training; None in evaluation.
        tau: temperature of the noisy softmax.

    Source: SegCLIP, arXiv 2211.14813. Checked by golden `pretraining/segclip_center_assign`.
    """
    soft_BCL = scores_BCL.softmax(1) if gumbel_BCL is None else ((scores_BCL + gumbel_BCL) / tau).softmax(1)
    hard_BCL = torch.zeros_like(soft_BCL).scatter(1, soft_BCL.argmax(1, keepdim=True), 1.0)
    return hard_BCL - soft_BCL.detach() + soft_BCL


def center_pool(assigned_BCL: Tensor, values_BLE: Tensor) -> Tensor:
    """Mean of the values at each centre (B, C, E); a centre without patches gives 0. Checked by golden `pretraining/segclip_center_assign`."""
    count_BC1 = assigned_BCL.sum(-1, keepdim=True)
    return assigned_BCL @ values_BLE / (count_BC1 + (count_BC1 < 0.5))  # clamping at 1 would lose the gradient of a count of 0.9999999


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
