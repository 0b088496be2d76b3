"""A candidate pair: an address of a picture and its texts, under one uid."""

from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from vlm_core.data.crawl_config import Extract
from vlm_core.data.sample import canonical_url, make_uid

Pair = dict[str, Any]


def add(pairs: dict[str, Pair], pair: Pair) -> None:
    """Put a pair among the others; one that is known already gives the known one what it lacks."""
    known = pairs.setdefault(pair["uid"], pair)
    if known is pair:
        return
    texts = {caption["text"] for caption in known["captions"]}
    known["captions"] += [caption for caption in pair["captions"] if caption["text"] not in texts]
    for name in ("lang", "licence", "credit", "page_optout"):
        known[name] = known[name] or pair[name]


def make_pair(url: str, captions: list[tuple[str, str]], lang: str, config: Extract, dropped: Counter[str], **more: str) -> Pair | None:
    """A pair from (text, origin) in order of preference; the first one with a text is raw. None (and a reason) for what cannot be one.

    Addresses of other schemes stay: the download says what became of them.
    """
    texts = [(text[: config.max_caption_chars].strip(), origin) for text, origin in captions]
    texts = [(text, origin) for place, (text, origin) in enumerate(texts) if text and text not in {before for before, _ in texts[:place]}]
    if not texts:
        dropped["no_caption"] += 1
        return None
    if not is_address(url):
        dropped["bad_address"] += 1
        return None
    address = canonical_url(url)
    rows = [{"text": text, "origin": origin, "lang": lang} for text, origin in texts]
    return {"uid": make_uid(address, texts[0][0]), "url": address, "caption": texts[0][0], "lang": lang, "captions": rows, **more}


def is_address(url: str) -> bool:
    try:
        parts = urlsplit(url.strip())
        return bool(parts.scheme) and (bool(parts.hostname) or parts.scheme.lower() not in {"http", "https"}) and url.isprintable()
    except ValueError:
        return False
