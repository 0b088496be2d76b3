"""How often one site is asked: a token bucket per registrable domain, Retry-After, half the rate after a 429 or 503, and a circuit breaker per host.

The buckets lie in a table that all processes of a job map into their memory, so the rate of a domain is its rate, however many processes ask.
Source: `methods/data.md` 2.
"""

import contextlib
import fcntl
import functools
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import numpy as np
import tldextract

from vlm_core.data.sample import STATUSES
from vlm_core.data.web.address import FetchFailed

DEAD_AFTER, DEAD_FOR_S, SLOWEST = 5, 60.0, 64.0
_DOMAINS = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list inside the package; nothing is fetched
_DOMAINS_READ = threading.Lock()  # reading it takes 60 ms of CPU, and each thread that finds it unread would read it
BREAKS: frozenset[str] = frozenset({"dns_nxdomain", "dns_timeout", "connect_refused", "connect_timeout", "tls_error", "deadline", "http_5xx"})
SITE = np.dtype([
    ("key", "<u8"), ("next_at", "<f8"), ("quiet_until", "<f8"), ("slower", "<f8"), ("min_gap_s", "<f8"), ("dead_until", "<f8"),
    ("open", "<i4"), ("failures", "<i4"), ("status", "<i4"), ("http_status", "<i4"), ("detail", "S64"),
])  # fmt: skip


class Later(Exception):
    """Its site has no turn for this address now: nothing was asked, ask again in a later pass."""


@functools.lru_cache(65_536)
def domain_of(host: str) -> str:
    """The registrable domain: what one owner answers for."""
    with _DOMAINS_READ:
        return _DOMAINS.extract_str(host).top_domain_under_public_suffix or host


def retry_after_s(text: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


class NotAsked(FetchFailed):
    """Its site wants more quiet than a run waits for: nothing was asked. `pause_s`: what is left of it, in seconds."""

    def __init__(self, row: Any, pause_s: float, why: str) -> None:
        is_down = row["http_status"] == 503
        super().__init__("http_5xx" if is_down else "http_429", f"not asked: {why}", 503 if is_down else 429)
        self.pause_s = pause_s


class Sites:
    """One row (SITE) per name, shared by every process that opens the same file; without a file, by the threads of this process.

    An open-addressing table of fixed size; the kernel drops the row locks of a process that is killed.
    """

    def __init__(self, file: Path | None = None, slots: int = 4096) -> None:
        self._stream = None if file is None else file.open("r+b")
        self._rows: Any = np.zeros(slots, SITE) if file is None else np.memmap(file, SITE, "r+")
        self._slots: dict[str, int] = {}
        self._lock = threading.Lock()

    @staticmethod
    def create(file: Path, names: int) -> None:
        """A table with room for this many names. Empty parts of the file take no disk."""
        with file.open("wb") as stream:
            stream.truncate((2 * names + 4096) * SITE.itemsize)

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[Any]:
        """The row of a name, held against all others until the block ends."""
        with self._lock:
            slot = self._slots.get(name)
            if slot is None:
                with self._held(len(self._rows)):
                    slot = self._slots[name] = self._find(name)
            with self._held(slot):
                yield self._rows[slot]

    @contextlib.contextmanager
    def _held(self, place: int) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        fcntl.lockf(self._stream, fcntl.LOCK_EX, 1, place)
        try:
            yield
        finally:
            fcntl.lockf(self._stream, fcntl.LOCK_UN, 1, place)

    def _find(self, name: str) -> int:
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") or 1
        for step in range(len(self._rows)):
            slot = (key + step) % len(self._rows)
            found = int(self._rows[slot]["key"])
            if found in {0, key}:
                self._rows[slot]["key"] = key
                return slot
        raise RuntimeError(f"the table of {len(self._rows)} sites is full")


class Politeness:
    """Shared by all threads of a process, and through `sites` by all processes of a job.

    Args:
        rate_per_s, burst: token bucket of each domain.
        connections: how many may be open to a domain at once.
        max_quiet_s: a site that asks for more quiet than this, once or by its Crawl-delay, is left alone; its addresses end unasked.
        clock: seconds, the same for all processes of the machine.
    """

    def __init__(
        self, rate_per_s: float, burst: int, connections: int, max_quiet_s: float, sites: Sites | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate_per_s, self.burst, self.connections, self.max_quiet_s, self.clock = rate_per_s, burst, connections, max_quiet_s, clock
        self.sites = sites or Sites()

    @contextlib.contextmanager
    def turn(self, host: str, patience_s: float = float("inf")) -> Iterator[None]:
        """Wait for this host's turn and hold one of its connections.

        Raises Later when that takes more than `patience_s`, NotAsked when the host asked to be left alone for long, and its last failure
        again while it counts as dead (Later for the impatient).
        """
        domain = domain_of(host)
        self.refuse_dead(host, patience_s)
        at = self._reserve(domain, patience_s)
        try:
            while (wait := max(at, self._quiet_until(domain)) - self.clock()) > 0:
                time.sleep(min(wait, 1.0))
            yield
        finally:
            with self.sites.row(domain) as row:
                row["open"] = max(0, row["open"] - 1)

    def refuse_dead(self, host: str, patience_s: float = float("inf")) -> None:
        """Raises the last failure of a host that failed five times in a row (Later for the impatient); after a minute one request may try."""
        with self.sites.row(f"host {host}") as row:
            if row["failures"] < DEAD_AFTER:
                return
            if self.clock() >= row["dead_until"]:
                row["dead_until"] = self.clock() + DEAD_FOR_S  # one may try, the others wait for what becomes of it
                return
            failure = FetchFailed(STATUSES[row["status"]], row["detail"].decode("utf-8", "ignore"), int(row["http_status"]))
        raise failure if patience_s == float("inf") else Later(host)

    def _reserve(self, domain: str, patience_s: float) -> float:
        """When this request may start; a connection and a token are taken."""
        begin, pause = self.clock(), 0.005
        while True:
            with self.sites.row(domain) as row:
                now = self.clock()
                self._refuse_long_quiet(row, now)
                gap = max(max(1.0, row["slower"]) / self.rate_per_s, row["min_gap_s"])
                slack = 0.0 if row["min_gap_s"] else gap * (self.burst - 1)
                at = float(max(now, row["next_at"] - slack, row["quiet_until"]))
                if row["min_gap_s"] > self.max_quiet_s and at - now > self.max_quiet_s:
                    raise NotAsked(row, at - now, f"its Crawl-delay is {row['min_gap_s']:g} s, more than {self.max_quiet_s:g} s")
                if at > now and at - begin > patience_s:
                    raise Later(domain)
                if row["open"] < self.connections:
                    row["open"] += 1
                    row["next_at"] = max(row["next_at"], now) + gap
                    return at
                if now - begin >= patience_s:
                    raise Later(domain)
            time.sleep(pause)
            pause = min(0.1, pause * 1.5)

    def _refuse_long_quiet(self, row: Any, now: float) -> None:
        if row["quiet_until"] - now > self.max_quiet_s:
            raise NotAsked(row, float(row["quiet_until"] - now), f"the host wants a pause of more than {self.max_quiet_s:g} s")

    def _quiet_until(self, domain: str) -> float:
        with self.sites.row(domain) as row:
            self._refuse_long_quiet(row, self.clock())
            return float(row["quiet_until"])

    def refuse_long_quiet(self, host: str) -> None:
        """Raises NotAsked while a host wants more quiet than `max_quiet_s`."""
        self._quiet_until(domain_of(host))

    def quiet_s(self, host: str) -> float:
        """What is left of the pause that a host's domain wants, in seconds."""
        with self.sites.row(domain_of(host)) as row:
            return max(0.0, float(row["quiet_until"]) - self.clock())

    def keep_quiet(self, host: str, seconds: float) -> None:
        """A pause that was asked for earlier is still on."""
        with self.sites.row(domain_of(host)) as row:
            row["quiet_until"], row["http_status"] = max(float(row["quiet_until"]), self.clock() + seconds), 429

    def crawl_delay(self, host: str, seconds: float) -> None:
        """The longest that any origin of the domain asks for."""
        with self.sites.row(domain_of(host)) as row:
            row["min_gap_s"] = max(float(row["min_gap_s"]), seconds)

    def answered(self, host: str, http_status: int, retry_after: str | None) -> None:
        """Learn from a reply: 429 and 503 halve the rate and start a quiet time, anything else slowly restores it."""
        with self.sites.row(domain_of(host)) as row:
            slower = max(1.0, float(row["slower"]))
            if http_status not in {429, 503}:
                row["slower"] = max(1.0, slower * 0.9)
                return
            row["slower"] = slower = min(SLOWEST, slower * 2)
            asked = retry_after_s(retry_after)
            quiet = asked if asked is not None else random.uniform(0.5, 1.0) * slower / self.rate_per_s
            row["quiet_until"], row["http_status"] = max(float(row["quiet_until"]), self.clock() + quiet), http_status

    def settled(self, host: str) -> None:
        """An exchange came to its end: the host lives."""
        with self.sites.row(f"host {host}") as row:
            row["failures"] = 0

    def failed(self, host: str, failure: FetchFailed) -> None:
        """Learn from a failure that speaks against the host: after five in a row it is left alone for a minute."""
        if failure.status not in BREAKS:
            self.settled(host)
            return
        with self.sites.row(f"host {host}") as row:
            row["failures"] += 1
            row["dead_until"], row["status"], row["http_status"] = self.clock() + DEAD_FOR_S, STATUSES.index(failure.status), failure.http_status
            row["detail"] = failure.detail.encode()[:64]
