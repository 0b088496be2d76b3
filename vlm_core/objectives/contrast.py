"""What losses over all pairs of a batch share: rows are scored against columns a chunk at a time, and a chunk is made again in backward.

So the memory of a loss grows with the batch and not with its square, at the same value and gradient (rule 4 of the pre-training sheet).
"""

# B rows of this rank, N rows of all ranks, K rows of a chunk, D width

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlm_core.objectives.gather import Pairs, exchange


def over_rows(chunk: Callable[..., Tensor], rows: Sequence[Tensor], *others: object, chunk_size: int = 0, draws: bool = False) -> Tensor:
    """Sum of `chunk(begin, *rows[begin:end], *others)` over chunks of rows; chunk_size 0 takes all rows at once and keeps what backward needs.

    `draws` says that a chunk draws random numbers, which are drawn again in backward.
    """
    count = len(rows[0])
    if not 0 < chunk_size < count:
        return chunk(0, *rows, *others)
    total = rows[0].new_zeros(())
    for begin in range(0, count, chunk_size):
        part = [row[begin : begin + chunk_size] for row in rows]
        total = total + checkpoint(chunk, begin, *part, *others, use_reentrant=False, preserve_rng_state=draws)
    return total


def logits(rows_BD: Tensor, columns_ND: Tensor, scale: Tensor | float, bias: Tensor | None = None) -> Tensor:
    """Scaled cosines (B, N) of unit-norm embeddings."""
    logits_BN = scale * rows_BD @ columns_ND.T
    return logits_BN if bias is None else logits_BN + bias


def cross_entropy(
    rows_BD: Tensor, columns_ND: Tensor, scale: Tensor | float, bias: Tensor | None = None, *,
    offset: int = 0, chunk_size: int = 0, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Mean over rows of the cross-entropy of finding column offset + i among all; label_smoothing spreads that share evenly over all columns."""
    return over_rows(_chunk, [rows_BD], columns_ND, scale, bias, offset, label_smoothing, chunk_size=chunk_size) / len(rows_BD)


def _chunk(begin: int, rows_KD: Tensor, columns_ND: Tensor, scale: Tensor | float, bias: Tensor | None, offset: int, label_smoothing: float) -> Tensor:
    labels_K = torch.arange(offset + begin, offset + begin + len(rows_KD), device=rows_KD.device)
    return F.cross_entropy(logits(rows_KD, columns_ND, scale, bias), labels_K, reduction="sum", label_smoothing=label_smoothing)


def both_ways(pairs: Pairs, scale: Tensor | float, bias: Tensor | None = None, *, chunk_size: int = 0, label_smoothing: float = 0.0) -> Tensor:
    """Mean of image-to-text and text-to-image cross-entropy: CLIP's loss of what `gather.exchange` gave."""
    forward = cross_entropy(pairs.image_BD, pairs.text_ND, scale, bias, offset=pairs.offset, chunk_size=chunk_size, label_smoothing=label_smoothing)
    back = cross_entropy(pairs.text_BD, pairs.image_ND, scale, bias, offset=pairs.offset, chunk_size=chunk_size, label_smoothing=label_smoothing)
    return (forward + back) / 2


def softened(pairs: Pairs, scale: Tensor | float, alpha: float, *, chunk_size: int = 0) -> Tensor:
    """`both_ways` with target 1 - alpha on the own pair and alpha / (N - 1) on each other one (PyramidCLIP, arXiv 2204.14095).

    Even smoothing by s gives the own pair 1 - s + s / N and each other one s / N, so s = alpha N / (N - 1) is the same thing.
    """
    count = len(pairs.text_ND)
    return both_ways(pairs, scale, chunk_size=chunk_size, label_smoothing=alpha * count / max(count - 1, 1))


def over_pairs(*pairs: tuple[Tensor, Tensor], scale: Tensor | float, alpha: float = 0.0, chunk_size: int = 0) -> Tensor:
    """Mean of CLIP's loss, or with `alpha` of its softened form, over several pairings of pictures and texts.

    Args:
        pairs: unit-norm embeddings (B, D) of this rank, each with those that belong to it row by row.
        scale: multiplies the cosine.
        alpha: share of the target that goes to other pairs.
        chunk_size: rows of logits that exist at a time; 0 is all.
    """
    return torch.stack([softened(exchange(one_BD, other_BD), scale, alpha, chunk_size=chunk_size) for one_BD, other_BD in pairs]).mean()
