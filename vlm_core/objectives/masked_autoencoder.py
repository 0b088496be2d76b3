"""The image tower sees a quarter of the patches, a small decoder paints the rest (MAE, arXiv 2111.06377; KELIP, arXiv 2203.14463, and SegCLIP, 2211.14813, use it).

The decoder sees the tower's states, mask tokens in the places that were left out, and fixed sine positions. Only removed patches count.
"""

# B images, P patches, V patches that are seen, E width of the image tower, W width of the decoder, S values of a patch

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models.towers import Outputs, TwoTower, widen
from vlm_core.objectives import config as menu
from vlm_core.objectives.base import Objective, full_precision, present


def patchify(images_B3HW: Tensor, side: int) -> Tensor:
    """Patches (B, P, S), row by row; values in the order row, column, channel. Checked by golden `pretraining/mae`."""
    batch, channels, height, width = images_B3HW.shape
    grid = images_B3HW.reshape(batch, channels, height // side, side, width // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def unpatchify(patches_BPS: Tensor, side: int) -> Tensor:
    """Square pictures (B, 3, H, H) back from their patches. Checked by golden `pretraining/mae`."""
    batch, count = patches_BPS.shape[:2]
    rows = round(count**0.5)
    grid = patches_BPS.reshape(batch, rows, rows, side, side, -1).permute(0, 5, 1, 3, 2, 4)
    return grid.reshape(batch, -1, rows * side, rows * side)


def random_masking(noise_BP: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """(places that are seen (B, V), 1 where a patch is removed (B, P), for each place its rank by noise (B, P)); the int(P (1 - share)) lowest are seen.

    Source: MAE, arXiv 2111.06377. Checked by golden `pretraining/mae`.
    """
    count = noise_BP.shape[1]
    seen = int(count * (1 - share))
    order_BP = noise_BP.argsort(1)
    restore_BP = order_BP.argsort(1)
    return order_BP[:, :seen], (restore_BP >= seen).to(noise_BP.dtype), restore_BP


def mae_loss(images_B3HW: Tensor, painted_BPS: Tensor, removed_BP: Tensor, side: int, norm_pix: bool = False) -> Tensor:
    """Mean squared error of removed patches; norm_pix compares with patches of mean 0 and deviation 1.

    Source: MAE, arXiv 2111.06377. Checked by golden `pretraining/mae`.
    """
    target_BPS = patchify(images_B3HW, side)
    if norm_pix:
        target_BPS = (target_BPS - target_BPS.mean(-1, keepdim=True)) / (target_BPS.var(-1, keepdim=True) + 1e-6).sqrt()
    error_BP = (painted_BPS - target_BPS).square().mean(-1)
    return (error_BP * removed_BP).sum() / removed_BP.sum()


def sine_positions(rows: int, width: int) -> Tensor:
    """Fixed positions (rows x rows, width) of a square grid: a quarter of the channels each for sine and cosine of the column and of the row."""
    frequency = 1e4 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(rows, dtype=torch.float64)[:, None] * frequency
    waves = torch.cat([angle.sin(), angle.cos()], dim=1).float()
    return torch.cat([waves.repeat(rows, 1), waves.repeat_interleave(rows, 0)], dim=1)


class MaskedAutoencoder(Objective):
    def __init__(self, config: menu.MaskedAutoencoder, towers: TwoTower) -> None:
        super().__init__()
        self.config, self.side = config, towers.config.image.patch_size  # type: ignore[union-attr]  # image_mask: vit only
        rows = towers.config.image.image_size // self.side
        self.embed = nn.Linear(towers.image_width, config.width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, config.width) * 0.02)
        self.positions_PW: Tensor
        self.register_buffer("positions_PW", sine_positions(rows, config.width), persistent=False)
        block = nn.TransformerEncoderLayer(config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.decode = nn.TransformerEncoder(block, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False)
        self.paint = nn.Linear(config.width, 3 * self.side**2)

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        images_B3HW = batch["images"]
        seen_BV, removed_BP, restore_BP = random_masking(torch.rand(len(images_B3HW), len(self.positions_PW), device=images_B3HW.device), self.config.share)
        return {"masked_images": {"images_B3HW": images_B3HW, "seen_BV": seen_BV}, "removed": removed_BP, "restore": restore_BP}

    def forward(self, out: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        states_BVE, restore_BP = present(out.seen_BVE), batch["restore"]
        with full_precision(states_BVE.device):
            seen_BVW = self.embed(widen(states_BVE))
            hidden = self.mask_token.expand(len(seen_BVW), restore_BP.shape[1] + 1 - seen_BVW.shape[1], -1)
            patches_BPW = torch.cat([seen_BVW[:, 1:], hidden], dim=1).gather(1, restore_BP[..., None].expand(-1, -1, seen_BVW.shape[-1]))
            decoded_BPW = self.decode(torch.cat([seen_BVW[:, :1], patches_BPW + self.positions_PW], dim=1))[:, 1:]
            loss = mae_loss(widen(batch["images"]), self.paint(decoded_BPW), batch["removed"], self.side, self.config.norm_pix)
        return {"masked_autoencoder": loss}


def build(config: menu.MaskedAutoencoder, towers: TwoTower) -> Objective:
    return MaskedAutoencoder(config, towers)
