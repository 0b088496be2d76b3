"""Visual tokens of DALL-E's discrete VAE (arXiv 2102.12092), as BEiT (2106.08254) and FLAVA (2112.04482) use them, from a safetensors file.

OpenAI publishes the encoder as a pickled module, which is never loaded here: save its state_dict() once, elsewhere, as safetensors. Names stay.
The small copy of the picture is bicubic where the official transform is Lanczos, which torch does not have.
"""

# B images, P patches, R rows of the patch grid, V tokens

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_core.checkpoint import fill, read_weights
from vlm_core.data.shards.augment import CLIP_MEAN, CLIP_STD
from vlm_core.errors import CheckpointError
from vlm_core.models import config as menu

GROUPS, BLOCKS = 4, 2
SIDE = 8  # pixels of the small copy per token, each way
MARGIN = 0.1  # pixels 0..1 become 0.1..0.9


class Block(nn.Module):
    """Residual block; the gain keeps the sum of all eight in bounds."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.id_path = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        path = nn.Sequential()
        for number, (channels, out, size) in enumerate(
            [(before, after // 4, 3), (after // 4, after // 4, 3), (after // 4, after // 4, 3), (after // 4, after, 1)], 1
        ):
            path.add_module(f"relu_{number}", nn.ReLU())
            path.add_module(f"conv_{number}", nn.Conv2d(channels, out, size, padding=size // 2))
        self.res_path = path

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.id_path(x_BCHW) + self.res_path(x_BCHW) / (GROUPS * BLOCKS) ** 2
        return out_BCHW


class Dvae(nn.Module):
    """A VisualTokenizer (visual_tokenizer.py)."""

    def __init__(self, config: menu.Dvae, rows: int) -> None:
        super().__init__()
        self.vocab_size, self.rows = config.vocabulary, rows
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", nn.Conv2d(3, config.width, 7, padding=3))
        channels = config.width
        for number in range(GROUPS):
            group, out = nn.Sequential(), config.width * 2**number
            for block in range(BLOCKS):
                group.add_module(f"block_{block + 1}", Block(channels, out))
                channels = out
            if number < GROUPS - 1:
                group.add_module("pool", nn.MaxPool2d(2))
            self.blocks.add_module(f"group_{number + 1}", group)
        output = nn.Sequential()
        output.add_module("relu", nn.ReLU())
        output.add_module("conv", nn.Conv2d(channels, config.vocabulary, 1))
        self.blocks.add_module("output", output)
        self.requires_grad_(False)

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        mean, std = (images_B3HW.new_tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        with torch.autocast(images_B3HW.device.type, enabled=False):
            small = F.interpolate(images_B3HW.float() * std + mean, [self.rows * SIDE] * 2, mode="bicubic", antialias=True).clamp(0, 1)
            logits_BVRR: Tensor = self.blocks((1 - 2 * MARGIN) * small + MARGIN)
        return logits_BVRR.argmax(1).flatten(1)


def build(config: menu.Dvae, *, rows: int, patch_px: int, fresh: bool = True) -> nn.Module:
    encoder = Dvae(config, rows)
    if fresh:
        if not config.weights:
            raise CheckpointError("Found model.visual_tokens={kind: dvae} without weights, expected a safetensors file; set model.visual_tokens.weights=FILE.")
        official = read_weights(Path(config.weights))
        ours = {name.removesuffix(".w").removesuffix(".b") + (".weight" if name.endswith(".w") else ".bias"): value for name, value in official.items()}
        fill(encoder, ours, config.weights)
    return encoder
