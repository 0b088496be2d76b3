"""Late interaction of patches and words: every token finds its best partner on the other side (FILIP, arXiv 2111.07783, equations 5 and 6).

Patches and words are those of the towers in the joint space, without class token, start token and padding; the end token speaks for the text as a whole.
Differs from Sense-GVT/DeCLIP's version: padding takes no part. The other side may be thinned to the `top_k` tokens that fit the own pair best, which
saves communication and time. Model folders are compared by their pooled embeddings, which this term does not train: use it beside a global one.
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, P tokens of a row, L tokens of a column, D joint width

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import over_rows
from vlm_core.objectives.gather import gather, padded, world


def token_similarity(rows_KPD: Tensor, columns_NLD: Tensor, rows_KP: Tensor | None = None, columns_NL: Tensor | None = None) -> Tensor:
    """(K, N): mean over the tokens of a row of their highest cosine with a token of the column; masks are true where a token is no padding.

    Source: FILIP, arXiv 2111.07783. Checked by golden `pretraining/filip`.
    """
    best = torch.einsum("kpd,nld->kpnl", rows_KPD, columns_NLD)
    if columns_NL is not None:
        best = best.masked_fill(~columns_NL, torch.finfo(best.dtype).min)
    best_KPN = best.amax(-1)
    if columns_NL is not None:
        best_KPN = best_KPN.masked_fill(~columns_NL.any(1), 0)
    if rows_KP is None:
        return best_KPN.mean(1)
    weight_KP = rows_KP.to(best_KPN.dtype)
    return (best_KPN * weight_KP[..., None]).sum(1) / weight_KP.sum(1).clamp(min=1)[:, None]


def select_tokens(tokens_BLD: Tensor, other_BPD: Tensor, count: int, valid_BL: Tensor | None = None, other_BP: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(tokens (B, count, D), whether each is valid): those whose similarities with all tokens of the own partner sum highest."""
    weight_BP = torch.ones_like(other_BPD[..., 0]) if other_BP is None else other_BP.to(other_BPD.dtype)
    sums_BL = torch.einsum("bld,bpd,bp->bl", tokens_BLD.detach(), other_BPD.detach(), weight_BP)
    valid_BL = torch.ones_like(sums_BL, dtype=torch.bool) if valid_BL is None else valid_BL
    chosen = sums_BL.masked_fill(~valid_BL, float("-inf")).topk(min(count, sums_BL.shape[1]), dim=1).indices
    return tokens_BLD.gather(1, chosen[..., None].expand(-1, -1, tokens_BLD.shape[-1])), valid_BL.gather(1, chosen)


def filip_loss(image_BPD: Tensor, text_BLD: Tensor, scale: Tensor, text_BL: Tensor | None = None, *, top_k: int | None = None, chunk_size: int = 0) -> Tensor:
    """Mean of both directions of the cross-entropy over token-wise similarities; unit-norm tokens of this rank, text_BL true for real words.

    Source: FILIP, arXiv 2111.07783. Checked by golden `pretraining/filip`.
    """
    text_BL = torch.ones(text_BLD.shape[:2], dtype=torch.bool, device=text_BLD.device) if text_BL is None else text_BL
    images = image_BPD, torch.ones(image_BPD.shape[:2], dtype=torch.bool, device=image_BPD.device)
    texts = text_BLD, text_BL
    if top_k is not None:
        images, texts = select_tokens(image_BPD, text_BLD, top_k, None, text_BL), select_tokens(text_BLD, image_BPD, top_k, text_BL)
    forward = _one_way(image_BPD, None, *texts, scale, chunk_size)
    return (forward + _one_way(text_BLD, text_BL, *images, scale, chunk_size)) / 2


def _one_way(rows_BPD: Tensor, rows_BP: Tensor | None, columns_BLD: Tensor, columns_BL: Tensor, scale: Tensor, chunk_size: int) -> Tensor:
    columns_NLD, columns_NL = gather(padded(columns_BLD)), gather(padded(columns_BL), with_grad=False)
    rows_BP = torch.ones(rows_BPD.shape[:2], dtype=torch.bool, device=rows_BPD.device) if rows_BP is None else rows_BP
    offset = world()[0] * len(rows_BPD)
    return over_rows(_chunk, [rows_BPD, rows_BP], columns_NLD, columns_NL, scale, offset, chunk_size=chunk_size) / len(rows_BPD)


def _chunk(begin: int, rows_KPD: Tensor, rows_KP: Tensor, columns_NLD: Tensor, columns_NL: Tensor, scale: Tensor, offset: int) -> Tensor:
    labels_K = torch.arange(offset + begin, offset + begin + len(rows_KPD), device=rows_KPD.device)
    return F.cross_entropy(scale * token_similarity(rows_KPD, columns_NLD, rows_KP, columns_NL), labels_K, reduction="sum")


class TokenWise(Objective):
    def __init__(self, config: menu.TokenWise) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        words_BL = batch["ids"][:, 1:] != 0
        with full_precision(out.image_BD.device):
            tokens = present(out.patches_BPD), present(out.tokens_BLD)[:, 1:]
            return {"token_wise": filip_loss(*tokens, out.scale, words_BL, top_k=self.config.top_k, chunk_size=self.config.chunk_size)}


def build(config: menu.TokenWise, towers: TwoTower) -> Objective:
    return TokenWise(config)
