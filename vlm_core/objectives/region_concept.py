"""Every region is scored against concepts that are read one by one: no order, no shared context, any number (DetCLIP, arXiv 2209.09407).

There is no official code. Loss, matching and negatives follow the paper: focal alignment, 2 x GIoU, centerness; concepts of the scene are filled up with random
others of the batch. Our choices: a learnt scale and bias on the cosine, scenes composed of the batch's own pictures in the place of labelled boxes, and no
pseudo-labels, as composed scenes are labelled completely.

Checked by hand in `tests/objectives/test_regions.py`.
"""

from vlm_core.models.towers import TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective
from vlm_core.objectives.regions import RegionObjective


class RegionConcept(RegionObjective):
    """The positive of a place is its object's concept."""


def build(config: menu.RegionConcept, towers: TwoTower) -> Objective:
    return RegionConcept("region_concept", config)
