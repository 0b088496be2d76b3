"""What one of two ranks does in `test_loop_ranks.py`; a file of its own, so that the other processes import little."""

from typing import Any

import torch
from torch import Tensor

from tests.distributed.halves import OBJECTIVES, PAIRS, batches, part
from tests.objectives.world import built, towers
from vlm_core.objectives import config as menu
from vlm_core.train.body import Body
from vlm_core.train.grad_cache import accumulated_step, cached_step, whole_step
from vlm_core.train.ranks import average, clip

NAMES = ("clip, local loss in chunks", "both, weighted", "declip", "moco", "otter", "filip", "slip")
LARGEST = 0.1  # norm to which gradients are cut


def body_of(name: str) -> Body:
    """Towers and objectives in float64."""
    model, settings = towers().double(), menu.Objectives.read(OBJECTIVES[name])
    weights = {kind: objective.weight for kind, objective in settings.chosen().items()}
    return Body(model, dict(built(settings, model).items()), weights, settings.needs)  # type: ignore[arg-type]


def two_steps(name: str, rows: slice, size: int | None, accumulated: bool = False) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor], float]:
    """(losses, gradients of the second step after they were averaged and cut, buffers after it, norm before), as the loop makes them."""
    body, losses, norm = body_of(name), list[float](), 0.0
    for given in batches():
        body.zero_grad()
        mine = part(given, rows)
        left, total, _ = whole_step(body, mine) if size is None else (accumulated_step if accumulated else cached_step)(body, mine, size)
        left.backward()
        average(body.parameters())
        norm = float(clip(body.parameters(), LARGEST))
        losses.append(float(total))
    gradients = {where: value.grad.clone() for where, value in body.named_parameters() if value.grad is not None}
    return losses, gradients, {where: value.clone() for where, value in body.named_buffers()}, norm


def of_rank(rank: int) -> dict[str, Any]:
    half = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
    torch.manual_seed(0)
    return {(name, size): two_steps(name, half, size) for name in NAMES for size in (1, 3, 4)}
