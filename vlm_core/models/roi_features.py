"""Regions that a frozen network finds in a picture, read by the last blocks of the image tower (PyramidCLIP, arXiv 2204.14095).

The paper's detector gives ten boxes per picture, each with 2,048 features and its place, and names of objects with attributes. No package carries such a
detector: here the regions are the cells of EfficientNet-Lite0's last map whose ImageNet class is surest, with their features and places, and those
classes are the names; attributes are not known. The paper's ViT has a convolution in the feed-forward part of its blocks, ours has not.

Source: methods/pretraining.md 4.7.
"""

# B pictures, S side of the square, C cells of the map, R regions, F features and place of one, E tower width, D joint width

from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models import packaged
from vlm_core.models.efficientnet_lite0 import Trunk

PLACE = 6  # left, top, right, bottom, width and height, as shares of the picture
WIDTH = packaged.EFFICIENTNET_WIDTH + PLACE
STRIDE = 32  # pixels of the square per cell


@torch.inference_mode()
def find(network: Trunk, squares_B3SS: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(regions (B, R, F), their ImageNet classes (B, R)), the surest first.

    Args:
        network: EfficientNet-Lite0.
        squares_B3SS: pixels 0..255.
        count: of regions; the map has (S / 32)^2 cells.
    """
    map_BFHW = network.cells(packaged.pixels(squares_B3SS))
    cells_BCF = map_BFHW.flatten(2).transpose(1, 2)
    sure_BC, class_BC = network.classes(cells_BCF).softmax(-1).max(-1)
    best_BR = sure_BC.topk(count, dim=1).indices
    found_BRF = cells_BCF.gather(1, best_BR[..., None].expand(-1, -1, cells_BCF.shape[-1]))
    return torch.cat([found_BRF, places(*map_BFHW.shape[2:]).to(best_BR.device)[best_BR]], dim=-1), class_BC.gather(1, best_BR)


def places(rows: int, columns: int) -> Tensor:
    """(C, 6): where the cells of a map are, row by row."""
    top_C, left_C = (axis.flatten() for axis in torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij"))
    width_C, height_C = torch.full_like(left_C, 1 / columns), torch.full_like(top_C, 1 / rows)
    return torch.stack([left_C, top_C, left_C + width_C, top_C + height_C, width_C, height_C], dim=1)


class RoiFeatures(nn.Module):
    """`forward(image, regions_BRF)` gives raw embeddings (B, D): the class token and the regions, through the last blocks of the image tower.

    Args:
        config: of the regions.
        image_width: channels of the image tower.
        layers: blocks of the image tower.
    """

    def __init__(self, config: menu.RoiFeatures, image_width: int, layers: int) -> None:
        super().__init__()
        self.first = layers - config.blocks
        self.enter = nn.Linear(WIDTH, image_width)

    def forward(self, image: Any, regions_BRF: Tensor) -> Tensor:
        own_BRE = self.enter(regions_BRF.to(self.enter.weight.dtype))
        class_B1E = (image.class_embedding + image.positional_embedding[0]).to(own_BRE.dtype).expand(len(own_BRE), 1, -1)
        states_BRE = image.leave(image.through(image.ln_pre(torch.cat([class_B1E, own_BRE], dim=1)), self.first))
        out_BD: Tensor = image.head(image.pool(states_BRE))
        return out_BD
