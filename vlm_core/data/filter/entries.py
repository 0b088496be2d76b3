"""MetaCLIP: which entries of a list occur in a caption, and how likely a caption stays when the list is to be balanced.

Entries are found by an Aho-Corasick automaton in one pass over the caption, whatever the number of entries. An entry that must border on spaces at both ends
is a run of words, so the automaton runs over words; the few that may begin or end inside a word (scripts without spaces, punctuation) over characters.

N texts, V entries. Sources: methods/data.md 12; arXiv 2309.16671. Checked by golden `data/metaclip_balance`.
"""

import re
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import regex
from numpy.typing import NDArray

Mode = Literal["padded", "automaton"]
_PADDED = re.compile(r"([,.;:?!`])")
_JOINED = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}\p{P}\p{S}]")


class Automaton:
    """Aho-Corasick over sequences of symbols (characters, words): every pattern that occurs, in one pass."""

    def __init__(self, patterns: Iterable[tuple[int, Sequence[Hashable]]]) -> None:
        self._next: list[dict[Hashable, int]] = [{}]
        self._ends: list[list[int]] = [[]]  # patterns that end at a node, also as the tail of a longer one
        for number, pattern in patterns:
            node = 0
            for symbol in pattern:
                if symbol not in self._next[node]:
                    self._next[node][symbol] = len(self._next)
                    self._next.append({})
                    self._ends.append([])
                node = self._next[node][symbol]
            self._ends[node].append(number)
        self._link()

    def _link(self) -> None:
        """For every node the longest proper tail of its path that is a path itself."""
        self._fail = [0] * len(self._next)
        todo = deque(self._next[0].values())
        while todo:
            node = todo.popleft()
            for symbol, child in self._next[node].items():
                self._fail[child] = self._step(self._fail[node], symbol)
                self._ends[child] = self._ends[child] + self._ends[self._fail[child]]
                todo.append(child)

    def _step(self, node: int, symbol: Hashable) -> int:
        while (found := self._next[node].get(symbol)) is None and node:
            node = self._fail[node]
        return found or 0

    def find(self, symbols: Iterable[Hashable]) -> set[int]:
        """Numbers of the patterns that occur."""
        found, node = set[int](), 0
        for symbol in symbols:
            node = self._next[node].get(symbol) or (self._step(node, symbol) if node else 0)
            if self._ends[node]:
                found.update(self._ends[node])
        return found


class Entries:
    """A list of entries, ready to be found.

    `padded` (v1) finds an entry between spaces only; `automaton` (v2) asks for none beside characters of scripts without spaces and beside punctuation.
    """

    def __init__(self, entries: Sequence[str], mode: Mode = "padded") -> None:
        free = [mode == "automaton" and any(_JOINED.match(end) for end in (entry[:1], entry[-1:])) for entry in entries]
        self._words = Automaton((number, entry.split(" ")) for number, entry in enumerate(entries) if not free[number])
        self._letters = Automaton((number, _pattern(entry)) for number, entry in enumerate(entries) if free[number])
        self._any_letters = any(free)

    def find(self, text: str) -> list[int]:
        """Numbers of the entries that occur, ascending."""
        padded = _PADDED.sub(r" \1 ", text.translate(_SPACES))
        found = self._words.find(padded.split(" "))
        if self._any_letters:
            found |= self._letters.find(f" {padded} ")
        return sorted(found)


_SPACES = str.maketrans("\t\n\r", "   ")


def _pattern(entry: str) -> str:
    """The entry with a space where it must border on one."""
    left, right = (not _JOINED.match(end) for end in (entry[:1], entry[-1:]))
    return " " * left + entry + " " * right


def match_entries(texts: Sequence[str], entries: Sequence[str], mode: Mode = "padded") -> NDArray[Any]:
    """Mask (N, V) of the entries in each text."""
    found, mask = Entries(entries, mode), np.zeros((len(texts), len(entries)), bool)
    for row, text in enumerate(texts):
        mask[row, found.find(text)] = True
    return mask


def entry_prob(counts: NDArray[Any], t: int) -> NDArray[Any]:
    """t / max(count, t): head entries are thinned to about t texts, tail entries stay whole."""
    return t / np.maximum(counts.astype(np.float64), t)


def curation_prob(match_NV: NDArray[Any], prob_V: NDArray[Any]) -> NDArray[Any]:
    """1 - prod (1 - p_e) over the entries that a text matches: 0 without a match."""
    return 1 - np.prod(np.where(match_NV, 1 - prob_V, 1.0), axis=1)


def t_to_p(counts: NDArray[Any], t: int) -> float:
    """Share of all matches that belongs to tail entries (count < t): what other languages should share with English."""
    return float(counts[counts < t].sum() / counts.sum())


def p_to_t(counts: NDArray[Any], p: float) -> int:
    """The count at which the cumulative share of the sorted counts comes nearest to p."""
    ranked = np.sort(counts)
    return int(ranked[np.argmin(np.abs(np.cumsum(ranked) / ranked.sum() - p))])
