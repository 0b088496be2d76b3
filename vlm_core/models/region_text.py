"""What regions are compared with: the words of one prompt (GLIP, arXiv 2112.03857), or concepts that are read one by one (DetCLIP, arXiv 2209.09407)."""

# B pictures, A regions, T words of a prompt, Q width of a region, E width of a word, D joint width, K objects, M phrases asked for, X words or phrases

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CAP = 50_000.0  # on logits, as larger ones overflow in half precision
PRIOR = 0.01  # chance that an untrained head gives to a match
START = -math.log((1 - PRIOR) / PRIOR)


def alignment_logits(regions_BAQ: Tensor, words_BTE: Tensor, weight_QE: Tensor, bias_Q: Tensor, bias_E: Tensor, bias: Tensor, log_scale: Tensor) -> Tensor:
    """Scores (B, A, T): the region times the word's half-length projection, divided by exp(log_scale), plus a bias that depends on the word.

    Source: GLIP, arXiv 2112.03857 (microsoft/GLIP). Checked by golden `pretraining/glip_alignment`.
    """
    unit_BTE = F.normalize(words_BTE, dim=-1)
    projected_BTQ = F.linear(unit_BTE / 2, weight_QE, bias_Q)
    logits_BAT = regions_BAQ @ projected_BTQ.transpose(1, 2) / log_scale.exp() + (unit_BTE @ bias_E + bias)[:, None]
    return logits_BAT.clamp(-CAP, CAP)


def region_concept_logits(regions_BAD: Tensor, concepts_BMD: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Scores (B, A, M): cosine of region and concept, times exp(log_scale), plus a bias. DetCLIP has no official code; scale and bias are our choice."""
    cosine_BAM = F.normalize(regions_BAD, dim=-1) @ F.normalize(concepts_BMD, dim=-1).transpose(1, 2)
    return cosine_BAM * log_scale.exp() + bias


class RegionWordHead(nn.Module):
    """The learnt part of `alignment_logits`; starts by giving every pair the chance PRIOR."""

    def __init__(self, region_width: int, word_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(word_width, region_width)
        self.bias_E = nn.Parameter(torch.zeros(word_width))
        self.bias = nn.Parameter(torch.tensor([START]))
        self.log_scale = nn.Parameter(torch.zeros(1))

    def forward(self, regions_BAQ: Tensor, words_BTE: Tensor) -> Tensor:
        return alignment_logits(regions_BAQ, words_BTE, self.project.weight, self.project.bias, self.bias_E, self.bias, self.log_scale)


class RegionConceptHead(nn.Module):
    """Regions into the joint space, where concepts are; starts like CLIP's scale and with the chance PRIOR."""

    def __init__(self, region_width: int, joint_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(region_width, joint_width)
        self.bias = nn.Parameter(torch.tensor([START]))
        self.log_scale = nn.Parameter(torch.tensor([math.log(10.0)]))

    def forward(self, regions_BAQ: Tensor, concepts_BMD: Tensor) -> Tensor:
        return region_concept_logits(self.project(regions_BAQ), concepts_BMD, self.log_scale, self.bias)


def words_of(ids_L: Sequence[int]) -> list[int]:
    """The words of a tokenized text without its first and last special token and without padding."""
    return [one for one in ids_L if one != 0][1:-1]


def grounding_prompt(phrases: Sequence[Sequence[int]], separator: Sequence[int], ends: tuple[int, int], max_tokens: int) -> tuple[list[int], list[int]]:
    """(ids of "first. second. ..", for each of them which phrase it belongs to, -1 for none). Where not all fit, a phrase gets an equal share of the room at most.

    Args:
        phrases: ids of each phrase, without special tokens.
        separator: ids of ". ".
        ends: ids in front of and behind a text.
        max_tokens: of the whole prompt.
    """
    whole = sum(len(phrase) + len(separator) for phrase in phrases)
    room = max_tokens if whole <= max_tokens - 2 else max(1, (max_tokens - 2) // max(len(phrases), 1) - len(separator))
    ids, owner = [ends[0]], [-1]
    for number, phrase in enumerate(phrases):
        cut = phrase[:room]
        if len(ids) + len(cut) + len(separator) + 1 > max_tokens:
            break
        ids += [*cut, *separator]
        owner += [number] * len(cut) + [-1] * len(separator)
    return [*ids, ends[1]], [*owner, -1]


def positive_map(phrase_BK: Tensor, column_BX: Tensor) -> Tensor:
    """(B, K, X) bool: is word or concept x part of what object k is called? Negative numbers are padding and match nothing."""
    return (phrase_BK[:, :, None] == column_BX[:, None, :]) & (phrase_BK >= 0)[:, :, None]


def phrase_scores(chance_BAX: Tensor, owner_BX: Tensor, phrases: int) -> Tensor:
    """(B, A, phrases): the mean over the words of each phrase (GLIP's MEAN); 0 for a phrase that no word stands for."""
    member_BXM = (owner_BX[..., None] == torch.arange(phrases, device=owner_BX.device)).to(chance_BAX.dtype)
    return chance_BAX @ member_BXM / member_BXM.sum(1, keepdim=True).clamp(min=1)
