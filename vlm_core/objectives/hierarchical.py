"""Softened InfoNCE between matching levels of picture and text (PyramidCLIP, arXiv 2204.14095, equations 4 to 8).

Levels: G whole picture, Lc local crop, R region features; S summary, O original text, A attributes. Peer level compares (G, S) and (Lc, O), cross level
(R, S), (R, O), (G, A), (Lc, A). A level that is not there drops out with its pairs, and the weights of the rest are raised to sum to one.
The official repository holds inference code only; the equations are the paper's. Our summary is the second caption (`loader.second_caption`), our
local crop the second view; snapshots have neither region features nor tags of a detector, so R and A enter `pyramid_loss` only where a caller has them.

Checked by golden `pretraining/pyramidclip_soft_infonce` (a term) and by hand in `tests/objectives/test_properties.py` (the levels).
"""

# B rows of this rank, D joint width

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import softened
from vlm_core.objectives.gather import exchange

LEVELS = {"peer": (("G", "S"), ("Lc", "O")), "regions": (("R", "S"), ("R", "O")), "attributes": (("G", "A"), ("Lc", "A"))}


def pyramid_loss(levels: Mapping[str, Tensor], scale: Tensor, alpha: float = 0.2, *, chunk_size: int = 0) -> dict[str, Tensor]:
    """{group of levels: mean of its softened InfoNCE terms}, of the groups that are there; `shares` weighs them.

    Args:
        levels: unit-norm embeddings (B, D) of this rank by the names above, as many as there are.
        scale: multiplies the cosine.
        alpha: share of the target that goes to other pairs.
        chunk_size: rows of logits that exist at a time; 0 is all.
    """
    there = {group: [pair for pair in pairs if set(pair) <= levels.keys()] for group, pairs in LEVELS.items()}
    return {
        group: torch.stack([softened(exchange(levels[a], levels[b]), scale, alpha, chunk_size=chunk_size) for a, b in pairs]).mean()
        for group, pairs in there.items() if pairs
    }  # fmt: skip


def shares(there: Collection[str], regions: float = 1 / 3, attributes: float = 1 / 3) -> dict[str, float]:
    """Weights of the groups that are there, summing to one: those of pairs with R (lambda of the paper) and with A (mu), the rest for the peer level."""
    weights = {"peer": 1 - regions - attributes, "regions": regions, "attributes": attributes}
    return {group: weights[group] / sum(weights[one] for one in there) for group in there}


class Hierarchical(Objective):
    def __init__(self, config: menu.Hierarchical) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        levels = {"G": out.image_BD, "Lc": out.views[0].image_BD, "O": out.text_BD, "S": present(out.caption_BD)}
        with full_precision(out.image_BD.device):
            parts = pyramid_loss(levels, out.scale, self.config.alpha, chunk_size=self.config.chunk_size)
        return {f"hierarchical.{group}": value for group, value in parts.items()}  # the peer level alone, whose share is then one


def build(config: menu.Hierarchical, towers: TwoTower) -> Objective:
    return Hierarchical(config)
