"""Rules that look at one sample at a time. Each is `rule(section of the settings, pool, rows still in) -> Verdict`."""

import numpy as np

from vlm_core.data import language, text_rules
from vlm_core.data.filter_config import ImageRules, LanguageRule, Personal, Rights, Safety, TextRules, Titles
from vlm_core.data.decisions import Verdict, first_reason
from vlm_core.data.pool import Column, Pool
from vlm_core.data.safety import OpenNsfw, SafetyScorer
from vlm_core.errors import ConfigError

SAFETY_BATCH = 32


def downloaded(section: object, pool: Pool, rows: Column) -> Verdict:
    """A picture is there. The detail is the status of the download."""
    status = pool.status[rows]
    return Verdict(first_reason(len(rows), ("not_downloaded", status != "ok")), detail=[str(s) or "no row" for s in status])


def rights(section: Rights, pool: Pool, rows: Column) -> Verdict:
    """Page opt-outs and licences; the detail is the evidence."""
    optout, licence = pool.page_optout[rows], pool.licence[rows]
    refused = _searching(licence.tolist(), section.refused_licences)
    reason = first_reason(
        len(rows),
        ("opted_out", (optout != "") if section.page_optouts else np.zeros(len(rows), bool)),
        ("refused_licence", refused),
        ("no_licence", (licence == "") & (section.unknown == "deny")),
    )
    return Verdict(reason, detail=[str(o) if r == "opted_out" else str(li) for o, li, r in zip(optout, licence, reason, strict=True)])


def _searching(texts: list[str], patterns: list[str]) -> Column:
    return text_rules.matching(texts, [f"[\\s\\S]*(?:{pattern})[\\s\\S]*" for pattern in patterns])


def text(section: TextRules, pool: Pool, rows: Column) -> Verdict:
    """Words and characters of the caption; the score is the number of words."""
    if section.max_words < section.min_words:
        raise ConfigError(f"Found text.max_words {section.max_words} below text.min_words {section.min_words}, expected it above; change one of them.")
    captions = pool.caption[rows].tolist()
    words = np.array([text_rules.count_words(t, section.by_script) for t in captions])
    chars = np.array([text_rules.count_chars(t, section.by_script) for t in captions])
    reason = first_reason(
        len(rows),
        ("no_caption", chars == 0),
        ("too_few_words", words < section.min_words),
        ("too_few_chars", chars < section.min_chars),
        ("too_many_words", words > section.max_words),
    )
    return Verdict(reason, words, section.min_words, [f"{n} characters" for n in chars])


def titles(section: Titles, pool: Pool, rows: Column) -> Verdict:
    """Captions without content; the score is on how many different pictures a caption is found."""
    captions = pool.caption[rows].tolist()
    pictures = caption_pictures(captions, pool.sha256[rows].tolist())
    many = pictures > section.max_pictures if section.max_pictures is not None else np.zeros(len(rows), bool)
    names = text_rules.file_names(captions) if section.file_names else np.zeros(len(rows), bool)
    reason = first_reason(len(rows), ("file_name", names), ("boilerplate", text_rules.matching(captions, section.boilerplate)), ("frequent_caption", many))
    return Verdict(reason, pictures, section.max_pictures)


def caption_pictures(captions: list[str], sha256: list[str]) -> Column:
    """Per row the number of different pictures that carry its caption: copies of a picture do not make its caption frequent."""
    keys = [text_rules.caption_key(caption) for caption in captions]
    seen: dict[str, set[str]] = {}
    for key, picture in zip(keys, sha256, strict=True):
        seen.setdefault(key, set()).add(picture)
    return np.array([len(seen[key]) for key in keys])


def personal(section: Personal, pool: Pool, rows: Column) -> Verdict:
    """E-mail addresses, web addresses, telephone numbers in any caption of the pair; the value itself is not repeated in the decision."""
    return Verdict(text_rules.personal(pool.texts[rows].tolist(), section.email, section.url, section.phone))


def image(section: ImageRules, pool: Pool, rows: Column) -> Verdict:
    """Shorter side and aspect of the picture as fetched; the score is the shorter side."""
    short, long = np.minimum(pool.width[rows], pool.height[rows]), np.maximum(pool.width[rows], pool.height[rows])
    reason = first_reason(len(rows), ("too_small", (short < section.min_side) | (short <= 0)), ("aspect_ratio", long > section.max_aspect * short))
    return Verdict(reason, short, section.min_side, [f"{w} x {h}" for w, h in zip(pool.width[rows], pool.height[rows], strict=True)])


def languages(section: LanguageRule, pool: Pool, rows: Column) -> Verdict:
    """Names the language (from here on `pool.lang` is the answer); the score is the confidence, the detail who said what."""
    declared = pool.lang[rows].tolist()
    found = language.identify_all(pool.caption[rows].tolist(), declared, section.long_chars)
    pool.lang[rows] = [item.lang for item in found]
    detail = [f"{item.lang or '?'}: page {page or '?'}, lite {item.lite or '?'}, eld {item.eld or '?'}" for item, page in zip(found, declared, strict=True)]
    reason = first_reason(len(rows), ("language", language.refused(found, section.wanted, section.min_confidence)))
    return Verdict(reason, np.array([item.confidence for item in found]), section.min_confidence, detail, language.versions())


def safety(section: Safety, pool: Pool, rows: Column, scorer: SafetyScorer | None = None) -> Verdict:
    """Score of the safety model on the stored picture; equal pictures are looked at once."""
    scorer = scorer or OpenNsfw()
    keys = [str(sha or uid) for sha, uid in zip(pool.sha256[rows], pool.uid[rows], strict=True)]
    first = dict(zip(reversed(keys), reversed(rows.tolist()), strict=True))
    key_of = {row: key for key, row in first.items()}
    known: dict[str, float] = {}
    batch: list[tuple[int, bytes]] = []

    def flush() -> None:
        if batch:
            known.update(zip((key_of[row] for row, _ in batch), map(float, scorer.score([data for _, data in batch])), strict=True))
            batch.clear()

    for item in pool.pictures(np.array(sorted(key_of), np.int64)):
        batch.append(item)
        if len(batch) == SAFETY_BATCH:
            flush()
    flush()
    score = np.array([known[key] for key in keys])
    return Verdict(first_reason(len(rows), ("unsafe", score > section.max_score)), score, section.max_score, version=scorer.version)
