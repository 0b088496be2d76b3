"""BERT as a text tower: transformers' own module under a projection without bias (ALIGN, arXiv 2102.05918; KELIP's and FIBER's kind of text tower).

Padding is on the right and seen by nobody. Source: arXiv 1810.04805.
"""

# B texts, L tokens, E tower width, D joint width

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlm_core.checkpoint import fill, read_weights
from vlm_core.models import config as menu
from vlm_core.models.tokenizer import Special, special_of

PAD = 0


class Bert(nn.Module):
    """Args: network: a BertModel without its pooler."""

    def __init__(self, network: Any, width: int, pool: str, special: Special) -> None:
        super().__init__()
        self.network, self.kind_of_pool, self.special = network, pool, special
        self.head = nn.Linear(network.config.hidden_size, width, bias=False)

    @property
    def features_width(self) -> int:
        return int(self.network.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        return int(self.network.config.vocab_size)

    def embed(self, ids_BL: Tensor) -> Tensor:
        """Word embeddings (B, L, E), before positions are added."""
        tokens_BLE: Tensor = self.network.embeddings.word_embeddings(ids_BL)
        return tokens_BLE

    def states(self, tokens_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """States (B, L, E) behind the last block; the ids only say which tokens are padding."""
        states_BLE: Tensor = self.network(inputs_embeds=tokens_BLE, attention_mask=(ids_BL != PAD).long()).last_hidden_state
        return states_BLE

    def pool(self, states_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Feature (B, E)."""
        return states_BLE[:, 0] if self.kind_of_pool == "cls" else mean_of_words(states_BLE, ids_BL)

    def from_embeddings(self, tokens_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Raw joint embedding (B, D)."""
        out_BD: Tensor = self.head(self.pool(self.states(tokens_BLE, ids_BL), ids_BL))
        return out_BD

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.from_embeddings(self.embed(ids_BL), ids_BL)


def mean_of_words(states_BLE: Tensor, ids_BL: Tensor) -> Tensor:
    """Mean (B, E) over what is no padding."""
    words_BL1 = (ids_BL != PAD)[..., None].to(states_BLE.dtype)
    return (states_BLE * words_BL1).sum(1) / words_BL1.sum(1).clamp(min=1)


def build(config: menu.Bert, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the joint embedding; activation: not used, BERT has GELU; fresh: read config.weights."""
    from transformers import BertConfig, BertModel

    settings = BertConfig(
        vocab_size=config.vocab_size, hidden_size=config.width, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        intermediate_size=4 * config.width, hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout, pad_token_id=PAD,
    )  # fmt: skip
    network = BertModel(settings, add_pooling_layer=False)
    if fresh and config.weights:
        state = read_weights(Path(config.weights) / "model.safetensors")
        own = {name.removeprefix("bert."): value for name, value in state.items()}
        fill(network, {name: value for name, value in own.items() if name.startswith(("embeddings.", "encoder."))}, config.weights)
    return Bert(network, width, config.pool, special_of(config))
