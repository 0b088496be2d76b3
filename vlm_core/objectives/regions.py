"""What region objectives share: composed scenes go through the image tower and the dense head, and places learn what their object is called and where it ends.

L = focal loss of the alignment + box x GIoU + centre x centerness. Every sum is divided by its count over all ranks, so the gradient is that of one process.
"""

# B scenes, A places, K objects, X words of a prompt or concepts, M matched places of all scenes

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from vlm_core.models.region_targets import assign, boxes_at, centerness, distances
from vlm_core.models.region_text import positive_map
from vlm_core.models.regions import Asked, Dense, ground
from vlm_core.models.towers import Outputs
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.gather import world


class Scenes(NamedTuple):
    """What the maker of scenes lays over a batch."""

    images_B3SS: Tensor
    boxes_BK4: Tensor
    phrase_BK: Tensor  # what each object is called, -1 for padding
    asked: Asked


def token_sigmoid_focal_loss(logits_BAX: Tensor, targets_BAX: Tensor, words_BX: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of focal losses over the words that are no padding; divide it by the number of matched regions.

    Source: GLIP, arXiv 2112.03857; focal loss: arXiv 1708.02002. Checked by golden `pretraining/glip_alignment`.
    """
    chance = logits_BAX.sigmoid()
    right = torch.where(targets_BAX > 0, chance, 1 - chance)
    share = torch.where(targets_BAX > 0, alpha, 1 - alpha)
    loss_BAX = share * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits_BAX, targets_BAX, reduction="none")
    return (loss_BAX * (words_BX > 0)[:, None]).sum()


def over_ranks(count: Tensor, least: float) -> Tensor:
    """Mean of a count over ranks, at least `least`."""
    count = count.detach().clone()
    if world()[1] > 1:
        dist.all_reduce(count)
    return (count / world()[1]).clamp(min=least)


def region_losses(dense: Dense, logits_BAX: Tensor, scenes: Scenes, top_k: int = 9, alpha: float = 0.25, gamma: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """(alignment, box, centerness), each divided by its count over all ranks.

    GIoU is weighted by how central a place is (ATSS, arXiv 1912.02424).
    """
    object_BA = assign(dense.anchors_A4, dense.levels, scenes.boxes_BK4, scenes.phrase_BK >= 0, top_k)
    matched_BA, own_BA = object_BA >= 0, object_BA.clamp(min=0)
    map_BKX = positive_map(scenes.phrase_BK, scenes.asked.column_BX)
    targets_BAX = (map_BKX.gather(1, own_BA[..., None].expand(-1, -1, map_BKX.shape[-1])) & matched_BA[..., None]).to(logits_BAX.dtype)
    boxes_BA4 = scenes.boxes_BK4.gather(1, own_BA[..., None].expand(-1, -1, 4))
    central_M = centerness(distances(dense.centres_A2, boxes_BA4)[matched_BA])
    guess_M4 = boxes_at(dense.centres_A2, dense.distance_BA4)[matched_BA]
    matched = over_ranks(matched_BA.sum().to(logits_BAX.dtype), 1.0)
    alignment = token_sigmoid_focal_loss(logits_BAX, targets_BAX, scenes.asked.real_BX, alpha, gamma) / matched
    box = (generalized_box_iou_loss(guess_M4, boxes_BA4[matched_BA]) * central_M).sum() / over_ranks(central_M.sum(), 1.0)
    centre = F.binary_cross_entropy_with_logits(dense.centre_BA[matched_BA], central_M, reduction="sum") / matched
    return alignment, box, centre


class RegionObjective(Objective):
    """Terms: the alignment under the objective's name, `<name>.box` and `<name>.centre`."""

    def __init__(self, name: str, config: menu.Regional) -> None:
        super().__init__()
        self.name, self.config = name, config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        asked = Asked(batch["scene_ids"], batch["scene_column_BX"], batch["scene_real_BX"])
        scenes = Scenes(batch["scene_images"], batch["scene_boxes"], batch["scene_phrases"], asked)
        dense, logits_BAX = ground(present(out.towers), scenes.images_B3SS, scenes.asked)
        with full_precision(logits_BAX.device):
            alignment, box, centre = region_losses(dense, logits_BAX, scenes, self.config.candidates, self.config.alpha, self.config.gamma)
        return {self.name: alignment, f"{self.name}.box": box, f"{self.name}.centre": centre}

    def factor(self, term: str) -> float:
        return {f"{self.name}.box": self.config.box, f"{self.name}.centre": self.config.centre}.get(term, 1.0)
