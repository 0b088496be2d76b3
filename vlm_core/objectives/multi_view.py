"""CLIP's loss over two views of the picture times two forms of the text, averaged over the four (DeCLIP, arXiv 2110.05208, equation 6)."""

# B rows of this rank, D joint width

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present
from vlm_core.objectives.contrast import over_pairs


def multi_view_loss(images: Sequence[Tensor], texts: Sequence[Tensor], scale: Tensor, *, chunk_size: int = 0) -> Tensor:
    """Mean of symmetric InfoNCE over all combinations of a view (B, D) and a text (B, D), unit norm, rows of this rank.

    Source: DeCLIP, arXiv 2110.05208. Checked by golden `pretraining/declip_multiview`.
    """
    return over_pairs(*((image_BD, text_BD) for image_BD in images for text_BD in texts), scale=scale, chunk_size=chunk_size)


class MultiView(Objective):
    def __init__(self, config: menu.MultiView) -> None:
        super().__init__()
        self.config = config

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        images, texts = (out.image_BD, out.views[0].image_BD), (out.text_BD, present(out.augmented_BD))
        with full_precision(out.image_BD.device):
            return {"multi_view": multi_view_loss(images, texts, out.scale, chunk_size=self.config.chunk_size)}


def build(config: menu.MultiView, towers: TwoTower) -> Objective:
    return MultiView(config)
