"""Which place of the patch map answers for which object, and how its box is written down.

Sources: ATSS, arXiv 1912.02424 (assignment); FCOS, arXiv 1904.01355 (distances to the four sides, centerness).
"""

# B pictures, A places of all levels (anchors), K objects, 4 = left, top, right, bottom

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

INSIDE = 0.01  # pixels that the centre of a place must lie inside the box


def distances(centres_A2: Tensor, boxes_BA4: Tensor) -> Tensor:
    """Distance (B, A, 4) of each centre to the left, top, right and bottom of its box; negative outside."""
    return torch.cat([centres_A2 - boxes_BA4[..., :2], boxes_BA4[..., 2:] - centres_A2], dim=-1)


def boxes_at(centres_A2: Tensor, distances_BA4: Tensor) -> Tensor:
    """The inverse of `distances`."""
    return torch.cat([centres_A2 - distances_BA4[..., :2], centres_A2 + distances_BA4[..., 2:]], dim=-1)


def centerness(distances_X4: Tensor) -> Tensor:
    """1 in the middle of the box, 0 on its edge (FCOS, equation 3)."""
    across_X2, down_X2 = distances_X4[..., 0::2], distances_X4[..., 1::2]
    shares = [pair.amin(-1).clamp(min=0) / pair.amax(-1).clamp(min=1e-6) for pair in (across_X2, down_X2)]
    return (shares[0] * shares[1]).sqrt()


@torch.no_grad()
def assign(anchors_A4: Tensor, levels: Sequence[int], boxes_BK4: Tensor, real_BK: Tensor, top_k: int = 9) -> Tensor:
    """Which object each place answers for (B, A), -1 for none (ATSS, algorithm 1).

    Candidates of an object are the `top_k` places of every level whose centre is nearest to its own; those whose overlap is at least mean + deviation of all
    its candidates, and whose centre lies inside, are taken. A place that two objects want goes to the one it overlaps more.

    Args:
        anchors_A4: square boxes around the places, level after level.
        levels: number of places of each level.
        boxes_BK4: objects.
        real_BK: false for padding.
        top_k: candidates per level.
    """
    pictures, objects = real_BK.shape
    overlap_BKA = box_iou(boxes_BK4.flatten(0, 1), anchors_A4).view(pictures, objects, -1)
    middle_A2 = (anchors_A4[:, :2] + anchors_A4[:, 2:]) / 2
    away_BKA = torch.cdist((boxes_BK4[..., :2] + boxes_BK4[..., 2:]) / 2, middle_A2[None].expand(pictures, -1, -1))
    begins = [sum(levels[:place]) for place in range(len(levels))]
    near_BKC = torch.cat([
        begin + away_BKA[..., begin : begin + count].topk(min(top_k, count), largest=False).indices for begin, count in zip(begins, levels, strict=True)
    ], dim=-1)  # fmt: skip
    candidate_BKC = overlap_BKA.gather(-1, near_BKC)
    threshold_BK1 = candidate_BKC.mean(-1, keepdim=True) + candidate_BKC.std(-1, keepdim=True)
    inside_BKA = distances(middle_A2, boxes_BK4[:, :, None]).amin(-1) > INSIDE
    near_BKA = torch.zeros_like(inside_BKA).scatter(-1, near_BKC, True)
    taken_BKA = near_BKA & inside_BKA & (overlap_BKA >= threshold_BK1) & real_BK[..., None]
    best_BA, object_BA = overlap_BKA.where(taken_BKA, -torch.ones_like(overlap_BKA)).max(1)
    return object_BA.where(best_BA >= 0, torch.full_like(object_BA, -1))
