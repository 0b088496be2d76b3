"""Small networks that objectives put on top of the towers, and a batch norm that sees the global batch."""

# B rows of this rank, b of them at a time, N rows of all ranks, L places, E channels, K words of a chunk

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlm_core.models.towers import widen
from vlm_core.objectives.base import full_precision
from vlm_core.objectives.contrast import over_rows
from vlm_core.objectives.gather import gather, mean_over_ranks, world

WORDS = 512  # whose logits over the vocabulary exist at a time


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows of all ranks: the statistics of one process with the whole batch, and its gradient. torch's own works on GPUs only."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the parent's name
        rank, ranks = world()
        if ranks == 1 or not self.training:
            return super().forward(input)
        return super().forward(gather(input)).unflatten(0, (ranks, -1))[rank]


def projector(widths: Sequence[int], *, last_norm: bool = False) -> nn.Sequential:
    """Linear layers of these widths with batch norm and ReLU between them; `last_norm` also normalises the output, without gain."""
    layers = list[nn.Module]()
    for place, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        last = place == len(widths) - 2
        layers.append(nn.Linear(before, after, bias=last and not last_norm))
        layers += [GlobalBatchNorm(after, affine=not last)] if last_norm or not last else []
        layers += [] if last else [nn.ReLU()]
    return nn.Sequential(*layers)


class MaskedHead(nn.Module):
    """States -> logits over a vocabulary, as FLAVA and BERT have it: linear, GELU, LayerNorm, linear."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.dense, self.norm, self.decode = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.decode(self.norm(F.gelu(self.dense(states))))
        return out


def masked_prediction_loss(states_BLE: Tensor, labels_BL: Tensor, head: nn.Module, ignore_index: int = -100) -> Tensor:
    """Cross-entropy of what the head says about the masked places only; 0 where nothing is masked.

    Source: FLAVA, arXiv 2112.04482 (facebookresearch/multimodal). Checked by golden `pretraining/masked_prediction_loss`.
    """
    masked_BL = labels_BL != ignore_index
    count = mean_over_ranks(masked_BL.sum().to(states_BLE.dtype))
    return F.cross_entropy(head(states_BLE[masked_BL]), labels_BL[masked_BL], reduction="sum") / count.clamp(min=1 / world()[1])


def word_loss(write: Callable[..., Tensor], rows: Sequence[Tensor], labels_BL: Tensor, scored_BL: Tensor, say: nn.Module, *, chunk_size: int = 0) -> Tensor:
    """Mean cross-entropy over the words that are scored, all ranks' together.

    Their logits would be the largest tensor of a step: they are made a few words at a time, and again in backward; with `chunk_size` so are their states.

    Args:
        write: rows -> states (b, L, E) of which `say` makes logits of the next word.
        rows: what it writes from, a row per text each.
        labels_BL: the words.
        scored_BL: true where a word counts.
        say: states -> logits over the vocabulary.
        chunk_size: texts written at a time; 0 is all.

    Source: CoCa, arXiv 2205.01917 (open_clip). Checked by golden `pretraining/coca_loss`.
    """
    total = over_rows(_texts, [labels_BL, scored_BL, *rows], write, say, chunk_size=chunk_size, draws=True)
    return total / mean_over_ranks(scored_BL.sum().to(total.dtype)).clamp(min=1 / world()[1])


def _texts(begin: int, labels_bL: Tensor, scored_bL: Tensor, *rows_write_say: Any) -> Tensor:
    *rows, write, say = rows_write_say
    states_bLE = write(*rows)
    with full_precision(states_bLE.device):
        states_KE, labels_K = widen(states_bLE)[scored_bL], labels_bL[scored_bL]
        total = states_KE.new_zeros(())
        for first in range(0, len(labels_K), WORDS):
            part = states_KE[first : first + WORDS], labels_K[first : first + WORDS]
            total = total + checkpoint(_words, *part, say, use_reentrant=False, preserve_rng_state=False)
    return total


def _words(states_KE: Tensor, labels_K: Tensor, say: nn.Module) -> Tensor:
    return F.cross_entropy(say(states_KE), labels_K, reduction="sum")
