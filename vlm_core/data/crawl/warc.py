"""Web archives (WARC): the HTML pages of their response records, streamed. Source: `methods/data.md` 1."""

import zlib
from collections.abc import Iterator
from typing import Any

from vlm_core.data.crawl import html
from vlm_core.data.crawl.config import Crawl
from vlm_core.data.crawl.page_store import Row, canonical_of
from vlm_core.data.crawl.places import Place, places

PATTERN, WHAT = r"\.warc(\.gz)?$", ".warc or .warc.gz"


def read_warcs(path: str, config: Crawl) -> Iterator[Row]:
    """The pages of the archives at a path or fsspec URL, in their order."""
    for place in places(path, PATTERN, WHAT):
        yield from read_warc(place, config)


def read_warc(place: Place, config: Crawl) -> Iterator[Row]:
    """The pages of one archive. What was read before a damaged record, or before its server failed, is kept; a row says so."""
    import aiohttp  # fsspec's client for http
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    try:
        with place.open() as stream:
            records = ArchiveIterator(stream)
            for record in records:
                row = _page(record, config) if record.rec_type == "response" else None
                if row is not None:
                    yield {**row, "source": f"warc:{place.name}", "place": str(records.get_record_offset())}
    except (ArchiveLoadFailed, EOFError, OSError, zlib.error, aiohttp.ClientError) as error:
        detail = f"{type(error).__name__}: the rest of the archive was not read"
        yield {"url": f"damaged:{place.name}", "status": "decode_error", "detail": detail}


def _page(record: Any, config: Crawl) -> Row | None:
    headers, url = record.http_headers, record.rec_headers.get_header("WARC-Target-URI") or ""
    if headers is None or not url:
        return None
    code, kind = headers.get_statuscode() or "", headers.get_header("Content-Type") or ""
    if code != "200" or not kind.strip().lower().startswith(("text/html", "application/xhtml+xml")):
        return None
    x_robots, tdm = ("\n".join(value for name, value in headers.headers if name.lower() == wanted) for wanted in ("x-robots-tag", "tdm-reservation"))
    known = {"url": url, "final_url": url, "http_status": 200, "content_type": kind, "x_robots": x_robots, "tdm_reservation": tdm}
    body = record.content_stream().read(config.max_page_kb * 1024 + 1)
    if len(body) > config.max_page_kb * 1024:
        return {**known, "status": "too_large", "detail": "larger than a page may be"}
    page = html.read_page(html.decode_html(body, kind), url)
    return {**known, "status": "ok", "html": body, "lang": page.lang, "canonical": canonical_of(page.canonical, url)}
