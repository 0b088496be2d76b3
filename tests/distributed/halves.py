"""What one of two ranks does in `test_ranks.py`; a file of its own, so that the other processes import little."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vlm_core.models.towers import Outputs, unit
from vlm_core.objectives import base
from vlm_core.objectives import config as menu
from vlm_core.objectives.gather import gather

# B pairs of all ranks, E input width

OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip, local loss": {"image_text_contrastive": {}},
    "clip, local loss in chunks": {"image_text_contrastive": {"chunk_size": 3}},
    "clip, whole loss on every rank": {"image_text_contrastive": {"local_loss": False}},
    "siglip": {"sigmoid": {}},
    "siglip in chunks": {"sigmoid": {"chunk_size": 3}},
    "both, weighted": {"image_text_contrastive": {"weight": 0.3}, "sigmoid": {"weight": 2.0}},
}


class Towers(nn.Module):
    """Two layers a side, in float64: small enough to compare every gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5)) for _ in range(2))
        self.log_scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-10.0))
        self.double()

    def forward(self, image_BE: Tensor, text_BE: Tensor) -> Outputs:
        return Outputs(unit(self.image(image_BE)), unit(self.text(text_BE)), self.log_scale.exp(), self.bias)


def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(8, 6, dtype=torch.float64, generator=random), torch.randn(8, 6, dtype=torch.float64, generator=random)


def loss_and_gradients(model: nn.Module, towers: Towers, image_BE: Tensor, text_BE: Tensor, chosen: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    objectives, weights = base.build(menu.Objectives.read(chosen))
    out = model(image_BE, text_BE)
    total = sum((weights[kind] * value for kind, objective in objectives.items() for value in objective(out, {}).values()), torch.zeros(()))
    towers.zero_grad()
    total.backward()
    return float(total.detach()), {name: value.grad.clone() for name, value in towers.named_parameters() if value.grad is not None}


def gradients_of_rank(rank: int) -> dict[str, tuple[float, dict[str, Tensor]]]:
    """What DistributedDataParallel leaves in `.grad`, for every objective, on half of the batch."""
    image_BE, text_BE = (side[rank * 4 : rank * 4 + 4] for side in batch())
    results = {}
    for name, chosen in OBJECTIVES.items():
        towers = Towers()
        results[name] = loss_and_gradients(DistributedDataParallel(towers), towers, image_BE, text_BE, chosen)
    return results


def gathered(rank: int) -> tuple[Tensor, Tensor]:
    """(all rows, gradient of this rank's rows) where rank r weighs gathered row j by (r + 1) * (j + 1)."""
    own_BD = torch.full((2, 1), float(rank), requires_grad=True)
    all_ND = gather(own_BD)
    ((rank + 1) * torch.arange(1.0, 5.0)[:, None] * all_ND).sum().backward()
    assert own_BD.grad is not None
    return all_ND.detach(), own_BD.grad


def of_rank(rank: int) -> tuple[tuple[Tensor, Tensor], dict[str, tuple[float, dict[str, Tensor]]]]:
    return gathered(rank), gradients_of_rank(rank)
