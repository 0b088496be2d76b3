"""Common Crawl's WAT files (metadata of archived pages) -> picture links with their alt text. Source: `methods/data.md` 1; rom1504/cc2dataset main.py.

Checked by golden `data/wat_extract`.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

import orjson

RECORD_BYTES = 64 * 2**20  # of one record's JSON; Common Crawl's are smaller by far


class Link(NamedTuple):
    """A picture on a page."""

    url: str
    alt: str
    page: str
    offset: int = 0  # of its record in the archive

    @property
    def md5(self) -> str:
        """cc2dataset's name of a pair. It has no separator, so ("ab", "c") and ("a", "bc") collide; ours is `make_uid`."""
        return hashlib.md5((self.alt + self.url).encode(), usedforsecurity=False).hexdigest()


def extract_links(
    stream: BinaryIO, doc_type: Literal["image", "image_only"] = "image", strict: bool = True, trouble: Counter[str] | None = None
) -> Iterator[Link]:
    """The picture links of a WAT stream, in order, duplicates included. A broken record is skipped; what came before broken gzip is kept.

    Args:
        stream: the file, gzipped or not.
        doc_type: `image` wants an alt text, `image_only` does not.
        strict: refuse hosts that are none and empty addresses, and drop fragments; off: as cc2dataset does.
        trouble: counts `broken_record` and `damaged_archive` (the rest of it was not read).
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    trouble = Counter[str]() if trouble is None else trouble
    try:
        records = ArchiveIterator(stream)
        for record in records:
            if record.rec_type != "metadata":
                continue
            body = record.content_stream().read(RECORD_BYTES)
            if b"IMG@/src" not in body:  # a search costs a hundredth of parsing
                continue
            found = _envelope(body)  # None also for one that is cut off at RECORD_BYTES
            if found is None:
                trouble["broken_record"] += 1
            else:
                offset = records.get_record_offset()
                yield from (Link(url, alt, page, offset) for url, alt, page in _links(*found, doc_type, strict))
    except (ArchiveLoadFailed, EOFError, OSError, zlib.error):
        trouble["damaged_archive"] += 1


def _envelope(body: bytes) -> tuple[str, str, list[Any]] | None:
    """(page, base address, links) of a record; None when it is not what it should be."""
    try:
        envelope = orjson.loads(body)["Envelope"]
        found: dict[str, Any] = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        links, page = found["Links"], str(envelope["WARC-Header-Metadata"]["WARC-Target-URI"])
        return page, str((found.get("Head") or {}).get("Base", "")), links if isinstance(links, list) else []
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _links(page: str, base: str, links: list[Any], doc_type: str, strict: bool) -> Iterator[tuple[str, str, str]]:
    base = _join(page, base)
    for link in links:
        if not isinstance(link, dict) or link.get("path") != "IMG@/src":
            continue
        alt, address = str(link.get("alt") or ""), str(link.get("url") or "")
        if (doc_type == "image" and not alt) or (strict and not address.strip()):
            continue
        url = address if address.startswith(("http://", "https://")) else _join(base, address)
        if strict:
            url = _valid(url)
        if url.startswith(("http://", "https://")):
            yield url, alt, page


def _join(base: str, address: str) -> str:
    try:
        return urljoin(base, address) if address else base
    except ValueError:
        return address


def _valid(url: str) -> str:
    try:
        return urldefrag(url).url if urlsplit(url).hostname else ""
    except ValueError:
        return ""
