"""Embeddings of earlier batches, first in first out: a buffer of the checkpoint, equal on every rank because whole batches enter it."""

# K rows of the queue, N rows that enter, D width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.objectives.gather import gather


def push(queue_KD: Tensor, at: int, rows_ND: Tensor, wrap: bool = True) -> tuple[Tensor, int]:
    """(queue with the rows from place `at` on, next place). Past the end it goes on at the front; without `wrap` that remainder is dropped and the place is 0.

    Source: MoCo, arXiv 1911.05722 (wraps, and needs a queue that is a multiple of the batch); DeCLIP's CPU module (drops). Checked by goldens
    `pretraining/{moco_infonce,nn_supervision}`.
    """
    size, queue_KD = len(queue_KD), queue_KD.clone()
    rows_ND = rows_ND.detach() if wrap else rows_ND.detach()[: size - at]
    queue_KD[(torch.arange(len(rows_ND), device=queue_KD.device) + at) % size] = rows_ND.to(queue_KD.dtype)
    return queue_KD, (at + len(rows_ND)) % size


class Queue(nn.Module):
    """Starts with random directions, as MoCo and DeCLIP do."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.rows_KD: Tensor
        self.at: Tensor
        self.register_buffer("rows_KD", F.normalize(torch.randn(size, width), dim=-1))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, rows_BD: Tensor) -> None:
        """Let this batch in, the rows of all ranks in rank order."""
        rows_KD, at = push(self.rows_KD, int(self.at), gather(rows_BD, with_grad=False))
        self.rows_KD.copy_(rows_KD)
        self.at.fill_(at)
