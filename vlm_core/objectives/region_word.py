"""Detection as phrase grounding: every region is scored against every word of the prompt (GLIP, arXiv 2112.03857, equations 3 to 5; FIBER's second stage,
arXiv 2206.07643, with the same loss).

The alignment is `models/region_text.py`, the loss `objectives/regions.py`, both checked by golden `pretraining/glip_alignment`. GLIP fuses picture and prompt
in front of every block of its head; here they are fused inside the towers where the model has a gated fusion, and meet in the alignment only where not.
"""

from vlm_core.models.towers import TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective
from vlm_core.objectives.regions import RegionObjective


class RegionWord(RegionObjective):
    """Positives of a place are all words of its object's phrase."""


def build(config: menu.RegionWord, towers: TwoTower) -> Objective:
    return RegionWord("region_word", config)
