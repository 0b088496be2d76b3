"""A candidate pair: an address of a picture and its texts, under one uid; and any number of them, merged in bounded memory."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from vlm_core.data.crawl.config import Extract
from vlm_core.data.sample import canonical_url, make_uid

Pair = dict[str, Any]
LOCAL = "local"  # scheme of pictures that came with a source of this machine (`vlm_core/data/fetch/local.py`)
HELD = 20_000  # pairs in memory before they go to disk
BUCKET_PAIRS = 200_000  # pairs that are merged at once
DEEPEST = 8  # digits of the uid by which buckets may be split


class Seen(NamedTuple):
    """Where a pair was found."""

    page_url: str
    source: str
    place: str = ""


def make_pair(
    url: str, captions: list[tuple[str, str]], lang: str, config: Extract, dropped: Counter[str], seen: Seen, *, is_local: bool = False, **more: str
) -> Pair | None:
    """A pair from (text, origin) in order of preference; the first one with a text is raw. None (and a reason) for what cannot be one.

    Addresses of other schemes stay: the download says what became of them. Only `local` ones are refused unless the caller vouches for them:
    a page or a table of strangers must not name pictures of this machine.
    """
    texts = [(text[: config.max_caption_chars].strip(), origin) for text, origin in captions]
    texts = [(text, origin) for place, (text, origin) in enumerate(texts) if text and text not in {before for before, _ in texts[:place]}]
    if not texts:
        dropped["no_caption"] += 1
        return None
    if not is_address(url, is_local):
        dropped["bad_address"] += 1
        return None
    address = canonical_url(url)
    rows = [{"text": text, "origin": origin, "lang": lang} for text, origin in texts]
    known = {"uid": make_uid(address, texts[0][0]), "url": address, "page_url": seen.page_url, "source": seen.source, "caption": texts[0][0], "lang": lang}
    return {**known, "captions": rows, "licence": "", "credit": "", "page_optout": "", "sha256": "", "pdq": "", **more, "pages": [seen._asdict()]}


def is_address(url: str, is_local: bool = False) -> bool:
    try:
        parts = urlsplit(url.strip())
        scheme = parts.scheme.lower()
        return bool(scheme) and (scheme != LOCAL or is_local) and (bool(parts.hostname) or scheme not in {"http", "https"}) and url.isprintable()
    except ValueError:
        return False


def add(pairs: dict[str, Pair], pair: Pair, most_pages: int) -> int:
    """Put a pair among the others; one that is known already gives the known one what it lacks. Returns how many of its places found no room."""
    known = pairs.setdefault(pair["uid"], pair)
    if known is pair:
        return 0
    texts = {caption["text"] for caption in known["captions"]}
    known["captions"] += [caption for caption in pair["captions"] if caption["text"] not in texts]
    new = [seen for seen in pair["pages"] if seen not in known["pages"]]
    room = max(0, most_pages - len(known["pages"]))
    known["pages"] += new[:room]
    for name in ("lang", "licence", "credit", "page_optout", "sha256", "pdq"):
        known[name] = known[name] or pair[name]
    return len(new[room:])


class Merger:
    """All pairs of several sources, each uid once, sorted, in memory that does not grow with their number.

    Pairs go to files by the first digits of their uid; each file is merged by itself, and one that is too large is divided by its next digits.
    Which source came first decides what a merged pair begins with, so equal input in equal order gives equal pairs.
    """

    def __init__(self, folder: Path, most_pages: int, skip: int = 0) -> None:
        self.folder, self.most_pages, self.skip = folder, most_pages, skip
        self.counts, self.held, self.surplus = Counter[str](), list[Pair](), 0  # surplus: places that found no room
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed

    def add(self, pair: Pair) -> None:
        self.held.append(pair)
        if len(self.held) >= HELD:
            self._spill()

    def sorted(self) -> Iterator[Pair]:
        """The merged pairs. Once."""
        if not self.counts:
            yield from self._merged(self.held)
            return
        self._spill()
        for bucket in sorted(self.counts):
            file = self.folder / bucket
            if self.counts[bucket] > BUCKET_PAIRS and self.skip + len(bucket) < DEEPEST:
                inner = Merger(self.folder / f"{bucket}.more", self.most_pages, self.skip + len(bucket))
                for pair in _read(file):
                    inner.add(pair)
                yield from inner.sorted()
                self.surplus += inner.surplus
            else:
                yield from self._merged(_read(file))
            file.unlink()
        shutil.rmtree(self.folder)

    def _merged(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        found: dict[str, Pair] = {}
        for pair in pairs:
            self.surplus += add(found, pair, self.most_pages)
        yield from (found[uid] for uid in sorted(found))

    def _spill(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        buckets: dict[str, list[Pair]] = {}
        for pair in self.held:
            buckets.setdefault(pair["uid"][self.skip : self.skip + 2], []).append(pair)
        self.held.clear()
        for bucket, pairs in buckets.items():
            self.counts[bucket] += len(pairs)
            with (self.folder / bucket).open("ab") as stream:
                stream.writelines(orjson.dumps(pair) + b"\n" for pair in pairs)


def _read(file: Path) -> Iterator[Pair]:
    with file.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)
