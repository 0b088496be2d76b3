"""The only code that sees other devices: embeddings of all ranks, with gradients that find their way home.

Source: rule 3 of the pre-training sheet; golden `pretraining/distributed_losses`.
"""

# B rows of this rank, N rows of all ranks (rank 0 first), D width

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.14 renamed the two and warns at the old names
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Pairs(NamedTuple):
    """Rows to score against columns; row i belongs to column offset + i."""

    image_BD: Tensor
    text_BD: Tensor
    image_ND: Tensor
    text_ND: Tensor
    offset: int


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        out_ND = x_BD.new_empty(dist.get_world_size() * len(x_BD), *x_BD.shape[1:])
        _all_gather(out_ND, x_BD.contiguous())
        return out_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> Tensor:
        out_BD = grad_ND.new_empty(len(grad_ND) // dist.get_world_size(), *grad_ND.shape[1:])
        _reduce_scatter(out_BD, grad_ND.contiguous())
        return out_BD


def world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) in a single process."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gather(x_BD: Tensor, with_grad: bool = True) -> Tensor:
    """Rows of all ranks, in rank order; every rank must hold equally many. With gradient: each rank gets the sum of what all ranks found for its rows."""
    if world()[1] == 1:
        return x_BD
    if with_grad:
        out_ND: Tensor = _Gather.apply(x_BD)
        return out_ND
    with torch.no_grad():
        return _Gather.forward(None, x_BD)


def padded(x_BL: Tensor) -> Tensor:
    """Zeros (false) behind the second dimension, up to the longest of all ranks: captions are cut to the longest of their own rank."""
    if world()[1] == 1:
        return x_BL
    longest = torch.tensor(x_BL.shape[1], device=x_BL.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return torch.nn.functional.pad(x_BL, [0, 0] * (x_BL.ndim - 2) + [0, int(longest) - x_BL.shape[1]])


def mean_over_ranks(count: Tensor) -> Tensor:
    """Of a number: a sum over it is a mean whose gradient, averaged over ranks, is that of one process with all rows."""
    if world()[1] > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / world()[1]
    return count


def of_first(value: Tensor) -> Tensor:
    """The first rank's value, on every rank, wherever it lies."""
    if world()[1] == 1:
        return value
    carried = value.to(carrier(dist.get_backend(), value.device))
    dist.broadcast(carried, 0)
    return carried.to(value.device)


def carrier(backend: str, device: torch.device) -> torch.device:
    """Where a value has to lie to be sent: nccl carries what is on a GPU only."""
    return torch.device("cuda") if backend == "nccl" and device.type == "cpu" else device


def exchange(image_BD: Tensor, text_BD: Tensor, local_loss: bool = True, gather_with_grad: bool = True) -> Pairs:
    """What a rank scores against what.

    The mean of the ranks' gradients equals the gradient of one process with the whole batch if `gather_with_grad`. With neither switch the direction is right
    and the size too small by the number of ranks; `local_loss` alone is wrong and refused by the settings.
    """
    rank, ranks = world()
    if ranks == 1:
        return Pairs(image_BD, text_BD, image_BD, text_BD, 0)
    image_ND, text_ND = gather(image_BD, gather_with_grad), gather(text_BD, gather_with_grad)
    offset = rank * len(image_BD)
    if local_loss:
        return Pairs(image_BD, text_BD, image_ND, text_ND, offset)
    if not gather_with_grad:
        image_ND, text_ND = _own_rows(image_ND, image_BD, offset), _own_rows(text_ND, text_BD, offset)
    return Pairs(image_ND, text_ND, image_ND, text_ND, 0)


def _own_rows(all_ND: Tensor, own_BD: Tensor, offset: int) -> Tensor:
    return torch.cat([all_ND[:offset], own_BD, all_ND[offset + len(own_BD) :]])
