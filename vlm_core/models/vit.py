"""CLIP's Vision Transformer: open_clip's own module, so that weights move between the two without renaming; opened at its patches.

Source: CLIP, arXiv 2103.00020; golden `pretraining/clip_vit`.
"""

# B images, P patches, V patches that are seen, E tower width, D joint width

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlm_core.models import config as menu
from vlm_core.models.open_clip_parts import AttentionPoolLatent, QuickGELU, VisionTransformer

ACTIVATIONS: dict[menu.Activation, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class Vit(VisionTransformer):
    """`head(features(images))` is `forward(images)`; `tokens` are the states behind the last block, the class token first."""

    map: nn.Module | None = None  # attention pooling, of which open_clip's module has another kind

    @property
    def features_width(self) -> int:
        return int(self.ln_post.normalized_shape[0])

    def tokens(self, images_B3HW: Tensor, hidden_BP: Tensor | None = None, mask_E: Tensor | None = None, seen_BV: Tensor | None = None) -> Tensor:
        """States (B, 1 + P, E) of the class token and of every patch.

        Args:
            images_B3HW: normalised pixels.
            hidden_BP: true where a patch is replaced by mask_E (BEiT, arXiv 2106.08254).
            mask_E: what stands in the place of a hidden patch.
            seen_BV: places of the patches that are seen at all (MAE, arXiv 2111.06377); the others take no part, and the result is (B, 1 + V, E).
        """
        states_BPE: Tensor = self.ln_post(self.transformer(self.enter(images_B3HW, hidden_BP, mask_E, seen_BV)))
        return states_BPE

    def enter(self, images_B3HW: Tensor, hidden_BP: Tensor | None = None, mask_E: Tensor | None = None, seen_BV: Tensor | None = None) -> Tensor:
        """What the first block reads; see `tokens`."""
        if hidden_BP is None and seen_BV is None:
            all_BPE: Tensor = self._embeds(images_B3HW)
            return all_BPE
        x_BPE = self.conv1(images_B3HW).flatten(2).transpose(1, 2)
        if hidden_BP is not None and mask_E is not None:
            x_BPE = x_BPE.where(~hidden_BP[..., None], mask_E.to(x_BPE.dtype))
        x_BPE = x_BPE + self.positional_embedding[1:].to(x_BPE.dtype)
        if seen_BV is not None:
            x_BPE = x_BPE.gather(1, seen_BV[..., None].expand(-1, -1, x_BPE.shape[-1]))
        first_B1E = (self.class_embedding + self.positional_embedding[0]).to(x_BPE.dtype).expand(len(x_BPE), 1, -1)
        out_BPE: Tensor = self.ln_pre(torch.cat([first_B1E, x_BPE], dim=1))
        return out_BPE

    def through(self, x_BPE: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """States behind block `end`, of those in front of block `begin`."""
        return blocks(self.transformer, x_BPE, begin, end)

    def leave(self, x_BPE: Tensor) -> Tensor:
        """What `tokens` gives, of the states behind the last block."""
        out_BPE: Tensor = self.ln_post(x_BPE)
        return out_BPE

    def pool(self, tokens_BPE: Tensor) -> Tensor:
        """Feature (B, E): the class token, the mean of the patches, or what a learnt query sees among all states (SigLIP's MAP, arXiv 2106.04560)."""
        if self.map is not None:
            seen_BE: Tensor = self.map(tokens_BPE)
            return seen_BE
        return tokens_BPE[:, 0] if self.pool_type == "tok" else tokens_BPE[:, 1:].mean(1)

    def features(self, images_B3HW: Tensor) -> Tensor:
        return self.pool(self.tokens(images_B3HW))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.head(self.features(images_B3HW))

    def head(self, features_BE: Tensor) -> Tensor:
        """Raw joint embedding (B, D) of features, or of patches (B, P, E)."""
        out_BD: Tensor = features_BE @ self.proj
        return out_BD


def blocks(transformer: nn.Module, x_BLE: Tensor, begin: int = 0, end: int | None = None, mask_LL: Tensor | None = None) -> Tensor:
    """States behind the blocks [begin, end) of an open_clip Transformer."""
    for block in transformer.resblocks[begin:end]:  # type: ignore[index]
        again = transformer.grad_checkpointing and torch.is_grad_enabled()
        x_BLE = checkpoint(block, x_BLE, None, None, mask_LL, use_reentrant=False) if again else block(x_BLE, attn_mask=mask_LL)
    return x_BLE


def build(config: menu.Vit, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the joint embedding."""
    tower = Vit(
        image_size=config.image_size, patch_size=config.patch_size, width=config.width, layers=config.layers, heads=config.heads,
        mlp_ratio=config.mlp_ratio, pool_type=config.pool.replace("map", "avg"), patch_dropout=config.patch_dropout, output_dim=width, act_layer=ACTIVATIONS[activation],
    )  # fmt: skip
    if config.pool == "map":
        tower.map = AttentionPoolLatent(config.width, num_heads=config.heads, mlp_ratio=config.mlp_ratio, norm_layer=nn.LayerNorm)
    return tower
