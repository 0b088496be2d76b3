"""What one of two ranks does in `test_regions.py`; a file of its own, so that the other processes import little."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.objectives.world import batch, built, settings_of, towers

KINDS = ("region_word", "region_concept")


class Whole(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.towers, self.settings = towers(0, kind), settings_of(kind)
        self.objectives = built(self.settings, self.towers)

    def forward(self, given: dict[str, Any]) -> Tensor:
        out = self.towers(given, self.settings.needs)
        return torch.stack([value for objective in self.objectives.values() for value in objective(out, given).values()]).sum()


def unequal() -> dict[str, Any]:
    """The second half of the scenes has tiny objects, for which fewer places answer: ranks count differently."""
    whole = batch(8)
    whole["scene_boxes"][4:, :, 2:] = whole["scene_boxes"][4:, :, :2] + 5
    return whole


def gradients(kind: str, rank: int | None) -> dict[str, Tensor]:
    model = Whole(kind)
    wrapped = model if rank is None else DistributedDataParallel(model, find_unused_parameters=True)
    rows = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
    whole, by_row = unequal(), ("scene_images", "scene_boxes", "scene_phrases", "scene_column_BX", "scene_real_BX")
    part = {name: [view[rows] for view in value] if isinstance(value, list) else value[rows] for name, value in whole.items()}
    if kind == "region_concept":  # concepts are known by their row: every rank reads all
        part["scene_ids"] = whole["scene_ids"]
    assert all(len(part[name]) == (8 if rank is None else 4) for name in by_row)
    wrapped(part).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def of_rank(rank: int) -> dict[str, dict[str, Tensor]]:
    return {kind: gradients(kind, rank) for kind in KINDS}
