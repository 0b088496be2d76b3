"""Templates, text classifiers and learnable contexts: what zero-shot and the prompt-learning methods share.

Sources: openai/CLIP notebook (ensembling), KaiyangZhou/CoOp trainers/coop.py (contexts), TaskRes (raw mean).
Checked by golden `transfer/{text_ensembling,coop_prompt_assembly}`.
"""
# C classes, D joint width, E text width, L tokens, M context tokens, T templates

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm_core.errors import Incompatible

Position = Literal["end", "middle", "front"]


def fill(templates: Sequence[str], classnames: Sequence[str]) -> list[str]:
    """All prompts, class by class."""
    return [template.format(name.replace("_", " ")) for name in classnames for template in templates]


def ensemble_text(embeddings_XD: Tensor, counts: Sequence[int]) -> Tensor:
    """(C, D) text classifier of consecutive runs of prompts: unit each, mean per class, unit again."""
    means = [part.mean(dim=0) for part in F.normalize(embeddings_XD, dim=-1).split(list(counts))]
    return F.normalize(torch.stack(means), dim=-1)


def raw_mean_text(embeddings_XD: Tensor, counts: Sequence[int]) -> Tensor:
    """(C, D) mean of the raw prompt embeddings of a class (TaskRes' base), not normalised."""
    return torch.stack([part.mean(dim=0) for part in embeddings_XD.split(list(counts))])


def assemble_prompts(prefix_C1E: Tensor, context: Tensor, suffix_CXE: Tensor, name_lens: Sequence[int], position: Position = "end") -> Tensor:
    """(C, L, E) token embeddings of prompts with learnt words.

    Args:
        prefix_C1E: embedding of the start token.
        context: (M, E) shared by all classes, or (C, M, E) one per class.
        suffix_CXE: everything after the context slots: name, full stop, end, padding; X = L - 1 - M.
        name_lens: tokens of each class name.
        position: end: context then name; middle: name between the halves; front: name then context.
    """
    context_CME = context.expand(len(prefix_C1E), *context.shape) if context.dim() == 2 else context
    if position == "end":
        return torch.cat([prefix_C1E, context_CME, suffix_CXE], dim=1)
    half = context_CME.shape[1] // 2 if position == "middle" else 0
    rows = [
        torch.cat([prefix, words[:half], suffix[:n], words[half:], suffix[n:]])
        for prefix, words, suffix, n in zip(prefix_C1E, context_CME, suffix_CXE, name_lens, strict=True)
    ]
    return torch.stack(rows)


def token_counts(ids_BL: Tensor) -> list[int]:
    """Tokens of each text, both specials included; padding (id 0) follows the last one."""
    return [int(row.nonzero().max()) + 1 if row.any() else 0 for row in ids_BL]


class PromptSlots:
    """Class prompts "X X X name." cut where the learnt words go. Tied to a tokenizer and to the number of context tokens."""

    def __init__(self, classnames: Sequence[str], tokens: int, tokenize: Callable[[list[str]], Tensor], embed: Callable[[Tensor], Tensor]) -> None:
        names = [name.replace("_", " ") for name in classnames]
        blank = " ".join(["X"] * tokens)
        ids_CL = tokenize([f"{blank} {name}." for name in names])
        counts = token_counts(ids_CL)
        empty = token_counts(tokenize([f"{blank} ."]))[0]
        if empty != tokens + 3:
            raise Incompatible(
                f"Found {empty} tokens for {tokens} placeholders, a full stop and two specials, expected {tokens + 3}; lower the context tokens."
            )
        if max(counts) >= ids_CL.shape[1]:
            raise Incompatible(
                f"Found {max(counts)} tokens in the longest prompt with {tokens} context tokens, expected fewer than the context length {ids_CL.shape[1]}; lower method.tokens."
            )
        self.ids_CL = ids_CL[:, : max(counts)]
        with torch.no_grad():
            embedded_CLE = embed(self.ids_CL).detach()
        self.prefix_C1E, self.suffix_CXE = embedded_CLE[:, :1], embedded_CLE[:, 1 + tokens :]
        self.name_lens = [count - empty for count in counts]


def word_context(words: str, tokenize: Callable[[list[str]], Tensor], embed: Callable[[Tensor], Tensor]) -> Tensor:
    """(M, E) embeddings of given words, the start of a learnt context."""
    ids_1L = tokenize([words])
    with torch.no_grad():
        return embed(ids_1L)[0, 1 : token_counts(ids_1L)[0] - 1].detach().clone()
