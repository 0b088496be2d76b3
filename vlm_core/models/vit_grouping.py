"""A ViT whose patches gather at learnt centres: the first blocks see patches, the last ones see centres (SegCLIP, arXiv 2211.14813, section 3.2).

Every patch belongs to one centre (hard, with the gradient of the softmax), so the tower segments the picture it encodes. The assignment is made in float32.
Differs from the official code in two things: it carries a class token that nothing reads, which is left out here; and its centres start with deviation
0.02 on top of CLIP's weights, here with 1, since on random weights centres so alike leave every choice to the noise, and none learns to differ.
"""

# B pictures, P patches, V patches that are seen, C centres, E tower width, D joint width

import torch
from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models.open_clip_parts import QuickGELU, ResidualAttentionBlock, Transformer
from vlm_core.models.vit import ACTIVATIONS


def center_assign(scores_BCP: Tensor, gumbel_BCP: Tensor | None = None, tau: float = 0.9) -> Tensor:
    """One centre per patch (B, C, P), 1 or 0; the gradient is that of the softmax over centres.

    Args:
        scores_BCP: how well each patch fits each centre.
        gumbel_BCP: noise that is added while training; None in evaluation.
        tau: temperature of the noisy softmax.

    Source: SegCLIP, arXiv 2211.14813. Checked by golden `pretraining/segclip_center_assign`.
    """
    soft_BCP = scores_BCP.softmax(1) if gumbel_BCP is None else ((scores_BCP + gumbel_BCP) / tau).softmax(1)
    hard_BCP = torch.zeros_like(soft_BCP).scatter(1, soft_BCP.argmax(1, keepdim=True), 1.0)
    return hard_BCP - soft_BCP.detach() + soft_BCP


def center_pool(assigned_BCP: Tensor, values_BPE: Tensor) -> Tensor:
    """Mean of the values at each centre (B, C, E); a centre without patches gives 0. Checked by golden `pretraining/segclip_center_assign`."""
    count_BC1 = assigned_BCP.sum(-1, keepdim=True)
    return assigned_BCP @ values_BPE / (count_BC1 + (count_BC1 < 0.5))  # clamping at 1 would lose the gradient of a count of 0.9999999


def gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise from torch's generator."""
    return -torch.empty_like(like).exponential_().log()


class Grouping(nn.Module):
    """Centres look at the patches, then every patch chooses one of them."""

    def __init__(self, config: menu.VitGrouping) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.tau = config.tau
        self.centres_CE = nn.Parameter(torch.randn(config.centres, width))
        block = {"mlp_ratio": config.mlp_ratio, "act_layer": QuickGELU, "is_cross_attention": True}
        self.look = nn.ModuleList(ResidualAttentionBlock(width, heads, **block) for _ in range(config.looks))
        self.norm, self.query_norm, self.key_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.key, self.value = (nn.Conv1d(width, width, 1, groups=heads, bias=False) for _ in range(2))
        hidden = int(width * config.mlp_ratio)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), QuickGELU())

    def forward(self, patches_BPE: Tensor) -> tuple[Tensor, Tensor]:
        """(states of the centres (B, C, E), assignment (B, C, P) in float32)."""
        query_BCE = self.centres_CE.to(patches_BPE.dtype).expand(len(patches_BPE), -1, -1)
        for block in self.look:
            both = torch.cat([query_BCE, patches_BPE], dim=1)
            query_BCE = block(query_BCE, both, both)
        query_BCE = self.query_norm(query_BCE)
        normed_BEP = self.norm(patches_BPE).transpose(1, 2)
        key_BPE, value_BPE = self.key_norm(self.key(normed_BEP).transpose(1, 2)), self.value(normed_BEP).transpose(1, 2)
        with torch.autocast(patches_BPE.device.type, enabled=False):
            exact = torch.promote_types(query_BCE.dtype, torch.float32)
            scores_BCP = query_BCE.to(exact) @ key_BPE.to(exact).transpose(1, 2)
            assigned_BCP = center_assign(scores_BCP, gumbel(scores_BCP) if self.training else None, self.tau)
            pooled_BCE = center_pool(assigned_BCP, value_BPE.to(exact))
        return self.out(query_BCE + pooled_BCE.to(query_BCE.dtype)), assigned_BCP


class VitGrouping(nn.Module):
    """`tokens` gives the picture's feature first, then for every patch the state of its centre."""

    def __init__(self, config: menu.VitGrouping, width: int, activation: menu.Activation) -> None:
        super().__init__()
        size, patches = config.width, (config.image_size // config.patch_size) ** 2
        parts = {"heads": config.heads, "mlp_ratio": config.mlp_ratio, "act_layer": ACTIVATIONS[activation]}
        self.conv1 = nn.Conv2d(3, size, config.patch_size, config.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(size**-0.5 * torch.randn(patches, size))
        self.ln_pre, self.ln_post = nn.LayerNorm(size), nn.LayerNorm(size)
        self.first = Transformer(size, config.layers - config.last, **parts)
        self.group = Grouping(config)
        self.last = Transformer(size, config.last, **parts)
        self.rebuild = Rebuild(config.centres, Transformer(size, config.last, **parts)) if config.rebuild else None
        self.proj = nn.Parameter(size**-0.5 * torch.randn(size, width))

    @property
    def features_width(self) -> int:
        return int(self.ln_post.normalized_shape[0])

    def grouped(self, images_B3HW: Tensor, hidden_BP: Tensor | None = None, mask_E: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(states (B, 1 + P, E) as `tokens` gives them, assignment (B, C, P))."""
        centres_BCE, assigned_BCP = self.group(self.first(self._enter(images_B3HW, hidden_BP, mask_E)))
        centres_BCE = self.last(centres_BCE)
        both_BCE = self.ln_post(torch.cat([centres_BCE.max(1, keepdim=True).values, centres_BCE], dim=1))
        patches_BPE = assigned_BCP.transpose(1, 2).to(both_BCE.dtype) @ both_BCE[:, 1:]
        return torch.cat([both_BCE[:, :1], patches_BPE], dim=1), assigned_BCP

    def tokens(self, images_B3HW: Tensor, hidden_BP: Tensor | None = None, mask_E: Tensor | None = None, seen_BV: Tensor | None = None) -> Tensor:
        """States (B, 1 + P, E) of the picture and of every patch; see `Vit.tokens`. With seen_BV (B, 1 + V, E): patches rebuilt from the centres."""
        if seen_BV is None:
            return self.grouped(images_B3HW, hidden_BP, mask_E)[0]
        if self.rebuild is None:
            raise ValueError("patches that are left out need model.image.rebuild=true; settings without it are refused before anything is built")
        patches_BVE: Tensor = self.rebuild(*self.group(self.first(self._enter(images_B3HW, seen_BV=seen_BV))))
        states_BVE: Tensor = self.ln_post(torch.cat([patches_BVE.mean(1, keepdim=True), patches_BVE], dim=1))
        return states_BVE

    def _enter(self, images_B3HW: Tensor, hidden_BP: Tensor | None = None, mask_E: Tensor | None = None, seen_BV: Tensor | None = None) -> Tensor:
        x_BPE = self.conv1(images_B3HW).flatten(2).transpose(1, 2)
        if hidden_BP is not None and mask_E is not None:
            x_BPE = x_BPE.where(~hidden_BP[..., None], mask_E.to(x_BPE.dtype))
        x_BPE = x_BPE + self.positional_embedding.to(x_BPE.dtype)
        if seen_BV is not None:
            x_BPE = x_BPE.gather(1, seen_BV[..., None].expand(-1, -1, x_BPE.shape[-1]))
        out_BPE: Tensor = self.ln_pre(x_BPE)
        return out_BPE

    def pool(self, tokens_BPE: Tensor) -> Tensor:
        """Feature (B, E)."""
        return tokens_BPE[:, 0]

    def features(self, images_B3HW: Tensor) -> Tensor:
        return self.pool(self.tokens(images_B3HW))

    def head(self, features_BE: Tensor) -> Tensor:
        """Raw joint embedding (B, D) of features, or of patches (B, P, E)."""
        out_BD: Tensor = features_BE @ self.proj
        return out_BD

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.head(self.features(images_B3HW))


class Rebuild(nn.Module):
    """Patches back from centres, for MAE: mixed by the assignment, then blocks of their own."""

    def __init__(self, centres: int, blocks: nn.Module) -> None:
        super().__init__()
        self.mix, self.blocks = nn.Linear(centres, centres), blocks

    def forward(self, centres_BCE: Tensor, assigned_BCP: Tensor) -> Tensor:
        shares_BPC = self.mix(assigned_BCP.transpose(1, 2)).to(centres_BCE.dtype)
        x_BPE = shares_BPC @ centres_BCE
        out_BPE: Tensor = self.blocks(x_BPE * torch.sigmoid(1.702 * x_BPE))
        return out_BPE


def build(config: menu.VitGrouping, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the joint embedding."""
    return VitGrouping(config, width, activation)
