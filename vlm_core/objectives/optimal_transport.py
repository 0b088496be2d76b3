"""Soft targets from a slow copy of the towers: an optimal-transport plan says which other pairs match, too (OTTER, arXiv 2112.09445).

    S = c_v v' v'^T + c_t t' t'^T + v' t'^T     similarities by the slow copy; own pictures and texts get no credit for themselves
    P = Sinkhorn(exp(S / epsilon))              rows, then columns, made to sum alike, a few times; then rows to one
    loss = alpha (CE_image + CE_text) + (1 - alpha) (KL(P || softmax(scale_s v t^T)) + KL(P' || softmax(scale_s t v^T)))

Sums over the two directions and not means, as in facebookresearch/OTTER. Differs from it: Sinkhorn works on logarithms, so a small epsilon does not
overflow; the scale of the transport part is kept between 1 and 100 after every step instead of inside the loss, where its gradient would end at the bound;
and neither S nor P exists as a whole: rows of S are made again in every iteration and in the loss, so memory grows with the batch.
"""

# N rows of all ranks, B of this rank, K rows of a chunk, D joint width

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlm_core.models.momentum import Momentum
from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision
from vlm_core.objectives.contrast import cross_entropy, logits, over_rows
from vlm_core.objectives.gather import Pairs, exchange, gather

OWN = 100.0  # taken from the similarity of a picture (a text) with itself


class Taught(NamedTuple):
    """The slow copy's view of the whole batch, unit norm, without gradient, and how to compare with it."""

    image_ND: Tensor
    text_ND: Tensor
    image_weight: float = 1.0
    text_weight: float = 1.0
    remove_diag: bool = True

    def similarity(self, begin: int, end: int, of_texts: bool = False) -> Tensor:
        """Rows begin to end of S (K, N), or of its transpose."""
        one, other = (self.text_ND, self.image_ND) if of_texts else (self.image_ND, self.text_ND)
        similarity_KN = one[begin:end] @ other.T
        similarity_KN.addmm_(self.image_ND[begin:end], self.image_ND.T, alpha=self.image_weight)
        similarity_KN.addmm_(self.text_ND[begin:end], self.text_ND.T, alpha=self.text_weight)
        if self.remove_diag:
            similarity_KN.diagonal(begin).sub_(OWN * (self.image_weight + self.text_weight))
        return similarity_KN


class Potentials(NamedTuple):
    """Logarithms of the factors that Sinkhorn gives rows and columns: plan = exp(S / epsilon + rows + columns) / N."""

    rows_N: Tensor
    columns_N: Tensor


@torch.no_grad()
def sinkhorn(kernel: Callable[[int, int], Tensor], count: int, iterations: int, chunk_size: int = 0) -> tuple[Potentials, Potentials]:
    """Potentials of the plan whose rows are pictures, and of the one whose rows are texts.

    Each iteration makes rows, then columns sum to 1 / N. The second plan's columns are the first's rows, so both come out of the same passes over the kernel.

    Args:
        kernel: (begin, end) -> those rows of S / epsilon, pictures against texts.
        count: N.
        iterations: of Sinkhorn.
        chunk_size: rows of the kernel that exist at a time; 0 is all.

    Source: OTTER, arXiv 2112.09445; Cuturi, arXiv 1306.0895. Checked by golden `pretraining/otter`.
    """
    own = kernel(0, 1)
    image_rows_N, image_columns_N, text_rows_N, text_columns_N = (own.new_zeros(count) for _ in range(4))
    for step in range(iterations + 1):
        next_columns_N, next_rows_N = (own.new_full((count,), float("-inf")) for _ in range(2))
        for begin, end in _chunks(count, chunk_size):
            kernel_KN = kernel(begin, end)
            if step < iterations:
                image_rows_N[begin:end] = -(kernel_KN + image_columns_N).logsumexp(1)
                next_columns_N = next_columns_N.logaddexp((kernel_KN + image_rows_N[begin:end, None]).logsumexp(0))
            if step:
                text_columns_N[begin:end] = -(kernel_KN + text_rows_N).logsumexp(1)
            if step < iterations:
                next_rows_N = next_rows_N.logaddexp((kernel_KN + text_columns_N[begin:end, None]).logsumexp(0))
        if step < iterations:
            image_columns_N, text_rows_N = -next_columns_N, -next_rows_N
    return Potentials(image_rows_N, image_columns_N), Potentials(text_rows_N, text_columns_N)


def _chunks(count: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    size = chunk_size if 0 < chunk_size < count else count
    return ((begin, min(begin + size, count)) for begin in range(0, count, size))


def transport_loss(rows_BD: Tensor, columns_ND: Tensor, scale: Tensor, taught: Taught, epsilon: float, columns_N: Tensor, of_texts: bool, *,
                   offset: int = 0, chunk_size: int = 0) -> Tensor:  # fmt: skip
    """Mean over rows of KL(P || softmax(scale rows columns^T)), P the plan's rows made to sum to one; columns_N the plan's column potentials."""
    return over_rows(_chunk, [rows_BD], columns_ND, scale, taught, epsilon, columns_N, of_texts, offset, chunk_size=chunk_size) / len(rows_BD)


def _chunk(
    begin: int, rows_KD: Tensor, columns_ND: Tensor, scale: Tensor, taught: Taught, epsilon: float, columns_N: Tensor, of_texts: bool, offset: int
) -> Tensor:
    with torch.no_grad():
        log_target_KN = (taught.similarity(offset + begin, offset + begin + len(rows_KD), of_texts) / epsilon + columns_N).log_softmax(1)
    return torch.nn.functional.kl_div(logits(rows_KD, columns_ND, scale).log_softmax(1), log_target_KN, reduction="sum", log_target=True)


def otter_loss(
    pairs: Pairs, taught: Taught, scale: Tensor, scale_soft: Tensor, *, epsilon: float = 0.15, iterations: int = 5, chunk_size: int = 0
) -> tuple[Tensor, Tensor]:
    """(contrastive, transport) parts of the loss before alpha weighs them, each the sum of two directions. Checked by golden `pretraining/otter`."""
    of_images, of_texts = sinkhorn(lambda begin, end: taught.similarity(begin, end) / epsilon, len(pairs.text_ND), iterations, chunk_size)
    sides = (pairs.image_BD, pairs.text_ND, of_images, False), (pairs.text_BD, pairs.image_ND, of_texts, True)
    hard = sum((cross_entropy(rows, columns, scale, offset=pairs.offset, chunk_size=chunk_size) for rows, columns, _, _ in sides), scale.new_zeros(()))
    soft = [
        transport_loss(rows, columns, scale_soft, taught, epsilon, plan.columns_N, flip, offset=pairs.offset, chunk_size=chunk_size)
        for rows, columns, plan, flip in sides
    ]  # fmt: skip
    return hard, soft[0] + soft[1]


class OptimalTransport(Objective):
    def __init__(self, config: menu.OptimalTransport, towers: TwoTower) -> None:
        super().__init__()
        self.config = config
        self.slow = Momentum(towers)
        self.log_scale = nn.Parameter(torch.tensor(config.scale_init).log())
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        config = self.config
        if self.training:
            done = int(self.updates)
            self.slow.update(min(config.momentum, (1 + done) / (10 + done)))
            self.updates.add_(1)
        slow: Outputs = self.slow({name: batch[name] for name in ("images", "ids")})
        with full_precision(out.image_BD.device):
            taught = Taught(
                gather(slow.image_BD, with_grad=False), gather(slow.text_BD, with_grad=False), config.image_weight, config.text_weight, config.remove_diag
            )
            hard, soft = otter_loss(
                exchange(out.image_BD, out.text_BD), taught, out.scale, self.log_scale.exp(),
                epsilon=config.epsilon, iterations=config.iterations, chunk_size=config.chunk_size,
            )  # fmt: skip
        return {"optimal_transport.contrastive": hard, "optimal_transport.transport": soft}

    def factor(self, term: str) -> float:
        return self.config.alpha if term == "optimal_transport.contrastive" else 1 - self.config.alpha

    def scales(self) -> dict[str, Tensor]:
        return {"optimal_transport": self.log_scale.detach().exp()}

    @torch.no_grad()
    def clamp_scale(self) -> None:
        self.log_scale.clamp_(0, math.log(100))


def build(config: menu.OptimalTransport, towers: TwoTower) -> Objective:
    return OptimalTransport(config, towers)
