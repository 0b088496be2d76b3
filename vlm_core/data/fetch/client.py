"""What a downloading process asks through: one client with its connections, the ledger behind it, hash lists, and an eye on our own network."""

import contextlib
import hashlib
import io
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlm_core.data.crawl.config import Download
from vlm_core.data.fetch.fetch import Fetched, Fetcher
from vlm_core.data.fetch.hash_lists import HashLists
from vlm_core.data.fetch.ledger import Ledger
from vlm_core.data.fetch.outage import Outage, of_our_side
from vlm_core.data.fetch.picture import Limits, decode
from vlm_core.data.fetch.schedule import host_of
from vlm_core.data.fetch.spool import Place
from vlm_core.data.filter import perceptual
from vlm_core.data.web.address import FetchFailed
from vlm_core.data.web.politeness import Later, Sites, domain_of


class Job:
    """What every process of a job shares. Pickles as the name of its file and whether this is the first pass."""

    def __init__(self, file: str, first: bool = True) -> None:
        self.file, self.first = file, first
        self.config = Download.read(json.loads(Path(file).read_text()))
        self.ledger = Ledger(Path(file).parent)
        self.limits = Limits(self.config.fetch.max_pixels, self.config.fetch.max_decoded_mb, self.config.fetch.min_side, self.config.fetch.max_aspect)

    def __reduce__(self) -> tuple[type["Job"], tuple[str, bool]]:
        return Job, (self.file, self.first)


class Client:
    """One per process: the fetcher with its TLS context and connections, the hash lists, and an eye on our own network."""

    def __init__(self, job: Job) -> None:
        config, self.ledger, self.limits = job.config, job.ledger, job.limits
        self.lists = HashLists({name: (one.kind, Path(one.path)) for name, one in config.hash_lists.items()}) if config.hash_lists else None
        self.kinds = {one.kind for one in config.hash_lists.values()}
        self.outage, self.unfinished = Outage(), self.ledger.unfinished()
        self._decoding, self._decode_s = threading.Lock(), config.fetch.decode_s
        self.fetcher = Fetcher(config.network, config.fetch, self.ledger.origins, self.blocked if self.lists else None, Sites(self.ledger.root / "sites.slots"))
        self.fetcher.keeps_md5 = "md5" in self.kinds

    def fetch(self, url: str) -> tuple[Fetched, Place | None]:
        """Ask for an address, or give what an earlier process learnt, and where its bytes lie. Raises Later."""
        if url in self.unfinished:
            return self.unfinished[url]
        if self.ledger.stopped():
            raise Later(url)
        places = list[Place]()
        record = self.fetcher.fetch(url, lambda data: places.append(self.ledger.keep(data)))
        place = places[0] if places else None
        if why := self.outage.sees(domain_of(host_of(record.url)), record.status, record.detail):
            self.ledger.stop(why)
        if of_our_side(record.status, record.detail) and self.ledger.stopped():
            raise Later(url)
        self.ledger.finish(record, place)
        return record, place

    @contextlib.contextmanager
    def decoding(self, url: str) -> Iterator[None]:
        """One picture of this process at a time, so that a crash costs that picture. One that takes too long is a crash too: SIGALRM ends the process,
        also where a decoder never comes back to Python."""
        with self._decoding:
            self.ledger.mark(url)
            signal.setitimer(signal.ITIMER_REAL, self._decode_s)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self.ledger.mark("")

    def blocked(self, url: str, body: io.BytesIO) -> str | None:
        """The name of the list that a picture is on. Nothing of it has been written to disk yet."""
        assert self.lists is not None
        data = body.getbuffer()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest() if "md5" in self.kinds else ""
        found = self.lists.blocked(hashlib.sha256(data).hexdigest(), md5)
        if found is not None or "pdq" not in self.kinds:
            return found
        with self.decoding(url):
            try:
                image, _ = decode(body, self.limits, 256)
            except FetchFailed:
                return None  # the resizer will say so
            return self.lists.blocked("", "", perceptual.to_hex(perceptual.pdq(np.asarray(image.convert("RGB")))[0]))


_clients: dict[str, Client] = {}


def client_of(job: Job) -> Client:
    """One client, one TLS context and one set of connections per process."""
    if job.file not in _clients:
        _clients[job.file] = Client(job)
    return _clients[job.file]
