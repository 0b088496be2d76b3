"""Detection as phrase grounding: every region is scored against every word of the prompt (GLIP, arXiv 2112.03857, equations 3 to 5)."""

# B pictures, A regions (anchors), T words, Q width of a region, E width of a word

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CAP = 50_000.0  # on logits, as larger ones overflow in half precision
PRIOR = 0.01  # chance that an untrained head gives to a match


def alignment_logits(regions_BAQ: Tensor, words_BTE: Tensor, weight_QE: Tensor, bias_Q: Tensor, bias_E: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """Scores (B, A, T): the region times the word's half-length projection, divided by exp(log_scale), plus a bias that depends on the word.

    Source: GLIP, arXiv 2112.03857 (microsoft/GLIP). Checked by golden `pretraining/glip_alignment`.
    """
    unit_BTE = F.normalize(words_BTE, dim=-1)
    projected_BTQ = F.linear(unit_BTE / 2, weight_QE, bias_Q)
    logits_BAT = regions_BAQ @ projected_BTQ.transpose(1, 2) / log_scale.exp() + (unit_BTE @ bias_E + bias)[:, None]
    return logits_BAT.clamp(-CAP, CAP)


def token_sigmoid_focal_loss(logits_BAT: Tensor, targets_BAT: Tensor, words_BT: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of focal losses over the words that are no padding; divide it by the number of matched regions.

    Source: GLIP, arXiv 2112.03857; focal loss: arXiv 1708.02002. Checked by golden `pretraining/glip_alignment`.
    """
    chance = logits_BAT.sigmoid()
    right = torch.where(targets_BAT > 0, chance, 1 - chance)
    share = torch.where(targets_BAT > 0, alpha, 1 - alpha)
    loss_BAT = share * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits_BAT, targets_BAT, reduction="none")
    return (loss_BAT * (words_BT > 0)[:, None]).sum()


class RegionWordHead(nn.Module):
    """The learnt part of `alignment_logits`; starts by giving every pair the chance PRIOR."""

    def __init__(self, region_width: int, word_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(word_width, region_width)
        self.bias_E = nn.Parameter(torch.zeros(word_width))
        self.bias = nn.Parameter(torch.tensor([-math.log((1 - PRIOR) / PRIOR)]))
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, regions_BAQ: Tensor, words_BTE: Tensor) -> Tensor:
        return alignment_logits(regions_BAQ, words_BTE, self.project.weight, self.project.bias, self.bias_E, self.bias, self.log_scale)
