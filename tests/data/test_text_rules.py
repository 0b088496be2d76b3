"""Rules on captions, on hand-labelled cases."""

import numpy as np
import pytest

from vlm_core.data.filter import text_rules
from vlm_core.data.filter.config import Titles
from vlm_core.errors import ConfigError


@pytest.mark.parametrize(("raw", "cleaned"), [
    ("Tom &amp; Jerry&quot;s\u00a0 house\n", 'Tom & Jerry"s house'),
    ("cafe\u0301", "café"),
    ("\t ", ""),
    ("&lt;b&gt;", "<b>"),
])  # fmt: skip
def test_cleaning_resolves_entities_and_folds_white_space(raw: str, cleaned: str) -> None:
    assert text_rules.clean(raw) == cleaned


def test_captions_are_the_same_when_their_letters_are() -> None:
    assert text_rules.caption_key("A red  Fish!") == text_rules.caption_key("a RED fish") == text_rules.caption_key("Ａ red&nbsp;fish") == "a red fish"
    assert text_rules.caption_key("にっこり。") == text_rules.caption_key("にっこり")
    assert text_rules.caption_key("ガ") != text_rules.caption_key("カ")
    assert text_rules.caption_key("!?") == "!?"


@pytest.mark.parametrize(("text", "words", "plain"), [
    ("a red fish", 3, 3),
    ("red-and-white fish , !", 2, 4),
    ("黒い猫が眠っている", 5, 1),  # nine characters, two a word
    ("スパゲッティー", 4, 1),
    ("웃는 얼굴", 2, 2),
    ("스노보드타는사람", 3, 1),
    ("แมวดำ", 2, 1),
    ("iPhone 15 の写真", 4, 3),
    ("", 0, 0),
])  # fmt: skip
def test_words_are_counted_per_script(text: str, words: int, plain: int) -> None:
    assert (text_rules.count_words(text), text_rules.count_words(text, by_script=False)) == (words, plain)


def test_a_wide_character_counts_twice() -> None:
    assert text_rules.count_chars("犬 dog") == 6
    assert text_rules.count_chars("犬 dog", by_script=False) == 5


NAMES = [
    "IMG_2034.jpg",
    "DSC 0012",
    "dscn0012.JPG",
    "screenshot_2024-01-03.png",
    "photo-12",
    "d41d8cd98f00b204e9800998ecf8427e",
    "my_holiday.jpeg",
    "0012",
    "12-34_56",
]
CAPTIONS = [
    "a photo of a dog",
    "IMG museum at night",
    "p 12 of the book.",
    "2 dogs",
    "map.",
    "decade",
    "screen door",
    "웃는 얼굴",
    "pic of 12 cats",
    "jpg compression explained",
]


def test_names_of_files_are_told_from_captions() -> None:
    assert text_rules.file_names(NAMES).all()
    assert not text_rules.file_names(CAPTIONS).any()


def test_default_boilerplate_is_told_from_captions() -> None:
    useless = [
        "image",
        "The Picture",
        "logo",
        "Untitled 3",
        "loading...",
        "no image",
        "click here",
        "icon 12",
        "Part of the Flat Icon Collection (2004)",
        "Lemon SVG theme",
        "Etiquette Icons",
    ]
    useful = [
        "picture of a lake",
        "logo of a bakery",
        "post card",
        "a photo album",
        "test tube",
        "click beetle",
        "the blank page",
        "untitled goose game",
        "iconic bridge",
        "collector",
    ]
    patterns = Titles().boilerplate
    assert text_rules.matching(useless, patterns).all()
    assert not text_rules.matching(useful, patterns).any()


def test_a_pattern_that_is_none_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"Found the pattern '\(', which is not a regular expression"):
        text_rules.matching(["x"], ["("])


def test_shares_of_digits_and_punctuation_by_hand() -> None:
    assert text_rules.digit_share("ab 12 3") == 3 / 5
    assert text_rules.digit_share("!?") == 0
    assert text_rules.punctuation_share("a-b !!") == 3 / 5
    assert text_rules.punctuation_share("고양이 🐈") == 1 / 4
    assert text_rules.punctuation_share(" ") == 0


@pytest.mark.parametrize(("text", "words", "pairs"), [
    ("a dog and a cat", 1 / 5, 0.0),
    ("buy now buy now buy now", 4 / 6, 3 / 5),
    ("Dog dog DOG", 2 / 3, 1 / 2),
    ("dog", 0.0, 0.0),
    ("", 0.0, 0.0),
])  # fmt: skip
def test_repetition_is_the_share_of_runs_that_stood_before(text: str, words: float, pairs: float) -> None:
    assert text_rules.repeated_share(text) == pytest.approx(words)
    assert text_rules.repeated_share(text, 2) == pytest.approx(pairs)


def test_markup_is_what_cleaning_once_leaves() -> None:
    for raw in ("Tom &amp;amp; Jerry", "a &amp;#39;quoted&amp;#39; word", "a <b>bold</b> cat", "line<br/>break", "&lt;a href=x&gt;link&lt;/a&gt;"):
        assert text_rules.has_markup(text_rules.clean(raw)), raw
    for raw in ("Tom &amp; Jerry", "R&B; soul", "a < b", "I <3 cats", "x&y", "5 > 3"):
        assert not text_rules.has_markup(text_rules.clean(raw)), raw


WORDS = text_rules.read_words(["# things", "dog", "Great White Shark  # a fish", "", "fox", "knife", "bus", "house"])


def test_a_list_holds_words_and_phrases_with_the_number_of_their_line() -> None:
    assert WORDS == {"dog": 2, "great white shark": 3, "fox": 5, "knife": 6, "bus": 7, "house": 8}
    assert text_rules.longest_phrase(WORDS) == 3


@pytest.mark.parametrize(("text", "exact", "plural"), [
    ("A DOG!", "dog", "dog"),
    ("hotdog stand", "", ""),
    ("the great-white shark", "great white shark", "great white shark"),
    ("two great white sharks", "", "great white shark"),
    ("foxes, knives and buses", "", "fox"),
    ("knives", "", "knife"),
    ("buses", "", "bus"),
    ("houses", "", "house"),
    ("white shark", "", ""),
    ("", "", ""),
])  # fmt: skip
def test_listed_phrases_are_found_by_whole_words(text: str, exact: str, plural: str) -> None:
    assert text_rules.listed_phrase(text, WORDS, 3) == exact
    assert text_rules.listed_phrase(text, WORDS, 3, plurals=True) == plural


def test_a_picture_without_size_is_refused_and_divides_nothing_by_zero() -> None:
    text, lang = ["a red fish in water"] * 4, ["en"] * 4
    keep = text_rules.basic_rules(text, lang, np.array([0, 600, 601, 200]), np.array([0, 200, 200, 200]))
    assert keep.tolist() == [False, True, False, True]
