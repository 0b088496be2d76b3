"""Balance over a list of entries (golden arrays: tests/golden)."""

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data.filter.entries import Automaton, Entries, Mode, curation_prob, entry_prob

NO_SPACES = regex.compile(r"[\p{Script=Han}\p{P}\p{S}]")


def found(texts: list[str], entries: list[str], mode: Mode) -> list[list[int]]:
    return [Entries(entries, mode).find(text) for text in texts]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=12), st.text("abc", max_size=30))
def test_the_automaton_finds_every_pattern_that_is_a_substring(patterns: list[str], text: str) -> None:
    assert Automaton(enumerate(patterns)).find(text) == {number for number, pattern in enumerate(patterns) if pattern in text}


def slow_padded_match(text: str, entry: str) -> bool:
    """MetaCLIP v1 as written in its repository: pad, then look for the substring."""
    for char in ",.;:?!`":
        text = text.replace(char, f" {char} ")
    for char in "\t\n\r":
        text = text.replace(char, " ")
    return f" {entry} " in f" {text} "


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab ,.\n한", max_size=14), min_size=1, max_size=6), st.lists(st.text("ab 한", min_size=1, max_size=4), min_size=1, max_size=8, unique=True)
)
def test_the_automaton_over_words_finds_what_the_substring_test_finds(texts: list[str], entries: list[str]) -> None:
    expected = [[number for number, entry in enumerate(entries) if slow_padded_match(text, entry)] for text in texts]
    assert found(texts, entries, "padded") == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab ,猫犬#", max_size=14), min_size=1, max_size=6), st.lists(st.text("ab 猫#", min_size=1, max_size=4), min_size=1, max_size=8))
def test_the_second_version_asks_for_a_space_where_a_word_needs_one(texts: list[str], entries: list[str]) -> None:
    def pattern(entry: str) -> str:
        left, right = (" " * (not NO_SPACES.match(end)) for end in (entry[0], entry[-1]))
        return left + entry + right

    expected = [[number for number, entry in enumerate(entries) if pattern(entry) in f" {text.replace(',', ' , ')} "] for text in texts]
    assert found(texts, entries, "automaton") == expected


def test_scripts_without_spaces_match_inside_words_in_the_automaton_only() -> None:
    texts, entries = ["黒い猫がいる", "a catalogue", "the cat"], ["猫", "cat"]
    assert found(texts, entries, "automaton") == [[0], [], [1]]
    assert found(texts, entries, "padded") == [[], [], [1]]


def test_balance_by_hand() -> None:
    prob = entry_prob(np.array([10, 40, 5]), 10)
    assert prob == pytest.approx([1, 0.25, 1])
    match = np.array([[False, True, False], [True, True, False], [False, False, False]])
    assert curation_prob(match, prob) == pytest.approx([0.25, 1.0, 0.0])
