"""Text -> ids (B, L). Id 0 pads on the right in every tokenizer here."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vlm_core.models import config as menu

# B texts, L tokens


class Tokenizer(Protocol):
    name: str
    context_length: int

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, context_length), zero-padded; too long texts are cut and keep their end token."""
        ...


class BytePair:
    """CLIP's lower-cased byte-pair encoding with 49,408 ids; the merges ship inside open_clip."""

    name = "clip_bpe"

    def __init__(self, context_length: int) -> None:
        from vlm_core.models.open_clip_parts import SimpleTokenizer

        self.context_length = context_length
        self._encode = SimpleTokenizer(context_length=context_length)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.long)
        ids_BL: Tensor = self._encode(list(texts))
        return ids_BL


class WordPiece:
    """MiniLM's lower-cased word pieces."""

    name = "minilm"

    def __init__(self, context_length: int) -> None:
        from vlm_core.models.packaged import minilm

        self.context_length = context_length
        self._encode = minilm()[0]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.context_length, dtype=torch.long)
        tokens = self._encode(list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt")
        ids_BL: Tensor = tokens["input_ids"]
        return ids_BL


def build(config: menu.TextTower) -> Tokenizer:
    return WordPiece(config.context_length) if isinstance(config, menu.Minilm) else BytePair(config.context_length)


def trim(ids_BL: Tensor) -> Tensor:
    """Drop the trailing columns that are padding in every row: same embeddings, less work (captions are short)."""
    used = (ids_BL != 0).any(0).nonzero()
    return ids_BL[:, : int(used.max()) + 1] if len(used) else ids_BL
