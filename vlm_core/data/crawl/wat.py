"""Common Crawl's WAT files (metadata of archived pages) -> picture links with their alt text. Source: `methods/data.md` 1; rom1504/cc2dataset main.py.

A WAT file is millions of small gzip members, one record each. Three things make reading it cheap (`benchmarks/wat.py`): records without a picture are
told by a search in their bytes, before anything of them is parsed; the others go through orjson; and an address below the site's root, which is
what most are, is joined without parsing it. Checked by golden `data/wat_extract`.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

import orjson

RECORD_BYTES = 64 * 2**20  # of one record; Common Crawl's are smaller by far
CHUNK = 2**16
MAGIC, PICTURE = b"\x1f\x8b\x08", b"IMG@/src"
FLAGS = (b"\0", b"\4", b"\10")  # none, extra field, name: what writers of archives set; others only make damage look like a member
_LENGTH = re.compile(rb"^content-length:\s*(\d+)", re.I | re.M)
_METADATA = re.compile(rb"^warc-type:\s*metadata\s*$", re.I | re.M)
_SITE = re.compile(r"https?://[A-Za-z0-9][\w\-.]*(:\d{1,5})?(?=[/?#]|$)", re.A)
_PLAIN = re.compile(r"/(?!/)[\w\-./%~+,=&@!()*:]*(\?[\w\-./%~+,=&@!()*:?]+)?", re.A)  # of such an address urljoin keeps every letter


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
    """The picture links of a WAT stream, in order, duplicates included. A broken record is skipped; after damage the next whole record is looked for.

    Args:
        stream: the file, gzipped or not.
        doc_type: `image` wants an alt text, `image_only` does not.
        strict: refuse hosts that are none and empty addresses, and drop fragments; off: as cc2dataset does.
        trouble: counts `broken_record`, and `damaged_archive` for each stretch that is no gzip.
    """
    trouble = Counter[str]() if trouble is None else trouble
    for offset, member in _members(stream, trouble):
        if PICTURE not in member:
            continue
        for body in _bodies(member):
            if PICTURE not in body:
                continue
            found = _envelope(body)
            if found is None:
                trouble["broken_record"] += 1
            else:
                yield from (Link(url, alt, page, offset) for url, alt, page in _links(*found, doc_type, strict))


def _members(stream: BinaryIO, trouble: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of every gzip member; of a file that is not packed, of every piece between two record heads."""
    data, offset, is_damaged = stream.read(CHUNK), 0, False
    if not data.startswith(MAGIC[:2]):
        yield from _unpacked(stream, data)
        return
    while data:
        unpacker, seen, parts, size = zlib.decompressobj(31), [data], list[bytes](), 0
        try:
            while not unpacker.eof and data and size <= RECORD_BYTES and seen[0][:3] == MAGIC and seen[0][3:4] in FLAGS:
                parts.append(unpacker.decompress(data, RECORD_BYTES))
                size += len(parts[-1])
                data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                if not data and (data := stream.read(CHUNK)) and not unpacker.eof:
                    seen.append(data)
        except zlib.error:
            pass
        if unpacker.eof:
            is_damaged = False
            yield offset, b"".join(parts)
            offset += sum(map(len, seen)) - len(unpacker.unused_data)
        else:
            trouble["damaged_archive"] += not is_damaged
            is_damaged = True
            data, skipped = _next_member(stream, b"".join(seen), 1)
            offset += skipped


def _next_member(stream: BinaryIO, data: bytes, at: int) -> tuple[bytes, int]:
    """(the bytes from the next thing on that looks like a member, how many lie before it)."""
    skipped = 0
    start = MAGIC + FLAGS[0]
    while (found := data.find(start, at)) < 0:
        more = stream.read(CHUNK)
        if not more:
            return b"", skipped + len(data)
        keep = len(start) - 1  # the mark may lie across two chunks
        skipped += max(0, len(data) - keep)
        data, at = data[-keep:] + more, 0
    return data[found:], skipped + found


def _unpacked(stream: BinaryIO, data: bytes) -> Iterator[tuple[int, bytes]]:
    offset, mark = 0, b"\r\n\r\nWARC/1."
    while data:
        end = data.find(mark, 4)
        while end < 0 and (more := stream.read(CHUNK)) and len(data) < RECORD_BYTES:
            before, data = max(4, len(data) - len(mark)), data + more
            end = data.find(mark, before)
        piece = data if end < 0 else data[: end + 4]
        yield offset, piece
        offset, data = offset + len(piece), b"" if end < 0 else data[end + 4 :]


def _bodies(member: bytes) -> Iterator[bytes]:
    """The content of the metadata records in a member: one, in Common Crawl's files."""
    at = 0
    while (end := member.find(b"\r\n\r\n", at)) > 0:
        head = member[at:end]
        length = _LENGTH.search(head)
        if length is None:
            return
        at = end + 4 + int(length.group(1))
        if _METADATA.search(head):
            yield member[end + 4 : at]
        at += 4


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
    site = _SITE.match(base)
    root = site.group() if site else ""
    for link in [link for link in links if isinstance(link, dict) and link.get("path") == "IMG@/src"]:
        alt, address = str(link.get("alt") or ""), str(link.get("url") or "")
        if (doc_type == "image" and not alt) or (strict and not address.strip()):
            continue
        if root and _PLAIN.fullmatch(address) and "/." not in address:
            yield root + address, alt, page
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
