"""The key-value cache that Tip-Adapter and Tip-Adapter-F share (Zhang et al., arXiv 2207.09519).

We search alpha and beta on validation data only, where the official script uses the test split for ImageNet.
Checked by golden `transfer/tip_adapter`.
"""
# A views or weights, B batch, C classes, D joint width, N support pictures

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.transfer.base import Support, TransferMethod
from vlm_core.transfer.config import TipAdapter


def build_cache(views_AND: Tensor, labels_N: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Keys (D, N): unit mean of the raw views; values (N, C): one-hot labels."""
    return F.normalize(views_AND.mean(dim=0), dim=-1).T, F.one_hot(labels_N, classes).to(views_AND.dtype)


def cache_logits(affinity_BN: Tensor, values_NC: Tensor, beta: float) -> Tensor:
    """(B, C) votes of the cache; affinity is the cosine of unit features and unit keys."""
    return torch.exp(-beta * (1 - affinity_BN)) @ values_NC


def tip_logits(image_BD: Tensor, text_DC: Tensor, keys_DN: Tensor, values_NC: Tensor, alpha: float, beta: float, scale: float = 100.0) -> Tensor:
    """(B, C) text classifier plus alpha times the cache, for unit image features."""
    return scale * image_BD @ text_DC + alpha * cache_logits(image_BD @ keys_DN, values_NC, beta)


class Found(NamedTuple):
    beta: float
    alpha: float
    accuracy: float


def tip_search(
    val_MD: Tensor, labels_M: Tensor, text_DC: Tensor, keys_DN: Tensor, values_NC: Tensor, most: tuple[float, float], steps: tuple[int, int],
    scale: float = 100.0,
) -> Found:  # fmt: skip
    """The first best (beta, alpha) of a grid from 0.1 up to, but without, `most`; both are in the order (beta, alpha)."""
    betas, alphas = ([i * (top - 0.1) / n + 0.1 for i in range(n)] for top, n in zip(most, steps, strict=True))
    affinity_MN, text_MC, best = val_MD @ keys_DN, scale * val_MD @ text_DC, Found(betas[0], alphas[0], -1.0)
    alphas_A11 = torch.tensor(alphas, dtype=text_MC.dtype)[:, None, None]
    for beta in betas:
        logits_AMC = text_MC + cache_logits(affinity_MN, values_NC, beta) * alphas_A11
        right_A = (logits_AMC.argmax(dim=-1) == labels_M).sum(dim=-1).tolist()
        accuracy = max(right_A) / len(labels_M)
        if accuracy > best.accuracy:
            best = Found(beta, alphas[right_A.index(max(right_A))], accuracy)
    return best


class CacheMethod(TransferMethod):
    """Keys, values and the text classifier; a child decides whether the keys learn."""

    keys_ND: Tensor
    values_NC: Tensor
    text_CD: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, config: TipAdapter, support: Support) -> None:
        super().__init__()
        keys_DN, values_NC = build_cache(support.views_VND, support.labels_N, len(support.classnames))
        self.config, self.scale = config, support.scale
        self.register_keys(keys_DN.T.contiguous())
        self.register_buffer("values_NC", values_NC)
        self.register_buffer("text_CD", support.classifier(config.templates).clone())
        self.register_buffer("alpha", torch.tensor(config.alpha, dtype=torch.float64))
        self.register_buffer("beta", torch.tensor(config.beta, dtype=torch.float64))

    def register_keys(self, keys_ND: Tensor) -> None:
        self.register_buffer("keys_ND", keys_ND)

    def logits(self, image_BD: Tensor) -> Tensor:
        image_BD = F.normalize(image_BD, dim=-1)
        return tip_logits(image_BD, self.text_CD.T, self.keys_ND.T, self.values_NC, float(self.alpha), float(self.beta), self.scale)

    @torch.no_grad()
    def tune(self, support: Support) -> None:
        """Alpha and beta by search on validation data; without any, the configured values stay."""
        if len(support.val_labels_M):
            config = self.config
            found = tip_search(
                F.normalize(support.val_MD, dim=-1), support.val_labels_M, self.text_CD.T, self.keys_ND.T, self.values_NC,
                (config.beta_max, config.alpha_max), (config.beta_steps, config.alpha_steps), self.scale,
            )  # fmt: skip
            self.alpha.fill_(found.alpha)
            self.beta.fill_(found.beta)
