"""Two views of one picture predict each other, without negatives (SimSiam, arXiv 2011.10566, algorithm 1; DeCLIP's image supervision, arXiv 2110.05208).

What keeps it from collapsing is that no gradient flows into the side that is predicted. One view is the crop that the text meets, the other a strong one.
"""

# B pairs, D projected width

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.heads import projector


def simsiam_loss(predicted_one_BD: Tensor, one_BD: Tensor, predicted_two_BD: Tensor, two_BD: Tensor) -> Tensor:
    """Minus the mean cosine of each prediction with the other view, which gets no gradient; between -1 and 1.

    Source: SimSiam, arXiv 2011.10566. Checked by golden `pretraining/simsiam_loss`.
    """
    forward = F.cosine_similarity(predicted_one_BD, two_BD.detach(), dim=-1).mean()
    return -(forward + F.cosine_similarity(predicted_two_BD, one_BD.detach(), dim=-1).mean()) / 2


class Simsiam(Objective):
    def __init__(self, config: menu.Simsiam, towers: TwoTower) -> None:
        super().__init__()
        self.project = projector([towers.image_width, config.hidden, config.hidden, config.hidden], last_norm=True)
        self.predict = projector([config.hidden, config.bottleneck, config.hidden])

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        first_BF, second_BF = present(out.image_BF), out.views[0].features_BF
        with full_precision(second_BF.device):
            one_BD, two_BD = self.project(widen(first_BF)), self.project(widen(second_BF))
            return {"simsiam": simsiam_loss(self.predict(one_BD), one_BD, self.predict(two_BD), two_BD)}


def build(config: menu.Simsiam, towers: TwoTower) -> Objective:
    return Simsiam(config, towers)
