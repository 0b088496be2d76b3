"""CLIP's text Transformer: open_clip's own module, opened at the token embeddings so that learnt contexts can enter there.

Source: CLIP, arXiv 2103.00020; golden `pretraining/clip_text_tower`.
"""

# B texts, L tokens, E tower width, D joint width

import torch
from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models.open_clip_parts import TextTransformer
from vlm_core.models.tokenizer import Special, special_of
from vlm_core.models.vit import ACTIVATIONS, blocks


class ClipTransformer(TextTransformer):
    """Takes ids of any length up to the context: what follows the end-of-text token never matters under the causal mask."""

    special: Special  # of the tokenizer

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Token embeddings (B, L, E), before positions are added."""
        tokens_BLE: Tensor = self.token_embedding(ids_BL)
        return tokens_BLE

    @property
    def features_width(self) -> int:
        return int(self.width)

    def states(self, tokens_BLE: Tensor, ids_BL: Tensor | None = None) -> Tensor:
        """States (B, L, E) behind the last block; each has seen the tokens up to its own, so that nobody needs to know where padding begins."""
        length = tokens_BLE.shape[1]
        states_BLE: Tensor = self.ln_final(self.transformer(self.enter(tokens_BLE), attn_mask=self.attn_mask[:length, :length]))
        return states_BLE

    def enter(self, tokens_BLE: Tensor) -> Tensor:
        """What the first block reads."""
        x_BLE: Tensor = tokens_BLE + self.positional_embedding[: tokens_BLE.shape[1]]
        return x_BLE

    def through(self, x_BLE: Tensor, begin: int = 0, end: int | None = None) -> Tensor:
        """States behind block `end`, of those in front of block `begin`."""
        length = x_BLE.shape[1]
        return blocks(self.transformer, x_BLE, begin, end, self.attn_mask[:length, :length])

    def leave(self, x_BLE: Tensor) -> Tensor:
        """What `states` gives, of the states behind the last block."""
        states_BLE: Tensor = self.ln_final(x_BLE)
        return states_BLE

    def pool(self, states_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Feature (B, E): the state at the first end-of-text token."""
        return states_BLE[torch.arange(len(ids_BL), device=ids_BL.device), (ids_BL == self.special.end).int().argmax(-1)]

    def head(self, features_BE: Tensor) -> Tensor:
        """Raw joint embedding (B, D) of features, or of tokens (B, L, E)."""
        out_BD: Tensor = features_BE @ self.text_projection
        return out_BD

    def from_embeddings(self, tokens_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Raw joint embedding (B, D); the ids only say where the text ends."""
        return self.head(self.pool(self.states(tokens_BLE), ids_BL))

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.from_embeddings(self.embed(ids_BL), ids_BL)


def build(config: menu.ClipTransformer, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the joint embedding."""
    tower = ClipTransformer(
        context_length=config.context_length, vocab_size=config.vocab_size, width=config.width, heads=config.heads, layers=config.layers,
        output_dim=width, act_layer=ACTIVATIONS[activation],
    )  # fmt: skip
    tower.special = special_of(config)
    return tower
