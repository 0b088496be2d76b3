"""Words through the image tower's own blocks: one Transformer, of which only the embedding layers know what they embed (OneR, arXiv 2211.11153).

The first token's state stands for the text as the class token's does for the picture. Every word sees all others, padding is seen by nobody.
"""

# B pairs, L tokens, P places of a picture, K places that are kept, E tower width, D joint width

from typing import Any

import torch
from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models.bert import PAD, mean_of_words
from vlm_core.models.tokenizer import special_of


class SharedText(nn.Module):
    """Args: image: whose blocks are used; held in a list, so that its weights are registered once."""

    def __init__(self, config: menu.SharedText, image: Any) -> None:
        super().__init__()
        self._image, self.vocab_size, self.special = [image], config.vocab_size, special_of(config)
        self.heads = image.transformer.resblocks[0].attn.num_heads
        self.token_embedding = nn.Embedding(config.vocab_size, image.features_width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, image.features_width) * 0.01)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def features_width(self) -> int:
        return int(self._image[0].features_width)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Token embeddings (B, L, E), before positions are added."""
        tokens_BLE: Tensor = self.token_embedding(ids_BL)
        return tokens_BLE

    def enter(self, tokens_BLE: Tensor) -> Tensor:
        """What the first block reads."""
        x_BLE: Tensor = self._image[0].ln_pre(tokens_BLE + self.positional_embedding[: tokens_BLE.shape[1]])
        return x_BLE

    def states(self, tokens_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """States (B, L, E) behind the last block; the ids only say which tokens are padding."""
        return self._through(self.enter(tokens_BLE), ids_BL != PAD)

    def _through(self, x_BLE: Tensor, seen_BL: Tensor) -> Tensor:
        image, (batch, length) = self._image[0], seen_BL.shape
        mask_BLL = torch.zeros(batch, 1, length, dtype=x_BLE.dtype, device=x_BLE.device).masked_fill(~seen_BL[:, None], float("-inf"))
        mask = mask_BLL.expand(-1, length, -1).repeat_interleave(self.heads, 0)
        out_BLE: Tensor = image.leave(image.transformer(x_BLE, attn_mask=mask))
        return out_BLE

    def mixed(self, images_B3HW: Tensor, ids_BL: Tensor, share: float, noise_BP: Tensor, noise_BL: Tensor) -> Tensor:
        """Raw joint embedding (B, D) of one sequence: the class token, the `share` of the patches with the least noise, the words whose noise is `share` at least.

        Args:
            images_B3HW: normalised pixels.
            ids_BL: of the texts.
            share: of patches; each word stays with probability 1 - share.
            noise_BP: uniform numbers from 0 to 1 per patch.
            noise_BL: the same per word.
        """
        image = self._image[0]
        picture_BPE, text_BLE = image.enter(images_B3HW), self.enter(self.embed(ids_BL))
        places = picture_BPE.shape[1] - 1
        kept_BK = 1 + noise_BP.argsort(1)[:, : max(round(places * share), 1)]
        patches_BKE = picture_BPE.gather(1, kept_BK[..., None].expand(-1, -1, picture_BPE.shape[-1]))
        read_BL = (ids_BL != PAD) & (noise_BL >= share)
        seen = torch.cat([torch.ones_like(kept_BK[:, :1], dtype=torch.bool), torch.ones_like(kept_BK, dtype=torch.bool), read_BL], dim=1)
        states = self._through(torch.cat([picture_BPE[:, :1], patches_BKE, text_BLE], dim=1), seen)
        return self.head(states[:, 0] if image.pool_type == "tok" else mean_of_words(states, seen.long()))

    def pool(self, states_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Feature (B, E), as the image tower's: the first state, or the mean over what is no padding."""
        return states_BLE[:, 0] if self._image[0].pool_type == "tok" else mean_of_words(states_BLE, ids_BL)

    def head(self, features_BE: Tensor) -> Tensor:
        """Raw joint embedding (B, D) of features, or of tokens (B, L, E)."""
        out_BD: Tensor = self._image[0].head(features_BE)
        return out_BD

    def from_embeddings(self, tokens_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Raw joint embedding (B, D)."""
        return self.head(self.pool(self.states(tokens_BLE, ids_BL), ids_BL))

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.from_embeddings(self.embed(ids_BL), ids_BL)


def build(config: menu.SharedText, *, width: int, activation: menu.Activation, image: Any, fresh: bool = True) -> nn.Module:
    """Args: width, activation: the image tower's; image: that tower."""
    return SharedText(config, image)
