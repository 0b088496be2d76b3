"""MiniLM-L6 as a text tower: sentence-encoder weights from a package under a head of ours."""

# B texts, L tokens, E width of MiniLM

from torch import Tensor, nn

from vlm_core.models import config as menu
from vlm_core.models import packaged
from vlm_core.models.headed import Head, Headed


class Trunk(nn.Module):
    """Mean over the tokens that are not padding (id 0): (B, E)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.from_embeddings(self.embed(ids_BL), ids_BL)

    def embed(self, ids_BL: Tensor) -> Tensor:
        tokens_BLE: Tensor = self.network.embeddings.word_embeddings(ids_BL)  # type: ignore[union-attr, operator]
        return tokens_BLE

    def from_embeddings(self, tokens_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        mask_BL = (ids_BL != 0).long()
        hidden_BLE = self.network(inputs_embeds=tokens_BLE, attention_mask=mask_BL).last_hidden_state
        return packaged.mean_pool(hidden_BLE, mask_BL)


class Minilm(Headed):
    def embed(self, ids_BL: Tensor) -> Tensor:
        """Word embeddings (B, L, E), before positions are added."""
        tokens_BLE: Tensor = self.trunk.embed(ids_BL)  # type: ignore[operator]
        return tokens_BLE

    def from_embeddings(self, tokens_BLE: Tensor, ids_BL: Tensor) -> Tensor:
        """Raw joint embedding (B, D); the ids only say which tokens are padding. Carries the gradient to the tokens even where the trunk is locked."""
        out_BD: Tensor = self.head(self.trunk.from_embeddings(tokens_BLE, ids_BL))  # type: ignore[operator]
        return out_BD


def build(config: menu.Minilm, *, width: int, activation: menu.Activation, fresh: bool = True) -> nn.Module:
    """Args: width: of the learnt part of the joint embedding; activation: not used, the trunk keeps its own."""
    network = packaged.minilm()[1]
    network.pooler = None  # type: ignore[assignment]  # not part of the sentence vector
    own = packaged.MINILM_WIDTH if config.sentence else 0
    return Minilm(Trunk(network), Head(config, packaged.MINILM_WIDTH, width, own), config.lock)
