"""ALIP's adaptive weights: how far picture, raw caption and synthetic caption agree (Yang et al., ICCV 2023, arXiv 2308.08428, equations 3 to 8).

    S_tc, S_xt, S_xc     cosines of raw and synthetic caption, picture and raw, picture and synthetic
    H                    running means of the three, H <- m H + (1 - m) batch mean, renewed before they are used
    W_s = min(exp(g (S_tc - H_tc)), 1)                         weight of the sample: do its two captions say the same?
    W_t = exp(g (S_xt - H_xt)) where W_s < 1, else 1           weight of the pair with the raw caption
    W_c = exp(g (S_xc - H_xc)) where W_s < 1, else 1           weight of the pair with the synthetic caption

Weights carry no gradient. Checked by goldens `data/{alip_adaptive,alip_weights_warm}`.
"""

# B samples, D joint width

from typing import NamedTuple

import torch
from torch import Tensor

SAME = 1 - 1e-6  # two captions that are one text agree, whatever rounding makes of their cosine


class Means(NamedTuple):
    """Running means of the three cosines: raw with synthetic, picture with raw, picture with synthetic. The reference starts them at 1."""

    text: Tensor
    raw: Tensor
    caption: Tensor


class Weights(NamedTuple):
    """Of the sample, and of its two pairs."""

    sample_B: Tensor
    raw_B: Tensor
    caption_B: Tensor


@torch.no_grad()
def renewed(means: Means, image_BD: Tensor, raw_BD: Tensor, caption_BD: Tensor, momentum: float = 0.99) -> Means:
    """The running means after a batch of unit-norm rows."""
    seen = ((raw_BD * caption_BD).sum(-1).mean(), (image_BD * raw_BD).sum(-1).mean(), (image_BD * caption_BD).sum(-1).mean())
    return Means(*(momentum * old + (1 - momentum) * new for old, new in zip(means, seen, strict=True)))


@torch.no_grad()
def weights_at(means: Means, image_BD: Tensor, raw_BD: Tensor, caption_BD: Tensor, gamma: float = 2.0) -> Weights:
    """Weights of unit-norm rows under given means."""
    text_B, raw_B, caption_B = (raw_BD * caption_BD).sum(-1), (image_BD * raw_BD).sum(-1), (image_BD * caption_BD).sum(-1)
    sample_B = (gamma * (text_B - means.text)).exp().clamp(max=1)
    one_B, gated_B = torch.ones_like(sample_B), (sample_B < 1) & (text_B < SAME)
    pair = [torch.where(gated_B, (gamma * (score_B - mean)).exp(), one_B) for score_B, mean in ((raw_B, means.raw), (caption_B, means.caption))]
    return Weights(sample_B, *pair)


def alip_weights(image_BD: Tensor, raw_BD: Tensor, caption_BD: Tensor, means: Means, gamma: float = 2.0, momentum: float = 0.99) -> tuple[Weights, Means]:
    """One step of ALIP: the means are renewed by the batch, and its weights are those under the new means."""
    means = renewed(means, image_BD, raw_BD, caption_BD, momentum)
    return weights_at(means, image_BD, raw_BD, caption_BD, gamma), means
