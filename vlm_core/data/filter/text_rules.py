"""Rules on the words of a caption: pure functions over lists of strings.

Every rule looks at the cleaned caption (`clean`), the table keeps the raw one. Words and characters are counted per script, because white space
does not delimit words in Japanese, Chinese or Thai and a Han character says more than a Latin letter; `by_script=False` is DataComp's plain counting.

Sources: methods/data.md 4; mlfoundations/datacomp baselines/apply_filter.py. Checked by golden `data/datacomp_basic`.
"""

import html
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
_MARKUP = re.compile(r"&(?:[a-z]{2,8}|#\d{2,6}|#x[0-9a-f]{2,5});|</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>", re.IGNORECASE)


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


def plain_counts(text: pa.Array) -> tuple[Mask, Mask]:
    """(words, characters) as `len(t.split())` and `len(t)` count them, vectorised for ASCII, which is most, byte by byte, and the rest one by one."""
    chars = pc.utf8_length(text).to_numpy(zero_copy_only=False)
    words = np.concatenate([np.zeros(0, np.int64), *(_ascii_words(text.slice(start, WORDS_BLOCK)) for start in range(0, len(text), WORDS_BLOCK))])
    wide = np.flatnonzero(pc.binary_length(text).to_numpy(zero_copy_only=False) != chars)
    if len(wide):
        # not pc.utf8_split_whitespace: it looks behind the last byte of a text that ends in white space, and counts what it finds there
        words[wide] = [len(one.split()) for one in text.take(pa.array(wide)).to_pylist()]
    return words, chars


WORDS_BLOCK = 8192  # captions whose bytes fit into a cache
_BLANK = bytes(byte in b"\t\n\v\f\r\x1c\x1d\x1e\x1f " for byte in range(256))  # what str.split calls white space


def _ascii_words(text: pa.StringArray) -> NDArray[np.int64]:
    """Words of ASCII texts: a word begins at a byte that is not blank and at the beginning of its text or after one that is."""
    _, offsets, data = text.buffers()
    ends = np.frombuffer(offsets, np.int32, len(text) + 1, 4 * text.offset)
    first, last = int(ends[0]), int(ends[-1])
    if first == last:
        return np.zeros(len(text), np.int64)
    blank = np.frombuffer(data[first:last].to_pybytes().translate(_BLANK), np.bool_)
    begins = np.greater(np.concatenate([[True], blank[:-1]]), blank)
    starts = ends[:-1][ends[:-1] < last] - first
    begins[starts] = ~blank[starts]
    return np.diff(np.searchsorted(np.flatnonzero(begins), ends - first))


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


def digit_share(text: str) -> float:
    """Digits among letters and digits."""
    digits = sum(map(str.isdigit, text))
    return digits / max(digits + sum(map(str.isalpha, text)), 1)


def punctuation_share(text: str) -> float:
    """Punctuation and symbols among all characters but spaces."""
    shown = [char for char in text if not char.isspace()]
    return sum(unicodedata.category(char)[0] in "PS" for char in shown) / max(len(shown), 1)


def repeated_share(text: str, n: int = 1) -> float:
    """Share of the runs of n words that stood before in the caption: 0 when all differ. Words are runs of letters and digits, case folded."""
    words = caption_key(text).split()
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def has_markup(text: str) -> bool:
    """An HTML entity or a tag; in a cleaned caption the rest of one that was escaped twice."""
    return bool(_MARKUP.search(text))


# ---- lists of words


def read_words(lines: Iterable[str]) -> dict[str, int]:
    """Key of each word or phrase -> number of its line; what follows a # and empty lines say nothing."""
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        phrase = line.partition("#")[0].strip()
        if phrase:
            found.setdefault(caption_key(phrase), number)
    return found


def longest_phrase(words: Iterable[str]) -> int:
    """Words in the longest phrase of a list."""
    return max((len(word.split()) for word in words), default=0)


def listed_phrase(text: str, words: Container[str], longest: int, plurals: bool = False) -> str:
    """The first phrase of a list in a caption, by whole words, longer ones first; '' when there is none. `plurals`: its last word may be an English plural."""
    tokens = caption_key(text).split()
    for start in range(len(tokens)):
        for end in range(min(start + longest, len(tokens)), start, -1):
            *before, last = tokens[start:end]
            for form in singulars(last) if plurals else (last,):
                if (phrase := " ".join([*before, form])) in words:
                    return phrase
    return ""


def singulars(word: str) -> Iterator[str]:
    """The word, and what it may be the regular English plural of."""
    yield word
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        yield word[:-1]
        for ending, single in (("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe")):
            if word.endswith(ending):
                yield word.removesuffix(ending) + single
