"""Rules on the words of a caption: pure functions over lists of strings.

Every rule looks at the cleaned caption (`clean`), the table keeps the raw one. Words and characters are counted per script, because white space
does not delimit words in Japanese, Chinese or Thai and a Han character says more than a Latin letter; `by_script=False` is DataComp's plain counting.

Sources: methods/data.md 4; mlfoundations/datacomp baselines/apply_filter.py. Checked by golden `data/datacomp_basic`.
"""

import html
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from vlm_core.errors import ConfigError

Mask = NDArray[Any]

# Scripts that write words without (or with few) spaces between them, and the mean length of a word in characters.
_UNSPACED = (
    (regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}ー]+"), 2),
    (regex.compile(r"[\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]+"), 4),
    (regex.compile(r"\p{Script=Hangul}+"), 3),
)
_WORDLIKE = regex.compile(r"[\p{L}\p{N}]")
_SPACE = re.compile(r"\s+")

_PICTURE = r"\.(?:jpe?g|png|gif|webp|svg|bmp|tiff?|heic|avif)"
_CAMERA = r"(?:img|dsc[fn]?|dcim|p|pict?|image|photo|screenshot|scan|mvi|gopr|vid|wp|capture)"
FILE_NAME = re.compile(rf"^(?:\S+{_PICTURE}|{_CAMERA}[ _-]?\d[\d _-]*(?:{_PICTURE})?|[0-9a-f]{{16,}}|[\d _.-]+)$", re.IGNORECASE)

EMAIL = re.compile(r"[\w.+-]+\s?(?:@|\[at\]|\(at\))\s?[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}", re.IGNORECASE)
URL = re.compile(r"(?:https?://|ftp://|www\.)\S+|\b[\w-]+\.(?:com|org|net|info|biz|co\.uk|edu|gov)\b(?:/\S*)?", re.IGNORECASE)
PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[\s.-]?)?(?:\(\d{1,4}\)[\s.-]?)?\d{2,4}(?:[\s.-]\d{2,4}){2,4}(?![\w.])")
_THOUSANDS = re.compile(r"\d{1,3}(?:[ .]\d{3})+")
_YEARS = re.compile(r"(?<!\d)(?:1[5-9]|20)\d\d(?!\d)")


def clean(text: str) -> str:
    """HTML entities resolved, NFC, white space (also NBSP and line breaks) folded to single spaces."""
    return _SPACE.sub(" ", unicodedata.normalize("NFC", html.unescape(text or ""))).strip()


def caption_key(text: str) -> str:
    """What two captions must share to count as the same: letters and digits, case and width folded."""
    folded = unicodedata.normalize("NFKC", clean(text)).casefold()
    return " ".join(regex.findall(r"[\p{L}\p{N}\p{M}]+", folded)) or folded


def count_words(text: str, by_script: bool = True) -> int:
    """Words by white space; runs of unspaced scripts count by their length, at least one word a run."""
    if not by_script:
        return len(text.split())
    words = 0
    for script, size in _UNSPACED:
        words += sum(-(-len(run) // size) for run in script.findall(text))
        text = script.sub(" ", text)
    return words + sum(1 for word in text.split() if _WORDLIKE.search(word))


def count_chars(text: str, by_script: bool = True) -> int:
    """Characters; a wide one (East Asian Width W or F) counts as two."""
    return len(text) + (sum(unicodedata.east_asian_width(char) in "WF" for char in text) if by_script else 0)


def basic_rules(text: Sequence[str], lang: Sequence[str], width: NDArray[Any], height: NDArray[Any]) -> Mask:
    """DataComp basic: English, more than 2 words, more than 5 characters, shorter side >= 200 px, aspect <= 3, on original sizes."""
    short = np.minimum(width, height)
    long = np.maximum(width, height)
    words = np.array([len(t.split()) > 2 and len(t) > 5 for t in text], bool)
    return (np.asarray(lang) == "en") & words & (short >= 200) & (long <= 3.0 * short)


def caption_rules(text: Sequence[str], lang: Sequence[str]) -> Mask:
    """The caption filter inside DataComp's image-based baseline: English, more than 1 word, more than 5 characters.

    Its tokeniser (fastText) splits at white space and makes a word of every line break.
    """
    words = np.array([len(t.split()) + t.count("\n") > 1 and len(t) > 5 for t in text], bool)
    return (np.asarray(lang) == "en") & words


def file_names(text: Sequence[str]) -> Mask:
    """Captions that are the name a camera or a program gave: IMG_2034.jpg, DSC 0012, d41d8cd98f00b204."""
    return np.array([bool(FILE_NAME.match(t)) for t in text], bool)


def matching(text: Sequence[str], patterns: Sequence[str]) -> Mask:
    """Captions that one of the patterns matches as a whole, case folded. Raises ConfigError for a pattern that is none."""
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern, re.IGNORECASE))
        except re.error as error:
            raise ConfigError(f"Found the pattern {pattern!r}, which is not a regular expression ({error}), expected one of Python's; correct it.") from None
    return np.array([any(p.fullmatch(t) for p in compiled) for t in text], bool)


def personal(text: Sequence[str], email: bool = True, url: bool = True, phone: bool = True) -> NDArray[Any]:
    """Per caption the first kind of personal data or address in it: 'email', 'url', 'phone' or ''."""

    def kind(t: str) -> str:
        if email and EMAIL.search(t):
            return "email"
        if url and URL.search(t):
            return "url"
        found = PHONE.search(t) if phone else None
        return "phone" if found and _is_phone(found.group()) else ""

    return np.array([kind(t) for t in text], dtype=object)


def _is_phone(digits: str) -> bool:
    """A date, years in a row and a number with separated thousands are not telephone numbers."""
    return sum(map(str.isdigit, digits)) >= 8 and not _YEARS.search(digits) and not _THOUSANDS.fullmatch(digits)
