"""Common Crawl's WAT files (metadata of archived pages) -> picture links with their alt text. Source: `methods/data.md` 1; rom1504/cc2dataset main.py.

Checked by golden `data/wat_extract`.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit


class Link(NamedTuple):
    """A picture on a page."""

    url: str
    alt: str
    page: str

    @property
    def md5(self) -> str:
        """cc2dataset's name of a pair. It has no separator, so ("ab", "c") and ("a", "bc") collide; ours is `make_uid`."""
        return hashlib.md5((self.alt + self.url).encode(), usedforsecurity=False).hexdigest()


def extract_links(stream: BinaryIO, doc_type: Literal["image", "image_only"] = "image", strict: bool = True) -> Iterator[Link]:
    """The picture links of a WAT stream, in order, duplicates included. A broken record is skipped; what came before broken gzip is kept.

    Args:
        stream: the file, gzipped or not.
        doc_type: `image` wants an alt text, `image_only` does not.
        strict: refuse hosts that are none and empty addresses, and drop fragments; off: as cc2dataset does.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    try:
        for record in ArchiveIterator(stream):
            if record.rec_type == "metadata":
                body = record.content_stream().read()
                if b"IMG@/src" in body:  # three times faster than parsing every record
                    yield from _links(body, doc_type, strict)
    except (ArchiveLoadFailed, EOFError, OSError):
        return


def _links(body: bytes, doc_type: str, strict: bool) -> Iterator[Link]:
    try:
        envelope = json.loads(body)["Envelope"]
        found: dict[str, Any] = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
        links, page = found["Links"], str(envelope["WARC-Header-Metadata"]["WARC-Target-URI"])
    except (ValueError, KeyError, TypeError):
        return
    base = _join(page, str(found.get("Head", {}).get("Base", "")))
    for link in links:
        alt, address = str(link.get("alt") or ""), str(link.get("url") or "")
        if link.get("path") != "IMG@/src" or (doc_type == "image" and not alt) or (strict and not address.strip()):
            continue
        url = address if address.startswith(("http://", "https://")) else _join(base, address)
        if strict:
            url = _valid(url)
        if url.startswith(("http://", "https://")):
            yield Link(url, alt, page)


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
