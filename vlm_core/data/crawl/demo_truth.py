"""What is dirty about the demo web, address by address: the side file with which precision and recall of the rules are computed."""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from vlm_core.data.crawl.corpus import Corpus, Picture
from vlm_core.data.crawl.demo_site import FIGURES, OPTOUT_SECTION, odd_pictures, page_urls, section_of, sections
from vlm_core.data.sample import Status

SMALLEST_SIDE = 16  # of the demo's download settings, in pixels


class Finding(NamedTuple):
    """A kind of dirt; the status with which the download must end (None: no download, or a matter of settings); what it copies."""

    kind: str
    status: Status | None
    of: str = ""


def truth(corpus: Corpus) -> list[dict[str, Any]]:
    """One row per address and kind: url, kind, status, of, and the pages that show it; sorted."""
    shown = {page: len(pictures) for page, pictures in sections(corpus).items()}
    seen: dict[str, int] = defaultdict(int)
    copies, rows = _copies(corpus), []
    for picture in corpus.pictures:
        where = []
        for page in picture.pages:
            where.append(page_urls(page, shown[page])[seen[page] // FIGURES])
            seen[page] += 1
        found = [*_findings(corpus, picture), *copies.get(picture.url, ())] if picture.url else []
        rows += [{"url": picture.url, **finding._asdict(), "pages": where} for finding in found]
    for odd in odd_pictures(corpus):
        rows.append({"url": odd.address, **Finding(odd.kind, odd.status)._asdict(), "pages": page_urls(section_of(odd), 1)})
    return sorted(rows, key=lambda row: (row["url"], row["kind"]))


def _copies(corpus: Corpus) -> dict[str, list[Finding]]:
    """Pictures whose bytes have been shown under an address before (in alphabetical order), among those that a download must bring."""
    first: dict[bytes, str] = {}
    found = {}
    for picture in sorted((picture for picture in corpus.pictures if picture.url), key=lambda picture: picture.url):
        if all(finding.status == "ok" for finding in _findings(corpus, picture)):
            of = first.setdefault(hashlib.sha256(corpus.read(picture.file)).digest(), picture.url)
            found[picture.url] = [Finding("exact_duplicate", "ok", of)] if of != picture.url else []
    return found


def _findings(corpus: Corpus, picture: Picture) -> Iterator[Finding]:
    """Everything about a picture that can be said without looking at the others."""
    bad = _bad_picture(corpus.read(picture.file)) if picture.source != "noto" else None
    fate: Status | None = "robots_denied" if "robots" in picture.dirt else None if "empty_title" in picture.dirt else bad or "ok"
    if bad:
        yield Finding({"placeholder": "one_colour"}.get(bad, bad), fate)
    for kind, of in picture.dirt.items():
        yield Finding(kind, fate, of)
    if picture.serve:
        yield Finding(picture.serve, "optout_header" if "noai" in picture.serve else fate)
    if any(page.endswith(f"/{OPTOUT_SECTION}") for page in picture.pages):
        yield Finding("page_optout", None)


def _bad_picture(content: bytes) -> Status | None:
    """A swatch of one colour (some drawings were exported empty), or a sliver."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        lowest, highest = zip(*image.convert("RGB").getextrema(), strict=True)
        return "too_small" if min(image.size) < SMALLEST_SIDE else "placeholder" if lowest == highest else None
